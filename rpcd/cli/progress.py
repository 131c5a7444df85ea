"""A progress bar on standard error, if that is a terminal; nothing at all if not."""

import os
import stat
import sys
from typing import Any

from rpcd.cli.show import tell


class Bar:
    """How far a file is published."""

    def __init__(self, descriptor: int) -> None:
        """Take the file, whose size gives the end of the bar if it has one."""
        self._descriptor = descriptor
        self._bar: Any = None
        self._task: Any = None

    def start(self) -> None:
        """Show the bar."""
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        found = os.fstat(self._descriptor)
        size = found.st_size if stat.S_ISREG(found.st_mode) else None
        columns = (
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.fields[published]} published"),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("publish", total=size, published=0)
        self._bar.start()

    def show(self, published: int, taken: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=taken, published=published)

    def blocked(self, reason: str | None) -> None:
        """Say that the broker takes nothing for now, or does again."""
        tell("the broker takes messages again" if reason is None else f"the broker takes no messages for now: {reason}")

    def stop(self) -> None:
        """Take the bar away; does nothing to one that was never shown."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
