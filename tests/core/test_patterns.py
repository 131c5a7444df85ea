"""Patterns as decorators: what they are called, and what they become; and the output of all three."""

from typing import Any

import attrs
import pytest

import rpcd
from rpcd.core.patterns import full_name
from rpcd.core.registered import sections
from rpcd.core.registration import Registered, marks


def tables(decorator: Any) -> dict[str, Any]:
    """Return the sections that a decorator stands for."""

    def handle(message: object) -> None:
        """Do nothing."""

    (registration,) = marks(decorator(handle))
    each = Registered(registration, "farm.cows:handle")
    return sections({}, [attrs.evolve(each, section=each.queue)])


def test_names_are_those_that_everybody_uses() -> None:
    assert full_name("push_pull", "cows") == "push_pull.cows"
    assert full_name("push_pull", "cows", "farm") == "farm.push_pull.cows"


def test_a_subscription_is_an_exchange_and_a_queue_of_ones_own() -> None:
    name = "publish_subscribe.cows"
    assert tables(rpcd.subscribe("cows", workers=2)) == {
        "exchanges": {name: {"type": "fanout", "durable": False}},
        "queues": {name: {"name": "", "bindings": [{"exchange": name, "routing_keys": [""]}]}},
        "consumers": {name: {"queue": name, "handler": "farm.cows:handle", "workers": 2}},
    }


def test_a_second_subscription_needs_a_name_of_its_own() -> None:
    found = tables(rpcd.subscribe("cows", consumer="vet"))
    assert list(found["exchanges"]) == ["publish_subscribe.cows"]
    assert list(found["queues"]) == list(found["consumers"]) == ["vet"]


def test_pulling_is_a_durable_queue() -> None:
    name = "farm.push_pull.cows"
    assert tables(rpcd.pull("cows", prefix="farm")) == {
        "queues": {name: {}},
        "consumers": {name: {"queue": name, "handler": "farm.cows:handle"}},
    }


@pytest.mark.parametrize(("said", "prefetch"), [({}, 1), ({"workers": 4}, 4), ({"workers": 4, "prefetch": 9}, 9)])
def test_one_who_responds_is_sent_no_more_than_it_works_on(said: dict[str, int], prefetch: int) -> None:
    found = tables(rpcd.respond("cows", consumer="count", **said))
    assert found["queues"] == {"request_response.cows": {}}
    assert found["consumers"]["count"]["prefetch"] == prefetch


@pytest.mark.parametrize("decorator", [rpcd.subscribe, rpcd.pull, rpcd.respond])
@pytest.mark.parametrize(
    ("arguments", "said", "error", "text"),
    [
        (("",), {}, ValueError, "the name is empty"),
        ((5,), {}, TypeError, "the name is a string, not of type int"),
        (("cows",), {"prefix": None}, TypeError, "the prefix is a string"),
        (("cow\ud800",), {}, ValueError, "half a character"),
        (("cows",), {"wrokers": 2}, TypeError, "did you mean 'workers'"),
        (("cows",), {"queue": "x"}, TypeError, "said by the decorator itself"),
    ],
)
def test_a_mistake_is_told_where_it_is_made(
    decorator: Any, arguments: tuple[Any, ...], said: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^@{decorator.__name__}: .*{text}"):
        decorator(*arguments, **said)


def test_what_is_no_handler_can_not_be_decorated() -> None:
    with pytest.raises(TypeError, match=r"^@pull: a handler is a function or a class"):
        rpcd.pull("cows")(5)


class Sender:
    """Notes what it is told to send."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def publish(self, exchange: str, routing_key: str, body: Any = None, **options: Any) -> str:
        self.sent.append(("publish", exchange, routing_key, body, options))
        return "published"

    def call(self, exchange: str, routing_key: str, body: Any = None, **options: Any) -> str:
        self.sent.append(("call", exchange, routing_key, body, options))
        return "answer"


def test_one_output_sends_in_all_three_patterns() -> None:
    sender = Sender()
    output = rpcd.Output(sender, "cows", prefix="farm")
    assert (output.publish(1), output.push(2), output.request(3, timeout=5)) == ("published", "published", "answer")
    assert sender.sent == [
        ("publish", "farm.publish_subscribe.cows", "", 1, {"persistent": False}),
        ("publish", "", "farm.push_pull.cows", 2, {"mandatory": True}),
        ("call", "", "farm.request_response.cows", 3, {"timeout": 5}),
    ]
    output.push(4, mandatory=False, headers={"a": 1})
    assert sender.sent[-1][-1] == {"mandatory": False, "headers": {"a": 1}}


def test_an_output_needs_a_name() -> None:
    with pytest.raises(ValueError, match="the name is empty"):
        rpcd.Output(Sender(), "")


def test_an_output_of_a_message_holds_back_until_the_handler_succeeds() -> None:
    message = rpcd.Message()
    rpcd.Output(message, "cows").push({"name": "bella"})
    (sent,) = message.published
    assert (sent.exchange, sent.routing_key, sent.mandatory, sent.body) == ("", "push_pull.cows", True, b'{"name":"bella"}')
