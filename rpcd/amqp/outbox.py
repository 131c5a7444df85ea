"""Confirmed publishing on one channel: what is on its way, and what to do when it is refused, returned or met by silence.

Theory. Every publication has a number on its channel, counted from 1 by both sides. It ends in one of these ways:

    confirmed    the broker has taken responsibility: the Deferred fires
    returned     no queue wanted a mandatory one: Unroutable. The return comes before the confirm and names no number, so it
                 is matched by the publication's own token
    nacked       the broker could not take it (a full queue): tried again with growing pauses
    silent       no confirm in `confirm_timeout`: the channel is dropped and everything on it is sent again
    channel lost whatever was on it is sent again. If the broker closed it over one publication (404, 403, 406), that one is
                 refused and the innocent go out again; when its words don't tell which one it was, they go one at a time.
                 So they do when the whole connection was closed over what was written (501 to 541), and one that was alone
                 on its way each time, STRIKES times, is refused
    too late     not confirmed in `publish_timeout`: PublishTimeout

A publication may therefore arrive twice; it is never silently lost.
"""

import logging
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from rpcd.amqp.channel import Channel
from rpcd.amqp.full import Full
from rpcd.amqp.pending import Pending
from rpcd.core.copies import COPY_HEADER
from rpcd.core.errors import (
    HARD_ERRORS,
    ChannelClosed,
    ConnectionLost,
    PublishRefused,
    PublishTimeout,
    ReplyCode,
    Unroutable,
)
from rpcd.core.outgoing import Outgoing
from rpcd.core.stats import OutboxStats
from rpcd.core.tables import Headers
from rpcd.core.wire import Properties

MAX_IN_FLIGHT_BYTES = 64 * 1024 * 1024
"""Bytes that may be written without a confirm; pika and the transport would buffer without limit."""

NACK_PAUSES = (0.1, 5.0)
"""The first and the longest pause in seconds before a nacked publication is tried again."""

STRIKES = 3
"""How often a publication may be alone on its way when the broker closes the connection: others use it, too."""

log = logging.getLogger("rpcd.publisher")

_NAMED = re.compile(r"exchange '(?P<exchange>[^']*)'")
_TOO_BIG = re.compile(r"larger than (?:configured )?max size (?P<most>\d+)")


