"""A question to another service, and how its reply is read: values only.

rpcd answers with an envelope, `{"success": true, "data": {...}, "message": null}`. What a handler returned that is no object
arrives in it as `{"result": value}`, and leaves it again here if the type that is asked for is none, either.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import msgspec

from rpcd.core.codec import JSON, check_encoding, decode_json, decode_raw, decode_text
from rpcd.core.errors import BadMessage, BadReply, CallFailed
from rpcd.core.outgoing import DIRECT_REPLY_TO, Outgoing, outgoing
from rpcd.core.wire import Properties

DEFAULT_TIMEOUT = 30.0
"""Seconds that a reply is waited for if nobody says how long."""

Read = Callable[[bytes, Properties], Any]
"""Returns what a reply says; raises CallFailed or BadReply."""


class Envelope(msgspec.Struct):
    """The document that rpcd replies with; what else there may be in it is nobody's business."""

    success: bool
    data: msgspec.Raw = msgspec.Raw(b"{}")
    message: str | None = None


@attrs.frozen
class Question:
    """What is asked, for how long, and what its reply is to be; made by `question`."""

    exchange: str
    routing_key: str
    body: Any
    timeout: float
    """Seconds."""
    read: Read
    """How the reply is read."""
    options: Mapping[str, Any]

    def outgoing(self, correlation_id: str, seconds: float, now: float) -> Outgoing:
        """Encode the request, which expires when nobody waits any more; raise TypeError or ValueError if that can't be.

        `seconds` is how long that is, `now` in seconds since the epoch: a service that believes our clock knows by both when
        its own calls must end.
        """
        return outgoing(
            self.exchange,
            self.routing_key,
            self.body,
            correlation_id=correlation_id,
            message_id=self.options.get("message_id", correlation_id),  # a service knows by it what it has seen already
            reply_to=DIRECT_REPLY_TO,
            expiration=seconds,
            timestamp=int(now),
            mandatory=True,
            **{name: value for name, value in self.options.items() if name != "message_id"},
        )


def question(
    exchange: str,
    routing_key: str,
    body: Any,
    *,
    timeout: float | None = None,
    reply_type: Any = Any,
    plain: bool = False,
    **options: Any,
) -> Question:
    """Put a question; raise TypeError or ValueError if it can't be asked or its reply not be read as that type.

    `options` are those of `Message.publish`, but for what a call decides itself.
    """
    seconds = DEFAULT_TIMEOUT if timeout is None else timeout
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError("a timeout is a number of seconds above 0")
    for name in _OWN & options.keys():
        raise TypeError(f"a call has its own {name}; it can't be given")
    return Question(exchange, routing_key, body, seconds, reader(reply_type, plain), options)


_OWN = frozenset({"correlation_id", "reply_to", "expiration", "mandatory", "timestamp"})


def reader(reply_type: Any, plain: bool) -> Read:
    """Build what reads replies as a type; the same for the same type. Raises TypeError for a type that nobody can read."""
    try:
        return _remembered(reply_type, plain)
    except TypeError:  # not hashable, or not known: the second try says which
        return _build(reply_type, plain)


def _build(reply_type: Any, plain: bool) -> Read:
    return _plain_reader(reply_type) if plain else _envelope_reader(reply_type)


_remembered = functools.lru_cache(256)(_build)


def _envelope_reader(reply_type: Any) -> Read:
    open_envelope, place = decode_json(Envelope), "reply.data"
    read_data = decode_json(reply_type)
    if not _may_be_object(read_data):
        read_wrapped = decode_json(msgspec.defstruct("Wrapped", [("result", reply_type)]))
        place = "reply.data"

        def read_data(data: bytes) -> Any:
            return read_wrapped(data).result

    def read(body: bytes, _properties: Properties) -> Any:
        try:
            envelope = open_envelope(body)
        except BadMessage as error:
            where = "reply" + error.place.removeprefix("body")
            raise BadReply(where, f"{error.reason}; plain=True takes replies without an envelope") from None
        if not envelope.success:
            raise _failed(envelope)
        data = bytes(envelope.data)
        try:
            return read_data(b"{}" if data == b"null" else data)
        except BadMessage as error:
            raise _bad(error, place) from None

    return read


def _may_be_object(read: Callable[[bytes], Any]) -> bool:
    """Tell whether a type can be a JSON object, by what its decoder says of an empty one."""
    try:
        read(b"{}")
    except BadMessage as error:
        return not (error.place == "body" and error.reason.endswith(", got `object`"))
    return True


def _failed(envelope: Envelope) -> CallFailed:
    try:
        data = msgspec.json.decode(envelope.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        data = None
    return CallFailed(envelope.message, data if isinstance(data, dict) else None)


def _plain_reader(reply_type: Any) -> Read:
    read_json, as_text = decode_json(reply_type), reply_type in (Any, str)
    as_bytes = reply_type in (Any, bytes)

    def decode(body: bytes, properties: Properties) -> Any:
        kind, encoding = properties.content_type, properties.content_encoding
        if encoding is not None and reply_type is not bytes:
            check_encoding(encoding)
        media = kind.partition(";")[0].strip().lower() if isinstance(kind, str) else ""
        if reply_type is bytes:
            return decode_raw(body)
        if media in ("", JSON) or media.endswith("+json"):
            return read_json(body)
        if media.startswith("text/") and as_text:
            return decode_text(body)
        if as_bytes:
            return decode_raw(body)
        raise BadMessage("content_type", "no JSON")

    def read(body: bytes, properties: Properties) -> Any:
        if body.startswith(b'{"success":false,'):  # rpcd's failures are the same document in every form
            _raise_failure(body)
        try:
            return decode(body, properties)
        except BadMessage as error:
            raise _bad(error, "reply") from None

    return read


def _raise_failure(body: bytes) -> None:
    """Raise CallFailed if a reply is rpcd's own document for a failure, with all its three parts."""
    try:
        parts = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if parts.keys() == {"success", "data", "message"}:
        raise _failed(msgspec.json.decode(body, type=Envelope))


def _bad(error: BadMessage, root: str) -> BadReply:
    """Tell of a reply what was found in it; its places begin at `root`."""
    faults = [(_place(place, root), reason) for place, reason in error.faults]
    return BadReply(_place(error.place, root), error.reason, faults, error.more)


def _place(place: str, root: str) -> str:
    return root + place.removeprefix("body") if place.startswith("body") else f"reply.{place}"
