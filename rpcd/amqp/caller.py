"""Asking another service: a request, its correlation id, and the reply that comes by direct reply-to.

One channel serves any number of outstanding calls. A request that no queue takes fails at once, for it is mandatory; a reply
to a call that nobody waits for any more is dropped, and counted.
"""

import uuid
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from rpcd.amqp.channel import Channel
from rpcd.amqp.waiting import bounded
from rpcd.core.errors import Unroutable
from rpcd.core.outgoing import DIRECT_REPLY_TO, Outgoing, outgoing
from rpcd.core.wire import Properties


@attrs.frozen
class Answer:
    """A reply as it came."""

    body: bytes
    properties: Properties


class Caller:
    """Calls on one channel; reactor only. Await `open` first."""

    def __init__(self, channel: Channel, unclaimed: Callable[[], object] = lambda: None) -> None:
        """Take a fresh channel, for this alone; `unclaimed` is told of every reply that nobody waits for."""
        self._channel = channel
        self._unclaimed = unclaimed
        self._calls: dict[str, Deferred[Answer]] = {}
        channel.when_returned(self._on_return)
        channel.when_closed(self._on_closed)

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def is_open(self) -> bool:
        """Whether requests may be written."""
        return self._channel.reason is None and self._channel.is_open

    async def open(self, seconds: float) -> None:
        """Start to listen for replies; direct reply-to allows no acks (rabbitmq.com/docs/direct-reply-to)."""
        listening = self._channel.consume(DIRECT_REPLY_TO, "replies", self._on_reply, False, {}, auto_ack=True)
        await bounded(listening, seconds, self._channel.clock, "listening for replies")

    def close(self) -> None:
        """Close the channel; calls that are outstanding fail."""
        self._channel.close()

    def end(self, reason: Exception) -> None:
        """Fail all calls that are outstanding, for a reason of our own."""
        self._on_closed(reason)

    def call(self, exchange: str, routing_key: str, body: Any, seconds: float, **options: Any) -> Deferred[Answer]:
        """Send a request and return its reply; fails with Unroutable, WaitTooLong, or the end of the channel.

        The request expires when nobody waits for it any more. `options` are those of `Message.publish`.
        """
        correlation_id = str(uuid.uuid4())
        options = {
            "correlation_id": correlation_id,
            "reply_to": DIRECT_REPLY_TO,
            "expiration": seconds,
            "mandatory": True,
            **options,
        }
        request = outgoing(exchange, routing_key, body, **options)
        answer: Deferred[Answer] = Deferred()
        if self._channel.reason is not None:
            answer.errback(self._channel.reason)
            return answer
        self.send(request, correlation_id, answer)
        return bounded(answer, seconds, self._channel.clock, "the reply", lambda: self.forget(correlation_id))

    def send(self, request: Outgoing, correlation_id: str, answer: Deferred[Answer]) -> None:
        """Write a request; `answer` fires with its reply, or fails with Unroutable or the end of the channel.

        Raises, and writes nothing, if no frame can hold it. Whoever stops waiting says `forget`.
        """
        self._channel.publish(request)
        self._calls[correlation_id] = answer

    def forget(self, correlation_id: str) -> None:
        """Wait for a reply no longer; it is dropped when it comes."""
        self._calls.pop(correlation_id, None)

    def _on_reply(
        self, _tag: int, _again: bool, _exchange: object, _key: object, properties: Properties, body: bytes
    ) -> None:
        waiting = self._calls.pop(str(properties.correlation_id), None)
        if waiting is not None:
            waiting.callback(Answer(body, properties))
        else:
            self._unclaimed()

    def _on_return(self, _code: int, text: str, exchange: str, routing_key: str, properties: Properties) -> None:
        waiting = self._calls.pop(str(properties.correlation_id), None)
        if waiting is not None:
            waiting.errback(Unroutable(f"no queue takes exchange {exchange!r}, key {routing_key!r}: {text}"))

    def _on_closed(self, reason: Exception) -> None:
        calls, self._calls = self._calls, {}
        for waiting in calls.values():
            waiting.errback(reason)
