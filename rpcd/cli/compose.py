"""What a command sends: the body and the properties, from options or from a line of a file."""

import base64
import binascii
import struct
import sys
import uuid
from collections.abc import Callable
from typing import Annotated, Any

import click
import msgspec

from rpcd.cli.show import end
from rpcd.core.codec import JSON
from rpcd.core.copies import COPY_HEADER
from rpcd.core.outgoing import Outgoing, outgoing
from rpcd.core.tables import Headers, short
from rpcd.core.wire import read_properties

USAGE = 2
"""The exit code of what was asked for wrongly; click's own."""

_OPTIONS = (
    click.option(
        "--header",
        "headers",
        multiple=True,
        metavar="NAME=VALUE",
        help="Add a header, as text; NAME:=JSON gives a number, a boolean or a table. May be repeated.",
    ),
    click.option("--message-id", metavar="TEXT", help="The message's id."),
    click.option("--correlation-id", metavar="TEXT", help="What the sender tells replies apart by."),
    click.option("--type", metavar="TEXT", help="The message's type, as the application calls it."),
    click.option("--priority", type=click.IntRange(0, 255), metavar="N", help="The priority; a queue must be made for it."),
    click.option(
        "--expiration",
        type=click.FloatRange(min=0, max=4_000_000),
        metavar="SECONDS",
        help="How long it may wait in a queue.",
    ),
)


