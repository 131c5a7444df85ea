"""Expansions in the strings of a config: ${NAME}, ${NAME:default}, ${file:PATH} and ${credential:NAME}; $$ is a dollar sign.

Reading files is an argument, for the core opens none.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from rpcd.core.errors import Problem

ReadFile = Callable[[str], str]
"""Return a file's text; raise OSError or UnicodeDecodeError."""

CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""The environment variable by which systemd names the directory of a unit's credentials; see systemd.exec(5)."""

_PATTERN = re.compile(r"\$(?:\$|\{(?P<inside>[^{}]*)\}|(?P<open>\{))")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def literal(text: str) -> str:
    """Return what is written out in a string: all of it but what expansions put in, their defaults included."""
    return _PATTERN.sub(lambda match: _default(match["inside"]) if match["inside"] is not None else "$", text)


def files_in(text: str) -> list[str]:
    """Return the files that a string is read from by ${file:PATH}."""
    inside = [match["inside"] or "" for match in _PATTERN.finditer(text)]
    return [each.removeprefix("file:") for each in inside if each.startswith("file:")]


def _default(inside: str) -> str:
    name, _, default = inside.partition(":")
    return default if name not in ("file", "credential") else ""


def is_url(path: str) -> bool:
    """Tell whether a setting is a URL, which may hold a password: the broker's, or that of a layer's database."""
    return path == "broker.url" or (path.startswith("layers.") and path.endswith(".url"))


class ExpansionError(ValueError):
    """An expansion names something that is not there."""


class Expander:
    """Expands the strings of one config tree and collects what was wrong."""

    def __init__(self, environment: Mapping[str, str], read: ReadFile) -> None:
        """Take the environment and the way to read a file."""
        self._environment = environment
        self._read = read
        self.problems: list[Problem] = []

    def tree(self, value: Any, path: str = "") -> Any:
        """Return a tree with every string expanded; keys stay as they are."""
        if isinstance(value, dict):
            return {key: self.tree(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.tree(item, f"{path}[{index}]") for index, item in enumerate(value)]
        if isinstance(value, str) and "$" in value:
            try:
                return self.text(value, encode=is_url(path) and not value.startswith("sqlite:"))  # that is a file's name
            except ExpansionError as error:
                self.problems.append(Problem(path, str(error)))
        return value

    def text(self, text: str, encode: bool = False) -> str:
        """Expand one string; `encode` percent-encodes what is put in, as a URL needs it."""

        def one(match: re.Match[str]) -> str:
            if match["open"]:
                raise ExpansionError("a ${ without its }; for these two characters themselves, write $${")
            inside = match["inside"]
            if inside is None:
                return "$"
            value = self._value(inside)
            try:
                return quote(value, safe="") if encode else value
            except UnicodeEncodeError:
                raise ExpansionError(f"${{{inside}}} is not UTF-8 text") from None

        return _PATTERN.sub(one, text)

    def _value(self, inside: str) -> str:
        name, colon, rest = inside.partition(":")
        if colon and name == "file":
            return self._file(rest, f"${{file:{rest}}}")
        if colon and name == "credential":
            if not rest or "/" in rest:
                raise ExpansionError(f"{rest!r} is not a credential's name")
            directory = self._environment.get(CREDENTIALS)
            if directory is None:
                raise ExpansionError(
                    f"${{credential:{rest}}} needs {CREDENTIALS}, which systemd sets for a unit's LoadCredential=; "
                    f"outside of a unit, set it to a directory that holds a file {rest}"
                )
            return self._file(f"{directory}/{rest}", f"${{credential:{rest}}}")
        if not _NAME.fullmatch(name):
            raise ExpansionError(
                f"${{{inside}}} is none of ${{NAME}}, ${{NAME:default}}, ${{file:PATH}} or ${{credential:NAME}}"
            )
        if name in self._environment:
            return self._environment[name]
        if colon:
            return rest
        raise ExpansionError(f"the environment has no {name}; set it, or give a default: ${{{name}:default}}")

    def _file(self, path: str, shown: str) -> str:
        try:
            text = self._read(path)
        except OSError as error:
            raise ExpansionError(f"{shown} can't be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ExpansionError(f"{shown} is not UTF-8 text") from error
        except ValueError as error:
            raise ExpansionError(f"{shown} can't be read: {error}") from error
        return text.removesuffix("\n").removesuffix("\r")
