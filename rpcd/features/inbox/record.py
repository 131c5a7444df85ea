"""What a message is recognised by, and what is kept of one that has been handled."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from rpcd.core.codec import encode_json
from rpcd.core.message import Message, Reply
from rpcd.core.outgoing import Outgoing

Identify = Callable[[Message[Any]], bytes | None]


class Publication(msgspec.Struct, array_like=True):
    """A publication that the handler held back."""

    exchange: str
    routing_key: Any
    """Text, or bytes if it is no UTF-8."""
    body: bytes
    properties: bytes
    mandatory: bool
    token: str


class Record(msgspec.Struct, array_like=True):
    """The result of one message."""

    data: bytes | None
    """JSON of what the handler returned, or of its reply's data; None if nobody waited for it."""
    text: str | None
    """The reply's message."""
    is_reply: bool
    published: list[Publication]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def keep(value: Any, message: Message[Any], before: int) -> bytes:
    """Encode what a handler returned and published; raise TypeError or ValueError if that can't be sent, either.

    `before` is how many publications were there before the handler began.
    """
    published = [
        Publication(each.exchange, each.routing_key, each.body, each.properties, each.mandatory, each.token)
        for each in message.published[before:]
    ]
    if message.reply_to is None:
        return _encode(Record(None, None, False, published))
    if isinstance(value, Reply):
        return _encode(Record(encode_json(value.data), value.message, True, published))
    return _encode(Record(encode_json(value), None, False, published))


def answer(kept: bytes, message: Message[Any]) -> Any:
    """Return what a handler returned, as JSON says it, and publish again what it published."""
    record = _decode(kept)
    for each in record.published:
        message.published.append(
            Outgoing(each.exchange, each.routing_key, each.body, each.properties, mandatory=each.mandatory, token=each.token)
        )
    data = None if record.data is None else msgspec.json.decode(record.data)
    return Reply(data, record.text) if record.is_reply else data


def identify(key: str, scope: str) -> Identify:
    """Build what gives the key of an opened message: None if it has nothing that it could be recognised by.

    It is of one queue and exchange. A client's ids may not be unique, so a message id counts together with the body; what
    the config names as the key counts alone.
    """
    if key == "message_id":
        return lambda message: _digest(scope, message, key, message.message_id, message.payload)
    root, *names = key.split(".")

    def found(message: Message[Any]) -> bytes | None:
        value: Any = message.body if root == "body" else message.headers
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        return _digest(scope, message, key, value, b"")

    return found


def _digest(scope: str, message: Message[Any], key: str, value: Any, payload: bytes) -> bytes | None:
    if value is None or value == "" or not isinstance(value, str | bytes | int):
        return None
    parts = (scope, message.queue, message.exchange, key, type(value).__name__, value)
    encoded = [each if isinstance(each, bytes) else str(each).encode(errors="surrogatepass") for each in parts]
    digest = hashlib.sha256(b"".join(len(each).to_bytes(4, "big") + each for each in encoded))
    digest.update(payload)
    return digest.digest()
