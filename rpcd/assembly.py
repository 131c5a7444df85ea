"""From the tables of a config to settings and the handlers that they name, imported and checked: every mistake at once.

Handlers are imported, which runs their modules; besides that nothing is done, and nothing but the core is needed.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from rpcd.core import keys, lint, overlay
from rpcd.core.building import Handlers
from rpcd.core.errors import Problem, SettingsError
from rpcd.core.handler import HandlerError, Target
from rpcd.core.registered import PLACE, clashes, placed, sections, traced
from rpcd.core.registration import Registered, registered, unreachable
from rpcd.core.settings import Settings
from rpcd.importing import check_start, checked_target, imported, looked_at
from rpcd.layers import layered, prepare
from rpcd.namespaces import bound, find

Structure: TypeAlias = Callable[[Mapping[str, Any]], tuple[Settings, list[Problem]]]
"""Turns the tables of a config into settings and what is wrong with them."""


@attrs.frozen
class Assembled:
    """A config without a mistake, and everything that it names."""

    settings: Settings
    handlers: Mapping[str, Handlers]
    """By the names of their consumers."""
    registrations: list[Registered]
    """What the decorators of its modules have said."""


def beside(settings: Settings, place: Path) -> Settings:
    """Let relative paths begin at the config file's directory, wherever the process was started."""
    tls, service = settings.broker.tls, settings.service
    found = {name: str(place / value) for name in ("ca", "certificate", "key") if (value := getattr(tls, name)) is not None}
    return attrs.evolve(
        settings,
        broker=attrs.evolve(settings.broker, tls=attrs.evolve(tls, **found)),
        service=attrs.evolve(
            service,
            path=[str(place / each) for each in service.path],
            control=service.control and str(place / service.control),
        ),
    )


def assembled(
    raw: Mapping[str, Any],
    structured: Structure,
    path: str,
    place: Path,
    virtual_host: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> Assembled:
    """Import what a config names; raise SettingsError with every problem that there is.

    `path` is the config's own, which problems begin with; relative paths of layers begin at `place`. `given` are handlers
    that need no import, by consumer.
    """
    settings, problems = structured(raw)
    _extend_path(settings.service.path)
    prepare(settings, place)
    found: list[Registered] = []
    if settings.service.modules:
        found, wrong = _registered(settings)
        settings, problems = structured(sections(raw, found))
        if wrong:  # a section that only adds to what a decorator says may lack the rest because of that
            problems = [each for each in problems if not (each.path.startswith("consumers.") and each.what == "missing")]
        problems += [*wrong, *clashes(found, settings)]
    handlers, mistakes = _handlers(settings, given or {})
    handlers, wrong = layered(settings, handlers, place)
    problems += [*mistakes, *wrong]
    settings = bound(settings, {name: each for name, each in handlers.items() if not isinstance(each, Target)})
    if settings.service.on_start is not None and lint.dotted(settings.service.on_start):
        try:
            check_start(settings.service.on_start)
        except HandlerError as error:
            problems.append(Problem("service.on_start", str(error)))
    problems = [traced(each, overlay.laid(raw, virtual_host), found) for each in problems]
    if problems:
        named = overlay.placed(problems, raw, virtual_host)
        raise SettingsError(
            [each if each.path.startswith(PLACE) else attrs.evolve(each, path=f"{path}: {each.path}") for each in named]
        )
    return Assembled(settings, handlers, found)


def _extend_path(directories: list[str]) -> None:
    for directory in reversed(directories):
        if directory not in sys.path:
            sys.path.insert(0, directory)


def _registered(settings: Settings) -> tuple[list[Registered], list[Problem]]:
    """Import [service] modules; return what they register, and what is wrong with them."""
    modules, problems = [], []
    for index, name in enumerate(settings.service.modules):
        where = f"service.modules[{index}]"
        if not lint.package(name):
            continue
        try:
            module = imported(name, name)
        except HandlerError as error:
            problems.append(Problem(where, str(error)))
            continue
        modules.append(module)
        if not registered([module]):
            problems.append(
                Problem(
                    where, f"{name} registers no handler", "mark one with @rpcd.message_handler, or leave the module out"
                )
            )
    found = registered(modules)
    problems += [
        Problem(
            f"{PLACE}{by} {path}",
            "no top-level name of its module leads to it, so it would never run",
            "give it one of its own, and use functools.wraps in decorators above",
        )
        for by, path in unreachable(modules, found)
        if any(each.path.startswith(f"{path.partition(':')[0]}:") for each in found)  # else that is told of the whole module
    ]
    return [placed(each, settings) for each in found], problems


def _handlers(settings: Settings, given: Mapping[str, Any]) -> tuple[dict[str, Handlers], list[Problem]]:
    """Import the handlers of all consumers; return them by the consumers' names, and what is wrong with them."""
    handlers: dict[str, Handlers] = {}
    problems: list[Problem] = []
    for name, consumer in settings.consumers.items():
        path = consumer.handler
        if path is not None and lint.dotted(path):
            try:
                handlers[name] = looked_at(path, given[name]) if name in given else checked_target(path)
            except HandlerError as error:
                problems.append(Problem(f"consumers.{name}.handler", str(error)))
        elif consumer.namespace is not None and lint.package(consumer.namespace):
            handlers[name], wrong = find(name, consumer, settings)
            problems += wrong
        found = handlers.get(name, {})
        targets = [found] if isinstance(found, Target) else found.values()
        problems += keys.unmet(settings, name, [(each.path, each.body) for each in targets])
    return handlers, problems
