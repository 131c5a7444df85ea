"""Waiting with an upper bound, which every wait of the daemon has; doing again and again; telling what went wrong."""

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

log = logging.getLogger("rpcd")

ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]

ResultT = TypeVar("ResultT")


class WaitTooLong(TimeoutError):
    """Something that was waited for did not happen in time."""


class Once:
    """Something that happens once, well or badly, and that many may wait for; reactor only."""

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self.happened = False
        self._failure: BaseException | None = None
        self._waiting: list[Deferred[None]] = []

    def fire(self) -> None:
        """Say that it happened; only the first word counts."""
        self._happen(None)

    def fail(self, reason: BaseException) -> None:
        """Say that it went wrong; only the first word counts."""
        self._happen(reason)

    def _happen(self, failure: BaseException | None) -> None:
        if self.happened:
            return
        self.happened, self._failure = True, failure
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            self._tell(each)

    def _tell(self, waiting: Deferred[None]) -> None:
        if waiting.called:
            return
        if self._failure is None:
            waiting.callback(None)
        else:
            waiting.errback(self._failure)

    def wait(self) -> Deferred[None]:
        """Return a Deferred of its own for every caller."""
        waiting: Deferred[None] = Deferred()
        if self.happened:
            self._tell(waiting)
        else:
            self._waiting.append(waiting)
        return waiting

    def forget(self, waiting: Deferred[None]) -> None:
        """Leave out somebody who waits no more, for what he waits for may be weeks away."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)


def unless(ended: Once, inner: Deferred[ResultT]) -> Deferred[ResultT]:
    """Return a Deferred that fires as `inner` does, or fails as soon as `ended` has gone wrong."""
    outer: Deferred[ResultT] = Deferred()

    waiting = ended.wait()

    def fired(result: ResultT | Failure) -> None:
        ended.forget(waiting)
        if not outer.called:
            outer.callback(result)  # a Failure takes the errback path

    inner.addBoth(fired)
    waiting.addErrback(fired)
    return outer


def bounded(
    inner: Deferred[ResultT],
    seconds: float,
    clock: Any,
    what: str,
    late: Callable[[], object] | None = None,
    excused: Callable[[], bool] = lambda: False,
) -> Deferred[ResultT]:
    """Return a Deferred that fires as `inner` does, or fails with WaitTooLong after `seconds`.

    `inner` itself is never cancelled: it may belong to somebody who could not stand that. `late` is called at the end of
    the time, before the failure. As long as `excused` says so (an alarm stops the broker from reading), it may take longer.
    """
    outer: Deferred[ResultT] = Deferred()
    timer: Any = None

    def give_up() -> None:
        nonlocal timer
        if excused():
            timer = clock.callLater(seconds, give_up)
            return
        if late is not None:
            late()
        if not outer.called:
            outer.errback(WaitTooLong(f"{what} took longer than {seconds:g} s"))

    timer = clock.callLater(seconds, give_up)

    def fired(result: ResultT | Failure) -> None:
        if timer.active():
            timer.cancel()
        if not outer.called:
            outer.callback(result)  # a Failure takes the errback path

    inner.addBoth(fired)
    return outer


def repeating(turn: Callable[[], object], clock: Any) -> LoopingCall:
    """Make a looping call that outlives its own faults: each is logged, and the next turn comes all the same."""

    def safely() -> None:
        try:
            turn()
        except Exception:
            log.critical("a fault of rpcd", exc_info=True)

    loop = LoopingCall(safely)
    loop.clock = clock
    return loop


def steady(reactor: Any) -> None:
    """Have the reactor's timers go by the monotonic clock.

    Twisted's go by the wall clock: set back by an hour, no heartbeat, no time limit and no new connection for an hour.
    """
    shift = time.monotonic() - reactor.seconds()
    reactor.seconds = time.monotonic
    for timer in reactor.getDelayedCalls():
        timer.time += shift
        timer.seconds = time.monotonic


def exc_info(failure: Failure) -> ExcInfo:
    """Return what the standard library's logging shows a traceback from."""
    error: Any = failure.value
    return type(error), error, failure.getTracebackObject()
