"""How commands print: tables, one JSON object a line, and nothing from outside that a terminal could take for an order.

Names, headers and bodies come from strangers. A control character among them could colour, hide or type things on the
terminal of whoever looks, so they are shown as escapes.
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import click
import msgspec

WIDE = 250
"""Columns of a table that goes to a file or a pipe, where nothing needs to be folded."""

NOT_WRITTEN = 74
"""The exit code of a command that did what it should, but whose result could not be written; the word of sysexits(3)."""

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""C0 and C1 controls, line ends of Unicode's own, what turns the direction of writing, and halves of characters."""


def printable(text: str) -> str:
    """Escape every control character, line ends included."""
    return _CONTROLS.sub(lambda found: _escape(found[0]), text)


def printable_lines(text: str) -> str:
    """Escape every control character but line ends."""
    return "\n".join(map(printable, text.split("\n")))


def _escape(character: str) -> str:
    number = ord(character)
    usual = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    return usual or (f"\\x{number:02x}" if number <= 0xFF else f"\\u{number:04x}")  # noqa: PLR2004  # what two digits hold


def json_line(value: Any) -> str:
    """Encode a value as JSON on one line; no control character is left in it."""
    return json_printable(msgspec.json.encode(value).decode())


def json_printable(text: str) -> str:
    r"""Write control characters within JSON's strings as \u escapes, which mean the same; elsewhere are only line ends."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in "\n\r\t" else f"\\u{ord(found[0]):04x}", text)


def end(text: str, code: int) -> NoReturn:
    """Say on standard error why a command ends, and end it."""
    tell(text)
    sys.exit(int(code))


def tell(text: str) -> None:
    """Say something on standard error; where nobody can be told, the exit code says enough."""
    try:
        click.echo(printable_lines(text), err=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # else Python ends with 120 over what is left


def say(text: str | bytes) -> None:
    """Print a result; that nobody reads it any more changes nothing about it, and so nothing about the exit code.

    Ends the command with 74 if it can't be written (a full disk).
    """
    _guarded(lambda: click.echo(text))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: as wide as the terminal, or as wide as it needs to be in a file."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        made.add_row(*(Text(printable_lines(cell)) for cell in row))  # a Text: square brackets are no markup
    _guarded(lambda: Console(width=None if sys.stdout.isatty() else WIDE).print(made))


def _guarded(write: Callable[[], object]) -> None:
    if sys.stdout is None:  # closed by whoever started us
        return
    try:
        write()
        sys.stdout.flush()
    except OSError as error:
        if (text := unwritten(error)) is not None:
            end(text, NOT_WRITTEN)


def unwritten(error: OSError) -> str | None:
    """Tell why standard output takes no more, or None if nobody reads it any more, and let the rest of it go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is written when Python ends
    return None if error.errno in (errno.EPIPE, errno.EINVAL) else f"the result can't be written: {error.strerror}"
