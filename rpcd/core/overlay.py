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


OF_BROKER = ("fernet_keys", "fernet_ttl")
"""Settings of [broker] that an overlay may hold itself: keys belong to a virtual host, whichever the broker is."""


def names(parsed: Mapping[str, Any]) -> list[str]:
    """Return the names of the overlays of a parsed file, in its order."""
    overlays = parsed.get(OVERLAYS)
    return list(overlays) if isinstance(overlays, dict) else []


def laid(parsed: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """Return the file's tables with one overlay on top: tables merge, everything else replaces. Nothing is changed."""
    own = {key: value for key, value in parsed.items() if key != OVERLAYS}
    return _merged(own, chosen(parsed, name))


def chosen(parsed: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """Return the sections of that overlay; none if there is no such overlay, or if it is no table."""
    written = _written(parsed, name)
    sections = {key: section for key, section in written.items() if key in SECTIONS}
    own = {key: written[key] for key in OF_BROKER if key in written}
    broker = sections.get("broker", {})
    return {**sections, "broker": {**broker, **own}} if own and isinstance(broker, dict) else sections


def _written(parsed: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
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
        written = _written(parsed, each)
        broker = written.get("broker")
        for key in written:
            if key in OF_BROKER:
                if isinstance(broker, dict) and key in broker:
                    yield Problem(f"{OVERLAYS}.{each}.{key}", "stands in its broker table as well", "keep one of the two")
            elif key not in SECTIONS:
                close = difflib.get_close_matches(str(key), SECTIONS, 1)
                remedy = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(SECTIONS)}"
                yield Problem(f"{OVERLAYS}.{each}.{key}", "unknown key", remedy)


def placed(problems: Iterable[Problem], parsed: Mapping[str, Any], name: str | None) -> list[Problem]:
    """Name each problem's place as it stands in the file: within the overlay if it says what is at fault.

    Naming them twice is naming them once.
    """
    overlay = chosen(parsed, name)
    theirs = set(paths(overlay))
    own = set(paths({key: value for key, value in parsed.items() if key != OVERLAYS})) if theirs else set()
    return [
        attrs.evolve(each, path=spelled(each.path, parsed, str(name))) if _stems_from(each.path, theirs, own) else each
        for each in problems
    ]


def spelled(path: str, parsed: Mapping[str, Any], name: str) -> str:
    """Return where in the file an overlay says what is at a path of the settings."""
    setting = path.removeprefix("broker.")
    written = _written(parsed, name)
    short = setting != path and any(setting.startswith(key) and key in written for key in OF_BROKER)
    return f"{OVERLAYS}.{name}.{setting if short else path}"


def _stems_from(path: str, theirs: set[str], own: set[str]) -> bool:
    """Tell whether the overlay says what is at a path, or the closest table around it that anybody has written."""
    while path:
        if path in theirs:
            return True
        if path in own:
            return False
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return False


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of everything in a tree, as problems name it."""
    if path:
        yield path
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from paths(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from paths(item, f"{path}[{index}]")


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _merged(under[key], item) for key, item in over.items() if _tables(under.get(key), item)}
    return {**under, **over, **both}


def _tables(under: Any, over: Any) -> bool:
    return isinstance(under, dict) and isinstance(over, dict)
