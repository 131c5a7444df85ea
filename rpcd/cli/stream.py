"""Publishing line after line: some in flight at a time, and never a doubt about which line to go on from.

A line is safe when the broker has confirmed its message. The first line that is not, whatever the reason, is where the next
run has to begin; what was confirmed behind it is then sent a second time (at least once, never at most once).
"""

from collections.abc import Callable

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from rpcd.amqp.channel import Channel
from rpcd.amqp.outbox import Outbox
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import WaitTooLong, bounded, repeating
from rpcd.cli.compose import Composer
from rpcd.cli.lines import Lines
from rpcd.core.errors import ChannelClosed, ConnectionLost, PublishRefused, ReplyCode

SWEEP_SECONDS = 1.0


class BadLine(ValueError):
    """A line is no message, or can't be read."""


@attrs.define
class Report:
    """How far publishing came."""

    published: int = 0
    """Messages that the broker has confirmed."""
    go_on_from: int | None = None
    """The first line that is not safe; None if all are."""
    error: BaseException | None = None
    """What went wrong with that line, or with everything."""
    line: int | None = None
    """The line at fault; None if it was none's."""
    interrupted: bool = False


@attrs.frozen
class Pace:
    """How fast, and how patiently."""

    window: int
    rate: float | None
    timeout: float


class Stream:
    """One run over a file, on one connection; reactor only."""

    def __init__(self, protocol: AmqpProtocol, composer: Composer, pace: Pace, first: int) -> None:
        """Prepare to publish the lines from number `first` on."""
        self.report = Report()
        self.blocked: Callable[[str | None], None] = lambda _reason: None
        """Told that the broker takes nothing for now (an alarm) and, with None, that it does again."""
        self.progress: Callable[[int, int], None] = lambda _published, _bytes: None
        """Told how many messages are published, and how many bytes of the file were taken."""
        self._protocol = protocol
        self._clock = protocol.clock
        self._composer = composer
        self._pace = pace
        self._first = first
        self._flying: dict[int, None] = {}
        self._wrong: dict[int, BaseException] = {}
        self._over: BaseException | None = None
        self._wake: Deferred[None] | None = None
        self._due = 0.0
        self._outbox = Outbox(self._clock, pace.timeout, pace.timeout)
        self._channel: Channel | None = None
        self._lines: Lines | None = None

    async def run(self, descriptor: int) -> Report:
        """Publish until the end of the file or the first trouble, then wait for what is on its way."""
        self._channel = await bounded(self._protocol.open_channel(), self._pace.timeout, self._clock, "opening a channel")
        await bounded(
            Deferred.fromCoroutine(self._outbox.attach(self._channel, self._silent)),
            self._pace.timeout,
            self._clock,
            "switching confirms on",
        )
        self._channel.when_closed(self._lost)
        self._protocol.on_blocked = self._on_blocked  # type: ignore[method-assign]  # made to be replaced
        lines = self._lines = Lines(descriptor, self._clock, self._poke)
        sweeping = repeating(self._outbox.sweep, self._clock)
        sweeping.start(SWEEP_SECONDS, now=False)
        lines.start()
        try:
            await self._send(lines)
        except CancelledError:
            self.report.interrupted = True
        await self._land()
        sweeping.stop()
        return self._summary(lines)

    async def _send(self, lines: Lines) -> None:
        while not (self._over or self._wrong or lines.ended):
            pause = self._due - self._clock.seconds() if self._pace.rate else 0.0
            if len(self._flying) >= self._pace.window or pause > 0:
                await self._event(pause)
                continue
            line = lines.take()
            if line is None:
                if not lines.ended:
                    await self._event(0.0)
            elif lines.number >= self._first and line.strip():
                self._publish(lines.number, line)
        if lines.trouble is not None and not self._wrong:
            self._wrong[lines.number + 1] = BadLine(lines.trouble)

    async def _event(self, pause: float) -> None:
        """Wait until something has happened, or the pause is over."""
        self._wake = Deferred()
        timer = self._clock.callLater(pause, self._poke) if pause > 0 else None
        try:
            await self._wake
        finally:
            self._wake = None
            if timer is not None and timer.active():
                timer.cancel()

    def _poke(self) -> None:
        if self._wake is not None and not self._wake.called:
            self._wake.callback(None)

    def _publish(self, number: int, line: bytes) -> None:
        try:
            message = self._composer.make(line)
        except ValueError as error:
            self._wrong[number] = BadLine(str(error))
            return
        if self._pace.rate:
            self._due = max(self._due, self._clock.seconds() - 1 / self._pace.rate) + 1 / self._pace.rate
        self._flying[number] = None
        self._outbox.publish(message).addCallbacks(self._confirmed, self._failed, (number,), {}, (number,))

    def _confirmed(self, _none: None, number: int) -> None:
        del self._flying[number]
        self.report.published += 1
        self.progress(self.report.published, self._lines.taken if self._lines is not None else 0)
        self._poke()

    def _failed(self, failure: Failure, number: int) -> None:
        del self._flying[number]
        self._wrong[number] = self._cause(failure.value)
        self._poke()

    def _cause(self, error: BaseException | None) -> BaseException:
        """Return the broker's own error where it tells a missing permission from a missing exchange."""
        reason = self._channel.reason if self._channel is not None else None
        if (
            isinstance(error, PublishRefused)
            and isinstance(reason, ChannelClosed)
            and reason.code == ReplyCode.ACCESS_REFUSED
        ):
            return reason
        return error or ConnectionLost("it was not published")

    def _lost(self, reason: Exception) -> None:
        """Take the end of the channel for the end of everything: what was on its way is in doubt, and is so reported."""
        self._over = reason
        self._poke()

    def _silent(self, reason: str) -> None:
        self._protocol.abort(ConnectionLost(reason))

    def _on_blocked(self, reason: str | None) -> None:
        self._outbox.block(reason is not None)
        self.blocked(reason)

    async def _land(self) -> None:
        """Wait for the confirms of what is on its way, as long as any can come."""
        deadline = self._clock.seconds() + self._pace.timeout
        while self._flying and self._over is None:
            left = deadline - self._clock.seconds()
            if left <= 0:
                self._over = WaitTooLong(f"the confirms took longer than {self._pace.timeout:g} s")
                return
            await self._event(left)

    def _summary(self, lines: Lines) -> Report:
        report = self.report
        unsafe = [*self._flying, *self._wrong, *([] if lines.ended else [max(lines.number + 1, self._first)])]
        report.go_on_from = min(unsafe, default=None)
        if self._wrong:
            report.line = min(self._wrong)
            report.error = self._wrong[report.line]
        elif not report.interrupted or self._flying:
            report.error = self._over
        return report
