"""One stream of log lines for rpcd, Twisted, pika and the handlers: text for people or JSON for machines.

Everything goes through the standard library's logging, so handlers log as they always do. A line carries the fields of the
message that it is about; a handler's own line gets them from the thread that it was written in. Bodies, headers and secrets
are never logged by rpcd; what comes from outside is escaped, so that nobody can forge a line.
"""

import datetime as dt
import logging
import logging.config
import logging.handlers
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import msgspec
from twisted.logger import ILogObserver, LogEvent, LogLevel, STDLibLogObserver
from zope.interface import implementer

FIELDS = ("connection", "consumer", "queue", "correlation_id", "message_id", "attempt", "verdict", "error")
"""What a line may tell about the message or connection that it is about, in this order."""

LONGEST_FIELD = 200

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
        return formatter.formatException(record.exc_info)
    return getattr(record, "trace", None) or ""


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
        return "\n  | ".join((line, *trace.splitlines())) if trace else line


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
        return msgspec.json.encode({name: _encodable(value) for name, value in found.items()}).decode()


def _encodable(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


@implementer(ILogObserver)
class ToStandardLibrary:
    """Hands Twisted's own log events to the standard library's logging."""

    def __init__(self) -> None:
        """Send everything to the logger `twisted`."""
        self._observer = STDLibLogObserver("twisted")

    def __call__(self, event: LogEvent) -> None:
        """Pass one event on; printed output of handlers keeps its own name, start-up talk is for debugging."""
        if event.get("log_namespace") == "stdout":
            logging.getLogger("stdout").info("%s", event.get("log_io", ""))
            return
        if event.get("log_level") is LogLevel.info:
            event = {**event, "log_level": LogLevel.debug}
        self._observer(event)


def set_up(
    form: str, level: str, stream: TextIO | None, path: str | None, fields: FieldsOfThread, file_config: str | None
) -> None:
    """Set logging up for the process: to a file at `path`, else to `stream`.

    With `file_config` (LOGGING_FILE_CONFIG) the standard library's `fileConfig` decides everything instead. Raises OSError
    for a path that can't be written and whatever `fileConfig` raises.
    """
    if file_config is not None:
        logging.config.fileConfig(file_config, disable_existing_loggers=False)
    else:
        handler: logging.Handler = (
            logging.handlers.WatchedFileHandler(path) if path else logging.StreamHandler(stream or sys.stdout)
        )
        handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
        root = logging.getLogger()
        root.handlers[:] = [handler]
        root.setLevel(level.upper())
    for each in logging.getLogger().handlers:
        each.addFilter(ThreadFields(fields))
    quieten_pika()


def quieten_pika() -> None:
    """Keep pika from saying what rpcd says better: it logs the first bytes of bodies, and old errors as new ones."""
    logging.getLogger("pika").setLevel(logging.CRITICAL + 1)
