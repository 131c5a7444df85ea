import asyncio
import itertools
import math
from typing import Any

import pytest
from labels import label

import rpcd
from rpcd.core.errors import DeadlinePassed
from rpcd.core.message import Message, Source, delivered
from rpcd.core.outgoing import Outgoing, outgoing
from rpcd.core.tables import Headers, table
from rpcd.core.wire import Properties, read_properties


def properties_of(sent: Outgoing) -> Properties:
    return read_properties(sent.properties)


def as_dict(properties: Properties) -> dict[str, Any]:
    return {**vars(properties)}


# Made by hand -------------------------------------------------------------------------------------


def place_order(message: rpcd.Message[dict[str, Any]]) -> dict[str, Any]:
    """Stand for a user's handler."""
    if message.body["customer"] == "blocked":
        raise rpcd.RequestFailed("customer is blocked")
    message.publish("shop", "order.placed", {"number": 7}, headers={"h": 1.5})
    return {"number": 7}


def test_a_handler_can_be_called_with_a_message_made_by_hand() -> None:
    message = rpcd.Message({"customer": "ann"})
    assert place_order(message) == {"number": 7}
    (sent,) = message.published
    assert (sent.exchange, sent.routing_key, sent.body, sent.mandatory) == ("shop", "order.placed", b'{"number":7}', False)


def test_what_a_handler_raises_is_seen_by_its_test() -> None:
    with pytest.raises(rpcd.RequestFailed, match="customer is blocked"):
        place_order(rpcd.Message({"customer": "blocked"}))


def test_a_message_made_by_hand_has_a_value_for_everything() -> None:
    message = Message[Any]()
    assert (message.body, message.payload, message.headers, message.published) == (None, b"", {}, [])
    assert (message.exchange, message.routing_key, message.queue, message.consumer) == ("", "", "", "")
    assert (message.attempt, message.nacks, message.redelivered, message.received) == (1, 0, False, 0.0)
    assert (message.reply_to, message.correlation_id, message.message_id, message.content_type) == (None,) * 4
    assert message.deadline is None


def test_a_message_made_by_hand_is_what_its_test_says() -> None:
    message = Message(
        1,
        payload=b"1",
        properties=Properties(reply_to="r", correlation_id=b"\xff", message_id="m", content_type="text/plain"),
        headers={"h": [1.5, b"x"]},
        exchange="shop",
        routing_key="order.placed",
        queue="orders",
        consumer="shop-orders",
        redelivered=True,
        attempt=3,
        received=5.0,
    )
    assert (message.body, message.payload, message.headers) == (1, b"1", {"h": [1.5, b"x"]})
    assert (message.reply_to, message.correlation_id, message.message_id) == ("r", b"\xff", "m")
    assert (message.content_type, message.queue, message.consumer) == ("text/plain", "orders", "shop-orders")
    assert (message.redelivered, message.attempt, message.received) == (True, 3, 5.0)


def test_headers_made_by_hand_have_the_bytes_that_a_client_would_have_sent() -> None:
    found = Message[Any](headers={"a": 1, "b": "x"}).properties.headers
    assert isinstance(found, Headers)
    assert (found.raw, found.fault) == (table({"a": 1, "b": "x"}), None)


def test_headers_that_nobody_could_send_are_refused_in_the_test() -> None:
    with pytest.raises(TypeError, match="AMQP has no type for set"):
        Message[Any](headers={"a": {1}})


def test_two_messages_share_nothing() -> None:
    first, second = Message[Any](headers={"a": 1}), Message[Any]()
    first.publish("", "q")
    assert (second.published, second.headers) == ([], {})


def test_headers_that_could_not_be_read_are_empty_for_the_handler() -> None:
    message = Message[Any](properties=Properties(headers=Headers(b"\x01kZ", "field type 'Z' is unknown")))
    assert message.headers == {}


def test_the_repr_tells_where_from_and_never_what() -> None:
    message = Message[Any]({"card": "4111"}, payload=b"4111", headers={"card": "4111"}, queue="q", routing_key="k")
    assert repr(message) == "<Message None from queue 'q', key 'k', attempt 1>"


