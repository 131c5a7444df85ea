"""The broker in memory of the harness, where handlers do not come into play."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rpcd
from rpcd.core.outgoing import outgoing
from rpcd.core.reply import direct_reply_token_is_whole
from rpcd.core.topology import Bind, Declaration, DeclareExchange, DeclareQueue
from rpcd.testing import HarnessError
from rpcd.testing.broker import Broker
from rpcd.testing.clock import Clock
from rpcd.testing.matching import headers, topic


@pytest.mark.parametrize(
    ("pattern", "key", "fits"),
    [
        ("order.placed", "order.placed", True),
        ("order.placed", "order.placed.now", False),
        ("order.*", "order.placed", True),
        ("order.*", "order", False),
        ("order.*", "order.placed.now", False),
        ("*.placed", "order.placed", True),
        ("order.#", "order", True),
        ("order.#", "order.placed.now", True),
        ("#.now", "order.placed.now", True),
        ("#.placed.#", "placed", True),
        ("#", "", True),
        ("#", "a.b", True),
        ("*", "", False),
        ("", "", True),
        ("", "a", False),
        ("a..b", "a..b", True),
        ("a.*.b", "a..b", True),
    ],
)
def test_a_topics_pattern_fits_words(pattern: str, key: str, fits: bool) -> None:
    assert topic(pattern, key) is fits


@given(st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=6), st.integers(0, 6))
def test_a_hash_takes_the_place_of_any_words(words: list[str], place: int) -> None:
    key = ".".join("c" if word == "*" else word for word in words)
    assert topic(".".join(words), key)
    place = min(place, len(words))
    assert topic(".".join([*words[:place], "#", *words[place + 1 :]]), key)
    assert topic(".".join([*words[:place], "#", *words[place:]]), key)


@pytest.mark.parametrize(
    ("arguments", "found", "fits"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"x-match": "any", "a": 1, "b": 2}, {"a": 1}, True),
        ({"x-match": "any", "a": 1}, {"a": 2}, False),
        ({"a": None}, {"a": 5}, True),
        ({"a": None}, {}, False),
        ({"x-a": 1}, {}, True),
        ({"x-match": "all-with-x", "x-a": 1}, {}, False),
        ({"x-match": "any-with-x", "x-a": 1}, {"x-a": 1}, True),
        ({}, {}, True),
    ],
)
def test_headers_fit_a_binding(arguments: Mapping[str, Any], found: Mapping[str, Any], fits: bool) -> None:
    assert headers(arguments, found) is fits


def queue(name: str, **arguments: Any) -> DeclareQueue:
    said = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
    return DeclareQueue("", name, True, False, False, False, said)


def broker(*declarations: Declaration) -> tuple[Broker, Clock]:
    clock = Clock(1000.0)
    made = Broker(clock)
    made.carry_out(declarations)
    return made, clock


def names(made: Broker, name: str) -> list[Any]:
    return [each.properties.message_id for each in made.queues[name].messages]


def test_what_expires_goes_where_the_dead_go_and_tells_of_it() -> None:
    made, clock = broker(
        queue("wait", message_ttl=500, dead_letter_exchange="", dead_letter_routing_key="work"), queue("work")
    )
    made.publish(outgoing("", "wait", {}, message_id="1"))
    assert not clock.step(1000.4)
    assert (names(made, "wait"), clock.now) == (["1"], 1000.4)
    assert clock.step(1000.5)
    assert (names(made, "wait"), names(made, "work")) == ([], ["1"])
    found = made.queues["work"].messages[0].headers
    (death,) = found["x-death"]
    assert (death["queue"], death["reason"], death["count"], death["routing-keys"]) == ("wait", "expired", 1, ["wait"])
    assert (found["x-first-death-queue"], found["x-last-death-reason"]) == ("wait", "expired")


def test_what_died_twice_in_a_queue_is_counted_once() -> None:
    made, clock = broker(queue("wait", message_ttl=500, dead_letter_exchange="", dead_letter_routing_key="wait"))
    made.publish(outgoing("", "wait", {}, headers={"own": 1}))
    assert clock.step(2000)
    assert clock.step(2000)
    (found,) = made.queues["wait"].messages
    assert [death["count"] for death in found.headers["x-death"]] == [2]
    assert found.headers["own"] == 1


def test_an_expiration_counts_where_it_is_shorter() -> None:
    made, clock = broker(queue("wait", message_ttl=500))
    made.publish(outgoing("", "wait", {}, expiration=0.2))
    assert clock.step(1000.2)
    assert names(made, "wait") == []


def test_a_queue_that_is_bound_twice_gets_a_message_once() -> None:
    made, _clock = broker(
        DeclareExchange("", "shop", "topic", True, False, False, False, {}),
        queue("work"),
        Bind("", "work", "shop", "order.#", {}),
        Bind("", "work", "shop", "#.placed", {}),
    )
    made.publish(outgoing("shop", "order.placed", {}, message_id="1"))
    assert names(made, "work") == ["1"]


def test_an_exchange_of_a_plugin_is_told() -> None:
    made, _clock = broker(DeclareExchange("", "hash", "x-consistent-hash", True, False, False, False, {}))
    with pytest.raises(HarnessError, match="no exchanges of type 'x-consistent-hash'"):
        made.publish(outgoing("hash", "a", {}))


def test_the_exchanges_that_every_broker_has_are_there() -> None:
    made, _clock = broker(queue("work"), Bind("", "work", "amq.fanout", "", {}))
    made.publish(outgoing("amq.fanout", "a", {}, message_id="1"))
    made.publish(outgoing("amq.topic", "a", {}))
    with pytest.raises(rpcd.PublishRefused, match=r"no exchange 'amq\.nothing'"):
        made.publish(outgoing("amq.nothing", "a", {}))
    assert names(made, "work") == ["1"]


def test_direct_reply_to_gets_a_name_that_consumers_believe() -> None:
    made, _clock = broker(queue("work"))
    made.publish(outgoing("", "work", {}, reply_to="amq.rabbitmq.reply-to"))
    (found,) = made.queues["work"].messages
    assert found.properties.reply_to == made.direct.name
    assert direct_reply_token_is_whole(made.direct.name)
