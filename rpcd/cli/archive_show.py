"""How archived messages are shown: a row, an object of JSON, all about one, a line of a file that publishes it again.

An archive keeps secrets: whole requests. A row and its JSON show neither a body nor a header of the application's; all about
one message shows the names of those headers, their values and the body only if asked. A line of a file holds everything.
"""

import base64
import datetime as dt
from collections.abc import Iterator
from typing import Any

import msgspec

from rpcd.cli.copies import readable_body, readable_value
from rpcd.cli.show import json_line, json_printable, printable
from rpcd.core.archived import Archived, shown_age
from rpcd.core.copies import HEADERS_HEADER
from rpcd.core.outgoing import Outgoing
from rpcd.core.wire import Properties

COLUMNS = ("age", "id", "reason", "exception", "attempts", "first published to", "size")

OWN = ("x-rpcd-", "x-retry-count", "x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-deadline")
"""Headers of rpcd's and the broker's own: they hold names and numbers, no secrets."""

LONGEST_REASON = 60
"""Characters of a reason that a row shows."""

_NAMES = tuple(name for name in Properties.__annotations__ if name != "headers")


def row(message: Archived, now: float) -> tuple[str, ...]:
    """Show a message as a row of a table, control characters escaped."""
    reason = message.reason if len(message.reason) <= LONGEST_REASON else f"{message.reason[: LONGEST_REASON - 3]}..."
    replayed = f" (replayed {message.replayed}x)" if message.replayed else ""
    first = f"{_text(message.exchange)}/{_text(message.routing_key)}"
    cells = (message.id, reason, message.exception or "-", f"{message.attempts}{replayed}", first, str(message.size))
    return (shown_age(message.age(now)), *map(printable, cells))


def summary(message: Archived) -> dict[str, Any]:
    """Show a message as JSON: what is known of how it came here, and nothing of what is in it."""
    properties = message.properties
    return {
        "archive": message.archive,
        "id": message.id,
        "ids": list(message.names),
        "time": _moment(message.time),
        "reason": message.reason,
        "exception": message.exception,
        "attempts": message.attempts,
        "handler": message.handler,
        "consumer": message.consumer,
        "host": message.host,
        "queue": message.queue,
        "exchange": _text(message.exchange),
        "routing_key": _text(message.routing_key),
        "by_broker": message.by_broker,
        "replayed": message.replayed,
        "size": message.size,
        "correlation_id": _text(properties.correlation_id),
        "content_type": _text(properties.content_type),
        "hindrance": message.hindrance,
    }


def as_json(message: Archived) -> str:
    """Show a message as one line of JSON."""
    return json_line(summary(message))


def details_json(message: Archived, headers: bool, body: bool) -> str:
    """Show all about a message as one line of JSON; values of headers and the body only if asked."""
    found = summary(message) | {
        "properties": {name: _text(value) for name, value in _given(message.properties)},
        "headers": {name: value for name, value in message.headers.items() if headers or _harmless(name)},
        "headers_hidden": [name for name in message.headers if not headers and not _harmless(name)],
    }
    return _with_body(json_line(found), message.body) if body else json_line(found)


def details(message: Archived, headers: bool, body: bool, now: float) -> Iterator[str]:
    """Show all about a message for people; values of headers and the body only if asked."""
    yield f"{printable(message.id)}  in {printable(message.archive)}  {message.size} bytes"
    shown = summary(message)
    shown["time"] = f"{shown['time'] or 'unknown'} ({shown_age(message.age(now))} ago)" if message.time else "unknown"
    for name in ("ids", "archive", "id", "size", "correlation_id", "content_type"):
        del shown[name]
    for name, value in shown.items():
        if value is not None and value is not False:
            yield f"  {name.replace('_', ' ')}: {printable(str(value))}"
    for name, value in _given(message.properties):
        yield f"  property {name}: {printable(str(_text(value)))}"
    for name, value in message.headers.items():
        visible = headers or _harmless(name)
        yield f"  header {printable(name)} = {readable_value(value) if visible else 'hidden: say --headers'}"
    if not body:
        yield "  the body is hidden: say --body"
    elif message.body:
        yield readable_body(message.body)


def export_line(message: Archived, copy: Outgoing | None, why: str | None) -> str:
    """Write a message down in full, as `rpcd publish --messages` takes it; `why` tells why it can't be published again."""
    found: dict[str, Any] = {}
    if copy is not None:
        found |= {"exchange": copy.exchange, "routing_key": _text(copy.routing_key)}
        found["properties_base64"] = base64.b64encode(copy.properties).decode()
    about = summary(message) | {"hindrance": why, "headers": message.headers}
    about["properties"] = {name: _text(value) for name, value in _given(message.properties)}
    about["headers_base64"] = base64.b64encode(message.headers.raw).decode()
    return _with_body(json_line(found | {"archived": about}), message.body)


def _harmless(name: str) -> bool:
    return name.startswith(OWN) and name != HEADERS_HEADER


def _with_body(line: str, body: bytes) -> str:
    """Add a body: as it is if that is JSON which fits a line, else as base64; to the last byte in both cases."""
    try:
        text = body.decode()
        msgspec.json.decode(body)
        exact = text == text.strip() and json_printable(text) == text and not set(text) & set("\r\n\t")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        exact = False
    shown = f'"body":{body.decode()}' if exact else f'"body_base64":"{base64.b64encode(body).decode()}"'
    return f"{line[:-1]},{shown}}}"


def _given(properties: Properties) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name in _NAMES if (value := getattr(properties, name)) is not None)


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return dt.datetime.fromtimestamp(seconds, dt.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: Any) -> Any:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
