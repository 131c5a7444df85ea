"""A layer that carries W3C trace context from a message through its handler to what that publishes, by OpenTelemetry.

Each run of a handler is a CONSUMER span, a child of what the message's headers name; each publication a PRODUCER span,
whose context goes out in its headers. Names and attributes are those of OpenTelemetry's conventions for messaging. What a
message says is in no span: no body, no header, no text of an exception.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from rpcd.core.errors import Drop, HaltConsumer, Nack, Problem, RequestFailed
from rpcd.core.handler import Handler, HandlerError, awaits
from rpcd.core.load import table as structured
from rpcd.core.message import Message

try:
    from opentelemetry import context, propagate, trace
    from opentelemetry.propagators.textmap import Getter
except ImportError as missing:
    raise HandlerError('the layer tracing needs OpenTelemetry: pip install "rpcd[tracing]"') from missing

ORDERED = (RequestFailed, Nack, Drop, HaltConsumer)
"""What handlers raise although nothing is wrong with them."""


def _mask(record: logging.LogRecord) -> bool:
    """Leave out of a record what a sender wrote: OpenTelemetry logs the headers that it can't read."""
    record.msg, record.args = str(record.msg).replace("%s", "..."), None
    return True


for _name in ("baggage", "baggage.propagation", "trace.span", "trace.propagation.tracecontext"):
    logging.getLogger(f"opentelemetry.{_name}").addFilter(_mask)


@attrs.frozen
class Tracing:
    """`[layers.tracing]`: there is nothing to set; what OpenTelemetry's SDK exports is the application's business."""


def check(table: Mapping[str, Any], _place: Path) -> tuple[Mapping[str, Any], list[Problem]]:
    """Find settings where there are none."""
    return {}, structured(table, Tracing)[1]


def layer(handler: Handler, _config: Mapping[str, Any]) -> Handler:
    """Run the handler within a span."""
    tracer = trace.get_tracer("rpcd")
    return _around_async(handler, tracer) if awaits(handler) else _around(handler, tracer)


def _around(handler: Handler, tracer: trace.Tracer) -> Handler:
    def around(message: Message[Any]) -> Any:
        span, token = _begin(message, tracer)
        try:
            return handler(message)
        except BaseException as error:
            _failed(span, error)
            raise
        finally:
            context.detach(token)
            span.end()

    return around


def _around_async(handler: Handler, tracer: trace.Tracer) -> Handler:
    async def around(message: Message[Any]) -> Any:
        span, token = _begin(message, tracer)
        try:
            return await handler(message)
        except BaseException as error:
            _failed(span, error)
            raise
        finally:
            context.detach(token)
            span.end()

    return around


class _Texts(Getter[Mapping[str, Any]]):
    """Reads those headers that are text."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return [key for key in carrier if isinstance(key, str)]


_TEXTS = _Texts()


def _begin(message: Message[Any], tracer: trace.Tracer) -> tuple[trace.Span, Any]:
    """Start the span of a message, make it the current one, and let what the handler publishes carry it on."""
    parent = propagate.extract(message.headers, context=context.Context(), getter=_TEXTS)
    span = tracer.start_span(
        f"process {_named(message.queue)}", parent, trace.SpanKind.CONSUMER, attributes=_received(message)
    )
    own = trace.set_span_in_context(span, parent)
    message.source = attrs.evolve(message.source, stamp=_stamp(tracer, own))
    return span, context.attach(own)


def _stamp(tracer: trace.Tracer, own: context.Context) -> Callable[[str, str], Mapping[str, str]]:
    """Build what makes the headers of a publication: they name a span of its own, in the trace of the message."""

    def stamp(exchange: str, routing_key: str) -> Mapping[str, str]:
        current = context.get_current()
        if not trace.get_current_span(current).get_span_context().is_valid:  # a thread that the handler has started
            current = own
        attributes = {
            "messaging.system": "rabbitmq",
            "messaging.operation.type": "send",
            "messaging.operation.name": "publish",
            "messaging.destination.name": ":".join(part for part in (exchange, routing_key) if part),
            "messaging.rabbitmq.destination.routing_key": routing_key,
        }
        name = f"publish {_named(exchange or routing_key)}"
        span = tracer.start_span(name, current, trace.SpanKind.PRODUCER, attributes=attributes)
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(span, current))
        span.end()
        return headers

    return stamp


def _named(destination: str) -> str:
    """Return a name for spans: there is no end of those that the broker has made."""
    return "(anonymous)" if destination.startswith(("amq.gen", "amq_", "amq.rabbitmq.reply-to")) else destination


def _received(message: Message[Any]) -> dict[str, str | int]:
    """Return what a span tells of a message: where it comes from and how big it is, never what it says."""
    parts = [str(message.exchange), _text(message.routing_key), message.queue]
    found: dict[str, str | int] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": ":".join(part for part in dict.fromkeys(parts) if part),
        "messaging.rabbitmq.destination.routing_key": _text(message.routing_key),
        "messaging.consumer.group.name": message.consumer,
        "messaging.message.body.size": len(message.payload),
        "rpcd.attempt": message.attempt,
    }
    for name, value in (("id", message.message_id), ("conversation_id", message.correlation_id)):
        if value is not None:
            found[f"messaging.message.{name}"] = _text(value)
    return found


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")


def _failed(span: trace.Span, error: BaseException) -> None:
    """Say by what type of exception a handler ended; its text may hold what the message said."""
    name = type(error).__qualname__
    if isinstance(error, ORDERED):
        span.set_attribute("rpcd.outcome", name)
        return
    span.set_attribute("error.type", name)
    span.set_status(trace.Status(trace.StatusCode.ERROR, name))
