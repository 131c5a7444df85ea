"""One queue on one connection: deliveries in (stop 2), settlements out (stop 7), and the order of a stop.

A `Consumer` lives as long as the process; each of its connections has a channel and a ledger of its own.
"""

import logging
import time
import uuid
from typing import Any

from twisted.internet.defer import Deferred

from rpcd.amqp.brake import Brake
from rpcd.amqp.channel import Channel
from rpcd.amqp.connection import Connection
from rpcd.amqp.crew import Finished
from rpcd.amqp.declare import STEP_SECONDS, carry_out
from rpcd.amqp.dial import Broker
from rpcd.amqp.drain import drain
from rpcd.amqp.ends import tell_end
from rpcd.amqp.hindrance import Hindrance
from rpcd.amqp.intake import Intake
from rpcd.amqp.outcomes import OutcomePublisher
from rpcd.amqp.outlet import Limits, LoopOutlet, ThreadOutlet
from rpcd.amqp.plan import Overseer, Plan
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.publisher import Publisher
from rpcd.amqp.settlement import Settlement
from rpcd.amqp.tasks import Tasks
from rpcd.amqp.waiting import Once, WaitTooLong, bounded, repeating, unless
from rpcd.amqp.workers import Workers
from rpcd.core.errors import ChannelClosed, ConsumerCancelled, RpcdError, TimeLimitPassed
from rpcd.core.handler import all_async
from rpcd.core.message import Source, delivered
from rpcd.core.pipeline import Job
from rpcd.core.stats import Durations, Stats
from rpcd.core.suspects import Suspicion
from rpcd.core.verdict import Halt
from rpcd.core.wire import Properties

MOST_LOST = 8
"""How many threads may be stuck in handlers that overran their time limit, unless there are more workers than that."""

log = logging.getLogger("rpcd.consumer")


