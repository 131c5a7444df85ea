import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcd.core.copies import (
    MAX_HEADERS,
    Circumstances,
    archive_copy,
    archive_queue,
    printable,
    retriable,
    retry_copy,
    retry_queue,
)
from rpcd.core.message import Message
from rpcd.core.outgoing import Outgoing
from rpcd.core.tables import header, read_headers, split_headers, table
from rpcd.core.wire import Properties, read_properties, write_properties

PROPERTY = settings(max_examples=40, deadline=None)

WHO = Circumstances("shop-orders", "shop.orders:PlaceOrder", "host1")

FLOAT = b"\x01fd" + struct.pack(">d", 1.5)
SMALL = b"\x01bb\xff"
NOT_UTF8 = b"\x02\xff\xfeS\x00\x00\x00\x01\xff"
TWICE = header("twice", 1) + header("twice", 2)

FRAME = 131_072
"""RabbitMQ's frame_max: all properties of a copy must fit into one frame."""


def message(raw: bytes = b"", body: bytes = b'{"a":1}', **properties: Any) -> Message[Any]:
    """Make a message whose headers came over the wire."""
    headers, _ = read_headers(struct.pack(">I", len(raw)) + raw, 0)
    return Message(
        payload=body,
        properties=Properties(headers=headers, **properties),
        exchange="shop",
        routing_key="order.placed",
        queue="orders",
    )


def to_retry(came: Message[Any], count: int = 1, nacks: int = 0) -> Outgoing:
    return retry_copy(came, "orders", 1000, count, nacks, "token1")


def to_archive(came: Message[Any], reason: str = "given up", error: str | None = "ValueError") -> Outgoing:
    return archive_copy(came, "orders.archive", WHO, reason, error, 1_700_000_000.1234, "token1")


BOTH = pytest.mark.parametrize("copy", [to_retry, to_archive])


def headers_of(copy: Outgoing) -> dict[str, Any]:
    headers = read_properties(copy.properties).headers
    assert isinstance(headers, dict)
    assert headers.fault is None  # type: ignore[attr-defined]
    return dict(headers)


def raw_of(copy: Outgoing) -> bytes:
    headers = read_properties(copy.properties).headers
    return headers.raw  # type: ignore[union-attr, return-value]


def test_queues_are_named_after_theirs() -> None:
    assert (retry_queue("orders", 200), archive_queue("orders")) == ("orders.retry.200", "orders.archive")


def test_a_retry_goes_to_the_queue_of_its_step_and_must_arrive() -> None:
    copy = to_retry(message())
    assert (copy.exchange, copy.routing_key, copy.mandatory, copy.token) == ("", "orders.retry.1000", True, "token1")


def test_an_archived_message_goes_to_the_archive_and_must_arrive() -> None:
    copy = to_archive(message())
    assert (copy.exchange, copy.routing_key, copy.mandatory, copy.token) == ("", "orders.archive", True, "token1")


@BOTH
def test_a_copy_is_persistent_and_has_the_same_body(copy: Any) -> None:
    came = message(body=b"\xff\x00", delivery_mode=1)
    made = copy(came)
    assert made.body is came.payload
    assert read_properties(made.properties).delivery_mode == 2


@BOTH
def test_a_copy_keeps_what_identifies_the_request(copy: Any) -> None:
    kept = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "correlation_id": b"\xff\x00",
        "reply_to": "amq.gen-x",
        "message_id": "m",
        "timestamp": 2**63,
        "type": "order",
        "app_id": "shop",
    }
    made = vars(read_properties(copy(message(**kept)).properties))
    assert {name: made[name] for name in kept} == kept


@BOTH
@pytest.mark.parametrize(("name", "value"), [("expiration", "5000"), ("user_id", "guest"), ("priority", 9)])
def test_a_copy_never_keeps_what_the_broker_would_act_upon(copy: Any, name: str, value: Any) -> None:
    assert getattr(read_properties(copy(message(**{name: value})).properties), name) is None


