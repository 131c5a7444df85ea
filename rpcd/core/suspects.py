"""Which messages may be what ends the process, and must run alone until that is known.

Theory. A handler can end its process: `os._exit`, a fault in a C library, too much memory. The broker then counts one more
return for *every* message that the process had in hand, and at the delivery limit it convicts them all, the culprit and its
neighbours. So a message that has come back often is a suspect: it runs with nothing else in hand, and only the culprit's
count goes on rising. Reconnections, stops and `Nack(delay=0)` count as well. That is why one return is not enough; and what
this process has run and given back itself is known to do no harm.

Only quorum queues count (`x-delivery-count`). A message is still delivered when its count has reached the delivery limit,
and given up at the return after that one. So it is a suspect at the limit at the latest, however small that is.
"""

from typing import Any

from rpcd.core.message import Message
from rpcd.core.pipeline import Job

COUNT_HEADER = "x-delivery-count"
"""How often a message has come back to its quorum queue; RabbitMQ from 4.0 on leaves it out where it would be 0."""

RETURNS = 3
"""How often a message must have come back to be a suspect, unless its queue gives up sooner."""

KEPT = 10_000
"""How many messages that did no harm are remembered."""


def returns(message: Message[Any]) -> int:
    """Return how often the broker says that a message has come back."""
    count = message.headers.get(COUNT_HEADER)
    return count if isinstance(count, int) and not isinstance(count, bool) else 0


class Suspicion:
    """What one consumer holds against messages that came back; reactor only."""

    def __init__(self, limit: int | None) -> None:
        """Take the queue's delivery limit; less than 0 is none, and None means that the queue does not count."""
        self.counts = limit is not None
        """Whether the queue counts returns at all."""
        self._limit = limit if limit is not None and limit >= 0 else None
        self._least = RETURNS if self._limit is None else max(1, min(RETURNS, self._limit))
        self._harmless: dict[int, None] = {}

    def falls_on(self, job: Job) -> bool:
        """Tell whether a redelivered job must run alone."""
        return self.counts and returns(job.message) >= self._least and _mark(job) not in self._harmless

    def spares(self, job: Job) -> bool:
        """Tell whether a suspect may go back to its queue once more without being given up there."""
        return self._limit is None or returns(job.message) < self._limit

    def acquit(self, job: Job) -> None:
        """Remember that a job has run here, and is given back by its own outcome."""
        if self.counts:
            mark = _mark(job)
            self._harmless.pop(mark, None)
            self._harmless[mark] = None
            if len(self._harmless) > KEPT:
                del self._harmless[next(iter(self._harmless))]


def _mark(job: Job) -> int:
    """Return what a message is recognised by here: without an id, an equal body does."""
    return hash(job.message.payload if job.identity is None else job.identity)
