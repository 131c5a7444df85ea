"""One message in the hands of an async handler, and how to find it again: from its tasks, its threads, from outside."""

import asyncio
import sys
import traceback
from collections.abc import Generator, Iterable
from contextvars import ContextVar
from typing import Any

from rpcd.core.errors import PASSED, DeadlinePassed
from rpcd.core.handler import Handler
from rpcd.core.message import Message
from rpcd.core.pipeline import Job

CURRENT: "ContextVar[Running]" = ContextVar("rpcd_running")
"""What is being handled; a handler's own tasks and its `asyncio.to_thread` inherit it."""


class Running:
    """What a `Worker` is to a thread: the job in hand, since when, and whether it is written off."""

    __slots__ = ("instance", "job", "overdue", "replaced", "since", "task", "trace", "unconfirmed")

    def __init__(self, job: Job, instance: Any, now: float) -> None:
        """Take a job and the instance that handles it; `now` is monotonic."""
        self.job = job
        self.instance = instance
        self.since = now
        self.task: asyncio.Task[Any] | None = None
        self.overdue: Job | None = None
        """Its job again, once that is written off."""
        self.replaced = False
        """Whether its place has been given to another task already."""
        self.trace: str | None = None
        self.unconfirmed: dict[Publication, None] | None = None

    def write_off(self, now: float, trace: str) -> None:
        """Count for nothing from now on; `trace` tells where it hung."""
        self.trace, self.since, self.overdue = trace, now, self.job
        self.job.message.cancel()


class Publication:
    """What `publish_now` returns inside a coroutine: await it, and the broker has confirmed or the error is raised."""

    __slots__ = ("_future", "_running")

    def __init__(self, future: "asyncio.Future[None]", running: Running | None) -> None:
        """Take the future of the confirm and what is running, which keeps it until somebody has waited for its end."""
        self._future = future
        self._running = running
        if running is not None:
            if running.unconfirmed is None:
                running.unconfirmed = {}
            running.unconfirmed[self] = None

    def __await__(self) -> Generator[Any, None, None]:
        try:
            yield from self._future.__await__()
        finally:
            if self._running is not None and self._running.unconfirmed is not None:
                self._running.unconfirmed.pop(self, None)


async def _wait(publication: Publication) -> None:
    await publication


class Alarm:
    """Cancels a task when the deadline of its message passes, by the clock that deadlines are kept by; loop only."""

    __slots__ = ("_handle", "_loop", "_message", "_task", "rang")

    def __init__(self, message: Message[Any], task: "asyncio.Task[Any]") -> None:
        """Set it."""
        self._message = message
        self._task = task
        self._loop = task.get_loop()
        self.rang = False
        self._set(message.remaining or 0.0)

    def _set(self, seconds: float) -> None:
        self._handle = self._loop.call_later(seconds, self._ring)

    def _ring(self) -> None:
        if self._message.remaining:  # the clock was put back, or a timer has fired early
            self._set(self._message.remaining)
        else:
            self.rang = True
            self._task.cancel(PASSED)

    def stop(self) -> None:
        """Cancel nothing any more, and let go of the task, whose failure leads back here."""
        self._handle.cancel()
        del self._task


async def _in_time(handler: Handler, message: Message[Any], running: Running) -> Any:
    """Await a handler until its deadline passes, then cancel it; what it returns all the same counts."""
    alarm = Alarm(message, running.task)  # type: ignore[arg-type]  # it is the one that runs this
    try:
        return await handler(message)
    except asyncio.CancelledError:
        if not alarm.rang or running.overdue is not None:
            raise
        raise DeadlinePassed(PASSED) from None
    finally:
        alarm.stop()


def confirmed(handler: Handler) -> Handler:
    """Fold a handler so that its deadline ends it, and it ends only when what it published at once is confirmed.

    What it forgot to await, that is.
    """

    async def call(message: Message[Any]) -> Any:
        running = CURRENT.get()
        value = await (handler(message) if message.deadline is None else _in_time(handler, message, running))
        if unconfirmed := running.unconfirmed:
            ends = await asyncio.gather(*map(_wait, unconfirmed), return_exceptions=True)
            for error in ends:
                if isinstance(error, BaseException):
                    raise error
        return value

    return call


class OwnTask(asyncio.Task[Any]):
    """A task that a handler makes, before Python 3.12: others can't see its context, so it keeps what it belongs to."""

    running: Running | None = None


def remembering(loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> OwnTask:
    """Make a task that knows which message it belongs to; a task factory."""
    task = OwnTask(coroutine, loop=loop, **named)
    task.running = CURRENT.get(None)
    return task


def raised(job: Job, task: "asyncio.Task[BaseException | None]") -> BaseException | None:
    """Return what the handler raised, as its task says that has ended, or that was cancelled before its first step."""
    try:
        return task.result()
    except asyncio.CancelledError as error:
        job.outcome = job.route.judge(error, job.message)
        return error


def running_of(task: "asyncio.Task[Any]") -> Running | None:
    """Return what a task, or one that a handler has made, is working for."""
    if isinstance(task, OwnTask):
        return task.running
    if sys.version_info >= (3, 12):
        return task.get_context().get(CURRENT)
    return None


def executing(task: "asyncio.Task[Any] | None", running: Iterable[Running]) -> Running | None:
    """Return which of those that are running a task belongs to, be it its own or one that it has made."""
    if task is None:
        return None
    return next((each for each in running if each.task is task), None) or running_of(task)


def where(task: "asyncio.Task[Any]") -> str:
    """Tell where a suspended task waits, from the user's code on; its text is for the log only."""
    waiting: Any = task.get_coro()
    lines: list[str] = []
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is not None and not frame.f_globals.get("__name__", "").startswith("rpcd."):
            lines += traceback.format_stack(frame, limit=1)
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return "".join(lines).rstrip()
