"""Bodies with something encrypted in them: opened when they are decoded, and only in what the handler gets.

Three things may be encrypted: a body as a whole, fields that the body's type declares as `Secret[...]`, and fields that the
config names. The payload stays as it came, so retry and archive carry the cipher text on.
"""

import contextvars
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import msgspec

from rpcd.core.bodies import Decode, decode_json
from rpcd.core.codec import Codec, encode_json
from rpcd.core.consumers import Consumer
from rpcd.core.copies import ARRIVAL_HEADER
from rpcd.core.crypto import EXPIRED, FROM_FUTURE, UNREADABLE, Keyring
from rpcd.core.errors import BadMessage, BadValue
from rpcd.core.keys import SECRET_FIELDS
from rpcd.core.message import Message
from rpcd.core.routes import Route
from rpcd.core.secret import Secret

NOT_TEXT = "decrypted, but it is not text"
NOT_VALID = "decrypted, but not valid"

DEEPEST = 32
"""How deep tokens may lie in a secret field."""

_FIRST_CHARACTERS = "gAAAAA"
"""What every token begins with until the year 2106: the version, and the first bytes of the time."""

_OUT_OF_TIME = object()
"""The body of a message that was refused for the age of a token; nobody gets to see it."""

_arrived: contextvars.ContextVar[float | None] = contextvars.ContextVar("arrived", default=None)
"""When the message that is being opened came for the first time; None where the age of tokens does not count."""


class Sealing:
    """How the bodies of one consumer are decrypted; built once at start, used by any thread."""

    def __init__(self, keyring: Keyring, section: Consumer) -> None:
        """Take the keys, and what the consumer says about secrets."""
        self.keyring = keyring
        self.section = section
        self._openers: dict[Any, Callable[[bytes], Any]] = {}

    def codec(self, accept: Iterable[str], kind: Any = Any) -> Codec:
        """Build the codec of a handler whose body is of type `kind`."""
        return _SealedCodec(accept, kind, self)

    def secret(self, kind: Any, value: Any) -> Secret[Any]:
        """Open a value for a field of type `Secret[...]`; raise BadValue. It is msgspec's `dec_hook`.

        The token of a `Secret[str]` holds the text itself, that of a `Secret[bytes]` the bytes, of any other type JSON.
        """
        if (typing.get_origin(kind) or kind) is not Secret:
            raise TypeError(f"nothing is known of {kind!r}")
        opener = self._openers.get(kind)
        if opener is None:
            opener = self._openers[kind] = _opener((typing.get_args(kind) or (str,))[0], self.secret)
        return Secret(opener(self.keyring.open(value, _arrived.get())), value)

    def whole(self, decode: Decode) -> Decode:
        """Let a decoder be given what the payload holds encrypted."""

        def opened(payload: bytes) -> Any:
            try:
                value = self.keyring.open(payload, _arrived.get())
            except BadValue as error:
                raise BadMessage("body", str(error)) from None
            return decode(value)

        return opened

    def fields(self, decode: Decode, kind: Any) -> Decode:
        """Let a JSON decoder be given, or return if there is no type to meet, a body whose secret fields are opened."""
        opportunistic = self.section.secrets == "opportunistic"
        open_in = self._open_what_opens if opportunistic else self._open_named
        if _untyped(kind):
            return _after(decode, open_in)
        return _ahead(decode, open_in) if opportunistic or self.section.secret_fields else decode

    def _open_named(self, body: dict[str, Any], masked: bool) -> None:
        named = self.section.secret_fields
        for name in SECRET_FIELDS if named is None else named:
            if name in body:
                body[name] = self._tokens(body[name], f"body.{name}", masked, DEEPEST)

    def _tokens(self, value: Any, place: str, masked: bool, depth: int) -> Any:
        """Open a token, or all that are in an array or object."""
        if isinstance(value, dict | list) and not depth:
            raise BadMessage(place, "nested too deeply")
        if isinstance(value, dict):  # the names in it are the sender's own: they are not shown
            return {key: self._tokens(each, f"{place}[...]", masked, depth - 1) for key, each in value.items()}
        if isinstance(value, list):
            return [self._tokens(each, f"{place}[{index}]", masked, depth - 1) for index, each in enumerate(value)]
        try:
            text = _text(self.keyring.open(value, _arrived.get()))
        except BadValue as error:
            raise BadMessage(place, str(error)) from None
        return Secret(text, value) if masked else text

    def _open_what_opens(self, body: dict[str, Any], _masked: bool) -> None:
        for name, value in body.items():
            if isinstance(value, str) and value.startswith(_FIRST_CHARACTERS):
                try:
                    body[name] = _text(self.keyring.open(value, _arrived.get()))
                except BadValue as error:
                    if str(error) != UNREADABLE:  # a true token that is too old, say, is not plain text
                        raise BadMessage("body[...]", str(error)) from None

    def route(self, route: Route) -> Route:
        """Return a route as it must be for these keys: of another class if the age of tokens counts."""
        if self.keyring.ttl is None:
            return route
        return DatedRoute(**attrs.asdict(route, recurse=False), keyring=self.keyring)


