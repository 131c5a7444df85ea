"""The publishing connection: what must be confirmed goes through here, on two channels, and calls to other services.

One channel carries copies (retry, archive), the other what handlers publish and replies that are to be confirmed, so that a
user's mistake, which closes a channel, never stops a copy. Each channel is replaced by itself; only silence and the loss of
the connection concern both.
"""

import logging
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from rpcd.amqp.asking import Asking
from rpcd.amqp.confirming import supply
from rpcd.amqp.connection import Connection
from rpcd.amqp.declare import carry_out, probe_default_exchange
from rpcd.amqp.dial import Broker
from rpcd.amqp.outbox import Outbox
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import Once, repeating, unless
from rpcd.core.errors import BrokerRefused, ObjectMissing
from rpcd.core.outgoing import Outgoing
from rpcd.core.topology import Declaration

SWEEP_SECONDS = 1.0
MISSING_SECONDS = 5.0
"""How often a missing object is looked for again."""

log = logging.getLogger("rpcd.publisher")


class Publisher:
    """Publishes with confirms; reactor only."""

    def __init__(
        self,
        broker: Broker,
        plan: list[Declaration],
        confirm_timeout: float,
        publish_timeout: float,
        refused: Callable[[BrokerRefused], None],
        title: str,
    ) -> None:
        """Prepare the publishing connection; `plan` is what nobody else declares."""
        self.copies = Outbox(broker.reactor, confirm_timeout, publish_timeout)
        self.publications = Outbox(broker.reactor, confirm_timeout, publish_timeout)
        self.calls = Asking(broker.reactor, lambda: self.why)
        self.ready = Once()
        self.connections = 0
        """How often it could publish anew; reconnects are those after the first."""
        self.connection = Connection("publisher", title, broker, self._serve, refused)
        self._plan = plan
        self._reactor = broker.reactor
        self._sweeping = repeating(self._sweep, broker.reactor)

    @property
    def blocked(self) -> str | None:
        """Why the broker has blocked the connection (an alarm); None if it has not."""
        protocol = self.connection.protocol
        return protocol.blocked if protocol is not None else None

    @property
    def why(self) -> str | None:
        """Why nothing can be published right now; None if it can."""
        if self.blocked is not None:  # perhaps at the start, before it could do anything
            return f"the broker blocks it: {self.blocked}"
        return self.connection.trouble

    def start(self) -> None:
        """Begin to connect; publications wait until it is possible."""
        self._sweeping.start(SWEEP_SECONDS, now=False)
        self.connection.start()

    def stop(self) -> Deferred[None]:
        """Close the connection; publications that are still on their way are not waited for."""
        if self._sweeping.running:
            self._sweeping.stop()
        self.calls.close("rpcd is stopping")
        return self.connection.stop()

    def copy(self, outgoing: Outgoing) -> Deferred[None]:
        """Publish a copy; see `Outbox.publish`."""
        return self.copies.publish(outgoing)

    def publish(self, outgoing: Outgoing, again: Callable[[], None] | None = None) -> Deferred[None]:
        """Publish what a handler or a user wants published; see `Outbox.publish`."""
        return self.publications.publish(outgoing, again)

    def _sweep(self) -> None:
        self.copies.sweep()
        self.publications.sweep()

    async def _serve(self, protocol: AmqpProtocol) -> None:
        ended = Once()
        protocol.when_lost(ended.fail)
        protocol.when_lost(lambda _reason: self._block(False))  # an alarm ends with its connection: time limits run again
        protocol.on_blocked = self._on_blocked  # type: ignore[method-assign]  # made to be replaced
        await probe_default_exchange(protocol, "send replies and publish copies to the retry and archive queues")
        await supply(self.copies, protocol, self.connection, ended, self._reactor)
        await supply(self.publications, protocol, self.connection, ended, self._reactor)
        self.connection.serving()
        self.connections += 1
        self.calls.attach(protocol)
        await self._declare(protocol, ended)
        self.ready.fire()
        await ended.wait()

    async def _declare(self, protocol: AmqpProtocol, ended: Once) -> None:
        """Declare what nobody else does; what is missing is waited for while copies are published all the same."""
        said = ""
        while not ended.happened:
            try:
                await carry_out(protocol, self._plan)
            except ObjectMissing as error:
                self.ready.fire()  # consumers need not wait for what none of them needs: each waits for its own
                if str(error) != said:
                    log.warning("%s", error)
                said = str(error)
                await unless(ended, deferLater(self._reactor, MISSING_SECONDS))
            except BrokerRefused as error:
                if not self.ready.happened:  # the connection has served already, but nothing consumes yet
                    self.connection.refuse(error)
                raise
            else:
                return

    def _on_blocked(self, reason: str | None) -> None:
        if reason is None:
            log.info("the broker takes publications again")
        elif not self.copies.blocked:
            log.warning("the broker blocks publishing: %s", reason)
            self.ready.fire()  # what needs no publishing can be consumed; that may be what ends the alarm
        self._block(reason is not None)

    def _block(self, blocked: bool) -> None:
        for each in (self.copies, self.publications, self.calls):
            each.block(blocked)
