"""What the handlers wrote down, read while it grows."""

import pathlib
import threading
from collections.abc import Iterable
from typing import NamedTuple


class Line(NamedTuple):
    """One run of a handler."""

    at: float
    """Seconds on the machine's monotonic clock."""
    name: str
    word: str
    """done, failed or hopeless."""
    pid: str


class Tail:
    """The ledger file of one daemon; a line is only taken when it is whole."""

    def __init__(self, file: pathlib.Path) -> None:
        """Begin at the beginning."""
        self.lines: list[Line] = []
        self._file, self._position = file, 0
        self._lock = threading.Lock()

    def read(self) -> None:
        """Take what was written since."""
        with self._lock:
            if not self._file.exists():
                return
            with self._file.open("rb") as file:
                file.seek(self._position)
                text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            self._position += len(text)
            for line in text.decode().splitlines():
                at, name, word, pid = line.split()
                self.lines.append(Line(float(at), name, word, pid))

    @property
    def last(self) -> float:
        """When the last run was noted."""
        self.read()
        return self.lines[-1].at if self.lines else 0.0

    def first_after(self, at: float) -> float | None:
        """Return when the first run after a time was noted."""
        return next((line.at for line in self.lines[self._index(at) :] if line.at > at), None)

    def _index(self, at: float) -> int:
        """Find a place shortly ahead of a time: lines of several threads are nearly in order."""
        low, high = 0, len(self.lines)
        while low < high:
            middle = (low + high) // 2
            if self.lines[middle].at <= at:
                low = middle + 1
            else:
                high = middle
        return max(0, low - 100)


def done(tails: Iterable[Tail]) -> dict[str, list[Line]]:
    """Return the finished runs of each id, in the order of time."""
    found: dict[str, list[Line]] = {}
    for tail in tails:
        tail.read()
        for line in tail.lines:
            if line.word == "done":
                found.setdefault(line.name, []).append(line)
    for lines in found.values():
        lines.sort()
    return found
