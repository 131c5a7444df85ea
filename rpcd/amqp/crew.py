"""What runs the jobs of one consumer, seen from the reactor: the half that threads and tasks have in common."""

import abc
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.task import deferLater
from twisted.python.threadpool import ThreadPool

from rpcd.amqp.waiting import Once
from rpcd.core.errors import Expired
from rpcd.core.kill_switch import KillSwitch
from rpcd.core.lanes import Lanes
from rpcd.core.pipeline import Job
from rpcd.core.routes import Route
from rpcd.core.verdict import Outcome, Verdict

LAST_SECONDS = 1.0
"""How long handlers that are told to give up may take to look and to end, when the process waits no longer."""

Finished = Callable[[list[Job]], None]


class Crew(abc.ABC):
    """Jobs in, jobs with their outcomes out. What this class has belongs to the reactor."""

    stuck = False
    """Whether only a new process helps, whatever the number of lost ones."""

    def __init__(self, routes: tuple[Route, ...], count: int, pool: ThreadPool, reactor: Any, finished: Finished) -> None:
        """Prepare everything; `finished` is called on the reactor with every batch of jobs that have their outcomes."""
        self.routes = routes
        self.count = count
        self.held = False
        self.halted = False
        """Whether a handler has ordered a halt: nothing starts any more, whatever is resumed."""
        self.ready = Once()
        self.ended = Once()
        self._pool = pool
        self._reactor = reactor
        self._on_finished = finished
        self._jobs: deque[Job] = deque()
        self._results: deque[Job] = deque()
        self._scheduled = False
        self._mutex = threading.Lock()
        self._lanes: Lanes[Job] = Lanes()
        self.switch = KillSwitch()
        self._passes = 0
        """How many jobs may start although all are held."""

    @property
    def waiting(self) -> int:
        """How many jobs have come and not been taken, those that wait in a lane left out."""
        return len(self._jobs)

    @property
    def lanes(self) -> tuple[int, int]:
        """How many keys are held, and how many jobs wait for one of them."""
        return len(self._lanes), self._lanes.parked

    def hold(self) -> None:
        """Start no further job; running ones go on."""
        with self._mutex:
            self.held, self._passes = True, 0

    def resume(self) -> None:
        """Start jobs again, unless one of them has ordered a halt or so many have failed."""
        with self._mutex:
            self.held = self.halted or self.switch.tripped

    def reset(self) -> None:
        """Forget all failures; `resume` comes next."""
        with self._mutex:
            self.switch.reset()

    def let_one(self) -> None:
        """Let one job start although all are held for their failures, now or when it comes."""
        with self._mutex:
            self._passes = 0 if self.halted else 1
        self._wake()

    @property
    @abc.abstractmethod
    def running(self) -> list[Job]:
        """The jobs that are in hand, but for those that have their outcome already."""

    def abandon(self) -> None:
        """Start no further job, and tell what runs that nobody waits for its end any more."""
        self.hold()
        for job in self.running:
            job.message.cancel()

    async def last_words(self) -> None:
        """Wait until all that was told so has ended, for a moment at most: it may have something to put away."""
        until = self._reactor.seconds() + LAST_SECONDS
        while self.running and self._reactor.seconds() < until:
            await deferLater(self._reactor, LAST_SECONDS / 20)

    @abc.abstractmethod
    def _wake(self) -> None:
        """Have somebody look for jobs."""

    def _note(self, outcome: Outcome) -> None:
        """Take in an outcome before anything else starts: a halt, or one failure too many; called where the handler ran."""
        with self._mutex:
            if outcome.halt is not None:
                self.held = self.halted = True
                self._passes = 0
            if self.switch.note(outcome):
                self.held, self._passes = True, 0

    def _is_barred(self) -> bool:
        return self.held and not self._passes

    def _may_take(self) -> bool:
        """Tell whether a job may start, and use up the pass that it needs; the caller has the mutex, and a job."""
        if not self.held:
            return True
        if self._passes:
            self._passes -= 1
            return True
        return False

    def take_back(self) -> list[Job]:
        """Take out every job that has not started, in the order in which they came; running lanes go on."""
        with self._mutex:
            found = self._lanes.clear()
            while self._jobs:
                job = self._jobs.popleft()
                if job.entered:
                    self._lanes.leave(job.key)
                found.append(job)
        return sorted(found, key=lambda job: job.tag)

    def _enter(self, job: Job) -> bool:
        """Enter the lane of an opened job, and return False if it waits there now; the caller has the mutex.

        A key that can't be compared is the user's class: the job has its outcome then, and is in no lane.
        """
        try:
            job.entered = self._lanes.enter(job.key, job)
        except BaseException as error:  # noqa: BLE001  # or nobody would know of its message any more
            job.outcome = job.route.judge(error, job.message)
            return True
        return job.entered

    def _give_back(self, job: Job) -> None:
        """Hand in a job that a fault of rpcd has kept from coming back by itself; without an outcome it is requeued."""
        job.outcome = job.outcome or Outcome(Verdict.REQUEUE, "an internal fault of rpcd")
        self._on_finished([job])

    def sweep(self) -> None:
        """Take in all results that are there, and hand in what waits for its key although its sender waits no longer.

        Else it would keep its place in the prefetch until its turn comes: a key that hangs could stop all others with it.
        """
        self.flush()
        if not self._lanes.parked:
            return
        with self._mutex:
            late = self._lanes.remove(lambda job: job.message.cancelled)
        for job in late:
            job.outcome = job.route.judge(Expired(), job.message)
        if late:
            self._on_finished(late)

    def flush(self) -> None:
        """Take in all results that are there, without waiting for a wake-up that is under way."""
        self._scheduled = False
        results, batch = self._results, []
        while results:
            batch.append(results.popleft())
        if batch:
            self._on_finished(batch)
