"""A real loop in a real thread: every job comes back once, a task is a message's own, and no handler stops the others."""

import asyncio
import contextlib
import contextvars
import functools
import gc
import itertools
import logging
import random
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from amqp_rig import make_plan
from amqp_wire import LONGEST, Reactor

from rpcd.amqp import instances as instances_module
from rpcd.amqp.running import Running
from rpcd.amqp.tasks import BLOCKED_SECONDS, CANCEL_SECONDS, Tasks
from rpcd.amqp.worker import DaemonPool
from rpcd.core.errors import Drop, HaltConsumer
from rpcd.core.ledger import Ledger
from rpcd.core.message import Message, Source
from rpcd.core.pipeline import Job
from rpcd.core.verdict import Verdict


class Gate:
    """An async handler that stops in the middle until the test lets it go on; a message's body names it."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.at_once: list[int] = []
        self.done: list[str] = []
        self.cancelled: list[str] = []
        self.words: dict[str, Any] = {}
        """What a handler does when it is let go: a value, an exception, or a coroutine function of the message."""
        self.stubborn = False
        """Whether it goes on when it is cancelled."""
        self._open: set[str] = set()
        self._running = 0
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, asyncio.Event] = {}

    async def __call__(self, message: Any) -> Any:
        name = message.body["name"]
        event = asyncio.Event()
        with self._changed:
            self._loop = asyncio.get_running_loop()
            self.order.append(name)
            self._running += 1
            self.at_once.append(self._running)
            self._waiting[name] = event
            if name in self._open:
                event.set()
            self._changed.notify_all()
        try:
            await self._wait(name, event)
        finally:
            with self._changed:
                self._running -= 1
                self.done.append(name)
                self._open.discard(name)
                self._changed.notify_all()
        word = self.words.get(name)
        if isinstance(word, BaseException):
            raise word
        return await word(message) if callable(word) else word

    async def _wait(self, name: str, event: asyncio.Event) -> None:
        while not event.is_set():
            try:
                await event.wait()
            except asyncio.CancelledError:
                self.cancelled.append(name)
                if not self.stubborn:
                    raise

    def entered(self, *names: str) -> None:
        with self._changed:
            arrived = self._changed.wait_for(lambda: all(name in self.order for name in names), LONGEST)
            assert arrived, f"of {names} only {self.order} have begun"

    def let(self, *names: str) -> None:
        with self._changed:
            self._open.update(names)
            for name in names:
                if name in self._waiting and self._loop is not None:
                    self._loop.call_soon_threadsafe(self._waiting[name].set)


class Crew:
    """Tasks, the jobs that they were given, and the jobs that came back."""

    def __init__(self, handler: Any, reactor: Reactor, pool: DaemonPool, **section: Any) -> None:
        self.reactor = reactor
        self.back: list[Job] = []
        self.settles = True
        plan = make_plan(handler, {}, section, 60.0)
        self.routes = plan.routes
        self.tasks = Tasks(plan.routes, plan.section.workers, pool, reactor, self._finished)
        self._tags = itertools.count(1)
        self._ledger = Ledger()

    def _finished(self, jobs: list[Job]) -> None:
        self.back += jobs
        for job in jobs:
            if self.settles:
                job.done()

    def start(self) -> "Crew":
        self.tasks.start()
        self.reactor.until(lambda: self.tasks.ready.happened, "no handler is ready")
        return self

    def job(self, name: Any, key: Any = "", route: int = 0, kind: type[Job] = Job) -> Job:
        message: Message[Any] = Message(payload=f'{{"name": "{name}"}}'.encode(), routing_key=str(key))
        return kind(message, self.routes[route], self._ledger, next(self._tags))

    def give(self, *names: Any, key: Any = "") -> list[Job]:
        jobs = [self.job(name, key) for name in names]
        for job in jobs:
            self.tasks.submit(job)
        return jobs

    def until(self, count: int) -> None:
        self.reactor.until(lambda: len(self.back) >= count, f"of {count} jobs {len(self.back)} came back")

    def names(self) -> list[str]:
        return [name(job) for job in self.back]

    def verdicts(self) -> list[Verdict]:
        return [job.outcome.verdict for job in self.back if job.outcome is not None]

    def turn(self, turns: int = 3) -> None:
        """Let the loop turn."""
        for _ in range(turns):
            turned = threading.Event()
            self.tasks.thread.call(turned.set)
            assert turned.wait(LONGEST), "the loop does not turn"

    def soon(self, condition: Callable[[], object], what: str) -> None:
        """Let loop and reactor turn until a condition holds."""
        for _ in range(20_000):
            self.reactor.run()
            if condition():
                return
            self.turn(1)
        raise AssertionError(what)

    def overdue(self, limit: float = 60.0) -> list[str]:
        """Look for overdue jobs with a loop that has answered."""
        self.turn()
        found = []
        for job in self.tasks.overdue(limit):
            job.claimed = True
            found.append(name(job))
        return found

    def stop(self) -> None:
        self.tasks.stop()
        self.reactor.until(lambda: self.tasks.ended.happened, "the loop does not end")


def name(job: Job) -> str:
    return job.message.payload.decode().split('"')[3]


MakeCrew = Callable[..., Crew]


@pytest.fixture
def crew(reactor: Reactor, pool: DaemonPool) -> Iterator[MakeCrew]:
    made: list[Crew] = []

    def make(handler: Any, *, wait: bool = True, **section: Any) -> Crew:
        made.append(Crew(handler, reactor, pool, **section))
        if wait:
            return made[-1].start()
        made[-1].tasks.start()
        return made[-1]

    yield make
    for each in made:
        for job in each.back:
            job.done()
        each.tasks.resume()
        each.stop()


@pytest.fixture
def hasty() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


async def nothing(_message: Any) -> None:
    """Handle a message."""


async def pausing(_message: Any) -> None:
    await asyncio.sleep(0)


# In and out ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("lock", [None, "routing_key"])
@pytest.mark.parametrize("handler", [nothing, pausing])
def test_every_job_comes_back_once_and_no_place_is_left_free_while_work_waits(
    crew: MakeCrew, handler: Any, lock: str | None
) -> None:
    """Small batches let the loop fall asleep and wake again thousands of times; a lost wake-up ends in a wait."""
    it = crew(handler, workers=8, lock=lock)
    dice = random.Random(1)
    given, most = 0, 10_000
    while given < most:
        for _ in range(min(dice.choice((1, 1, 2, 3, 9)), most - given)):
            it.tasks.submit(it.job(given, key=dice.randrange(5)))
            given += 1
        turn = dice.random()
        if turn < 0.3:
            it.until(given)
        elif turn < 0.8:
            it.reactor.run()
    it.until(given)
    assert Counter(job.tag for job in it.back) == Counter(range(1, most + 1))
    assert set(it.verdicts()) == {Verdict.ACK}
    it.soon(lambda: it.tasks._free == 8, "a place is lost")
    assert (it.tasks.running, it.tasks.take_back(), len(it.tasks._lanes)) == ([], [], 0)


def test_as_many_tasks_as_workers_run_at_once(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=3)
    it.give("a", "b", "c", "d")
    gate.entered("a", "b", "c")
    it.turn()
    assert gate.order == ["a", "b", "c"]
    assert sorted(name(job) for job in it.tasks.running) == ["a", "b", "c"]
    gate.let("b")
    gate.entered("d")
    gate.let("a", "c", "d")
    it.until(4)
    assert max(gate.at_once) == 3


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (Drop(), Verdict.REJECT),
        (ValueError("x"), Verdict.RETRY),
        (asyncio.CancelledError(), Verdict.RETRY),
        (SystemExit(3), Verdict.RETRY),
        (KeyboardInterrupt(), Verdict.RETRY),
        (GeneratorExit(), Verdict.RETRY),
        (StopIteration(), Verdict.RETRY),
    ],
    ids=lambda each: type(each).__name__,
)
def test_whatever_a_coroutine_raises_becomes_an_outcome_and_the_loop_goes_on(
    crew: MakeCrew, error: BaseException, verdict: Verdict
) -> None:
    async def handle(message: Any) -> None:
        if message.body["name"] == "bad":
            raise error

    it = crew(handle)
    it.give("bad", "good")
    it.until(2)
    assert it.verdicts() == [verdict, Verdict.ACK]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=lambda each: type(each).__name__)
def test_what_a_task_of_a_handler_raises_out_of_the_loop_reaches_the_handler(
    crew: MakeCrew, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> None:
        raise error

    async def handle(message: Any) -> None:
        if message.body["name"] == "bad":
            await asyncio.ensure_future(leave())

    it = crew(handle, workers=2)
    it.give("bad", "good")
    it.until(2)
    assert sorted(each.value for each in it.verdicts()) == ["ack", "retry"]
    assert "raised out of the loop, which goes on" in caplog.text


def test_a_cancel_by_somebody_else_is_an_ordinary_failure_even_before_the_first_step(crew: MakeCrew) -> None:
    async def handle(message: Any) -> None:
        if message.body["name"] == "killer":
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
        else:
            await asyncio.sleep(LONGEST)

    it = crew(handle, workers=3)
    it.tasks.hold()
    it.give("waiting", "killer", "unborn")
    it.tasks.resume()
    it.until(3)
    assert {name(job): job.outcome.verdict for job in it.back if job.outcome is not None} == {
        "waiting": Verdict.RETRY,
        "killer": Verdict.ACK,
        "unborn": Verdict.RETRY,
    }
    it.soon(lambda: it.tasks._free == 3, "a place is lost")


def test_a_body_that_cannot_be_read_and_a_value_that_is_still_work(crew: MakeCrew) -> None:
    async def handle(_message: Any) -> Any:
        return nothing(None)

    it = crew(handle, lock="body.name")
    job = it.job("x")
    job.message._payload = b"{"
    it.tasks.submit(job)
    it.give("y")
    it.until(2)
    assert it.verdicts() == [Verdict.ARCHIVE, Verdict.RETRY]
    assert "returned a coroutine" in str(it.back[1].outcome and it.back[1].outcome.trace)


# The message that a task belongs to ---------------------------------------------------------------

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


def test_a_context_variable_ends_with_its_message_and_tasks_and_threads_know_theirs(crew: MakeCrew) -> None:
    seen: list[str] = []
    known: dict[str, list[str]] = defaultdict(list)

    def whose() -> str:
        running = it.tasks.of_this_thread()
        return name(running.job) if running is not None else "nobody's"

    async def inner() -> str:
        return whose()

    async def handle(message: Any) -> None:
        mine = message.body["name"]
        seen.append(TENANT.get())
        TENANT.set(mine)
        known[mine] = [whose(), await asyncio.to_thread(whose), await asyncio.ensure_future(inner())]

    it = crew(handle, workers=2)
    it.give(*"abcdefgh")
    it.until(8)
    assert set(seen) == {"nobody"}
    assert known == {each: [each] * 3 for each in "abcdefgh"}
    assert whose() == "nobody's"


def test_exceptions_of_what_a_handler_leaves_behind_go_to_the_log(crew: MakeCrew, caplog: pytest.LogCaptureFixture) -> None:
    left: list[Any] = []

    async def fail() -> None:
        raise ValueError("left behind")

    async def handle(message: Any) -> None:
        if message.body["name"] == "careless":
            left.append(asyncio.ensure_future(fail()))
            asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        else:
            left.clear()

    it = crew(handle)
    it.give("careless", "tidy", "last")
    it.until(3)
    assert it.verdicts() == [Verdict.ACK] * 3
    it.stop()
    found = [(record.name, record.exc_info and record.exc_info[0]) for record in caplog.records]
    assert ("rpcd.workers", ZeroDivisionError) in found
    assert ("rpcd.workers", ValueError) in found


def test_a_message_that_has_ended_leaves_no_work_for_the_garbage_collector(crew: MakeCrew) -> None:
    it = crew(pausing)
    gc.collect()
    gc.disable()
    try:
        it.give(*"abcdefgh")
        it.until(8)
        it.soon(lambda: not it.tasks._running, "they do not end")
        it.back.clear()
        it.turn()
        assert [each for each in gc.get_objects() if isinstance(each, Running)] == []
    finally:
        gc.enable()


# Lanes --------------------------------------------------------------------------------------------


def test_one_at_a_time_a_key_in_the_order_in_which_they_came(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=4, lock="routing_key")
    it.give("a1", "a2", "a3", key="a")
    it.give("b1", "b2", key="b")
    gate.entered("a1", "b1")
    it.turn()
    assert sorted(gate.order) == ["a1", "b1"]
    gate.let("a1", "a2", "a3")
    it.until(3)
    gate.let("b2", "b1")
    it.until(5)
    assert it.names() == ["a1", "a2", "a3", "b1", "b2"]
    it.soon(lambda: len(it.tasks._lanes) == 0, "a lane is not forgotten")


def test_what_has_not_started_is_taken_back_in_order_and_lanes_of_running_ones_stay(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=2, lock="routing_key")
    it.give("a1", "a2", key="a")
    it.give("b1", key="b")
    it.give("c1", "c2", key="c")
    gate.entered("a1", "b1")
    it.turn()
    it.tasks.hold()
    assert [name(job) for job in it.tasks.take_back()] == ["a2", "c1", "c2"]
    gate.let("a1", "b1")
    it.until(2)
    it.tasks.resume()
    it.give("a3", key="a")
    gate.let("a3")
    it.until(3)


def test_a_lane_that_is_handed_on_while_held_is_taken_back_too(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=2, lock="routing_key")
    it.give("a1", "a2", key="a")
    gate.entered("a1")
    it.turn()
    it.tasks.hold()
    gate.let("a1")
    it.until(1)
    it.turn()
    assert [name(job) for job in it.tasks.take_back()] == ["a2"]
    assert len(it.tasks._lanes) == 0


# Hold and halt ------------------------------------------------------------------------------------


def test_held_tasks_start_nothing_until_they_are_resumed(crew: MakeCrew) -> None:
    it = crew(nothing)
    it.tasks.hold()
    it.give("a")
    it.turn()
    assert (it.back, len(it.tasks._jobs)) == ([], 1)
    it.tasks.nudge()
    it.turn()
    assert it.back == []
    it.tasks.resume()
    it.until(1)


def test_what_runs_is_told_when_nobody_waits_for_it_any_more_and_nothing_else_starts(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=1)
    runs, waits = it.give("a", "b")
    gate.entered("a")
    it.tasks.abandon()
    assert (runs.message.cancelled, waits.message.cancelled, it.tasks.held) == (True, False, True)
    gate.let("a", "b")
    it.until(1)
    assert it.verdicts() == [Verdict.ACK]


def test_a_nudge_wakes_the_loop_for_what_waits(crew: MakeCrew) -> None:
    it = crew(nothing)
    it.tasks._jobs.append(it.job("forgotten"))
    it.tasks.nudge()
    it.until(1)


def test_a_halt_holds_everything_at_once(crew: MakeCrew) -> None:
    async def handle(message: Any) -> None:
        if message.body["name"] == "b":
            raise HaltConsumer

    it = crew(handle)
    it.give("a", "b", "c")
    it.until(2)
    it.turn()
    assert it.names() == ["a", "b"]
    assert it.tasks.held
    assert [name(job) for job in it.tasks.take_back()] == ["c"]


# The deadline -------------------------------------------------------------------------------------


class Senders:
    """Jobs whose senders wait until a clock says so."""

    def __init__(self, it: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self._it = it
        for route in it.routes:
            monkeypatch.setattr(route, "clock", self.clock)

    def clock(self) -> float:
        return self.now

    def give(self, word: str, *, seconds: float, key: str = "") -> Job:
        job = self._it.job(word, key)
        job.message.source = Source("orders", "orders", None, None, self.clock)
        job.message.deadline = self.now + seconds
        self._it.tasks.submit(job)
        return job


def reason(job: Job) -> str:
    assert job.outcome is not None
    return job.outcome.reason


def test_a_coroutine_is_cancelled_at_the_deadline_of_its_message_and_no_earlier(
    crew: MakeCrew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its timer fires again and again meanwhile, because the wall clock stands still: that alone decides."""
    gate = Gate()
    it = crew(gate, workers=1)
    senders = Senders(it, monkeypatch)
    job = senders.give("late", seconds=0.01)
    gate.entered("late")
    looked: list[float | None] = []
    it.tasks.thread.call(lambda: it.tasks.thread.loop.call_later(0.1, looked.append, job.message.remaining))
    it.soon(lambda: looked, "the loop does not turn")
    assert (gate.cancelled, job.message.cancelled) == ([], False)
    senders.now += 0.01
    it.until(1)
    assert (gate.cancelled, it.verdicts(), reason(job)) == (["late"], [Verdict.ACK], "deadline passed while it ran")
    assert (job.message.cancelled, it.tasks._free) == (True, 1)


