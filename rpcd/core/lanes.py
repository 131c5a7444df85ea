"""One at a time per key: a busy key parks the job, never the thread; an idle key is forgotten."""

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

JobT = TypeVar("JobT")


class Lanes(Generic[JobT]):
    """The lanes of one consumer. Not thread-safe: callers hold the consumer's mutex."""

    def __init__(self) -> None:
        """Start with no lane at all."""
        self._parked: dict[Hashable, deque[JobT]] = {}

    def __len__(self) -> int:
        return len(self._parked)

    @property
    def parked(self) -> int:
        """How many jobs are parked; needs no mutex, for copying the lanes is one step of the interpreter."""
        return sum(map(len, list(self._parked.values())))

    def enter(self, key: Hashable, job: JobT) -> bool:
        """Take the lane of a key and return True, or park the job behind the one that has it and return False."""
        parked = self._parked.get(key)
        if parked is None:
            self._parked[key] = deque()
            return True
        parked.append(job)
        return False

    def leave(self, key: Hashable) -> JobT | None:
        """End the job that has a lane and return the one that has it now, or None: the key is forgotten then."""
        parked = self._parked[key]
        if parked:
            return parked.popleft()
        del self._parked[key]
        return None

    def waiting(self) -> Iterator[JobT]:
        """Go through all parked jobs, lane by lane, in the order in which they will run."""
        for parked in self._parked.values():
            yield from parked

    def remove(self, done: Callable[[JobT], bool]) -> list[JobT]:
        """Take out the parked jobs of which a function says so; the others keep their places."""
        found: list[JobT] = []
        for key, parked in self._parked.items():
            kept: deque[JobT] = deque()
            for job in parked:
                (found if done(job) else kept).append(job)
            self._parked[key] = kept
        return found

    def clear(self) -> list[JobT]:
        """Take out all parked jobs; running ones keep their lanes until they leave."""
        found = list(self.waiting())
        for parked in self._parked.values():
            parked.clear()
        return found
