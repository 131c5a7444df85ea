"""Content properties and the frames that rpcd writes itself, as bytes.

Sources: AMQP 0-9-1 sections 2.3.5 (frames), 4.2.6 (content), and its basic class.
"""

import struct
from typing import Any

from rpcd.core.tables import Headers, ShortString, read_headers, short, text

_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")


class Properties:
    """The properties of a message, by their AMQP names; None is "not there". Strings that are no UTF-8 are bytes."""

    content_type: ShortString | None = None
    content_encoding: ShortString | None = None
    headers: Headers | bytes | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: ShortString | None = None
    reply_to: ShortString | None = None
    expiration: ShortString | None = None
    message_id: ShortString | None = None
    timestamp: int | None = None
    type: ShortString | None = None
    user_id: ShortString | None = None
    app_id: ShortString | None = None

    def __init__(self, **values: Any) -> None:
        """Set the properties that are there; the rest stay what the class says, which costs nothing."""
        self.__dict__.update(values)


_KINDS = {"headers": "F", "delivery_mode": "B", "priority": "B", "timestamp": "T"}

_LAYOUT = tuple((1 << (15 - index), name, _KINDS.get(name, "s")) for index, name in enumerate(Properties.__annotations__))
"""Flag, name and kind of every property, in the order of the wire."""

_present: dict[int, tuple[tuple[str, str], ...]] = {}
"""Names and kinds of the properties that a word of flags announces, worked out once for each word that was seen."""


def read_properties(encoded: bytes, offset: int = 0) -> Properties:
    """Decode the property list of a content header frame; raise struct.error or IndexError only if the frame is cut."""
    (flags,) = _U16.unpack_from(encoded, offset)
    offset += 2
    found = Properties()
    for name, kind in _present.get(flags) or _read_flags(flags):
        if kind == "s":
            end = offset + 1 + encoded[offset]
            value: Any = text(encoded[offset + 1 : end])
            offset = end
        elif kind == "F":
            value, offset = read_headers(encoded, offset)
        elif kind == "B":
            value = encoded[offset]
            offset += 1
        else:
            (value,) = _U64.unpack_from(encoded, offset)
            offset += 8
        setattr(found, name, value)
    return found


def _read_flags(flags: int) -> tuple[tuple[str, str], ...]:
    names = _present[flags] = tuple((name, kind) for bit, name, kind in _LAYOUT if flags & bit)
    return names


def write_properties(properties: Properties) -> bytes:
    """Encode a property list; raise ValueError for a string over 255 bytes."""
    flags, parts = 0, [b""]
    for bit, name, kind in _LAYOUT:
        value = getattr(properties, name)
        if value is None:
            continue
        flags |= bit
        if kind == "s":
            parts.append(short(value, name))
        elif kind == "F":
            raw = value.raw if isinstance(value, Headers) else value
            parts.append(_U32.pack(len(raw)) + raw)
        else:
            parts.append(_U64.pack(value) if kind == "T" else bytes((value,)))
    parts[0] = _U16.pack(flags)
    return b"".join(parts)


_FRAME = struct.Struct(">BHI")
_ACK = struct.Struct(">BHIHHQ?B")
_NACK = struct.Struct(">BHIHHQBB")
_METHOD = struct.Struct(">HHH")
_CONTENT = struct.Struct(">BHIHHQ")


def ack_frame(channel: int, tag: int, multiple: bool) -> bytes:
    """Encode basic.ack."""
    return _ACK.pack(1, channel, 13, 60, 80, tag, multiple, 0xCE)


def nack_frame(channel: int, tag: int, requeue: bool) -> bytes:
    """Encode basic.nack of one tag (RabbitMQ's extension; a nack without requeue dead-letters as a reject does)."""
    return _NACK.pack(1, channel, 13, 60, 120, tag, 2 if requeue else 0, 0xCE)


def get_frame(channel: int, queue: str) -> bytes:
    """Encode basic.get, whose message is to be acked."""
    method = b"".join((_METHOD.pack(60, 70, 0), short(queue, "the queue"), b"\x00"))
    return b"".join((_FRAME.pack(1, channel, len(method)), method, b"\xce"))


def publish_frames(
    channel: int,
    exchange: str,
    routing_key: ShortString,
    mandatory: bool,
    properties: bytes,
    body: bytes,
    frame_max: int,
) -> bytes:
    """Encode basic.publish with its content; `properties` is what `write_properties` gave."""
    method = b"".join(
        (
            _METHOD.pack(60, 40, 0),
            short(exchange, "the exchange"),
            short(routing_key, "the routing key"),
            b"\x01" if mandatory else b"\x00",
        )
    )
    parts = [
        _FRAME.pack(1, channel, len(method)),
        method,
        b"\xce",
        _CONTENT.pack(2, channel, 12 + len(properties), 60, 0, len(body)),
        properties,
        b"\xce",
    ]
    room = frame_max - 8
    for start in range(0, len(body), room):
        chunk = body[start : start + room]
        parts += (_FRAME.pack(3, channel, len(chunk)), chunk, b"\xce")
    return b"".join(parts)
