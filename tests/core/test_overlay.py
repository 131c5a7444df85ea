import copy
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcd.core.errors import Problem
from rpcd.core.load import load
from rpcd.core.overlay import SECTIONS, laid, mistakes, names, placed
from rpcd.core.settings import Broker, Settings

PROPERTY = settings(max_examples=30, deadline=None)

FILE: dict[str, Any] = {
    "broker": {"url": "amqp://h/own", "password": "p"},
    "service": {"path": ["a", "b"]},
    "queues": {"orders": {"type": "classic"}},
    "consumers": {"shop": {"queue": "orders", "handler": "a:b", "retry": {"delays": [1, 2], "attempts": 3}}},
}


def with_overlay(overlay: Any, **file: Any) -> dict[str, Any]:
    return {**FILE, **file, "virtual_hosts": {"staging": overlay, "dev": {}}}


def loaded(
    parsed: dict[str, Any], name: str | None = "staging", environment: dict[str, str] | None = None
) -> tuple[Settings, list[str]]:
    found, problems = load(parsed, environment or {}, lambda _path: "from file", virtual_host=name)
    return found, [str(problem) for problem in problems]


# What is laid over what ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("under", "over", "becomes"),
    [
        ({}, {}, {}),
        ({"a": 1}, {}, {"a": 1}),
        ({}, {"a": 1}, {"a": 1}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3, "d": 4}}, {"a": {"b": 1, "c": 3, "d": 4}}),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 3}}}, {"a": {"b": {"c": 3, "d": 2}}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": [{"b": 1}]}, {"a": [{"c": 1}]}, {"a": [{"c": 1}]}),
        ({"a": {"b": 1}}, {"a": 5}, {"a": 5}),
        ({"a": 5}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": 1}}),
    ],
)
def test_tables_merge_and_everything_else_replaces(under: Any, over: Any, becomes: Any) -> None:
    assert laid({"broker": under, "virtual_hosts": {"x": {"broker": over}}}, "x") == {"broker": becomes}


TREES = st.recursive(
    st.integers(0, 3) | st.lists(st.integers(0, 1), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)
TABLES = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


@PROPERTY
@given(TABLES, TABLES)
def test_laying_over_changes_neither_and_laying_over_twice_is_laying_over_once(under: Any, over: Any) -> None:
    before = copy.deepcopy((under, over))
    overlays = {"x": {"broker": over}}
    once = laid({"broker": under, "virtual_hosts": overlays}, "x")
    assert laid({**once, "virtual_hosts": overlays}, "x") == once
    assert (under, over) == before


@pytest.mark.parametrize(
    ("overlays", "found"), [({}, []), ({"b": {}, "a": {}}, ["b", "a"]), (5, []), ([], []), ({"a": 5}, ["a"])]
)
def test_overlays_are_named_in_the_order_of_the_file(overlays: Any, found: list[str]) -> None:
    assert names({"virtual_hosts": overlays}) == found
    assert names({}) == []
    assert laid({"a": 1, "virtual_hosts": overlays}, "a") == {"a": 1}


def test_an_overlay_may_hold_every_section_but_overlays() -> None:
    assert {*SECTIONS, "virtual_hosts"} == {field.name for field in attrs.fields(Settings)}


# The broker's virtual host ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overlay", "url", "broker"),
    [
        ({}, None, Broker(url="amqp://h/own", password="p", virtual_host="staging")),
        ({"broker": {}}, None, Broker(url="amqp://h/own", password="p", virtual_host="staging")),
        ({"broker": {"username": "u"}}, None,
            Broker(url="amqp://h/own", username="u", password="p", virtual_host="staging")),
        ({"broker": {"virtual_host": "other"}}, None, Broker(url="amqp://h/own", password="p", virtual_host="other")),
        ({"broker": {"url": "amqp://s"}}, None, Broker(url="amqp://s", password="p", virtual_host="staging")),
        ({"broker": {"url": "amqp://s/"}}, None, Broker(url="amqp://s/", password="p", virtual_host="staging")),
        ({"broker": {"url": "amqp://s/a%2Fb?heartbeat=5"}}, None,
            Broker(url="amqp://s/a%2Fb?heartbeat=5", password="p", virtual_host="a/b")),
        ({"broker": {"url": "amqp://s/${VH}"}}, None, Broker(url="amqp://s/a%2Fb", password="p", virtual_host="a/b")),
        ({"broker": {"url": "amqp://s/x", "virtual_host": "y"}}, None,
            Broker(url="amqp://s/x", password="p", virtual_host="y")),
        ({}, "amqp://e", Broker(url="amqp://e", virtual_host="staging")),
        ({}, "amqp://e/env", Broker(url="amqp://e/env", virtual_host="staging")),
        ({"broker": {"username": "u", "password": "q"}}, "amqp://e/env", Broker(url="amqp://e/env", virtual_host="staging")),
        ({"broker": {"virtual_host": "other"}}, "amqp://e/env", Broker(url="amqp://e/env", virtual_host="other")),
        ({"broker": {"url": "amqp://s/x"}}, "amqp://e/env", Broker(url="amqp://e/env", virtual_host="x")),
    ],
)  # fmt: skip
def test_the_virtual_host_is_the_one_asked_for_unless_the_overlay_says_another(
    overlay: dict[str, Any], url: str | None, broker: Broker
) -> None:
    """RABBITMQ_URL wins over all credentials, but who names a virtual host on the command line means it."""
    environment = {"VH": "a/b"} | ({"RABBITMQ_URL": url} if url else {})
    found, problems = loaded(with_overlay(overlay, broker={"url": "amqp://h/own", "password": "p"}), "staging", environment)
    assert (found.broker, problems) == (broker, [])


