"""How many messages wait in retry queues and lie in archives, asked of the broker while somebody wants to know.

A passive declaration needs no permission and changes nothing, but where the queue is missing it costs its channel. So it has
a channel of its own, on the publishing connection; what can't be told is left out. Nobody waits for an answer: a scrape is
shown what was told last.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from rpcd.amqp.channel import Channel
from rpcd.amqp.plan import Plan
from rpcd.amqp.publisher import Publisher
from rpcd.amqp.waiting import WaitTooLong, bounded, repeating
from rpcd.core.copies import archive_queue, retry_queue
from rpcd.core.errors import ChannelClosed, RpcdError

EVERY_SECONDS = 15.0
"""How often the broker is asked."""

WANTED_SECONDS = 300.0
"""For how long it is asked after the last scrape."""

ANSWER_SECONDS = 5.0
"""How long an answer may take; a quorum queue without a leader never gives one."""


@attrs.frozen
class Place:
    """A queue that rpcd has added to a consumer's own."""

    consumer: str
    queue: str
    """The consumer's queue, or its section if the broker names it."""
    step: str | None
    """The retry step in milliseconds, as the name of its queue has it; None for the archive."""
    name: str


def places(plans: Iterable[Plan]) -> Iterator[Place]:
    """Yield the archive and the retry queues of consumers; what is retried in the process has none."""
    for plan in plans:
        yield Place(plan.name, plan.title, None, archive_queue(plan.title))
        if plan.policy.longest is None:
            for step in dict.fromkeys(plan.section.steps.milliseconds):
                yield Place(plan.name, plan.title, str(step), retry_queue(plan.queue, step))


class Depths:
    """Asks, and keeps the answers; reactor only."""

    def __init__(self, plans: Iterable[Plan], publisher: Publisher, reactor: Any) -> None:
        """Ask nothing before somebody wants to know."""
        self._places = tuple(places(plans))
        self._publisher = publisher
        self._reactor = reactor
        self._found: dict[Place, int] = {}
        self._wanted = 0.0
        self._asking = False
        self._channel: Channel | None = None
        self._loop = repeating(self._turn, reactor)

    def known(self) -> Iterator[tuple[Place, int]]:
        """Return what was told last, about `EVERY_SECONDS` ago at most, and see to it that there is something next time."""
        self._wanted = self._reactor.seconds()
        if not self._loop.running:
            self._loop.start(EVERY_SECONDS)
        return iter([(place, self._found[place]) for place in self._places if place in self._found])

    def stop(self) -> None:
        """Ask nothing more."""
        if self._loop.running:
            self._loop.stop()

    def _turn(self) -> None:
        if self._reactor.seconds() - self._wanted > WANTED_SECONDS:
            self._found.clear()
            self.stop()
        elif not self._asking:
            self._asking = True
            Deferred.fromCoroutine(self._ask()).addErrback(lambda _failure: self._found.clear()).addBoth(self._asked)

    def _asked(self, _none: object) -> None:
        self._asking = False

    async def _ask(self) -> None:
        """Ask for every queue, one after the other; fails if the connection is gone, or is too busy to answer."""
        for place in self._places:
            if self._publisher.why is not None:
                self._found.clear()
                return
            channel = await self._open()
            asked = channel.call("queue_declare", queue=place.name, passive=True)
            try:
                answer = await bounded(asked, ANSWER_SECONDS, self._reactor, "the depth of a queue")
            except ChannelClosed:
                self._found.pop(place, None)
            except WaitTooLong:
                self._found.pop(place, None)
                channel.close()
                self._channel = None
            else:
                self._found[place] = answer.message_count

    async def _open(self) -> Channel:
        """Return the channel, or a fresh one if it has ended."""
        protocol = self._publisher.connection.protocol
        if protocol is None:
            raise RpcdError("there is no connection")
        if self._channel is None or not self._channel.is_open:
            self._channel = await bounded(protocol.open_channel(), ANSWER_SECONDS, self._reactor, "opening a channel")
        return self._channel
