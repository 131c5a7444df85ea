"""Where archived messages are printed or written down; what can't be written is never taken for done."""

import contextlib
import os
import stat
import sys

import click

from rpcd.cli.archive_work import Enough
from rpcd.cli.compose import USAGE
from rpcd.cli.show import NOT_WRITTEN, end, unwritten


class CantWrite(Exception):  # the end of a sweep, told as a sentence
    """The file takes no more."""


class Printer:
    """Prints lines on standard output for as long as somebody reads them."""

    def __init__(self) -> None:
        """Nothing is wrong yet."""
        self._trouble: str | None = None

    def __call__(self, line: str) -> None:
        """Print a line; raise Enough if no more can be written."""
        if sys.stdout is None:  # closed by whoever started us
            raise Enough
        try:
            click.echo(line)
        except OSError as error:
            self._trouble = unwritten(error)
            raise Enough from None

    def end(self) -> None:
        """End the command with 74 if something could not be written."""
        if self._trouble is not None:
            end(self._trouble, NOT_WRITTEN)


class File:
    """A new file for its owner's eyes only; `-` is standard output."""

    def __init__(self, path: str) -> None:
        """Make it; end with 2 if that can't be, or if it exists."""
        self.path = path
        if path == "-":
            if sys.stdout is None:
                end("standard output is closed", NOT_WRITTEN)
            self._descriptor = os.dup(1)
            return
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            end(f"{path}: exists; name a file that does not", USAGE)
        except (OSError, ValueError) as error:
            end(f"{path}: can't be made: {getattr(error, 'strerror', None) or error}", USAGE)
        self._keep_name()

    def _keep_name(self) -> None:
        """Have the file's name on the disk, too: what is in a file that a power cut makes nameless is lost."""
        with contextlib.suppress(OSError):  # a directory that may not be opened, or of a kind that can't be synced
            directory = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY)  # noqa: PTH120
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def write(self, line: str) -> None:
        """Write a line; raise CantWrite, or Enough if nobody reads any more."""
        data = memoryview(f"{line}\n".encode())
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except BrokenPipeError:
            raise Enough from None
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> None:
        """Return when all lines are on the disk, where it is a disk; raise CantWrite."""
        try:
            if stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                os.fsync(self._descriptor)
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Have everything on the disk; raise CantWrite."""
        self.sync()
        try:
            os.close(self._descriptor)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> CantWrite:
        return CantWrite(f"{self.path}: can't be written: {error.strerror}")
