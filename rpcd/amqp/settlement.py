"""Stop 7: carrying out outcomes on the channel of their deliveries, and what becomes of them when that channel is gone.

Replies are written first, then acks, on one channel, which the broker reads in that order. What an outcome publishes
otherwise is confirmed before. A job whose ledger is closed is an orphan: nothing can be settled for it; its outcome is kept
for the redelivery that is to come, or handed to the one that has already.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from rpcd.amqp.channel import Channel
from rpcd.amqp.outcomes import OutcomePublisher, fields, report
from rpcd.amqp.sleepers import Sleepers
from rpcd.amqp.waiting import Once, exc_info
from rpcd.core.errors import ConnectionLost, ReplyCode
from rpcd.core.ledger import Ledger, State
from rpcd.core.pipeline import Job
from rpcd.core.redelivery import Redeliveries, done
from rpcd.core.stats import Stats
from rpcd.core.verdict import ACKED, Halt, Outcome, Verdict

REMEMBERED_REPLIES = 1000

log = logging.getLogger("rpcd.consumer")


class Settlement:
    """The settling of one consumer, over all its connections; reactor only."""

    def __init__(
        self,
        outcomes: OutcomePublisher,
        stats: Stats,
        submit: Callable[[Job], None],
        halted: Callable[[Halt], None],
        reactor: Any,
        window: int,
        requeued: Callable[[Job], None],
    ) -> None:
        """Take what publishes outcomes, what runs a job (again), what is told of a halt and of what an outcome gives back.

        `window` is the prefetch.
        """
        self.ledger = Ledger()
        self.ledger.close()
        self.channel: Channel | None = None
        self.progress = Once()
        """Happens at the next settlement or loss of the channel, and is replaced by a fresh one each time."""
        self._outcomes = outcomes
        self._stats = stats
        self.sleepers = Sleepers(submit, reactor)
        self._submit = submit
        self._halted = halted
        self._requeued = requeued
        self._reactor = reactor
        self._held: list[tuple[Job, Outcome]] | None = None
        self._settling: set[Job] = set()
        self._redeliveries = Redeliveries(window)
        self._direct_replies: deque[tuple[Any, ...]] = deque(maxlen=REMEMBERED_REPLIES)
        self._suspects: set[tuple[Any, ...]] = set()

    # The channel comes and goes -------------------------------------------------------------------

    def attach(self, channel: Channel) -> Ledger:
        """Settle on a fresh channel from now on; return its ledger."""
        self.channel, self.ledger = channel, Ledger()
        return self.ledger

    def detach(self, reason: Exception, running: list[Job], unstarted: list[Job]) -> None:
        """Close the ledger and keep what must be known when the broker delivers the same messages again."""
        if self.ledger.closed:
            return
        self.ledger.close()
        self.channel = None
        held, self._held = self._held or [], None
        alive = {*running, *self._settling, *(job for job, _ in held)}
        self._redeliveries.connection_lost(alive, [*unstarted, *self.sleepers.wake()], time.monotonic())
        for job, outcome in held:
            self._orphaned(job, self._left(outcome))
        if isinstance(reason, ConnectionLost) and reason.code == ReplyCode.INTERNAL_ERROR:
            self._suspects = set(self._direct_replies)
        self._direct_replies.clear()
        self._note_progress()

    def hold(self) -> None:
        """Write no settlement until `release`: an early ack would free credit and let new deliveries overtake."""
        if self._held is None:
            self._held = []

    def release(self) -> None:
        """Write the settlements that were held."""
        held, self._held = self._held or [], None
        for job, outcome in held:
            self._conclude(job, outcome)

    # Redeliveries ---------------------------------------------------------------------------------

    def is_known(self, job: Job) -> bool:
        """Join a redelivered job to its first run, or give it the outcome that is already known; False if it must run."""
        self._stats.redelivered += 1
        if self._suspects and _identity(job) in self._suspects:
            self._suspects.discard(_identity(job))
            self.claim(
                job,
                Outcome(
                    Verdict.ARCHIVE,
                    "its direct reply-to token makes the broker end the connection",
                    level=logging.ERROR,
                ),
            )
            return True
        known = self._redeliveries.recognise(job.message, time.monotonic())
        if known is None:
            return False
        self._stats.joined += 1
        if known.outcome is None and known.job is not None:
            known.job.joined = job
        elif known.outcome is not None:
            self._stats.suppressed += 1
            self._adopt(job, known.job, known.outcome)
        return True

    def _adopt(self, job: Job, first: Job | None, outcome: Outcome) -> None:
        """Give a redelivered job the outcome of its first run, with what opening the message had found out."""
        if first is not None:
            ours, its = job.message, first.message
            ours.attempt, ours.nacks, ours.deadline = its.attempt, its.nacks, its.deadline
            ours.exchange, ours.routing_key = its.exchange, its.routing_key
        self.claim(job, outcome)

    def _orphaned(self, job: Job, outcome: Outcome) -> None:
        """Keep the outcome of a job whose channel is gone: for the job that was joined to it, or for the one to come."""
        self._stats.stale_settlements += 1
        log.info(
            "settled too late, its connection had gone; the broker delivers it again",
            extra=fields(job.message, outcome),
        )
        job.done()
        twin, job.joined = job.joined, None
        if twin is None:
            self._redeliveries.finished(job, outcome, time.monotonic())
        elif outcome.verdict is Verdict.RETRY and self._outcomes.in_process:
            self._submit(twin)
        else:
            self._adopt(twin, job, outcome)
        self._note_progress()

    def _left(self, outcome: Outcome) -> Outcome:
        """Return what is left to do for an outcome whose publications are safe but which could not be settled."""
        waits = outcome.verdict is Verdict.RETRY and self._outcomes.in_process  # there is no copy that could come back
        return outcome if waits or outcome.verdict in (Verdict.REQUEUE, Verdict.REJECT) else done(outcome.reply)

    # Outcomes -------------------------------------------------------------------------------------

    def finished(self, jobs: list[Job]) -> None:
        """Settle a batch: what has nothing to wait for at once, the rest each in its own time."""
        channel, ledger, acked = self.channel, self.ledger, []
        direct = channel is not None and self._held is None
        for job in jobs:
            outcome = job.outcome
            if outcome is None or job.claimed:  # settled as overdue while it came to its end
                if outcome is not None and outcome.halt is not None:
                    self._halted(outcome.halt)  # its worker has stopped the others already
                continue
            if direct and job.ledger is ledger and (outcome is ACKED or self._is_plain(outcome)):
                job.claimed = True
                if outcome.reply is not None:
                    self._write_reply(channel, job, outcome)  # type: ignore[arg-type]
                self._redeliveries.settled(job, outcome.reply)
                acked.append(job.tag)
            else:
                self.claim(job, outcome)
                direct = direct and self._held is None  # a halt holds back what comes behind it
        if acked and channel is not None:
            channel.ack(ledger.ack(acked))
            self._stats.acked += len(acked)
            self._note_progress()

    def _is_plain(self, outcome: Outcome) -> bool:
        """Tell whether an outcome is a return with a reply on the own channel, and nothing to publish or to say."""
        reply = outcome.reply
        return (
            reply is not None
            and outcome.level == logging.DEBUG
            and outcome.publications is None
            and self._outcomes.on_own_channel(reply)
        )

    def _write_reply(self, channel: Channel, job: Job, outcome: Outcome) -> None:
        reply: Any = outcome.reply
        channel.publish(reply)
        self._stats.replied += 1
        if not reply.mandatory:
            self._direct_replies.append(_identity(job))

    def claim(self, job: Job, outcome: Outcome) -> None:
        """Give a job its outcome, once; publish what that says, then settle it."""
        job.claimed = True
        if job.ledger.closed:
            self._orphaned(job, outcome)
            if outcome.halt is not None:
                self._halted(outcome.halt)
            return
        self._settling.add(job)
        Deferred.fromCoroutine(self._settle(job, outcome)).addErrback(self._failed, job)

    def _failed(self, failure: Failure, job: Job) -> None:
        """Begin anew with a fresh connection when settling itself went wrong: the broker delivers the message again."""
        self._settling.discard(job)
        self._outcomes.again("a message could not be settled")
        log.critical("settling failed", exc_info=exc_info(failure), extra=fields(job.message))
        if job.outcome is not None and job.outcome.halt is not None:
            self._halted(job.outcome.halt)

    async def _settle(self, job: Job, outcome: Outcome) -> None:
        left = await self._outcomes.publish(job, outcome)
        if left.verdict is Verdict.REQUEUE and left.step:
            await deferLater(self._reactor, left.step / 1000)
        self._settling.discard(job)
        halt, state = outcome.halt, job.ledger.state
        if left.verdict is Verdict.RETRY and self._outcomes.in_process and state is State.DRAINING:
            left.verdict = Verdict.REQUEUE  # a drain waits for no further attempt
        if state is State.CLOSED:
            self._orphaned(job, self._left(left))
        elif left.verdict is Verdict.RETRY and self._outcomes.in_process:
            report(job.message, left)
            self._stats.retried += 1
            self.sleepers.put(job, left)
            job.done()
        elif self._held is not None:
            self._held.append((job, left))
        elif halt is not None and state is State.OPEN:
            self._held = [(job, left)]  # until the consumer is cancelled
        else:
            self._conclude(job, left)
        if halt is not None:  # whatever became of what it publishes: the workers take nothing more
            self._halted(halt)

    def _conclude(self, job: Job, outcome: Outcome) -> None:
        """Write what is left of a settled job: its reply, then its ack, nack or reject."""
        channel = self.channel
        if job.ledger.closed or channel is None:
            self._orphaned(job, self._left(outcome))
            return
        report(job.message, outcome)
        if outcome.reply is not None:
            self._write_reply(channel, job, outcome)
        if outcome.verdict in (Verdict.REQUEUE, Verdict.REJECT):
            channel.nack(job.tag, outcome.verdict is Verdict.REQUEUE)
            job.ledger.settle(job.tag)
            if outcome.verdict is Verdict.REQUEUE:
                self._requeued(job)
        else:
            channel.ack(job.ledger.ack([job.tag]))
            self._redeliveries.settled(job, outcome.reply)
        self._stats.count(outcome)
        job.done()
        self._note_progress()

    def give_back(self, jobs: list[Job], *, by_close: bool = False) -> None:
        """Requeue jobs that never started in the order in which they came: one by one, or by the channel's close to come."""
        channel = self.channel
        for job in sorted(jobs, key=lambda each: each.tag):
            if channel is not None and not job.ledger.closed:
                if not by_close:
                    channel.nack(job.tag, True)
                job.ledger.settle(job.tag)
                self._stats.requeued += 1
        self._note_progress()

    def _note_progress(self) -> None:
        progress, self.progress = self.progress, Once()
        progress.fire()


def _identity(job: Job) -> tuple[Any, ...]:
    properties = job.message.properties
    return properties.reply_to, properties.correlation_id, properties.message_id
