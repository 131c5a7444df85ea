"""Reading an archive without wearing it out: page by page, on one channel, whose end gives back all that was not acked.

Theory. Nobody can read a queue but by taking its messages; what is not acked goes back when the channel closes, or when
this process dies. Each page is a consumer of its own that may hold as many messages as the page has, for AMQP knows no
other way to go on behind messages that one keeps. A classic queue puts all of them back where they were. A quorum queue
puts them behind those that came back earlier (`x-delivery-count` tells those), so whoever takes one of these has to take
them all to leave them in their order. And it does so consumer by consumer, up to 32 of them in the order of their tags:
tags are numbered and pages grow quickly, so that 32 pages are over a million messages.

How many messages there are is asked at the beginning, and no more are read: what is archived meanwhile, perhaps once more,
is for the next run. Reading counts as a delivery; rpcd's archives have no limit for those, and others are not read
(`limit_of`).
"""

import os
import re
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from rpcd.amqp.channel import Channel
from rpcd.amqp.declare import STEP_SECONDS, ask, close, open_channel, refusal
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import WaitTooLong, bounded
from rpcd.core.archived import DELIVERIES_HEADER, Archived, describe
from rpcd.core.errors import BrokerRefused, ChannelClosed, ConnectionLost, ExitCode, ObjectMissing, ReplyCode
from rpcd.core.tables import Headers
from rpcd.core.topology import NO_DELIVERY_LIMIT, DeclareQueue
from rpcd.core.wire import Properties

FIRST_PAGE = 250
LARGEST_PAGE = 65_535
"""The largest prefetch that AMQP has a number for."""

GROWTH = 4
"""How many times as large the next page may be."""

QUIET_SECONDS = 0.2
"""After this long without a message the broker is asked whether there are any left."""

ACKS = 16
"""Acks that are written before the broker is asked whether it has read them."""

STUCK_SECONDS = 30.0
"""How long messages may be there and not come."""

BROKERS_LIMIT = 20
"""The delivery limit of a quorum queue that says none, from RabbitMQ 4.0 on."""

_CURRENT = re.compile(r"current is (?:the value '(?P<limit>-?\d+)'|(?P<none>none))")

Take = Callable[[int, Archived], None]
"""Told the delivery tag of a message, and the message; whatever it raises ends the page."""


@attrs.frozen
class Place:
    """One archive to be read."""

    archive: str
    queue: str | None
    """Where its messages belong; None if only they can tell."""
    arguments: dict[str, Any]
    """What it was declared with, as far as that is known."""


class Worn(Exception):  # no error of the broker's: the queue must not be read
    """Reading this queue would count towards a limit at which the broker drops its messages."""


