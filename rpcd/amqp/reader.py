"""Reading frames: deliveries are taken apart here, everything else is handed to pika frame by frame.

Deliveries are nearly all that a consumer's connection receives. pika would build four objects for each, look every frame up
in its table of callbacks, and cut its buffer anew for every frame. Here a delivery costs its envelope, its properties and
its body. Method, header and body frames of one delivery follow each other on their channel without anything between them
(AMQP 0-9-1, section 4.2.6), so one slot a channel holds what has come so far.
"""

import struct
from collections.abc import Callable
from typing import Any

from rpcd.core.tables import ShortString, text
from rpcd.core.wire import Properties, read_properties

OnDelivery = Callable[[int, bool, Any, Any, Properties, bytes], None]
"""Told delivery tag, redelivered, exchange, routing key, properties and body."""

OnNothing = Callable[[], object]

ToPika = Callable[[bytes], None]

_FRAME = struct.Struct(">BHI")
_TAG = struct.Struct(">QB")
_BODY_SIZE = struct.Struct(">Q")
_DELIVER = b"\x00\x3c\x00\x3c"
_GET_OK = b"\x00\x3c\x00\x47"
_GET_EMPTY = b"\x00\x3c\x00\x48"
_COUNT_SIZE = 4
_OVERHEAD = 8
_METHOD, _HEADER, _BODY = 1, 2, 3
_MOST_KEYS = 1024


class Content:
    """The delivery that one channel is receiving."""

    __slots__ = (
        "body_size",
        "chunks",
        "exchange",
        "nothing",
        "properties",
        "received",
        "redelivered",
        "routing_key",
        "sink",
        "tag",
    )

    def __init__(self, sink: OnDelivery, nothing: OnNothing) -> None:
        """Take what is told of every whole delivery, and of a queue that has none."""
        self.sink = sink
        self.nothing = nothing
        self.tag = 0
        self.redelivered = False
        self.exchange: ShortString = ""
        self.routing_key: ShortString = ""
        self.properties: Properties | None = None
        self.body_size = 0
        self.received = 0
        self.chunks: list[bytes] = []


class Reader:
    """The frames of one connection; reactor only."""

    def __init__(self, to_pika: ToPika) -> None:
        """Hand every frame that is no part of a delivery to pika."""
        self._to_pika = to_pika
        self._rest = b""
        self._channels: dict[int, Content] = {}
        self._keys: dict[bytes, tuple[ShortString, ShortString]] = {}

    def deliver_to(self, channel: int, sink: OnDelivery, nothing: OnNothing = lambda: None) -> None:
        """Take the deliveries of a channel from now on; `nothing` is told when `basic.get` finds an empty queue."""
        self._channels[channel] = Content(sink, nothing)

    def forget(self, channel: int) -> None:
        """Leave a channel, which is closed, to pika."""
        self._channels.pop(channel, None)

    def feed(self, data: bytes) -> None:
        """Read what has come; what is not a whole frame yet is kept."""
        buffer = self._rest + data if self._rest else data
        self._rest = b""
        offset, end = 0, len(buffer)
        unpack, channels = _FRAME.unpack_from, self._channels
        while end - offset >= _OVERHEAD:
            kind, number, size = unpack(buffer, offset)
            stop = offset + _OVERHEAD + size
            if kind > _OVERHEAD:  # no frame: the broker answers with the protocol version that it speaks
                stop = offset + _OVERHEAD
            if stop > end:
                break
            content = channels.get(number)
            if content is None or not self._take(content, kind, buffer, offset + 7, stop - 1):
                self._to_pika(buffer[offset:stop])
            offset = stop
        self._rest = buffer[offset:] + self._rest

    def _take(self, content: Content, kind: int, buffer: bytes, offset: int, stop: int) -> bool:
        """Take one frame of a delivery; return False if it belongs to something else."""
        if kind == _BODY and content.properties is not None:
            self._body(content, buffer[offset:stop])
        elif kind == _HEADER and content.tag:
            (content.body_size,) = _BODY_SIZE.unpack_from(buffer, offset + 4)
            content.properties = read_properties(buffer, offset + 12)
            if not content.body_size:
                self._deliver(content, b"")
        elif kind == _METHOD:
            method = buffer[offset : offset + 4]
            if method == _DELIVER:
                start = offset + 5 + buffer[offset + 4]  # behind the consumer's tag
            elif method == _GET_OK:
                start, stop = offset + 4, stop - _COUNT_SIZE  # the count of what is left, which nobody asks for
            elif method == _GET_EMPTY:
                content.nothing()
                return True
            else:
                return False
            content.tag, redelivered = _TAG.unpack_from(buffer, start)
            content.redelivered = redelivered != 0
            raw = buffer[start + 9 : stop]
            content.exchange, content.routing_key = self._keys.get(raw) or self._read_keys(raw)
        else:
            return False
        return True

    def _body(self, content: Content, chunk: bytes) -> None:
        if len(chunk) == content.body_size:
            self._deliver(content, chunk)
            return
        content.chunks.append(chunk)
        content.received += len(chunk)
        if content.received >= content.body_size:
            self._deliver(content, b"".join(content.chunks))

    def _deliver(self, content: Content, body: bytes) -> None:
        tag, properties = content.tag, content.properties or Properties()
        content.tag, content.properties = 0, None
        if content.chunks:
            content.chunks, content.received = [], 0
        content.sink(tag, content.redelivered, content.exchange, content.routing_key, properties, body)

    def _read_keys(self, raw: bytes) -> tuple[ShortString, ShortString]:
        """Read exchange and routing key; the same few come again and again, so they are remembered."""
        middle = 1 + raw[0]
        keys = text(raw[1:middle]), text(raw[middle + 1 : middle + 1 + raw[middle]])
        if len(self._keys) >= _MOST_KEYS:
            self._keys.clear()
        self._keys[raw] = keys
        return keys
