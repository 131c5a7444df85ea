"""How one consumer takes messages: what came back often alone and first, then everything as it is delivered.

Theory. What may end the process (see `core.suspects`) runs with nothing else in hand. Messages that came back stand at the
head of their queue. So before it consumes, a consumer looks at the head, message by message (`basic.get`), until one comes
that is new. Other processes die as well: then a suspect arrives in the middle of the stream. It is held; the consumer is
cancelled; what is in hand beside it runs to its end, for giving that back would make suspects of it; other suspects go back,
as long as that does not convict them; the one runs; and all begins anew, on the same channel.

Where `basic.get` is refused (a single active consumer), a prefetch of one does the same after the first suspect.
"""

import logging
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from rpcd.amqp.channel import Channel
from rpcd.amqp.declare import STEP_SECONDS, consume_refusal
from rpcd.amqp.hindrance import Hindrance
from rpcd.amqp.plan import Plan
from rpcd.amqp.reader import OnDelivery
from rpcd.amqp.settlement import Settlement
from rpcd.amqp.tasks import Tasks
from rpcd.amqp.waiting import Once, bounded, unless
from rpcd.amqp.workers import Workers
from rpcd.core.errors import ChannelClosed
from rpcd.core.ledger import Ledger, State
from rpcd.core.pipeline import Job
from rpcd.core.stats import Stats
from rpcd.core.suspects import Suspicion, returns

log = logging.getLogger("rpcd.consumer")


