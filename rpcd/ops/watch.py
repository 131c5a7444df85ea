"""Notice that files have changed by looking at them again and again: that needs nothing, and works on every file system."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

MOST_FILES = 10_000
"""Files that are looked at; of a directory with more, the rest is left out."""

_NOT_OURS = {"__pycache__", "node_modules", "site-packages"}

_OF_TESTS = ("test_", "conftest.py")
"""How files begin that no daemon imports."""

Stamp = tuple[int, int, int]
"""When a file was written, its size, and which file it is: an editor may put another one in its place."""


class Watch:
    """Files, and the Python files below directories: not the hidden ones, nor those of tests or virtual environments."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._places: list[Path] = []
        self._seen: dict[Path, Stamp] = {}

    @property
    def count(self) -> int:
        """How many files there are."""
        return len(self._seen)

    def look_at(self, places: Iterable[Path]) -> None:
        """Watch these files and directories from now on; how they are now is no change."""
        self._places = list(dict.fromkeys(places))
        self._seen = self._look()

    def changed(self) -> list[Path]:
        """Return which files have been written, made or removed since the last time, sorted."""
        before, self._seen = self._seen, self._look()
        return sorted(path for path in before.keys() | self._seen.keys() if before.get(path) != self._seen.get(path))

    def _look(self) -> dict[Path, Stamp]:
        found: dict[Path, Stamp] = {}
        for path in self._paths():
            try:
                status = path.stat()
            except OSError:
                continue
            found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
            if len(found) == MOST_FILES:
                break
        return found

    def _paths(self) -> Iterator[Path]:
        for place in self._places:
            if place.is_dir():
                yield from _python_files(place)
            else:
                yield place


def _python_files(directory: Path) -> Iterator[Path]:
    for place, names, files in os.walk(directory):
        if "pyvenv.cfg" in files:
            names.clear()
            continue
        names[:] = sorted(name for name in names if name not in _NOT_OURS and not name.startswith("."))
        for name in sorted(files):
            if name.endswith(".py") and not name.startswith((".", *_OF_TESTS)):
                yield Path(place, name)
