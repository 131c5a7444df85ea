"""What keeps a client's connection: a Twisted reactor of its own, on a thread of its own.

Theory. Any thread appends its work to a deque and wakes the reactor, once for all that is there. The reactor is not the
global one: nothing is installed, no signal handled, no thread registered as Twisted's own. So it runs beside an asyncio
loop, a running global reactor, and other engines. Work ends in a `concurrent.futures.Future`, which every face waits for in
its own way.

The thread is started by the first work, so that a program may fork after it made its client (gunicorn's preload): the child
has no thread, and starts one of its own; what it got of its parent's sockets it closes without a word. The thread is a
daemon: a program that forgets to close its client ends all the same, and the connection is closed on the way out.
"""

import atexit
import concurrent.futures
import contextlib
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from rpcd.amqp.waiting import exc_info, steady
from rpcd.client.link import Link

CLOSE_SECONDS = 5.0
"""How long closing may take: a polite goodbye has 2 s, then the connection is cut."""

ResultT = TypeVar("ResultT")

Work = Callable[[Link], Deferred[ResultT]]
"""Begins something on the reactor."""

log = logging.getLogger("rpcd.client")


def private_reactor() -> Any:
    """Make a reactor that is not the global one."""
    try:
        from twisted.internet.epollreactor import EPollReactor as Reactor  # noqa: PLC0415  # Linux has it
    except ImportError:
        from twisted.internet.selectreactor import (  # noqa: PLC0415  # every system has it
            SelectReactor as Reactor,
        )
    made: Any = Reactor()
    made._registerAsIOThread = False  # noqa: SLF001  # else Twisted's own question for the reactor's thread means this one
    steady(made)
    return made


def _release(reactor: Any) -> None:
    """Close the files of a reactor that has ended, which the global one keeps to the end of the process."""
    for each in reactor._internalReaders:  # noqa: SLF001  # the pipe that wakes it
        each.connectionLost(None)
    poller = getattr(reactor, "_poller", None)
    if poller is not None:
        poller.close()


