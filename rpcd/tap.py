"""`twistd rpcd`: the options, and the service that they make."""

from rpcd.ops import ending  # first of all: its exit hook has to come after everybody else's

# ruff: noqa: I001
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, cast

from twisted.application.service import IService
from twisted.logger import ILogObserver
from twisted.python import usage
from twisted.python.components import Componentized

from rpcd.amqp.consumer import Consumer
from rpcd.amqp.outcomes import fields
from rpcd.config import CONFIG, VIRTUAL_HOST, assemble, read
from rpcd.core.errors import ExitCode, SettingsError
from rpcd.core.settings import Logging
from rpcd.ops import logs
from rpcd.service import Daemon


class Options(usage.Options):
    """What comes behind `twistd rpcd`."""

    synopsis = "[--config FILE] [--virtual-host NAME]"
    longdesc = "Runs the consumers of one config file. Example: twistd -n rpcd --config /etc/rpcd/shop.toml"
    optParameters: ClassVar = [  # noqa: N815  # Twisted's name
        ["config", "c", None, f"The config file (TOML or YAML); {CONFIG} in the environment if not given."],
        [
            "virtual-host",
            None,
            None,
            f"Lay the file's [virtual_hosts.NAME] over its other sections; {VIRTUAL_HOST} in the environment if not given.",
        ],
    ]


class LoggedDaemon(Daemon):
    """A daemon that brings its own log observer to the twistd that runs it."""

    observer: Any = None

    def setServiceParent(self, parent: Any) -> None:  # noqa: N802  # Twisted's name
        """Give the application our observer, unless an operator has named another one to twistd."""
        if self.observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.observer)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]


def makeService(options: Options, environment: Mapping[str, str] = os.environ) -> IService:  # noqa: N802  # Twisted's name
    """Make the service, or say on standard error what is wrong with the config and end with 78."""
    path = options["config"] or environment.get(CONFIG)
    if path is None:
        refuse(f"no config file: give --config FILE, or set {CONFIG}")
    virtual_host = options["virtual-host"] or environment.get(VIRTUAL_HOST) or None
    twistd: Mapping[str, Any] = options.parent or {}
    log = Log(twistd, environment)
    try:
        wanted = read(path, environment, virtual_host)[0].logging  # its problems are told by `assemble`, with all others
        with log.during_imports(wanted):
            settings, plans = assemble(path, environment, virtual_host)
    except SettingsError as error:
        refuse("\n".join(map(str, error.problems)))
    from twisted.internet import reactor  # noqa: PLC0415  # importing it installs it, which is for a daemon only

    daemon = LoggedDaemon(settings, plans, reactor, twistd.get("pidfile") or None, environment)
    daemon.observer = log.observer
    log.consumers = daemon.consumers
    return cast(IService, daemon)


def refuse(text: str) -> NoReturn:
    """End the process with 78, before anything has been started."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    raise SystemExit(int(ExitCode.CONFIG))


class Log:
    """Logging where twistd would: to standard output with -n, else to its log file; --syslog and --logger stay its own."""

    def __init__(self, twistd: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Take twistd's own options and the environment."""
        self.consumers: list[Consumer] = []
        self.observer = None if twistd.get("syslog") or twistd.get("logger") else logs.ToStandardLibrary()
        self._file_config = environment.get("LOGGING_FILE_CONFIG")
        path = twistd.get("logfile")
        if path == "-":
            path = None
        elif not path and not twistd.get("nodaemon"):
            path = "twistd.log"
        self._path = str(Path(path).resolve()) if path else None

    @contextlib.contextmanager
    def during_imports(self, wanted: Logging) -> Iterator[None]:
        """Set logging up before handlers are imported, and undo afterwards what their modules did to it.

        A LOGGING_FILE_CONFIG has the last word instead, and no other.
        """
        if self.observer is None:
            yield
        elif self._file_config is not None:
            yield
            with _refusing("LOGGING_FILE_CONFIG"):
                logs.install_file(self._file_config, self._of_thread)
        else:
            with _refusing("the log file"):
                handler = logs.writer(wanted.format, sys.stdout or sys.stderr, self._path, self._of_thread)
            logs.install(handler, wanted.level)
            with logs.printing_logged(self.observer):
                yield
            logs.install(handler, wanted.level)

    def _of_thread(self) -> dict[str, Any]:
        """Return the fields of the message that the calling thread is handling."""
        found = (worker for consumer in self.consumers if (worker := consumer.workers.of_this_thread()) is not None)
        job = next((worker.job for worker in found), None)
        return fields(job.message) if job is not None else {}


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001  # fileConfig raises whatever its file makes it raise
        refuse(f"{what}: {type(error).__name__}: {error}")


__all__ = ["Options", "ending", "makeService"]
