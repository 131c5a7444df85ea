"""What became of every message: the books of the client against those of the handlers."""

import bisect
import collections
import itertools
from collections.abc import Mapping, Sequence

import attrs
from book import Line, Tail, done
from client import Books
from faults import Fault


class Waiting:
    """Confirmed messages that have not come to their end yet; one thread."""

    def __init__(self, books: Books, tails: Sequence[Tail]) -> None:
        """Know nothing yet."""
        self._books, self._tails = books, tails
        self._names: set[str] = set()
        self._done: set[str] = set()
        self._seen = 0
        self._read = [0] * len(tails)

    def count(self) -> int:
        """Return how many there are right now."""
        fresh = self._books.confirmed[self._seen :]
        self._seen += len(fresh)
        self._names.update(name for name, _ in fresh)
        for number, tail in enumerate(self._tails):
            tail.read()
            lines = tail.lines[self._read[number] :]
            self._read[number] += len(lines)
            self._done.update(line.name for line in lines if line.word == "done" or _answered(line))
        ended = (self._done, self._books.archived, self._books.replies)
        self._names = {name for name in self._names if not any(name in each for each in ended)}
        return len(self._names)


def _answered(line: Line) -> bool:
    return line.word == "failed" and line.name.startswith("ask")  # a request is answered, anything else is tried again


@attrs.frozen
class Account:
    """The result of a soak."""

    confirmed: int
    ended: collections.Counter[str]
    """How many ended where: done, archive, failed, left in a queue, lost, elsewhere."""
    lost: list[str]
    elsewhere: list[str]
    """Ended, but not where they should have, with both places."""
    unheard: list[str]
    """Handled, but what their handler published never arrived."""
    unanswered: int
    """Requests that were handled and whose reply was never seen."""
    twice: collections.Counter[str]
    """Runs more than one a message, by cause."""
    copies: int
    """Archived copies more than one a message."""


def settle(books: Books, tails: Sequence[Tail], left: Mapping[str, int], faults: Sequence[Fault]) -> Account:
    """Find every confirmed id again; call it when all has come to rest."""
    runs = done(tails)
    failed = {line.name for tail in tails for line in tail.lines if _answered(line)}
    ended: collections.Counter[str] = collections.Counter()
    lost, elsewhere = [], []
    for name, place in books.confirmed:
        found = {
            "done": name in runs,
            "archive": name in books.archived,
            "failed": name in failed,
            "left in a queue": bool(left.get(name)),
        }
        places = [each for each, there in found.items() if there]
        ended[place if place in places else places[0] if places else "lost"] += 1
        if not places:
            lost.append(name)
        elif place not in places:
            elsewhere.append(f"{name}: {place} expected, {', '.join(places)} found")
    known = {name for name, _ in books.confirmed}
    requests = [name for name in known if name.startswith("ask") and (name in runs or name in failed)]
    return Account(
        confirmed=len(known),
        ended=ended,
        lost=lost,
        elsewhere=elsewhere,
        unheard=sorted(name for name in books.newsworthy if name in runs and name not in books.news),
        unanswered=sum(name not in books.replies for name in requests),
        twice=_twice(books, runs, faults),
        copies=sum(len(copies) - 1 for copies in books.archived.values()),
    )


def _twice(books: Books, runs: Mapping[str, Sequence[Line]], faults: Sequence[Fault]) -> collections.Counter[str]:
    """Name the cause of each run too many: the client's own, or the last fault that had begun by then."""
    began = [fault.began for fault in faults]
    found: collections.Counter[str] = collections.Counter()
    for name, lines in runs.items():
        own = min(books.again[name], len(lines) - 1)
        if own:
            found["published again by the client, unconfirmed"] += own
        for line in lines[1 + own :]:
            index = bisect.bisect(began, line.at) - 1
            found[f"after: {faults[index].kind}" if index >= 0 else "without any fault"] += 1
    return found


def silences(tails: Sequence[Tail], faults: Sequence[Fault]) -> dict[str, tuple[int, float]]:
    """Return the number of faults of each kind, and the longest time from the end of one to a daemon's next message.

    A fault that is followed by another before a daemon has recovered is that other's affair.
    """
    found: dict[str, tuple[int, float]] = {}
    for fault, following in itertools.zip_longest(faults, faults[1:]):
        longest = 0.0
        for tail in tails:
            first = tail.first_after(fault.healed)
            if first is not None and (following is None or first <= following.began):
                longest = max(longest, first - fault.healed)
            elif following is None:
                longest = float("inf")
        count, most = found.get(fault.kind, (0, 0.0))
        found[fault.kind] = (count + 1, max(most, longest))
    return found
