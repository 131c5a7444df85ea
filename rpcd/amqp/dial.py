"""Making one connection: hosts in random order, each within a time limit, until one lets us in."""

import random
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory

from rpcd.amqp.port import AmqpProtocol, make_protocol
from rpcd.amqp.tls import client_options, explain
from rpcd.amqp.waiting import WaitTooLong, bounded
from rpcd.core.address import Address
from rpcd.core.errors import ConnectionLost, LoginRefused


@attrs.frozen
class Broker:
    """What connections have in common: where to, and by which clock."""

    address: Address
    reactor: Any
    version: str
    """rpcd's own, for RabbitMQ's pages."""
    login_patience: float = 60.0
    """Seconds over which a refused login is tried again at first start."""
    patient: set[Callable[[], None]] = attrs.field(factory=set, eq=False, init=False)
    """What wakes each connection that has failed more than once and waits; called when another one serves again."""


class Dial:
    """One attempt to reach the broker, over all of its hosts; reactor only, used once."""

    def __init__(self, broker: Broker, title: str) -> None:
        """Prepare an attempt; `title` is what RabbitMQ's own pages show."""
        self._broker = broker
        self._title = title
        self._cancelled = False
        self._connecting: Deferred[Any] | None = None
        self._protocol: AmqpProtocol | None = None

    def cancel(self) -> None:
        """Give up; `connect` then fails soon."""
        self._cancelled = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._protocol is not None and self._protocol.ready is not None:
            self._protocol.abort(ConnectionLost("given up"))

    async def connect(self) -> AmqpProtocol:
        """Return a protocol that is ready; raise LoginRefused, or ConnectionLost with the last error of each host."""
        hosts = list(self._broker.address.hosts)
        random.shuffle(hosts)
        failed = {}
        for host, port in hosts:
            if self._cancelled:
                break
            try:
                protocol = await self._try(host, port)
            except LoginRefused:
                raise
            except Exception as error:  # noqa: BLE001  # refused, unknown, silent, no TLS: try the next host
                failed[host, port] = f"{host}:{port}: {explain(error)}"
                continue
            protocol.where = f"{host}:{port}"
            return protocol
        told = [failed[each] for each in self._broker.address.hosts if each in failed]  # the same words for the same trouble
        raise ConnectionLost("; ".join(told) or "given up")

    async def _try(self, host: str, port: int) -> AmqpProtocol:
        broker, limit = self._broker, self._broker.address.connect_timeout
        endpoint: Any = HostnameEndpoint(broker.reactor, host, port, timeout=limit)
        tls: Any = client_options(broker.address.tls, host) if broker.address.tls is not None else None
        protocol = make_protocol(broker.address, self._title, broker.version, broker.reactor)
        factory: Any = Factory.forProtocol(lambda: protocol)
        if tls is not None:  # not by wrapClientTLS: in older Twisteds that goes by the clock of the global reactor
            factory = TLSMemoryBIOFactory(tls, True, factory, clock=broker.reactor)
        self._connecting = endpoint.connect(factory)
        try:
            await bounded(self._connecting, limit, broker.reactor, "looking up its name and connecting")
        finally:
            self._connecting.cancel()  # does nothing to one that has fired
        self._connecting, self._protocol = None, protocol
        ready: Any = protocol.ready
        try:
            if ready is not None:
                await bounded(ready, limit, broker.reactor, "the AMQP handshake")
        except WaitTooLong:
            protocol.abort(ConnectionLost("the AMQP handshake took too long"))
            raise
        except Exception:  # noqa: BLE001  # pika's own error says nothing; the protocol kept the real one
            refusal = tls.refusal(protocol.reason) if tls is not None else None
            raise protocol.cause() if refusal is None else ConnectionLost(refusal) from None
        return protocol
