"""Reloads: config, handlers and code are checked ahead by a fresh process, so that changed modules count.

The daemon goes on meanwhile: a thread of its own waits for the check. What that prints is never shown but for its verdict.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any

import attrs
import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from rpcd.core.errors import ExitCode, Problem
from rpcd.ops.ending import birth
from rpcd.ops.systemd import OURS

CHECK_SECONDS = 60.0
"""How long the check may take; handlers are imported in it."""

BROKER_SECONDS = 20.0
"""How long the broker may take to be asked about the new config; one that is away keeps nobody from reloading."""

MOST_OUTPUT = 1024 * 1024
"""Bytes of the check's output that are looked at, from its end: imported modules may print before the verdict."""

_START = (
    "import sys; place = sys.argv.pop(1); sys.path[:1] = [place] if sys.path[:1] == [''] else sys.path[:1]; "
    "from rpcd.cli import main; main(prog_name='rpcd')"
)
"""`rpcd` with the same places to import from as the daemon: -m and -c would look into the working directory first."""

log = logging.getLogger("rpcd")


@attrs.frozen
class Origin:
    """Where the daemon's settings came from, and whether they can be taken from there again."""

    config: str
    """Absolute path of the config file."""
    virtual_host: str | None = None
    fixed: Callable[[], str | None] = lambda: None
    """Returns why this process can only be restarted, or None."""
    ahead: Callable[[], list[str]] = list
    """Finds what is wrong with the config in the surroundings of this process, after the check has found nothing."""


NOWHERE = Origin("", fixed=lambda: "it was not started from a config file")
"""Settings that were made by a program."""


class _Step(msgspec.Struct):
    """What the broker says to one declaration, binding or permission."""

    result: str
    error: str | None = None


class _Verdict(msgspec.Struct):
    """What `rpcd check --json` says."""

    ok: bool
    problems: list[Problem] = []
    broker: list[_Step] | None = None

    def told(self) -> list[str]:
        """Return what speaks against it; what is missing is waited for, which is no reason to refuse."""
        if self.broker:
            return [step.error for step in self.broker if step.error is not None and step.result == "refused"]
        return list(map(str, self.problems)) or ["the check says no more than no"]


class _GivenUp(Exception):
    """The check was cancelled."""


class Check:
    """One check; `run` starts it, `cancel` ends it early."""

    def __init__(self, origin: Origin, reactor: Any, seconds: float = CHECK_SECONDS) -> None:
        """Prepare it."""
        self._origin = origin
        self._reactor = reactor
        self._seconds = seconds
        self._done: Deferred[list[str]] = Deferred()
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False
        self._mutex = threading.Lock()

    def run(self) -> Deferred[list[str]]:
        """Start the check; fires with what is wrong, one sentence each, or with nothing."""
        threading.Thread(target=self._run, name="rpcd-check", daemon=True).start()
        return self._done

    def cancel(self) -> None:
        """End it; it fires all the same, with a sentence that nobody needs."""
        with self._mutex:
            self._cancelled = True
            if self._process is not None:
                _kill(self._process)

    def _run(self) -> None:
        try:
            problems = self._look() or self._origin.ahead() or self._ask_broker()
        except Exception as error:  # noqa: BLE001  # no memory, no process, no temporary file: it carries on
            problems = [f"the check could not be run: {type(error).__name__}: {error}"]
        self._reactor.callFromThread(self._done.callback, problems)

    def _look(self) -> list[str]:
        try:
            output, code = self._checked(self._seconds)
        except subprocess.TimeoutExpired:
            return [f"the check took longer than {self._seconds:g} s"]
        except _GivenUp:
            return ["the check was given up"]
        return self._judge(output, code)

    def _ask_broker(self) -> list[str]:
        """Return what the new program would end over: a login, a permission or an existing queue that is refused."""
        try:
            output, code = self._checked(BROKER_SECONDS, "--broker")
        except subprocess.TimeoutExpired:
            log.warning("reload: the broker could not be asked about the new config within %g s", BROKER_SECONDS)
            return []
        except _GivenUp:
            return ["the check was given up"]
        if code in (0, ExitCode.CONFIG, ExitCode.NOPERM):
            return self._judge(output, code)
        log.warning("reload: the broker could not be asked about the new config (%s)", _end(code))
        return []

    def _checked(self, seconds: float, *options: str) -> tuple[bytes, int]:
        """Run the check; return the end of what it printed, and its exit code."""
        with tempfile.TemporaryFile() as output:
            with self._mutex:
                if self._cancelled:
                    raise _GivenUp
                self._process = self._start(output, options)
            try:
                code = self._process.wait(seconds)
            finally:
                with self._mutex:
                    process, self._process = self._process, None
                    _kill(process)
                process.wait()
            output.seek(max(0, output.seek(0, os.SEEK_END) - MOST_OUTPUT))
            return output.read(), code

    def _start(self, output: IO[bytes], options: Sequence[str]) -> "subprocess.Popen[bytes]":
        origin = self._origin
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001  # as multiprocessing
        command = [sys.executable, *flags, "-c", _START, birth.place, "check", "--json", "--config", origin.config, *options]
        command += ["--virtual-host", origin.virtual_host] if origin.virtual_host else []
        return subprocess.Popen(  # noqa: S603  # our own command, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=birth.directory,
            env={name: value for name, value in birth.environment.items() if name not in OURS},
            start_new_session=True,
        )

    def _judge(self, output: bytes, code: int) -> list[str]:
        for line in reversed(output.splitlines()):
            with contextlib.suppress(msgspec.DecodeError):
                verdict = msgspec.json.decode(line, type=_Verdict)
                return [] if verdict.ok else verdict.told()
        by_hand = f"run it by hand: rpcd check --config {self._origin.config}"
        return [f"the check ended without a verdict ({_end(code)}); {by_hand}"]


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the check and whatever the modules that it imported have started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


