"""One consumer of a harness: its routes, its handlers, and the way of each message from its queue to its outcome."""

import inspect
import itertools
from typing import Any

from rpcd.core.building import Handlers, build
from rpcd.core.copies import Circumstances
from rpcd.core.handler import Handler, all_async
from rpcd.core.ledger import Ledger
from rpcd.core.message import Message, Source, delivered
from rpcd.core.outcome import rule_for
from rpcd.core.pipeline import Job, perform, perform_async
from rpcd.core.redelivery import Redeliveries
from rpcd.core.routes import Route
from rpcd.core.settings import Settings
from rpcd.core.topology import plan_consumer
from rpcd.core.verdict import Halt, Outcome, Verdict
from rpcd.testing.broker import Broker
from rpcd.testing.clock import Clock
from rpcd.testing.delivery import Delivery, Reply
from rpcd.testing.loop import Steps
from rpcd.testing.outlet import Ask, Outlet
from rpcd.testing.posted import Posted
from rpcd.testing.record import Record
from rpcd.testing.settling import Settling

HOST = "harness"
"""The host that archived messages name."""


class Consumer:
    """One consumer; it handles one message after the other."""

    def __init__(
        self, settings: Settings, name: str, handlers: Handlers, broker: Broker, clock: Clock, record: Record, ask: Ask
    ) -> None:
        """Declare what it needs and build its routes; handlers are made when they are needed."""
        self.name = name
        built = build(settings, name, handlers, clock)
        self.section = built.section
        queue = settings.queue_name(self.section.queue)
        named = broker.carry_out(plan_consumer(settings, name))
        self.queue = broker.queues[queue or named]
        self.title = queue or self.section.queue
        """What its retry and archive queues are named after."""
        self.halted: Halt | None = None
        """The order to stop that one of its handlers gave."""
        self.running = 0
        """How many messages are in hand: more than one only while a handler asks another consumer."""
        self.is_async = all_async(route.target for route in built.routes)
        self.waiting: list[tuple[Job, Posted]] = []
        """What is retried in the process, and may start."""
        self._routes, self._choose = built.routes, built.choose
        self._policy = built.routes[0].policy
        self._policy.replies.never_to(self.queue.name)
        self._broker, self._clock, self._record = broker, clock, record
        self._outlet = Outlet(record.publish, ask, is_async=self.is_async)
        numbers = itertools.count(1)
        self._source = Source(name, self.queue.name, self._outlet, lambda: f"{name}-{next(numbers)}", clock)
        self._ledger, self._tags = Ledger(), itertools.count(1)
        self._handlers: dict[int, tuple[Handler, Any]] = {}
        self._redeliveries = Redeliveries(self.section.window)
        self._settling = Settling(
            broker,
            record.publish,
            self.title,
            lambda job: Circumstances(name, job.route.target.path, HOST),
            settings.service.publish_timeout,
            in_process=self._policy.longest is not None,
        )

    @property
    def can_take(self) -> bool:
        """Whether a message waits for it that it may take."""
        return self.halted is None and self.running < self.section.workers and bool(self.waiting or self.queue.messages)

    def lose_connection(self, *, crashed: bool) -> None:
        """Have all acks lost; if the process crashed as well, everything that it knew."""
        if crashed:
            self._redeliveries = Redeliveries(self.section.window)
        else:
            self._redeliveries.connection_lost((), (), self._clock())

    # Deliveries -----------------------------------------------------------------------------------

    def take(self) -> Steps[Delivery]:
        """Take the next message and carry it to its outcome."""
        if self.waiting:
            job, posted = self.waiting.pop(0)
        else:
            posted = self.queue.messages.popleft()
            job = self._job(posted)
        delivery = Delivery(self.name, posted, job.message)
        self._record.deliveries.append(delivery)
        outcome = self._known(job) if posted.redelivered else None
        self.running += 1
        self._record.current.append(delivery)
        try:
            if outcome is None:
                yield from self._run(job, delivery)
                outcome = job.outcome
            self._settle(job, outcome, delivery)  # type: ignore[arg-type]  # perform gives every job an outcome
        finally:
            self._record.current.remove(delivery)
            self.running -= 1
        if delivery.error is not None and self._record.unexpected(delivery.error):
            self._record.note(delivery.error)
        yield from self._replace(job.route, delivery.error)
        return delivery

    def _job(self, posted: Posted) -> Job:
        tag = next(self._tags)
        self._ledger.admit(tag)
        message: Message[Any] = delivered(
            self._source,
            posted.payload,
            posted.delivered(counted=self.queue.arguments.get("x-queue-type") == "quorum"),
            posted.exchange,
            posted.routing_key,  # type: ignore[arg-type]  # bytes if it is no UTF-8
            posted.redelivered,
            self._clock(),
        )
        return Job(message, self._routes[0] if self._choose is None else self._choose(message), self._ledger, tag)

    def _known(self, job: Job) -> Outcome | None:
        known = self._redeliveries.recognise(job.message, self._clock())
        return None if known is None else known.outcome

    def _run(self, job: Job, delivery: Delivery) -> Steps[None]:
        handler = yield from self._handler(job.route)

        def call(message: Message[Any]) -> Any:
            delivery.ran = True
            return handler(message)

        async def call_async(message: Message[Any]) -> Any:
            delivery.ran = True
            return await self._confirming(handler)(message)

        if self.is_async:
            delivery.error = yield perform_async(job, call_async)
        else:
            delivery.error = perform(job, call)

    # Handlers -------------------------------------------------------------------------------------

    def _handler(self, route: Route) -> Steps[Handler]:
        """Return the handler of a route; make it if there is none, on the loop if it is async."""

        async def make() -> tuple[Handler, Any]:
            return route.make_handler(self._confirming)

        if not route.target.path:
            return _nobody
        if route.number not in self._handlers:
            self._handlers[route.number] = (yield make()) if self.is_async else route.make_handler()
        return self._handlers[route.number][0]

    def _confirming(self, handler: Handler) -> Handler:
        """Fold an async handler, or a layer, so that it fails by what it published and forgot to await."""

        async def call(message: Message[Any]) -> Any:
            value = await handler(message)
            self._outlet.check_forgotten()
            return value

        return call

    def _replace(self, route: Route, error: BaseException | None) -> Steps[None]:
        """Shut an instance down that failed by what it did not mean to raise; the next message gets a fresh one."""
        if error is not None and route.target.shutdown is not None and rule_for(type(error)).error is BaseException:
            yield from self._shut_down(route, error)

    def _shut_down(self, route: Route, error: BaseException | None) -> Steps[None]:
        _, bare = self._handlers.pop(route.number, (None, None))
        if bare is None or route.target.shutdown is None:
            return
        try:
            done = route.target.shutdown(bare, error)
            if inspect.isawaitable(done):
                yield done
        except BaseException as fault:  # noqa: BLE001  # the daemon logs it and goes on; a test is told
            self._record.note(fault)

    def close(self) -> Steps[None]:
        """Shut all instances down."""
        for route in self._routes:
            yield from self._shut_down(route, None)

    # Outcomes -------------------------------------------------------------------------------------

    def _settle(self, job: Job, outcome: Outcome, delivery: Delivery) -> None:
        left, reply = self._settling.publish(job, outcome, self._clock())
        delivery.outcome = left
        delivery.error = delivery.error or self._settling.refused
        delivery.reply = None if reply is None else Reply(reply)
        self.halted = self.halted or outcome.halt or left.halt
        posted, pause = delivery.posted, left.step / 1000
        if left.verdict is Verdict.REQUEUE and left.step:
            self._clock.later(pause, lambda: self._broker.requeue(self.queue, posted))
        elif left.verdict is Verdict.REQUEUE:
            self._broker.requeue(self.queue, posted)
        elif left.verdict is Verdict.REJECT:
            self._broker.dead_letter(self.queue, posted, "rejected")
        elif left.verdict is Verdict.RETRY and self._policy.longest is not None:
            self._clock.later(pause, lambda: self._again(job, left, posted))
        else:
            self._redeliveries.settled(job, outcome.reply)
        if not (left.verdict is Verdict.RETRY and self._policy.longest is not None):
            self._ledger.settle(job.tag)

    def _again(self, job: Job, outcome: Outcome, posted: Posted) -> None:
        """Let a job start again that was kept in the process, as the daemon does."""
        job.claimed, job.outcome, job.entered = False, None, False
        job.message.attempt, job.message.nacks, job.message.published = outcome.count + 1, outcome.nacks, []
        self.waiting.append((job, posted))


def _nobody(_message: Message[Any]) -> Any:
    """Stand for the handler of a message that no handler is for: opening it has failed already."""
    raise AssertionError