def test_a_delivered_message_has_the_attributes_of_one_made_by_hand() -> None:
    properties = Properties(message_id="m")
    came = delivered(Source("c", "q"), b"1", properties, "e", "k", True, 5.0)
    made = Message[Any](
        payload=b"1",
        properties=properties,
        exchange="e",
        routing_key="k",
        queue="q",
        consumer="c",
        redelivered=True,
        received=5.0,
    )
    assert {name: getattr(came, name) for name in Message.__slots__ if name != "__orig_class__"} == {
        name: getattr(made, name) for name in Message.__slots__ if name != "__orig_class__"
    }


# Publishing ---------------------------------------------------------------------------------------


class Outlet:
    """Keeps what is published at once."""

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []

    def publish_now(self, outgoing: Outgoing) -> None:
        self.sent.append(outgoing)


def test_publish_holds_back_and_publish_now_does_not() -> None:
    outlet = Outlet()
    message = delivered(Source("c", "q", outlet), b"", Properties(), "", "q", False, 0.0)
    message.publish("e", "later", 1)
    message.publish_now("e", "now", 2, mandatory=True)
    assert [sent.routing_key for sent in message.published] == ["later"]
    assert [(sent.routing_key, sent.body, sent.mandatory) for sent in outlet.sent] == [("now", b"2", True)]


def test_without_a_broker_publish_now_is_found_with_the_rest() -> None:
    message = Message[Any]()
    message.publish_now("e", "now", 2)
    assert [sent.routing_key for sent in message.published] == ["now"]


def test_a_publication_gets_an_id_where_ids_are_made() -> None:
    numbers = itertools.count(1)
    message = delivered(Source("c", "q", None, lambda: f"id{next(numbers)}"), b"", Properties(), "", "q", False, 0.0)
    message.publish("e", "k")
    message.publish("e", "k", message_id="own")
    message.publish_now("e", "k")
    assert [(properties_of(sent).message_id, sent.token) for sent in message.published][:2] == [
        ("id1", "id1"),
        ("own", "own"),
    ]
    assert len({sent.token for sent in message.published}) == 3


def test_a_plain_publication_is_persistent_json() -> None:
    sent = outgoing("e", "k", {"a": 1})
    assert as_dict(properties_of(sent)) == {"content_type": "application/json", "delivery_mode": 2}


def test_every_option_goes_into_its_property() -> None:
    sent = outgoing(
        "e",
        "k",
        b"x",
        headers={"h": 1},
        mandatory=True,
        content_type="image/png",
        correlation_id=b"\xff",
        message_id="m",
        reply_to="r",
        type="t",
        expiration=1.5,
        priority=9,
        persistent=False,
    )
    found = as_dict(properties_of(sent))
    assert found.pop("headers") == {"h": 1}
    assert found == {
        "content_type": "image/png",
        "correlation_id": b"\xff",
        "message_id": "m",
        "reply_to": "r",
        "type": "t",
        "expiration": "1500",
        "priority": 9,
        "delivery_mode": 1,
    }
    assert (sent.mandatory, sent.body, sent.token) == (True, b"x", "m")


@pytest.mark.parametrize(
    ("seconds", "written"), [(None, None), (0, "0"), (-1, "0"), (0.0004, "0"), (1.0006, "1001"), (86400, "86400000")]
)
def test_an_expiration_is_in_seconds_for_us_and_in_milliseconds_for_the_broker(seconds: Any, written: str | None) -> None:
    assert properties_of(outgoing("", "q", expiration=seconds)).expiration == written


@pytest.mark.parametrize(
    "options",
    [
        {"body": object()},
        {"body": {"a": object()}},
        {"body": "\ud800"},
        {"exchange": "x" * 256},
        {"exchange": None},
        {"exchange": "\ud800"},
        {"routing_key": "x" * 256},
        {"routing_key": 5},
        {"headers": {"h": {1}}},
        {"headers": {"h": 2**63}},
        {"headers": {"h" * 256: 1}},
        {"headers": {1: 1}},
        {"headers": {"h": "x" * 200_000}},
        {"content_type": "x" * 256},
        {"content_type": 5},
        {"correlation_id": "x" * 256},
        {"correlation_id": 5},
        {"message_id": 5},
        {"reply_to": "x" * 256},
        {"type": 5},
        {"priority": 256},
        {"priority": -1},
        {"priority": "high"},
        {"expiration": "soon"},
        {"expiration": math.nan},
        {"expiration": math.inf},
        {"nonsense": 1},
    ],
    ids=lambda options: label(options)[:40],
)
def test_what_cannot_be_sent_raises_in_the_handler_and_nothing_is_held_back(options: dict[str, Any]) -> None:
    """Headers count: over one frame (131,072 bytes) the broker would cut the connection that all consumers publish on."""
    message = Message[Any]()
    with pytest.raises((TypeError, ValueError)):
        message.publish(**{"exchange": "e", "routing_key": "k", "body": 1, **options})
    assert message.published == []