class Thread:
    """One reactor that runs in one thread, and the link that it serves."""

    def __init__(self, make_link: Callable[[Any], Link]) -> None:
        """Start at once."""
        self.reactor = private_reactor()
        self.link = make_link(self.reactor)
        self.ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._work: deque[tuple[Work[Any], concurrent.futures.Future[Any]]] = deque()
        self._scheduled = False
        self._waking = threading.RLock()
        """Held while the reactor is woken: nobody is to write to a pipe that is closed, or to a file with its number.

        It may be taken twice: the garbage collector ends inputs wherever it comes.
        """
        self._gone = False
        self._thread = threading.Thread(target=self._run, name="rpcd client", daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether this is the thread that asks."""
        return threading.current_thread() is self._thread

    def submit(self, work: Work[Any], future: "concurrent.futures.Future[Any]") -> None:
        """Begin some work soon, and end the future as it ends; any thread."""
        self._work.append((work, future))
        if not self._scheduled:
            self._scheduled = True
            self._call(self._begin_all)
        if self.ended.done():
            self._give_up()

    def stop(self) -> None:
        """Close the connection, then end; any thread, at once."""
        self._call(self._stop)

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function on the reactor soon, unless that has ended."""
        with self._waking:
            if not self._gone:
                self.reactor.callFromThread(function, *arguments)

    def leave(self) -> None:
        """Close the parent's sockets, in its child, where nothing runs: they stay open in the parent."""
        for each in {*self.reactor.getReaders(), *self.reactor.getWriters()}:
            with contextlib.suppress(OSError, AttributeError):
                each.socket.close()

    # On the reactor -------------------------------------------------------------------------------

    def _run(self) -> None:
        QUIET.threads.add(threading.get_ident())
        self.reactor.callWhenRunning(self.link.start)
        try:
            self.reactor.run(installSignalHandlers=False)
        except BaseException:
            log.critical("a fault of rpcd ended the client's thread", exc_info=True)
        finally:
            QUIET.threads.discard(threading.get_ident())
            with self._waking:
                self._gone = True
            _release(self.reactor)
            self.ended.set_result(None)
            self._give_up()

    def _begin_all(self) -> None:
        self._scheduled = False
        while self._work:
            self._begin(*self._work.popleft())

    def _begin(self, work: Work[Any], future: "concurrent.futures.Future[Any]") -> None:
        if future.cancelled():
            future.set_running_or_notify_cancel()
            return
        try:
            deferred = work(self.link)
        except BaseException as error:  # noqa: BLE001  # whoever waits learns what was wrong with it
            _end(future, None, error)
            return
        deferred.addCallbacks(lambda value: _end(future, value, None), lambda failure: _end(future, None, failure.value))

        def ended(_future: object) -> None:
            if future.cancelled():
                self._call(self._cancel, deferred, future)

        future.add_done_callback(ended)

    def _cancel(self, deferred: Deferred[Any], future: "concurrent.futures.Future[Any]") -> None:
        deferred.cancel()
        future.set_running_or_notify_cancel()  # `wait` and `as_completed` hear of it only now

    def _stop(self) -> None:
        if self.reactor.running:
            self.link.stop().addErrback(_tell_fault).addBoth(lambda _done: self.reactor.stop())

    def _give_up(self) -> None:
        """Fail what was submitted too late to be begun."""
        while self._work:
            with contextlib.suppress(IndexError):
                _end(self._work.popleft()[1], None, RuntimeError("the client is closed"))


class Engine:
    """Runs work of any thread on its own reactor, which the first work starts; usable again in a forked child."""

    def __init__(self, make_link: Callable[[Any], Link]) -> None:
        """Start nothing yet; `make_link` makes the link for a reactor."""
        self._make_link = make_link
        self._lock = threading.RLock()
        self._thread: Thread | None = None
        self._closed = False
        ENGINES.add(self)

    @property
    def is_current(self) -> bool:
        """Whether the engine's own thread asks, which must not wait for itself."""
        return self._thread is not None and self._thread.is_current

    def run(self, work: Work[ResultT]) -> "concurrent.futures.Future[ResultT]":
        """Begin some work on the reactor and return a future of its end; cancelled, the work is, too. Any thread."""
        future: concurrent.futures.Future[ResultT] = concurrent.futures.Future()
        thread = self._thread
        if thread is None or self._closed:
            thread = self._start()
        thread.submit(_unless_refused(work), future)
        return future

    def run_if_open(self, work: Work[ResultT]) -> "concurrent.futures.Future[ResultT] | None":
        """Do as `run`, if there is anything that it could be about; None if nothing runs, or no longer. Any thread.

        This is for ending what was begun, which a refused login keeps nobody from.
        """
        thread = self._thread
        if thread is None or self._closed:
            return None
        future: concurrent.futures.Future[ResultT] = concurrent.futures.Future()
        thread.submit(work, future)
        return future

    def _start(self) -> Thread:
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._thread is None:
                self._thread = Thread(self._make_link)
            return self._thread

    def close(self) -> "concurrent.futures.Future[None]":
        """Close the connection and end the thread; what is outstanding fails. Returns a future of the end; any thread."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is None:
            ended: concurrent.futures.Future[None] = concurrent.futures.Future()
            ended.set_result(None)
            return ended
        thread.stop()
        return thread.ended

    def in_child(self) -> None:
        """Begin anew in a forked child, where the thread does not run and the lock may be held for ever."""
        self._lock = threading.RLock()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.leave()


def _unless_refused(work: Work[ResultT]) -> Work[ResultT]:
    """Have work fail at once while a person has to mend something before there can be a connection."""

    def begin(link: Link) -> Deferred[ResultT]:
        if (known := link.refusal) is not None:
            raise type(known)(str(known), known.exit_code)  # a fresh one: each keeps the frames that it went through
        return work(link)

    return begin


def _end(future: "concurrent.futures.Future[Any]", value: Any, error: BaseException | None) -> None:
    with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled in this very moment
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def _tell_fault(failure: Failure) -> None:
    log.critical("a fault of rpcd while closing", exc_info=exc_info(failure))


# The process ----------------------------------------------------------------------------------------

ENGINES: "weakref.WeakSet[Engine]" = weakref.WeakSet()
"""All engines of this process."""


def _close_all() -> None:
    """Say goodbye to the broker when the program ends, whether or not it has thought of it."""
    closing = [each.close() for each in list(ENGINES)]
    concurrent.futures.wait(closing, CLOSE_SECONDS)


def _in_child() -> None:
    QUIET.threads.clear()
    for each in list(ENGINES):
        each.in_child()


class Quiet(logging.Filter):
    """Keeps what pika says in our threads out of the program's log: rpcd says it better, and pika shows parts of bodies."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        super().__init__()
        self.threads: set[int] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Let pass what others log."""
        return record.thread not in self.threads


QUIET = Quiet()

for _name in list(logging.Logger.manager.loggerDict):
    if _name.partition(".")[0] == "pika":
        logging.getLogger(_name).addFilter(QUIET)

atexit.register(_close_all)
os.register_at_fork(after_in_child=_in_child)
