"""The end of a consumer's channel: what runs is settled, what has not started goes back, nothing runs twice.

Theory. For a quorum queue, a channel of RabbitMQ hands every settlement to the queue's leader as a command. It sends up
to 32 that are not applied yet (stored by a majority of nodes); what comes then it keeps until some are, and *forgets when
the channel closes*. Acks written behind many nacks and just ahead of the close are lost, and their messages run again.
Nothing tells when a settlement is applied, but the answer to `basic.cancel` comes after all before it. So after that
answer few settlements are written: what has not started goes back in small batches for as long as handlers run, and the
rest by the close itself, which keeps its order. (A large batch would lose it: what is kept is merged, in any order.)
"""

from typing import Any

from twisted.internet.task import deferLater

from rpcd.amqp.channel import Channel
from rpcd.amqp.declare import STEP_SECONDS
from rpcd.amqp.settlement import Settlement
from rpcd.amqp.tasks import Tasks
from rpcd.amqp.waiting import bounded, repeating
from rpcd.amqp.workers import Workers

BATCH = 16
"""How many deliveries are given back at once: half of what the broker sends, so that acks find room beside them."""

PACE = 0.05
"""Seconds between two batches, unless the broker itself needs longer to apply one."""

SAFE = 28
"""How many settlements the broker certainly sends before any is applied: 32, but for what it may have kept back itself."""

LINGER = 0.25
"""Seconds in which the broker has applied what was settled, unless it needs longer."""

MOST_LINGER = 2.0
"""The longest wait before the channel is closed, however slow the broker is."""


async def drain(
    channel: Channel, tag: str, settlement: Settlement, workers: Workers | Tasks, reactor: Any, *, lanes: bool
) -> None:
    """Cancel the consumer, settle what runs, give back what has not started, and close the channel; reactor only.

    With `lanes` nothing is given back before the handlers have ended: only then is it known which keys were busy. Fails
    with the channel's end, or if the broker does not answer in time.
    """
    ledger = settlement.ledger
    ledger.drain()
    settlement.hold()
    began = reactor.seconds()
    await bounded(channel.cancel(tag), STEP_SECONDS, reactor, "cancelling the consumer")
    applying, at_first = reactor.seconds() - began, ledger.unsettled
    settlement.release()
    unstarted = settlement.sleepers.wake() + ([] if lanes else workers.take_back())
    unstarted = sorted((job for job in unstarted if job.ledger is ledger), key=lambda job: job.tag)

    def give_some() -> None:
        batch, unstarted[:] = unstarted[:BATCH], unstarted[BATCH:]
        if batch:
            settlement.give_back(batch)

    giving = repeating(give_some, reactor)
    giving.start(max(PACE, applying))
    try:
        while workers.running and not ledger.closed:
            await settlement.progress.wait()
        unstarted += [job for job in workers.take_back() if job.ledger is ledger]
        while ledger.unsettled > len(unstarted) and not ledger.closed:
            await settlement.progress.wait()
    finally:
        giving.stop()
    if at_first - ledger.unsettled > SAFE:
        await deferLater(reactor, min(max(LINGER, 4 * applying), MOST_LINGER))
    settlement.give_back(unstarted, by_close=True)
    await bounded(channel.close(), STEP_SECONDS, reactor, "closing the channel")
