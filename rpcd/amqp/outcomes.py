"""Publishing what an outcome says, before its delivery may be settled: copies, held-back publications, confirmed replies.

The order is the promise: publications are confirmed, then the copy, then the reply goes out, then the ack. What can't be
published is judged again by the consumer's policy; what can't be confirmed in time gives its message back to the queue.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import DeferredList
from twisted.internet.task import deferLater

from rpcd.amqp.publisher import Publisher
from rpcd.core.copies import Circumstances, copy_of
from rpcd.core.errors import PublishError, PublishTimeout, Unroutable
from rpcd.core.message import Message
from rpcd.core.outgoing import Outgoing
from rpcd.core.pipeline import Job
from rpcd.core.policy import Policy
from rpcd.core.stats import Stats
from rpcd.core.verdict import Outcome, Verdict

REFUSED_SECONDS = 5.0
"""How long a message whose copy is refused is held before it goes back to its queue."""

log = logging.getLogger("rpcd.consumer")


@attrs.define
class OutcomePublisher:
    """What one consumer's outcomes publish; reactor only."""

    reactor: Any
    publisher: Publisher
    policy: Policy
    who: Circumstances
    stats: Stats
    title: str
    """The queue's name, or its section's if the broker chooses it: retry and archive are named after it."""
    own_channel_replies: bool
    """Whether a reply through the default exchange goes out unconfirmed on its delivery's own channel."""
    again: Callable[[str], None]
    """Makes the consumer's connection anew, which declares everything and has the broker deliver again."""

    @property
    def in_process(self) -> bool:
        """Whether retries wait in the process, because their queue dies with its connection."""
        return self.policy.longest is not None

    def on_own_channel(self, reply: Outgoing) -> bool:
        """Tell whether a reply needs no more than to be written ahead of the ack.

        A direct reply-to never needs more: a confirm says nothing of it, and a forged one costs this connection alone.
        """
        return reply.exchange == "" and (self.own_channel_replies or not reply.mandatory)

    async def publish(self, job: Job, outcome: Outcome) -> Outcome:
        """Publish what a job's outcome says; return what is left: a verdict, and a reply for the delivery's own channel."""
        try:
            return await self._reply(job, await self._copy(job, await self._publications(job, outcome)))
        except PublishTimeout as error:
            self.stats.publish_failures += 1
            return Outcome(Verdict.REQUEUE, f"what it publishes is not confirmed: {error}", error="PublishTimeout")

    async def _publications(self, job: Job, outcome: Outcome) -> Outcome:
        if not outcome.publications:
            return outcome
        sent = DeferredList([self.publisher.publish(each) for each in outcome.publications], consumeErrors=True)
        failures: list[Exception] = [result.value for succeeded, result in await sent if not succeeded]  # type: ignore[attr-defined]
        late = next((error for error in failures if isinstance(error, PublishTimeout)), None)
        if late is not None:
            raise late
        if not failures:
            return outcome
        self.stats.publish_failures += 1
        return job.route.judge(failures[0], job.message)

    async def _copy(self, job: Job, outcome: Outcome) -> Outcome:
        wanted = outcome.verdict is Verdict.ARCHIVE or (outcome.verdict is Verdict.RETRY and not self.in_process)
        if not wanted:
            return outcome
        who = attrs.evolve(self.who, handler=job.route.target.path)
        arrival = job.route.arrival_mark(job.message)
        copy = copy_of(outcome, job.message, self.title, who, time.time(), os.urandom(8).hex(), arrival)
        try:
            await self.publisher.copy(copy)
        except Unroutable as error:
            self.again(f"a copy found no queue: {error}")
            raise PublishTimeout(str(error)) from error
        except PublishError as error:
            await deferLater(self.reactor, REFUSED_SECONDS)  # it would come back at once, and be refused again
            raise PublishTimeout(str(error)) from error
        return outcome

    async def _reply(self, job: Job, outcome: Outcome) -> Outcome:
        reply = outcome.reply
        if reply is None or self.on_own_channel(reply):
            return outcome
        try:
            await self.publisher.publish(reply, self._reply_again)
            self.stats.replied += 1
        except Unroutable:
            self.stats.replies_unroutable += 1  # the caller has gone; its request is done all the same
            log.info("a reply came back, its caller has gone: key %s", reply.routing_key, extra=fields(job.message, outcome))
        except PublishError as error:
            self.stats.publish_failures += 1
            if outcome.verdict is not Verdict.ACK:
                log.warning("a reply was refused: %s", error, extra=fields(job.message, outcome))
            else:
                return await self._refused(job, error)
        outcome.reply = None
        return outcome

    def _reply_again(self) -> None:
        self.stats.replies_republished += 1

    async def _refused(self, job: Job, error: PublishError) -> Outcome:
        """Judge a refused reply by policy; a failure that can't be told either leaves the message in the archive."""
        judged = job.route.judge(error, job.message)
        judged.reply = None
        if judged.verdict is Verdict.ACK:
            judged.verdict, judged.reason = Verdict.ARCHIVE, f"its reply was refused: {error}"
        return await self._copy(job, judged)


def fields(message: Message[Any], outcome: Outcome | None = None) -> dict[str, Any]:
    """Return what a log line tells of a message: never its body, its headers, or anything secret."""
    found = {
        "consumer": message.consumer,
        "queue": message.queue,
        "correlation_id": message.correlation_id,
        "message_id": message.message_id,
        "attempt": message.attempt,
    }
    if outcome is not None:
        found |= {"verdict": outcome.verdict.value, "error": outcome.error}
    return found


def report(message: Message[Any], outcome: Outcome) -> None:
    """Write the one line of an unhappy settlement; a happy one is for debugging only."""
    if not log.isEnabledFor(outcome.level):
        return
    phrase = _PHRASES[outcome.verdict]
    text = phrase.format(seconds=outcome.step / 1000) + (f": {outcome.reason}" if outcome.reason else "")
    if outcome.error is not None and outcome.error not in outcome.reason:
        text += f" ({outcome.error})"
    log.log(outcome.level, "%s", text, extra={**fields(message, outcome), "trace": outcome.trace})


_PHRASES = {
    Verdict.ACK: "done",
    Verdict.REQUEUE: "given back to the queue",
    Verdict.REJECT: "rejected",
    Verdict.RETRY: "to be tried again in {seconds:g} s",
    Verdict.ARCHIVE: "archived",
}
