"""The tasks of one consumer's async handlers: the twin of `Workers`, on one asyncio loop in a thread of its own.

Theory. Each message has a task of its own, so that what a handler does to its context or its task ends with the message.
Jobs reach the loop through a deque with one `call_soon_threadsafe` a batch; results go back through another with one
`callFromThread`. At most `count` tasks run at once. The order of these steps is what keeps a wake-up from being lost:

- The reactor appends a job, *then* looks for a free place. Is there none, then a task that ends looks for jobs itself.
- A task that ends gives its place back, *then* looks for jobs. `_pump` clears its flag *before* it takes.
- A result is appended, *then* the flag is tested; `flush` clears the flag *before* it empties the deque.
- A job reaches its next place before it leaves the last: queue or lane, the set of running ones, results. Taking is one
  step under the mutex, for `take_back` comes from the reactor. So whoever looks for all jobs finds each in this order.

A task ends in a callback of its own, which comes whoever cancels it, and be it before its first step; and the tasks that it
starts have the context of the consumer, not that of the message before.

**Time limit.** A job that is overdue is written off by the reactor, which settles it, and its task is cancelled. Its place
is free; its lane stays held until it has ended. It is lost if it has not ended `CANCEL_SECONDS` later.

**A blocked loop.** A handler that blocks the loop stops all others: no job but that one can be overdue, and the time does
not count for them. When the loop has not answered for longer than the time limit, that job is written off and the consumer
is `stuck`: a new process must help.

**Instances.** One with `shutdown` that failed unexpectedly is replaced at once, and shut down after its last task.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Iterator
from typing import Any

from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from rpcd.amqp.crew import Crew, Finished
from rpcd.amqp.instances import Instances
from rpcd.amqp.loop import LEAVE_SECONDS, LoopThread
from rpcd.amqp.running import CURRENT, Running, executing, raised, where
from rpcd.amqp.waiting import exc_info
from rpcd.core.pipeline import Job, opened, perform_async
from rpcd.core.routes import Route

BLOCKED_SECONDS = 5.0
"""After how long a blocked loop is told of, once."""

CANCEL_SECONDS = 5.0
"""How long a cancelled handler may take to clean up before it counts as lost."""

log = logging.getLogger("rpcd.workers")


class Tasks(Crew):
    """The tasks of one consumer. `submit`, `hold`, `take_back`, `overdue` and `stop` belong to the reactor."""

    def __init__(self, routes: tuple[Route, ...], count: int, pool: ThreadPool, reactor: Any, finished: Finished) -> None:
        """Prepare the loop; `finished` is called on the reactor with every batch of jobs that have their outcomes."""
        super().__init__(routes, count, pool, reactor, finished)
        self.consumer = routes[0].consumer
        self.thread = LoopThread(self.consumer)
        self._instances = Instances(routes, self.thread, functools.partial(reactor.callFromThread, self._equipped))
        self._running: set[Running] = set()
        self._free = count
        self._waking = False
        self._stopping = False
        self._idle = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._suspect: Running | None = None
        self._told = False
        self._in_lanes = routes[0].key is not None

    # On the reactor -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the loop; `ready` happens when every route has its handler."""
        ended = self.thread.start(self._pool, self._reactor)
        ended.addErrback(self._broken).addCallback(lambda _none: self.ended.fire())
        self.thread.call(self._instances.start)

    def _broken(self, failure: Failure) -> None:
        log.critical("the loop of %s ended", self.consumer, exc_info=exc_info(failure))
        self.stuck = True

    def _equipped(self) -> None:
        self.ready.fire()
        self._wake()

    def submit(self, job: Job) -> None:
        """Hand a job to the loop."""
        self._jobs.append(job)
        if self._free > 0 and not self._waking:
            self._wake()

    def _wake(self) -> None:
        self._waking = True
        self.thread.call(self._pump)

    def nudge(self) -> None:
        """Wake the loop if there is work and a place for it; the supervisor's second look."""
        if self._jobs and self._free > 0 and not self.held:
            self._wake()

    def resume(self) -> None:
        """Start jobs again, unless one of them has ordered a halt or so many have failed."""
        super().resume()
        self._wake()

    @property
    def running(self) -> list[Job]:
        """The jobs that tasks have in hand, but for those that have their outcome already."""
        return [each.job for each in list(self._running) if each.overdue is None and not each.job.claimed]

    @property
    def lost(self) -> int:
        """How many written-off tasks have not ended although they were cancelled a while ago."""
        now = time.monotonic()
        return sum(1 for each in list(self._running) if each.overdue is not None and now - each.since > CANCEL_SECONDS)

    @property
    def condition(self) -> str:
        """Say why only a restart helps."""
        if self.stuck:
            return "a handler blocks the loop, and has overrun its time limit"
        return f"{self.lost} tasks that overran their time limit go on although they were cancelled"

    def overdue(self, limit: float) -> Iterator[Job]:
        """Write off every job that has been running for longer than `limit` seconds, cancel its task, and yield it."""
        now = time.monotonic()
        before = self.thread.blocked
        if self.thread.look(now, limit / 2):
            yield from self._look_at_blocked(now, limit)
            return
        self._suspect, self._told = None, False
        for each in list(self._running):
            if each.overdue is None:
                each.since += min(before, now - each.since)
                task = each.task
                if now - each.since > limit and not each.job.claimed and task is not None:
                    yield self._write_off(each, now, where(task))

    def _look_at_blocked(self, now: float, limit: float) -> Iterator[Job]:
        """Say which handler blocks the loop, and write its job off when that has taken too long."""
        blocked = self.thread.blocked
        found, before = executing(self.thread.current(), list(self._running)), self._suspect
        self._suspect = found
        if found is not None and found.overdue is not None:
            return  # it was written off, and now it blocks
        stack = self.thread.stack()
        if not self._told and blocked > min(BLOCKED_SECONDS, limit / 2):
            self._told = True
            path = found.job.route.target.path if found is not None else "what belongs to no message"
            message_id = found.job.message.message_id if found is not None else None
            fields = {"consumer": self.consumer, "message_id": message_id, "trace": stack}
            said = "%s blocks the loop of all handlers, for %.1f s by now; use asyncio.to_thread, or a plain function"
            log.warning(said, path, blocked, extra=fields)
        if blocked > limit and not self.stuck and self._running:
            self.stuck = True
            if self._stopping:
                self.ended.fire()
            if found is not None and found is before and found in self._running and not found.job.claimed:
                yield self._write_off(found, now, stack)

    def _write_off(self, running: Running, now: float, trace: str) -> Job:
        running.write_off(now, trace)
        self.thread.call(self._cancel, running)
        return running.job

    def stack(self, job: Job) -> str | None:
        """Tell where the handler of an overdue job hung."""
        return next((each.trace for each in list(self._running) if each.overdue is job), None)

    def stop(self) -> None:
        """Let the loop end once it is idle; instances are shut down on it.

        `ended` happens when it has, or at once if it is blocked for good; written-off tasks are not waited for.
        """
        if self._stopping:
            return
        self._stopping = True
        self.thread.call(self._leave)
        if self.stuck:
            self.ended.fire()

    def of_this_thread(self) -> Running | None:
        """Return what the caller belongs to: a handler, its tasks and its `asyncio.to_thread`, whichever consumer's."""
        return CURRENT.get(None)

    # On the loop ----------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Start as many jobs as there are places."""
        self._waking = False
        while self._free > 0 and self._jobs and not self._is_barred() and not self._instances.missing:
            running = self._take()
            if running is None:
                break
            self._free -= 1
            running.instance.users += 1
            try:
                running.task = asyncio.Task(self._handle(running), loop=self.thread.loop, name=self.consumer)
                running.task.add_done_callback(functools.partial(self._end, running))
            except BaseException as fault:  # noqa: BLE001  # no memory for it, say
                self._fail(running, fault)
                self._leave_place(running)

    def _take(self) -> Running | None:
        """Take a job, with a lock open it and enter its lane, in one step, so that the order of each key is kept."""
        with self._mutex:
            while self._jobs and not self._is_barred():
                job = self._jobs.popleft()
                if self._in_lanes and not job.entered and opened(job) and not self._enter(job):
                    continue
                self._may_take()
                running = Running(job, self._instances.of(job.route), time.monotonic())
                self._running.add(running)
                return running
        return None

    async def _handle(self, running: Running) -> BaseException | None:
        CURRENT.set(running)
        return await perform_async(running.job, running.instance.handler)

    def _end(self, running: Running, task: "asyncio.Task[BaseException | None]") -> None:
        """Hand in the outcome of a task that has ended, give its lane and its place to others, and let them start.

        Whatever goes wrong on the way, the job is handed in: nobody else knows of its message.
        """
        try:
            self._hand_in(running, task)
        except BaseException as fault:  # noqa: BLE001  # a message must not be forgotten for it
            self._fail(running, fault)
        self._leave_place(running)
        if self._jobs:
            self._pump()
        self._note_idle()

    def _hand_in(self, running: Running, task: "asyncio.Task[BaseException | None]") -> None:
        job, instance = running.job, running.instance
        error = raised(job, task)
        running.task = None  # whose context leads back here: a circle that only the garbage collector would break
        instance.let_go()
        if running.overdue is None:
            outcome = job.outcome
            if outcome is not None and (self.switch.failures or outcome.temporary or outcome.halt is not None):
                self._note(outcome)
            if error is not None and instance.is_spent_by(error):
                self._instances.replace(instance, job, error)
            job.seconds = time.monotonic() - running.since
            self._results.append(job)
            if not self._scheduled:
                self._scheduled = True
                self._reactor.callFromThread(self.flush)

    def _fail(self, running: Running, fault: BaseException) -> None:
        log.critical("a fault of rpcd in a task of %s", self.consumer, exc_info=fault)
        self._reactor.callFromThread(self._give_back, running.job)

    def _leave_place(self, running: Running) -> None:
        self._running.discard(running)
        if not running.replaced:
            self._free += 1
        if running.job.entered:
            self._leave_lane(running.job)

    def _leave_lane(self, job: Job) -> None:
        with self._mutex:
            following = self._lanes.leave(job.key)
            if following is not None:
                following.entered = True
                self._jobs.appendleft(following)

    def _cancel(self, running: Running) -> None:
        """Cancel a task that was written off, and give its place away."""
        if running in self._running and not running.replaced and running.task is not None:
            running.replaced = True
            self._free += 1
            running.task.cancel("the time limit of this message has passed")
            self._pump()
            self._note_idle()

    def _is_idle(self) -> bool:
        left = self._jobs and not self.held and not self._instances.missing
        return not left and all(each.overdue is not None for each in list(self._running))

    def _note_idle(self) -> None:
        if self._stopping and self._is_idle():
            self._idle.set()

    def _leave(self) -> None:
        self.thread.keep(self._closing, self._close)

    async def _close(self) -> None:
        """Wait for what runs, shut the instances down, end the loop."""
        self._note_idle()
        await self._idle.wait()
        late = [each.task for each in self._running if each.task is not None]
        if late:
            await asyncio.wait(late, timeout=LEAVE_SECONDS)
        await self._instances.stop()
        await self.thread.leave()
