"""Reading a file of any size line by line, beside a reactor that must go on: a thread reads a little ahead, and waits.

Bytes come by os.read, not through Python's buffered files: a thread that sits in one of those while the process ends, as it
does when nobody ever writes to a pipe, takes the whole interpreter down with it.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

CHUNK = 64 * 1024
"""Bytes that are read at a time."""

AHEAD = 4
"""Chunks that are read ahead."""

MAX_LINE = 128 * 1024 * 1024
"""Bytes that a line may have: more than a broker takes, less than a machine has."""


class Lines:
    """The lines of one open file; everything but the reading itself happens on the reactor."""

    def __init__(self, descriptor: int, reactor: Any, changed: Callable[[], None]) -> None:
        """Take a file; `changed` is told whenever there is more, or there will be no more."""
        self.number = 0
        """How many lines were taken."""
        self.taken = 0
        """How many bytes those have."""
        self.ended = False
        """Whether every line was taken."""
        self.trouble: str | None = None
        """Why the rest can't be read."""
        self._descriptor = descriptor
        self._reactor = reactor
        self._changed = changed
        self._chunks: deque[deque[bytes]] = deque()
        self._room = threading.Semaphore(AHEAD)
        self._read_all = False

    def start(self) -> None:
        """Begin to read; the thread ends with the file, or with the process."""
        threading.Thread(target=self._read, name="rpcd-lines", daemon=True).start()

    def take(self) -> bytes | None:
        """Take the next line; None if it is not there yet, or if there is none."""
        if not self._chunks:
            return None
        chunk = self._chunks[0]
        line = chunk.popleft()
        if not chunk:
            self._chunks.popleft()
            self._room.release()
        self.number += 1
        self.taken += len(line) + 1
        self._look()
        return line

    def _look(self) -> None:
        self.ended = self._read_all and not self._chunks

    def _read(self) -> None:
        """Read to the end, in the thread."""
        rest: list[bytes] = []
        size = 0
        trouble = None
        try:
            while chunk := os.read(self._descriptor, CHUNK):
                *lines, last = chunk.split(b"\n")
                if lines:
                    lines[0] = b"".join((*rest, lines[0]))
                    rest, size = [], 0
                    self._room.acquire()
                    self._tell(self._arrived, deque(lines))
                rest.append(last)
                size += len(last)
                if size > MAX_LINE:
                    trouble = f"a line is longer than {MAX_LINE} bytes"
                    rest = []
                    break
        except OSError as error:
            trouble = f"the file can't be read: {error.strerror}"
            rest = []
        if line := b"".join(rest):
            self._room.acquire()
            self._tell(self._arrived, deque([line]))
        self._tell(self._finished, trouble)

    def _tell(self, what: Callable[[Any], None], about: Any) -> None:
        self._reactor.callFromThread(what, about)

    def _arrived(self, lines: deque[bytes]) -> None:
        self._chunks.append(lines)
        self._changed()

    def _finished(self, trouble: str | None) -> None:
        self._read_all = True
        self.trouble = trouble
        self._look()
        self._changed()
