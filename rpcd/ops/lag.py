"""How late the reactor calls: what blocks it stops heartbeats, acks and replies of all consumers at once."""

import logging
import time
from collections import deque
from typing import Any

PERIOD = 1.0
"""Seconds between two probes."""

REMEMBERED = 60
"""How many probes are remembered: the longest lag of the last minute is what is shown."""

BLOCKED_SECONDS = 1.0
"""A lag that is told in the log."""

QUIET_SECONDS = 10.0
"""How long nothing more is said after such a line; the longest lag in between is told with the next."""

log = logging.getLogger("rpcd")


class Lag:
    """A probe that measures how late it is called; reactor only."""

    def __init__(self, reactor: Any, now: Any = time.monotonic) -> None:
        """Take the reactor and a clock that nobody sets."""
        self.stalls = 0
        """How often the reactor was blocked for longer than `BLOCKED_SECONDS`."""
        self._reactor = reactor
        self._now = now
        self._recent: deque[float] = deque(maxlen=REMEMBERED)
        self._due = 0.0
        self._timer: Any = None
        self._said = -QUIET_SECONDS
        self._untold = 0.0

    @property
    def longest(self) -> float:
        """The longest lag in seconds of the last minute."""
        return max(self._recent, default=0.0)

    def start(self) -> None:
        """Begin to measure."""
        if self._timer is None:
            self._arm()

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _arm(self) -> None:
        self._due = self._now() + PERIOD
        self._timer = self._reactor.callLater(PERIOD, self._turn)

    def _turn(self) -> None:
        now = self._now()
        late = max(0.0, now - self._due)
        self._recent.append(late)
        if late > BLOCKED_SECONDS:
            self.stalls += 1
            self._untold = max(self._untold, late)
        if self._untold and now - self._said >= QUIET_SECONDS:
            log.warning(
                "the reactor was blocked for %.1f s, and with it heartbeats, acks and replies: C code that keeps the GIL, "
                "a handler's callback in the reactor, or a machine that has too little CPU",
                self._untold,
            )
            self._said, self._untold = now, 0.0
        self._arm()
