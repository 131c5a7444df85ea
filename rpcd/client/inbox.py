"""One queue that a client consumes, on whatever connection there is; a part of its link.

Deliveries are handed on as they come, up to the prefetch; each is settled on the channel that it came by. What belongs to a
channel that has ended is in its queue again, and comes by the next one.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from rpcd.amqp.channel import Channel
from rpcd.amqp.declare import ask, carry_out, consume_refusal, open_channel
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import WaitTooLong, exc_info
from rpcd.client.link import Link
from rpcd.core.errors import BrokerRefused, ChannelClosed, RpcdError
from rpcd.core.outgoing import Outgoing
from rpcd.core.topology import Declaration
from rpcd.core.wire import Properties

AGAIN_SECONDS = 1.0
"""How long to wait before a queue is consumed again that could not be, or no longer."""

_TAG = "input"

log = logging.getLogger("rpcd.client")


@attrs.frozen(eq=False)
class Delivery:
    """One message as it came, and where to settle it."""

    channel: Channel
    tag: int
    redelivered: bool
    exchange: Any
    routing_key: Any
    properties: Properties
    body: bytes
    queue: str

    @property
    def is_alive(self) -> bool:
        """Whether it can be settled; else it is in its queue again. Any thread."""
        return self.channel.reason is None


Told = Callable[[Delivery | Exception | None], object]
"""Told of each delivery, of what a person has to mend, or with None that nothing comes any more; on the reactor."""


class Inbox:
    """Consumes one queue; reactor only, but for its making."""

    def __init__(self, queue: str, plan: Sequence[Declaration], prefetch: int, told: Told) -> None:
        """Prepare; the plan declares the queue, and names it if `queue` is empty."""
        self._queue = queue
        self._plan = list(plan)
        self._prefetch = prefetch
        self._told = told
        self._channel: Channel | None = None
        self._link: Link | None = None
        self._closed = False

    def open(self, link: Link) -> None:
        """Begin to consume."""
        if not self._closed:
            self._link = link
            link.add(self)

    def end(self) -> None:
        """Consume no longer; what is not settled goes back to the queue."""
        self._closed = True
        if self._link is not None:
            self._link.remove(self)
        if self._channel is not None:
            self._channel.close()

    # What the link tells --------------------------------------------------------------------------

    def attach(self, protocol: AmqpProtocol) -> None:
        """Use a fresh connection, until it is lost."""
        Deferred.fromCoroutine(self._consume(protocol)).addErrback(self._failed, protocol)

    def block(self, blocked: bool) -> None:
        """Be told that the broker takes nothing for now, or again: deliveries come all the same."""

    def fail(self, reason: Exception) -> None:
        """Tell what somebody has to mend."""
        self._told(reason)

    def close(self, why: str) -> None:  # noqa: ARG002  # all parts are told; here it is the end, whatever the reason
        """Tell that nothing comes any more."""
        self._closed = True
        self._told(None)

    # Consuming ------------------------------------------------------------------------------------

    async def _consume(self, protocol: AmqpProtocol) -> None:
        chosen = await carry_out(protocol, self._plan)
        channel = await open_channel(protocol)
        await ask(channel, "basic_qos", prefetch_count=self._prefetch)
        if self._closed:
            channel.close()
            return
        self._channel = channel
        queue = self._queue or chosen

        def delivered(tag: int, again: bool, exchange: Any, key: Any, properties: Properties, body: bytes) -> None:
            self._told(Delivery(channel, tag, again, exchange, key, properties, body, queue))

        consuming = channel.consume(queue, _TAG, delivered, False, {})
        channel.when_closed(lambda reason: self._ended(protocol, channel, reason))
        try:
            await consuming
        except ChannelClosed as error:
            raise consume_refusal("an input", queue, error) from error

    def _failed(self, failure: Failure, protocol: AmqpProtocol) -> None:
        error = failure.value
        if isinstance(error, BrokerRefused):
            self._closed = True  # whoever is told ends with it
            self._told(error)
        elif not isinstance(error, RpcdError | WaitTooLong):
            log.critical("a fault of rpcd", exc_info=exc_info(failure))
        elif self._channel is None or self._channel.reason is None:  # else its end was seen
            self._later(protocol, error)

    def _ended(self, protocol: AmqpProtocol, channel: Channel, reason: Exception) -> None:
        channel.close()  # the broker may only have cancelled the consumer
        self._channel = None
        self._later(protocol, reason)

    def _later(self, protocol: AmqpProtocol, reason: BaseException) -> None:
        """Consume again in a while, if it is on the same connection; on another one, `attach` does."""
        if self._closed or protocol.is_lost:
            return
        log.warning("%s is not consumed: %s; again in %g s", self._queue or "an input", reason, AGAIN_SECONDS)
        protocol.clock.callLater(AGAIN_SECONDS, self._again, protocol)

    def _again(self, protocol: AmqpProtocol) -> None:
        if not (self._closed or protocol.is_lost or self._channel is not None):
            self.attach(protocol)


def settle(delivery: Delivery, *, ack: bool, requeue: bool = False) -> None:
    """Ack a delivery, or give it back; does nothing if it is in its queue again. Reactor only."""
    if delivery.is_alive and delivery.channel.is_open:
        if ack:
            delivery.channel.ack([(delivery.tag, False)])
        else:
            delivery.channel.nack(delivery.tag, requeue)


def answer(delivery: Delivery, outgoing: Outgoing) -> None:
    """Write a reply ahead of the ack, on the same channel, so that the broker reads it first. Reactor only."""
    if delivery.is_alive and delivery.channel.is_open:
        delivery.channel.publish(outgoing)
