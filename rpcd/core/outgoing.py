"""What is to be sent: values only."""

import math
from collections.abc import Mapping
from typing import Any

from rpcd.core.codec import encode_body
from rpcd.core.tables import ShortString, short, table
from rpcd.core.wire import Properties, write_properties

MAX_PROPERTIES = 131_072 - 8 - 12
"""Bytes that the properties of a message may have: one frame of RabbitMQ's, less its envelope and the content header."""

DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"
"""RabbitMQ's pseudo-queue; see rabbitmq.com/docs/direct-reply-to."""

PERSISTENT = 2
"""The delivery mode of what must survive a broker's restart."""


class Outgoing:
    """One message to be published, encoded to the last byte where it was made, so that the reactor only writes it."""

    __slots__ = ("body", "exchange", "mandatory", "properties", "routing_key", "token")

    def __init__(
        self,
        exchange: str,
        routing_key: ShortString,
        body: bytes,
        properties: bytes,
        *,
        mandatory: bool = False,
        token: str = "",
    ) -> None:
        """Take encoded parts; `token` is what identifies it when the broker returns it."""
        self.exchange = exchange
        self.routing_key = routing_key
        self.body = body
        self.properties = properties
        self.mandatory = mandatory
        self.token = token

    def __repr__(self) -> str:
        return f"<Outgoing to exchange {self.exchange!r} with key {self.routing_key!r}, {len(self.body)} bytes>"


def outgoing(
    exchange: str,
    routing_key: str,
    body: Any = None,
    *,
    headers: Mapping[str, Any] | None = None,
    mandatory: bool = False,
    content_type: str | None = None,
    correlation_id: ShortString | None = None,
    message_id: str | None = None,
    reply_to: str | None = None,
    type: str | None = None,  # noqa: A002  # AMQP's own name for the property
    expiration: float | None = None,
    priority: int | None = None,
    persistent: bool = True,
    timestamp: int | None = None,
) -> Outgoing:
    """Encode a message to be published; raise TypeError or ValueError for what AMQP or JSON can't hold."""
    payload, kind = encode_body(body, content_type)
    properties = Properties(
        content_type=kind,
        headers=table(headers) if headers else None,
        delivery_mode=PERSISTENT if persistent else 1,
        priority=priority,
        correlation_id=correlation_id,
        reply_to=reply_to,
        expiration=None if expiration is None else _milliseconds(expiration),
        message_id=message_id,
        timestamp=timestamp,
        type=type,
    )
    short(exchange, "the exchange")
    short(routing_key, "the routing key")
    encoded = write_properties(properties)
    if len(encoded) > MAX_PROPERTIES:
        raise ValueError(
            f"headers and properties have {len(encoded)} bytes; AMQP's one frame for them holds {MAX_PROPERTIES}"
        )
    return Outgoing(exchange, routing_key, payload, encoded, mandatory=mandatory, token=message_id or "")


def _milliseconds(seconds: float) -> str:
    if not math.isfinite(seconds):
        raise ValueError("an expiration is a finite number of seconds")
    return str(max(0, round(seconds * 1000)))
