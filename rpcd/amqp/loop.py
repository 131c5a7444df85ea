"""One asyncio loop in a thread of its own: started, kept alive, watched from outside, closed."""

import asyncio
import concurrent.futures
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from rpcd.amqp.running import remembering
from rpcd.amqp.worker import DaemonPool

LEAVE_SECONDS = 3.0
"""How long tasks that nobody waits for may take to end when they are cancelled at a stop."""

log = logging.getLogger("rpcd.workers")


class DaemonExecutor(concurrent.futures.ThreadPoolExecutor):
    """What `asyncio.to_thread` runs in: as many threads as the library's own has, but none that can hold the process."""

    def __init__(self, name: str) -> None:
        """Start no thread before the first call."""
        super().__init__(1)
        self._pool = DaemonPool(0, min(32, (os.cpu_count() or 1) + 4), name)
        self._pool.start()

    def submit(self, call: Callable[..., Any], /, *args: Any, **named: Any) -> "concurrent.futures.Future[Any]":
        """Run a call in a thread."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                value = call(*args, **named)
            except BaseException as error:  # noqa: BLE001  # the user's code; whoever awaits it gets what it raised
                future.set_exception(error)
            else:
                future.set_result(value)

        self._pool.callInThread(run)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002  # the library's signature
        """Let the threads end, without waiting for a busy one."""
        threading.Thread(target=self._pool.stop, daemon=True).start()


class LoopThread:
    """The loop of one consumer; `call` may be called in any thread, everything else belongs to the reactor."""

    def __init__(self, consumer: str) -> None:
        """Make nothing yet: twistd may fork after this."""
        self.blocked = 0.0
        """For how many seconds the loop has not answered, as of the last `look`."""
        self.thread = 0
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]  # made by `start`
        self._consumer = consumer
        self._answered = True
        self._looked = 0.0
        self._leaving = False

    def start(self, pool: ThreadPool, reactor: Any) -> "Deferred[None]":
        """Start the loop; fires when it has ended."""
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._on_error)
        self.loop.set_default_executor(DaemonExecutor(f"{self._consumer} to_thread"))
        if sys.version_info < (3, 12):
            self.loop.set_task_factory(remembering)
        pool.adjustPoolsize(maxthreads=pool.max + 1)
        return deferToThreadPool(reactor, pool, self._run)

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function on the loop soon; nothing happens if the loop has ended."""
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if not self._leaving:
                raise

    def look(self, now: float, most: float) -> float:
        """Ask the loop for an answer, and tell for how many seconds it has not given one.

        One look counts for `most` seconds at most: a process that was stopped and continued has blocked nothing.
        """
        self.blocked = 0.0 if self._answered else self.blocked + min(now - self._looked, most)
        self._looked = now
        if self._answered:
            self._answered = False
            self.call(self._answer)
        return self.blocked

    def _answer(self) -> None:
        self._answered = True

    def current(self) -> "asyncio.Task[Any] | None":
        """Return the task that the loop is executing at this moment."""
        return asyncio.current_task(self.loop)

    def stack(self) -> str:
        """Tell where the thread is right now; its text is for the log only."""
        frame = sys._current_frames().get(self.thread)  # noqa: SLF001  # the library's only way to see another thread
        return "".join(traceback.format_stack(frame)).rstrip()

    # On the loop ----------------------------------------------------------------------------------

    def _run(self) -> None:
        self.thread = threading.get_ident()
        asyncio.set_event_loop(self.loop)
        while not self._leaving:
            try:
                self.loop.run_forever()
            except BaseException:  # asyncio lets SystemExit and KeyboardInterrupt of tasks and callbacks end its loop
                log.exception("raised out of the loop, which goes on", extra={"consumer": self._consumer})
        asyncio.set_event_loop(None)
        self.loop.close()

    def keep(self, tasks: "set[asyncio.Task[None]]", make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a task of rpcd's own, and start it anew whenever it is cancelled: who cancels all tasks means his own.

        It is in `tasks` until it has ended; the loop alone would let it be thrown away.
        """

        def ended(task: "asyncio.Task[None]") -> None:
            tasks.discard(task)
            if task.cancelled():
                self.keep(tasks, make)

        task = asyncio.Task(make(), loop=self.loop)
        tasks.add(task)
        task.add_done_callback(ended)

    async def leave(self) -> None:
        """Cancel what still runs, give it a moment, and end the loop; the last thing that is called on it."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=LEAVE_SECONDS)
        closing = asyncio.ensure_future(self.loop.shutdown_asyncgens())
        await asyncio.wait([closing], timeout=LEAVE_SECONDS)
        self._leaving = True
        self.loop.stop()

    def _on_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what nobody waits for any more: exceptions in callbacks, and in tasks that a handler has left behind."""
        error = context.get("exception")
        culprit = context.get("task") or context.get("future") or context.get("handle") or ""
        log.error(
            "%s %s",
            context.get("message"),
            culprit,
            exc_info=None if error is None else (type(error), error, error.__traceback__),
            extra={"consumer": self._consumer},
        )
