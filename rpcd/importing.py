"""Importing what a config names by its dotted path; every failure says where it comes from."""

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable
from typing import Any

from rpcd.core import patterns, registration
from rpcd.core.handler import HandlerError, Target, check_body_type, target

_DECORATORS = (str(registration.__file__), str(patterns.__file__))
"""Whoever calls `message_handler` wrongly wants to see his own line, not one of it."""


def check_start(path: str) -> None:
    """Import what `on_start` names and check that it can be called without arguments; raise HandlerError."""
    value = resolve(path)
    if not callable(value):
        raise HandlerError(f"{path} is of type {type(value).__name__}, which can't be called")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return  # a builtin without a signature: the start itself will tell
    try:
        signature.bind()
    except TypeError as error:
        raise HandlerError(f"{path}{signature} can't be called without arguments: {error}") from None


def checked_target(path: str) -> Target:
    """Import what a handler's dotted path names and check it; raise HandlerError."""
    return looked_at(path, resolve(path))


def looked_at(path: str, value: Any) -> Target:
    """Check what was found at a handler's dotted path; raise HandlerError."""
    try:
        found = target(path, value)
        check_body_type(path, found.body)
    except HandlerError:
        raise
    except Exception as error:  # looking at the user's classes may run their code
        raise HandlerError(f"{path} can't be looked at: {_last_place(error)}") from error
    return found


def resolve(path: str) -> Any:
    """Import what a dotted path names, `package.module:Name` or `package.module.Name`; raise HandlerError."""
    module_name, colon, names = path.partition(":")
    if colon:
        return _member(imported(module_name, path), names.split("."), path)
    parts = path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        candidate = ".".join(parts[:split])
        if split == 1 or _exists(candidate):
            return _member(imported(candidate, path), parts[split:], path)
    raise HandlerError(f"{path} names no module")


def _exists(module_name: str) -> bool:
    try:
        return importlib.util.find_spec(module_name) is not None
    except (ImportError, AttributeError, ValueError):
        return module_name in sys.modules
    except BaseException:  # noqa: BLE001  # a parent package failed while it was imported: `imported` says how
        return True


def imported(module_name: str, path: str, hint: str = "") -> Any:
    """Import a module for the sake of `path`, which the config names; raise HandlerError (with a hint if there is none)."""
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise HandlerError(f"{path}: there is no module {error.name!r}; looked in {_places()}{hint}") from None
        way_out = '; pip install "rpcd[pydantic]" (Debian: apt-get install python3-pydantic)'
        lacking = way_out if error.name == "pydantic" else ""
        raise HandlerError(f"{path} can't be imported: {_last_place(error)}{lacking}") from error
    except BaseException as error:  # the module is the user's code and may do anything, SystemExit included
        raise HandlerError(f"{path} can't be imported: {_last_place(error)}") from error


def _places() -> str:
    return f"service.path and sys.path ({', '.join(place for place in sys.path if place)})"


def _last_place(error: BaseException) -> str:
    """Say what was raised and on which line of which file."""
    said = traceback.format_exception_only(error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if not frame.filename.startswith(("<", *_DECORATORS))), None)
    if isinstance(error, SyntaxError) or last is None or last.filename == __file__:
        return said if not isinstance(error, SyntaxError) else f"{said} ({error.filename}, line {error.lineno})"
    return f"{said} ({last.filename}, line {last.lineno})"


def _member(value: Any, names: Iterable[str], path: str) -> Any:
    for name in names:
        try:
            value = getattr(value, name)
        except AttributeError:
            close = difflib.get_close_matches(name, dir(value), 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise HandlerError(f"{path}: {getattr(value, '__name__', value)!r} has no {name!r}{hint}") from None
        except BaseException as error:  # a module's own `__getattr__` is the user's code, too
            raise HandlerError(f"{path} can't be imported: {_last_place(error)}") from error
    return value
