"""AMQP field tables as bytes: header tables are read tolerantly, kept as they came, and written exactly.

What a client put into its headers is kept as the bytes that came: decoding and encoding again would change types (floats,
small integers, strings that are not UTF-8), and hostile headers must never reach a decoder that can fail. A table that can't
be decoded yields an empty `Headers` whose `fault` says why; the message is then a bad message, not a dead connection.
Sources: AMQP 0-9-1 section 4.2.5; RabbitMQ's errata (rabbitmq.com/amqp-0-9-1-errata) for field types.
"""

import datetime as dt
import decimal
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

MAX_DEPTH = 16
"""How deep header tables and arrays may be nested; RabbitMQ itself has no limit."""

MAX_SHORT = 255
"""Bytes that a short string may have."""

_DECIMAL_DIGITS = 11
"""More digits before the point than AMQP's decimals have."""

ShortString: TypeAlias = str | bytes
"""At most 255 bytes of UTF-8; bytes when what came was not UTF-8, and echoed unchanged."""

_U32, _U64 = struct.Struct(">I"), struct.Struct(">Q")

_FIXED: dict[int, struct.Struct] = {
    ord(kind): struct.Struct(form)
    for kind, form in {
        "t": ">?", "b": ">b", "B": ">B", "s": ">h", "U": ">h", "u": ">H", "I": ">i", "i": ">I",
        "l": ">q", "L": ">q", "f": ">f", "d": ">d", "D": ">Bi", "T": ">Q", "V": ">",
    }.items()
}  # fmt: skip
_COUNTED = frozenset(b"SxAF")


class Headers(dict[str, Any]):
    """The header table of a message: decoded values, and the bytes they came as."""

    __slots__ = ("fault", "raw")

    def __init__(self, raw: bytes = b"", fault: str | None = None) -> None:
        """Keep the table's entries as they came (without the length in front)."""
        super().__init__()
        self.raw = raw
        self.fault = fault


# Reading ------------------------------------------------------------------------------------------


def read_headers(encoded: bytes, offset: int) -> tuple[Headers, int]:
    """Decode a header table; whatever is wrong inside it ends in `fault`, and reading goes on behind it."""
    (size,) = _U32.unpack_from(encoded, offset)
    start, end = offset + 4, offset + 4 + size
    headers = Headers(encoded[start:end])
    try:
        _read_table(headers, encoded, start, min(end, len(encoded)), 1)
    except (ValueError, IndexError, struct.error, OverflowError) as error:
        headers.clear()
        headers.fault = str(error) or type(error).__name__
    return headers, end


def _read_table(into: dict[str, Any], encoded: bytes, offset: int, end: int, depth: int) -> None:
    while offset < end:
        stop = offset + 1 + encoded[offset]
        if stop >= end:
            raise ValueError("the header table is cut")
        key = text(encoded[offset + 1 : stop])
        value, offset = _read_value(encoded, stop, end, depth)
        if isinstance(key, str):  # a name that is no text can't be asked for; it stays in the raw bytes
            into[key] = value


def _read_value(encoded: bytes, offset: int, end: int, depth: int) -> tuple[Any, int]:
    kind = encoded[offset]
    offset += 1
    fixed = _FIXED.get(kind)
    if fixed is not None:
        _check_end(offset + fixed.size, end)
        return _fixed_value(kind, fixed.unpack_from(encoded, offset)), offset + fixed.size
    if kind not in _COUNTED:
        raise ValueError(f"field type {chr(kind)!r} is unknown")
    _check_end(offset + _U32.size, end)
    (size,) = _U32.unpack_from(encoded, offset)
    offset += 4
    stop = offset + size
    _check_end(stop, end)
    if kind == ord("S"):
        return text(encoded[offset:stop]), stop
    if kind == ord("x"):
        return encoded[offset:stop], stop
    if depth >= MAX_DEPTH:
        raise ValueError(f"headers are nested deeper than {MAX_DEPTH}")
    if kind == ord("F"):
        table: dict[str, Any] = {}
        _read_table(table, encoded, offset, stop, depth + 1)
        return table, stop
    array: list[Any] = []
    while offset < stop:
        value, offset = _read_value(encoded, offset, stop, depth + 1)
        array.append(value)
    return array, stop


def _check_end(stop: int, end: int) -> None:
    if stop > end:
        raise ValueError("a field is longer than its table")


def _fixed_value(kind: int, parts: tuple[Any, ...]) -> Any:
    if kind == ord("V"):
        return None
    if kind == ord("D"):
        return decimal.Decimal(parts[1]).scaleb(-parts[0])
    if kind == ord("T"):
        try:
            return dt.datetime.fromtimestamp(parts[0], dt.timezone.utc)
        except (ValueError, OverflowError, OSError) as error:
            raise ValueError("a timestamp is out of range") from error
    return parts[0]


