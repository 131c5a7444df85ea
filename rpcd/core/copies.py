"""Copies of a message for the retry and archive queues: what they keep, what they must not keep, what is added.

A copy keeps what identifies the request and the application's headers as the bytes they came as. It never keeps the
client's `expiration` (it would win over a longer step), nor `x-death` and its kin (the broker's cycle check deletes a
message that carries them when its step expires), nor `CC` and `BCC` (the broker would route the copy there as well), nor
`user_id` (the broker checks it against rpcd's own login).
"""

import datetime as dt
from typing import Any

import attrs

from rpcd.core.message import EXCHANGE_HEADER, PERSISTENT, ROUTING_KEY_HEADER, Message, Outgoing
from rpcd.core.retry import COUNT_HEADER, DEADLINE_HEADER, NACK_HEADER
from rpcd.core.tables import Headers, header, join_headers, split_headers
from rpcd.core.wire import Properties, write_properties

COPY_HEADER = "x-rpcd-copy"
"""A copy's own id, by which a returned or redelivered copy is told from every other message."""

MAX_HEADERS = 110_000
"""Bytes of headers that a copy may carry on: all properties must fit into one frame, 131,072 bytes with RabbitMQ."""

_DROPPED = frozenset(
    name.encode() for name in (COUNT_HEADER, NACK_HEADER, DEADLINE_HEADER, "x-death", "x-delivery-count", "CC", "BCC")
)
_DROPPED_FAMILIES = (b"x-first-death-", b"x-last-death-", b"x-rpcd-")


@attrs.frozen
class Circumstances:
    """What an archived message tells about the consumer that gave it up."""

    consumer: str
    handler: str
    host: str


def retry_queue(queue: str, step: int) -> str:
    """Name the queue of one retry step; `step` is in milliseconds."""
    return f"{queue}.retry.{step}"


def archive_queue(queue: str) -> str:
    """Name the queue that keeps what was given up."""
    return f"{queue}.archive"


def retriable(message: Message[Any]) -> bool:
    """Tell whether a copy can carry the message on unchanged: its headers can be read and fit into one frame."""
    headers = message.properties.headers
    return not isinstance(headers, Headers) or (headers.fault is None and _fits(_theirs(headers)))


def retry_copy(message: Message[Any], queue: str, step: int, count: int, nacks: int, token: str) -> Outgoing:
    """Make the copy that waits in a retry step; `count` retries will then lie behind it, `token` is its own id."""
    own = {
        COUNT_HEADER: count,
        NACK_HEADER: nacks or None,
        DEADLINE_HEADER: message.deadline,
        COPY_HEADER: token,
        EXCHANGE_HEADER: message.exchange,
        ROUTING_KEY_HEADER: message.routing_key,
    }
    return _copy(message, retry_queue(queue, step), own, token)


def archive_copy(
    message: Message[Any], archive: str, who: Circumstances, reason: str, error: str | None, now: float, token: str
) -> Outgoing:
    """Make the copy that goes to the archive, with the circumstances in its headers; `now` is in seconds since the epoch."""
    own = {
        COUNT_HEADER: message.attempt - 1,
        DEADLINE_HEADER: message.deadline,
        COPY_HEADER: token,
        EXCHANGE_HEADER: message.exchange,
        ROUTING_KEY_HEADER: message.routing_key,
        "x-rpcd-reason": printable(reason),
        "x-rpcd-exception": error,
        "x-rpcd-attempt": message.attempt,
        "x-rpcd-handler": who.handler or None,  # no handler was to have what came from an unknown exchange
        "x-rpcd-consumer": who.consumer,
        "x-rpcd-queue": message.queue,
        "x-rpcd-host": who.host,
        "x-rpcd-time": dt.datetime.fromtimestamp(now, dt.timezone.utc).isoformat(timespec="milliseconds"),
    }
    return _copy(message, archive, own, token)


def printable(text: str, most: int = 1000) -> str:
    """Return text that every header and log can hold: cut, and without lone surrogates."""
    return text[:most].encode(errors="replace").decode()


def _copy(message: Message[Any], queue: str, own: dict[str, Any], token: str) -> Outgoing:
    came = message.properties
    entries = _kept(came.headers) if isinstance(came.headers, Headers) else []
    entries += [header(name, value) for name, value in own.items() if value is not None]
    properties = Properties(
        content_type=came.content_type,
        content_encoding=came.content_encoding,
        headers=join_headers(entries),
        delivery_mode=PERSISTENT,
        correlation_id=came.correlation_id,
        reply_to=came.reply_to,
        message_id=came.message_id,
        timestamp=came.timestamp,
        type=came.type,
        app_id=came.app_id,
    )
    return Outgoing("", queue, message.payload, write_properties(properties), mandatory=True, token=token)


def _kept(headers: Headers) -> list[bytes]:
    """Return the header entries that go on; what can't be read or is too big is wrapped or left, and said so."""
    unread = headers.fault is not None  # then as one byte array: whoever reads the archive can't choke on it
    kept = [header("x-rpcd-headers", headers.raw)] if unread else _theirs(headers)
    return kept if _fits(kept) else [header("x-rpcd-headers-dropped", sum(map(len, kept)))]


def _theirs(headers: Headers) -> list[bytes]:
    """Return the application's entries: not the broker's, and not those of an earlier copy."""
    return [
        entry
        for name, entry in split_headers(headers.raw)
        if name not in _DROPPED and not name.startswith(_DROPPED_FAMILIES)
    ]


def _fits(entries: list[bytes]) -> bool:
    return sum(map(len, entries)) <= MAX_HEADERS
