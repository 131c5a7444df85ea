"""What became of every message: the books of the client against those of the handlers."""

import collections
import itertools
from collections.abc import Mapping, Sequence

import attrs
from book import Line, Tail, done
from client import Books
from faults import Fault

WAKE = 30.0
"""Seconds after its end within which a fault may still cause a second run."""

UNEXPLAINED = "no fault was near"

SOON = 10.0
"""Seconds within which a reply is taken from the broker, or made after its fault by one who was held up."""


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
    unexcused: list[str]
    """Those of them for which no fault of the broker accounts, which forgets replies that nobody took yet."""
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
    unanswered = [name for name in requests if name not in books.replies]
    return Account(
        confirmed=len(known),
        ended=ended,
        lost=lost,
        elsewhere=elsewhere,
        unheard=sorted(name for name in books.newsworthy if name in runs and name not in books.news),
        unanswered=len(unanswered),
        unexcused=sorted(name for name in unanswered if not _forgotten(name, tails, faults)),
        twice=_twice(books, runs, faults),
        copies=sum(len(copies) - 1 for copies in books.archived.values()),
    )


def _forgotten(name: str, tails: Sequence[Tail], faults: Sequence[Fault]) -> bool:
    """Tell whether the broker was in trouble when a request was answered, or soon after."""
    times = [line.at for tail in tails for line in tail.lines if line.name == name]
    return any(fault.began - SOON <= at <= fault.healed + SOON for at in times for fault in faults if "broker" in fault.kind)


def _twice(books: Books, runs: Mapping[str, Sequence[Line]], faults: Sequence[Fault]) -> collections.Counter[str]:
    """Name the cause of each run too many: the client's own, the first fault between both runs, or one just ahead.

    A fault has a wake: a handler runs on a connection that is cut already, or two copies wait, because the confirm of the
    first was lost.
    """
    found: collections.Counter[str] = collections.Counter()
    for name, lines in runs.items():
        own = min(books.again[name], len(lines) - 1)
        if own:
            found["published again by the client, unconfirmed"] += own
        for before, line in list(itertools.pairwise(lines))[own:]:
            between = (fault.kind for fault in faults if fault.healed >= before.at and fault.began <= line.at)
            ahead = [fault.kind for fault in faults if before.at - WAKE <= fault.healed < before.at]
            wake = f"{ahead[-1]}, in its wake" if ahead else UNEXPLAINED
            found[next(between, wake)] += 1
    return found


def silences(tails: Sequence[Tail], faults: Sequence[Fault]) -> dict[str, tuple[int, float]]:
    """Return the number of faults of each kind, and the longest time from the end of one to a daemon's next message.

    A daemon that has not recovered when the next fault begins was silent until then at least.
    """
    found: dict[str, tuple[int, float]] = {}
    for fault, following in itertools.zip_longest(faults, faults[1:]):
        longest = 0.0
        for tail in tails:
            first = tail.first_after(fault.healed)
            until = float("inf") if following is None else following.began
            longest = max(longest, (until if first is None else min(first, until)) - fault.healed)
        count, most = found.get(fault.kind, (0, 0.0))
        found[fault.kind] = (count + 1, max(most, longest))
    return found
