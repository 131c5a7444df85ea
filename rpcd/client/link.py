"""The connection of a client, and the parts that use it: calls and publications, each on channels of its own."""

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from rpcd.amqp.asking import Asking
from rpcd.amqp.confirming import supply
from rpcd.amqp.connection import Connection
from rpcd.amqp.dial import Broker
from rpcd.amqp.outbox import Outbox
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import Once, WaitTooLong, bounded, repeating
from rpcd.client.exchanges import Exchanges
from rpcd.core.errors import BrokerRefused, PublishTimeout
from rpcd.core.outgoing import Outgoing
from rpcd.core.topology import DeclareExchange

SWEEP_SECONDS = 1.0


class Part(Protocol):
    """What uses the connection; reactor only. It outlives each single one."""

    def attach(self, protocol: AmqpProtocol) -> None:
        """Use a fresh connection, until it is lost."""

    def block(self, blocked: bool) -> None:
        """Be told that the broker takes nothing for now, or again."""

    def fail(self, reason: Exception) -> None:
        """Fail what waits for a connection, for there will be none soon."""

    def close(self, why: str) -> None:
        """Fail everything, for there will be no other connection."""


class Publishing:
    """Confirmed publications of a client; a part of its link, and reactor only."""

    def __init__(self, link: "Link", confirm_timeout: float) -> None:
        """Prepare; nothing is opened before the first publication."""
        self._link = link
        self._outbox = Outbox(link.broker.reactor, confirm_timeout, confirm_timeout * 2)  # its own limit comes never first
        self._open: set[Deferred[None]] = set()
        self._closed: str | None = None
        self._protocol: AmqpProtocol | None = None
        self._supplied: AmqpProtocol | None = None
        self._sweeping = repeating(self._outbox.sweep, link.broker.reactor)

    def publish(self, outgoing: Outgoing, seconds: float) -> Deferred[None]:
        """Publish; fires when confirmed, fails with Unroutable, PublishRefused or PublishTimeout."""
        if not self._sweeping.running and self._closed is None:
            self._sweeping.start(SWEEP_SECONDS, now=False)
        published = self._outbox.publish(outgoing)
        self._open.add(published)
        timer = self._link.broker.reactor.callLater(seconds, self._late, published, seconds)

        def ended(result: Any) -> Any:
            self._open.discard(published)
            if timer.active():
                timer.cancel()
            return result

        published.addBoth(ended)
        if self._closed is not None:
            published.errback(PublishTimeout(f"{self._closed}; the message was not published"))
        self._supply()
        return published

    def _late(self, published: Deferred[None], seconds: float) -> None:
        why = self._link.why
        published.errback(PublishTimeout(f"not confirmed within {seconds:g} s{'' if why is None else f': {why}'}"))

    def _supply(self) -> None:
        """Open the channel on this connection, if somebody needs it."""
        protocol = self._protocol
        if protocol is None or self._supplied is protocol or not self._open:
            return
        self._supplied, ended = protocol, Once()
        ended.wait().addErrback(_failure_to(protocol.abort))
        supplied = supply(self._outbox, protocol, self._link.connection, ended, self._link.broker.reactor)
        Deferred.fromCoroutine(supplied).addErrback(_failure_to(ended.fail))

    def attach(self, protocol: AmqpProtocol) -> None:
        """Use a fresh connection, until it is lost."""
        self._protocol = protocol
        self._supply()

    def block(self, blocked: bool) -> None:
        """Be told that the broker takes nothing for now, or again: what is not written waits, as long as its time lasts."""
        self._outbox.block(blocked)

    def fail(self, reason: Exception) -> None:
        """Fail all publications, for there will be no connection soon."""
        for published in list(self._open):
            published.errback(reason)

    def close(self, why: str) -> None:
        """Fail all publications, for there will be no other connection."""
        self._closed = why
        if self._sweeping.running:
            self._sweeping.stop()
        self.fail(PublishTimeout(f"{why} before the broker confirmed; the message may or may not have arrived"))


class Link:
    """One connection, made again for ever, and its parts; reactor only.

    A part that is added later gets the present connection at once.
    """

    def __init__(self, broker: Broker, title: str, confirm_timeout: float) -> None:
        """Prepare a connection; `title` is what RabbitMQ's own pages show."""
        self.broker = broker
        self.connection = Connection("client", title, broker, self._serve, self._on_refused)
        self.refusal: BrokerRefused | None = None
        """What a person has to mend before there can be a connection."""
        self.calls = Asking(broker.reactor, lambda: self.why)
        self.publishing = Publishing(self, confirm_timeout)
        self.exchanges = Exchanges()
        self._parts: list[Part] = [self.exchanges, self.calls, self.publishing]
        self._protocol: AmqpProtocol | None = None

    @property
    def why(self) -> str | None:
        """Why nothing can be sent right now; None if it can."""
        protocol = self.connection.protocol
        if protocol is not None and protocol.blocked is not None:
            return f"the broker blocks publishing: {protocol.blocked}"
        return self.connection.trouble

    def publish_to(self, exchange: DeclareExchange, outgoing: Outgoing, seconds: float) -> Deferred[None]:
        """Publish to an exchange that is made first, if it is not there."""
        clock = self.broker.reactor
        until = clock.seconds() + seconds

        def late(failure: Failure) -> None:
            failure.trap(WaitTooLong)
            raise PublishTimeout(f"not published within {seconds:g} s{'' if self.why is None else f': {self.why}'}")

        declared = bounded(self.exchanges.declare(exchange), seconds, clock, "declaring an exchange").addErrback(late)
        return declared.addCallback(lambda _done: self.publishing.publish(outgoing, max(0.0, until - clock.seconds())))

    def add(self, part: Part) -> None:
        """Let one more part use the connection, this one and all that follow."""
        self._parts.append(part)
        if self._protocol is not None:
            part.attach(self._protocol)

    def remove(self, part: Part) -> None:
        """Let a part use the connection no longer."""
        if part in self._parts:
            self._parts.remove(part)

    def start(self) -> None:
        """Begin to connect."""
        self.connection.start()

    def stop(self) -> Deferred[None]:
        """End everything; fires when the connection is closed."""
        for part in self._parts:
            part.close("the client was closed")
        return self.connection.stop()

    async def _serve(self, protocol: AmqpProtocol) -> None:
        ended = Once()
        protocol.when_lost(ended.fail)
        protocol.when_lost(lambda _reason: self._lost())
        protocol.on_blocked = self._on_blocked  # type: ignore[method-assign]  # made to be replaced
        self.connection.serving()
        self.refusal, self._protocol = None, protocol
        for part in list(self._parts):
            part.attach(protocol)
        await ended.wait()

    def _lost(self) -> None:
        self._protocol = None
        self._block(False)  # an alarm ends with its connection

    def _on_blocked(self, reason: str | None) -> None:
        self._block(reason is not None)

    def _block(self, blocked: bool) -> None:
        for part in self._parts:
            part.block(blocked)

    def _on_refused(self, error: BrokerRefused) -> None:
        """Fail what waits: somebody has to mend something first. It is tried again all the same, now and then."""
        self.refusal = error
        for part in list(self._parts):
            part.fail(error)


def _failure_to(tell: Callable[[Any], object]) -> Callable[[Failure], None]:
    """Make an errback that tells somebody the error and is done with it."""

    def errback(failure: Failure) -> None:
        tell(failure.value)

    return errback
