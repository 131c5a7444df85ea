"""How the process ends: its exit code, whatever twistd does, and a guard against a reactor that no longer can.

This module is imported before anything else of rpcd, so that its hook, which `atexit` runs last, comes after all others.
twistd knows no exit code of its own: it ends with 0 when the reactor is stopped.
"""

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from pathlib import Path

_code: int | None = None
_leaving = threading.Event()

SOFTWARE = 70

LAST_WORDS_SECONDS = 1.0
"""How long the process waits at its end for log lines to be written: a full pipe that nobody reads takes none, ever."""


def _limit_leaving() -> None:
    """End the process soon after `_leave` began, for it may wait for a lock that is never released."""
    _leaving.wait()
    time.sleep(LAST_WORDS_SECONDS)
    os._exit(_code or 0)


_limiter = threading.Thread(target=_limit_leaving, name="rpcd-ending", daemon=True)


def exit_with(code: int) -> None:
    """Set the code that the process ends with; the first one that is not 0 stands."""
    global _code  # noqa: PLW0603  # the process has one exit code
    if _limiter.ident is None:  # now, because from Python 3.12 on no thread can be started at the exit itself
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
        os._exit(_code)


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def guard(seconds: float, pidfile: str | None) -> None:
    """End the process after `seconds`, come what may: a blocked reactor or a thread that never ends can't hold it.

    The pid file is removed, as twistd would have done. A code that was set by then is kept, else it is 70.
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
            os._exit(_code or SOFTWARE)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
