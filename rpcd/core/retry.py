"""Whether and when to try again: the steps of a consumer, the attempt that a message is at, and its deadline."""

import math
from collections.abc import Mapping
from typing import Any

import attrs

COUNT_HEADER = "x-retry-count"
"""How many retries lie behind a message; absent means none."""

NACK_HEADER = "x-rpcd-nacks"
"""How often a handler has put the message off by Nack: it sets the delay and uses up no attempt."""

DEADLINE_HEADER = "x-deadline"
"""When the sender stops waiting, in seconds since the epoch; carried by copies in place of `expiration`."""

CLOCK_SKEW = 60.0
"""How many seconds in the future a sender's `timestamp` may be before it is taken for nonsense."""


@attrs.frozen
class Steps:
    """The retry steps of a consumer.

    `delays` are seconds, each a queue of its own; `attempts` includes the first run. With more attempts than steps the
    last step serves again.
    """

    delays: tuple[float, ...]
    attempts: int

    @property
    def milliseconds(self) -> tuple[int, ...]:
        """The steps as the broker counts them."""
        return tuple(milliseconds(delay) for delay in self.delays)

    def after(self, attempt: int, minimum: float | None = None) -> int | None:
        """Return the step in milliseconds that follows an attempt, or None when all attempts are spent.

        The next step that is at least `minimum` seconds long; the longest when none is.
        """
        if attempt >= self.attempts:
            return None
        return self.delay(attempt - 1, minimum)

    def delay(self, index: int, minimum: float | None = None) -> int | None:
        """Return the step at an index in milliseconds (the last one beyond the end), or None when there are no steps."""
        if not self.delays:
            return None
        steps = self.milliseconds
        wanted = 0.0 if minimum is None else minimum * 1000
        return next((step for step in steps[min(index, len(steps) - 1) :] if step >= wanted), max(steps))


def milliseconds(seconds: float) -> int:
    """Convert seconds to the broker's whole milliseconds, never to none at all."""
    return max(1, round(seconds * 1000))


def counted(headers: Mapping[str, Any], name: str, most: int) -> int:
    """Read a counter from the headers, clamped to 0..`most`: a client may have written anything there."""
    value = headers.get(name)
    return min(max(value, 0), most) if isinstance(value, int) else 0


def deadline(headers: Mapping[str, Any], expiration: Any, timestamp: int | None, received: float) -> float | None:
    """Return when the sender stops waiting, in seconds since the epoch, or None when it set no limit.

    `expiration` counts from the sender's timestamp when that is believable: not in the future, and not so long ago that
    the broker would have expired the message itself. Timestamps are whole seconds, rounded down, so one second is added.
    """
    carried = headers.get(DEADLINE_HEADER)
    if isinstance(carried, int | float) and not isinstance(carried, bool) and math.isfinite(carried):
        return float(carried)
    try:
        seconds = int(expiration) / 1000
    except (TypeError, ValueError, OverflowError):
        return None
    if seconds <= 0:
        return None  # 0 asks for delivery at once or never, and it was delivered
    if timestamp is not None and received - seconds <= timestamp + 1 <= received + CLOCK_SKEW:
        return timestamp + 1 + seconds
    return received + seconds
