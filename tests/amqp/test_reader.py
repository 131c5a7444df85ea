"""Frames, however they are cut and mixed: deliveries reach their sinks, everything else reaches pika untouched."""

import struct
from typing import Any

import pika
import pika.frame
import pytest
from amqp_wire import CONTENT, content_frames, encoded, raw_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import spec

from rpcd.amqp.reader import Reader
from rpcd.core.tables import Headers
from rpcd.core.wire import Properties

STEADY = settings(max_examples=50, deadline=None, derandomize=True, database=None)

CONSUMING = (1, 2)
"""The channels that consume; 0 carries heartbeats, 3 is pika's."""

NAMES = list(Properties.__annotations__)


class Tap:
    """A reader, and what came out of it in order."""

    def __init__(self, consuming: tuple[int, ...] = CONSUMING) -> None:
        self.deliveries: list[tuple[Any, ...]] = []
        self.to_pika: list[bytes] = []
        self.reader = Reader(self.to_pika.append)
        for number in consuming:
            self.reader.deliver_to(number, self._sink(number))

    def _sink(self, number: int) -> Any:
        def sink(tag: int, again: bool, exchange: Any, key: Any, properties: Properties, body: bytes) -> None:
            self.deliveries.append((number, tag, again, exchange, key, told(properties), body))

        return sink


def told(properties: Any) -> dict[str, Any]:
    """Properties as a dictionary, rpcd's and pika's alike."""
    values = {name: getattr(properties, name) for name in NAMES}
    return {name: dict(value) if isinstance(value, dict) else value for name, value in values.items() if value is not None}


def delivery(
    number: int = 1, tag: int = 1, body: bytes = b"", properties: bytes = b"\x00\x00", key: Any = "k", frame_max: int = 4096
) -> list[bytes]:
    return list(content_frames(number, spec.Basic.Deliver("tag", tag, False, "x", key), properties, body, frame_max))


# Any stream, cut anywhere -------------------------------------------------------------------------

TEXT = st.text(max_size=20)
VALUES = st.recursive(
    st.one_of(TEXT, st.integers(-(2**62), 2**62), st.booleans(), st.none(), st.binary(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)
ORDINARY = st.builds(
    pika.BasicProperties,
    content_type=st.none() | TEXT,
    content_encoding=st.none() | TEXT,
    headers=st.none() | st.dictionaries(TEXT, VALUES, max_size=4),
    delivery_mode=st.none() | st.integers(1, 2),
    priority=st.none() | st.integers(0, 9),
    correlation_id=st.none() | TEXT,
    reply_to=st.none() | TEXT,
    expiration=st.none() | TEXT,
    message_id=st.none() | TEXT,
    timestamp=st.none() | st.integers(0, 2**63),
    type=st.none() | TEXT,
    user_id=st.none() | TEXT,
    app_id=st.none() | TEXT,
)
METHODS = st.sampled_from(
    [spec.Basic.QosOk(), spec.Basic.CancelOk("tag"), spec.Channel.CloseOk(), spec.Basic.Ack(7, True), spec.Basic.Nack(8)]
)


@st.composite
def items(draw: st.DrawFn, number: int) -> tuple[list[bytes], tuple[Any, ...] | None]:
    """The frames of one thing that a broker sends, and the delivery that they are, if they are one for a sink."""
    kind = draw(st.sampled_from(["delivery", "delivery", "return", "method"]))
    if number == 0:
        return [pika.frame.Heartbeat().marshal()], None
    if kind == "method":
        return [pika.frame.Method(number, draw(METHODS)).marshal()], None
    properties, body = draw(ORDINARY), draw(st.binary(max_size=60))
    key, exchange = draw(TEXT), draw(TEXT)
    room = draw(st.sampled_from([10, 24, 4096]))
    if kind == "return":
        method: Any = spec.Basic.Return(312, "NO_ROUTE", exchange, key)
    else:
        tag, again = draw(st.integers(1, 2**63)), draw(st.booleans())
        method = spec.Basic.Deliver(draw(TEXT), tag, again, exchange, key)
    frames = list(content_frames(number, method, encoded(properties), body, room))
    if kind == "return" or number not in CONSUMING:
        return frames, None
    decoded = pika.frame.decode_frame(frames[1])[1].properties
    return frames, (number, tag, again, exchange, key, told(decoded), body)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], list[bytes], list[tuple[Any, ...]]]:
    """Frames of several channels, mixed; those meant for pika; the deliveries, as pika decodes them."""
    tracks: dict[int, list[tuple[bytes, bool, Any]]] = {}
    for number in range(4):
        tracks[number] = []
        for frames, expected in draw(st.lists(items(number), max_size=4)):
            last = len(frames) - 1
            tracks[number] += [(raw, expected is None, expected if at == last else None) for at, raw in enumerate(frames)]
    turns = draw(st.permutations([number for number, frames in tracks.items() for _ in frames]))
    mixed = [tracks[number].pop(0) for number in turns]
    return (
        [raw for raw, _, _ in mixed],
        [raw for raw, for_pika, _ in mixed if for_pika],
        [expected for _, _, expected in mixed if expected is not None],
    )


