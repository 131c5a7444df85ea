"""Who may be answered, and the bytes of the answer.

A reply is a JSON document with exactly `success` (bool), `data` (an object, never null) and `message` (string or null);
`reply = "plain"` sends a success as the bare value. The default exchange reaches every queue of a virtual host, and the
broker's permissions can't narrow that, so the name check here is what keeps a client from writing where it likes.
"""

import base64
import binascii
import fnmatch
from collections.abc import Set as AbstractSet
from typing import Any

import attrs
import msgspec

from rpcd.core.codec import encode_body
from rpcd.core.encoding import encode_json
from rpcd.core.errors import ReplyRefused, ReplyUnencodable
from rpcd.core.message import Message, Reply
from rpcd.core.outgoing import DIRECT_REPLY_TO, Outgoing
from rpcd.core.tables import ShortString, short
from rpcd.core.wire import Properties, write_properties

ENVELOPE = "envelope"
PLAIN = "plain"
NONE = "none"

DEFAULT_EXCHANGE = "default"
REQUEST_EXCHANGE = "request-exchange"

UNEXPECTED = "An unexpected error occurred"
"""What a caller is told of an exception that the handler did not mean to raise: its text could hold anything."""

_SERVER_NAMED = ("amq.gen-", "amq_")
_REMEMBERED = 1024

_ERLANG_VERSION = 131
_SMALLEST_TERM = 4
_ERLANG_ATOMS = {100: 2, 115: 1, 118: 2, 119: 1}  # tag: bytes of its length
_ERLANG_PIDS = {88: 12, 103: 9}  # tag: bytes behind the node's name


def direct_reply_token_is_whole(name: str) -> bool:
    """Tell whether a direct reply-to name has the form that the broker gave it.

    The broker closes the whole connection (541) over a token whose first part is a truncated or foreign Erlang term.
    """
    encoded, dot, key = name.removeprefix(DIRECT_REPLY_TO + ".").partition(".")
    try:
        term = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return False
    if (
        not dot
        or not key
        or len(term) < _SMALLEST_TERM
        or term[0] != _ERLANG_VERSION
        or term[1] not in _ERLANG_PIDS
        or term[2] not in _ERLANG_ATOMS
    ):
        return False
    size = _ERLANG_ATOMS[term[2]]
    node = int.from_bytes(term[3 : 3 + size], "big")
    return len(term) == 3 + size + node + _ERLANG_PIDS[term[1]]


@attrs.define
class Replies:
    """The reply policy of one consumer; built once at start, used in worker threads."""

    form: str = ENVELOPE
    via: str = DEFAULT_EXCHANGE
    allowed: tuple[str, ...] = ()
    own_queues: AbstractSet[str] = frozenset()
    max_reply: int = 8 * 1024 * 1024
    _checked: set[str] = attrs.field(factory=set, init=False)
    _named: str | None = attrs.field(default=None, init=False)

    def wanted(self, message: Message[Any]) -> bool:
        """Tell whether the sender waits for a reply that this consumer gives."""
        return message.properties.reply_to is not None and self.form != NONE

    def allows(self, message: Message[Any]) -> bool:
        """Tell whether a reply may be sent to where the sender wants it."""
        try:
            self.check(message.properties.reply_to or "")
        except ReplyRefused:
            return False
        return True

    def never_to(self, queue: str) -> None:
        """Never reply to this queue of rpcd's own, which the broker may just have named; reactor, ahead of its deliveries.

        It takes the place of the one before: every connection may bring a new name, and the old queue has gone.
        """
        self._named = queue
        self._checked.discard(queue)

    def check(self, reply_to: ShortString) -> None:
        """Raise ReplyRefused unless a reply may be sent to this name."""
        if reply_to in self._checked:
            return
        if not isinstance(reply_to, str) or not self._permitted(reply_to):
            raise ReplyRefused(f"reply_to is not allowed here: {self._why(reply_to)}")
        if len(self._checked) >= _REMEMBERED:
            self._checked.clear()
        self._checked.add(reply_to)

    def _is_own(self, name: ShortString) -> bool:
        return name == self._named or name in self.own_queues

    def _permitted(self, name: str) -> bool:
        if self._is_own(name):
            return False
        if name.startswith(DIRECT_REPLY_TO):
            return self.via == DEFAULT_EXCHANGE and direct_reply_token_is_whole(name)
        return name.startswith(_SERVER_NAMED) or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.allowed)

    def _why(self, name: ShortString) -> str:
        if self._is_own(name):
            return "it is a queue of rpcd's own"
        if not isinstance(name, str) or not name.startswith(DIRECT_REPLY_TO):
            return "name its queue in reply_to_allowed"
        if self.via != DEFAULT_EXCHANGE:
            return f"direct reply-to can't be reached with reply_via = {self.via!r}"
        return "it is no direct reply-to that a broker has made"

    def success(self, message: Message[Any], value: Any) -> Outgoing:
        """Encode what a handler returned; raise ReplyUnencodable when it can't be sent."""
        try:
            if self.form == PLAIN:
                body, kind = encode_body(value.data if isinstance(value, Reply) else value, None)
                return self._addressed(message, body, kind)
            text = None
            if isinstance(value, Reply):
                value, text = value.data, value.message
            return self._envelope(message, b"true", value, text)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise ReplyUnencodable(f"the reply can't be encoded: {error}") from error

    def failure(self, message: Message[Any], text: str | None, data: Any = None) -> Outgoing:
        """Encode a failure; it is the same document in every form. Raise ReplyUnencodable when it can't be sent."""
        try:
            return self._envelope(message, b"false", data, text)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise ReplyUnencodable(f"the reply can't be encoded: {error}") from error

    def _envelope(self, message: Message[Any], success: bytes, value: Any, text: str | None) -> Outgoing:
        data = b"{}" if value is None else encode_json(value)
        if not data.startswith(b"{"):
            data = b'{"result":' + data + b"}"
        said = b"null" if text is None else encode_json(str(text))
        return self._addressed(
            message, b'{"success":' + success + b',"data":' + data + b',"message":' + said + b"}", "application/json"
        )

    def _addressed(self, message: Message[Any], body: bytes, content_type: str) -> Outgoing:
        if len(body) > self.max_reply:
            raise ReplyUnencodable(f"the reply has {len(body)} bytes; max_reply allows {self.max_reply}")
        target = message.properties.reply_to or ""
        properties = Properties(content_type=content_type, correlation_id=message.properties.correlation_id)
        exchange = message.exchange if self.via == REQUEST_EXCHANGE else ""
        short(exchange, "the exchange")
        mandatory = not (isinstance(target, str) and target.startswith(DIRECT_REPLY_TO))
        return Outgoing(exchange, target, body, write_properties(properties), mandatory=mandatory)