def test_what_a_coroutine_returns_although_it_was_cancelled_counts(crew: MakeCrew, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    gate.stubborn = True
    gate.words["late"] = publishing
    it = crew(gate, workers=1)
    senders = Senders(it, monkeypatch)
    job = senders.give("late", seconds=0.01)
    gate.entered("late")
    senders.now += 1
    it.soon(lambda: gate.cancelled, "it is not cancelled")
    gate.let("late")
    it.until(1)
    assert (it.verdicts(), reason(job)) == ([Verdict.ACK], "")
    assert [each.routing_key for each in getattr(job.outcome, "publications", [])] == ["order.placed"]


async def publishing(message: Message[Any]) -> None:
    message.publish("shop", "order.placed", 1)


def test_a_coroutine_that_ends_in_time_leaves_no_timer_behind(crew: MakeCrew, monkeypatch: pytest.MonkeyPatch) -> None:
    it = crew(pausing, workers=1)
    senders = Senders(it, monkeypatch)
    for word in ("a", "b"):
        senders.give(word, seconds=600.0)
    it.until(2)
    assert it.verdicts() == [Verdict.ACK, Verdict.ACK]
    timers: list[Any] = []
    it.tasks.thread.call(lambda: timers.append([each for each in it.tasks.thread.loop._scheduled if not each.cancelled()]))  # type: ignore[attr-defined]
    it.soon(lambda: timers, "the loop does not turn")
    assert timers == [[]]


def test_a_coroutine_that_somebody_else_cancels_ahead_of_its_deadline_has_failed_as_any_other(
    crew: MakeCrew, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelling(_message: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    it = crew(cancelling, workers=1)
    Senders(it, monkeypatch).give("a", seconds=600.0)
    it.until(1)
    assert it.verdicts() == [Verdict.RETRY]


def test_an_instance_is_not_replaced_because_a_sender_waits_no_longer(
    crew: MakeCrew, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    class Sleeper:
        async def __call__(self, message: Any) -> None:
            log.append(message.body["name"])
            if message.body["name"] == "late":
                await asyncio.Event().wait()

        def shutdown(self) -> None:
            log.append("shut down")

    it = crew(Sleeper, workers=1)
    senders = Senders(it, monkeypatch)
    late = senders.give("late", seconds=0.01)
    it.soon(lambda: log, "it does not run")
    senders.now += 1
    it.until(1)
    it.give("next")
    it.until(2)
    assert (reason(late), log) == ("deadline passed while it ran", ["late", "next"])


def test_what_waits_in_its_lane_beyond_its_deadline_does_not_run(crew: MakeCrew, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    it = crew(gate, workers=2, lock="routing_key")
    senders = Senders(it, monkeypatch)
    senders.give("a1", seconds=600.0, key="a")
    gate.entered("a1")
    waited = senders.give("a2", seconds=5.0, key="a")
    senders.give("a3", seconds=600.0, key="a")
    it.soon(lambda: it.tasks.lanes == (1, 2), "they are not parked")
    senders.now += 5
    gate.let("a1", "a3")
    it.until(3)
    assert (gate.order, it.names(), reason(waited)) == (
        ["a1", "a3"],
        ["a1", "a2", "a3"],
        "deadline passed before it started",
    )
    it.soon(lambda: it.tasks.lanes == (0, 0), "a key is not forgotten")


def test_what_waits_for_a_key_that_hangs_is_handed_in_when_its_deadline_passes(
    crew: MakeCrew, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    it = crew(gate, workers=2, lock="routing_key")
    senders = Senders(it, monkeypatch)
    senders.give("a1", seconds=600.0, key="a")
    gate.entered("a1")
    for name, seconds in (("a2", 5.0), ("a3", 600.0)):
        senders.give(name, seconds=seconds, key="a")
    it.soon(lambda: it.tasks.lanes == (1, 2), "they are not parked")
    it.tasks.sweep()
    assert it.names() == []
    senders.now += 5
    it.tasks.sweep()
    assert (it.names(), it.tasks.lanes) == (["a2"], (1, 1))
    gate.let("a1", "a3")
    it.until(3)
    assert gate.order == ["a1", "a3"]


# The time limit -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("clocked")
def test_an_overdue_task_is_cancelled_and_its_place_given_to_another(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=1)
    (late,) = it.give("late")
    it.give("next")
    gate.entered("late")
    it.reactor.advance(59.0)
    assert it.overdue() == []
    it.reactor.advance(2.0)
    assert it.overdue() == ["late"]
    assert "_wait" in str(it.tasks.stack(late)) or gate.cancelled
    gate.entered("next")
    gate.let("next")
    it.until(1)
    it.soon(lambda: not it.tasks._running, "the cancelled task does not end")
    assert gate.cancelled == ["late"]
    assert it.names() == ["next"]
    assert (late.message.cancelled, it.back[0].message.cancelled) == (True, False)
    assert (it.tasks.lost, it.tasks._free) == (0, 1)


@pytest.mark.usefixtures("clocked")
def test_a_task_that_ignores_its_cancel_is_lost_and_keeps_its_lane_until_it_ends(crew: MakeCrew) -> None:
    gate = Gate()
    gate.stubborn = True
    it = crew(gate, workers=1, lock="routing_key")
    it.give("a1", "a2", key="a")
    gate.entered("a1")
    it.reactor.advance(61.0)
    assert it.overdue() == ["a1"]
    it.give("b1", key="b")
    gate.entered("b1")
    assert it.tasks.lost == 0
    assert [name(job) for job in it.tasks.running] == ["b1"]
    it.reactor.advance(CANCEL_SECONDS + 1)
    assert (it.tasks.lost, it.tasks.condition.split()[0]) == (1, "1")
    gate.let("b1")
    it.until(1)
    assert gate.order == ["a1", "b1"]
    gate.let("a1", "a2")
    it.until(2)
    assert it.names() == ["b1", "a2"]
    it.soon(lambda: it.tasks.lost == 0 and it.tasks._free == 1, "the lost task is not forgotten")


@pytest.mark.usefixtures("clocked")
def test_a_blocked_loop_condemns_the_one_that_blocks_it_and_nobody_else(
    crew: MakeCrew, caplog: pytest.LogCaptureFixture
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    async def block() -> None:
        inside.set()
        go_on.wait(LONGEST)

    async def handle(message: Any) -> None:
        if message.body["name"] == "blocks":
            await asyncio.wait_for(block(), LONGEST)  # before Python 3.12 in a task of its own
        else:
            await asyncio.sleep(0.01)

    it = crew(handle, workers=3)
    it.give("innocent", "blocks")
    assert inside.wait(LONGEST)
    found = []
    for _ in range(70):
        found += [name(job) for job in it.tasks.overdue(60.0)]
        it.reactor.advance(1.0)
        if not caplog.records:
            assert it.tasks.thread.blocked <= BLOCKED_SECONDS
    assert found == ["blocks"]
    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "test:handler blocks the loop" in said.getMessage()
    assert "go_on.wait" in said.trace  # type: ignore[attr-defined]
    assert it.tasks.stuck
    assert "blocks the loop" in it.tasks.condition
    assert [name(job) for job in it.tasks.running] == ["innocent"]
    it.tasks.stop()
    assert it.tasks.ended.happened
    go_on.set()
    it.until(1)
    assert it.names() == ["innocent"]


@pytest.mark.usefixtures("clocked")
def test_the_time_of_a_blocked_loop_counts_for_nobody_who_could_not_help_it(crew: MakeCrew) -> None:
    inside, go_on = threading.Event(), threading.Event()
    gate = Gate()

    async def block(_message: Any) -> None:
        inside.set()
        go_on.wait(LONGEST)

    gate.words["blocks"] = block
    it = crew(gate, workers=2)
    it.give("innocent", "blocks")
    gate.entered("innocent", "blocks")
    assert it.overdue() == []
    gate.let("blocks")
    assert inside.wait(LONGEST)
    for _ in range(41):
        assert list(it.tasks.overdue(60.0)) == []
        it.reactor.advance(1.0)
    go_on.set()
    it.until(1)
    it.reactor.advance(30.0)
    assert it.overdue() == []
    it.reactor.advance(40.0)
    assert it.overdue() == ["innocent"]


@pytest.mark.usefixtures("clocked")
def test_a_process_that_was_stopped_has_blocked_nothing(crew: MakeCrew) -> None:
    it = crew(nothing)
    assert it.tasks.thread.look(0.0, 30.0) == 0.0
    it.tasks.thread._answered = False  # asked just before the stop
    assert it.tasks.thread.look(1000.0, 30.0) == 30.0
    it.tasks.thread._answered = True


# Instances ----------------------------------------------------------------------------------------


def recorder(log: list[str], fails: Callable[[int], bool] = lambda _number: False) -> type:
    """Make a handler class that writes down what happens to its instances."""
    numbers = itertools.count(1)

    class Recorder:
        def __init__(self, config: Any) -> None:
            self.number = next(numbers)
            if fails(self.number):
                raise OSError("no database")
            assert asyncio.current_task() is not None
            log.append(f"made {self.number}")
            self.config = config
            self.gate = Gate()

        async def __call__(self, message: Any) -> None:
            log.append(f"{message.body['name']} on {self.number}")
            if message.body["name"].startswith("bad"):
                raise ValueError("unexpected")
            if message.body["name"].startswith("slow"):
                await self.gate(message)

        async def shutdown(self, error: BaseException | None) -> None:
            await asyncio.sleep(0)
            log.append(f"shut down {self.number} {type(error).__name__}")

    return Recorder


def test_an_instance_is_made_once_on_the_loop_and_shut_down_there(crew: MakeCrew) -> None:
    log: list[str] = []
    it = crew(recorder(log), workers=3, config={"a": 1})
    it.give("x", "y", "z")
    it.until(3)
    it.stop()
    assert log == ["made 1", "x on 1", "y on 1", "z on 1", "shut down 1 NoneType"]


def test_a_failed_instance_is_replaced_at_once_and_shut_down_when_settled_and_no_longer_used(crew: MakeCrew) -> None:
    log: list[str] = []
    it = crew(recorder(log), workers=3)
    it.settles = False
    it.give("slow")
    it.soon(lambda: "slow on 1" in log, "it has not begun")
    gate = it.tasks._instances.of(it.routes[0]).bare.gate
    it.give("bad", "after")
    it.until(2)
    assert it.names() == ["bad", "after"]
    assert log[:3] == ["made 1", "slow on 1", "bad on 1"]
    it.soon(lambda: "made 2" in log, "no fresh one is made")
    gate.let("slow")
    it.until(3)
    it.turn(10)
    assert not any(line.startswith("shut down") for line in log)
    for job in it.back:
        job.done()
    it.soon(lambda: "shut down 1 ValueError" in log, "it is not shut down")
    it.give("last")
    it.until(4)
    assert log[-1] == "last on 2"
    it.stop()
    assert log[-1] == "shut down 2 NoneType"


def test_an_instance_that_many_fail_on_is_replaced_once(crew: MakeCrew) -> None:
    log: list[str] = []
    it = crew(recorder(log), workers=3)
    it.tasks.hold()
    it.give("bad1", "bad2", "bad3")
    it.tasks.resume()
    it.until(3)
    it.stop()
    assert sorted(line for line in log if "bad" not in line) == [
        "made 1",
        "made 2",
        "shut down 1 ValueError",
        "shut down 2 NoneType",
    ]


def test_a_constructor_that_fails_is_tried_again_and_nothing_starts_meanwhile(
    crew: MakeCrew, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(instances_module, "MAKE_SECONDS", (0.01, 0.02))
    log: list[str] = []
    it = crew(recorder(log, lambda number: number in (1, 2, 4)))
    assert caplog.text.count("test:handler can't be made; next try in") == 2
    it.give("bad", "good")
    it.until(2)
    it.stop()
    assert log[-4:-1] == ["made 5", "good on 5", "shut down 5 NoneType"] or "good on 5" in log


def test_a_loop_whose_handler_can_never_be_made_stops(crew: MakeCrew) -> None:
    it = crew(recorder([], lambda _number: True), wait=False)
    it.give("a")
    it.turn()
    it.stop()
    assert not it.tasks.ready.happened


def test_each_route_has_an_instance_of_its_own(reactor: Reactor, crew: MakeCrew) -> None:
    log: list[str] = []
    it = crew({"one": recorder(log), "two": recorder(log)}, workers=2)
    it.tasks.submit(it.job("x", route=0))
    it.tasks.submit(it.job("bad", route=1))
    it.until(2)
    it.stop()
    assert Counter(log)["made 1"] == 2
    assert Counter(log)["made 2"] == 1
    assert sorted(line for line in log if line.startswith("shut")) == [
        "shut down 1 NoneType",
        "shut down 1 ValueError",
        "shut down 2 NoneType",
    ]


@pytest.mark.parametrize("plain", [True, False])
def test_a_shutdown_that_fails_is_told_and_stops_nothing(
    crew: MakeCrew, caplog: pytest.LogCaptureFixture, plain: bool
) -> None:
    class Plain:
        async def __call__(self, message: Any) -> None:
            if message.body["name"] == "bad":
                raise ValueError("unexpected")

        def shutdown(self) -> None:
            raise SystemExit(1)

    class Async(Plain):
        async def shutdown(self) -> None:  # type: ignore[override]
            raise SystemExit(1)

    it = crew(Plain if plain else Async)
    it.give("bad", "good")
    it.until(2)
    it.stop()
    assert caplog.text.count("test:handler.shutdown failed") == 2


# Faults, and handlers that mean well -------------------------------------------------------------


class Faulty(Job):
    """A job that can't be given an outcome on the loop, as if rpcd had a fault there."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "outcome" and value is not None and threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError("a fault of rpcd")
        super().__setattr__(name, value)


@pytest.mark.parametrize("lock", [None, "routing_key"])
@pytest.mark.parametrize("kind", ["job", "task"])
def test_a_message_that_rpcd_itself_has_failed_is_given_back_and_the_next_one_runs(
    crew: MakeCrew, complaints: list[str], monkeypatch: pytest.MonkeyPatch, lock: str | None, kind: str
) -> None:
    """Nobody else knows of it: it would stay unsettled, and its place and lane busy, as long as the connection lasts."""
    it = crew(nothing, workers=1, lock=lock)
    bad = it.job("bad", "a", kind=Faulty if kind == "job" else Job)
    if kind == "task":
        monkeypatch.setattr(it.tasks, "_handle", lambda _running: monkeypatch.undo())  # no coroutine, so no task of it
    it.tasks.submit(bad)
    it.give("good", key="a")
    it.until(2)
    assert sorted(it.names()) == ["bad", "good"]
    assert bad.outcome is not None
    assert bad.outcome.verdict is Verdict.REQUEUE
    assert complaints == ["a fault of rpcd in a task of orders"]
    complaints.clear()
    it.give("one more", key="a")
    it.until(3)


def cancel_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()


def test_a_handler_that_cancels_all_tasks_cancels_none_of_ours(crew: MakeCrew, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer whose handler is never made again, or whose stop never ends, would be the price."""
    monkeypatch.setattr(instances_module, "MAKE_SECONDS", (0.01, 0.01))
    log: list[str] = []
    hinder = [True]

    class Handler:
        def __init__(self) -> None:
            log.append("made")
            if len(log) > 1 and hinder:
                raise OSError("no database")

        async def __call__(self, message: Any) -> None:
            if message.body["name"] == "bad":
                raise ValueError("unexpected")

        async def shutdown(self) -> None:
            cancel_all()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            log.append("shut down")

    it = crew(Handler)
    it.settles = False
    it.give("bad")
    it.until(1)
    for _ in range(3):
        it.tasks.thread.call(cancel_all)
        it.turn()
    hinder.clear()
    it.give("good")
    it.until(2)
    assert it.names() == ["bad", "good"]
    it.back[0].done()
    it.soon(lambda: "shut down" in log, "the old one is not shut down")
    it.tasks.stop()
    for _ in range(3):
        if not it.tasks.thread.loop.is_closed():
            it.tasks.thread.call(cancel_all)
    it.stop()
    assert log.count("shut down") == 2


class Key(str):
    """A key that can't be compared with any other, although it has a hash."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise ValueError("never compare me")


def test_a_key_that_cannot_be_compared_fails_its_own_message(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=2, lock="routing_key")
    jobs = [it.job("a"), it.job("b"), it.job("c", "other")]
    for job in jobs[:2]:
        job.message.routing_key = Key("k")
    gate.let("b", "c")
    for job in jobs:
        it.tasks.submit(job)
    it.until(2)  # while the first one has its lane
    gate.let("a")
    it.until(3)
    assert gate.order == ["a", "c"]
    assert sorted((name(job), job.outcome.error) for job in it.back if job.outcome) == [
        ("a", None),
        ("b", "ValueError"),
        ("c", None),
    ]


# The stop -----------------------------------------------------------------------------------------


def test_the_stop_waits_for_what_runs_then_cancels_what_is_left_and_closes_the_loop(crew: MakeCrew) -> None:
    log: list[str] = []
    gate = Gate()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            log.append("generator closed")

    async def background() -> None:
        try:
            await asyncio.sleep(LONGEST)
        finally:
            log.append("background cancelled")

    kept: list[Any] = []

    class Handler:
        def __init__(self) -> None:
            kept.append(asyncio.get_running_loop().create_task(background()))

        async def __call__(self, message: Any) -> None:
            kept.append(numbers())
            await kept[-1].__anext__()
            await gate(message)
            log.append("handled")

        def shutdown(self) -> None:
            log.append("shut down")

    it = crew(Handler)
    it.give("a")
    gate.entered("a")
    it.tasks.stop()
    it.turn()
    assert not it.tasks.ended.happened
    gate.let("a")
    it.stop()
    assert log == ["handled", "shut down", "background cancelled", "generator closed"]
    assert it.names() == ["a"]
    loop = it.tasks.thread.loop
    it.reactor.until(loop.is_closed) if not loop.is_closed() else None
    it.tasks.thread.call(log.append, "too late")
    it.tasks.submit(it.job("too late"))
    it.tasks.nudge()
    assert len(log) == 4


@pytest.mark.usefixtures("clocked")
def test_the_stop_does_not_wait_for_a_lost_task(crew: MakeCrew, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rpcd.amqp.tasks.LEAVE_SECONDS", "rpcd.amqp.loop.LEAVE_SECONDS"):
        monkeypatch.setattr(module, 0.01)
    gate = Gate()
    gate.stubborn = True
    it = crew(gate)
    it.give("stuck")
    gate.entered("stuck")
    it.tasks.stop()
    it.reactor.advance(61.0)
    assert it.overdue() == ["stuck"]
    it.stop()


def test_a_thread_that_a_handler_has_started_holds_neither_loop_nor_process(crew: MakeCrew) -> None:
    go_on = threading.Event()
    threads: list[threading.Thread] = []

    def busy() -> None:
        threads.append(threading.current_thread())
        go_on.wait(LONGEST)

    async def handle(_message: Any) -> None:
        asyncio.ensure_future(asyncio.to_thread(busy))  # noqa: RUF006  # left behind on purpose
        while not threads:  # noqa: ASYNC110  # the thread is not the loop's
            await asyncio.sleep(0)

    it = crew(handle)
    it.give("a")
    it.until(1)
    it.stop()
    assert threads[0].is_alive()
    assert threads[0].daemon
    go_on.set()


def test_to_thread_returns_and_raises(crew: MakeCrew) -> None:
    got: list[Any] = []

    async def handle(_message: Any) -> None:
        got.append(await asyncio.to_thread(functools.partial(int, "7", base=8)))
        await asyncio.to_thread(int, "x")

    it = crew(handle)
    it.give("a")
    it.until(1)
    assert got == [7]
    assert it.back[0].outcome is not None
    assert it.back[0].outcome.error == "ValueError"


def test_a_handler_that_stops_the_loop_stops_nothing(crew: MakeCrew) -> None:
    async def handle(_message: Any) -> None:
        asyncio.get_running_loop().stop()

    it = crew(handle)
    it.give("a", "b")
    it.until(2)


def test_a_loop_that_is_gone_before_it_was_told_to_is_heard_of(crew: MakeCrew) -> None:
    it = crew(nothing)
    it.stop()
    it.reactor.run()
    it.tasks.thread._leaving = False
    with pytest.raises(RuntimeError, match="closed"):
        it.tasks.thread.call(print)
    it.tasks.thread._leaving = True
