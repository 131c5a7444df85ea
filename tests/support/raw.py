"""A client that speaks AMQP 0-9-1 by hand: it can send what no library would, and sees the very bytes that come back."""

import socket
import struct
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

SECONDS = 30.0
"""How long a test waits for the broker's answer."""

_NAMES = (
    "content_type",
    "content_encoding",
    "headers",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "type",
    "user_id",
    "app_id",
)
_NUMBERS = {"delivery_mode": ">B", "priority": ">B", "timestamp": ">Q"}

Value = bytes | int

START, TUNE, OPEN_OK, CLOSE = (10, 10), (10, 30), (10, 41), (10, 50)
CHANNEL_OPEN_OK, CHANNEL_CLOSE = (20, 11), (20, 40)
SELECT_OK, ACK, RETURN, GET_OK, GET_EMPTY = (85, 11), (60, 80), (60, 50), (60, 71), (60, 72)


class Refused(Exception):
    """The broker has closed the channel or the connection, or cut it, over what was sent."""


class Content(NamedTuple):
    """A message as it is on the wire; strings are bytes, and the headers are the entries of their table."""

    properties: dict[str, Value]
    body: bytes

    @property
    def headers(self) -> bytes:
        value = self.properties.get("headers", b"")
        assert isinstance(value, bytes)
        return value


def short(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def counted(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def field(name: bytes, kind: bytes, data: bytes) -> bytes:
    """One header: its name, its type's letter, and whatever bytes are to stand for its value."""
    return short(name) + kind + data


def string(name: bytes, value: bytes) -> bytes:
    return field(name, b"S", counted(value))


def number(name: bytes, value: int) -> bytes:
    return field(name, b"l", struct.pack(">q", value))


def encode(properties: dict[str, Value]) -> bytes:
    """Flags and values; nothing is checked."""
    flags, parts = 0, b""
    for index, name in enumerate(_NAMES):
        if name in properties:
            value = properties[name]
            flags |= 1 << (15 - index)
            if name in _NUMBERS:
                parts += struct.pack(_NUMBERS[name], value)
            else:
                assert isinstance(value, bytes)
                parts += counted(value) if name == "headers" else short(value)
    return struct.pack(">H", flags) + parts


def decode(encoded: bytes) -> dict[str, Value]:
    (flags,) = struct.unpack_from(">H", encoded)
    found: dict[str, Value] = {}
    offset = 2
    for index, name in enumerate(_NAMES):
        if flags & 1 << (15 - index):
            if name in _NUMBERS:
                (found[name],) = struct.unpack_from(_NUMBERS[name], encoded, offset)
                offset += struct.calcsize(_NUMBERS[name])
                continue
            width = 4 if name == "headers" else 1
            size = int.from_bytes(encoded[offset : offset + width], "big")
            found[name] = encoded[offset + width : offset + width + size]
            offset += width + size
    assert offset == len(encoded)
    return found


class RawPeer:
    """One connection with one channel, in the mode of confirms."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=SECONDS)
        self._rest = b""
        self._socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._wait_for(START)
        login = b"\x00%b\x00%b" % (unquote(parts.username or "").encode(), unquote(parts.password or "").encode())
        self._method((10, 11), counted(b"") + short(b"PLAIN") + counted(login) + short(b"en_US"), 0)
        tune = self._wait_for(TUNE)
        (self.frame_max,) = struct.unpack_from(">I", tune, 2)
        self._method((10, 31), tune[:6] + b"\x00\x00", 0)
        self._method((10, 40), short(unquote(parts.path[1:]).encode()) + b"\x00\x00", 0)
        self._wait_for(OPEN_OK)
        self._method((20, 10), b"\x00")
        self._wait_for(CHANNEL_OPEN_OK)
        self._method((85, 10), b"\x00")
        self._wait_for(SELECT_OK)

    def close(self) -> None:
        self._socket.close()

    def publish(
        self, key: bytes, body: bytes = b"{}", *, exchange: bytes = b"", cut: int | None = None, **properties: Value
    ) -> None:
        """Publish what must be routed and wait for the confirm; `cut` is how long the body's frames are."""
        properties.setdefault("delivery_mode", 2)
        self.send(key, encode(properties), body, exchange=exchange, cut=cut)
        self._wait_for(ACK)

    def send(self, key: bytes, properties: bytes, body: bytes, *, exchange: bytes = b"", cut: int | None = None) -> None:
        """Write one message, its property list as given."""
        self._method((60, 40), b"\x00\x00" + short(exchange) + short(key) + b"\x01")
        self._frame(2, struct.pack(">HHQ", 60, 0, len(body)) + properties)
        step = cut or self.frame_max - 8
        for start in range(0, len(body), step):
            self._frame(3, body[start : start + step])

    def get(self, queue: bytes) -> Content | None:
        """Take the next message of a queue, if there is one ready."""
        self._method((60, 70), b"\x00\x00" + short(queue) + b"\x01")
        if self._wait_for(GET_OK, GET_EMPTY) == b"\x00":
            return None
        _, _, header = self._read()
        (size,) = struct.unpack_from(">Q", header, 4)
        body = b""
        while len(body) < size:
            body += self._read()[2]
        return Content(decode(header[12:]), body)

    def _method(self, method: tuple[int, int], arguments: bytes, channel: int = 1) -> None:
        self._frame(1, struct.pack(">HH", *method) + arguments, channel)

    def _frame(self, kind: int, payload: bytes, channel: int = 1) -> None:
        try:
            self._socket.sendall(struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce")
        except OSError as error:
            raise Refused(str(error)) from error

    def _wait_for(self, *wanted: tuple[int, int]) -> bytes:
        """Read until one of these methods comes; return its arguments."""
        while True:
            kind, _, payload = self._read()
            if kind != 1:
                continue  # the content of what was returned, or a heartbeat
            method = struct.unpack_from(">HH", payload)
            if method in wanted:
                return payload[4:]
            if method in (CLOSE, CHANNEL_CLOSE, RETURN):
                raise Refused(payload[4:].decode(errors="replace"))

    def _read(self) -> tuple[int, int, bytes]:
        kind, channel, size = struct.unpack(">BHI", self._exactly(7))
        return kind, channel, self._exactly(size + 1)[:-1]

    def _exactly(self, size: int) -> bytes:
        while len(self._rest) < size:
            try:
                more = self._socket.recv(1 << 20)
            except OSError as error:
                raise Refused(str(error)) from error
            if not more:
                raise Refused("the broker has hung up")
            self._rest += more
        found, self._rest = self._rest[:size], self._rest[size:]
        return found
