"""Calls on a connection that comes and goes: what is outstanding, what waits to be sent, and how each call ends.

Theory. A call waits until its request can be written, is written once, and ends in one of these ways:

    answered     its reply has come; what that says is for the one who asked to read
    returned     no queue takes it: Unroutable, at once
    refused      there is no such exchange, or no permission to write to it: PublishRefused, at once
    timed out    CallTimeout, which says whether it was written. A reply that comes later is dropped and counted
    interrupted  the channel or the connection it was written to has ended: CallInterrupted, at once. Replies of direct
                 reply-to go to that channel alone, so none can come any more; whether it was handled nobody knows, so it
                 is not written again
    cancelled    by the one who asked

What is not written yet survives a lost connection: it waits for the next one, or for the end of an alarm.

The broker closes a channel over a request that it refuses, and with it every call on that channel. So each exchange has a
channel of its own, opened at the first call: a mistake about one never fails a call through another. Who never asks has
none.
"""

import logging
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from rpcd.amqp.caller import Answer, Caller
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import WaitTooLong, bounded, exc_info
from rpcd.core.errors import (
    CallInterrupted,
    CallTimeout,
    ChannelClosed,
    ConnectionLost,
    ConsumerCancelled,
    PublishRefused,
    ReplyCode,
    RpcdError,
)
from rpcd.core.outgoing import Outgoing
from rpcd.core.stats import CallStats

OPEN_SECONDS = 30.0
"""How long the broker may take to open a channel, and again to let it listen for replies."""

MOST_CHANNELS = 64
"""Idle channels of other exchanges are closed beyond this many."""

log = logging.getLogger("rpcd.publisher")

UNKNOWN = "; the request may or may not have been handled, and is not sent again"


class Call:
    """One call that has not ended."""

    __slots__ = ("answer", "correlation_id", "request", "seconds", "timer", "way")

    def __init__(self, request: Outgoing, correlation_id: str, seconds: float, way: "Way", answer: Deferred[Answer]) -> None:
        """Take what is asked; `answer` is what the one who asked waits for."""
        self.request = request
        self.correlation_id = correlation_id
        self.seconds = seconds
        self.way = way
        self.answer = answer
        self.timer: Any = None