class Outbox:
    """The publications of one confirm channel, which may be lost and replaced; reactor only."""

    def __init__(self, reactor: Any, confirm_timeout: float, publish_timeout: float) -> None:
        """Prepare an outbox without a channel; what is published waits for one."""
        self.blocked = False
        self.stats = OutboxStats()
        self._full = Full()
        self._reactor = reactor
        self._confirm_timeout = confirm_timeout
        self._publish_timeout = publish_timeout
        self._channel: Channel | None = None
        self._drop: Callable[[str], None] = lambda _reason: None
        self._next = 1
        self._bytes = 0
        self._flying: OrderedDict[int, Pending] = OrderedDict()
        self._backlog: deque[Pending] = deque()
        self._one_at_a_time = 0
        self._blocked_since = 0.0
        self._pausing = 0

    def __len__(self) -> int:
        return len(self._flying) + len(self._backlog) + self._pausing

    @property
    def unconfirmed(self) -> int:
        """How many publications are written and not confirmed; all others wait to be written."""
        return len(self._flying)

    def refuses(self, queue: str) -> bool:
        """Tell whether the broker refused what was last published straight to a queue: it is full, for all we know."""
        return queue in self._full

    def is_silent(self, queue: str) -> bool:
        """Tell whether the broker did not confirm what was last published straight to a queue."""
        return self._full.is_silent(queue)

    def publish(self, outgoing: Outgoing, again: Callable[[], None] | None = None) -> Deferred[None]:
        """Publish; fires when confirmed, fails with Unroutable, PublishRefused or PublishTimeout.

        `again` is called whenever it is sent anew, because its channel was lost: it may arrive twice then.
        """
        pending = Pending(outgoing, time.monotonic() + self._publish_timeout, again)
        self._backlog.append(pending)
        self._send()
        return pending.deferred

    async def attach(self, channel: Channel, drop: Callable[[str], None]) -> None:
        """Use a fresh channel: switch confirms on and send what waits; `drop` gives the channel up."""
        await channel.confirm(self._on_confirm, self._on_return)
        self._channel, self._drop, self._next = channel, drop, 1
        channel.when_closed(self._detach)
        self._send()

    def _send(self) -> None:
        channel = self._channel
        while self._backlog and channel is not None and channel.is_open and not self.blocked:
            pending = self._backlog[0]
            size = _size(pending)
            if self._flying and (self._one_at_a_time or self._bytes + size > MAX_IN_FLIGHT_BYTES):
                return
            self._backlog.popleft()
            if pending.deferred.called:
                continue
            try:
                channel.publish(pending.outgoing)
            except Exception as error:  # noqa: BLE001  # nothing was written, so it takes no number
                self.stats.refused += 1
                pending.finish(PublishRefused(f"it can't be written: {error}"))
                continue
            pending.sent, pending.returned = time.monotonic(), None
            self._flying[self._next] = pending
            self._next += 1
            self._bytes += size

    def _land(self, number: int) -> Pending | None:
        pending = self._flying.pop(number, None)
        if pending is not None:
            self._bytes -= _size(pending)
            self._one_at_a_time = max(0, self._one_at_a_time - 1)
        return pending

    def _on_confirm(self, number: int, multiple: bool, taken: bool) -> None:
        if multiple:
            while self._flying and (oldest := next(iter(self._flying))) <= number:
                self._confirmed(oldest, taken)
        else:
            self._confirmed(number, taken)
        self._send()

    def _confirmed(self, number: int, taken: bool) -> None:
        pending = self._land(number)
        if pending is None:
            return
        if not taken:
            self._nacked(pending)
        elif pending.returned is not None:
            self.stats.unroutable += 1
            pending.finish(Unroutable(pending.returned))
        else:
            self.stats.confirmed += 1
            if self._full:
                self._full.taken(pending.outgoing)
            pending.finish()

    def _nacked(self, pending: Pending) -> None:
        pause = min(NACK_PAUSES[1], NACK_PAUSES[0] * 2**pending.nacks)
        pending.nacks += 1
        self.stats.nacked += 1
        self._full.refused(pending.outgoing, self._publish_timeout)
        if time.monotonic() + pause >= pending.expires:
            self.stats.late += not pending.deferred.called
            pending.finish(
                PublishTimeout(f"the broker refused to take it for {self._publish_timeout:g} s (is the queue full?)")
            )
        else:
            self._pausing += 1
            self._reactor.callLater(pause, self._again, pending)

    def _again(self, pending: Pending) -> None:
        self._pausing -= 1
        self._backlog.append(pending)
        self._send()

    def _on_return(self, code: int, text: str, exchange: str, routing_key: str, properties: Properties) -> None:
        """Mark the publication that came back; tokens tell them apart, and the oldest comes back first."""
        headers = properties.headers
        token = (
            headers.get(COPY_HEADER) if isinstance(headers, Headers) and COPY_HEADER in headers else properties.message_id
        )
        for pending in self._flying.values():
            outgoing = pending.outgoing
            same = outgoing.mandatory and outgoing.exchange == exchange and outgoing.routing_key == routing_key
            if same and pending.returned is None and (not outgoing.token or outgoing.token == token):
                pending.returned = f"no queue takes exchange {exchange!r}, key {routing_key!r}: {code} {text}"
                return

    def _detach(self, reason: Exception) -> None:
        """Take everything back that was on a lost channel, and find the one that the broker closed it over."""
        flying = list(self._flying.values())
        self._channel, self._bytes = None, 0
        self._flying.clear()
        guilty: list[Pending] = []
        if isinstance(reason, ChannelClosed) and flying:
            guilty = culprits(reason, flying)
            self._one_at_a_time = 0 if guilty else len(flying)
        elif isinstance(reason, ConnectionLost) and reason.code in (*HARD_ERRORS, ReplyCode.INTERNAL_ERROR):
            guilty = struck(flying)
            self._one_at_a_time = len(flying)
        innocent = [each for each in flying if each not in guilty]
        self._backlog.extendleft(reversed(innocent))
        self.stats.republished += len(innocent)
        for each in innocent:
            if each.again is not None:
                each.again()
        self.stats.refused += len(guilty)
        for each in guilty:
            each.finish(PublishRefused(f"the broker refused it: {reason}"))

    def block(self, blocked: bool) -> None:
        """Be told that the broker takes nothing for now, or again: publications wait, and no time limit runs meanwhile."""
        if blocked is self.blocked:
            return
        now, self.blocked = time.monotonic(), blocked
        if blocked:
            self._blocked_since = now
            return
        for pending in (*self._flying.values(), *self._backlog):
            pending.expires += now - self._blocked_since
            pending.sent += now - self._blocked_since
        self._send()

    def sweep(self) -> None:
        """Give up what is too late, and a channel that keeps silent; called every second."""
        now = time.monotonic()
        if self.blocked:
            return
        for pending in [each for each in (*self._flying.values(), *self._backlog) if each.expires <= now]:
            self.stats.late += not pending.deferred.called
            pending.finish(PublishTimeout(f"not confirmed within {self._publish_timeout:g} s"))
        self._backlog = deque(each for each in self._backlog if not each.deferred.called)
        oldest = next(iter(self._flying.values()), None)
        if oldest is not None and now - oldest.sent > self._confirm_timeout:
            self.stats.silences += 1
            for pending in self._flying.values():
                if now - pending.sent > self._confirm_timeout:
                    self._full.silent(pending.outgoing)
            log.warning("no confirm for %g s; to be published again: %s", self._confirm_timeout, len(self._flying))
            self._drop(f"no confirm for {self._confirm_timeout:g} s")


def _size(pending: Pending) -> int:
    body = pending.outgoing.body
    return 1024 + (len(body) if isinstance(body, bytes) else 0)  # anything else is refused when it is to be written


def struck(flying: list[Pending]) -> list[Pending]:
    """Count that the broker closed the connection; return the publication that was alone on its way too often."""
    if len(flying) != 1:
        return []
    flying[0].strikes += 1
    return flying if flying[0].strikes >= STRIKES else []


def culprits(reason: ChannelClosed, flying: list[Pending]) -> list[Pending]:
    """Return the publications that the broker closed the channel over, as far as its words tell."""
    if len(flying) == 1:
        return flying
    named, too_big = _NAMED.search(reason.text), _TOO_BIG.search(reason.text)
    if named is not None:
        return [each for each in flying if each.outgoing.exchange == named["exchange"]]
    if too_big is not None:
        return [each for each in flying if len(each.outgoing.body) > int(too_big["most"])]
    return []
