"""The async handlers of one consumer: made on the loop, one instance a route, replaced when one has failed."""

import asyncio
import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

from rpcd.amqp.loop import LoopThread
from rpcd.amqp.running import confirmed
from rpcd.amqp.worker import MAKE_SECONDS
from rpcd.core.handler import Handler
from rpcd.core.outcome import rule_for
from rpcd.core.pipeline import Job
from rpcd.core.routes import Route

SETTLE_SECONDS = 180.0
"""How long a failed instance waits for its message to be settled before it is shut down all the same."""

log = logging.getLogger("rpcd.workers")


class Instance:
    """One handler, and how many tasks use it."""

    __slots__ = ("bare", "handler", "idle", "route", "spent", "users")

    def __init__(self, route: Route) -> None:
        """Make the handler; what its constructor raises comes through."""
        handler, self.bare = route.make_handler(confirmed)
        # a layer learns of what the handler forgot to await; what a layer forgets is waited for as well
        self.handler: Handler = confirmed(handler) if route.target.layers else handler
        self.route = route
        self.users = 0
        self.spent = False
        self.idle = asyncio.Event()
        """Set when the last task has let go of a spent instance."""

    def let_go(self) -> None:
        """Be used by one task less."""
        self.users -= 1
        if self.spent and not self.users:
            self.idle.set()

    def is_spent_by(self, error: BaseException) -> bool:
        """Tell whether the instance is to be replaced after an error: it can be, nobody expected it, and it is the first."""
        return not self.spent and self.route.target.shutdown is not None and rule_for(type(error)).error is BaseException

    async def shut_down(self, error: BaseException | None) -> None:
        """Shut the instance down, if it can be, with what it failed by."""
        shutdown, bare = self.route.target.shutdown, self.bare
        self.bare = None
        if shutdown is None or bare is None:
            return
        try:
            ended: Any = shutdown(bare, error)
            if inspect.isawaitable(ended):
                await ended
        except BaseException:  # the user's code; the loop goes on
            log.exception("%s.shutdown failed", self.route.target.path, extra={"consumer": self.route.consumer})


class Instances:
    """The instances of all routes of one consumer; loop thread only."""

    def __init__(self, routes: Iterable[Route], thread: LoopThread, equipped: Callable[[], None]) -> None:
        """Take what is to be called whenever no route lacks its instance any more."""
        self.missing = 0
        """How many routes have no instance right now; the consumer starts nothing meanwhile."""
        self._routes = list(routes)
        self._thread = thread
        self._equipped = equipped
        self._current: dict[int, Instance] = {}
        self._spent: set[Instance] = set()
        self._making: set[asyncio.Task[None]] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._stopping = False

    def start(self) -> None:
        """Begin to make all instances."""
        for route in self._routes:
            self._make(route)

    def of(self, route: Route) -> Instance:
        """Return the instance for the next message of a route; none may be missing."""
        return self._current[route.number]

    def _make(self, route: Route) -> None:
        self.missing += 1
        self._thread.keep(self._making, functools.partial(self._equip, route))

    async def _equip(self, route: Route) -> None:
        """Make one instance, however often it takes; in a task, which libraries ask for in constructors."""
        pause, longest = MAKE_SECONDS
        while not self._stopping:
            try:
                self._current[route.number] = Instance(route)
            except BaseException:  # the user's constructor; a database may come back
                log.exception(
                    "%s can't be made; next try in %g s", route.target.path, pause, extra={"consumer": route.consumer}
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
            else:
                self.missing -= 1
                if not self.missing:
                    self._equipped()
                return

    def replace(self, instance: Instance, job: Job, error: BaseException) -> None:
        """Put a fresh instance in the place of one that failed by `job`, whose outcome is not handed in yet.

        The old one is shut down when that message is settled and no other task uses it any more.
        """
        settled = asyncio.Event()
        instance.spent = True
        if not instance.users:
            instance.idle.set()
        self._spent.add(instance)
        job.waiter = lambda: self._thread.call(settled.set)
        self._thread.keep(self._retiring, functools.partial(self._retire, instance, settled, error))
        self._make(instance.route)

    async def _retire(self, instance: Instance, settled: asyncio.Event, error: BaseException) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(settled.wait(), SETTLE_SECONDS)
        await instance.idle.wait()
        self._spent.discard(instance)
        await instance.shut_down(error)

    async def stop(self) -> None:
        """Shut down all instances, those that wait for it included; whatever still uses one is not waited for."""
        self._stopping = True
        while self._making:
            for task in self._making:
                task.cancel()
            await asyncio.wait(self._making)
        for instance in self._spent:
            instance.idle.set()
        for instance in self._current.values():
            if not instance.spent:
                await instance.shut_down(None)
        while self._retiring:
            await asyncio.wait(self._retiring)
