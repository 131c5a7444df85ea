"""Exchanges that a client makes before it publishes to them; a part of its link."""

import logging
from typing import TypeAlias

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from rpcd.amqp.declare import carry_out
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import WaitTooLong, exc_info
from rpcd.core.errors import BrokerRefused, RpcdError
from rpcd.core.topology import DeclareExchange

Wish: TypeAlias = tuple[DeclareExchange, Deferred[None] | None]
"""An exchange, and who waits for it, if anybody does."""

log = logging.getLogger("rpcd.client")


class Exchanges:
    """What was declared on the present connection, once each; reactor only."""

    def __init__(self) -> None:
        """Nothing is declared yet."""
        self._protocol: AmqpProtocol | None = None
        self._made: set[str] = set()
        self._known: dict[str, DeclareExchange] = {}
        self._waiting: list[Wish] = []

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
        Deferred.fromCoroutine(self._make(protocol, waiting)).addErrback(_tell_fault)

    async def _make(self, protocol: AmqpProtocol, waiting: list[Wish]) -> None:
        """Declare one after the other: a client may know many."""
        for exchange, declared in waiting:
            if exchange.name not in self._made or protocol is not self._protocol:
                try:
                    await carry_out(protocol, [exchange])
                except BrokerRefused:
                    pass
                except (RpcdError, WaitTooLong):
                    if protocol.is_lost:
                        self._waiting.append((exchange, declared))  # for the next connection
                        continue
            if protocol is self._protocol:
                self._made.add(exchange.name)
            _end(declared, None)

    # What the link tells --------------------------------------------------------------------------

    def attach(self, protocol: AmqpProtocol) -> None:
        """Use a fresh connection, until it is lost.

        The broker may have forgotten everything, so all is declared again at once, ahead of what is published once more.
        """
        self._protocol = protocol
        self._made.clear()
        self._waiting[:0] = [(exchange, None) for exchange in self._known.values()]
        self._begin(protocol)

    def block(self, blocked: bool) -> None:
        """Be told that the broker takes nothing for now, or again: declarations are no publications."""

    def fail(self, reason: Exception) -> None:
        """Fail what waits for a connection, for there will be none soon."""
        self._end_all(reason)

    def close(self, why: str) -> None:  # noqa: ARG002  # publishing tells it
        """Let go of what waits: publishing, which comes next, tells that the client is closed."""
        self._end_all(None)

    def _end_all(self, reason: Exception | None) -> None:
        waiting, self._waiting = self._waiting, []
        for _, declared in waiting:
            _end(declared, reason)


def _end(declared: Deferred[None] | None, reason: Exception | None) -> None:
    if declared is None or declared.called:  # nobody waits any more
        return
    if reason is None:
        declared.callback(None)
    else:
        declared.errback(reason)


def _tell_fault(failure: Failure) -> None:
    log.critical("a fault of rpcd", exc_info=exc_info(failure))
