"""Which handler answers which messages, with which policy; what can be decided is decided when a route is built."""

import typing
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from rpcd.core.codec import Codec
from rpcd.core.errors import BadMessage, Expired
from rpcd.core.handler import Handler, Layer, Target, check_finished
from rpcd.core.locks import Key
from rpcd.core.message import ENDED, EXCHANGE_HEADER, ROUTING_KEY_HEADER, Message
from rpcd.core.outcome import judge, success
from rpcd.core.policy import Policy
from rpcd.core.retry import COUNT_HEADER, NACK_HEADER, counted, deadline
from rpcd.core.tables import Headers, fits
from rpcd.core.verdict import Outcome

MAX_NACKS = 1_000_000


@attrs.define
class Route:
    """One consumer's way from message to outcome; its methods run in worker threads, or on a loop."""

    consumer: str
    queue: str
    target: Target
    codec: Codec
    policy: Policy
    clock: Callable[[], float]
    """Seconds since the epoch."""
    max_body: int = 16 * 1024 * 1024
    config: Mapping[str, Any] = attrs.field(factory=dict)
    key: Key | None = None
    """The lane of an opened message; None when the consumer has no lock."""
    number: int = 0
    """Its place among the routes of its consumer, and so that of its handler among a worker's."""

    def make_handler(self, *inner: Layer) -> tuple[Handler, Any]:
        """Make the handler of one worker, folded into its layers (and `inner` ones), and return it with the bare object."""
        return self.target.make(self.config, inner)

    def open(self, message: Message[Any]) -> None:
        """Read what came with the message and decode its body; raise BadMessage, ReplyRefused or Expired."""
        properties = message.properties
        headers = properties.headers
        if properties.reply_to is not None and self.policy.replies.wanted(message):
            self.policy.replies.check(properties.reply_to)
        if headers is not None or properties.expiration is not None:
            self._read_headers(message)
        self.check_deadline(message)
        payload = message.payload
        if len(payload) > self.max_body:
            raise BadMessage("body", f"{len(payload)} bytes; max_body allows {self.max_body}")
        message.body = self.codec.decoder(properties.content_type, properties.content_encoding)(payload)

    def check_deadline(self, message: Message[Any]) -> None:
        """Raise Expired if the sender has stopped waiting: nothing is begun for it any more."""
        if message.deadline is not None and self.clock() >= message.deadline:
            raise Expired

    def _read_headers(self, message: Message[Any]) -> None:
        """Take attempt, deadline and, on a copy that came back, the original exchange and key from the headers."""
        properties, headers = message.properties, message.headers
        if isinstance(headers, Headers) and headers.fault is not None:
            raise BadMessage("headers", headers.fault)
        message.attempt = 1 + max(message.attempt - 1, counted(headers, COUNT_HEADER, self.policy.steps.attempts - 1))
        message.nacks = max(message.nacks, counted(headers, NACK_HEADER, MAX_NACKS))
        message.deadline = deadline(headers, properties.expiration, properties.timestamp, message.received)
        message.exchange, message.routing_key = origin(message, self.queue)

    def run(self, message: Message[Any], handler: Handler) -> Outcome:
        """Call the handler and return the outcome of what it returned; what it raises comes through."""
        return self._returned(handler(message), message)

    async def run_async(self, message: Message[Any], handler: Handler) -> Outcome:
        """Await the handler; otherwise as `run`."""
        return self._returned(await handler(message), message)

    def _returned(self, value: Any, message: Message[Any]) -> Outcome:
        if value is not None:
            check_finished(value)
        outcome = success(value, message, self.policy)
        message.published = ENDED  # a thread or task that the handler has left behind is told so
        return outcome

    def arrival_mark(self, _message: Message[Any]) -> str | None:
        """Return what tells on a copy when the message came for the first time; None where that does not count."""
        return None

    def judge(self, error: BaseException, message: Message[Any]) -> Outcome:
        """Return the outcome of an exception."""
        return judge(error, message, self.policy, self.clock())


@attrs.define
class Stray(Route):
    """The route of a message that no handler of its consumer is for: it is a bad message, answered and archived."""

    known: tuple[str, ...] = ()
    """The exchanges that there are handlers for."""

    def open(self, message: Message[Any]) -> None:
        """Read what came with the message, as far as a reply and an archive need it; then raise BadMessage."""
        reply_to = message.properties.reply_to
        if reply_to is not None and self.policy.replies.wanted(message):
            self.policy.replies.check(reply_to)
        self._read_headers(message)
        self.check_deadline(message)
        raise BadMessage("exchange", f"no handler here is for it; there are handlers for {', '.join(self.known)}")


Choose = Callable[[Message[Any]], Route]


def by_exchange(routes: Mapping[str, Route], stray: Route) -> Choose:
    """Build the function that finds the route of a message by its exchange; it runs on the reactor, and never raises."""

    def choose(message: Message[Any]) -> Route:
        return routes.get(origin(message, stray.queue)[0], stray)

    return choose


def origin(message: Message[Any], queue: str) -> tuple[str, str]:
    """Return the exchange and the key that a message was first published with, also if it came back from a retry step."""
    if message.exchange != "" or message.routing_key != queue:
        return message.exchange, message.routing_key
    # Only what came through a retry step looks like this; elsewhere the headers are a client's claim.
    exchange, key = message.headers.get(EXCHANGE_HEADER), message.headers.get(ROUTING_KEY_HEADER)
    if isinstance(exchange, str) and isinstance(key, str | bytes) and fits(exchange) and fits(key):
        return exchange, typing.cast("str", key)
    return message.exchange, message.routing_key