DROPPED = [
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    "x-delivery-count",
    "CC",
    "BCC",
    "x-retry-count",
    "x-deadline",
    "x-rpcd-copy",
    "x-rpcd-nacks",
    "x-rpcd-reason",
    "x-rpcd-anything",
]


@BOTH
@pytest.mark.parametrize("name", DROPPED)
def test_a_copy_never_keeps_a_header_that_would_steer_the_broker_or_us(copy: Any, name: str) -> None:
    for value in ("forged", 7, ["q"], {"a": 1}):
        made = copy(message(FLOAT + header(name, value) + SMALL))
        assert header(name, value) not in raw_of(made)
        assert raw_of(made).startswith(FLOAT + SMALL)


@BOTH
@pytest.mark.parametrize("name", ["cc", "x-deaths", "my-x-death", "x-first", "X-Death", "x-retry-counts", "x-custom"])
def test_a_header_that_only_looks_like_one_of_those_is_kept(copy: Any, name: str) -> None:
    assert headers_of(copy(message(header(name, 7))))[name] == 7


@BOTH
def test_the_applications_headers_are_kept_as_the_bytes_they_came_as(copy: Any) -> None:
    raw = FLOAT + SMALL + NOT_UTF8 + TWICE
    assert raw_of(copy(message(raw))).startswith(raw)


@BOTH
def test_a_copy_without_headers_has_only_our_own(copy: Any) -> None:
    came = Message[Any](payload=b"1", queue="orders")
    assert all(name.startswith("x-") for name in headers_of(copy(came)))


def test_a_retry_says_how_many_retries_lie_behind_it_and_where_it_came_from_first() -> None:
    assert headers_of(to_retry(message(), count=3)) == {
        "x-retry-count": 3,
        "x-rpcd-copy": "token1",
        "x-rpcd-exchange": "shop",
        "x-rpcd-routing-key": "order.placed",
    }


def test_a_retry_says_how_often_it_was_put_off_if_ever() -> None:
    assert headers_of(to_retry(message(), nacks=2))["x-rpcd-nacks"] == 2


def test_a_copy_of_a_copy_counts_anew_and_says_nothing_twice() -> None:
    first = to_retry(message(FLOAT), count=1)
    came = message(raw_of(first))
    second = to_retry(came, count=2)
    names = [name for name, _ in split_headers(raw_of(second))]
    assert len(names) == len(set(names))
    assert headers_of(second) == {**headers_of(first), "x-retry-count": 2}


@BOTH
def test_the_senders_deadline_travels_in_place_of_its_expiration(copy: Any) -> None:
    came = message(expiration="5000")
    came.deadline = 1_700_000_005.5
    assert headers_of(copy(came))["x-deadline"] == 1_700_000_005.5


def test_an_archived_message_tells_its_story() -> None:
    came = message()
    came.attempt = 4
    assert headers_of(to_archive(came)) == {
        "x-retry-count": 3,
        "x-rpcd-copy": "token1",
        "x-rpcd-exchange": "shop",
        "x-rpcd-routing-key": "order.placed",
        "x-rpcd-reason": "given up",
        "x-rpcd-exception": "ValueError",
        "x-rpcd-attempt": 4,
        "x-rpcd-handler": "shop.orders:PlaceOrder",
        "x-rpcd-consumer": "shop-orders",
        "x-rpcd-queue": "orders",
        "x-rpcd-host": "host1",
        "x-rpcd-time": "2023-11-14T22:13:20.123+00:00",
    }


def test_an_archived_message_without_an_exception_names_none() -> None:
    assert "x-rpcd-exception" not in headers_of(to_archive(message(), error=None))


@pytest.mark.parametrize("reason", ["x" * 100_000, "\ud800", "\x00\n", "ä" * 5000])
def test_any_reason_can_be_archived(reason: str) -> None:
    assert len(headers_of(to_archive(message(), reason=reason))["x-rpcd-reason"]) <= 1000


