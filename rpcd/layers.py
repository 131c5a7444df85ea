"""From what a config calls its layers to what is folded around handlers: named, imported, checked, in one order.

The order is written here, once: the layers of `[service]` are outermost, then those of the consumer, then those that the
handler names itself; within each list the first is the outermost.
"""

import difflib
import importlib
import inspect
import pkgutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

import rpcd.features
from rpcd.core import lint
from rpcd.core.errors import Problem
from rpcd.core.handler import HandlerError, Layer, Target
from rpcd.core.layers import OWN, PATH, layer, own_layers
from rpcd.core.settings import Settings
from rpcd.importing import resolve

Handlers = Target | Mapping[str, Target]


def known() -> list[str]:
    """Return the names of rpcd's own layers."""
    return sorted(each.name for each in pkgutil.iter_modules(rpcd.features.__path__))


def prepare(settings: Settings, place: Path) -> None:
    """Set up rpcd's own layers that the file names, before handlers are imported: Django's models need that.

    What is wrong is told by `layered`.
    """
    book = _Book(settings, place)
    for where, entry in _entries(settings):
        if "." not in book.path(entry) and ":" not in book.path(entry):
            book.found(where, entry)


def layered(settings: Settings, handlers: Mapping[str, Handlers], place: Path) -> tuple[dict[str, Handlers], list[Problem]]:
    """Return the handlers of all consumers with their layers, and what is wrong with those.

    `place` is the directory of the config file, where relative paths begin.
    """
    book = _Book(settings, place)
    problems = book.problems
    around = {where: book.found(where, entry) for where, entry in _entries(settings)}
    outer = [made for where, made in around.items() if where.startswith("service.")]
    done: dict[str, Handlers] = {}
    for name, each in handlers.items():
        before = f"consumers.{name}.layers["
        layers = [*outer, *(made for where, made in around.items() if where.startswith(before))]
        own = f"consumers.{name}.{'handler' if isinstance(each, Target) else 'namespace'}"
        if isinstance(each, Target):
            done[name] = book.folded(own, each, layers)
        else:
            done[name] = {exchange: book.folded(own, target, layers) for exchange, target in each.items()}
    for name in settings.layers:
        if name not in book.used:
            close = difflib.get_close_matches(name, book.used, 1)
            remedy = f"did you mean {close[0]!r}?" if close else "name it in `layers`, or leave it out"
            problems.append(Problem(f"layers.{name}", "no consumer has a layer of this name", remedy))
    return done, problems


def _entries(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield every layer that the settings name, with its place; the outermost first."""
    for index, entry in enumerate(settings.service.layers):
        yield f"service.layers[{index}]", entry
    for name, consumer in settings.consumers.items():
        for index, entry in enumerate(consumer.layers):
            yield f"consumers.{name}.layers[{index}]", entry


class _Book:
    """The layers of one config, each found once, and what is wrong with them."""

    def __init__(self, settings: Settings, place: Path) -> None:
        self.used: set[str] = set()
        self.problems: list[Problem] = []
        self._sections = settings.layers
        self._place = place
        self._known: dict[str, Layer | None] = {}

    def path(self, entry: str) -> str:
        """Return the dotted path of a layer, or the name of one of rpcd's own."""
        said = self._sections.get(entry, {}).get(PATH, entry)
        return said if isinstance(said, str) else entry

    def found(self, where: str, entry: str, within: str = "") -> Layer | None:
        """Return a layer, or None if something is wrong with it: that is told once, of where it is named first."""
        if entry not in self._known:
            try:
                self._known[entry] = self._find(entry)
            except HandlerError as error:
                self._known[entry] = None
                self.problems.append(Problem(where, f"{within}{error}"))
        return self._known[entry]

    def _find(self, entry: str) -> Layer | None:
        """Import a layer and check it, and its config if it is one of rpcd's own; raise HandlerError."""
        self.used.add(entry)
        section = self._sections.get(entry, {})
        table = {key: value for key, value in section.items() if key != PATH}
        if not isinstance(section.get(PATH, ""), str):
            raise HandlerError(f"layers.{entry}.{PATH} is no dotted path: expected package.module:name")
        path = self.path(entry)
        if "." not in path and ":" not in path:
            return self._feature(entry, path, table)
        if not lint.dotted(path):
            raise HandlerError(f"{path!r} is no dotted path: expected package.module:name, or one of {', '.join(known())}")
        try:
            return layer(path, resolve(path), table or None)
        except HandlerError:
            raise
        except Exception as error:  # looking at the user's objects may run their code
            raise HandlerError(f"{path} can't be looked at: {_said(error)}") from error

    def _feature(self, entry: str, name: str, table: Mapping[str, Any]) -> Layer | None:
        if name not in known():
            close = difflib.get_close_matches(name, known(), 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known())}"
            raise HandlerError(f"rpcd has no layer {name!r}; {hint}; a layer of your own is package.module:name")
        module = importlib.import_module(f"rpcd.features.{name}")
        check: Callable[[Mapping[str, Any], Path], tuple[Any, list[Problem]]] = module.check
        try:
            config, wrong = check(table, self._place)
        except HandlerError:
            raise
        except BaseException as error:  # what it sets up may be the user's code: Django's settings
            raise HandlerError(f"the layer {name} can't be set up: {_said(error)}") from error
        self.problems += [attrs.evolve(each, path=f"layers.{entry}.{each.path}".rstrip(".")) for each in wrong]
        return None if wrong else layer(name, module.layer, config)

    def folded(self, where: str, target: Target, around: list[Layer | None]) -> Target:
        """Return a handler with what is around it, and its own layers; `where` is what names the handler."""
        own: list[Layer | None] = []
        try:
            for index, each in enumerate(own_layers(target.path, target.value)):
                place = f"{target.path}.{OWN}[{index}]"
                made = self.found(where, each, f"{place}: ") if isinstance(each, str) else layer(_called(each, place), each)
                own.append(made)
        except HandlerError as error:
            self.problems.append(Problem(where, str(error)))
        layers = tuple(each for each in (*around, *own) if each is not None)
        return attrs.evolve(target, layers=layers) if layers else target


def _called(value: Any, otherwise: str) -> str:
    """Return what a layer that was given as an object is called."""
    if inspect.isroutine(value) or inspect.isclass(value):
        return f"{value.__module__}:{value.__qualname__}"
    return otherwise


def _said(error: BaseException) -> str:
    said = traceback.format_exception_only(error)[-1].strip()
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith("<")]
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else said