def text(value: bytes) -> ShortString:
    """Decode UTF-8, or return the bytes when it is none."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def split_headers(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and whole entry of each header without decoding a value; raise ValueError where the table is cut."""
    offset, end = 0, len(raw)
    try:
        while offset < end:
            start, stop = offset, offset + 1 + raw[offset]
            kind = raw[stop]
            fixed = _FIXED.get(kind)
            if fixed is not None:
                offset = stop + 1 + fixed.size
            elif kind in _COUNTED:
                offset = stop + 5 + _U32.unpack_from(raw, stop + 1)[0]
            else:
                raise ValueError(f"field type {chr(kind)!r} is unknown")
            if offset > end:
                raise ValueError("a header is longer than its table")
            yield raw[start + 1 : stop], raw[start:offset]
    except (IndexError, struct.error) as error:
        raise ValueError("the header table is cut") from error


# Writing ------------------------------------------------------------------------------------------


def fits(value: ShortString) -> bool:
    """Tell whether a short string can hold this."""
    return len(value.encode(errors="replace") if isinstance(value, str) else value) <= MAX_SHORT


def short(value: ShortString, what: str = "a short string") -> bytes:
    """Encode a short string with its length; raise ValueError naming `what` when it has more than 255 bytes."""
    data = value.encode() if isinstance(value, str) else value
    if len(data) > MAX_SHORT:
        raise ValueError(f"{what} has {len(data)} bytes; AMQP allows {MAX_SHORT}")
    return bytes((len(data),)) + data


def header(name: ShortString, value: Any) -> bytes:
    """Encode one header; raise TypeError or ValueError for what AMQP has no type for."""
    return short(name, "a header's name") + _value(value, name, 1)


def table(values: Mapping[str, Any]) -> bytes:
    """Encode a table's entries (without the length in front)."""
    return b"".join(header(name, value) for name, value in values.items())


def _value(value: Any, name: ShortString, depth: int) -> bytes:
    if depth >= MAX_DEPTH and isinstance(value, (Mapping, list, tuple)):
        raise ValueError(f"header {name!r} is nested deeper than {MAX_DEPTH}")
    for kind, encode in _ENCODERS:
        if isinstance(value, kind):
            return encode(value, name, depth)
    raise TypeError(f"header {name!r}: AMQP has no type for {type(value).__name__}")


def _integer(value: int, name: ShortString, _depth: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"I" + struct.pack(">i", value)
    if -(1 << 63) <= value < 1 << 63:
        return b"l" + struct.pack(">q", value)
    raise ValueError(f"header {name!r}: the integer needs more than 64 bits")


def _decimal(value: decimal.Decimal, name: ShortString, _depth: int) -> bytes:
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int):
        places = max(0, -exponent)
        fits = places <= MAX_SHORT and value.adjusted() < _DECIMAL_DIGITS  # else scaling it could take for ever
        scaled = int(value.scaleb(places)) if fits else 0
        if fits and -(1 << 31) <= scaled < 1 << 31:
            return b"D" + struct.pack(">Bi", places, scaled)
    raise ValueError(f"header {name!r}: the decimal does not fit")


def _counted(kind: bytes, data: bytes) -> bytes:
    return kind + _U32.pack(len(data)) + data


def _nested(value: Mapping[str, Any], _name: ShortString, depth: int) -> bytes:
    return _counted(
        b"F", b"".join(short(key, "a header's name") + _value(item, key, depth + 1) for key, item in value.items())
    )


_ENCODERS: tuple[tuple[Any, Callable[[Any, ShortString, int], bytes]], ...] = (
    (str, lambda value, _name, _depth: _counted(b"S", value.encode())),
    (bool, lambda value, _name, _depth: b"t\x01" if value else b"t\x00"),
    (int, _integer),
    (type(None), lambda _value, _name, _depth: b"V"),
    (float, lambda value, _name, _depth: b"d" + struct.pack(">d", value)),
    (bytes, lambda value, _name, _depth: _counted(b"x", value)),
    (decimal.Decimal, _decimal),
    (dt.datetime, lambda value, _name, _depth: b"T" + _U64.pack(max(0, int(value.timestamp())))),
    (Mapping, _nested),
    (
        (list, tuple),
        lambda value, name, depth: _counted(b"A", b"".join(_value(item, name, depth + 1) for item in value)),
    ),
)


def join_headers(entries: Iterable[bytes]) -> bytes:
    """Put entries of `split_headers` and `header` together again."""
    return b"".join(entries)
