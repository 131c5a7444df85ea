"""How the process ends: its exit code, whatever twistd does, a guard against a reactor that no longer can, a new beginning.

This module is imported before anything else of rpcd, so that its hook, which `atexit` runs last, comes after all others.
twistd knows no exit code of its own: it ends with 0 when the reactor is stopped. A reload ends the process like any stop,
but for its last step: there it executes itself, with the command line, environment, directory and descriptors that it was
started with, which are noted here, before anybody can change them.
"""

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

_code: int | None = None
_leaving = threading.Event()

SOFTWARE = 70
TEMPFAIL = 75

LAST_WORDS_SECONDS = 1.0
"""How long the process waits at its end for log lines to be written: a full pipe that nobody reads takes none, ever."""

_FIRST_PASSED_SOCKET = 3
"""The number of the first socket that systemd passes on (LISTEN_FDS)."""


class Birth:
    """What the process was started with."""

    def __init__(self) -> None:
        """Note it."""
        self.command = [sys.executable, *sys.orig_argv[1:]]
        self.environment = _environment()
        self.place = sys.path[0] if sys.path else ""
        """Where the script lies, which is the first place that Python looks for modules in."""
        self.directory = "/"
        with contextlib.suppress(OSError):  # it was removed
            self.directory = str(Path.cwd())
        self.umask = os.umask(0o077)
        os.umask(self.umask)
        ours = self.environment.get("LISTEN_PID") == str(os.getpid())
        passed = self.environment.get("LISTEN_FDS", "") if ours else ""
        self._passed: dict[int, int] = {}
        for number in range(_FIRST_PASSED_SOCKET, _FIRST_PASSED_SOCKET + int(passed) if passed.isdigit() else 0):
            with contextlib.suppress(OSError):  # whoever uses one may close it, but it has to be there again
                self._passed[number] = os.dup(number)
        self._descriptors = _descriptors()

    def again(self) -> NoReturn:
        """Execute the same command; raises OSError if that fails.

        SIGHUP is blocked across it and unblocked when the service has started: until then it would end the process.
        """
        for stray in _descriptors() - self._descriptors:
            with contextlib.suppress(OSError):
                os.set_inheritable(stray, False)
        for number, kept in self._passed.items():
            os.dup2(kept, number, inheritable=True)
        with contextlib.suppress(OSError):
            os.chdir(self.directory)
        os.umask(self.umask)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        os.execve(self.command[0], self.command, self.environment)  # noqa: S606  # our own command, no shell wanted


def _environment() -> dict[str, str]:
    """Return what the process was given; Twisted takes variables of systemd's out of os.environ when it is imported."""
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return dict(os.environ)
    return dict(os.fsdecode(entry).split("=", 1) for entry in entries if b"=" in entry)


def _descriptors() -> set[int]:
    try:
        return {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208  # names, no paths
    except OSError:
        return set()


birth = Birth()
_anew = False


def start_anew(wanted: bool = True) -> None:
    """Let the process execute itself where it would end with 0 or 75; or no longer."""
    global _anew  # noqa: PLW0603  # the process has one end
    _anew = wanted


def _end(code: int) -> NoReturn:
    """End the process now, or let it begin again."""
    if _anew and code in (0, TEMPFAIL):
        try:
            birth.again()
        except OSError as error:
            said = f"could not start anew: {birth.command[0]}: {error.strerror}"
            code = SOFTWARE
            with contextlib.suppress(Exception):
                logging.getLogger("rpcd").critical("%s", said)
                _flush()
    os._exit(code)


def _limit_leaving() -> None:
    """End the process soon after `_leave` began, for it may wait for a lock that is never released."""
    _leaving.wait()
    time.sleep(LAST_WORDS_SECONDS)
    _end(_code or 0)


_limiter: threading.Thread | None = None


def exit_with(code: int) -> None:
    """Set the code that the process ends with; the first one that is not 0 stands."""
    global _code, _limiter  # noqa: PLW0603  # the process has one exit code
    if _limiter is None:  # now: before, the process may fork yet; from Python 3.12 on no thread starts at the exit itself
        _limiter = threading.Thread(target=_limit_leaving, name="rpcd-ending", daemon=True)
        _limiter.start()
    if not _code:
        _code = int(code)


def exit_code() -> int | None:
    """Return the code that was set, or None."""
    return _code


@atexit.register
def _leave() -> None:
    if _code is not None:
        _leaving.set()
        _flush()
        _end(_code)


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def guard(seconds: float, pidfile: str | None) -> None:
    """End the process after `seconds`, come what may: a blocked reactor or a thread that never ends can't hold it.

    The pid file is removed, as twistd would have done. A code that was set by then is kept, else it is 70; a process that
    was to start anew does so.
    """

    def say() -> None:
        logging.getLogger("rpcd").critical("did not end by itself within %g s", seconds)
        _flush()

    def end() -> None:
        try:
            if pidfile:
                with contextlib.suppress(OSError):
                    Path(pidfile).unlink()
            last_words = threading.Thread(target=say, daemon=True)  # a stuck thread may hold a lock of the log
            last_words.start()
            last_words.join(LAST_WORDS_SECONDS)
        finally:
            _end(_code or (0 if _anew else SOFTWARE))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # no thread can be started any more: the process is ending by itself
        timer.start()