class Way:
    """The calls through one exchange: those that wait, and the channel that the others were written to."""

    __slots__ = ("caller", "opening", "waiting")

    def __init__(self) -> None:
        """Nothing is asked and nothing open."""
        self.waiting: dict[str, Call] = {}
        self.caller: Caller | None = None
        self.opening = False

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything here."""
        return not self.waiting and not self.opening and (self.caller is None or not len(self.caller))


class Asking:
    """All calls of a process on one connection, which may be lost and made again; reactor only."""

    def __init__(self, reactor: Any, why: Callable[[], str | None]) -> None:
        """Prepare to ask; `why` tells why nothing can be sent right now, if it knows."""
        self.stats = CallStats()
        self._reactor = reactor
        self._why = why
        self._protocol: AmqpProtocol | None = None
        self._blocked = False
        self._closed: str | None = None
        self._ways: dict[str, Way] = {}
        self._outstanding = 0

    def __len__(self) -> int:
        return self._outstanding

    def call(self, request: Outgoing, correlation_id: str, seconds: float) -> Deferred[Answer]:
        """Ask; see the theory for how it ends. Cancel the Deferred to wait no longer.

        `request` is mandatory, and carries the correlation id and direct reply-to. `seconds` is how long it may take.
        """
        way = self._ways.get(request.exchange)
        if way is None:
            way = self._ways[request.exchange] = Way()
        answer: Deferred[Answer] = Deferred(lambda _answer: None)  # cancelled, it fails by itself and ends like all others
        call = Call(request, correlation_id, seconds, way, answer)
        self._outstanding += 1
        self.stats.made += 1
        answer.addBoth(self._ended, call)
        if self._closed is not None:
            answer.errback(CallInterrupted(f"{self._closed}; the request was not sent"))
            return answer
        call.timer = self._reactor.callLater(seconds, self._late, call)
        way.waiting[correlation_id] = call
        self._send(request.exchange, way)
        return answer

    def fail(self, reason: Exception) -> None:
        """End all calls that wait to be sent, because that will not be for long."""
        for call in [call for way in self._ways.values() for call in way.waiting.values()]:
            call.answer.errback(reason)

    def close(self, why: str) -> None:
        """End all calls, and those to come, because the connection is given up for good; what is open is closed with it."""
        self._closed = why
        self.fail(CallInterrupted(f"{why}; the request was not sent"))
        for way in list(self._ways.values()):
            if way.caller is not None:
                way.caller.end(CallInterrupted(f"{why}{UNKNOWN}"))

    # The connection -------------------------------------------------------------------------------

    def attach(self, protocol: AmqpProtocol) -> None:
        """Use a fresh connection, until it is lost."""
        self._protocol = protocol
        protocol.when_lost(lambda _reason: self._lost(protocol))
        self._send_all()

    def _lost(self, protocol: AmqpProtocol) -> None:
        if self._protocol is protocol:
            self._protocol = None

    def block(self, blocked: bool) -> None:
        """Be told that the broker takes nothing for now, or again: what is not written waits, as long as its time lasts."""
        self._blocked = blocked
        if not blocked:
            self._send_all()

    def _send_all(self) -> None:
        for exchange, way in list(self._ways.items()):
            self._send(exchange, way)

    def _send(self, exchange: str, way: Way) -> None:
        """Write what waits, if it can be written; see to it that it soon can if not."""
        protocol, caller = self._protocol, way.caller
        if protocol is None or self._blocked or not way.waiting:
            return
        if caller is None:
            if not way.opening:
                way.opening = True
                self._make_room()
                opening = Deferred.fromCoroutine(self._open(exchange, way, protocol))
                opening.addErrback(self._not_opened, exchange, way, protocol)
            return
        if not caller.is_open:
            return  # its end will be heard of in a moment
        waiting, way.waiting = way.waiting, {}
        for call in waiting.values():
            try:
                caller.send(call.request, call.correlation_id, call.answer)
            except Exception as error:  # noqa: BLE001  # nothing was written
                call.answer.errback(PublishRefused(f"it can't be written: {error}"))

    # Channels -------------------------------------------------------------------------------------

    async def _open(self, exchange: str, way: Way, protocol: AmqpProtocol) -> None:
        channel = await bounded(protocol.open_channel(), OPEN_SECONDS, self._reactor, "opening a channel for calls")
        caller = Caller(channel, self._unclaimed)
        await caller.open(OPEN_SECONDS)
        way.opening, way.caller = False, caller
        channel.when_closed(lambda _reason: self._channel_closed(exchange, way))
        self._send(exchange, way)

    def _not_opened(self, failure: Failure, exchange: str, way: Way, protocol: AmqpProtocol) -> None:
        way.opening = False
        if protocol.is_lost or self._protocol is not protocol:
            self._send(exchange, way)  # there may be another connection already
        elif failure.check(RpcdError) is not None:
            for call in list(way.waiting.values()):
                call.answer.errback(PublishRefused(f"no channel for calls can be opened: {failure.value}"))
        elif failure.check(WaitTooLong) is None:
            log.critical("a fault of rpcd", exc_info=exc_info(failure))
        elif not self._blocked:
            protocol.abort(ConnectionLost(str(failure.value)))

    def _channel_closed(self, exchange: str, way: Way) -> None:
        way.caller = None
        if way.waiting:
            self._send(exchange, way)
        elif self._ways.get(exchange) is way:
            del self._ways[exchange]

    def _make_room(self) -> None:
        """Close a channel that nobody uses, the oldest, if there are many."""
        if sum(way.caller is not None or way.opening for way in self._ways.values()) > MOST_CHANNELS:
            idle = next((exchange for exchange, way in self._ways.items() if way.idle), None)
            if idle is not None and (caller := self._ways.pop(idle).caller) is not None:
                caller.close()

    # Ends -----------------------------------------------------------------------------------------

    def _unclaimed(self) -> None:
        self.stats.replies_unclaimed += 1

    def _late(self, call: Call) -> None:
        if call.correlation_id not in call.way.waiting:
            text = f"no reply within {call.seconds:g} s"
        elif (why := self._why()) is not None:
            text = f"the request could not be sent within {call.seconds:g} s: {why}"
        else:
            text = f"the request could not be sent within {call.seconds:g} s: the broker has opened no channel"
        call.answer.errback(CallTimeout(text))

    def _ended(self, result: Answer | Failure, call: Call) -> Any:
        """Forget a call, however it has ended; its failure becomes one that its caller can understand."""
        self._outstanding -= 1
        if call.timer is not None and call.timer.active():
            call.timer.cancel()
        call.way.waiting.pop(call.correlation_id, None)
        way, exchange = call.way, call.request.exchange
        if way.caller is not None:
            way.caller.forget(call.correlation_id)
        elif way.idle and self._ways.get(exchange) is way:
            del self._ways[exchange]  # nothing was ever opened for it
        if isinstance(result, Failure):
            result = Failure(_meant(result.value))
        self.stats.end(result.value if isinstance(result, Failure) else None)
        return result


def _meant(error: BaseException | None) -> Any:
    """Return what the end of a channel or a connection means for a call that was written to it."""
    if isinstance(error, ChannelClosed) and error.code in (ReplyCode.ACCESS_REFUSED, ReplyCode.NOT_FOUND):
        return PublishRefused(f"the broker refused it: {error}")
    if isinstance(error, ChannelClosed | ConnectionLost | ConsumerCancelled):
        return CallInterrupted(f"{error}{UNKNOWN}")
    return error