def message_options(*left_out: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options for headers and properties to a command, which gets those that were given as `properties`."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        wanted = [option for option in _OPTIONS if not _names(option) & set(left_out)]
        names = {name for option in wanted for name in _names(option)}

        def with_properties(*arguments: Any, **options: Any) -> Any:
            given = {name: options.pop(name) for name in names}
            properties = {name: value for name, value in given.items() if name != "headers" and value is not None}
            if given.get("headers"):
                properties["headers"] = _headers(given["headers"])
            return command(*arguments, properties=properties, **options)

        with_properties.__name__, with_properties.__doc__ = command.__name__, command.__doc__
        with_properties.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
        for option in reversed(wanted):
            option(with_properties)
        return with_properties

    return add


def _names(option: Callable[..., Any]) -> set[str]:
    """Return the parameters that an option of click's adds."""

    def probe() -> None:
        """Take the option."""

    option(probe)
    return {parameter.name for parameter in probe.__click_params__}  # type: ignore[attr-defined]


def _headers(given: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in given:
        name, separator, value = each.partition("=")
        typed = name.endswith(":")
        name = name.removesuffix(":")
        if not separator or not name:
            end(f"--header {each}: expected NAME=VALUE, or NAME:=JSON", USAGE)
        try:
            found[name] = msgspec.json.decode(value.encode()) if typed else value
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            end(f"--header {each}: {name} is not JSON: {error}", USAGE)
    return found


def given_body(text: str) -> bytes:
    """Return the JSON argument, or standard input for `-`, exactly as it was written; end with 2 if it is no JSON."""
    try:
        raw = sys.stdin.buffer.read() if text == "-" else text.encode()
        return json_body(raw)
    except UnicodeEncodeError as error:
        end(f"the body is not UTF-8: {error.reason}", USAGE)
    except ValueError as error:
        end(str(error), USAGE)


def json_body(raw: bytes) -> bytes:
    """Return JSON as it is written, without the white space around it; raise ValueError if it is none."""
    try:
        msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    return raw.strip()


def composed(exchange: str, key: str, body: bytes, **options: Any) -> Outgoing:
    """Encode a message with a JSON body; end with 2 if AMQP has no form for it."""
    try:
        return outgoing(exchange, key, body, **{"content_type": JSON, **options})
    except UnicodeEncodeError as error:
        end(f"an argument is not UTF-8: {error.reason}", USAGE)
    except (TypeError, ValueError) as error:
        end(str(error), USAGE)


# Lines of a file ----------------------------------------------------------------------------------


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """One line of `rpcd publish --messages`: what is given wins over the command line."""

    exchange: str | None = None
    routing_key: str | None = None
    body: msgspec.Raw = msgspec.Raw(b"null")
    body_base64: str | None = None
    headers: dict[str, Any] | None = None
    message_id: str | None = None
    correlation_id: str | None = None
    type: str | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    expiration: Annotated[float, msgspec.Meta(ge=0, le=4_000_000)] | None = None
    reply_to: str | None = None
    content_type: str | None = None
    properties_base64: str | None = None
    """All properties and headers as AMQP writes them; they win over every other word about them."""
    archived: dict[str, Any] | None = None
    """What `rpcd archive export` tells about the message; it is not published."""


_PROPERTIES = ("headers", "message_id", "correlation_id", "type", "priority", "expiration", "reply_to", "content_type")

_read_line = msgspec.json.Decoder(Line).decode


class Composer:
    """Makes a message of each line, with what the command line says about all of them."""

    def __init__(self, exchange: str, key: str, whole_messages: bool, **options: Any) -> None:
        """Take what holds for all lines; with `whole_messages` a line is an object that may say otherwise."""
        self._exchange = exchange
        self._key = key
        self._options = options
        self._make = self._whole if whole_messages else self._plain

    def make(self, line: bytes) -> Outgoing:
        """Make the message of a line; raise ValueError with a sentence if it is none."""
        try:
            return self._make(line)
        except (msgspec.DecodeError, TypeError, RecursionError) as error:
            raise ValueError(f"not a message: {error}") from None

    def _plain(self, line: bytes) -> Outgoing:
        return self._outgoing(self._exchange, self._key, json_body(line), {"content_type": JSON})

    def _whole(self, line: bytes) -> Outgoing:
        found = _read_line(line)
        if found.properties_base64 is not None or found.archived is not None:
            return self._exported(found)
        own = {name: value for name in _PROPERTIES if (value := getattr(found, name)) is not None}
        exchange = self._exchange if found.exchange is None else found.exchange
        key = self._key if found.routing_key is None else found.routing_key
        if found.body_base64 is not None:
            return self._outgoing(exchange, key, _decoded(found.body_base64), own)
        if str(own.get("content_type", JSON)).startswith("text/"):
            return self._outgoing(exchange, key, msgspec.json.decode(found.body, type=str), own)
        return self._outgoing(exchange, key, json_body(bytes(found.body)), {"content_type": JSON, **own})

    def _exported(self, line: Line) -> Outgoing:
        """Make the message of a line that holds its properties in full."""
        why = (line.archived or {}).get("hindrance")
        if line.properties_base64 is None:
            raise ValueError(f"it can't be published again: {why or 'properties_base64 is missing'}")
        exchange = self._exchange if line.exchange is None else line.exchange
        key = self._key if line.routing_key is None else line.routing_key
        body = json_body(bytes(line.body)) if line.body_base64 is None else _decoded(line.body_base64)
        encoded = _decoded(line.properties_base64, "properties_base64")
        try:
            found = read_properties(encoded)
        except (IndexError, struct.error) as error:
            raise ValueError(f"properties_base64 holds no properties: {error}") from None
        short(exchange, "the exchange")
        short(key, "the routing key")
        headers = found.headers if isinstance(found.headers, Headers) else Headers()
        token = headers.get(COPY_HEADER, found.message_id)
        mandatory = bool(self._options.get("mandatory"))
        return Outgoing(exchange, key, body, encoded, mandatory=mandatory, token=token if isinstance(token, str) else "")

    def _outgoing(self, exchange: str, key: str, body: Any, own: dict[str, Any]) -> Outgoing:
        options = {"message_id": str(uuid.uuid4()), **self._options, **own}
        return outgoing(exchange, key, body, **options)


def _decoded(text: str, field: str = "body_base64") -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{field} is not base64: {error}") from None
