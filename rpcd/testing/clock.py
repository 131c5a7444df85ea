"""Time that stands still until a test lets it pass."""

import heapq
import itertools
from collections.abc import Callable

Action = Callable[[], object]


class Clock:
    """A clock, and what is to happen at which time; seconds since the epoch."""

    def __init__(self, now: float) -> None:
        """Begin at a time."""
        self.now = now
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Action]] = []

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def later(self, seconds: float, action: Action) -> None:
        """Have something happen when so many seconds have passed."""
        heapq.heappush(self._due, (self.now + seconds, next(self._numbers), action))

    @property
    def next(self) -> float | None:
        """When something will happen; None if nothing waits."""
        return self._due[0][0] if self._due else None

    def step(self, until: float) -> bool:
        """Go to the next time at which something happens, and let it happen; False if nothing does `until` then."""
        if not self._due or self._due[0][0] > until:
            self.now = max(self.now, until)
            return False
        when, _, action = heapq.heappop(self._due)
        self.now = max(self.now, when)
        action()
        return True