def test_headers_that_cannot_be_read_are_archived_as_one_byte_array() -> None:
    raw = b"\x01kT" + b"\xff" * 8
    came = message(raw)
    found = headers_of(to_archive(came))
    assert found["x-rpcd-headers"] == raw
    assert "x-rpcd-reason" in found


@pytest.mark.parametrize("raw", [b"\x01kT" + b"\xff" * 8, b"\x01kZ", header("k", "x" * MAX_HEADERS)])
def test_what_cannot_be_copied_unchanged_is_not_retried(raw: bytes) -> None:
    assert retriable(message(raw)) is False


def test_everything_else_is_retried() -> None:
    assert (retriable(message()), retriable(message(FLOAT)), retriable(Message[Any]())) == (True, True, True)
    assert retriable(message(header("k", "x" * (MAX_HEADERS - 7)))) is True


def test_only_what_a_copy_keeps_is_measured() -> None:
    kept = header("k", "x" * (MAX_HEADERS - 7))
    came = message(header("x-death", "y" * 5000) + kept + header("x-rpcd-reason", "z" * 1000))
    assert retriable(came) is True
    assert raw_of(to_retry(came)).startswith(kept)
    assert raw_of(to_archive(came)).startswith(kept)


def test_headers_that_are_too_big_are_left_out_of_the_archive_and_it_says_so() -> None:
    raw = header("k", "x" * MAX_HEADERS)
    found = headers_of(to_archive(message(raw)))
    assert found["x-rpcd-headers-dropped"] == len(raw)
    assert "k" not in found


@BOTH
def test_the_biggest_copy_fits_into_one_frame(copy: Any) -> None:
    names = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "type", "app_id")
    came = message(header("k", "x" * (MAX_HEADERS - 7)), **dict.fromkeys(names, "p" * 255))
    came.exchange, came.routing_key, came.deadline = "e" * 255, "k" * 255, 1.5
    assert len(copy(came).properties) < FRAME - 8 - 12


def test_headers_cut_short_within_a_frame_can_still_be_archived() -> None:
    """The table says that it ends inside a value; the value must not be taken from the properties that follow."""
    raw = b"\x01kI\x00\x00"
    encoded = write_properties(Properties(headers=raw, correlation_id="abc", message_id="m"))
    came = Message[Any](payload=b"1", properties=read_properties(encoded), queue="orders")
    assert headers_of(to_archive(came))["x-rpcd-headers"] == raw


NAMES = st.sampled_from([*DROPPED, "x-custom", "a", "b", ""]) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@PROPERTY
@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_a_copy_keeps_every_other_header_in_order_and_to_the_byte(entries: list[tuple[str, Any]]) -> None:
    raw = b"".join(header(name, value) for name, value in entries)
    steering = (*DROPPED,)
    families = ("x-first-death-", "x-last-death-", "x-rpcd-")
    kept = b"".join(header(name, value) for name, value in entries if name not in steering and not name.startswith(families))
    copy = raw_of(to_retry(message(raw)))
    assert copy.startswith(kept)
    assert copy[len(kept) :] == table(
        {"x-retry-count": 1, "x-rpcd-copy": "token1", "x-rpcd-exchange": "shop", "x-rpcd-routing-key": "order.placed"}
    )


@PROPERTY
@given(st.binary(max_size=60))
def test_whatever_came_in_the_headers_can_be_archived(raw: bytes) -> None:
    came = message(raw)
    assert "x-rpcd-reason" in headers_of(to_archive(came))


@PROPERTY
@given(st.text())
def test_any_text_becomes_printable_and_text_without_surrogates_stays(text: str) -> None:
    made = printable(text)
    made.encode()
    assert len(made) == len(text)
    assert all(new == old or (new == "?" and "\ud800" <= old <= "\udfff") for new, old in zip(made, text, strict=True))
