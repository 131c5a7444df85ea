"""Telling systemd how it goes: the protocol of sd_notify(3), over the socket that NOTIFY_SOCKET names."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping, MutableMapping

OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""What systemd tells this process alone: a program that a handler starts must not speak for it."""

EXTEND_SECONDS = 60
"""How much longer systemd is asked to wait, each time it is asked."""

START_SECONDS = 120
"""How long importing the handlers may take, and on_start: the reactor, which feeds the watchdog, does not turn then."""

LONGEST_STATUS = 1000
"""Characters of a status text; a datagram has to hold it."""

MOST_LATE = 20
"""How many messages are kept for later; beyond it only those that name a state are."""

STATES = frozenset(("READY", "RELOADING", "STOPPING"))

log = logging.getLogger("rpcd.systemd")


class Systemd:
    """The way to the service manager, if one started us; never blocks, never raises; one thread at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Find out who listens, and how often it wants to hear from us; the environment stays as it is."""
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._usec = environment.get("WATCHDOG_USEC", "")
        self._pid = environment.get("WATCHDOG_PID", "")
        self._socket: socket.socket | None = None
        self._late: list[dict[str, object]] = []
        self._failed = False

    @classmethod
    def take(cls, environment: Mapping[str, str]) -> "Systemd":
        """Find the way, and take the variables out of the environment so that no child inherits them."""
        found = cls(environment)
        if isinstance(environment, MutableMapping):
            for name in OURS:
                environment.pop(name, None)
        return found

    @property
    def listens(self) -> bool:
        """Whether there is somebody to tell."""
        return bool(self._address)

    @property
    def watchdog(self) -> float | None:
        """Seconds within which systemd wants to hear of us again and again; None if it does not, or not of this process."""
        ours = not self._pid or self._pid == str(os.getpid())
        with contextlib.suppress(ValueError):
            return int(self._usec) / 1e6 if ours and self.listens and int(self._usec) > 0 else None
        return None

    def tell(self, **said: object) -> None:
        """Send `NAME=value` lines as one message; what can't be sent now is sent ahead of the next one."""
        if not self.listens:
            return
        self._late.append(said)
        if len(self._late) > MOST_LATE:
            self._late = [each for each in self._late if STATES & each.keys()]
        try:
            self._send()
        except OSError as error:
            if not self._failed:
                log.debug("systemd could not be told %s: %s", ", ".join(said), error)
            self._failed = True

    def _send(self) -> None:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        while self._late:
            lines = "\n".join(f"{name}={_line(value)}" for name, value in self._late[0].items())
            self._socket.sendto(lines.encode("utf-8", "backslashreplace"), self._address)
            del self._late[0]

    def extend(self, seconds: int = EXTEND_SECONDS) -> None:
        """Ask for more time to start, reload or stop; the watchdog waits as long, until WATCHDOG=1 is told."""
        self.tell(EXTEND_TIMEOUT_USEC=seconds * 1_000_000)

    def reloading(self, status: str) -> None:
        """Say that a reload begins; READY=1 ends it."""
        self.tell(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000, STATUS=status)


def _line(value: object) -> str:
    """Keep a value on one line: each line is an assignment of its own."""
    return " ".join(str(value).split())[:LONGEST_STATUS]
