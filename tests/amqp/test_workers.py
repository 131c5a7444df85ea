"""Real threads: every job comes back once, no worker sleeps while work waits, and an ending leaves nothing behind."""

import itertools
import random
import sys
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from amqp_rig import Gate, make_plan
from amqp_wire import LONGEST, Reactor

from rpcd.amqp import worker as worker_module
from rpcd.amqp import workers as workers_module
from rpcd.amqp.worker import DaemonPool, Worker
from rpcd.amqp.workers import Workers
from rpcd.core.errors import Drop, HaltConsumer, TimeLimitPassed
from rpcd.core.ledger import Ledger
from rpcd.core.message import Message, Source
from rpcd.core.pipeline import Job
from rpcd.core.verdict import Outcome, Verdict


class Crew:
    """Workers, the jobs that they were given, and the jobs that came back."""

    def __init__(self, handler: Any, reactor: Reactor, pool: DaemonPool, **section: Any) -> None:
        self.reactor = reactor
        self.handler = handler
        self.back: list[Job] = []
        self.settles = True
        self.log: list[str] = []
        plan = make_plan(handler, {}, section, 60.0)
        self.route, self.routes = plan.routes[0], plan.routes
        self.workers = Workers(plan.routes, plan.section.workers, pool, reactor, self._finished)
        self._tags = itertools.count(1)
        self._ledger = Ledger()

    def _finished(self, jobs: list[Job]) -> None:
        self.back += jobs
        for job in jobs:
            self.log.append(f"settled {name(job)}")
            if self.settles:
                job.done()

    def start(self) -> "Crew":
        self.workers.start()
        self.reactor.until(lambda: self.workers.ready.happened, "no worker is ready")
        return self

    def job(self, name: Any, key: Any = "", kind: type[Job] = Job) -> Job:
        body = f'{{"name": "{name}"}}'.encode()
        return kind(Message(payload=body, routing_key=str(key)), self.route, self._ledger, next(self._tags))

    def give_to(self, number: int, *names: Any, key: Any = "") -> list[Job]:
        """Give jobs that are for one of several handlers."""
        jobs = [self.job(name, key) for name in names]
        for job in jobs:
            job.route = self.routes[number]
            self.workers.submit(job)
        return jobs

    def give(self, *names: Any, key: Any = "") -> list[Job]:
        jobs = [self.job(name, key) for name in names]
        for job in jobs:
            self.workers.submit(job)
        return jobs

    def until(self, count: int) -> None:
        """Wait until so many jobs have come back."""
        self.reactor.until(lambda: len(self.back) >= count, f"of {count} jobs {len(self.back)} came back")

    def names(self) -> list[str]:
        return [name(job) for job in self.back]

    def stop(self) -> None:
        self.workers.stop()
        self.reactor.until(lambda: self.workers.ended.happened, "the workers do not end")


def name(job: Job) -> str:
    parts = job.message.payload.decode().split('"')
    return parts[3] if len(parts) > 3 else "?"


def anew(job: Job) -> Job:
    """The job of the same message when the broker delivers it again."""
    return Job(Message(payload=job.message.payload, routing_key=job.message.routing_key), job.route, job.ledger, job.tag)


MakeCrew = Callable[..., Crew]


@pytest.fixture
def crew(reactor: Reactor, pool: DaemonPool) -> Iterator[MakeCrew]:
    made: list[Crew] = []

    def make(handler: Any, **section: Any) -> Crew:
        made.append(Crew(handler, reactor, pool, **section))
        return made[-1].start()

    yield make
    for each in made:
        if isinstance(each.handler, Gate):
            each.handler.let_all()
        each.settles = True
        for job in each.back:
            job.done()
        each.workers.resume()
        each.stop()
        reactor.until(lambda each=each: not each.workers.workers, "written-off workers do not end")  # type: ignore[misc]


@pytest.fixture
def hasty() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def nothing(_message: Any) -> None:
    """Handle a message."""


# In and out ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
def test_every_job_comes_back_once_and_no_worker_sleeps_while_work_waits(crew: MakeCrew) -> None:
    """Small batches let the workers fall asleep and wake again thousands of times; a lost wake-up ends in a wait."""
    it = crew(nothing, workers=8)
    dice = random.Random(1)
    given = 0
    while given < 20_000:
        for _ in range(min(dice.choice((1, 1, 2, 3, 9)), 20_000 - given)):
            it.workers.submit(it.job(given))
            given += 1
        turn = dice.random()
        if turn < 0.3:
            it.until(given)
        elif turn < 0.8:
            it.reactor.run()
    it.until(given)
    assert Counter(job.tag for job in it.back) == Counter(range(1, 20_001))
    assert all(job.outcome is not None and job.outcome.verdict is Verdict.ACK for job in it.back)
    assert it.workers.running == []
    assert it.workers.take_back() == []


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("lock", [None, "routing_key"])
def test_all_workers_wake_for_a_batch(crew: MakeCrew, lock: str | None) -> None:
    gate = Gate()
    it = crew(gate, workers=8, lock=lock)
    for batch in range(20):
        names = [f"{batch}.{number}" for number in range(8)]
        for one in names:
            it.give(one, key=one)
        gate.entered(*names)
        gate.let(*names)
        it.until(8 * (batch + 1))
    assert max(gate.at_once) == 8