@pytest.mark.parametrize("environment", [{}, {"RABBITMQ_URL": "amqp://e/env"}])
def test_without_a_name_the_file_is_as_it_is_without_overlays(environment: dict[str, str]) -> None:
    parsed = with_overlay({"broker": {"username": "u"}, "queues": {"orders": {"type": "nonsense"}}})
    found, problems = loaded(parsed, None, environment)
    assert problems == []
    assert attrs.evolve(found, virtual_hosts={}) == load(FILE, environment, lambda _path: "")[0]


def test_an_overlay_changes_any_section() -> None:
    found, problems = loaded(
        with_overlay(
            {
                "logging": {"level": "debug"},
                "service": {"path": ["c"]},
                "exchanges": {"shop": {}},
                "queues": {"orders": {"durable": False}},
                "consumers": {"shop": {"workers": 3, "retry": {"delays": [5]}}},
            },
            broker={},
        )
    )
    assert problems == []
    assert (found.logging.level, found.service.path, list(found.exchanges)) == ("debug", ["c"], ["shop"])
    assert (found.queues["orders"].type, found.queues["orders"].durable) == ("classic", False)
    shop = found.consumers["shop"]
    assert (shop.handler, shop.workers, shop.retry.delays, shop.retry.attempts) == ("a:b", 3, [5.0], 3)


def test_only_the_overlay_that_is_used_is_expanded_and_only_what_it_leaves_of_the_file() -> None:
    parsed = with_overlay({"broker": {"password": "${file:x}"}}, broker={"password": "${NOWHERE}"})
    parsed["virtual_hosts"]["dev"] = {"broker": {"password": "${NOWHERE}"}}
    found, problems = loaded(parsed)
    assert (found.broker.password, problems) == ("from file", [])
    assert found.virtual_hosts["dev"] == {"broker": {"password": "${NOWHERE}"}}


def test_settings_show_no_overlay() -> None:
    found, _ = loaded(with_overlay({"broker": {"password": "correct-horse"}}, broker={}), None)
    assert "correct-horse" in str(found.virtual_hosts)
    assert "correct-horse" not in repr(found)


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "dev", "staging"])
@pytest.mark.parametrize(
    ("overlays", "problems"),
    [
        (5, ["virtual_hosts: expected a table, got 5"]),
        ({"staging": 5, "dev": {}}, ["virtual_hosts.staging: expected a table, got 5"]),
        (
            {"staging": {"brokr": {}}, "dev": {"zzz": {}}},
            ["virtual_hosts.staging.brokr: unknown key; did you mean 'broker'?",
            ("virtual_hosts.dev.zzz: unknown key; "
            "known here: broker, service, logging, exchanges, queues, consumers, layers")],
        ),
        (
            {"staging": {"virtual_hosts": {}}, "dev": {}},
            [("virtual_hosts.staging.virtual_hosts: unknown key; "
            "known here: broker, service, logging, exchanges, queues, consumers, layers")],
        ),
    ],
)  # fmt: skip
def test_the_shape_of_every_overlay_is_checked_whichever_is_used(overlays: Any, problems: list[str], name: Any) -> None:
    found = loaded({**FILE, "broker": {}, "virtual_hosts": overlays}, name)[1]
    if overlays == 5 and name is not None:
        found = [each for each in found if "is asked for" not in each]
    assert found == problems


