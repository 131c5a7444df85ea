"""Where rpcd's own log lines end: a standard stream or a file, written to line by line, without a buffer."""

import logging
import logging.handlers
import os
import select
import traceback

from rpcd.ops.log_queue import LOG_QUEUE, QueuedHandler

LONGEST_ERROR = 200

_LINE = "rpcd_line"
"""The attribute of a record that was formatted already, where it was logged."""


class _Unfailing(logging.Handler):
    """A log handler that never raises and never writes about itself: sys.stderr, where others do that, leads to it again."""

    _torn = False
    """Whether the last line was written in part: the next one begins anew."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record; a call that can't be formatted becomes one line that says so, and where it is."""
        line: str | None = getattr(record, _LINE, None)
        if line is not None:
            return line
        try:
            return super().format(record)
        except Exception as error:  # noqa: BLE001  # the arguments are the handlers' and may do anything
            place, said = f"{record.pathname}:{record.lineno}", traceback.format_exception_only(error)[-1].strip()
            told = logging.makeLogRecord({"name": record.name, "levelno": record.levelno, "levelname": record.levelname})
            told.msg, told.args = "wrong log call at %s: %s", (place, said[:LONGEST_ERROR])
            return super().format(told)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; opening a log file anew may fail, too."""
        try:
            self._write(self._descriptor(), self.format(record))
        except (OSError, ValueError):  # ValueError: the file was closed at the end of the process
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  # the standard library's name
        """Count a record that can't be written: there is nowhere left to say so now."""
        LOG_QUEUE.failed()

    def _descriptor(self) -> int:
        raise NotImplementedError

    def _write(self, descriptor: int, line: str) -> None:
        data = (b"\n" if self._torn else b"") + line.encode("utf-8", "backslashreplace") + b"\n"
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:  # whom we share the stream with has made it so; waiting is what it is for
                waiting = select.poll()
                waiting.register(descriptor, select.POLLOUT)
                waiting.poll()
            else:
                self._torn = bool(data)


class ToDescriptor(_Unfailing):
    """Writes lines to an open descriptor."""

    def __init__(self, descriptor: int) -> None:
        """Take the descriptor, which stays open."""
        super().__init__()
        self._number = descriptor

    def _descriptor(self) -> int:
        return self._number


class ToFile(_Unfailing, logging.handlers.WatchedFileHandler):
    """Writes lines to the end of a file, and opens it anew when it was moved."""

    def __init__(self, path: str) -> None:
        """Open the file; raises OSError."""
        super().__init__(path, encoding="utf-8")

    def _descriptor(self) -> int:
        before = self.stream
        self.reopenIfNeeded()
        if self.stream is None:  # it is None after a failure, or after it was closed
            self.stream = self._open()
        if self.stream is not before:
            self._torn = False
        return self.stream.fileno()


class QueuedLine(QueuedHandler):
    """Stands in for one of those, and formats where the line was logged: its arguments may change until it is written."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return a record that is nothing but its line."""
        prepared = logging.makeLogRecord({"name": record.name, "levelno": record.levelno, "levelname": record.levelname})
        prepared.msg = self.target.format(record)
        setattr(prepared, _LINE, prepared.msg)
        return prepared