class Stop:
    """A place where the first thread that comes by stops until it is let go."""

    def __init__(self, seconds: float = LONGEST) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self._seconds = seconds

    def here(self) -> None:
        if threading.current_thread() is not threading.main_thread() and not self.reached.is_set():
            self.reached.set()
            self.go_on.wait(self._seconds)


class Parking(list[Worker]):
    """The place of sleeping workers; the first one that comes stops in front of it, and before it leaves by itself."""

    def __init__(self, workers: list[Worker]) -> None:
        super().__init__(workers)
        self.coming, self.leaving = Stop(), Stop()

    def append(self, worker: Worker) -> None:
        self.coming.here()
        super().append(worker)

    def remove(self, worker: Worker) -> None:
        self.leaving.here()
        super().remove(worker)


def test_a_job_that_comes_between_finding_nothing_and_falling_asleep(crew: MakeCrew) -> None:
    it = crew(nothing, workers=1)
    it.give("a")
    it.until(1)
    it.workers._parked = parking = Parking(it.workers._parked)
    parking.leaving.go_on.set()
    it.give("b")
    it.until(2)
    assert parking.coming.reached.wait(LONGEST)
    it.give("c")
    parking.coming.go_on.set()
    it.until(3)


def test_a_wake_up_that_meets_a_worker_which_has_just_found_work(crew: MakeCrew) -> None:
    """It must be used up, or the next sleeper is believed to be under way while it sleeps."""
    gate = Gate()
    it = crew(gate, workers=1)
    it.workers._parked = parking = Parking(it.workers._parked)
    it.give("a")
    gate.let("a")
    it.until(1)
    assert parking.coming.reached.wait(LONGEST)
    it.give("b")
    parking.coming.go_on.set()
    assert parking.leaving.reached.wait(LONGEST)
    it.give("c")
    parking.leaving.go_on.set()
    gate.entered("b")
    it.workers._start_one()
    gate.let("c")
    it.until(2)
    it.give("d", "e")
    gate.let("d", "e")
    it.until(4)
    gate.let("b")
    it.until(5)


class Stalling(dict[Any, Any]):
    """The lanes; whoever forgets one stops in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.forgetting = Stop(0.2)

    def __delitem__(self, key: Any) -> None:
        self.forgetting.here()
        super().__delitem__(key)


def test_a_job_that_enters_its_lane_while_the_lane_is_forgotten(crew: MakeCrew) -> None:
    it = crew(nothing, workers=2, lock="routing_key")
    it.workers._lanes._parked = lanes = Stalling()
    it.give("a1", key="a")
    assert lanes.forgetting.reached.wait(LONGEST)
    it.give("a2", key="a")
    it.until(2)
    assert it.names() == ["a1", "a2"]


class Results(deque[Job]):
    """Finished jobs; when it has been emptied, another one comes before anybody notices."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self._meanwhile: Callable[[], None] | None = meanwhile

    def __bool__(self) -> bool:
        if len(self) or self._meanwhile is None:
            return len(self) > 0
        meanwhile, self._meanwhile = self._meanwhile, None
        meanwhile()
        return False


def test_a_job_that_ends_while_the_others_are_taken_in(crew: MakeCrew) -> None:
    it = crew(nothing, workers=1)
    finish, ended = it.workers._finish, threading.Event()

    def finished(*parts: Any, **named: Any) -> Any:
        following = finish(*parts, **named)
        ended.set()
        return following

    def meanwhile() -> None:
        it.workers._finish = finished  # type: ignore[method-assign]  # to know when the thread has done its part
        it.give("b")
        assert ended.wait(LONGEST)

    it.workers._results = Results(meanwhile)
    it.give("a")
    it.until(2)
    assert it.names() == ["a", "b"]


def test_the_outcome_is_the_handlers(crew: MakeCrew) -> None:
    gate = Gate(shut=False)
    gate.says("drops", Drop())
    it = crew(gate)
    good, drops = it.give("good", "drops")
    bad = it.job("bad")
    bad.message._payload = b"{"
    it.workers.submit(bad)
    it.until(3)
    assert [job.outcome.verdict for job in (good, drops, bad)] == [Verdict.ACK, Verdict.REJECT, Verdict.ARCHIVE]  # type: ignore[union-attr]


def test_a_handler_that_raises_anything_does_not_end_its_worker(crew: MakeCrew) -> None:
    def raises(message: Any) -> None:
        raise {"0": SystemExit, "1": KeyboardInterrupt, "2": GeneratorExit}[message.body["name"]]

    it = crew(raises, on_error="requeue")
    it.give(0, 1, 2, 1, 0)
    it.until(5)
    assert [job.outcome.verdict for job in it.back] == [Verdict.REQUEUE] * 5  # type: ignore[union-attr]


def test_what_came_back_can_be_taken_in_at_once(crew: MakeCrew) -> None:
    done = threading.Event()
    it = crew(lambda _message: None, workers=1)
    finish = it.workers._finish

    def finished(*parts: Any, **named: Any) -> Any:
        following = finish(*parts, **named)
        done.set()
        return following

    it.workers._finish = finished  # type: ignore[method-assign]  # to know when the thread has done its part
    it.give("a")
    assert done.wait(LONGEST)
    it.workers.flush()
    assert it.names() == ["a"]
    it.reactor.run()
    assert it.names() == ["a"]


