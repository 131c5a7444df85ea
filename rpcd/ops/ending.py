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
from pathlib import Path

_code: int | None = None

SOFTWARE = 70


def exit_with(code: int) -> None:
    """Set the code that the process ends with; the first one that is not 0 stands."""
    global _code  # noqa: PLW0603  # the process has one exit code
    if not _code:
        _code = int(code)


def exit_code() -> int | None:
    """Return the code that was set, or None."""
    return _code


@atexit.register
def _leave() -> None:
    if _code is not None:
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

    def end() -> None:
        if pidfile:
            with contextlib.suppress(OSError):
                Path(pidfile).unlink()
        logging.getLogger("rpcd").critical("did not end by itself within %g s", seconds)
        _flush()
        os._exit(_code or SOFTWARE)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