class Reloading:
    """Reloads, one at a time; reactor only."""

    def __init__(
        self, doors: Any, origin: Origin, reactor: Any, go: Callable[[], object], ends: Callable[[], str | None]
    ) -> None:
        """Take who is told of it, what begins the drain, and what tells why there can be none, because an end has begun."""
        self._doors = doors
        self._origin = origin
        self._reactor = reactor
        self._go = go
        self._ends = ends
        self._check: Check | None = None
        self._again = self._repeated = self._going = False
        self._asked: list[Deferred[list[str]]] = []

    def begin(self) -> Deferred[list[str]]:
        """Check everything anew and, if all is well, drain and start anew; fires with what stands against it."""
        if self._going:
            log.info("reload: it is under way already")
            return succeed([])
        if self._check is None and (end := self._ends()) is not None:
            log.warning("no reload: %s", end)
            return succeed([f"no reload: {end}"])
        asked: Deferred[list[str]] = Deferred()
        self._asked.append(asked)
        if self._check is not None:
            log.info("reload: it is being checked already; once more")
            self._again = True  # what was changed since the check began counts, too
        else:
            log.info("reload: checking %s", self._origin.config)
            self._doors.reloading()
            self._again = self._repeated = False
            self._look()
        return asked

    def _look(self) -> None:
        fixed = self._origin.fixed()
        if fixed is not None:
            self._decide([fixed])
            return
        self._check = Check(self._origin, self._reactor)
        self._check.run().addCallback(self._looked).addErrback(self._broken)

    def _looked(self, problems: list[str]) -> None:
        self._check = None
        end = self._ends()
        if end is None and self._again and not self._repeated:
            self._repeated = True  # but no third time: who asks without an end would never get it
            self._look()
        else:
            self._decide(problems if end is None else [end])

    def _broken(self, failure: Failure) -> None:
        log.critical("a fault of rpcd: %s", failure.getTraceback())

    def _decide(self, problems: list[str]) -> None:
        asked, self._asked = self._asked, []
        if problems:
            for problem in problems:
                log.error("reload refused: %s", problem)
            self._doors.carry_on(problems)
        else:
            log.info("reload: all is well; draining, then starting anew")
            self._going = True
        for each in asked:
            each.callback(problems)
        if self._going:
            self._go()

    def cancel(self) -> None:
        """Give up a check that is under way."""
        if self._check is not None:
            self._check.cancel()