# Lanes --------------------------------------------------------------------------------------------


class Order:
    """A handler that notes who ran with whom, and in which order."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = defaultdict(list)
        self.clashes: list[str] = []
        self._busy: set[str] = set()
        self._mutex = threading.Lock()

    def __call__(self, message: Any) -> None:
        key = message.routing_key
        with self._mutex:
            if key in self._busy:
                self.clashes.append(key)
            self._busy.add(key)
            self.seen[key].append(int(message.body["name"]))
        for _ in range(int(message.body["name"]) % 50):
            pass
        with self._mutex:
            self._busy.discard(key)


@pytest.mark.usefixtures("hasty")
def test_a_key_has_one_at_a_time_and_keeps_its_order(crew: MakeCrew) -> None:
    order = Order()
    it = crew(order, workers=8, lock="routing_key")
    dice = random.Random(2)
    for number in range(6000):
        it.give(number, key=f"k{int(dice.paretovariate(0.6)) % 50}")
        if dice.random() < 0.2:
            it.reactor.run()
        if dice.random() < 0.01:
            it.until(number + 1)
    it.until(6000)
    assert order.clashes == []
    assert len(order.seen) == 50
    assert all(numbers == sorted(numbers) for numbers in order.seen.values())
    assert Counter(job.tag for job in it.back) == Counter(range(1, 6001))
    assert len(it.workers._lanes) == 0


def test_a_busy_key_does_not_hold_up_another(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=2, lock="routing_key")
    it.give("a1", "a2", "a3", key="a")
    gate.entered("a1")
    it.give("b1", key="b")
    gate.entered("b1")
    gate.let("b1")
    it.until(1)
    assert gate.order == ["a1", "b1"]
    for one in ("a1", "a2", "a3"):
        gate.entered(one)
        gate.let(one)
    it.until(4)
    assert it.names() == ["b1", "a1", "a2", "a3"]


def test_a_message_without_its_key_is_bad_and_holds_no_lane(crew: MakeCrew) -> None:
    it = crew(nothing, workers=2, lock="body.customer")
    it.give("no customer", "no customer")
    it.until(2)
    assert [job.outcome.verdict for job in it.back] == [Verdict.ARCHIVE] * 2  # type: ignore[union-attr]
    assert len(it.workers._lanes) == 0


# Hold, resume, take back --------------------------------------------------------------------------


@pytest.mark.parametrize("lock", [None, "routing_key"])
def test_held_workers_start_nothing_and_finish_what_runs(crew: MakeCrew, lock: str | None) -> None:
    gate = Gate()
    it = crew(gate, workers=2, lock=lock)
    for one in "abcdef":
        it.give(one, key=one)
    gate.entered("a", "b")
    it.workers.hold()
    gate.let("a", "b")
    it.until(2)
    unstarted = it.workers.take_back()
    assert [name(job) for job in unstarted] == ["c", "d", "e", "f"]
    assert sorted(gate.order) == ["a", "b"]
    for job in unstarted:
        it.workers.submit(anew(job))
    it.reactor.run()
    assert len(gate.order) == 2
    it.workers.resume()
    gate.let_all()
    it.until(6)
    assert sorted(it.names()) == list("abcdef")


def test_what_runs_is_told_when_nobody_waits_for_it_any_more_and_nothing_else_starts(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=1)
    runs, waits = it.give("a", "b")
    gate.entered("a")
    it.workers.abandon()
    assert (runs.message.cancelled, waits.message.cancelled, it.workers.held) == (True, False, True)
    gate.let("a", "b")
    it.until(1)
    assert gate.order == ["a"]


def test_what_waits_in_its_lane_beyond_its_deadline_does_not_run(crew: MakeCrew, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, now = Gate(), [100.0]
    it = crew(gate, workers=2, lock="routing_key")
    monkeypatch.setattr(it.route, "clock", lambda: now[0])
    it.give("a1", key="a")
    gate.entered("a1")
    late, last = it.job("a2", key="a"), it.job("a3", key="a")
    late.message.deadline, last.message.deadline = 105.0, 600.0
    for job in (late, last):
        it.workers.submit(job)
    it.give("b1", key="b")
    gate.entered("b1")  # so those ahead of it wait in their lane
    assert it.workers.lanes == (2, 2)
    now[0] = 105.0
    gate.let("a1", "a3", "b1")
    it.until(4)
    assert (gate.order, [name for name in it.names() if name != "b1"]) == (["a1", "b1", "a3"], ["a1", "a2", "a3"])
    assert late.outcome is not None
    assert late.outcome.reason == "deadline passed before it started"
    assert it.workers.lanes == (0, 0)


def test_what_waits_for_a_key_that_hangs_is_handed_in_when_its_deadline_passes(
    crew: MakeCrew, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, now = Gate(), [100.0]
    it = crew(gate, workers=2, lock="routing_key")
    monkeypatch.setattr(it.route, "clock", lambda: now[0])
    it.give("a1", key="a")
    gate.entered("a1")
    for name, deadline in (("a2", 105.0), ("a3", None), ("a4", 101.0), ("a5", 600.0)):
        job = it.job(name, key="a")
        job.message.source = Source("orders", "orders", clock=lambda: now[0])
        job.message.deadline = deadline
        it.workers.submit(job)
    it.give("b1", key="b")
    gate.entered("b1")  # so those ahead of it wait in their lane
    it.workers.sweep()
    assert (it.names(), it.workers.lanes) == ([], (2, 4))
    now[0] = 105.0
    it.workers.sweep()
    assert (it.names(), it.workers.lanes) == (["a2", "a4"], (2, 2))
    assert [job.outcome.reason for job in it.back if job.outcome] == ["deadline passed before it started"] * 2
    gate.let("a1", "a3", "a5", "b1")
    it.until(6)
    assert [name for name in gate.order if name != "b1"] == ["a1", "a3", "a5"]
    assert it.workers.lanes == (0, 0)


def test_resuming_wakes_as_many_as_there_is_work_for(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=6)
    it.workers.hold()
    it.give(*range(6))
    it.workers.resume()
    gate.entered(*map(str, range(6)))
    assert max(gate.at_once) == 6


@pytest.mark.usefixtures("hasty")
def test_holding_and_resuming_over_and_over_loses_nothing(crew: MakeCrew) -> None:
    it = crew(nothing, workers=4, lock="routing_key")
    dice = random.Random(3)
    given = 0
    for _ in range(1500):
        it.workers.hold() if dice.random() < 0.5 else it.workers.resume()
        for _ in range(dice.randint(0, 3)):
            it.give(given, key=dice.choice("abc"))
            given += 1
        if dice.random() < 0.2:
            for job in it.workers.take_back():
                it.workers.submit(anew(job))
        it.reactor.run()
    it.workers.resume()
    it.until(given)
    assert Counter(job.tag for job in it.back) == Counter(range(1, given + 1))


def test_what_waits_in_a_lane_is_taken_back_in_the_order_in_which_it_came(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=2, lock="routing_key")
    it.give("a1", key="a")
    it.give("b1", key="b")
    gate.entered("a1", "b1")
    for number in (2, 3, 4):
        it.give(f"b{number}", key="b")
        it.give(f"a{number}", key="a")
    it.workers.hold()
    gate.let("a1")
    it.until(1)
    assert [name(job) for job in it.workers.take_back()] == ["b2", "a2", "b3", "a3", "b4", "a4"]
    gate.let("b1")
    it.until(2)
    assert len(it.workers._lanes) == 0
    it.workers.resume()
    it.give("a5", key="a")
    gate.entered("a5")


BRIEF = 0.2
"""Seconds for which a thread is stopped at a place where it may hold a mutex that the test's thread needs."""


