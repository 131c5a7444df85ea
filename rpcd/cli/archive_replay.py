"""Replaying: archived messages go back to work, each confirmed by the broker before it leaves its archive.

Theory. A message is in one of three places: still in the archive; on its way; or confirmed, and then acked. Killed at any
moment, what is on its way or whose ack the broker has not read is there twice. So no more than a window of messages goes
out before the broker is known to have read all acks of the window before: that many may be replayed a second time by the
next run, never more, and their copies have the same id (`x-rpcd-copy`) both times.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from rpcd.amqp.channel import Channel
from rpcd.amqp.outbox import Outbox
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import bounded, repeating
from rpcd.cli.archive_read import LARGEST_PAGE, Reading
from rpcd.cli.archive_work import Report
from rpcd.cli.stream import SWEEP_SECONDS, Pace
from rpcd.core.archived import Archived, fingerprint
from rpcd.core.copies import COPY_HEADER, replay_copy
from rpcd.core.errors import ChannelClosed, ConnectionLost, PublishRefused, ReplyCode, RpcdError
from rpcd.core.outgoing import Outgoing
from rpcd.core.tables import ShortString

ROOM = 64 * 1024 * 1024
"""Bytes of messages that are held at a time, about."""

OVERHEAD = 4096
"""What a message takes besides its body, about."""

LONGEST = 60.0
"""Seconds for which messages of a page are held at most, where a rate slows it down; the broker takes them back some day."""

NOWHERE = "nobody knows which queue it belongs to: give --to"


@attrs.frozen
class Target:
    """Where messages are replayed to."""

    exchange: str
    routing_key: ShortString
    keeps_first: bool
    """Whether the handler sees the exchange and key of the first publication."""


Aim = Callable[[Archived], Target | None]


def copy_of(message: Archived, target: Target, now: float) -> Outgoing:
    """Make the copy by which an archived message is replayed."""
    first = (message.exchange, message.routing_key) if target.keeps_first else None
    known = message.properties.message_id is not None or COPY_HEADER in message.headers
    token = fingerprint(message.properties, message.body) if known else os.urandom(8).hex()  # twins are two messages
    return replay_copy(message.properties, message.body, target.exchange, target.routing_key, first, token, now)


class Replays:
    """Publishes copies and acks what they are copies of; reactor only."""

    def __init__(self, aim: Aim, pace: Pace) -> None:
        """Take what says where a message goes."""
        self.report = Report()
        self.blocked: Callable[[str | None], None] = lambda _reason: None
        """Told that the broker takes nothing for now (an alarm) and, with None, that it does again."""
        self.moved: Callable[[int, int], None] = lambda _done, _seen: None
        """Told how many messages are replayed, and how many were seen."""
        self._aim = aim
        self._pace = pace
        self._chosen: list[tuple[int, Outgoing]] = []
        self._largest = 0
        self._flying: dict[int, None] = {}
        self._over: BaseException | None = None
        self._stopped = False
        self._wake: Deferred[None] | None = None
        self._due = 0.0
        self._channel: Channel | None = None
        self._outbox: Outbox | None = None
        self._clock: Any = None

    async def begin(self, protocol: AmqpProtocol) -> None:
        """Open a confirmed channel of its own."""
        self._clock, timeout = protocol.clock, self._pace.timeout
        outbox = self._outbox = Outbox(self._clock, timeout, timeout)
        channel = self._channel = await bounded(protocol.open_channel(), timeout, self._clock, "opening a channel")
        attached = Deferred.fromCoroutine(outbox.attach(channel, lambda reason: protocol.abort(ConnectionLost(reason))))
        await bounded(attached, timeout, self._clock, "switching confirms on")
        channel.when_closed(self._lost)

        def on_blocked(reason: str | None) -> None:
            outbox.block(reason is not None)
            self.blocked(reason)

        protocol.on_blocked = on_blocked  # type: ignore[method-assign]  # made to be replaced
        repeating(outbox.sweep, self._clock).start(SWEEP_SECONDS, now=False)

    def room(self) -> int:
        """Return how many messages may be held: as many as fit, and as can be replayed soon."""
        fitting = ROOM // (self._largest + OVERHEAD) if self._largest else self._pace.window
        soon = int(self._pace.rate * LONGEST) if self._pace.rate else LARGEST_PAGE
        return min(fitting, soon)

    def take(self, tag: int, message: Archived) -> bool:
        """Make the copy of one message."""
        self._largest = max(self._largest, message.size, 1)
        target = self._aim(message)
        why = NOWHERE if target is None else message.hindrance
        if target is None or why is not None:
            self.report.hindered[str(why)] = self.report.hindered.get(str(why), 0) + 1
            return False
        self._chosen.append((tag, copy_of(message, target, time.time())))
        return True

    async def settle(self, reading: Reading) -> None:
        """Publish what was taken, a window at a time; raise what keeps the rest from being published."""
        chosen, self._chosen = self._chosen, []
        for start in range(0, len(chosen), self._pace.window):
            for tag, copy in chosen[start : start + self._pace.window]:
                await self._wait_for_its_turn()
                if self._over is not None or self._stopped or reading.over is not None:
                    break
                self._publish(reading, tag, copy)
            await self._land()
            try:
                await reading.settled()  # even after a failure: what is confirmed must not come again
            except RpcdError:
                if self._over is None:
                    raise
            if self._over is not None:
                raise self._over
            if self._stopped:
                return

    def stop(self) -> None:
        """Publish no more."""
        self._stopped = True
        self._poke()

    async def _wait_for_its_turn(self) -> None:
        if not self._pace.rate:
            return
        while (pause := self._due - self._clock.seconds()) > 0 and self._over is None and not self._stopped:
            await self._event(pause)
        self._due = max(self._due, self._clock.seconds()) + 1 / self._pace.rate

    def _publish(self, reading: Reading, tag: int, copy: Outgoing) -> None:
        def confirmed(_none: None) -> None:
            del self._flying[tag]
            reading.ack([tag])
            self.report.done += 1
            self.moved(self.report.done, self.report.seen)
            self._poke()

        def failed(failure: Failure) -> None:
            del self._flying[tag]
            self._over = self._over or self._cause(failure.value)
            self._poke()

        if self._outbox is None:
            raise RuntimeError("replaying has not begun")
        self._flying[tag] = None
        self._outbox.publish(copy).addCallbacks(confirmed, failed)

    def _cause(self, error: BaseException | None) -> BaseException:
        """Return the broker's own error where it names what is missing: a permission, or the exchange."""
        reason = self._channel.reason if self._channel is not None else None
        named = (ReplyCode.ACCESS_REFUSED, ReplyCode.NOT_FOUND)
        refused = isinstance(reason, ChannelClosed) and reason.code in named
        if reason is not None and refused and isinstance(error, PublishRefused):
            return reason
        return error or ConnectionLost("it was not published")

    def _lost(self, reason: Exception) -> None:
        self._over = self._over or reason
        self._poke()

    async def _land(self) -> None:
        """Wait for the confirms of what is on its way, as long as any can come."""
        while self._flying and (self._channel is None or self._channel.reason is None):
            await self._event(SWEEP_SECONDS)  # the outbox gives up by itself what is not confirmed in time

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
