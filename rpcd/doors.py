"""The operator's doors: what systemd is told, the control socket, health and metrics over HTTP, and the report they show."""

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.python.failure import Failure

from rpcd import __version__
from rpcd.amqp.consumer import Consumer
from rpcd.amqp.depths import Depths
from rpcd.amqp.publisher import Publisher
from rpcd.amqp.waiting import repeating
from rpcd.core.settings import Settings
from rpcd.ops import health, report
from rpcd.ops.control import Commands, Control, Refused
from rpcd.ops.lag import Lag
from rpcd.ops.metrics import Watched, exposition
from rpcd.ops.reload import Origin
from rpcd.ops.systemd import START_SECONDS, Systemd

LOOK_SECONDS = 1.0
"""How often the status text is compared with how it goes."""

EXTEND_TICKS = 10
"""After how many looks systemd is asked for more time again, while it waits for us."""

log = logging.getLogger("rpcd")


class CannotOpen(Exception):
    """A door can't be opened; a person has to change the config or its surroundings."""


@attrs.define
class Phase:
    """Where the process is in its life."""

    stopping: bool = False
    reloading: bool = False
    told_ready: bool = False
    """Whether every consumer has consumed since the start."""
    mistake: str | None = None
    """What a person has to mend, if the process ends over it."""
    refused: str | None = None
    """Why the last reload was refused."""


