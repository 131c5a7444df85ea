"""Copies of a message for the retry and archive queues: what they keep, what they must not keep, what is added.

A copy keeps what identifies the request and the application's headers as the bytes they came as. It never keeps the
client's `expiration` (it would win over a longer step), nor `x-death` and its kin (the broker's cycle check deletes a
message that carries them when its step expires), nor `CC` and `BCC` (the broker would route the copy there as well), nor
`user_id` (the broker checks it against rpcd's own login).

A replay is a copy from the archive back to its queue, by the same law. It begins anew: its attempts are counted from one,
and a deadline that has passed is left behind, for whoever replays wants it run. That it was replayed stays on later copies.
"""

import datetime as dt
from typing import Any

import attrs

from rpcd.core.message import EXCHANGE_HEADER, ROUTING_KEY_HEADER, Message
from rpcd.core.outgoing import PERSISTENT, Outgoing
from rpcd.core.retry import COUNT_HEADER, DEADLINE_HEADER, NACK_HEADER, counted
from rpcd.core.tables import Headers, ShortString, header, join_headers, split_headers
from rpcd.core.verdict import Outcome, Verdict
from rpcd.core.wire import Properties, write_properties

COPY_HEADER = "x-rpcd-copy"
"""A copy's own id, by which a returned or redelivered copy is told from every other message."""

REPLAYED_HEADER = "x-rpcd-replayed"
"""How often a message was replayed from an archive."""

REPLAYED_TIME_HEADER = "x-rpcd-replayed-time"
"""When it was last replayed."""

ARRIVAL_HEADER = "x-rpcd-arrival"
"""When the message came for the first time, signed; only where the age of encrypted values counts."""

HEADERS_HEADER = "x-rpcd-headers"
"""Headers that can't be read, as one byte array."""

HEADERS_LOST = "x-rpcd-headers-dropped"
"""How many bytes the headers had that were too big for a copy."""

MOST_REPLAYS = 1_000_000
"""What the count of replays is clamped to."""

MAX_HEADERS = 110_000
"""Bytes of headers that a copy may carry on: all properties must fit into one frame, 131,072 bytes with RabbitMQ."""

_DROPPED = frozenset(
    name.encode() for name in (COUNT_HEADER, NACK_HEADER, DEADLINE_HEADER, "x-death", "x-delivery-count", "CC", "BCC")
)
_DROPPED_FAMILIES = (b"x-first-death-", b"x-last-death-", b"x-rpcd-")
_MARKS = frozenset((REPLAYED_HEADER.encode(), REPLAYED_TIME_HEADER.encode(), ARRIVAL_HEADER.encode()))


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


def retry_copy(
    message: Message[Any], queue: str, step: int, count: int, nacks: int, token: str, arrival: str | None = None
) -> Outgoing:
    """Make the copy that waits in a retry step; `count` retries will then lie behind it, `token` is its own id."""
    own = {
        ARRIVAL_HEADER: arrival,
        COUNT_HEADER: count,
        NACK_HEADER: nacks or None,
        DEADLINE_HEADER: message.deadline,
        COPY_HEADER: token,
        EXCHANGE_HEADER: message.exchange,
        ROUTING_KEY_HEADER: message.routing_key,
    }
    return _copy(message.properties, message.payload, "", retry_queue(queue, step), own, token)


def archive_copy(
    message: Message[Any],
    archive: str,
    who: Circumstances,
    reason: str,
    error: str | None,
    now: float,
    token: str,
    arrival: str | None = None,
) -> Outgoing:
    """Make the copy that goes to the archive, with the circumstances in its headers; `now` is in seconds since the epoch."""
    own = {
        ARRIVAL_HEADER: arrival,
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
        "x-rpcd-time": _written(now),
    }
    return _copy(message.properties, message.payload, "", archive, own, token)


def copy_of(
    outcome: Outcome,
    message: Message[Any],
    title: str,
    who: Circumstances,
    now: float,
    token: str,
    arrival: str | None = None,
) -> Outgoing:
    """Make the copy that an outcome asks for: for a retry step, or else for the archive.

    `title` is what retry and archive queues are named after; `now` is in seconds since the epoch; `arrival` is what the
    route says of the first arrival.
    """
    if outcome.verdict is Verdict.RETRY:
        return retry_copy(message, title, outcome.step, outcome.count, outcome.nacks, token, arrival)
    return archive_copy(message, archive_queue(title), who, outcome.reason, outcome.error, now, token, arrival)


def replay_copy(
    came: Properties,
    body: bytes,
    exchange: str,
    routing_key: ShortString,
    first: tuple[ShortString, ShortString] | None,
    token: str,
    now: float,
) -> Outgoing:
    """Make the copy by which an archived message goes back to work; `now` is in seconds since the epoch.

    `first` is the exchange and key that it was first published with, if its handler is to see those. `token`, its own id, is
    the same whenever the same archived message is replayed, so that a second one can be recognised.
    """
    headers = came.headers if isinstance(came.headers, Headers) else Headers()
    limit = headers.get(DEADLINE_HEADER)
    alive = isinstance(limit, int | float) and not isinstance(limit, bool) and limit > now
    own = {
        DEADLINE_HEADER: limit if alive else None,
        COPY_HEADER: token,
        EXCHANGE_HEADER: first[0] if first is not None else None,
        ROUTING_KEY_HEADER: first[1] if first is not None else None,
        REPLAYED_HEADER: counted(headers, REPLAYED_HEADER, MOST_REPLAYS) + 1,
        REPLAYED_TIME_HEADER: _written(now),
    }
    return _copy(came, body, exchange, routing_key, own, token)


def _written(now: float) -> str:
    return dt.datetime.fromtimestamp(now, dt.timezone.utc).isoformat(timespec="milliseconds")


def printable(text: str, most: int = 1000) -> str:
    """Return text that every header and log can hold: cut, and without lone surrogates."""
    return text[:most].encode(errors="replace").decode()


def _copy(
    came: Properties, body: bytes, exchange: str, routing_key: ShortString, own: dict[str, Any], token: str
) -> Outgoing:
    said = {name.encode() for name in own}
    entries = _kept(came.headers, said) if isinstance(came.headers, Headers) else []
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
    return Outgoing(exchange, routing_key, body, write_properties(properties), mandatory=True, token=token)


def _kept(headers: Headers, said: set[bytes]) -> list[bytes]:
    """Return the entries that go on, but for those that are `said` anew; what can't be kept is told instead."""
    unread = headers.fault is not None  # then as one byte array: whoever reads the archive can't choke on it
    kept = [header(HEADERS_HEADER, headers.raw)] if unread else _theirs(headers, said)
    return kept if _fits(kept) else [header(HEADERS_LOST, sum(map(len, kept)))]


def _theirs(headers: Headers, said: set[bytes] | frozenset[bytes] = frozenset()) -> list[bytes]:
    """Return the application's entries, and the marks of a replay: not the broker's, and not those of an earlier copy."""
    return [
        entry
        for name, entry in split_headers(headers.raw)
        if name not in said and (name in _MARKS or (name not in _DROPPED and not name.startswith(_DROPPED_FAMILIES)))
    ]


def _fits(entries: list[bytes]) -> bool:
    return sum(map(len, entries)) <= MAX_HEADERS
