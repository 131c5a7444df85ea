"""Log lines for the one who sits in front of them: short times, colours on a terminal, the own code in tracebacks bright."""

import datetime as dt
import os
import re
import sysconfig
from pathlib import Path
from typing import Any

import click
import msgspec

from rpcd.cli.show import printable

_SHOWN = ("time", "level", "logger", "message", "traceback")

_COLOURS = {"debug": "bright_black", "warning": "yellow", "error": "red", "critical": "red"}

_FRAME = re.compile(r'\s*File "(.+)", line \d+')

_FOREIGN = (
    "<",
    f"{Path(__file__).parent.parent}{os.sep}",
    *(f"{sysconfig.get_paths()[name]}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)
"""Where the code lies that the developer did not write: Python's own, what is installed, and rpcd."""

_PRINTED = {"stdout": "print", "stderr": "stderr"}
"""What a handler's output is called, instead of its level and logger."""

CLOCK = "%H:%M:%S"


def line_of(raw: str) -> str:
    """Return a line of the daemon's log (JSON) as a person wants to read it; whatever else it is stays as it is."""
    found = _parsed(raw)
    if found is None:
        return printable(raw)
    level, logger = str(found["level"]), str(found.get("logger", ""))
    colour = _COLOURS.get(level)
    message = printable(str(found["message"]))
    if logger in _PRINTED:
        head = click.style(f"{_PRINTED[logger]:<7}", fg="cyan")
    else:
        head = click.style(f"{level:<7}", fg=colour or "green")
        message = f"{printable(logger)}: {message}"
    fields = "".join(f" {name}={_value(value)}" for name, value in found.items() if name not in _SHOWN)
    parts = [_short(str(found["time"])), head, click.style(message, fg=colour) + click.style(fields, dim=True)]
    return "\n".join([" ".join(parts), *_trace(str(found.get("traceback") or ""))])


def own(text: str) -> str:
    """Return a line of the command's own."""
    now = dt.datetime.now().astimezone().strftime(CLOCK)
    return f"{now} {click.style('dev    ', fg='magenta')} {click.style(printable(text), bold=True)}"


def message_of(raw: str) -> str:
    """Return what a line of the log says, without all that is around it."""
    found = _parsed(raw)
    return raw if found is None else str(found["message"])


def colours() -> bool | None:
    """Tell click whether to colour: None lets it look at the terminal."""
    return False if os.environ.get("NO_COLOR") else None


def _parsed(raw: str) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None
    is_line = isinstance(found, dict) and all(isinstance(found.get(name), str) for name in ("time", "level", "message"))
    return found if is_line else None


def _short(time: str) -> str:
    try:
        return dt.datetime.fromisoformat(time).strftime(CLOCK)
    except ValueError:
        return time


def _value(value: Any) -> str:
    text = printable(str(value))
    return repr(text) if " " in text else text


def _trace(text: str) -> list[str]:
    lines, dim = [], False
    for line in text.splitlines():
        if (frame := _FRAME.match(line)) is not None:
            dim = frame[1].startswith(_FOREIGN)
            shown = click.style(printable(line), dim=dim or None, bold=not dim or None)
        elif line.startswith(" "):
            shown = click.style(printable(line), dim=dim or None)
        else:
            dim = False
            shown = click.style(printable(line), fg=None if line.startswith("Traceback") else "red")
        lines.append(f"  | {shown}")
    return lines
