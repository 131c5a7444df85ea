"""The keys of a config: where they may stand, what is wrong with them, and what needs them."""

from typing import Any

import attrs
import pytest

import rpcd
from rpcd.core import keys
from rpcd.core.load import load
from rpcd.core.secrets import read_from, written_out
from rpcd.core.settings import Settings

A, B, C = (letter * 43 + "=" for letter in "ABC")
CANARY = "canary-7f3a"

FILE: dict[str, Any] = {"queues": {"q": {}}, "consumers": {"c": {"queue": "q", "handler": "shop:handle"}}}


def loaded(broker: Any = None, consumer: Any = None, overlay: Any = None, **files: str) -> tuple[Settings, list[str]]:
    parsed = {**FILE, "broker": broker or {}}
    parsed["consumers"] = {"c": {**FILE["consumers"]["c"], **(consumer or {})}}
    if overlay is not None:
        parsed["virtual_hosts"] = {"staging": overlay}
    found, problems = load(parsed, {}, files.__getitem__, virtual_host=None if overlay is None else "staging")
    return found, [str(each) for each in problems]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ([], []),
        ([A], [A]),
        ([A, B], [A, B]),
        (["${file:two}", C], [A, B, C]),
        (["${file:spaced}"], [A, B]),
    ],
)
def test_keys_stand_in_an_array_or_several_in_a_file_newest_first(written: list[str], found: list[str]) -> None:
    settings, problems = loaded({"fernet_keys": written}, two=f"{A}\n{B}\n", spaced=f"\n{A}\r\n\n  {B}  \n\n")
    assert problems == []
    assert keys.keys_in(settings.broker) == found


@pytest.mark.parametrize(
    ("broker", "problem"),
    [
        (
            {"fernet_keys": [CANARY]},
            "broker.fernet_keys[0]: is no Fernet key (32 bytes in URL-safe base64: 44 characters); ",
        ),
        ({"fernet_keys": [A, A[:-1]]}, "broker.fernet_keys[1]: is no Fernet key"),
        ({"fernet_keys": [A.replace("A", "+")]}, "broker.fernet_keys[0]: is no Fernet key"),
        ({"fernet_keys": [f"{A}\n{CANARY}\n"]}, "broker.fernet_keys[0]: line 2 is no Fernet key"),
        ({"fernet_keys": [""]}, "broker.fernet_keys[0]: holds no key; `rpcd keys generate` makes one"),
        ({"fernet_keys": A}, "broker.fernet_keys: expected an array, got a string"),
        ({"fernet_keys": [5]}, "broker.fernet_keys[0]: expected a string, got a number"),
        ({"fernet_ttl": 60}, "broker.fernet_ttl: there are no fernet_keys, so there are no tokens"),
        ({"fernet_keys": [A], "fernet_ttl": 0}, "broker.fernet_ttl: no token would be young enough"),
        ({"fernet_keys": [A], "fernet_ttl": -1}, "broker.fernet_ttl: expected a number of seconds"),
    ],
)
def test_a_wrong_key_is_told_with_its_place_and_never_shown(broker: Any, problem: str) -> None:
    _, problems = loaded(broker)
    assert len(problems) == 1
    assert problems[0].startswith(problem)
    assert CANARY not in problems[0]
    assert A[:-1] not in problems[0]


@pytest.mark.parametrize(
    ("consumer", "setting"),
    [
        ({"encrypted": True}, "encrypted"),
        ({"secrets": "opportunistic"}, "secrets"),
        ({"secret_fields": ["a"]}, "secret_fields"),
    ],
)
def test_what_needs_a_key_says_so_when_there_is_none(consumer: Any, setting: str) -> None:
    assert loaded({"fernet_keys": [A]}, consumer)[1] == []
    _, problems = loaded({}, consumer)
    assert len(problems) == 1
    assert problems[0].startswith(
        f"consumers.c.{setting}: nothing can be decrypted without a key; set broker.fernet_keys; `rpcd"
    )


def test_no_field_can_be_required_where_none_must_be_a_token() -> None:
    _, problems = loaded({"fernet_keys": [A]}, {"secrets": "opportunistic", "secret_fields": ["password"]})
    assert len(problems) == 1
    assert problems[0].startswith("consumers.c.secret_fields: tells which fields must be tokens")
    assert loaded({}, {"secret_fields": []})[1] == []


def test_the_settings_do_not_show_their_keys() -> None:
    settings, _ = loaded({"fernet_keys": [A]})
    assert A not in repr(settings)


