"""`[virtual_hosts.NAME]`: the sections that are laid over those of the file when that virtual host is served."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from rpcd.core.errors import Problem
from rpcd.core.settings import Settings

OVERLAYS = "virtual_hosts"
"""The table that holds them."""

SECTIONS = tuple(field.name for field in attrs.fields(Settings) if field.name != OVERLAYS)
"""What an overlay may hold: everything that the file may, but further overlays."""


def names(parsed: Mapping[str, Any]) -> list[str]:
    """Return the names of the overlays of a parsed file, in its order."""
    overlays = parsed.get(OVERLAYS)
    return list(overlays) if isinstance(overlays, dict) else []


def laid(parsed: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """Return the file's tables with one overlay on top: tables merge, everything else replaces. Nothing is changed."""
    own = {key: value for key, value in parsed.items() if key != OVERLAYS}
    return _merged(own, chosen(parsed, name))


def chosen(parsed: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """Return the overlay of that name; empty if there is none, or if it is no table."""
    overlays = parsed.get(OVERLAYS)
    found = overlays.get(name) if isinstance(overlays, dict) and name is not None else None
    return found if isinstance(found, dict) else {}


def mistakes(parsed: Mapping[str, Any], name: str | None) -> Iterator[Problem]:
    """Find an overlay that is wanted but not there, and sections of any overlay that do not exist."""
    known = names(parsed)
    if name is not None and name not in known:
        remedy = f"known: {', '.join(known)}" if known else "the file has no [virtual_hosts.NAME] section at all"
        yield Problem(f"{OVERLAYS}.{name}", "there is no such section, but this virtual host is asked for", remedy)
    for each in known:
        for key in chosen(parsed, each):
            if key not in SECTIONS:
                close = difflib.get_close_matches(str(key), SECTIONS, 1)
                remedy = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(SECTIONS)}"
                yield Problem(f"{OVERLAYS}.{each}.{key}", "unknown key", remedy)


def placed(problems: Iterable[Problem], parsed: Mapping[str, Any], name: str | None) -> list[Problem]:
    """Name each problem's place as it stands in the file: within the overlay if it says what is at fault.

    Naming them twice is naming them once.
    """
    overlay = chosen(parsed, name)
    theirs = set(_paths(overlay))
    own = set(_paths({key: value for key, value in parsed.items() if key != OVERLAYS})) if theirs else set()
    return [
        attrs.evolve(each, path=f"{OVERLAYS}.{name}.{each.path}") if _stems_from(each.path, theirs, own) else each
        for each in problems
    ]


def _stems_from(path: str, theirs: set[str], own: set[str]) -> bool:
    """Tell whether the overlay says what is at a path, or the closest table around it that anybody has written."""
    while path:
        if path in theirs:
            return True
        if path in own:
            return False
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return False


def _paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of everything in a tree, as problems name it."""
    if path:
        yield path
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, f"{path}[{index}]")


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _merged(under[key], item) for key, item in over.items() if _tables(under.get(key), item)}
    return {**under, **over, **both}


def _tables(under: Any, over: Any) -> bool:
    return isinstance(under, dict) and isinstance(over, dict)