class Consumer:
    """One consumer; reactor only."""

    def __init__(self, plan: Plan, broker: Broker, publisher: Publisher, pool: Any, overseer: Overseer) -> None:
        """Prepare a consumer; nothing is started yet."""
        self.name = plan.name
        self.plan = plan
        self.stats = Stats()
        self.durations = Durations()
        self.draining = False
        self.paused = False
        self.halted: str | None = None
        """Why a handler ordered a halt, if one did."""
        self.drained = Once()
        self.went_back = 0
        """How many messages the broker got back because the connection was lost while draining."""
        self.workers, self._outlet = _crew(plan, pool, broker.reactor, publisher, self._on_finished)
        self.workers.switch.limit = plan.section.kill_switch.failures
        self.connection = Connection(plan.name, plan.connection_name, broker, self._serve, overseer.refused)
        self.hindrance = Hindrance(plan, self.connection, publisher)
        own_channel = not plan.section.reply_confirm
        outcomes = OutcomePublisher(
            broker.reactor, publisher, plan.policy, plan.who, self.stats, plan.title, own_channel, self.connection.again
        )
        suspicion = Suspicion(plan.delivery_limit)
        self.settlement = Settlement(
            outcomes, self.stats, self.workers.submit, self._on_halt, broker.reactor, plan.section.window, suspicion.acquit
        )
        interval = plan.section.kill_switch.interval
        self.brake = Brake(plan.name, self.workers, interval, self.stats, broker.reactor, self._may_start, overseer.changed)
        self.intake = Intake(plan, self.settlement, self.workers, suspicion, self.stats, broker.reactor, self.hindrance)
        self._route, self._choose = plan.routes[0], plan.choose
        self._reactor = broker.reactor
        self._publisher = publisher
        self._overseer = overseer
        self._source = Source(self.name, plan.queue, self._outlet, new_id, time.time)
        self._serving = False
        self._watch = repeating(self._look_for_overdue, broker.reactor)
        self._look_seconds = min(1.0, plan.section.time_limit / 4)

    @property
    def consuming(self) -> bool:
        """Whether the broker delivers to this consumer, as far as can be known here."""
        return self.intake.taking

    @property
    def wanted(self) -> bool:
        """Whether this consumer should be consuming: it has consumed already, and was told neither to stop nor to pause."""
        return self.connection.served and not self.draining and not self.paused

    @property
    def state(self) -> str:
        """What it does: consuming, connecting, paused, tripped, draining or stopped."""
        if self.draining:
            return "stopped" if self.drained.happened else "draining"
        if self.paused:
            return "paused"
        if not self.consuming or self.connection.trouble is not None:
            return "connecting"
        return "tripped" if self.brake.tripped else "consuming"

    @property
    def why(self) -> str | None:
        """Why it does not consume as it should, or what hinders it; None if there is nothing to say."""
        if self.halted is not None:
            return f"halted: {self.halted}"
        if self.connection.trouble is not None:
            return None if self.draining else self.connection.trouble
        if self.brake.tripped and not self.paused and not self.draining:
            return self.brake.why
        return self.intake.why or self.hindrance.why

    @property
    def ready(self) -> bool:
        """Whether it consumes, or is paused, and what it gives up can be kept."""
        return self.state in ("consuming", "paused") and not (self.hindrance.full or self.hindrance.silent)

    def pause(self) -> None:
        """Start no further message until `resume`, over reconnections too; what comes waits, until the prefetch is full."""
        if not self.paused and not self.draining:
            self.paused = True
            self.workers.hold()
            log.warning("paused", extra=self._fields())

    def resume(self) -> None:
        """Start messages again, whatever held them, unless a stop or a halt has begun."""
        if self.paused and not self.draining:
            self.paused = False
            self.brake.reset()
            self.workers.resume()
            log.warning("resumed", extra=self._fields())
        elif self.brake.tripped and not self.draining:
            self.brake.reset()

    def _may_start(self) -> bool:
        return not self.paused and not self.draining

    def start(self) -> None:
        """Start the workers and begin to connect."""
        self.workers.start()
        self._watch.start(self._look_seconds, now=False)
        self.connection.start()

    # The connection -------------------------------------------------------------------------------

    async def _serve(self, protocol: AmqpProtocol) -> None:
        ended = Once()
        protocol.when_lost(ended.fail)
        protocol.on_blocked = self._on_blocked  # type: ignore[method-assign]  # made to be replaced
        queue = await carry_out(protocol, self.plan.declarations) or self.plan.queue
        await unless(ended, self._publisher.ready.wait())
        await unless(ended, self.workers.ready.wait())
        self._source = Source(self.name, queue, self._outlet, new_id, time.time)
        self.plan.policy.replies.never_to(queue)
        self._serving = False
        await self.intake.serve(lambda: self._open(protocol), queue, self._on_delivery, self._on_serving)

    def _open(self, protocol: AmqpProtocol) -> Deferred[Channel]:
        def opened(channel: Channel) -> Channel:
            channel.when_closed(self._on_channel_gone)
            channel.when_returned(self._on_return)
            return channel

        return bounded(protocol.open_channel(), STEP_SECONDS, self._reactor, "opening a channel").addCallback(opened)

    def _on_serving(self) -> None:
        if self._serving:
            return
        self._serving = True
        self.connection.serving()
        self.stats.connections += 1
        section = self.plan.section
        log.info("consuming, workers: %s, prefetch: %s", section.workers, section.window, extra=self._fields())
        self._overseer.consuming(self)

    def _on_blocked(self, reason: str | None) -> None:
        said = "goes on" if reason is None else f"blocks this connection, and with it replies and acks: {reason}"
        log.log(logging.INFO if reason is None else logging.WARNING, "the broker %s", said, extra=self._fields())

    def _on_return(self, code: int, text: str, _exchange: str, routing_key: str, properties: Properties) -> None:
        self.stats.replies_unroutable += 1
        extra = {**self._fields(), "correlation_id": properties.correlation_id}
        log.info("a reply came back, its caller has gone: %s %s, key %s", code, text, routing_key, extra=extra)

    def _on_channel_gone(self, reason: Exception) -> None:
        if self._serving:
            tell_end(reason, self.workers.running, self.connection.broker_version, time.time(), self._fields())
        if isinstance(reason, ChannelClosed):
            self.stats.channel_error(reason.code, reason.text)
        self.stats.cancelled += isinstance(reason, ConsumerCancelled)
        if self.draining and not self.settlement.ledger.closed:
            self.went_back += self.settlement.ledger.unsettled
        unstarted = [*self.intake.take_back(), *self.workers.take_back()]
        running = self.workers.running
        self.workers.flush()
        self.settlement.detach(reason, [job for job in running if not job.claimed], unstarted)

    def _fields(self) -> dict[str, Any]:
        return {"consumer": self.name, "queue": self._source.queue}

    # Deliveries -----------------------------------------------------------------------------------

    def _on_delivery(self, tag: int, again: bool, exchange: Any, key: Any, properties: Properties, body: bytes) -> None:
        settlement = self.settlement
        ledger = settlement.ledger
        ledger.admit(tag)
        self.stats.received += 1
        message = delivered(self._source, body, properties, exchange, key, again, time.time())
        job = Job(message, self._route if self._choose is None else self._choose(message), ledger, tag)
        if again and (settlement.is_known(job) or self.intake.keep(job)):
            return
        self.workers.submit(job)

    def _on_finished(self, jobs: list[Job]) -> None:
        try:
            self.settlement.finished(jobs)
            self.durations.add(jobs)
            if self.workers.held or self.brake.tripped:
                self.brake.look(jobs)
        except Exception:
            log.critical("a fault of rpcd while settling", exc_info=True, extra=self._fields())
            self.connection.again("messages could not be settled")  # the broker delivers them again

    def _look_for_overdue(self) -> None:
        self.workers.sweep()
        for job in self.workers.overdue(self.plan.section.time_limit):
            self.stats.overdue += 1
            outcome = job.route.judge(TimeLimitPassed(), job.message)
            outcome.trace = self.workers.stack(job)
            self.settlement.claim(job, outcome)
        too_many = self.workers.lost >= max(MOST_LOST, self.plan.section.workers)
        if self.workers.stuck or too_many or self.intake.waits_in_vain(self._look_seconds):
            self._overseer.exhausted(self)

    def _on_halt(self, halt: Halt) -> None:
        self._overseer.halted(self, halt)

    # The stop -------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Stop taking, give back what has not started, let running handlers finish and settle, close; then fire `drained`.

        It has no time limit of its own: whoever is in a hurry calls `abandon`.
        """
        if self.draining:
            return
        self.draining = True
        self.workers.hold()
        self.brake.stop()
        for suspect in self.intake.take_back():
            self.workers.submit(suspect)
        self.connection.last(used=self.settlement.channel is not None)  # messages are taken before it serves
        try:
            if self.settlement.channel is not None:
                lanes = self.plan.section.lock is not None
                channel, tag = self.settlement.channel, self.intake.tag
                await drain(channel, tag, self.settlement, self.workers, self._reactor, lanes=lanes)
        except (RpcdError, WaitTooLong) as error:
            log.warning("the connection went away while draining: %s", error, extra=self._fields())
            self.connection.again("draining failed")
        self.workers.stop()
        await self.workers.ended.wait()
        if self._watch.running:
            self._watch.stop()
        await self.connection.stop()
        self.drained.fire()

    def abandon(self) -> int:
        """Drop the connection at once: everything unsettled goes back to the broker; return how much that is."""
        left = 0 if self.settlement.ledger.closed else self.settlement.ledger.unsettled
        self.draining = True
        self.workers.abandon()
        self.brake.stop()
        self.connection.again("stopped before its handlers had finished")
        self.connection.stop()
        return left


def _crew(
    plan: Plan, pool: Any, reactor: Any, publisher: Publisher, finished: Finished
) -> tuple[Workers | Tasks, ThreadOutlet]:
    """Make what runs the handlers of a consumer, threads or tasks, and what they publish by."""
    count, limits = plan.section.workers, Limits(plan.publish_timeout, plan.section.time_limit)
    if all_async(route.target for route in plan.routes):
        tasks = Tasks(plan.routes, count, pool, reactor, finished)
        return tasks, LoopOutlet(reactor, publisher, tasks, limits)
    workers = Workers(plan.routes, count, pool, reactor, finished)
    return workers, ThreadOutlet(reactor, publisher, workers, limits)


def new_id() -> str:
    """Make an id that no other message has."""
    return str(uuid.uuid4())