class Stopping(deque[Job]):
    """A queue that keeps whoever has taken a job from it from going on."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = threading.Event()
        self.go_on = threading.Event()

    def popleft(self) -> Job:
        job = super().popleft()
        if threading.current_thread() is not threading.main_thread():
            self.taken.set()
            self.go_on.wait(BRIEF)
        return job


def test_a_job_in_a_workers_hands_is_running_or_can_be_taken_back(crew: MakeCrew) -> None:
    """When a connection dies, every job must be known: its message comes again and must not run a second time."""
    gate = Gate()
    it = crew(gate, workers=1)
    it.workers._jobs = jobs = Stopping()
    (job,) = it.give("a")
    assert jobs.taken.wait(LONGEST)
    unstarted = it.workers.take_back()
    known = [*unstarted, *it.workers.running]
    jobs.go_on.set()
    gate.let("a")
    it.until(1)
    assert known == [job]


class Basket(deque[Job]):
    """Finished jobs; a worker that hands one in is kept from going on just before, or just after."""

    def __init__(self, *, before: bool) -> None:
        super().__init__()
        self.before = before
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def append(self, job: Job) -> None:
        if not self.before:
            super().append(job)
        self.reached.set()
        self.go_on.wait(BRIEF)
        if self.before:
            super().append(job)


@pytest.mark.parametrize("before", [True, False])
def test_a_job_that_is_being_handed_in_is_running_or_has_come_back(crew: MakeCrew, before: bool) -> None:
    it = crew(nothing, workers=1)
    it.workers._results = results = Basket(before=before)
    (job,) = it.give("a")
    assert results.reached.wait(LONGEST)
    known = [*it.workers.take_back(), *it.workers.running]
    it.workers.flush()
    known += it.back
    results.go_on.set()
    it.until(1)
    assert set(known) == {job}


class Handing(deque[Job]):
    """What waits in a lane; the worker that takes from it is kept from going on."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        super().__init__(jobs)
        self.taken = threading.Event()
        self.go_on = threading.Event()

    def popleft(self) -> Job:
        job = super().popleft()
        self.taken.set()
        self.go_on.wait(BRIEF)
        return job


@pytest.mark.parametrize("held", [False, True])
def test_a_job_that_a_lane_hands_on_is_running_or_can_be_taken_back(crew: MakeCrew, held: bool) -> None:
    gate = Gate()
    it = crew(gate, workers=2, lock="routing_key")
    (first,) = it.give("a1", key="a")
    gate.entered("a1")
    (second,) = it.give("a2", key="a")
    it.reactor.until(lambda: len(it.workers._lanes._parked["a"]) == 1 or it.workers._reactor.callFromThread(int))
    it.workers._lanes._parked["a"] = lane = Handing([second])
    it.workers.held = held
    gate.let("a1")
    assert lane.taken.wait(LONGEST)
    known = [*it.workers.take_back(), *it.workers.running]
    it.workers.flush()
    known += it.back
    lane.go_on.set()
    gate.let_all()
    it.workers.resume()
    it.until(1)
    assert set(known) == {first, second}