class Reading:
    """One pass over one archive; reactor only."""

    def __init__(self, protocol: AmqpProtocol, place: Place) -> None:
        """Prepare to read over a connection."""
        self.place = place
        self.channel: Channel | None = None
        self.over: BaseException | None = None
        """Why nothing more can be read, nor acked."""
        self.among_returned = False
        """Whether the last message had come back to its queue before, and the next ones may have."""
        self._protocol = protocol
        self._clock = protocol.clock
        self._pages = 0
        self._left = 0
        self._take: Take = lambda _tag, _message: None
        self._done: set[int] = set()
        self._floor = 0
        self._fault: Exception | None = None
        self._stopped = False
        self._wake: Deferred[None] | None = None
        self._tag = f"rpcd.archive.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(3)}"[-240:]

    async def open(self) -> int:
        """Return how many messages wait there; raise ObjectMissing or BrokerRefused with a sentence."""
        self.channel = await open_channel(self._protocol)
        self.channel.when_closed(self._lost)
        try:
            return await self._count()
        except ChannelClosed as error:
            raise self._refusal(error) from error

    async def page(self, size: int, take: Take) -> int:
        """Have up to `size` messages taken, none of them acked; return how many there were: fewer only at the end."""
        self._take, self._left = take, size
        self._pages += 1
        tag = f"{self._tag}.{self._pages:08d}"
        try:
            await ask(self._open, "basic_qos", prefetch_count=size)
            consuming = self._open.consume(self.place.archive, tag, self._on_delivery, False, {})
            await bounded(consuming, STEP_SECONDS, self._clock, "the broker's answer to basic_consume")
            await self._arrive()
            if self.over is None:
                await ask(self._open, "basic_cancel", consumer_tag=tag)
        except ChannelClosed as error:
            raise self._refusal(error) from error
        missing, self._left = self._left, 0
        fault, self._fault = self._fault, None
        if self.over is not None or fault is not None:
            raise self.over or fault  # type: ignore[misc]  # one of them it is
        return size - missing

    def stop(self) -> None:
        """End the page that is being read; what came of it counts."""
        self._stopped = True
        self._poke()

    def ack(self, tags: Sequence[int]) -> None:
        """Have messages taken out of the archive for good; they are when `settled` returns."""
        self._done.update(tags)

    async def settled(self) -> None:
        """Write all acks and return when the broker has read them: it answers in the order in which it was asked.

        As few as can be: a quorum queue's channel holds back acks beyond its 32nd until those before are written to the
        queue's log, and forgets them if it is closed meanwhile.
        """
        floor = self._floor
        while floor + 1 in self._done:
            floor += 1
            self._done.discard(floor)
        singles, self._done = sorted(self._done), set()
        acks = [(floor, True)] if floor > self._floor else []
        self._floor = floor
        if singles:
            self._floor = -1  # what is kept lies between: no ack may speak for others from here on
        acks += [(tag, False) for tag in singles]
        try:
            for start in range(0, max(1, len(acks)), ACKS):
                if self._open.is_open:
                    self._open.ack(acks[start : start + ACKS])
                await ask(self._open, "basic_qos", prefetch_count=1)
        except ChannelClosed as error:
            raise self._refusal(error) from error

    async def close(self) -> None:
        """Give back what was not acked, when all acks are in the queue's log."""
        self._left = 0
        if self.channel is not None and self.channel.is_open and not self._protocol.is_lost:
            try:
                if self._floor < 0:
                    await self._flush()
                await close(self.channel)
            except ChannelClosed:
                return  # by the broker, meanwhile
            except WaitTooLong as error:  # cut, the connection gives everything back as well
                self._protocol.abort(ConnectionLost(str(error)))

    async def _flush(self) -> None:
        """Have the channel send all acks that it holds back: it does when those before are applied.

        The answer to `basic.cancel` comes when all before it is; one more answer, and the rest is on its way, ahead of the
        close. The consumer that is cancelled may have got a message: that goes back with the others.
        """
        tag = f"{self._tag}.{self._pages + 1:08d}"
        consuming = self._open.consume(self.place.archive, tag, self._on_delivery, False, {})
        await bounded(consuming, STEP_SECONDS, self._clock, "the broker's answer to basic_consume")
        await ask(self._open, "basic_cancel", consumer_tag=tag)
        await ask(self._open, "basic_qos", prefetch_count=1)

    @property
    def _open(self) -> Channel:
        if self.channel is None:
            raise RuntimeError("the archive was not opened")
        return self.channel

    async def _count(self) -> int:
        answer = await ask(self._open, "queue_declare", queue=self.place.archive, passive=True)
        return int(answer.message_count)

    async def _arrive(self) -> None:
        """Wait until the page is full, or there is nothing more."""
        quiet = 0.0
        while self._left and not self._stopped and self.over is None and self._fault is None:
            before = self._left
            await self._event(QUIET_SECONDS)
            if self._left != before or not self._left or self.over is not None:
                quiet = 0.0
                continue
            if not await self._count():
                return
            quiet += QUIET_SECONDS
            if self._left == before and quiet >= STUCK_SECONDS:
                raise WaitTooLong(
                    f"archive {self.place.archive!r} has messages and delivers none; perhaps it has a single active "
                    "consumer, and that is somebody else"
                )

    def _on_delivery(
        self, tag: int, _redelivered: bool, exchange: Any, routing_key: Any, properties: Properties, body: bytes
    ) -> None:
        headers = properties.headers
        self.among_returned = isinstance(headers, Headers) and bool(headers.get(DELIVERIES_HEADER))
        if not self._left or self._fault is not None:
            return  # it came late, and goes back with the channel
        self._left -= 1
        try:
            self._take(tag, describe(self.place.archive, exchange, routing_key, properties, body))
        except Exception as error:  # noqa: BLE001  # told to whoever reads the page; the connection can't help it
            self._fault = error
        if not self._left or self._fault is not None:
            self._poke()

    async def _event(self, seconds: float) -> None:
        self._wake = Deferred()
        timer = self._clock.callLater(seconds, self._poke)
        await self._wake
        self._wake = None
        if timer.active():
            timer.cancel()

    def _poke(self) -> None:
        if self._wake is not None and not self._wake.called:
            self._wake.callback(None)

    def _lost(self, reason: Exception) -> None:
        if self.over is None:
            self.over = self._refusal(reason) if isinstance(reason, ChannelClosed) else reason
        self._poke()

    def _refusal(self, error: ChannelClosed) -> Exception:
        """Turn the broker's refusal to let us read into a sentence with the way out."""
        name = self.place.archive
        if error.code == ReplyCode.ACCESS_REFUSED and "exclusive" not in error.text:
            remedy = f"grant the permission `read` on {name!r}"
            return BrokerRefused(f"the broker refused to deliver from archive {name!r}: {error}; {remedy}", ExitCode.NOPERM)
        if error.code == ReplyCode.NOT_FOUND:
            return ObjectMissing(f"there is no archive {name!r}: {error}")
        if error.code in (ReplyCode.ACCESS_REFUSED, ReplyCode.RESOURCE_LOCKED):
            return ObjectMissing(f"archive {name!r} is for somebody else alone: {error}")
        if "timeout" in error.text:
            return ConnectionLost(f"the broker took archive {name!r} back, for it was held too long: {error}")
        return refusal(_declaration(self.place, {}), error)


def _declaration(place: Place, arguments: dict[str, Any]) -> DeclareQueue:
    return DeclareQueue(f"archive {place.archive}", place.archive, True, False, False, False, arguments)


async def limit_of(protocol: AmqpProtocol, place: Place) -> int | None:
    """Return how often a message of a queue may be read before the broker drops it; None for no limit, or if nobody knows.

    AMQP has no question for that, but a broker that is told of other arguments than a queue has says which differ. So it is
    told of an archive without a limit; the queue must exist. Who may not declare is told nothing, and nothing is changed.
    """
    modern = protocol.broker_version >= (4,)
    arguments = {"x-queue-type": "quorum", **place.arguments, **(NO_DELIVERY_LIMIT if modern else {})}
    channel = await open_channel(protocol)
    try:
        await ask(channel, "queue_declare", queue=place.archive, durable=True, arguments=arguments)
    except ChannelClosed as error:
        found = _CURRENT.search(error.text) if "x-delivery-limit" in error.text else None
        if found is None:
            return None
        limit = BROKERS_LIMIT if found["none"] else int(found["limit"])
        return limit if limit >= 0 else None
    await close(channel)
    return None
