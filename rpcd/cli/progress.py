"""A progress bar on standard error, if that is a terminal; nothing at all if not."""

import os
import stat
import sys
from typing import Any

from rpcd.cli.show import tell


def size_of(descriptor: int) -> int | None:
    """Return the size of a file in bytes; None if it has none, as a pipe."""
    found = os.fstat(descriptor)
    return found.st_size if stat.S_ISREG(found.st_mode) else None


class Bar:
    """How far a long piece of work is."""

    def __init__(self, word: str, total: int | None = None) -> None:
        """Say what is done with each message; `total` is where the bar ends, in whatever `show` is told."""
        self._word = word
        self._total = total
        self._bar: Any = None
        self._task: Any = None

    def start(self) -> None:
        """Show the bar."""
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            BarColumn(),
            TextColumn(f"{{task.fields[done]}} {self._word}"),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(self._word, total=self._total, done=0)
        self._bar.start()

    def reach(self, total: int) -> None:
        """Say where the bar ends, if that is found out later."""
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def show(self, done: int, completed: int) -> None:
        """Move the bar; `done` messages are done with."""
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, done=done)

    def blocked(self, reason: str | None) -> None:
        """Say that the broker takes nothing for now, or does again."""
        tell("the broker takes messages again" if reason is None else f"the broker takes no messages for now: {reason}")

    def stop(self) -> None:
        """Take the bar away; does nothing to one that was never shown."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