class Faulty(Job):
    """A job that can't be given an outcome by a worker, as if rpcd had a fault there."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "outcome" and value is not None and threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError("a fault of rpcd")
        super().__setattr__(name, value)


@pytest.mark.parametrize("lock", [None, "routing_key"])
def test_what_a_worker_ended_over_is_given_back(crew: MakeCrew, complaints: list[str], lock: str | None) -> None:
    """Nobody else knows of it: it would stay unsettled, and its lane busy, as long as the connection lasts."""
    it = crew(nothing, workers=1, lock=lock)
    bad = it.job("bad", "a", Faulty)
    it.workers.submit(bad)
    it.give("good", key="a")
    it.until(2)
    assert it.names() == ["bad", "good"]
    assert bad.outcome is not None
    assert bad.outcome.verdict is Verdict.REQUEUE
    assert len(it.workers.workers) == 1
    assert len(complaints) == 1
    assert complaints.pop() == "a worker of orders ended"


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
    jobs = [it.job("a"), it.job("b")]
    for job in jobs:
        job.message.routing_key = Key("k")
        it.workers.submit(job)
    it.until(1)
    assert [(name(job), job.outcome.error) for job in it.back if job.outcome] == [("b", "ValueError")]
    gate.let("a")
    it.until(2)


# Stopping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 8])
def test_stopping_ends_every_loop(reactor: Reactor, pool: DaemonPool, workers: int) -> None:
    for _ in range(20):
        it = Crew(nothing, reactor, pool, workers=workers).start()
        it.stop()
        assert it.workers.workers == []


def test_stopping_before_starting(reactor: Reactor, pool: DaemonPool) -> None:
    it = Crew(nothing, reactor, pool)
    it.stop()
    assert it.workers.ended.happened


def test_stopping_waits_for_what_runs(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=3)
    it.give("a", "b")
    gate.entered("a", "b")
    it.workers.stop()
    gate.let("a")
    it.until(1)
    assert not it.workers.ended.happened
    gate.let("b")
    it.reactor.until(lambda: it.workers.ended.happened)
    assert it.names() == ["a", "b"]


def test_what_waits_is_done_before_the_end_unless_it_is_held(crew: MakeCrew) -> None:
    it = crew(nothing, workers=2)
    it.give(*range(50))
    it.stop()
    assert len(it.back) == 50
    held = crew(nothing, workers=2)
    held.workers.hold()
    held.give(*range(50))
    held.stop()
    assert held.back == []
    assert len(held.workers.take_back()) == 50


def test_a_halt_keeps_the_others_from_taking_more(crew: MakeCrew) -> None:
    gate = Gate()
    gate.says("halts", HaltConsumer(3, "enough"))
    it = crew(gate, workers=2)
    it.give("halts", "runs", "c", "d")
    gate.entered("halts", "runs")
    gate.let("halts")
    it.until(1)
    assert it.workers.held
    gate.let("runs")
    it.until(2)
    assert [name(job) for job in it.workers.take_back()] == ["c", "d"]
    assert sorted(gate.order) == ["halts", "runs"]
    assert it.back[0].outcome.halt.exit_code == 3  # type: ignore[union-attr]


def test_a_halt_leaves_what_waits_in_its_lane(crew: MakeCrew) -> None:
    gate = Gate()
    gate.says("a1", HaltConsumer())
    it = crew(gate, workers=2, lock="routing_key")
    it.give("a1", "a2", "a3", key="a")
    gate.entered("a1")
    gate.let("a1")
    it.until(1)
    assert [name(job) for job in it.workers.take_back()] == ["a2", "a3"]
    assert gate.order == ["a1"]
    assert len(it.workers._lanes) == 0


# Written off --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("clocked")
def test_a_worker_that_is_overdue_is_written_off_and_replaced(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=1)
    (stuck,) = it.give("stuck")
    it.give("next")
    gate.entered("stuck")
    it.reactor.advance(59.0)
    assert list(it.workers.overdue(60.0)) == []
    it.reactor.advance(2.0)
    assert list(it.workers.overdue(60.0)) == [stuck]
    assert list(it.workers.overdue(60.0)) == []
    assert it.workers.lost == 1
    assert it.workers.running == []
    assert stuck.message.cancelled
    gate.entered("next")
    gate.let("next")
    it.until(1)
    assert it.names() == ["next"]
    gate.let("stuck")
    it.reactor.until(lambda: it.workers.lost == 0, "the thread that was written off does not end")
    it.give("last")
    gate.let("last")
    it.until(2)
    assert it.names() == ["next", "last"]
    assert len(it.workers.workers) == 1


@pytest.mark.usefixtures("clocked")
def test_what_waits_in_its_lane_is_not_overdue(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=2, lock="routing_key")
    it.give("a1", "a2", key="a")
    gate.entered("a1")
    it.reactor.advance(50.0)
    gate.let("a1")
    gate.entered("a2")
    it.reactor.advance(50.0)
    assert list(it.workers.overdue(60.0)) == []
    gate.let("a2")
    it.until(2)


@pytest.mark.usefixtures("clocked")
def test_the_lane_of_what_is_overdue_is_held_until_it_really_ends(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=1, lock="routing_key")
    it.give("a1", "a2", key="a")
    gate.entered("a1")
    it.reactor.advance(61.0)
    assert [name(job) for job in it.workers.overdue(60.0)] == ["a1"]
    it.give("b1", key="b")
    gate.entered("b1")
    gate.let("b1")
    it.until(1)
    assert gate.order == ["a1", "b1"]
    gate.let("a1")
    gate.entered("a2")
    gate.let("a2")
    it.until(2)
    assert it.names() == ["b1", "a2"]
    assert len(it.workers._lanes) == 0


@pytest.mark.usefixtures("clocked")
def test_workers_end_without_those_that_are_written_off(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=2)
    it.give("stuck")
    gate.entered("stuck")
    it.reactor.advance(61.0)
    assert len(list(it.workers.overdue(60.0))) == 1
    it.stop()
    assert it.workers.lost == 1


@pytest.mark.usefixtures("clocked")
def test_workers_end_when_the_last_one_is_written_off_after_the_stop(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew(gate, workers=1)
    it.give("stuck")
    gate.entered("stuck")
    it.workers.stop()
    it.reactor.run()
    assert not it.workers.ended.happened
    it.reactor.advance(61.0)
    assert len(list(it.workers.overdue(60.0))) == 1
    it.reactor.until(lambda: it.workers.ended.happened)


class Slow(Job):
    """A job whose worker stops right after it has looked whether it is written off, as a busy machine may make it."""

    __slots__ = ("go_on", "reached", "reads", "value")

    def __init__(self, *parts: Any) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.reads = 0
        super().__init__(*parts)

    @property
    def outcome(self) -> Outcome | None:  # type: ignore[override]
        if threading.current_thread() is not threading.main_thread() and self.value is not None:
            self.reached.set()
            self.go_on.wait(BRIEF)
        return self.value

    @outcome.setter
    def outcome(self, value: Outcome | None) -> None:
        self.value = value


@pytest.mark.usefixtures("clocked")
@pytest.mark.parametrize("lock", [None, "routing_key"])
def test_a_worker_that_finishes_while_it_is_written_off_loses_no_other_job(crew: MakeCrew, lock: str | None) -> None:
    """What it takes next, from the queue or from its lane, must come back, whoever runs it."""
    it = crew(nothing, workers=2, lock=lock)
    slow = it.job("slow", "a", Slow)
    it.workers.submit(slow)
    assert slow.reached.wait(LONGEST)  # type: ignore[attr-defined]
    it.give("next", key="a")
    it.give("other", key="b")
    it.reactor.until(lambda: "other" in it.names())  # so "next" waits in its lane by now, if there are lanes
    it.reactor.advance(61.0)
    list(it.workers.overdue(60.0))
    slow.go_on.set()  # type: ignore[attr-defined]
    it.reactor.until(lambda: it.workers.lost == 0 and it.workers.workers)
    it.give("last", key="a")
    it.reactor.until(lambda: "last" in it.names(), "no worker is left")
    it.reactor.until(lambda: "next" in it.names(), "it was run and never came back", 2.0)


class Watched(Worker):
    """A worker whose reader stops between looking at its job and writing it off, as a busy machine may make it."""

    __slots__ = ("begun", "current", "interrupt")

    def __init__(self, *parts: Any) -> None:
        self.current: Job | None = None
        self.interrupt: Callable[[], None] | None = None
        super().__init__(*parts)

    @property
    def job(self) -> Job | None:  # type: ignore[override]
        found = self.current
        if threading.current_thread() is threading.main_thread() and self.interrupt is not None:
            interrupt, self.interrupt = self.interrupt, self._second
            interrupt()
        return found

    def _second(self) -> None:
        self.interrupt = None
        self.begun()  # type: ignore[attr-defined]

    @job.setter
    def job(self, job: Job | None) -> None:
        self.current = job


@pytest.mark.usefixtures("clocked")
def test_a_worker_that_has_gone_on_meanwhile_is_not_written_off_for_what_it_had_done(
    crew: MakeCrew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "Worker", Watched)
    gate = Gate()
    it = crew(gate, workers=1)
    (watched,) = it.workers.workers
    it.give("old", "new")
    gate.entered("old")
    it.reactor.advance(61.0)

    def goes_on() -> None:
        gate.let("old")
        gate.has_entered("new", BRIEF)

    watched.begun = goes_on  # type: ignore[attr-defined]
    watched.interrupt = lambda: None  # type: ignore[attr-defined]
    written_off = [name(job) for job in it.workers.overdue(60.0)]
    watched.interrupt = None  # type: ignore[attr-defined]
    gate.let("new")
    it.until(1)
    gate.let_all()
    it.give("last")
    it.reactor.until(lambda: "last" in it.names(), "no worker is left")
    it.reactor.until(lambda: "new" in it.names(), f"it was run and never came back; written off: {written_off}", 2.0)


# Classes ------------------------------------------------------------------------------------------


class Recorder:
    """Notes what becomes of the instances of a handler class."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.instances: list[Any] = []
        self.clashes = 0
        self.fails = 0
        self.mutex = threading.Lock()

    def say(self, line: str) -> None:
        with self.mutex:
            self.log.append(line)


