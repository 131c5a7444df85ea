"""Exchanges that a client makes before it publishes to them; a part of its link."""

import logging

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from rpcd.amqp.declare import carry_out
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import WaitTooLong, exc_info
from rpcd.core.errors import BrokerRefused, RpcdError
from rpcd.core.topology import DeclareExchange

log = logging.getLogger("rpcd.client")


class Exchanges:
    """What was declared on the present connection, once each; reactor only."""

    def __init__(self) -> None:
        """Nothing is declared yet."""
        self._protocol: AmqpProtocol | None = None
        self._made: set[str] = set()
        self._known: dict[str, DeclareExchange] = {}
        self._waiting: list[tuple[DeclareExchange, Deferred[None]]] = []

    def declare(self, exchange: DeclareExchange) -> Deferred[None]:
        """Declare an exchange, unless this connection has; waits for one if there is none.

        It fires as well when the broker refuses: the exchange may be there all the same, which publishing will show.
        """
        protocol = self._protocol if self._protocol is not None and not self._protocol.is_lost else None
        if protocol is not None and exchange.name in self._made:
            return succeed(None)
        declared: Deferred[None] = Deferred()
        self._known[exchange.name] = exchange
        self._waiting.append((exchange, declared))
        if protocol is not None:
            self._begin(protocol)
        return declared

    def _begin(self, protocol: AmqpProtocol) -> None:
        waiting, self._waiting = self._waiting, []
        for exchange, declared in waiting:
            if not declared.called:  # else nobody waits any more
                doing = Deferred.fromCoroutine(carry_out(protocol, [exchange]))
                doing.addBoth(self._done, protocol, exchange, declared)

    def _done(self, result: object, protocol: AmqpProtocol, exchange: DeclareExchange, declared: Deferred[None]) -> None:
        error = result.value if isinstance(result, Failure) else None
        if error is not None and not isinstance(error, RpcdError | WaitTooLong):
            log.critical("a fault of rpcd", exc_info=exc_info(result))  # type: ignore[arg-type]  # a Failure
        if error is not None and not isinstance(error, BrokerRefused) and protocol.is_lost:
            self._waiting.append((exchange, declared))  # for the next connection
            return
        if protocol is self._protocol:
            self._made.add(exchange.name)
        if not declared.called:
            declared.callback(None)

    # What the link tells --------------------------------------------------------------------------

    def attach(self, protocol: AmqpProtocol) -> None:
        """Use a fresh connection, until it is lost.

        The broker may have forgotten everything, so all is declared again at once, ahead of what is published once more.
        """
        self._protocol = protocol
        self._made.clear()
        waiting = {exchange.name for exchange, _ in self._waiting}
        self._waiting += [(exchange, Deferred()) for name, exchange in self._known.items() if name not in waiting]
        self._begin(protocol)

    def block(self, blocked: bool) -> None:
        """Be told that the broker takes nothing for now, or again: declarations are no publications."""

    def fail(self, reason: Exception) -> None:
        """Fail what waits for a connection, for there will be none soon."""
        waiting, self._waiting = self._waiting, []
        for _, declared in waiting:
            if not declared.called and declared.callbacks:  # else nobody waits for it
                declared.errback(reason)

    def close(self, why: str) -> None:  # noqa: ARG002  # publishing tells it
        """Let go of what waits: publishing, which comes next, tells that the client is closed."""
        waiting, self._waiting = self._waiting, []
        for _, declared in waiting:
            if not declared.called:
                declared.callback(None)