class _SealedCodec(Codec):
    """A codec whose decoders open what is encrypted."""

    def __init__(self, accept: Iterable[str], kind: Any, sealing: Sealing) -> None:
        super().__init__(accept, kind, sealing.secret)
        fields = sealing.fields(self._json, kind) if kind is not bytes else self._json
        whole = sealing.whole if sealing.section.encrypted else lambda decode: decode
        self._decoders = {name: whole(fields if decode is self._json else decode) for name, decode in self._decoders.items()}


@attrs.define
class DatedRoute(Route):
    """The route of a consumer for whose messages the age of tokens counts: from their first arrival, also after a retry."""

    keyring: Any = None

    def open(self, message: Message[Any]) -> None:
        """Open a message as any route does, with its first arrival as the time that tokens are looked at."""
        token = _arrived.set(self._first_arrival(message))
        try:
            Route.open(self, message)
        except BadMessage as error:
            if {error.reason, *(reason for _, reason in error.faults)} & {EXPIRED, FROM_FUTURE}:
                message.body = _OUT_OF_TIME
            raise
        finally:
            _arrived.reset(token)

    def arrival_mark(self, message: Message[Any]) -> str | None:
        """Write down for a copy when the message came for the first time, if that was in time.

        When our own clock was wrong, what was refused for its age can be replayed once it is right.
        """
        if message.body is _OUT_OF_TIME:
            return None
        mark: str = self.keyring.mark(self._first_arrival(message), message.payload)
        return mark

    def _first_arrival(self, message: Message[Any]) -> float:
        mark = message.headers.get(ARRIVAL_HEADER)
        first: float | None = None if mark is None else self.keyring.arrival(mark, message.payload)
        return message.received if first is None else first


def _untyped(kind: Any) -> bool:
    """Tell whether a body's type leaves open what is in it."""
    origin = typing.get_origin(kind) or kind
    return kind is Any or (origin in (dict, Mapping) and (typing.get_args(kind) or (Any,))[-1] is Any)


def _after(decode: Decode, open_in: Callable[[dict[str, Any], bool], None]) -> Decode:
    def opened(payload: bytes) -> Any:
        body = decode(payload)
        if isinstance(body, dict):
            open_in(body, True)
        return body

    return opened


def _ahead(decode: Decode, open_in: Callable[[dict[str, Any], bool], None]) -> Decode:
    anything = decode_json(Any)

    def opened(payload: bytes) -> Any:
        body = anything(payload)
        if isinstance(body, dict):
            open_in(body, False)
            try:
                payload = encode_json(body)
            except (ValueError, TypeError, OverflowError):  # a number that no JSON of ours can hold
                raise BadMessage("body", "not valid") from None
        return decode(payload)

    return opened


def _opener(kind: Any, hook: Callable[[Any, Any], Any]) -> Callable[[bytes], Any]:
    """Build what makes a value of a type of what a token holds."""
    bare = typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
    if bare is str or isinstance(bare, typing.TypeVar):
        return _text if bare is kind or isinstance(bare, typing.TypeVar) else lambda value: _converted(_text(value), kind)
    if bare is bytes:
        return bytes
    decode = decode_json(kind, hook)

    def opened(value: bytes) -> Any:
        try:
            return decode(value)
        except BadMessage as error:
            inside = error.place.removeprefix("body").lstrip(".")
            raise BadValue(f"{NOT_VALID}: {inside + ': ' if inside else ''}{error.reason}") from None

    return opened


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadValue(NOT_TEXT) from None


def _converted(text: str, kind: Any) -> Any:
    try:
        return msgspec.convert(text, kind)
    except msgspec.ValidationError:
        raise BadValue(NOT_VALID) from None
