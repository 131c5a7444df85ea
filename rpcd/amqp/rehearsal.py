"""Trying every declaration, binding and permission on a live broker, and leaving nothing behind.

What exists is declared again with the config's arguments, which changes nothing and tells whether they agree. What does not
exist is made, and removed again unless somebody uses it by then. Bindings are tried with a key that nobody uses.
"""

import uuid
from collections.abc import Iterable, Mapping

import attrs

from rpcd.amqp.declare import (
    STEP_SECONDS,
    ask,
    carry_out,
    close,
    consume_refusal,
    open_channel,
    probe_default_exchange,
)
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import bounded
from rpcd.core.errors import BrokerRefused, ChannelClosed, ObjectMissing, ReplyCode
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
        self._locked: set[str] = set()
        self._fleeting: set[str] = set()

    async def run(
        self, protocol: AmqpProtocol, plan: Iterable[Declaration], consumed: Mapping[str, str], replies: bool
    ) -> list[Finding]:
        """Try a plan; `consumed` has the queue of each consumer, `replies` tells whether any of them answers."""
        self._protocol = protocol
        findings: list[Finding] = [await self._one(item) for item in plan]
        findings += [await self._read(*each) for each in consumed.items() if each[1] and each[1] not in self._missing]
        purpose = "send replies and publish copies" if replies else "publish copies"
        return [*findings, await self._probe(purpose)]

    async def remove(self, protocol: AmqpProtocol) -> list[str]:
        """Remove what was made; return the names of what was not, because somebody uses it by now."""
        self._protocol = protocol
        return [item.name for item in reversed(self.made) if not await self._remove(item)]

    async def _one(self, item: Declaration) -> Finding:
        what = shown(item)
        hindrance = self._hindrance(item)
        if hindrance is not None:
            return Finding(item.path, what, f"not tried: {hindrance}")
        try:
            return Finding(item.path, what, await self._try(item))
        except (BrokerRefused, ObjectMissing) as error:
            refused = error.__cause__
            if isinstance(refused, ChannelClosed) and refused.code == ReplyCode.RESOURCE_LOCKED:
                self._locked.add(getattr(item, "name", ""))
                return Finding(item.path, what, "is there: exclusive, and in use")
            if not isinstance(item, Bind):
                self._missing.add(item.name if isinstance(item, DeclareQueue) else f"exchange {item.name}")
            return Finding(item.path, what, "missing" if isinstance(error, ObjectMissing) else "refused", error)

    def _hindrance(self, item: Declaration) -> str | None:
        """Say why a step can't be tried, or would do harm."""
        if self._protocol.is_lost:
            return "the broker has closed the connection"
        if isinstance(item, DeclareQueue) and not item.name:
            return "the broker chooses its name"
        if not isinstance(item, Bind):
            return None
        hindrances = {
            "the broker chooses the queue's name": not item.queue,
            "one end is missing": bool({item.queue, f"exchange {item.exchange}"} & self._missing),
            "the queue is exclusive, and in use": item.queue in self._locked,
            "the exchange goes away with its last binding, which this could be": item.exchange in self._fleeting,
        }
        return next((why for why, holds in hindrances.items() if holds), None)

    async def _try(self, item: Declaration) -> str:
        if isinstance(item, Bind):
            probe = attrs.evolve(item, routing_key=f"rpcd.check.{uuid.uuid4()}")
            await carry_out(self._protocol, [probe])
            channel = await open_channel(self._protocol)
            await ask(
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
        if isinstance(item, DeclareExchange) and item.auto_delete:
            self._fleeting.add(item.name)
        if not exists and not (isinstance(item, DeclareQueue) and item.exclusive):  # that one goes with the connection
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

    async def _read(self, consumer: str, queue: str) -> Finding:
        """Try the permission to consume, by arguments that the broker refuses as soon as it has looked at permissions."""
        path, what = f"consumers.{consumer}", f"permission to consume from queue {queue!r}"
        if self._protocol.is_lost:
            return Finding(path, what, "not tried: the broker has closed the connection")
        channel = await open_channel(self._protocol)
        trying = channel.consume(queue, "", _nothing, exclusive=False, arguments={"x-priority": "rpcd.check"})
        try:
            await bounded(trying, STEP_SECONDS, channel.clock, "the broker's answer to basic.consume")
        except ChannelClosed as error:
            if error.code != ReplyCode.ACCESS_REFUSED:
                return Finding(path, what, "allowed")
            return Finding(path, what, "refused", consume_refusal(f"consumers.{consumer}", queue, error))
        await close(channel)
        return Finding(path, what, "allowed")

    async def _remove(self, item: DeclareExchange | DeclareQueue) -> bool:
        channel = await open_channel(self._protocol)
        try:
            if isinstance(item, DeclareQueue):
                # RabbitMQ knows no if-empty and no if-unused for quorum queues, so we look for ourselves
                status = await ask(channel, "queue_declare", queue=item.name, passive=True)
                if status.message_count or status.consumer_count:
                    return False
                await ask(channel, "queue_delete", queue=item.name)
            else:
                await ask(channel, "exchange_delete", exchange=item.name, if_unused=True)
            await close(channel)
        except ChannelClosed:
            return False
        return True


def _nothing(*_delivery: object) -> None:
    """Take no notice of a delivery: the broker has it back when the channel closes."""


def shown(item: Declaration) -> str:
    """Name a declaration for a person."""
    if isinstance(item, Bind):
        return f"binding of queue {item.queue!r} to exchange {item.exchange!r}, key {item.routing_key!r}"
    return f"{'exchange' if isinstance(item, DeclareExchange) else 'queue'} {item.name!r}"
