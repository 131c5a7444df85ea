"""What an archived message tells about itself, and which of them somebody means.

rpcd's own archive copies tell it in `x-rpcd-*` headers (see `core.copies`). What the broker dead-lettered by itself
(`Drop()`, the delivery limit) has `x-death` instead, whose first entry is the last death. Both may hold anything: who can
write to a queue can write headers, so nothing here trusts a type.
"""

import datetime as dt
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import attrs

from rpcd.core.copies import COPY_HEADER, HEADERS_HEADER, HEADERS_LOST, MAX_HEADERS, REPLAYED_HEADER
from rpcd.core.message import EXCHANGE_HEADER, ROUTING_KEY_HEADER
from rpcd.core.retry import COUNT_HEADER, counted
from rpcd.core.tables import Headers, ShortString, split_headers
from rpcd.core.wire import Properties

DELIVERIES_HEADER = "x-delivery-count"

MOST_COUNTED = 1_000_000
"""What a counter is clamped to: a client may have written anything there."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


@attrs.frozen
class Archived:
    """One message as it lies in an archive."""

    archive: str
    properties: Properties
    body: bytes
    size: int
    """Bytes of the body, even where that is not kept."""
    names: tuple[str, ...]
    """What it may be called by: its message id, the id of its copy; a fingerprint if it has neither."""
    by_broker: bool
    """Whether the broker dead-lettered it by itself."""
    reason: str
    exception: str | None
    attempts: int
    handler: str | None
    consumer: str | None
    host: str | None
    queue: str | None
    """Where it was given up."""
    time: float | None
    """When, in seconds since the epoch."""
    exchange: ShortString
    """What it was first published to, as far as that is known."""
    routing_key: ShortString
    replayed: int
    """How often it was replayed before."""

    @property
    def headers(self) -> Headers:
        """The headers; empty when there are none."""
        found = self.properties.headers
        return found if isinstance(found, Headers) else Headers()

    @property
    def id(self) -> str:
        """What it is called in a list."""
        return self.names[0]

    def age(self, now: float) -> float | None:
        """Return how many seconds ago it was given up."""
        return None if self.time is None else max(0.0, now - self.time)

    @property
    def hindrance(self) -> str | None:
        """Tell why no copy can carry it on unchanged; None if one can."""
        headers = self.headers
        if headers.fault is not None or HEADERS_HEADER in headers:
            return "its headers can't be read"
        if HEADERS_LOST in headers:
            return "its headers were too big to be kept"
        return "its headers are too big" if len(headers.raw) > MAX_HEADERS else None


def describe(archive: str, exchange: ShortString, routing_key: ShortString, properties: Properties, body: bytes) -> Archived:
    """Say what a message from an archive tells; `exchange` and `routing_key` are those that it came there by."""
    found = properties.headers
    headers: Mapping[str, Any] = found if isinstance(found, Headers) else {}
    death = _death(headers)
    by_broker = death is not None  # rpcd's own copies never carry it
    keys = (death or {}).get("routing-keys")
    first = keys[0] if isinstance(keys, list) and keys else None
    return Archived(
        archive=archive,
        properties=properties,
        body=body,
        size=len(body),
        names=_names(properties, headers, body),
        by_broker=by_broker,
        reason=_reason(headers, death),
        exception=_text(headers.get("x-rpcd-exception")) if not by_broker else None,
        attempts=counted(headers, COUNT_HEADER, MOST_COUNTED) + 1,
        handler=_text(headers.get("x-rpcd-handler")) if not by_broker else None,
        consumer=_text(headers.get("x-rpcd-consumer")) if not by_broker else None,
        host=_text(headers.get("x-rpcd-host")) if not by_broker else None,
        queue=_text(death.get("queue") if death is not None else headers.get("x-rpcd-queue")),
        time=_seconds(death.get("time") if death is not None else headers.get("x-rpcd-time")),
        exchange=_short(headers.get(EXCHANGE_HEADER), _short((death or {}).get("exchange"), exchange)),
        routing_key=_short(headers.get(ROUTING_KEY_HEADER), _short(first, routing_key)),
        replayed=counted(headers, REPLAYED_HEADER, MOST_COUNTED),
    )


def fingerprint(properties: Properties, body: bytes) -> str:
    """Return what this archived message, and no other, is known by, however often it is read.

    Equal for two that are equal in body, ids and headers. The broker's own count of deliveries is left out, and so is the
    order of the headers: with that count the broker sorts them.
    """
    headers = properties.headers
    digest = hashlib.sha256(f"{properties.message_id!r} {properties.correlation_id!r} {len(body)} ".encode())
    if isinstance(headers, Headers):
        digest.update(b"".join(sorted(_entries(headers))))
    digest.update(body)
    return digest.hexdigest()[:16]


def _entries(headers: Headers) -> list[bytes]:
    try:
        return [entry for name, entry in split_headers(headers.raw) if name != DELIVERIES_HEADER.encode()]
    except ValueError:
        return [headers.raw]  # a cut table, which nobody replays


def _death(headers: Mapping[str, Any]) -> Mapping[str, Any] | None:
    deaths = headers.get("x-death")
    return deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping) else None


def _names(properties: Properties, headers: Mapping[str, Any], body: bytes) -> tuple[str, ...]:
    found = [text for value in (properties.message_id, headers.get(COPY_HEADER)) if (text := _text(value))]
    return tuple(found) or (fingerprint(properties, body),)


def _reason(headers: Mapping[str, Any], death: Mapping[str, Any] | None) -> str:
    if death is not None:
        return f"dead-lettered: {_text(death.get('reason')) or 'unknown'}"
    return _text(headers.get("x-rpcd-reason")) or "unknown"


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else None


def _short(value: Any, otherwise: ShortString) -> ShortString:
    return value if isinstance(value, str | bytes) else otherwise


def _seconds(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value)
        except ValueError:
            return None
    try:
        return float(value.timestamp()) if isinstance(value, dt.datetime) and value.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


# Which of them are meant --------------------------------------------------------------------------


@attrs.frozen
class Wanted:
    """Which messages somebody means: those that everything which is said here holds for."""

    ids: frozenset[str] = frozenset()
    reason: str | None = None
    """A part of the reason, in capitals or not."""
    exception: str | None = None
    handler: str | None = None
    correlation_id: str | None = None
    before: float | None = None
    """Given up before this time, in seconds since the epoch."""
    after: float | None = None

    @property
    def everything(self) -> bool:
        """Whether every message is meant."""
        return self == Wanted()

    def matches(self, message: Archived) -> bool:
        """Tell whether a message is meant; one that does not say when it was given up is neither older nor newer."""
        return (
            (not self.ids or not self.ids.isdisjoint(message.names))
            and (self.reason is None or self.reason.casefold() in message.reason.casefold())
            and (self.exception is None or message.exception == self.exception)
            and (self.handler is None or message.handler == self.handler)
            and (self.correlation_id is None or _text(message.properties.correlation_id) == self.correlation_id)
            and (self.before is None or (message.time is not None and message.time < self.before))
            and (self.after is None or (message.time is not None and message.time > self.after))
        )


def read_age(text: str) -> float:
    """Read an age (`90s`, `5m`, `2h`, `3d`, `1w`, or several: `1d12h`) as seconds; raise ValueError if it is none."""
    parts = _AGE.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is no age: write a number and s, m, h, d or w, as in 90s, 5m, 2h, 3d")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def shown_age(seconds: float | None) -> str:
    """Write an age in its two largest units, as `read_age` reads it; `?` if it is not known."""
    if seconds is None:
        return "?"
    rest, parts = int(seconds), list[tuple[int, str]]()
    for unit in "dhms":
        number, rest = divmod(rest, _UNITS[unit])
        if number or parts:
            parts.append((number, unit))
    return "".join(f"{number}{unit}" for number, unit in parts[:2] if number) or "0s"
