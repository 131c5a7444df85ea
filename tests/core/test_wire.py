import struct
from typing import Any

import pika.frame
import pika.spec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcd.core.tables import Headers, table
from rpcd.core.wire import Properties, ack_frame, nack_frame, publish_frames, read_properties, write_properties

PROPERTY = settings(max_examples=40, deadline=None)

STRINGS = (
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "type",
    "user_id",
    "app_id",
)
NAMES = (*STRINGS, "headers", "delivery_mode", "priority", "timestamp")

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(STRINGS, TEXT),
        "delivery_mode": st.integers(0, 255),
        "priority": st.integers(0, 255),
        "timestamp": st.integers(0, 2**64 - 1),
        "headers": st.dictionaries(TEXT, st.integers(-(2**63), 2**63 - 1) | TEXT | st.booleans(), max_size=3),
    },
)


def values_of(properties: Any) -> dict[str, Any]:
    """Return what is there, by name; of our own properties or of pika's."""
    return {name: value for name in NAMES if (value := getattr(properties, name)) is not None}


# Properties ---------------------------------------------------------------------------------------


def test_without_properties_nothing_is_there() -> None:
    assert values_of(read_properties(b"\x00\x00")) == {}


def test_properties_are_read_behind_whatever_comes_before_them() -> None:
    assert values_of(read_properties(b"xyz\x80\x00\x04text", 3)) == {"content_type": "text"}


@pytest.mark.parametrize("name", STRINGS)
def test_every_string_may_have_255_bytes_and_not_one_more(name: str) -> None:
    longest = Properties(**{name: "x" * 255})
    assert values_of(read_properties(write_properties(longest))) == {name: "x" * 255}
    with pytest.raises(ValueError, match=f"{name} has 256 bytes; AMQP allows 255"):
        write_properties(Properties(**{name: "x" * 256}))


@pytest.mark.parametrize("name", STRINGS)
def test_a_string_that_is_no_utf8_comes_as_bytes_and_goes_as_the_same_bytes(name: str) -> None:
    encoded = write_properties(Properties(**{name: b"\xff\x00\n"}))
    assert values_of(read_properties(encoded)) == {name: b"\xff\x00\n"}


def test_an_empty_string_is_there_and_is_not_nothing() -> None:
    assert values_of(read_properties(write_properties(Properties(reply_to="")))) == {"reply_to": ""}


@pytest.mark.parametrize("value", [0, 2, 77, 255])
def test_any_delivery_mode_is_a_number(value: int) -> None:
    assert read_properties(write_properties(Properties(delivery_mode=value))).delivery_mode == value


@pytest.mark.parametrize("value", [0, 1_700_000_000, 2**63, 2**64 - 1])
def test_any_timestamp_is_a_number(value: int) -> None:
    assert read_properties(write_properties(Properties(timestamp=value))).timestamp == value


@pytest.mark.parametrize(("name", "value"), [("priority", 256), ("priority", -1), ("delivery_mode", 256)])
def test_a_number_over_one_byte_is_a_value_error(name: str, value: int) -> None:
    with pytest.raises(ValueError, match="range"):
        write_properties(Properties(**{name: value}))


def test_headers_that_cannot_be_read_do_not_spoil_the_properties_behind_them() -> None:
    broken = b"\x01kZ"
    encoded = write_properties(Properties(content_type="text", headers=broken, reply_to="r", app_id="a"))
    found = read_properties(encoded)
    assert (found.content_type, found.reply_to, found.app_id) == ("text", "r", "a")
    assert isinstance(found.headers, Headers)
    assert (found.headers.fault, found.headers.raw) == ("field type 'Z' is unknown", broken)


def test_headers_go_on_as_the_bytes_they_came_as() -> None:
    raw = b"\x01kf\x3f\xc0\x00\x00\x01kB\xff"
    assert write_properties(read_properties(write_properties(Properties(headers=raw)))).endswith(raw)


@PROPERTY
@given(VALUES)
def test_what_is_written_is_read_as_it_was(values: dict[str, Any]) -> None:
    encoded = write_properties(
        Properties(**values | {"headers": table(values["headers"])} if "headers" in values else values)
    )
    assert values_of(read_properties(b"!" + encoded, 1)) == values


