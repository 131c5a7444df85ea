"""The threads of one consumer: one queue in, one deque out, one wake-up a batch.

Theory. A hop between threads by `deferToThread` costs 44-70 us a message. Here each worker is a long-lived loop, started
once by `deferToThreadPool`. Jobs reach the loops through a deque and a stack of parked workers, each asleep on a lock of its
own; results go back through one deque with one `callFromThread` for all that are there. The order of these steps is what
keeps a wake-up from being lost:

- The reactor appends a job, *then* looks for a parked worker, unless a woken one is under way already.
- A worker that found nothing parks itself, *then* looks again before it sleeps.
- A woken worker says that it is no longer under way *before* it takes, and wakes one more if it leaves jobs behind.
- A result is appended, *then* the flag is tested; `flush` clears the flag *before* it empties the deque.
- A job reaches its next place before it leaves the last: queue or lane, a worker's hand, results. Taking is one step under
  the mutex. So whoever looks for all jobs finds each if he looks in this order.

With a lock in the config a worker takes a job, opens it and enters its lane under one mutex, which keeps the order of each
key; without one, opening is unguarded. `hold` makes all workers stop taking, a halt for good; what runs goes on.
"""

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from rpcd.amqp.crew import Crew, Finished
from rpcd.amqp.waiting import exc_info
from rpcd.amqp.worker import Worker
from rpcd.core.pipeline import Job, opened, perform
from rpcd.core.routes import Route

SETTLE_SECONDS = 180.0
"""How long a failed instance waits for its message to be settled before it is shut down all the same."""

log = logging.getLogger("rpcd.workers")


