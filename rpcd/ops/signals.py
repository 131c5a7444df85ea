"""The signals that an operator sends: SIGTERM and SIGINT stop, SIGHUP reloads."""

import functools
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

STOP = (signal.SIGTERM, signal.SIGINT)

Told = Callable[[int], object]


def hold_back() -> None:
    """Let a SIGHUP wait until `take`: its own action is death, and there is nothing yet that could be reloaded.

    Not on a terminal: when that is closed while handlers are imported, the process goes with it.
    """
    if not _has_terminal():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def take(stop: Told, reload: Told) -> None:
    """Take the signals over; both are called between any two instructions of the main thread.

    SIGHUP is left alone if it was to be ignored (nohup). It stops when it comes because the terminal has gone: nobody would
    see what goes on in the background. It has been blocked up to here, so that one that came meanwhile counts now.
    """

    def on_stop(number: int, _frame: FrameType | None) -> None:
        stop(number)

    had_terminal = _has_terminal()

    def on_hangup(number: int, _frame: FrameType | None) -> None:
        (stop if had_terminal and not _has_terminal() else reload)(number)

    _leave_to_children()
    for number in STOP:
        signal.signal(number, on_stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, on_hangup)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


@functools.cache
def _leave_to_children() -> None:
    """Let processes that a handler forks die of the signals that only the daemon itself drains or reloads at."""
    usual: dict[signal.Signals, Any] = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
    }

    def after() -> None:
        for number, action in usual.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, action)

    os.register_at_fork(after_in_child=after)
