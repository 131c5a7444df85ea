"""The way of log lines to where they are written: a bounded queue, and a thread that gets stuck in the place of others.

Theory. A pipe that nobody reads, a slow disk or a log server that is away hold up whoever writes to them: the reactor, and
with it heartbeats and all messages, or a handler until its time limit. So one thread writes for all. Who logs waits for its
line to be written, but not long, for a process may be killed the moment after, by its own handler, say, and its last lines
are the precious ones. When a line was not written in that time, nobody waits any more until all that was queued is. What
does not fit is dropped and counted, warnings later than the rest; how much that was is said as soon as a line is written.

Before the thread is started (the process may fork yet), and in processes that a handler forks, who logs writes itself.
"""

import contextlib
import copy
import logging
import os
import threading
import time
from collections import deque
from typing import Any

MOST_WAITING = 4 * 1024 * 1024
"""Characters that may wait to be written; a line that is no warning finds room in the first half alone."""

LINE_COST = 512
"""What a waiting line counts besides its characters."""

PATIENCE = 1.0
"""How long, in seconds, a thread waits for its line to be written."""

REACTOR_PATIENCE = 0.1
"""The same for the reactor's thread, which has others that wait for it."""

FLUSH_SECONDS = 0.8
"""How long a flush waits at most; less than what the end of the process waits for log handlers in all."""

SAY_SECONDS = 1.0
"""How often it is said that lines were dropped, as long as more and more are."""


class LogQueue:
    """Log records that wait to be written; threads, but for `start`."""

    def __init__(self) -> None:
        """Start without a thread: records are written where they are logged."""
        self.dropped = 0
        """How many lines were lost since the process started: there was no room for them, or they could not be written."""
        self._thread: threading.Thread | None = None
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Have nothing, and no thread: a fork copies none, and the lines that wait are its parent's."""
        self._thread = None
        self._waiting: deque[tuple[logging.Handler, logging.LogRecord, int]] = deque()
        self._size = self._put = self._done = 0
        self._behind = False
        self._wrote = True
        self._untold, self._told_at = 0, 0.0
        mutex = threading.RLock()  # the garbage collector may run a `__del__` that logs while it is held
        self._filled, self._written = threading.Condition(mutex), threading.Condition(mutex)

    def start(self) -> None:
        """Write in a thread of its own from now on; a second time, do nothing."""
        if self._thread is None:
            thread = threading.Thread(target=self._write_all, name="rpcd-log", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started: better blocked at times than without a log
                thread.start()
                self._thread = thread

    def is_writing(self) -> bool:
        """Tell whether the caller is the thread that writes: what comes of its own trouble must not feed it."""
        return threading.current_thread() is self._thread

    def put(self, handler: logging.Handler, record: logging.LogRecord, size: int) -> None:
        """Have a log handler write a record of so many characters; waits for it a little, raises nothing."""
        if self._thread is None or self.is_writing():
            handler.handle(record)
            return
        size += LINE_COST
        with self._written:
            room = MOST_WAITING if record.levelno >= logging.WARNING else MOST_WAITING // 2
            if self._waiting and self._size + size > room:
                self._count()
                return
            self._waiting.append((handler, record, size))
            self._size += size
            self._put = number = self._put + 1
            self._filled.notify()
            if not self._behind:
                patience = REACTOR_PATIENCE if threading.current_thread() is threading.main_thread() else PATIENCE
                if not self._written.wait_for(lambda: self._done >= number, patience):
                    self._behind = True

    def failed(self) -> None:
        """Be told by a log handler that it could not write its record."""
        if self.is_writing():
            self._wrote = False
        else:
            self._count()

    def _count(self) -> None:
        with self._written:
            self.dropped += 1
            self._untold += 1

    def flush(self) -> None:
        """Wait until all that is queued so far is written, if that does not take too long."""
        if self._thread is not None and not self.is_writing():
            with self._written:
                number = self._put
                self._written.wait_for(lambda: self._done >= number, FLUSH_SECONDS)

    # In its own thread ----------------------------------------------------------------------------

    def _write_all(self) -> None:
        while True:
            with self._filled:
                self._filled.wait_for(lambda: self._waiting)
                handler, record, size = self._waiting.popleft()
                self._size -= size
            if not self._write(handler, record):
                self._count()
            elif self._untold and (not self._waiting or time.monotonic() - self._told_at >= SAY_SECONDS):
                self._tell(handler)
            with self._written:
                self._done += 1
                if not self._waiting:
                    self._behind = False
                self._written.notify_all()

    def _write(self, handler: logging.Handler, record: logging.LogRecord) -> bool:
        self._wrote = True
        try:
            handler.handle(record)
        except BaseException:  # noqa: BLE001  # an operator's own log handler; others have lines to write yet
            self._wrote = False
        return self._wrote

    def _tell(self, handler: logging.Handler) -> None:
        """Say how many lines are missing; if that can't be written, it is said another time."""
        count = self._untold
        record = logging.makeLogRecord({"name": "rpcd", "levelno": logging.WARNING, "levelname": "WARNING"})
        record.msg, record.args = "log lines that are lost, because they could not be written: %s", (count,)
        if self._write(handler, record):
            self._told_at = time.monotonic()
            with self._written:
                self._untold -= count


LOG_QUEUE = LogQueue()
"""The process's."""


class QueuedHandler(logging.Handler):
    """Stands in for a log handler, which does the work in the queue's thread."""

    def __init__(self, target: logging.Handler) -> None:
        """Take over its level; its filters and its formatter stay its own."""
        super().__init__(target.level)
        self.target = target

    def handle(self, record: logging.LogRecord) -> Any:
        """Queue one record, without the lock that others have: waiting for a line must not hold up theirs."""
        passed = self.filter(record)
        if passed:
            record = self.prepare(passed if isinstance(passed, logging.LogRecord) else record)
            LOG_QUEUE.put(self.target, record, len(record.msg) if isinstance(record.msg, str) else 0)
        return passed

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return a copy whose text stands, whatever becomes of the arguments until it is written."""
        prepared = copy.copy(record)
        try:
            prepared.msg, prepared.args = record.getMessage(), None
        except Exception:  # noqa: BLE001  # a wrong log call: the target says so, as it would without a queue
            return record
        return prepared

    def flush(self) -> None:
        """Wait until everything is written, if that does not take too long."""
        LOG_QUEUE.flush()