class Workers(Crew):
    """The workers of one consumer. `submit`, `hold`, `take_back`, `overdue` and `stop` belong to the reactor."""

    def __init__(self, routes: tuple[Route, ...], count: int, pool: ThreadPool, reactor: Any, finished: Finished) -> None:
        """Prepare workers; `finished` is called on the reactor with every batch of jobs that have their outcomes."""
        super().__init__(routes, count, pool, reactor, finished)
        self.workers: list[Worker] = []
        self._parked: list[Worker] = []
        self._waking = False
        self._stopping = threading.Event()
        self._take = self._take_any if routes[0].key is None else self._take_in_lane

    # On the reactor -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all workers; `ready` happens when the first of them has its handler."""
        for _ in range(self.count):
            self._start_one()

    def _start_one(self) -> None:
        worker = Worker(self.routes, self._stopping)
        self.workers.append(worker)
        self._pool.adjustPoolsize(maxthreads=self._pool.max + 1)
        deferToThreadPool(self._reactor, self._pool, self._loop, worker).addErrback(self._broken, worker)

    def _broken(self, failure: Failure, worker: Worker) -> None:
        """Replace a loop that was ended by an exception of rpcd itself, and give back what it had in hand."""
        log.critical("a worker of %s ended", self.routes[0].consumer, exc_info=exc_info(failure))
        self._has_ended(worker)
        if not self._stopping.is_set():
            self._start_one()
        if (job := worker.job) is not None:
            self._give_back(job)
            self._leave_lane(job)

    def submit(self, job: Job) -> None:
        """Hand a job to the next free worker."""
        self._jobs.append(job)
        if self._parked and not self._waking:
            self._wake()

    def _wake(self) -> None:
        try:
            worker = self._parked.pop()
        except IndexError:
            return
        self._waking = True
        worker.lock.release()

    def nudge(self) -> None:
        """Wake a worker if there is work and one sleeps; the supervisor's second look."""
        if self._jobs and self._parked and not self.held:
            self._wake()

    def resume(self) -> None:
        """Start jobs again, unless one of them has ordered a halt or so many have failed."""
        super().resume()
        for _ in range(len(self._parked)):
            self._wake()

    @property
    def running(self) -> list[Job]:
        """The jobs that workers have in hand, but for those that have their outcome already."""
        jobs = [job for worker in self.workers if (job := worker.job) is not worker.overdue and job is not None]
        return [job for job in jobs if not job.claimed]

    @property
    def lost(self) -> int:
        """How many written-off threads are still busy with what they were written off for."""
        return sum(1 for worker in self.workers if worker.overdue is not None)

    @property
    def condition(self) -> str:
        """Say why only a restart helps."""
        return f"{self.lost} threads are stuck in handlers that overran their time limit"

    def overdue(self, limit: float) -> Iterator[Job]:
        """Write off every worker that has been busy for longer than `limit` seconds, replace it, and yield its job."""
        now = time.monotonic()
        for worker in list(self.workers):
            job, since = worker.job, worker.since
            if job is not None and not job.claimed and worker.overdue is None and now - since > limit and worker.job is job:
                worker.overdue = job
                job.message.cancel()
                self._start_one()
                yield job

    def stack(self, job: Job) -> str | None:
        """Tell where the handler of an overdue job hangs."""
        return next((worker.stack() for worker in self.workers if worker.overdue is job), None)

    def stop(self) -> None:
        """Let every loop end once it is idle; instances are shut down in their threads.

        `ended` happens when all threads have, those left out that are written off.
        """
        self._stopping.set()
        for _ in range(len(self._parked)):
            self._wake()
        self._has_ended(None)

    def of_this_thread(self) -> Worker | None:
        """Return the worker whose thread is calling; worker threads."""
        return next((worker for worker in self.workers if worker.thread == threading.get_ident()), None)

    # In the worker threads ------------------------------------------------------------------------

    def _loop(self, worker: Worker) -> None:
        worker.thread = threading.get_ident()
        if worker.equip():
            self._reactor.callFromThread(self.ready.fire)
            self._work(worker)
        worker.end()
        self._reactor.callFromThread(self._has_ended, worker)

    def _has_ended(self, worker: Worker | None) -> None:
        if worker in self.workers:
            self.workers.remove(worker)
        if self._stopping.is_set() and all(each.overdue is not None for each in self.workers):
            self.ended.fire()

    def _work(self, worker: Worker) -> None:
        while worker.overdue is None and worker.equipped:
            job = self._take(worker)
            if job is None:
                if not self._park(worker):
                    return
                continue
            if self._jobs and self._parked and not self._waking:
                self._wake()
            while job is not None:
                job = self._handle(worker, job)
        if self._jobs and self._parked and not self.held:
            self._wake()  # written off: a wake-up meant for this worker must not be lost with it

    def _park(self, worker: Worker) -> bool:
        """Sleep until there may be work; return False when it is time to end."""
        self._parked.append(worker)
        if self._stopping.is_set() or (self._jobs and not self._is_barred()):
            try:
                self._parked.remove(worker)
            except ValueError:  # woken in the meantime: take the wake-up, or it would fall to the next sleep
                worker.lock.acquire()
                self._waking = False
            return bool(self._jobs and not self._is_barred()) or not self._stopping.is_set()
        worker.lock.acquire()
        self._waking = False
        return True

    def _take_any(self, worker: Worker) -> Job | None:
        with self._mutex:
            if not self._jobs or (self.held and not self._may_take()):
                return None
            job = self._jobs.popleft()
            worker.take(job, time.monotonic())
        return job

    def _take_in_lane(self, worker: Worker) -> Job | None:
        """Take, open and enter the lane under one mutex, so that the order of each key is kept."""
        with self._mutex:
            while self._jobs and (not self.held or self._passes):
                job = self._jobs.popleft()
                if not job.entered and opened(job) and not self._enter(job):
                    continue
                self._may_take()
                worker.take(job, time.monotonic())
                return job
        return None

    def _handle(self, worker: Worker, job: Job) -> Job | None:
        """Carry one job to its outcome and return the next one of its lane, if it has one."""
        error = perform(job, worker.handlers[job.route.number])  # type: ignore[arg-type]  # equipped before the loop began
        if worker.overdue is job:  # it was settled as overdue; its lane is free only now
            worker.job = None
            self._leave_lane(job)
            return None
        outcome = job.outcome
        if self.switch.failures or outcome.temporary or outcome.halt is not None:  # type: ignore[union-attr]
            self._note(outcome)  # type: ignore[arg-type]  # it has one by now
        if error is not None and worker.is_spent_by(job, error):
            self._replace(worker, job, error)
            return None
        # written off just when its job came to an end: the job counts, the worker goes
        return self._finish(worker, job, stays=worker.overdue is None)

    def _leave_lane(self, job: Job, worker: Worker | None = None) -> Job | None:
        """Leave a job's lane, if it has one, and return the next job, which `worker` has in hand now; or leave it to all."""
        if not job.entered:
            return None
        with self._mutex:
            following = self._lanes.leave(job.key)
            if following is None:
                return None
            following.entered = True
            if worker is not None and not self.held:
                worker.take(following, time.monotonic())
                return following
            self._jobs.appendleft(following)
        if not self.held:
            self._wake()
        return None

    def _finish(self, worker: Worker, job: Job, *, stays: bool) -> Job | None:
        """Hand in a finished job, let go of it, and return the next one of its lane for a worker that stays."""
        job.seconds = time.monotonic() - worker.since
        self._results.append(job)
        following = self._leave_lane(job, worker if stays else None)
        worker.job = following
        if not self._scheduled:
            self._scheduled = True
            self._reactor.callFromThread(self.flush)
        return following

    def _replace(self, worker: Worker, job: Job, error: BaseException) -> None:
        """Wait until the message is settled, shut the failed instance down, and make another."""
        settled = threading.Event()
        job.waiter = settled.set
        self._finish(worker, job, stays=False)
        settled.wait(SETTLE_SECONDS)
        worker.shut_down(job.route, error)
        worker.equip()
