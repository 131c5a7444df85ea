"""`twistd rpcd`: the options, and the service that they make."""

from rpcd.ops import ending  # first of all: its exit hook has to come after everybody else's

# ruff: noqa: I001
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import attrs
from twisted.application.service import IService
from twisted.logger import ILogObserver
from twisted.python import usage
from twisted.python.components import Componentized

from rpcd.amqp.consumer import Consumer
from rpcd.amqp.outcomes import fields
from rpcd.amqp.waiting import steady
from rpcd.config import CONFIG, VIRTUAL_HOST, assemble, read
from rpcd.core.errors import ExitCode, Problem, SettingsError
from rpcd.core.settings import Logging, Settings
from rpcd.files import stale
from rpcd.ops import health, logs, signals
from rpcd.ops.control import problems
from rpcd.ops.log_queue import LOG_QUEUE
from rpcd.ops.reload import Origin
from rpcd.ops.systemd import START_SECONDS, Systemd
from rpcd.service import Daemon


LOG_FORMAT = "RPCD_LOG_FORMAT"
"""The environment variable that wins over the format in [logging]."""


FORMATS: Mapping[str, Literal["text", "json"]] = {"text": "text", "json": "json"}


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


class Refusal(Exception):
    """The process can't be started like this; a person has to mend what the text says."""


def makeService(options: Options, environment: Mapping[str, str] = os.environ) -> IService:  # noqa: N802  # Twisted's name
    """Make the service, or say on standard error what is wrong with the config and end with 78."""
    signals.hold_back()
    systemd = Systemd.take(environment)
    systemd.tell(STATUS="reading the config, importing handlers")
    systemd.extend(START_SECONDS)  # not WATCHDOG=1: that would start it at a first start, and cut the time short at a reload
    try:
        return cast(IService, _make(options, environment, systemd))
    except (Refusal, SettingsError) as error:
        systemd.tell(STATUS=error, EXIT_STATUS=int(ExitCode.CONFIG))
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        raise SystemExit(int(ExitCode.CONFIG)) from None


def _make(options: Options, environment: Mapping[str, str], systemd: Systemd) -> LoggedDaemon:
    path = options["config"] or environment.get(CONFIG)
    if not path:
        raise Refusal(f"no config file: give --config FILE, or set {CONFIG}")
    virtual_host = options["virtual-host"] or environment.get(VIRTUAL_HOST) or None
    twistd: Mapping[str, Any] = options.parent or {}
    log = Log(twistd, environment)
    wanted = _logging(
        read(path, environment, virtual_host)[0], environment
    )  # problems are told by `assemble`, with all others
    with log.during_imports(wanted):
        settings, plans = assemble(path, environment, virtual_host)
    from twisted.internet import reactor  # noqa: PLC0415  # importing it installs it, which is for a daemon only

    steady(reactor)
    _check_doors(settings, path, reactor)
    origin = _origin(str(Path(path).absolute()), virtual_host, environment, twistd, settings.service.control)
    daemon = LoggedDaemon(settings, plans, reactor, twistd.get("pidfile") or None, environment, origin, systemd)
    daemon.observer = log.observer
    log.consumers = daemon.consumers
    return daemon


def _logging(settings: Settings, environment: Mapping[str, str]) -> Logging:
    """Return how to log; the environment's format wins, for whoever starts the daemon and reads its lines."""
    if (form := environment.get(LOG_FORMAT)) is None:
        return settings.logging
    if (known := FORMATS.get(form)) is not None:
        return attrs.evolve(settings.logging, format=known)
    raise Refusal(f"{LOG_FORMAT}: {form!r} is not one of {', '.join(FORMATS)}")


def _check_doors(settings: Settings, path: str, reactor: Any) -> None:
    """Find out as early as possible what the daemon could not listen on."""
    service, wrong = settings.service, []
    if service.control is not None:
        wrong += [Problem(f"{path}: service.control", what) for what in problems(service.control)]
    if service.http is not None:
        try:
            health.endpoint(service.http, reactor)
        except ValueError as error:
            wrong.append(Problem(f"{path}: service.http", str(error)))
    if wrong:
        raise SettingsError(wrong)


def _origin(
    path: str, virtual_host: str | None, environment: Mapping[str, str], twistd: Mapping[str, Any], control: str | None
) -> Origin:
    """Tell where the settings came from, what stands against a reload, and what only this process can find wrong."""
    changed = [f"--{name}" for name in ("uid", "gid", "chroot") if twistd.get(name) is not None]

    def fixed() -> str | None:
        if changed:
            return f"twistd was given {', '.join(changed)}, which can't be done twice; restart it instead"
        found = stale(path, environment)
        return str(found) if found is not None else None

    def ahead() -> list[str]:
        try:
            service = read(path, environment, virtual_host)[0].service
        except SettingsError as error:
            return list(map(str, error.problems))
        if service.control is None:
            return []
        found = problems(service.control, ours=control)
        return [str(Problem(f"{path}: service.control", what)) for what in found]

    return Origin(path, virtual_host, fixed, ahead)


class Log:
    """Logging where twistd would: to standard output with -n, else to its log file; --syslog and --logger stay its own."""

    def __init__(self, twistd: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Take twistd's own options and the environment."""
        self.consumers: list[Consumer] = []
        self.observer = None if twistd.get("syslog") or twistd.get("logger") else logs.ToStandardLibrary()
        self._file_config = environment.get("LOGGING_FILE_CONFIG") or None
        self._stays = bool(twistd.get("nodaemon"))
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
            self._start_queue()
        else:
            with _refusing("the log file"):
                handler = logs.writer(wanted.format, sys.stdout or sys.stderr, self._path, self._of_thread)
            logs.install(handler, wanted.level)
            self._start_queue()
            with logs.printing_logged(self.observer):
                yield
            logs.install(handler, wanted.level)

    def _start_queue(self) -> None:
        """Write in a thread as early as possible; a process that is to fork starts it with its service."""
        if self._stays:
            LOG_QUEUE.start()

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
        raise Refusal(f"{what}: {type(error).__name__}: {error}") from None


__all__ = ["Options", "ending", "makeService"]