@STEADY
@given(streams(), st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_any_stream_cut_anywhere_gives_the_same(stream: Any, sizes: list[int]) -> None:
    frames, for_pika, deliveries = stream
    data = b"".join(frames)
    whole, cut = Tap(), Tap()
    whole.reader.feed(data)
    offset = index = 0
    while offset < len(data):
        size = sizes[index % len(sizes)]
        cut.reader.feed(data[offset : offset + size])
        offset, index = offset + size, index + 1
    assert whole.deliveries == deliveries
    assert whole.to_pika == for_pika
    assert cut.deliveries == deliveries
    assert cut.to_pika == for_pika


@pytest.mark.parametrize("size", range(1, 8))
def test_pieces_of_one_to_seven_bytes(size: int) -> None:
    data = b"".join(b"".join(delivery(1, tag, b"body %d" % tag, key=f"k{tag}")) for tag in range(1, 6))
    tap = Tap()
    for offset in range(0, len(data), size):
        tap.reader.feed(data[offset : offset + size])
    assert [(each[1], each[4], each[6]) for each in tap.deliveries] == [(n, f"k{n}", b"body %d" % n) for n in range(1, 6)]
    assert tap.to_pika == []


# One thing at a time ------------------------------------------------------------------------------


def test_a_body_may_come_in_several_frames() -> None:
    tap = Tap()
    frames = delivery(body=b"0123456789" * 10, frame_max=24)
    assert len(frames) > 5
    for frame in frames[:-1]:
        tap.reader.feed(frame)
    assert tap.deliveries == []
    tap.reader.feed(frames[-1])
    assert [each[6] for each in tap.deliveries] == [b"0123456789" * 10]


def test_an_empty_body_has_no_frame_of_its_own() -> None:
    tap = Tap()
    tap.reader.feed(b"".join(delivery(tag=1)) + b"".join(delivery(tag=2, body=b"x")))
    assert [(each[1], each[6]) for each in tap.deliveries] == [(1, b""), (2, b"x")]


def test_the_body_after_one_in_several_frames_starts_empty() -> None:
    tap = Tap()
    tap.reader.feed(b"".join(delivery(tag=1, body=b"abcdef", frame_max=10) + delivery(tag=2, body=b"ghijkl", frame_max=10)))
    assert [each[6] for each in tap.deliveries] == [b"abcdef", b"ghijkl"]


def test_channels_may_be_mixed_frame_by_frame() -> None:
    tap = Tap()
    first, second = delivery(1, 5, b"first" * 9, frame_max=20), delivery(2, 6, b"second" * 9, frame_max=20)
    for frames in zip(first, second, strict=False):
        tap.reader.feed(b"".join(frames))
    tap.reader.feed(b"".join(second[len(first) :]))
    assert {each[0]: each[6] for each in tap.deliveries} == {1: b"first" * 9, 2: b"second" * 9}


def test_a_return_on_a_channel_that_consumes_goes_to_pika_between_two_deliveries() -> None:
    tap = Tap()
    back = list(content_frames(1, spec.Basic.Return(312, "NO_ROUTE", "", "gone"), encoded(), b"reply", 4096))
    tap.reader.feed(b"".join(delivery(tag=1, body=b"a") + back + delivery(tag=2, body=b"b")))
    assert [(each[1], each[6]) for each in tap.deliveries] == [(1, b"a"), (2, b"b")]
    assert tap.to_pika == back


def test_a_return_with_an_empty_body_goes_to_pika_as_well() -> None:
    tap = Tap()
    back = list(content_frames(1, spec.Basic.Return(312, "NO_ROUTE", "", "gone"), encoded(), b"", 4096))
    tap.reader.feed(b"".join(back + delivery(tag=2)))
    assert tap.to_pika == back
    assert [each[1] for each in tap.deliveries] == [2]


def test_a_channel_that_is_forgotten_in_the_middle_of_a_chunk_is_pikas() -> None:
    tap = Tap(())
    seen: list[int] = []

    def once(tag: int, *_rest: Any) -> None:
        seen.append(tag)
        tap.reader.forget(1)

    tap.reader.deliver_to(1, once)
    tap.reader.feed(b"".join(delivery(tag=1) + delivery(tag=2)))
    assert seen == [1]
    assert tap.to_pika == delivery(tag=2)


def test_a_number_that_is_used_again_starts_afresh() -> None:
    tap = Tap((1,))
    tap.reader.feed(b"".join(delivery(tag=1, body=b"half of it", frame_max=12)[:3]))
    tap.reader.forget(1)
    tap.reader.deliver_to(1, tap._sink(1))
    tap.reader.feed(b"".join(delivery(tag=1, body=b"anew")))
    assert [each[6] for each in tap.deliveries] == [b"anew"]


def test_forgetting_what_was_never_taken_is_harmless() -> None:
    tap = Tap(())
    tap.reader.forget(9)
    tap.reader.feed(pika.frame.Heartbeat().marshal())
    assert tap.to_pika == [pika.frame.Heartbeat().marshal()]


def test_more_routing_keys_than_are_remembered() -> None:
    tap = Tap()
    for tag in range(1, 2500):
        tap.reader.feed(b"".join(delivery(tag=tag, key=f"key.{tag % 1500}")))
    assert [each[4] for each in tap.deliveries] == [f"key.{tag % 1500}" for tag in range(1, 2500)]


def test_keys_that_are_no_utf_8_arrive_as_bytes() -> None:
    tap = Tap()
    tap.reader.feed(b"".join(delivery(key=b"\xff\xfe")))
    assert tap.deliveries[0][4] == b"\xff\xfe"


def test_the_version_that_a_broker_answers_with_goes_to_pika() -> None:
    tap = Tap()
    for byte in b"AMQP\x00\x01\x00\x00":
        tap.reader.feed(bytes((byte,)))
    assert tap.to_pika == [b"AMQP\x00\x01\x00\x00"]


# Headers that no decoder should meet --------------------------------------------------------------


def nested(depth: int) -> bytes:
    table = b"\x01kt\x01"
    for _ in range(depth):
        table = b"\x01kF" + struct.pack(">I", len(table)) + table
    return table


HOSTILE = {
    "a time beyond the calendar": b"\x01tT" + struct.pack(">Q", 2**63),
    "a type that nobody knows": b"\x01k\x01\x02\x03",
    "tables 900 deep": nested(900),
    "a string longer than the table": b"\x01kS\x00\x00\xff\xffx",
    "a value that is cut": b"\x01kl\x00",
}


@pytest.mark.parametrize("table", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("size", [3, 100_000])
def test_hostile_headers_arrive_with_their_fault_and_their_bytes(table: bytes, size: int) -> None:
    listed = struct.pack(">H", 1 << 13 | 1 << 10) + struct.pack(">I", len(table)) + table + b"\x03cid"
    got: list[Any] = []
    reader = Reader(lambda _frame: pytest.fail("it went to pika"))
    reader.deliver_to(1, lambda *parts: got.append(parts))
    data = b"".join(delivery(properties=listed, body=b"x", frame_max=131072) + delivery(tag=2, body=b"y"))
    for offset in range(0, len(data), size):
        reader.feed(data[offset : offset + size])
    properties = got[0][4]
    assert isinstance(properties.headers, Headers)
    assert properties.headers.fault
    assert properties.headers == {}
    assert properties.headers.raw == table
    assert properties.correlation_id == "cid"
    assert [parts[5] for parts in got] == [b"x", b"y"]


def test_a_header_frame_that_is_cut_short_ends_the_reading() -> None:
    reader = Reader(lambda _frame: None)
    reader.deliver_to(1, lambda *_parts: pytest.fail("delivered"))
    reader.feed(delivery()[0])
    with pytest.raises(struct.error):
        reader.feed(raw_frame(spec.FRAME_HEADER, 1, CONTENT.pack(60, 0, 0)[:6]))