def handler_class(recorder: Recorder, **words: Any) -> type:
    class Handler:
        def __init__(self) -> None:
            with recorder.mutex:
                if recorder.fails:
                    recorder.fails -= 1
                    recorder.log.append("fails")
                    raise OSError("the database is down")
                recorder.instances.append(self)
                self.number = len(recorder.instances)
                self.busy = threading.Lock()
                self.threads: set[int] = set()
            recorder.say(f"made {self.number}")

        def __call__(self, message: Any) -> Any:
            if not self.busy.acquire(blocking=False):
                recorder.clashes += 1
                return None
            self.threads.add(threading.get_ident())
            word = words.get(message.body["name"])
            self.busy.release()
            if isinstance(word, BaseException):
                raise word
            return word(message) if callable(word) else word

        def shutdown(self, exception: BaseException | None = None) -> None:
            recorder.say(f"shutdown {self.number} {type(exception).__name__}")

    return Handler


@pytest.mark.usefixtures("hasty")
def test_each_worker_has_an_instance_of_its_own(crew: MakeCrew) -> None:
    recorder = Recorder()
    it = crew(handler_class(recorder), workers=4)
    it.give(*range(3000))
    it.until(3000)
    it.stop()
    assert len(recorder.instances) == 4
    assert recorder.clashes == 0
    assert all(len(each.threads) <= 1 for each in recorder.instances)
    assert sorted(recorder.log[4:]) == [f"shutdown {number} NoneType" for number in (1, 2, 3, 4)]