@pytest.mark.parametrize(
    ("overlays", "remedy"),
    [
        ({"virtual_hosts": {"staging": {}, "dev": {}}}, "known: staging, dev"),
        ({"virtual_hosts": {}}, "the file has no [virtual_hosts.NAME] section at all"),
        ({}, "the file has no [virtual_hosts.NAME] section at all"),
    ],
)
def test_an_unknown_name_is_a_problem_that_lists_the_known_ones(overlays: dict[str, Any], remedy: str) -> None:
    what = "there is no such section, but this virtual host is asked for"
    assert loaded({**FILE, "broker": {}, **overlays}, "stagin")[1] == [f"virtual_hosts.stagin: {what}; {remedy}"]
    assert [str(each) for each in mistakes(overlays, "stagin")] == [f"virtual_hosts.stagin: {what}; {remedy}"]


@pytest.mark.parametrize(
    ("overlay", "problem"),
    [
        ({"broker": {"usrname": "x"}}, "virtual_hosts.staging.broker.usrname: unknown key; did you mean 'username'?"),
        ({"broker": 5}, "virtual_hosts.staging.broker: expected a table, got 5"),
        ({"broker": {"url": "http://h"}},
            "virtual_hosts.staging.broker.url: expected amqp://USER:PASSWORD@HOST[:PORT][,HOST...]/VIRTUAL-HOST, or amqps://"),
        ({"broker": {"password": "${NOWHERE}"}},
            ("virtual_hosts.staging.broker.password: "
            "the environment has no NOWHERE; set it, or give a default: ${NOWHERE:default}")),
        ({"service": {"path": ["a", 5]}}, "virtual_hosts.staging.service.path[1]: expected a string, got a number"),
        ({"queues": {"orders": {"type": "x"}}},
            "virtual_hosts.staging.queues.orders.type: expected 'quorum' or 'classic', got 'x'"),
        ({"queues": {"q": {"bindings": [{}]}}},
            ("virtual_hosts.staging.queues.q.bindings[0].exchange: missing; "
            "The exchange: the name of an [exchanges] section, or of an exchange that exists.")),
        ({"consumers": {"new": {"handler": "a:b"}}},
            "virtual_hosts.staging.consumers.new.queue: missing; The queue: the name of a [queues] section."),
        ({"consumers": {"shop": {"queue": "order"}}},
            "virtual_hosts.staging.consumers.shop.queue: there is no [queues.order]; did you mean 'orders'?"),
        ({"consumers": {"shop": {"workers": 9, "prefetch": 3}}},
            "virtual_hosts.staging.consumers.shop.prefetch: expected from 9 (the workers) to 65535, got 3"),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_in_an_overlay_is_named_as_it_stands_in_the_file(overlay: dict[str, Any], problem: str) -> None:
    assert loaded(with_overlay(overlay, broker={}))[1] == [problem]


def test_a_mistake_of_the_file_is_named_as_it_stands_there() -> None:
    parsed = with_overlay({"broker": {"username": "u"}}, broker={"hearbeat": 5})
    assert loaded(parsed)[1] == ["broker.hearbeat: unknown key; did you mean 'heartbeat'?"]


def test_places_are_named_once_however_often_they_are_asked_for() -> None:
    parsed = with_overlay({"broker": {"username": "u"}})
    once = placed([Problem("broker.username", "x"), Problem("broker.url", "x"), Problem("mode", "x")], parsed, "staging")
    assert [each.path for each in once] == ["virtual_hosts.staging.broker.username", "broker.url", "mode"]
    assert placed(once, parsed, "staging") == once
    assert placed([Problem("broker.username", "x")], parsed, None) == [Problem("broker.username", "x")]
