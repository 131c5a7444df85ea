"""`twistd rpcd`: the options, and the service that they make."""

from rpcd.ops import ending  # first of all: its exit hook has to come after everybody else's

# ruff: noqa: I001
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, cast

from twisted.application.service import IService
from twisted.logger import ILogObserver
from twisted.python import usage
from twisted.python.components import Componentized

from rpcd.amqp.outcomes import fields
from rpcd.config import CONFIG, assemble
from rpcd.core.errors import ExitCode, SettingsError
from rpcd.core.settings import Logging
from rpcd.ops import logs
from rpcd.service import Daemon


class Options(usage.Options):
    """What comes behind `twistd rpcd`."""

    synopsis = "[--config FILE]"
    longdesc = "Runs the consumers of one config file. Example: twistd -n rpcd --config /etc/rpcd/shop.toml"
    optParameters: ClassVar = [  # noqa: N815  # Twisted's name
        ["config", "c", None, f"The config file (TOML); {CONFIG} in the environment if not given."]
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
    try:
        settings, plans = assemble(path, environment)
    except SettingsError as error:
        refuse("\n".join(map(str, error.problems)))
    from twisted.internet import reactor  # noqa: PLC0415  # importing it installs it, which is for a daemon only

    twistd: Mapping[str, Any] = options.parent or {}
    daemon = LoggedDaemon(settings, plans, reactor, twistd.get("pidfile") or None, environment)
    _set_up_logging(daemon, settings.logging, twistd, environment)
    return cast(IService, daemon)


def refuse(text: str) -> NoReturn:
    """End the process with 78, before anything has been started."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    raise SystemExit(int(ExitCode.CONFIG))


def _set_up_logging(
    daemon: LoggedDaemon, wanted: Logging, twistd: Mapping[str, Any], environment: Mapping[str, str]
) -> None:
    """Log where twistd would: to standard output with -n, else to its log file; --syslog and --logger stay its own."""
    if twistd.get("syslog") or twistd.get("logger"):
        return
    path = twistd.get("logfile")
    if path == "-":
        path = None
    elif not path and not twistd.get("nodaemon"):
        path = "twistd.log"

    def of_thread() -> dict[str, Any]:
        found = (worker for consumer in daemon.consumers if (worker := consumer.workers.of_this_thread()) is not None)
        job = next((worker.job for worker in found), None)
        return fields(job.message) if job is not None else {}

    file_config = environment.get("LOGGING_FILE_CONFIG")
    try:
        logs.set_up(
            wanted.format, wanted.level, sys.stdout, str(Path(path).resolve()) if path else None, of_thread, file_config
        )
    except Exception as error:  # noqa: BLE001  # fileConfig raises whatever its file makes it raise
        refuse(f"{'LOGGING_FILE_CONFIG' if file_config else 'the log file'}: {type(error).__name__}: {error}")
    daemon.observer = logs.ToStandardLibrary()


__all__ = ["Options", "ending", "makeService"]