def test_a_failed_instance_is_shut_down_after_its_message_is_settled_and_replaced(crew: MakeCrew) -> None:
    recorder = Recorder()
    it = crew(handler_class(recorder, bad=ValueError("unexpected")), workers=1, on_error="drop")
    it.log = recorder.log
    it.settles = False
    (bad,) = it.give("bad")
    it.give("good")
    it.until(1)
    assert recorder.log == ["made 1", "settled bad"]
    bad.done()
    it.until(2)
    assert recorder.log == ["made 1", "settled bad", "shutdown 1 ValueError", "made 2", "settled good"]
    it.stop()
    assert recorder.log[-1] == "shutdown 2 NoneType"


def test_an_exception_that_decides_an_outcome_replaces_nobody(crew: MakeCrew) -> None:
    recorder = Recorder()
    it = crew(handler_class(recorder, decides=Drop()), workers=1)
    it.give("decides", "good")
    it.until(2)
    assert recorder.log == ["made 1"]


def test_a_halt_replaces_nobody_and_no_resume_undoes_it(crew: MakeCrew) -> None:
    recorder = Recorder()
    it = crew(handler_class(recorder, decides=HaltConsumer()), workers=1)
    it.give("decides")
    it.until(1)
    it.workers.resume()
    it.workers.nudge()
    (good,) = it.give("good")
    assert it.workers.take_back() == [good]
    assert recorder.log == ["made 1"]


def test_a_failed_instance_does_not_keep_its_lane(crew: MakeCrew) -> None:
    recorder = Recorder()
    it = crew(handler_class(recorder, bad=ValueError("no")), workers=2, lock="routing_key", on_error="drop")
    it.settles = False
    (bad, good) = it.give("bad", "good", key="a")
    it.until(2)
    assert it.names() == ["bad", "good"]
    bad.done()
    good.done()


def test_an_instance_whose_message_is_never_settled_is_shut_down_all_the_same(
    crew: MakeCrew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "SETTLE_SECONDS", 0.01)
    recorder = Recorder()
    it = crew(handler_class(recorder, bad=ValueError("no")), workers=1, on_error="drop")
    it.settles = False
    it.give("bad", "good")
    it.until(2)
    assert recorder.log[:3] == ["made 1", "shutdown 1 ValueError", "made 2"]


def test_a_constructor_that_fails_twice(
    crew: MakeCrew, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "MAKE_SECONDS", (0.001, 0.001))
    recorder = Recorder()
    recorder.fails = 2
    it = crew(handler_class(recorder), workers=1)
    it.give("a")
    it.until(1)
    assert recorder.log == ["fails", "fails", "made 1"]
    assert sum("can't be made" in record.getMessage() for record in caplog.records) == 2


def test_a_constructor_that_fails_after_a_failure(crew: MakeCrew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "MAKE_SECONDS", (0.001, 0.001))
    recorder = Recorder()
    it = crew(handler_class(recorder, bad=ValueError("no")), workers=1, on_error="drop")
    recorder.fails = 2
    it.give("bad", "good")
    it.until(2)
    assert recorder.log == ["made 1", "shutdown 1 ValueError", "fails", "fails", "made 2"]