class Doors:
    """All that an operator sees of the running daemon; reactor only."""

    def __init__(
        self,
        settings: Settings,
        consumers: Sequence[Consumer],
        publisher: Publisher,
        broker: str,
        reactor: Any,
        systemd: Systemd,
        origin: Origin,
    ) -> None:
        """Prepare them; `broker` is its URL without secrets."""
        self.phase = Phase()
        self.systemd = systemd
        self._settings = settings
        self._consumers = consumers
        self._publisher = publisher
        self._broker = broker
        self._reactor = reactor
        self._origin = origin
        self._since = time.time()
        self._status = ""
        self._ticks = 0
        self._control: Control | None = None
        self._http: Any = None
        self._depths: Depths | None = None
        self.lag = Lag(reactor)
        self._looking = repeating(self._look, reactor)
        self._feeding = repeating(self._feed, reactor)

    # Opening and closing --------------------------------------------------------------------------

    def open(self, reload: Any) -> Deferred[None]:
        """Open what is configured; fails with CannotOpen.

        `reload` starts a reload. The control socket is there, or failed, when this returns: no other thread may run yet.
        """
        if self.systemd.listens:
            self._looking.start(LOOK_SECONDS)
        service = self._settings.service
        if service.control is not None:
            commands = Commands(self._consumers, self.report, reload, self.tell)
            self._control = Control(service.control, commands, self._reactor)
            try:
                self._control.open()
            except Refused as error:
                raise CannotOpen(f"service.control: {error}") from None
        if service.http is None:
            return succeed(None)
        return self._listen(service.http)

    def _listen(self, description: str) -> Deferred[None]:
        def listening(port: Any) -> None:
            self._http = port
            log.info("health is told on %s", port.getHost())

        def failed(failure: Failure) -> None:
            failure.trap(CannotListenError, OSError, ValueError)
            error = getattr(failure.value, "socketError", None) or failure.value
            raise CannotOpen(f"service.http: can't listen on {description}: {getattr(error, 'strerror', None) or error}")

        depths = self._depths = Depths([each.plan for each in self._consumers], self._publisher, self._reactor)
        watched = Watched(
            self._consumers, self._publisher, depths, self.lag, self.phase, __version__, self._since, self._is_ready
        )
        try:
            for said in health.warnings(description):
                log.warning("service.http: %s", said)
            port = health.listen(health.endpoint(description, self._reactor), self.report, exposition(watched))
        except ValueError as error:
            raise CannotOpen(f"service.http: {error}") from None
        return port.addCallback(listening).addErrback(failed)

    def begin_feeding(self) -> None:
        """Feed the watchdog from now on, as long as the reactor turns, and measure how well it does."""
        self.lag.start()
        if (seconds := self.systemd.watchdog) is not None:
            self._feeding.start(seconds / 2)

    async def close(self) -> None:
        """Close what is open; what systemd was told last stands."""
        if self._control is not None:
            self._control.close()
        if self._http is not None:
            with contextlib.suppress(Exception):  # the process ends with it anyhow
                await self._http.stopListening()
        if self._depths is not None:
            self._depths.stop()
        if self._looking.running:
            self._looking.stop()
        if self._feeding.running:
            self._feeding.stop()
        self.lag.stop()
        self._feed()
        if self.phase.reloading:  # the next program has an interpreter to start before it can ask for more time itself
            self.systemd.extend(START_SECONDS)

    # The report -----------------------------------------------------------------------------------

    def report(self) -> Mapping[str, Any]:
        """Tell how it goes."""
        consumers, publisher = list(map(report.of_consumer, self._consumers)), report.of_publisher(self._publisher)
        ready = self.phase.told_ready and not self.phase.stopping and report.is_ready(consumers, publisher)
        return {
            "version": __version__,
            "pid": os.getpid(),
            "config": self._origin.config,
            "virtual_host": self._origin.virtual_host,
            "state": self._state(ready),
            "ready": ready,
            "since": self._since,
            "broker": self._broker,
            "refused": self.phase.refused,
            "consumers": consumers,
            "publisher": publisher,
        }

    def _is_ready(self) -> bool:
        return bool(self.report()["ready"])

    def _state(self, ready: bool) -> str:
        phase = self.phase
        if phase.stopping:
            return report.STOPPING
        if phase.reloading:
            return report.RELOADING
        if ready:
            return report.READY
        return report.NOT_READY if phase.told_ready else report.STARTING

    # What systemd is told -------------------------------------------------------------------------

    def _look(self) -> None:
        phase = self.phase
        waits = phase.stopping or phase.reloading or not phase.told_ready
        if waits and self._ticks % EXTEND_TICKS == 0:
            self.systemd.extend()
        self._ticks = self._ticks + 1 if waits else 0
        self.tell()

    def _feed(self) -> None:
        if self.systemd.watchdog is not None:
            self.systemd.tell(WATCHDOG=1)

    def tell(self) -> None:
        """Tell systemd how it goes, if that has changed."""
        if not self.systemd.listens:
            return
        status = self.phase.mistake or report.sentence(self.report())
        if status != self._status:
            self._status = status
            self.systemd.tell(STATUS=status)

    def ready(self) -> None:
        """Be told that every consumer consumes for the first time, or goes on after a refused reload."""
        self.phase.told_ready = True
        self._status = report.sentence(self.report())
        self.systemd.tell(READY=1, STATUS=self._status)

    def reloading(self) -> None:
        """Be told that a reload has begun."""
        self.phase.reloading, self.phase.refused = True, None
        if self.phase.told_ready:
            self._status = report.sentence(self.report())
            self.systemd.reloading(self._status)
        self.systemd.extend()

    def carry_on(self, problems: Sequence[str]) -> None:
        """Be told that a reload was refused, or given up."""
        self.phase.reloading = False
        if problems:
            more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
            self.phase.refused = f"{problems[0]}{more}"
        if self.phase.told_ready and not self.phase.stopping:
            self.ready()

    def stopping(self) -> None:
        """Be told that the process is going to end."""
        self.phase.stopping, self.phase.reloading = True, False
        self._status = self.phase.mistake or report.sentence(self.report())
        self.systemd.tell(STOPPING=1, STATUS=self._status)
        self.systemd.extend()

    def wrong(self, text: str, code: int) -> None:
        """Be told what the process ends over."""
        self.phase.mistake = text
        self.systemd.tell(STATUS=text, EXIT_STATUS=code)
