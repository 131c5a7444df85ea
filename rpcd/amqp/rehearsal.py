"""Trying every declaration, binding and permission on a live broker, and leaving nothing behind.

What exists is declared again with the config's arguments, which changes nothing and tells whether they agree. What does not
exist is made, and removed again unless somebody uses it by then. Bindings are tried with a key that nobody uses.
"""

import uuid
from collections.abc import Iterable
from typing import Any

import attrs

from rpcd.amqp.channel import Channel
from rpcd.amqp.declare import STEP_SECONDS, carry_out, close, probe_default_exchange
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import bounded
from rpcd.core.errors import BrokerRefused, ChannelClosed, ObjectMissing
from rpcd.core.topology import Bind, Declaration, DeclareExchange, DeclareQueue


@attrs.frozen
class Finding:
    """What came of one step."""

    path: str
    what: str
    result: str
    error: Exception | None = None


class Rehearsal:
    """One rehearsal; reactor only. `remove` is to be called after `run`, over a connection that is alive."""

    def __init__(self) -> None:
        """Nothing has been made yet."""
        self.made: list[DeclareExchange | DeclareQueue] = []
        self._missing: set[str] = set()

    async def run(self, protocol: AmqpProtocol, plan: Iterable[Declaration], replies: bool) -> list[Finding]:
        """Try a plan; `replies` tells whether the default exchange is needed for replies as well."""
        self._protocol = protocol
        findings: list[Finding] = [await self._one(item) for item in plan]
        purpose = "send replies and publish copies" if replies else "publish copies"
        return [*findings, await self._probe(purpose)]

    async def remove(self, protocol: AmqpProtocol) -> list[str]:
        """Remove what was made; return the names of what was not, because somebody uses it by now."""
        self._protocol = protocol
        return [item.name for item in reversed(self.made) if not await self._remove(item)]

    async def _one(self, item: Declaration) -> Finding:
        what = shown(item)
        if self._protocol.is_lost:
            return Finding(item.path, what, "not tried: the broker has closed the connection")
        if isinstance(item, Bind) and {item.queue, f"exchange {item.exchange}"} & self._missing:
            return Finding(item.path, what, "not tried: one end is missing")
        if isinstance(item, DeclareQueue) and not item.name:
            return Finding(item.path, what, "not tried: the broker chooses its name")
        try:
            return Finding(item.path, what, await self._try(item))
        except (BrokerRefused, ObjectMissing) as error:
            if not isinstance(item, Bind):
                self._missing.add(item.name if isinstance(item, DeclareQueue) else f"exchange {item.name}")
            return Finding(item.path, what, "missing" if isinstance(error, ObjectMissing) else "refused", error)

    async def _try(self, item: Declaration) -> str:
        if isinstance(item, Bind):
            if not item.queue:
                return "not tried: the broker chooses the queue's name"
            probe = attrs.evolve(item, routing_key=f"rpcd.check.{uuid.uuid4()}")
            await carry_out(self._protocol, [probe])
            channel = await self._channel()
            await self._ask(
                channel,
                "queue_unbind",
                queue=probe.queue,
                exchange=probe.exchange,
                routing_key=probe.routing_key,
                arguments=dict(probe.arguments),
            )
            await close(channel)
            return "allowed"
        exists = await self._exists(item)
        await carry_out(self._protocol, [item])
        if not exists:
            self.made.append(item)
        return "is there" if exists else "will be made"

    async def _exists(self, item: DeclareExchange | DeclareQueue) -> bool:
        try:
            await carry_out(self._protocol, [attrs.evolve(item, passive=True)])
        except ObjectMissing:
            return False
        return True

    async def _probe(self, purpose: str) -> Finding:
        if self._protocol.is_lost:
            return Finding("broker", f"permission to {purpose}", "not tried: the broker has closed the connection")
        try:
            await probe_default_exchange(self._protocol, purpose)
        except BrokerRefused as error:
            return Finding("broker", f"permission to {purpose}", "refused", error)
        return Finding("broker", f"permission to {purpose}", "allowed")

    async def _remove(self, item: DeclareExchange | DeclareQueue) -> bool:
        channel = await self._channel()
        try:
            if isinstance(item, DeclareQueue):
                # RabbitMQ knows no if-empty and no if-unused for quorum queues, so we look for ourselves
                status = await self._ask(channel, "queue_declare", queue=item.name, passive=True)
                if status.message_count or status.consumer_count:
                    return False
                await self._ask(channel, "queue_delete", queue=item.name)
            else:
                await self._ask(channel, "exchange_delete", exchange=item.name, if_unused=True)
            await close(channel)
        except ChannelClosed:
            return False
        return True

    async def _channel(self) -> Channel:
        return await bounded(self._protocol.open_channel(), STEP_SECONDS, self._protocol.clock, "opening a channel")

    async def _ask(self, channel: Channel, name: str, **arguments: Any) -> Any:
        return await bounded(channel.call(name, **arguments), STEP_SECONDS, channel.clock, f"the broker's answer to {name}")


def shown(item: Declaration) -> str:
    """Name a declaration for a person."""
    if isinstance(item, Bind):
        return f"binding of queue {item.queue!r} to exchange {item.exchange!r}, key {item.routing_key!r}"
    return f"{'exchange' if isinstance(item, DeclareExchange) else 'queue'} {item.name!r}"
