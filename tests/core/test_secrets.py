from typing import Any

import pytest

from rpcd.core.secrets import read_from, written_out


@pytest.mark.parametrize(
    ("broker", "places"),
    [
        ({}, []),
        ({"password": "correct-horse"}, ["broker.password"]),
        ({"password": "x${NAME}"}, ["broker.password"]),
        ({"password": "${NAME:correct-horse}"}, ["broker.password"]),
        ({"password": "guest"}, []),
        ({"password": ""}, []),
        ({"password": "${NAME}"}, []),
        ({"password": "${NAME:guest}"}, []),
        ({"password": "${NAME:}"}, []),
        ({"password": "${file:/etc/pw}"}, []),
        ({"password": "${credential:pw}"}, []),
        ({"url": "amqp://guest:guest@h/"}, []),
        ({"url": "amqp://h"}, []),
        ({"url": "amqp://u@h"}, []),
        ({"url": "amqp://u:@h"}, []),
        ({"url": "amqp://u:${NAME}@h"}, []),
        ({"url": "amqp://u:${file:/etc/pw}@h"}, []),
        ({"url": "amqp://u:${credential:pw}@h1,h2/v?heartbeat=5"}, []),
        ({"url": "amqp://${USER:u}:${NAME}@h:5672"}, []),
        ({"url": "amqp://u:g%75est@h"}, []),
        ({"url": "amqp://u:pw@h"}, ["broker.url"]),
        ({"url": "amqps://u:pw@h1,h2:5671/v"}, ["broker.url"]),
        ({"url": "amqp://u:${NAME:pw}@h"}, ["broker.url"]),
        ({"url": "amqp://u:a/b@h"}, ["broker.url"]),
        ({"url": "amqp://u:a@b@h"}, ["broker.url"]),
        ({"url": "nonsense:pw@h"}, []),
        ({"url": 5, "password": 5}, []),
        ({"username": "correct-horse", "virtual_host": "x"}, []),
    ],
    ids=str,
)
@pytest.mark.parametrize("overlay", [False, True], ids=["file", "overlay"])
def test_the_secrets_that_stand_in_a_file(broker: dict[str, Any], places: list[str], overlay: bool) -> None:
    parsed = {"virtual_hosts": {"a": {}, "b": {"broker": broker}}} if overlay else {"broker": broker}
    assert written_out(parsed) == [f"virtual_hosts.b.{place}" if overlay else place for place in places]


@pytest.mark.parametrize(
    ("url", "places"),
    [
        ("postgresql://u:pw@h/shop", ["layers.inbox.url"]),
        ("redis://:pw@h/0", ["layers.inbox.url"]),
        ("postgresql://u:${credential:pw}@h/shop", []),
        ("sqlite:///var/lib/shop.sqlite3", []),
        (5, []),
    ],
)
def test_a_password_in_the_url_of_a_layer_is_a_secret(url: Any, places: list[str]) -> None:
    assert written_out({"layers": {"inbox": {"url": url, "key": "secret"}, "b": 5}}) == places


@pytest.mark.parametrize(
    "parsed",
    [
        {},
        {"layers": 5},
        {"broker": 5},
        {"virtual_hosts": 5},
        {"virtual_hosts": {"a": 5, "b": {"broker": 5, "zzz": {"password": "x"}}}},
        {"zzz": {"password": "x"}},
        {"consumers": {"shop": {"config": {"password": "correct-horse"}}}},
        {"consumers": [1], "queues": {"a": {"bindings": ["x", {"exchange": "password"}]}}},
    ],
)
def test_nothing_else_is_a_secret_and_a_handlers_own_config_is_its_own_business(parsed: dict[str, Any]) -> None:
    assert written_out(parsed) == []


def test_the_files_that_secrets_are_read_from() -> None:
    tables = {
        "broker": {"url": "amqp://${file:user}:${file:/etc/pw}@h", "password": "${file:pw}", "username": "${file:no}"},
        "consumers": {"shop": {"config": {"password": "${file:no}"}}},
        "service": {"path": ["${file:no}"]},
        "layers": {"inbox": {"url": "redis://:${file:redis}@h", "key": "${file:no}"}},
    }
    assert list(read_from(tables)) == [
        ("broker.url", "user"),
        ("broker.url", "/etc/pw"),
        ("broker.password", "pw"),
        ("layers.inbox.url", "redis"),
    ]
