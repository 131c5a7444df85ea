"""Run-time control: a unix socket that only its owner may use, one JSON object a line each way.

    {"do": "pause", "consumers": ["orders"]}  ->  {"ok": true, "result": {...}} or {"ok": false, "error": "a sentence"}

`do` is status, pause, resume, level or reload. `consumers` left out means all. `level` takes "level" and perhaps "logger".
"""

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from rpcd.ops import logs

LONGEST_LINE = 64 * 1024

IDLE_SECONDS = 60.0
"""How long a client may be silent, or not read its answer."""

LONGEST_PATH = 107
"""Bytes of a unix socket's path; the system has room for no more."""

log = logging.getLogger("rpcd.control")


class Refused(Exception):
    """A request can't be carried out; its text is the answer."""


# What is asked for --------------------------------------------------------------------------------


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """One line of a client."""

    do: str
    consumers: list[str] | None = None
    level: str | None = None
    logger: str | None = None


_requests = msgspec.json.Decoder(Request)


@attrs.frozen
class Commands:
    """What a client may ask for; reactor only."""

    consumers: Sequence[Any]
    report: Callable[[], Mapping[str, Any]]
    reload: Callable[[], Deferred[list[str]]]
    """Fires with what stands against it; with nothing if it is under way."""
    changed: Callable[[], object]
    """Told after a consumer was paused or resumed."""

    async def carry_out(self, request: Request) -> Any:
        """Carry out one request and return its result; raise Refused."""
        if request.do == "status":
            return self.report()
        if request.do in ("pause", "resume"):
            return self._hold(request.do, request.consumers)
        if request.do == "level":
            return set_level(request.level or "", request.logger)
        if request.do == "reload":
            problems = await self.reload()
            if problems:
                raise Refused("\n".join(problems))
            return {"reload": "all is well; draining, then starting anew"}
        raise Refused(f"{request.do!r} is no command; there are status, pause, resume, level and reload")

    def _hold(self, what: str, names: list[str] | None) -> dict[str, str]:
        known = {consumer.name: consumer for consumer in self.consumers}
        if unknown := [name for name in names or () if name not in known]:
            raise Refused(f"there is no consumer {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
        chosen = [known[name] for name in names] if names else list(known.values())
        if ending := [each.name for each in chosen if each.draining]:
            raise Refused(f"it is stopping already: {', '.join(ending)}")
        for each in chosen:
            getattr(each, what)()
        self.changed()
        return {each.name: each.state for each in chosen}


def set_level(level: str, logger: str | None) -> dict[str, str]:
    """Set the level of one logger, or of rpcd's own log as a whole, until the process ends; raise Refused."""
    names = ("debug", "info", "warning", "error", "critical")
    if level.lower() not in names:
        raise Refused(f"{level!r} is no level; there are {', '.join(names)}")
    if logger is not None and logger.partition(".")[0] == "pika":
        raise Refused("the log of pika stays off: it shows the contents of messages")
    for name in (logger,) if logger else ("", *logs.OWN):
        logging.getLogger(name).setLevel(level.upper())
    log.warning("log level of %s is %s now", logger or "everything", level.lower())
    return {logger or "*": level.lower()}


# The socket ---------------------------------------------------------------------------------------


@implementer(IHalfCloseableProtocol)
class Conversation(LineReceiver, TimeoutMixin):
    """One client; its requests are answered one after the other."""

    delimiter = b"\n"
    MAX_LENGTH = LONGEST_LINE
    transport: Any

    def __init__(self, commands: Commands, clock: Any) -> None:
        """Take what carries out the requests."""
        self._commands = commands
        self.callLater = clock.callLater  # type: ignore[method-assign]  # made to be replaced
        self._busy = self._full = self._said_all = self._gone = False

    def connectionMade(self) -> None:  # noqa: N802  # Twisted's name
        """Begin to listen; a client that does not read is not read from either."""
        self.transport.registerProducer(self, True)
        self._limit(IDLE_SECONDS)

    def lineReceived(self, line: bytes) -> None:  # noqa: N802  # Twisted's name
        """Carry out one request."""
        self._limit(None)
        self._busy = True
        super().pauseProducing()  # type: ignore[no-untyped-call]
        try:
            request = _requests.decode(line)
        except msgspec.DecodeError as error:
            self._answer({"ok": False, "error": f"not a request: {error}"})
            return
        done = Deferred.fromCoroutine(self._commands.carry_out(request))
        done.addCallback(lambda result: {"ok": True, "result": result}).addErrback(self._failed, request)
        done.addCallback(self._answer)

    def _failed(self, failure: Failure, request: Request) -> dict[str, Any]:
        if failure.check(Refused):
            return {"ok": False, "error": str(failure.value)}
        log.error("%s failed: %s", request.do, failure.getTraceback())
        return {"ok": False, "error": f"a fault of rpcd: {failure.getErrorMessage()}"}

    def _answer(self, answer: dict[str, Any]) -> None:
        self._busy = False
        if self._gone:
            return
        self._say(answer)
        if self._said_all:
            self._hang_up()
            return
        self._limit(IDLE_SECONDS)
        self._read_on()

    def _say(self, answer: dict[str, Any]) -> None:
        self.sendLine(msgspec.json.encode(answer))  # type: ignore[no-untyped-call]

    def _limit(self, seconds: float | None) -> None:
        self.setTimeout(seconds)  # type: ignore[no-untyped-call]

    def _read_on(self) -> None:
        if not self._busy and not self._full:
            super().resumeProducing()  # type: ignore[no-untyped-call]

    def pauseProducing(self) -> None:  # noqa: N802  # Twisted's name
        """Be told that the client does not read its answers."""
        self._full = True
        super().pauseProducing()  # type: ignore[no-untyped-call]

    def resumeProducing(self) -> None:  # noqa: N802  # Twisted's name
        """Be told that it reads them again."""
        self._full = False
        self._read_on()

    def stopProducing(self) -> None:  # noqa: N802  # Twisted's name
        """Be told that the connection has gone."""

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002, N802  # Twisted's name
        """Say so, and hang up: where the next line begins is not known."""
        self._say({"ok": False, "error": f"a line is {LONGEST_LINE} bytes at most"})
        self._hang_up()

    def _hang_up(self) -> None:
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def readConnectionLost(self) -> None:  # noqa: N802  # Twisted's name
        """Be told that the client asks no more; it may still wait for an answer."""
        self._said_all = True
        if not self._busy:
            self._hang_up()

    def writeConnectionLost(self) -> None:  # noqa: N802  # Twisted's name
        """Be told that nothing can be written any more; the end follows."""

    def timeoutConnection(self) -> None:  # noqa: N802  # Twisted's name
        """Hang up on who is silent."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Any = None) -> None:  # noqa: ARG002, N802  # Twisted's name
        """Forget the time limit."""
        self._gone = True
        self._limit(None)


def problems(path: str, ours: str | None = None) -> list[str]:
    """Tell why no socket can be made at a path; `ours` is where this process listens already."""
    found = problem(path) or (in_use(path) if path != ours else None)
    return [found] if found is not None else []


def problem(path: str) -> str | None:
    """Tell why no socket can be made at a path, as far as that can be seen without making one."""
    place = Path(path)
    if len(os.fsencode(path)) > LONGEST_PATH:
        return f"{path} is longer than the {LONGEST_PATH} bytes that the path of a socket may have"
    if not place.parent.is_dir():
        return f"there is no directory {place.parent}; make it, or let the unit do that (RuntimeDirectory=)"
    if not os.access(place.parent, os.W_OK | os.X_OK):
        return f"no permission to write to the directory {place.parent}"
    try:
        mode = place.lstat().st_mode
    except OSError:
        return None
    return None if stat.S_ISSOCK(mode) else f"{path} is there already and is no socket; move it away"


def in_use(path: str) -> str | None:
    """Tell that another process listens on a socket, or None; a socket whose process has gone is nobody's."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a full queue of a busy process answers "again"
        try:
            probe.connect(path)
        except BlockingIOError:
            pass
        except OSError:
            return None
    return f"another process listens on {path}; each config needs a path of its own, and one process a config"


class Control:
    """The listening socket."""

    def __init__(self, path: str, commands: Commands, reactor: Any) -> None:
        """Prepare it; nothing is made yet."""
        self.path = path
        self._commands = commands
        self._reactor = reactor
        self._port: Any = None
        self._inode = 0

    def open(self) -> None:
        """Make the socket, 0600 from its first moment, in place of one that a dead process left; raise Refused.

        The umask is the process's: call this before other threads run.
        """
        if found := problems(self.path):
            raise Refused(found[0])
        with contextlib.suppress(FileNotFoundError):
            Path(self.path).unlink()
        factory = Factory.forProtocol(lambda: Conversation(self._commands, self._reactor))
        factory.noisy = False
        before = os.umask(0o177)
        try:
            self._port = self._reactor.listenUNIX(self.path, factory, mode=0o600)
        except CannotListenError as error:
            raise Refused(f"can't listen on {self.path}: {error.socketError}") from None
        finally:
            os.umask(before)
        self._inode = Path(self.path).stat().st_ino

    def close(self) -> None:
        """Stop listening and remove the socket, if it is still ours."""
        port, self._port = self._port, None
        if port is None:
            return
        try:
            ours = Path(self.path).stat().st_ino == self._inode
        except OSError:
            ours = False
        if ours:
            port.stopListening()
        else:
            port.stopReading()
