"""Which strings of a config are secret, which of them are written out in it, and which files they are read from."""

import typing
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import attrs

from rpcd.core import overlay
from rpcd.core.expand import files_in, literal
from rpcd.core.settings import Settings

WELL_KNOWN = ("", "guest")
"""Passwords that are none."""


def written_out(parsed: Mapping[str, Any]) -> list[str]:
    """Return the places of the secrets that stand in a parsed file itself, its overlays included."""
    own = {key: value for key, value in parsed.items() if key != overlay.OVERLAYS}
    parts = [(None, own), *((name, overlay.chosen(parsed, name)) for name in overlay.names(parsed))]
    return [
        path if name is None else overlay.spelled(path, parsed, name)
        for name, part in parts
        for path, text in _secrets(part, Settings, "")
        if (_password(literal(text)) if path == "broker.url" else literal(text)) not in WELL_KNOWN
    ]


def read_from(tables: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield place and file of every secret that is read from a file by ${file:PATH}."""
    for path, text in _secrets(tables, Settings, ""):
        for name in files_in(text):
            yield path, name


def _secrets(value: Any, kind: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield path and text of every secret setting; free tables (a handler's own config) are nobody's business."""
    origin = typing.get_origin(kind)
    if attrs.has(kind) and isinstance(value, dict):
        for field in attrs.fields(kind):
            inside = f"{path}.{field.name}".lstrip(".")
            found = value.get(field.name)
            yield from _texts(found, inside) if field.metadata["secret"] else _secrets(found, field.type, inside)
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from _secrets(item, typing.get_args(kind)[1], f"{path}.{key}")
    elif origin is list and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _secrets(item, typing.get_args(kind)[0], f"{path}[{index}]")


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}[{index}]")


def _password(url: str) -> str:
    """Return the password in a URL, which may be wrong."""
    return unquote(url.partition("://")[2].rpartition("@")[0].partition(":")[2])