class Intake:
    """The taking of one consumer, over all its connections; reactor only."""

    def __init__(
        self,
        plan: Plan,
        settlement: Settlement,
        workers: Workers | Tasks,
        suspicion: Suspicion,
        stats: Stats,
        reactor: Any,
        hindrance: Hindrance,
    ) -> None:
        """Prepare it; nothing is taken yet."""
        self.tag = ""
        """The tag of the consumer that was started last."""
        self.alone: Job | None = None
        """The suspect that runs alone."""
        self._plan = plan
        self._settlement = settlement
        self._workers = workers
        self._suspicion = suspicion
        self._stats = stats
        self._reactor = reactor
        self._in_vain = 0.0
        self._blocked = lambda: hindrance.blocked is not None
        self._held: list[Job] = []
        self._found = Once()
        self._busy = self._asking = self._careful = False

    @property
    def taking(self) -> bool:
        """Whether messages come, as far as can be known here: the broker delivers, or suspects are seen to first."""
        channel = self._settlement.channel
        return channel is not None and (self._busy or self.tag in channel.consumer_tags)

    @property
    def why(self) -> str | None:
        """Why nothing else is taken; None if all is as usual."""
        if self.alone is not None:
            return f"a message that came back {returns(self.alone.message)} times runs alone"
        return "a message that came back often will run alone, when all others have ended" if self._held else None

    def keep(self, job: Job) -> bool:
        """Hold a redelivered job that must run alone, and say so to who waits for it; False if it may run as any other."""
        if job.ledger.state is not State.OPEN or not self._suspicion.falls_on(job):
            return False
        self._held.append(job)
        self._found.fire()
        return True

    def waits_in_vain(self, seconds: float) -> bool:
        """Count some more seconds if suspects wait for messages that can't run, and tell whether that is too long by now.

        Those wait for their key, which a handler that does not end holds: nothing else would be taken for ever.
        """
        crew = self._workers
        vain = self.why and crew.lost and crew.lanes[1] and not crew.running and not crew.waiting
        self._in_vain = self._in_vain + seconds if vain else 0.0
        return self._in_vain > self._plan.section.time_limit

    def take_back(self) -> list[Job]:
        """Take out the suspects that have not started."""
        held, self._held = self._held, []
        return held

    async def serve(
        self,
        open_channel: Callable[[], Deferred[Channel]],
        queue: str,
        on_delivery: OnDelivery,
        serving: Callable[[], object],
    ) -> None:
        """Take messages until the channel ends, and fail with its reason; `serving` is told when it can be said to work."""
        sift = self._suspicion.counts
        while True:
            ended = Once()
            channel = await open_channel()
            channel.when_closed(ended.fail)
            self._settlement.attach(channel)
            self._busy = self._asking = False
            try:
                await self._serve(channel, queue, on_delivery, serving, ended, sift=sift)
            except ChannelClosed:
                if not self._asking:
                    raise
                sift = False  # it is refused here; what else is wrong, consuming will tell
            finally:
                self.alone = None

    async def _serve(
        self,
        channel: Channel,
        queue: str,
        on_delivery: OnDelivery,
        serving: Callable[[], object],
        ended: Once,
        *,
        sift: bool,
    ) -> None:
        ledger = self._settlement.ledger
        while True:
            if sift:
                await unless(ended, Deferred.fromCoroutine(self._sift(channel, queue, on_delivery, serving)))
            self._found = Once()
            await self._consume(channel, queue, on_delivery, careful=self._careful and not sift)
            self._busy = False
            serving()
            await unless(ended, self._found.wait())
            if ledger.state is State.OPEN:
                await unless(ended, Deferred.fromCoroutine(self._separate(channel)))
            if ledger.state is not State.OPEN:
                await ended.wait()

    async def _consume(self, channel: Channel, queue: str, on_delivery: OnDelivery, *, careful: bool) -> None:
        section, tag = self._plan.section, self._plan.consumer_tag
        qos = channel.call("basic_qos", prefetch_count=1 if careful else section.window)
        await bounded(qos, STEP_SECONDS, self._reactor, "setting the prefetch", None, self._blocked)
        if self._settlement.ledger.state is not State.OPEN:
            return  # a drain has begun, and cancels what it knows of
        self.tag = tag
        sink = self._carefully(on_delivery) if careful else on_delivery
        started = channel.consume(queue, tag, sink, section.exclusive, section.arguments)
        try:
            await bounded(started, STEP_SECONDS, self._reactor, "the broker's answer to basic.consume", None, self._blocked)
        except ChannelClosed as error:
            raise consume_refusal(f"consumers.{self._plan.name}", queue, error) from error

    def _carefully(self, on_delivery: OnDelivery) -> OnDelivery:
        """Begin anew, with the whole prefetch, at the first message that is no suspect."""

        def delivered(*delivery: Any) -> None:
            on_delivery(*delivery)
            self._careful = bool(self._held)
            self._found.fire()

        return delivered

    # Suspects -------------------------------------------------------------------------------------

    async def _sift(self, channel: Channel, queue: str, on_delivery: OnDelivery, serving: Callable[[], object]) -> None:
        """Take from the head of the queue what came back, suspects alone, until something comes that is new.

        No more than a prefetch of what is no suspect: what is given back again and again would keep it here for ever.
        """
        ledger, back = self._settlement.ledger, False

        def delivered(tag: int, again: bool, *rest: Any) -> None:
            nonlocal back
            back = again
            on_delivery(tag, again, *rest)

        left = self._plan.section.window
        while left and ledger.state is State.OPEN:
            self._asking = True
            found = await bounded(
                channel.get(queue, delivered),
                STEP_SECONDS,
                self._reactor,
                "the broker's answer to basic.get",
                None,
                self._blocked,
            )
            self._asking = False
            if _is_draining(ledger) and (self._plan.section.lock is None or not self._workers.running):
                self._settlement.give_back(self._workers.take_back())
            if not found or not back:
                return
            self._busy = True
            if self._held:
                serving()  # what runs alone may take long
            left -= not self._held
            await self._try_held()

    async def _separate(self, channel: Channel) -> None:
        """Cancel the consumer and let suspects run alone when everything else has ended."""
        self._busy = True
        cancelled = channel.cancel(self.tag)
        await bounded(cancelled, STEP_SECONDS, self._reactor, "cancelling the consumer", None, self._blocked)
        if self._held:
            self._careful = True
        ledger = self._settlement.ledger
        await self._until(lambda: ledger.unsettled <= len(self._held))
        if ledger.state is State.OPEN:
            others = [job for job in self._held[1:] if self._suspicion.spares(job)]
            self._held = [job for job in self._held if job not in others]
            self._settlement.give_back(others)
        await self._try_held()

    async def _try_held(self) -> None:
        """Run the suspects one after the other, each when nothing runs any more."""
        ledger = self._settlement.ledger
        while self._held:
            await self._until(lambda: ledger.unsettled <= len(self._held) and not self._workers.running)
            if ledger.state is not State.OPEN:
                return
            job = self.alone = self._held.pop(0)
            self._stats.suspects += 1
            message = job.message
            log.warning(
                "message %s came back %s times, perhaps because it ends the process: it runs alone",
                message.message_id or "without an id",
                returns(message),
                extra={"consumer": self._plan.name, "queue": message.queue, "message_id": message.message_id},
            )
            self._workers.submit(job)
            await self._until(lambda: ledger.unsettled <= len(self._held))
            if ledger.state is State.OPEN:
                self.alone = None

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true, or nothing more is taken on this channel."""
        ledger = self._settlement.ledger
        while ledger.state is State.OPEN and not condition():
            await self._settlement.progress.wait()


def _is_draining(ledger: Ledger) -> bool:
    """Tell whether a drain has begun, which does not know of what `basic.get` brings now."""
    return ledger.state is State.DRAINING