# Overlays -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", [{"fernet_keys": [B]}, {"broker": {"fernet_keys": [B]}}])
def test_a_virtual_host_has_keys_of_its_own(overlay: Any) -> None:
    settings, problems = loaded({"fernet_keys": [A]}, overlay=overlay)
    assert problems == []
    assert keys.keys_in(settings.broker) == [B]
    settings, problems = loaded({"fernet_keys": [A], "fernet_ttl": 60}, overlay={**overlay, "fernet_ttl": 30})
    assert (problems, settings.broker.fernet_ttl) == ([], 30.0)


def test_a_virtual_hosts_own_keys_stand_beside_the_rest_of_its_broker() -> None:
    settings, problems = loaded(overlay={"fernet_keys": [B], "broker": {"username": "u"}})
    assert (problems, settings.broker.username, keys.keys_in(settings.broker)) == ([], "u", [B])


@pytest.mark.parametrize(
    ("overlay", "problem"),
    [
        ({"fernet_keys": [CANARY]}, "virtual_hosts.staging.fernet_keys[0]: is no Fernet key"),
        ({"broker": {"fernet_keys": [CANARY]}}, "virtual_hosts.staging.broker.fernet_keys[0]: is no Fernet key"),
        ({"fernet_keys": CANARY}, "virtual_hosts.staging.fernet_keys: expected an array"),
        ({"fernet_keys": ["${file:nowhere}"]}, "virtual_hosts.staging.fernet_keys[0]: ${file:nowhere} can't be read"),
        ({"fernet_ttl": 5}, "virtual_hosts.staging.fernet_ttl: there are no fernet_keys"),
        ({"fernet_key": [A]}, "virtual_hosts.staging.fernet_key: unknown key"),
        (
            {"fernet_keys": [A], "broker": {"fernet_keys": [B]}},
            "virtual_hosts.staging.fernet_keys: stands in its broker table as well; keep one of the two",
        ),
    ],
)
def test_what_is_wrong_with_a_virtual_hosts_keys_is_told_where_it_stands(overlay: Any, problem: str) -> None:
    def read(_path: str) -> str:
        raise FileNotFoundError(2, "No such file")

    _, problems = load({**FILE, "virtual_hosts": {"staging": overlay}}, {}, read, virtual_host="staging")
    assert [str(each)[: len(problem)] for each in problems] == [problem]
    assert CANARY not in str(problems[0])


def test_keys_that_stand_in_the_file_are_secrets_of_the_file() -> None:
    parsed = {
        "broker": {"fernet_keys": [A, "${file:key}", "${credential:key}"]},
        "virtual_hosts": {"staging": {"fernet_keys": [B]}, "dev": {"broker": {"fernet_keys": ["${KEY}", C]}}},
    }
    assert written_out(parsed) == [
        "broker.fernet_keys[0]",
        "virtual_hosts.staging.fernet_keys[0]",
        "virtual_hosts.dev.broker.fernet_keys[1]",
    ]
    assert list(read_from({"broker": {"fernet_keys": ["${file:a}", "x${file:b}"]}})) == [
        ("broker.fernet_keys[0]", "a"),
        ("broker.fernet_keys[1]", "b"),
    ]


# Handlers -----------------------------------------------------------------------------------------


@attrs.define
class Order:
    card: rpcd.Secret[str]


def unmet(broker: Any, consumer: Any, body: Any = Order) -> list[str]:
    settings, problems = loaded(broker, consumer)
    assert problems == []
    return [str(each) for each in keys.unmet(settings, "c", [("shop:handle", body)])]


def test_a_handler_whose_body_has_secrets_needs_a_key() -> None:
    (problem,) = unmet({}, {})
    assert problem == (
        "consumers.c.handler: shop:handle: its body has an rpcd.Secret, and there is no key to open it with; "
        "set broker.fernet_keys; `rpcd keys generate` makes one"
    )
    assert unmet({"fernet_keys": [A]}, {}) == []
    assert unmet({}, {}, dict[str, Any]) == []


@pytest.mark.parametrize("consumer", [{"secrets": "opportunistic"}, {"secret_fields": ["card"]}])
def test_what_is_secret_is_said_once(consumer: Any) -> None:
    (problem,) = unmet({"fernet_keys": [A]}, consumer)
    assert problem.startswith(f"consumers.c.{next(iter(consumer))}: the type of shop:handle's body says by rpcd.Secret")
    assert unmet({"fernet_keys": [A]}, consumer, dict[str, str]) == []
    assert unmet({"fernet_keys": [A]}, {"secret_fields": []}) == []


def test_without_keys_nothing_of_cryptography_is_loaded() -> None:
    settings, _ = loaded()
    assert keys.sealing(settings.broker, settings.consumers["c"]) is None
