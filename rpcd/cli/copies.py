"""How `rpcd tail` shows a message: readable for people, or as one JSON object a line."""

import base64
import datetime as dt
from collections.abc import Iterator
from typing import Any

import attrs
import click
import msgspec

from rpcd.cli.show import json_line, json_printable, printable, printable_lines
from rpcd.core.tables import Headers, ShortString
from rpcd.core.wire import Properties

SHOWN = 8192
"""Bytes of a body that people get to see."""

BINARY = 64
"""Bytes that they see of a body that is no text."""

_NAMES = tuple(name for name in Properties.__annotations__ if name != "headers")


@attrs.frozen
class Copy:
    """One message as it passed."""

    time: float
    """Seconds since the epoch."""
    exchange: ShortString
    routing_key: ShortString
    properties: Properties
    body: bytes

    @property
    def headers(self) -> Headers:
        """The headers; empty when there are none."""
        found = self.properties.headers
        return found if isinstance(found, Headers) else Headers()


def as_json(copy: Copy, bodies: bool) -> str:
    """Show a message as one line of JSON: `body` if it is JSON, else `body_base64`."""
    moment = dt.datetime.fromtimestamp(copy.time, dt.timezone.utc)
    found: dict[str, Any] = {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "exchange": _text(copy.exchange),
        "routing_key": _text(copy.routing_key),
        **{name: _text(value) for name in _NAMES if (value := getattr(copy.properties, name)) is not None},
        "size": len(copy.body),
    }
    if copy.properties.headers is not None:
        found["headers"] = copy.headers
    if copy.headers.fault is not None:
        found["headers_fault"] = copy.headers.fault
    line = json_line(found)
    if not bodies:
        return line
    written = _as_written(copy.body)
    body = f'"body":{written}' if written is not None else f'"body_base64":"{base64.b64encode(copy.body).decode()}"'
    return f"{line[:-1]},{body}}}"


def _as_written(body: bytes) -> str | None:
    """Return JSON on one line, its numbers as they are written; None if the body is no JSON."""
    try:
        msgspec.json.decode(body)
        return json_printable(msgspec.json.format(body, indent=-1).decode())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _text(value: Any) -> Any:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def readable(copy: Copy, bodies: bool) -> str:
    """Show a message for people; what could give a terminal orders is escaped."""
    return "\n".join(_readable(copy, bodies))


def _readable(copy: Copy, bodies: bool) -> Iterator[str]:
    moment = dt.datetime.fromtimestamp(copy.time).astimezone()
    names = [printable(str(_text(each))) for each in (copy.exchange, copy.routing_key)]
    head = [
        moment.strftime("%H:%M:%S.") + f"{moment.microsecond // 1000:03d}",
        *(click.style(name, bold=True) for name in names),
    ]
    yield "  ".join([*head, f"{len(copy.body)} bytes"])
    given = [
        f"{name}: {printable(str(_text(value)))}" for name in _NAMES if (value := getattr(copy.properties, name)) is not None
    ]
    if given:
        yield click.style("  " + "  ".join(given), dim=True)
    for name, value in copy.headers.items():
        yield f"  {printable(name)} = {readable_value(value)}"
    if copy.headers.fault is not None:
        yield f"  headers can't be read: {printable(copy.headers.fault)}"
    if bodies and copy.body:
        yield readable_body(copy.body)


def readable_value(value: Any) -> str:
    """Show the value of a header on one line."""
    if isinstance(value, str):
        return printable(value)
    try:
        return json_line(value)
    except (TypeError, ValueError):
        return printable(repr(value))


def readable_body(body: bytes) -> str:
    """Show a body: JSON in order, text as it is, the beginning of anything else."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        more = f" ... ({len(body)} bytes)" if len(body) > BINARY else ""
        return f"  not text: {body[:BINARY].hex(' ')}{more}"
    written = _as_written(body) if len(body) <= SHOWN else None
    if written is not None:
        text = msgspec.json.format(written, indent=2)
    shown, rest = text[:SHOWN], text[SHOWN:]
    lines = [f"  {line}" for line in printable_lines(shown.replace("\r\n", "\n")).split("\n")]
    return "\n".join(lines) + (f"\n  ... ({len(rest)} characters more)" if rest else "")
