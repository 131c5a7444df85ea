"""One stream of log lines for rpcd, Twisted, pika and the handlers: text for people or JSON for machines.

Everything goes through the standard library's logging, so handlers log as they always do. A line carries the fields of the
message that it is about; a handler's own line gets them from the thread that it was written in. Bodies, headers and secrets
are never logged by rpcd; what comes from outside is escaped, so that nobody can forge a line.
"""

import contextlib
import datetime as dt
import logging
import logging.config
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, TextIO, cast

import msgspec
from twisted.logger import ILogObserver, LogEvent, Logger, LoggingFile, LogLevel, STDLibLogObserver
from zope.interface import implementer

from rpcd.ops.log_queue import LOG_QUEUE, QueuedHandler
from rpcd.ops.log_targets import QueuedLine, ToDescriptor, ToFile

FIELDS = ("connection", "consumer", "queue", "correlation_id", "message_id", "attempt", "verdict", "error")
"""What a line may tell about the message or connection that it is about, in this order."""

LONGEST_FIELD = 200

LONGEST_TRACE = 20_000
"""Characters of a traceback; an exception's text may be as long as the message that it quotes."""

OWN = ("rpcd", "twisted", "stdout", "stderr")
"""The loggers whose lines go to rpcd's own log, whatever a handler does to the logging of the process."""

PRINTED = {"stdout": logging.INFO, "stderr": logging.WARNING}
"""The loggers, and levels, of what is written to a standard stream."""

FieldsOfThread = Callable[[], Mapping[str, Any]]


class ThreadFields(logging.Filter):
    """Adds the fields of the message that a thread is handling to whatever is logged there."""

    def __init__(self, fields: FieldsOfThread) -> None:
        """Take the function that knows what the calling thread is handling."""
        super().__init__()
        self._fields = fields

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drop a record; add what is missing."""
        if record.threadName != "MainThread":
            for name, value in self._fields().items():
                if not hasattr(record, name):
                    setattr(record, name, value)
        return True


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found = {}
    for name in FIELDS:
        value = getattr(record, name, None)
        if value is not None and value != "":
            found[name] = value if isinstance(value, int) else _clean(value)
    return found


def _clean(value: Any) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return _escape(text[:LONGEST_FIELD])


def _escape(text: str) -> str:
    """Make control characters and line ends visible, so that a line stays one line."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text
    )


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[0] is not None:
        return _cut(formatter.formatException(record.exc_info))
    return _cut(getattr(record, "trace", None) or "")


def _cut(trace: str) -> str:
    """Leave out the middle of what is too long: its beginning says where, its end says what."""
    more = len(trace) - LONGEST_TRACE
    if more <= 0:
        return trace
    half = LONGEST_TRACE // 2
    return f"{trace[:half]}\n... {more} characters left out ...\n{trace[-half:]}"


def _time(record: logging.LogRecord) -> str:
    return dt.datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


class TextFormatter(logging.Formatter):
    """Time, level, logger, message, fields; a traceback follows on marked lines, so that its text can't pass for a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        fields = "".join(
            f" {name}={value if ' ' not in str(value) else repr(value)}" for name, value in _fields(record).items()
        )
        line = f"{_time(record)} {record.levelname} {record.name}: {_escape(record.getMessage())}{fields}"
        trace = _trace(self, record)
        return "\n  | ".join((line, *map(_escape, trace.splitlines()))) if trace else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        trace = _trace(self, record)
        found = {**line, **_fields(record), **({"traceback": trace} if trace else {})}
        encoded = msgspec.json.encode({name: _encodable(value) for name, value in found.items()}).decode()
        return encoded if encoded.isprintable() else _UNPRINTABLE.sub(_as_json, encoded)


_UNPRINTABLE = re.compile("[^ -~]")


def _as_json(found: re.Match[str]) -> str:
    """Write a character that can't be printed as JSON's own escape: what a terminal obeys is not only below U+0020."""
    char = found[0]
    if char.isprintable():
        return char
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _encodable(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


class Steady(logging.Logger):
    """A logger that `disable_existing_loggers`, which is `dictConfig`'s default, leaves alone."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set anything but `disabled`."""
        if name != "disabled":
            super().__setattr__(name, value)