def test_the_pauses_of_a_failing_constructor_grow_to_their_limit(reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    recorder.fails = 8
    pauses: list[float] = []
    stopping = threading.Event()
    monkeypatch.setattr(stopping, "wait", pauses.append)
    routes = make_plan(handler_class(recorder), {}, {}, 60.0).routes
    assert Worker(routes, stopping).equip()
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_stopping_while_no_instance_can_be_made(reactor: Reactor, pool: DaemonPool) -> None:
    recorder = Recorder()
    recorder.fails = 1_000_000
    it = Crew(handler_class(recorder), reactor, pool, workers=3)
    it.workers.start()
    it.stop()
    assert not it.workers.ready.happened


def test_a_shutdown_that_fails_does_not_end_its_worker(crew: MakeCrew, caplog: pytest.LogCaptureFixture) -> None:
    class Handler:
        def __call__(self, message: Any) -> None:
            if message.body["name"] == "bad":
                raise ValueError("no")

        def shutdown(self, exception: BaseException | None) -> None:
            raise SystemExit(3)

    it = crew(Handler, workers=1, on_error="drop")
    it.give("bad", "good")
    it.until(2)
    it.stop()
    assert sum("shutdown failed" in record.getMessage() for record in caplog.records) == 2


@pytest.mark.usefixtures("clocked")
def test_the_instance_of_a_written_off_worker_is_shut_down_when_it_ends(crew: MakeCrew) -> None:
    recorder = Recorder()
    entered, go_on = threading.Event(), threading.Event()

    def stuck(_message: Any) -> None:
        entered.set()
        assert go_on.wait(LONGEST)

    it = crew(handler_class(recorder, stuck=stuck), workers=1)
    it.give("stuck")
    assert entered.wait(LONGEST)
    it.reactor.advance(61.0)
    assert len(list(it.workers.overdue(60.0))) == 1
    it.give("good")
    it.until(1)
    assert recorder.log == ["made 1", "made 2"]
    go_on.set()
    it.reactor.until(lambda: it.workers.lost == 0)
    assert recorder.log == ["made 1", "made 2", "shutdown 1 TimeLimitPassed"]
    assert issubclass(TimeLimitPassed, Exception)


def test_a_thread_knows_its_worker(crew: MakeCrew) -> None:
    found: list[Any] = []
    it = crew(lambda _message: found.append(it.workers.of_this_thread()), workers=1)
    assert it.workers.of_this_thread() is None
    it.give("a")
    it.until(1)
    assert found == it.workers.workers


# Several handlers ---------------------------------------------------------------------------------


def test_each_route_has_its_own_handler(crew: MakeCrew) -> None:
    ran: list[Any] = []
    it = crew({"one": lambda message: ran.append((1, message.body["name"])), "two": lambda _message: ran.append((2, ""))})
    it.give_to(0, "a")
    it.give_to(1, "b")
    it.until(2)
    assert ran == [(1, "a"), (2, "")]


def test_only_the_instance_that_failed_is_shut_down_and_replaced(crew: MakeCrew) -> None:
    one, two = Recorder(), Recorder()
    it = crew({"one": handler_class(one), "two": handler_class(two, bad=ValueError("no"))}, on_error="drop")
    it.give_to(1, "bad", "good")
    it.give_to(0, "good")
    it.until(3)
    assert (one.log, two.log) == (["made 1"], ["made 1", "shutdown 1 ValueError", "made 2"])
    it.stop()
    assert (one.log[1:], two.log[3:]) == (["shutdown 1 NoneType"], ["shutdown 2 NoneType"])


def test_no_message_is_taken_before_every_handler_is_made_and_it_is_said_which_is_not(
    crew: MakeCrew, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "MAKE_SECONDS", (0.001, 0.001))
    one, two = Recorder(), Recorder()
    two.fails = 3
    it = crew({"one": handler_class(one), "two": handler_class(two)})
    assert (one.log, two.log) == (["made 1"], ["fails"] * 3 + ["made 1"])  # made once, whatever befalls its neighbour
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["test.two:handle can't be made"] * 3
    it.give_to(1, "good")
    it.until(1)


def test_stopping_while_one_of_two_handlers_cannot_be_made_shuts_the_other_down(reactor: Reactor, pool: DaemonPool) -> None:
    one, tried = Recorder(), threading.Event()

    class Failing:
        def __init__(self) -> None:
            tried.set()
            raise OSError("the database is down")

        def __call__(self, message: Any) -> None:
            """Handle a message."""

    it = Crew({"one": handler_class(one), "two": Failing}, reactor, pool)
    it.workers.start()
    assert tried.wait(LONGEST)
    it.stop()
    assert one.log == ["made 1", "shutdown 1 NoneType"]


@pytest.mark.usefixtures("clocked")
def test_of_a_written_off_worker_only_the_handler_that_overran_is_told_so(crew: MakeCrew) -> None:
    one, two = Recorder(), Recorder()
    entered, go_on = threading.Event(), threading.Event()

    def stuck(_message: Any) -> None:
        entered.set()
        assert go_on.wait(LONGEST)

    it = crew({"one": handler_class(one), "two": handler_class(two, stuck=stuck)})
    it.give_to(1, "stuck")
    assert entered.wait(LONGEST)
    it.reactor.advance(61.0)
    assert len(list(it.workers.overdue(60.0))) == 1
    go_on.set()
    it.reactor.until(lambda: it.workers.lost == 0)
    assert "shutdown 1 NoneType" in one.log
    assert "shutdown 1 TimeLimitPassed" in two.log


def test_the_same_key_is_the_same_lane_whichever_handler_it_is_for(crew: MakeCrew) -> None:
    gate = Gate()
    it = crew({"one": gate, "two": gate}, workers=2, lock="routing_key")
    it.give_to(0, "a", key="ann")
    it.give_to(1, "b", key="ann")
    it.give_to(1, "c", key="bob")
    gate.let("c")
    it.until(1)
    gate.let_all()
    it.until(3)
    assert gate.order.index("a") < gate.order.index("b")
    assert it.names() == ["c", "a", "b"]