@PROPERTY
@given(VALUES)
def test_what_is_written_is_read_by_pika_as_it_was(values: dict[str, Any]) -> None:
    ours = values | {"headers": table(values["headers"])} if "headers" in values else values
    theirs = pika.spec.BasicProperties()
    theirs.decode(write_properties(Properties(**ours)))
    assert values_of(theirs) == values


@PROPERTY
@given(VALUES)
def test_what_pika_writes_is_read_as_it_was(values: dict[str, Any]) -> None:
    encoded = b"".join(pika.spec.BasicProperties(**values).encode())
    assert values_of(read_properties(encoded)) == values


@PROPERTY
@given(st.binary(max_size=80))
def test_of_arbitrary_bytes_only_a_cut_frame_raises(encoded: bytes) -> None:
    try:
        found = read_properties(encoded)
    except (struct.error, IndexError):
        return
    values_of(found)


# Frames -------------------------------------------------------------------------------------------


def frames(encoded: bytes) -> list[Any]:
    """Read frames as pika does; every byte must belong to one."""
    found = []
    while encoded:
        size, frame = pika.frame.decode_frame(encoded)
        assert frame is not None
        found.append(frame)
        encoded = encoded[size:]
    return found


@pytest.mark.parametrize("channel", [1, 65535])
@pytest.mark.parametrize("tag", [1, 2**64 - 1])
@pytest.mark.parametrize("multiple", [True, False])
def test_an_ack_is_what_pika_reads(channel: int, tag: int, multiple: bool) -> None:
    (frame,) = frames(ack_frame(channel, tag, multiple))
    assert isinstance(frame.method, pika.spec.Basic.Ack)
    assert (frame.channel_number, frame.method.delivery_tag, frame.method.multiple) == (channel, tag, multiple)


@pytest.mark.parametrize("requeue", [True, False])
def test_a_nack_is_of_one_tag_and_says_whether_to_requeue(requeue: bool) -> None:
    (frame,) = frames(nack_frame(3, 7, requeue))
    method = frame.method
    assert isinstance(method, pika.spec.Basic.Nack)
    assert (frame.channel_number, method.delivery_tag, method.multiple, method.requeue) == (3, 7, False, requeue)


@pytest.mark.parametrize("mandatory", [True, False])
def test_a_publication_is_what_pika_reads(mandatory: bool) -> None:
    properties = write_properties(Properties(content_type="text/plain", correlation_id="c"))
    method, content, body = frames(publish_frames(3, "shop", "order.placed", mandatory, properties, b"hello", 131072))
    assert isinstance(method.method, pika.spec.Basic.Publish)
    assert (method.method.exchange, method.method.routing_key) == ("shop", "order.placed")
    assert (method.method.mandatory, method.method.immediate) == (mandatory, False)
    assert (content.body_size, values_of(content.properties)) == (5, {"content_type": "text/plain", "correlation_id": "c"})
    assert body.fragment == b"hello"
    assert {each.channel_number for each in (method, content, body)} == {3}


def test_an_empty_body_has_no_body_frame() -> None:
    method, content = frames(publish_frames(1, "", "q", False, b"\x00\x00", b"", 131072))
    assert (method.method.routing_key, content.body_size) == ("q", 0)


def test_a_routing_key_that_is_no_utf8_goes_as_it_came() -> None:
    assert b"\x02\xff\xfe" in publish_frames(1, "", b"\xff\xfe", False, b"\x00\x00", b"", 131072)


@pytest.mark.parametrize(("exchange", "key", "what"), [("x" * 256, "", "the exchange"), ("", "x" * 256, "the routing key")])
def test_names_over_255_bytes_are_refused(exchange: str, key: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"{what} has 256 bytes"):
        publish_frames(1, exchange, key, False, b"\x00\x00", b"", 131072)


@pytest.mark.parametrize("size", [1, 91, 92, 93, 184, 185, 1000])
def test_no_frame_of_a_body_is_longer_than_the_limit_and_none_is_empty(size: int) -> None:
    body = bytes(index % 256 for index in range(size))
    _, content, *parts = frames(publish_frames(1, "", "q", False, b"\x00\x00", body, 100))
    assert (content.body_size, b"".join(part.fragment for part in parts)) == (size, body)
    assert all(0 < len(part.fragment) <= 92 for part in parts)
    assert len(parts) == -(-size // 92)
