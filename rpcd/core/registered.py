"""Registrations as settings: the sections that decorators stand for, and where their mistakes are told.

Whatever the file says of the same queue or consumer wins.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from rpcd.core.errors import Problem
from rpcd.core.registration import Registered, copied
from rpcd.core.settings import Settings

PLACE = "@"
"""How the place of a mistake begins that is a decorator's, not the file's."""


def clashes(found: Sequence[Registered], settings: Settings) -> Iterator[Problem]:
    """Yield a problem for each registration that wants a consumer's name, or a queue, that another has already."""
    first: dict[str, Registered] = {}
    for each in found:
        other = first.setdefault(each.name, each)
        if other is not each:
            owner = "another decorator on the same object" if other.path == each.path else other.path
            yield Problem(_place(each), f"the consumer {each.name!r} is that of {owner} already", _OWN_QUEUE)
    owners: dict[str, str] = {}
    order = sorted(settings.consumers, key=lambda name: name in first)  # what only the file says was there before
    for name in order:
        owner = owners.setdefault(settings.consumers[name].queue, name)
        if owner != name and name in first:
            said = first[owner].path if owner in first else f"consumers.{owner}"
            what = f"the queue {settings.consumers[name].queue!r} is that of {said} already"
            yield Problem(_place(first[name]), what, _OWN_QUEUE)


_OWN_QUEUE = "give each decorator a queue= of its own"


def _place(each: Registered, setting: str = "") -> str:
    return f"{PLACE}{each.registration.by} {each.path}" + (f", {setting}" if setting not in ("", "handler") else "")


def placed(each: Registered, settings: Settings) -> Registered:
    """Return a registration with the section of its queue: what the file says, if it says anything."""
    consumer = settings.consumers.get(each.name)
    if consumer is not None:
        return attrs.evolve(each, section=consumer.queue)
    named = [key for key in settings.queues if settings.queue_name(key) == each.queue]
    return attrs.evolve(each, section=each.queue if each.queue in settings.queues or not named else named[0])


def sections(raw: Mapping[str, Any], found: Iterable[Registered]) -> dict[str, Any]:
    """Return a parsed config with the sections of registrations added under its own, which is left as it is."""
    tree: dict[str, Any] = copied(raw)
    for each in found:
        _put_under(tree, {**each.registration.tables(each.section), "consumers": {each.name: _consumer(each)}})
    return tree


def _consumer(each: Registered) -> dict[str, Any]:
    return {"queue": each.section, "handler": each.path, **each.registration.settings}


def _put_under(upper: dict[str, Any], lower: Mapping[str, Any]) -> None:
    """Add what only `lower` has; tables are gone into, everything else of `upper` stays as it is."""
    for key, value in lower.items():
        if isinstance(value, Mapping) and isinstance(upper.get(key), dict):
            _put_under(upper[key], value)
        elif key not in upper:
            upper[key] = copied(value)


def traced(problem: Problem, raw: Mapping[str, Any], found: Iterable[Registered]) -> Problem:
    """Return a problem with the decorator as its place if that is where it comes from, not the file that `raw` is."""
    kind, _, rest = problem.path.partition(".")
    said: dict[str, tuple[Registered, Mapping[str, Any]]] = {}
    for each in found:
        if kind == "consumers":
            said.setdefault(each.name, (each, _consumer(each)))
        elif kind == "queues":
            said.setdefault(each.section, (each, {"bindings": ()}))
    file = _table(raw.get(kind))
    fitting = [name for name in (*said, *map(str, file)) if rest == name or rest.startswith((f"{name}.", f"{name}["))]
    name = max(fitting, key=len, default="")  # one name may begin like another
    if name not in said:
        return problem
    (each, given), section, setting = said[name], _table(file.get(name)), rest[len(name) :].lstrip(".")
    comes_from_code = not section or (setting and _says(given, setting) and not _says(section, setting))
    return attrs.evolve(problem, path=_place(each, setting)) if comes_from_code else problem


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _says(section: Mapping[str, Any], setting: str) -> bool:
    """Tell whether a section sets what a path such as `retry.delays[1]` leads to."""
    part: Any = section
    for name in setting.partition("[")[0].split("."):
        if not isinstance(part, Mapping):
            return True
        if name not in part:
            return False
        part = part[name]
    return True
