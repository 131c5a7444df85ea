"""A message as a broker has it: published, or waiting in a queue."""

from collections.abc import Mapping
from typing import Any

import msgspec

from rpcd.core.outgoing import Outgoing
from rpcd.core.tables import Headers, ShortString, read_headers, table
from rpcd.core.wire import Properties, read_properties


class Posted:
    """A message as a broker has it; nothing about it is decoded before somebody looks."""

    __slots__ = ("encoded", "exchange", "first", "mandatory", "payload", "queue", "redelivered", "returns", "routing_key")

    def __init__(
        self, exchange: str, routing_key: ShortString, payload: bytes, encoded: bytes, *, mandatory: bool = False
    ) -> None:
        """Take the encoded parts of a message."""
        self.exchange = exchange
        self.routing_key = routing_key
        self.payload = payload
        """The bytes of the body."""
        self.encoded = encoded
        self.mandatory = mandatory
        self.redelivered = False
        """Whether it was delivered before, and came back."""
        self.returns = 0
        """How often it came back to its queue; RabbitMQ counts that for quorum queues."""
        self.queue = ""
        """The queue that it is in; empty for what was published."""
        self.first: Posted = self
        """What was published, of what is in a queue."""

    def of_queue(self, queue: str) -> "Posted":
        """Return the one that a queue gets of it."""
        own = Posted(self.exchange, self.routing_key, self.payload, self.encoded, mandatory=self.mandatory)
        own.queue, own.first = queue, self
        return own

    @property
    def properties(self) -> Properties:
        """AMQP's properties."""
        return read_properties(self.encoded)

    def delivered(self, *, counted: bool) -> Properties:
        """Return the properties that a consumer gets; a quorum queue counts how often a message has come back."""
        properties = self.properties
        if counted and self.returns:
            raw = properties.headers.raw if isinstance(properties.headers, Headers) else b""
            counter = table({"x-delivery-count": self.returns})
            properties.headers, _ = read_headers(len(raw + counter).to_bytes(4, "big") + raw + counter, 0)
        return properties

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers, decoded; empty when there are none."""
        found = self.properties.headers
        return found if isinstance(found, Headers) else {}

    @property
    def body(self) -> Any:
        """The body: decoded if it is JSON or text and can be, else its bytes."""
        kind = self.properties.content_type
        try:
            if kind is None or kind == "application/json":
                return msgspec.json.decode(self.payload)
            return self.payload.decode() if isinstance(kind, str) and kind.startswith("text/") else self.payload
        except ValueError:  # msgspec's errors and UnicodeDecodeError are its children
            return self.payload

    def __repr__(self) -> str:
        return f"<Posted to exchange {self.exchange!r} with key {self.routing_key!r}, {len(self.payload)} bytes>"


def posted(outgoing: Outgoing) -> Posted:
    """Return what a broker gets when this is published."""
    return Posted(outgoing.exchange, outgoing.routing_key, outgoing.body, outgoing.properties, mandatory=outgoing.mandatory)
