"""One thread of a consumer, and the handlers that it has, one for each route: made, shut down, replaced one by one."""

import logging
import sys
import threading
import traceback
from typing import Any

from twisted.python.threadpool import ThreadPool

from rpcd.core.errors import TimeLimitPassed
from rpcd.core.handler import Handler
from rpcd.core.outcome import rule_for
from rpcd.core.pipeline import Job
from rpcd.core.routes import Route

MAKE_SECONDS = (0.5, 30.0)
"""The first and the longest pause between attempts to make an instance whose constructor fails."""

log = logging.getLogger("rpcd.workers")


class DaemonPool(ThreadPool):
    """Twisted's thread pool with threads that can't keep the process alive when a handler never returns."""

    @staticmethod
    def threadFactory(*args: Any, **named: Any) -> threading.Thread:  # type: ignore[override]  # noqa: N802
        """Make one thread; Twisted's own name for the hook."""
        return threading.Thread(*args, daemon=True, **named)


class Worker:
    """One thread of a consumer: what it handles right now, and whether it is written off."""

    __slots__ = ("_bare", "_routes", "_stopping", "equipped", "handlers", "job", "lock", "overdue", "since", "thread")

    def __init__(self, routes: tuple[Route, ...], stopping: threading.Event) -> None:
        """Make a worker that has no thread yet; `stopping` ends its attempts to make an instance."""
        self._routes = routes
        self._stopping = stopping
        self.lock = threading.Lock()
        self.lock.acquire()
        self.job: Job | None = None
        self.since = 0.0
        self.overdue: Job | None = None
        """The job that this worker was written off over; it takes no other."""
        self.thread = 0
        self.handlers: list[Handler | None] = [None] * len(routes)
        """One for each route; None where it is still to be made."""
        self.equipped = False
        """Whether all handlers are made."""
        self._bare: list[Any] = [None] * len(routes)

    def take(self, job: Job, now: float) -> None:
        """Have a job in hand from now on; `now` is monotonic, and first, for the reactor looks at both."""
        self.since = now
        self.job = job

    def equip(self) -> bool:
        """Make the handlers that are missing, however often it takes; return False if it is time to end before that."""
        self.equipped = all(self._make(route) for route in self._routes if self.handlers[route.number] is None)
        return self.equipped

    def _make(self, route: Route) -> bool:
        pause, longest = MAKE_SECONDS
        while not self._stopping.is_set():
            try:
                self.handlers[route.number], self._bare[route.number] = route.make_handler()
            except BaseException:  # the user's constructor; a database may come back
                log.exception(
                    "%s can't be made; next try in %g s", route.target.path, pause, extra={"consumer": route.consumer}
                )
                self._stopping.wait(pause)
                pause = min(2 * pause, longest)
            else:
                return True
        return False

    def stack(self) -> str:
        """Tell where the thread is right now; its text is for the log only."""
        frame = sys._current_frames().get(self.thread)  # noqa: SLF001  # the library's only way to see another thread
        return "".join(traceback.format_stack(frame)).rstrip()

    def is_spent_by(self, job: Job, error: BaseException) -> bool:
        """Tell whether a job's instance is to be shut down and replaced: it can be, and nobody expected that error."""
        return job.route.target.shutdown is not None and rule_for(type(error)).error is BaseException

    def shut_down(self, route: Route, error: BaseException | None) -> None:
        """Shut the instance of one route down, if it can be, with what it failed by; the others stay."""
        shutdown, bare = route.target.shutdown, self._bare[route.number]
        self.handlers[route.number] = self._bare[route.number] = None
        if shutdown is None or bare is None:
            return
        try:
            shutdown(bare, error)
        except BaseException:  # the user's code; its worker goes on
            log.exception("%s.shutdown failed", route.target.path, extra={"consumer": route.consumer})

    def end(self) -> None:
        """Shut down every instance that there is."""
        for route in self._routes:
            overran = self.overdue is not None and self.overdue.route is route
            self.shut_down(route, TimeLimitPassed() if overran else None)