def test_headers_that_fit_into_one_frame_are_sent() -> None:
    sent = outgoing("e", "k", headers={"h": "x" * 100_000})
    assert len(sent.properties) > 100_000


def test_the_repr_of_a_publication_shows_no_body() -> None:
    assert repr(outgoing("e", "k", "4111")) == "<Outgoing to exchange 'e' with key 'k', 6 bytes>"


def test_a_reply_keeps_what_the_handler_gave() -> None:
    reply = rpcd.Reply({"a": 1}, message="done")
    assert (reply.data, reply.message, rpcd.Reply().data, rpcd.Reply().message) == ({"a": 1}, "done", None, None)


def test_what_came_can_not_be_changed() -> None:
    message = Message[Any](payload=b"1")
    for name in ("payload", "properties"):
        with pytest.raises(AttributeError):
            setattr(message, name, None)


def test_an_async_handler_is_tested_with_a_message_made_by_hand() -> None:
    async def handle(message: rpcd.Message[Any]) -> Any:
        message.publish("e", "later", 1)
        await message.publish_now("e", "now", 2)
        assert await asyncio.to_thread(message.publish_now, "e", "in a thread", 3) is None
        return message.body["a"]

    message = rpcd.Message({"a": 7})
    assert asyncio.run(handle(message)) == 7
    assert [each.routing_key for each in message.published] == ["later", "now", "in a thread"]


def test_to_a_plain_handler_publish_now_returns_nothing() -> None:
    assert rpcd.Message({}).publish_now("e", "k") is None


# The deadline -------------------------------------------------------------------------------------


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def timed(deadline: float | None) -> tuple[Message[Any], Clock, Outlet]:
    clock, outlet = Clock(), Outlet()
    message = delivered(Source("c", "q", outlet, None, clock), b"", Properties(), "", "q", False, 100.0)
    message.deadline = deadline
    return message, clock, outlet


def test_what_is_left_of_a_deadline_runs_out_and_stays_at_nothing() -> None:
    message, clock, _outlet = timed(105.0)
    found = []
    for clock.now in (100.0, 104.5, 105.0, 200.0):
        found.append((message.remaining, message.cancelled))
    assert found == [(5.0, False), (0.5, False), (0.0, True), (0.0, True)]


def test_without_a_deadline_there_is_no_end_and_nothing_is_cancelled() -> None:
    message, clock, _outlet = timed(None)
    clock.now = 1e12
    assert (message.remaining, message.cancelled) == (None, False)


@pytest.mark.parametrize("deadline", [None, 105.0])
def test_a_message_can_be_cancelled_ahead_of_its_deadline_and_stays_so(deadline: float | None) -> None:
    message, clock, _outlet = timed(deadline)
    message.cancel()
    assert message.cancelled
    clock.now = 0.0
    assert message.cancelled


def test_for_a_message_made_by_hand_it_is_always_the_moment_of_its_arrival() -> None:
    made = Message[Any](deadline=5.0)
    assert (made.deadline, made.remaining, made.cancelled) == (5.0, 5.0, False)
    late = Message[Any](deadline=5.0, received=6.0)
    assert (late.remaining, late.cancelled) == (0.0, True)


def test_nothing_is_published_at_once_for_a_sender_that_waits_no_longer() -> None:
    message, clock, outlet = timed(105.0)
    message.publish_now("shop", "in.time")
    clock.now = 105.0
    with pytest.raises(DeadlinePassed, match="its sender waits no longer"):
        message.publish_now("shop", "too.late")
    assert [each.routing_key for each in outlet.sent] == ["in.time"]
    message.publish("shop", "held.back")
    assert [each.routing_key for each in message.published] == ["held.back"]