@implementer(ILogObserver)
class ToStandardLibrary:
    """Hands Twisted's own log events to the standard library's logging."""

    def __init__(self) -> None:
        """Send everything to the logger `twisted`."""
        self._observer = STDLibLogObserver("twisted")
        self._thread = threading.local()

    def __call__(self, event: LogEvent) -> None:
        """Pass one event on, unless it comes of passing one on: a log handler that fails may print, and that is logged."""
        if getattr(self._thread, "passing", False) or LOG_QUEUE.is_writing():
            return
        self._thread.passing = True
        try:
            self._pass(event)
        finally:
            self._thread.passing = False

    def _pass(self, event: LogEvent) -> None:
        """Let printed output of handlers keep its own name; start-up talk is for debugging."""
        namespace = event.get("log_namespace")
        if namespace in PRINTED:
            logging.getLogger(namespace).log(PRINTED[namespace], "%s", event.get("log_io", ""))
            return
        if event.get("log_level") is LogLevel.info:
            event = {**event, "log_level": LogLevel.debug}
        self._observer(event)


class _Printed(LoggingFile):
    """A standard stream whose lines are logged; everything but writing is the real stream's."""

    def __init__(self, name: str, real: TextIO | None, observer: Any) -> None:
        """Take the stream's name, the stream, and the log observer that gets its lines."""
        super().__init__(Logger(name, observer=observer), encoding=getattr(real, "encoding", None))
        self._real = real

    def fileno(self) -> int:  # type: ignore[override]  # Twisted's has none
        """Return the real descriptor, for subprocesses and `faulthandler`."""
        return cast(int, self.__getattr__("fileno")())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@contextlib.contextmanager
def printing_logged(observer: Any) -> Iterator[None]:
    """Log what is printed, as twistd does later."""
    out, err = (cast(IO[str], _Printed(name, getattr(sys, name), observer)) for name in PRINTED)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def writer(form: str, stream: TextIO | None, path: str | None, fields: FieldsOfThread) -> logging.Handler:
    """Make the log handler that writes to a file at `path`, else to `stream`, if there is one: UTF-8, line by line.

    The stream's descriptor is written to, past the stream itself: handlers may close or wrap that.
    Raises OSError for a path that can't be written.
    """
    target = ToFile(path) if path is not None else ToDescriptor(stream.fileno()) if stream is not None else None
    if target is None:
        return logging.NullHandler()
    target.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler = QueuedLine(target)
    handler.addFilter(ThreadFields(fields))
    return handler


def install(handler: logging.Handler, level: str) -> None:
    """Make a log handler the process's; a second time, undo what imported modules did to logging in between.

    Besides the root logger, rpcd's own get it and pass nothing on: when a handler replaces what the root logger has
    (`basicConfig(force=True)`, `dictConfig`), then that is for other loggers than rpcd's.
    """
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in OWN:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
        if logger.level == logging.NOTSET:  # else a module has set it, and means it
            logger.setLevel(level.upper())
    for name, known in logging.Logger.manager.loggerDict.items():
        if type(known) is logging.Logger and name.partition(".")[0] in OWN:
            known.disabled = False
            known.__class__ = Steady
    quieten_pika()


def install_file(path: str, fields: FieldsOfThread) -> None:
    """Let a file for the standard library's `fileConfig` (LOGGING_FILE_CONFIG) decide everything; raise what that raises."""
    with open(path, encoding="utf-8"):  # noqa: PTH123  # a missing file is a KeyError to it before Python 3.11.4
        pass
    logging.config.fileConfig(path, disable_existing_loggers=False)
    known = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in (each for each in known if isinstance(each, logging.Logger)):
        logger.handlers[:] = [QueuedHandler(each) for each in logger.handlers]
    for handler in logging.getLogger().handlers:
        handler.addFilter(ThreadFields(fields))
    quieten_pika()


def quieten_pika() -> None:
    """Keep pika from saying what rpcd says better: it logs the first bytes of bodies, and old errors as new ones."""
    logging.getLogger("pika").setLevel(logging.CRITICAL + 1)
