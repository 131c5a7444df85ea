"""The other side of a test: a plain pika client that shares nothing with rpcd."""

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pika

SECONDS = 60.0
"""How long a test waits for something that should happen; never how long it takes."""


class Received(NamedTuple):
    """One message as a plain client sees it."""

    method: Any
    properties: pika.BasicProperties
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def headers(self) -> dict[str, Any]:
        return self.properties.headers or {}


class NothingCame(AssertionError):
    """What a test waited for did not happen."""


class Peer:
    """A client with one connection and one channel; publications are confirmed and mandatory."""

    def __init__(self, url: str) -> None:
        self.url = url
        parameters = pika.URLParameters(url)
        parameters.heartbeat = 0
        self.connection = pika.BlockingConnection(parameters)
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        self._replies: str | None = None
        self._inbox: list[Received] = []

    def close(self) -> None:
        with contextlib.suppress(pika.exceptions.AMQPError):  # a test may have ended the connection from outside
            self.connection.close()

    def publish(self, key: str, body: Any = b"{}", exchange: str = "", **properties: Any) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        properties.setdefault("delivery_mode", 2)
        self.channel.basic_publish(exchange, key, payload, pika.BasicProperties(**properties), mandatory=True)

    def get(self, queue: str, seconds: float = SECONDS) -> Received:
        """Take one message from a queue, waiting for it."""
        (message,) = self.take(queue, 1, seconds)  # to its end, so that the consumer is cancelled
        return message

    def take(self, queue: str, count: int, seconds: float = SECONDS) -> Iterator[Received]:
        """Take messages from a queue, waiting for each."""
        channel = self.connection.channel()
        channel.basic_qos(prefetch_count=1)
        for taken, (method, properties, body) in enumerate(channel.consume(queue, inactivity_timeout=seconds)):
            if method is None:
                raise NothingCame(f"{taken} of {count} messages came from {queue} in {seconds} s")
            channel.basic_ack(method.delivery_tag)
            yield Received(method, properties, body)
            if taken + 1 == count:
                break
        channel.cancel()
        channel.close()

    def left(self, queue: str) -> list[Received]:
        """Take everything that is ready in a queue right now."""
        found = []
        while True:
            method, properties, body = self.channel.basic_get(queue, auto_ack=True)
            if method is None:
                return found
            found.append(Received(method, properties, body))

    @property
    def reply_queue(self) -> str:
        """An exclusive, server-named queue of this client; replies are collected from it."""
        if self._replies is None:
            self._replies = self.channel.queue_declare("", exclusive=True).method.queue
            self.channel.basic_consume(self._replies, lambda _ch, *got: self._inbox.append(Received(*got)), auto_ack=True)
        return self._replies

    def replies(self, count: int = 1, seconds: float = SECONDS) -> list[Received]:
        """Wait for replies and return them."""
        self.until(lambda: len(self._inbox) >= count, seconds, lambda: f"{len(self._inbox)} of {count} replies came")
        found, self._inbox[:] = self._inbox[:], []
        return found

    def call(self, key: str, body: Any = b"{}", exchange: str = "", **properties: Any) -> Received:
        """Send a request and return its reply."""
        properties.setdefault("correlation_id", str(uuid.uuid4()))
        self.publish(key, body, exchange, reply_to=self.reply_queue, **properties)
        (reply,) = self.replies()
        assert reply.properties.correlation_id == properties["correlation_id"]
        return reply

    def until(self, done: Callable[[], bool], seconds: float = SECONDS, what: Callable[[], str] = lambda: "") -> None:
        """Serve the connection until something is true."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise NothingCame(f"waited {seconds} s in vain; {what()}")
            self.connection.process_data_events(0.05)

    def exists(self, queue: str) -> bool:
        """Tell whether a queue exists."""
        channel = self.connection.channel()
        try:
            channel.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        channel.close()
        return True
