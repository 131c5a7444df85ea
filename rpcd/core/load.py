"""Parsed TOML or YAML -> settings: every mistake is found at once, and each names its path and the way out."""

import difflib
import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import attrs
import cattrs
from cattrs.cols import list_structure_factory
from cattrs.errors import BaseValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, mapping_structure_factory

from rpcd.core import overlay
from rpcd.core import settings as tree
from rpcd.core.address import AddressError, address, virtual_host_of, whole
from rpcd.core.errors import Problem, SettingsError
from rpcd.core.expand import Expander, ReadFile
from rpcd.core.lint import lint
from rpcd.core.settings import Settings
from rpcd.core.tables import MAX_SHORT

LONGEST_SECONDS = 1e9
"""Some thirty years: a longer time is a slip of the pen."""

_OF_URL = ("url", "username", "password", "virtual_host")
"""What RABBITMQ_URL replaces."""

Path = tuple[str | int, ...]

TableT = TypeVar("TableT")


def load(
    parsed: Mapping[str, Any], environment: Mapping[str, str], read: ReadFile, virtual_host: str | None = None
) -> tuple[Settings, list[Problem]]:
    """Turn a parsed config file into settings and a list of every problem that could be found.

    With problems the settings are what is left without the parts at fault: good for further checks, never to be run.
    `environment` gives what strings are expanded from, and RABBITMQ_URL and RABBITMQ_HEARTBEAT, which win over the file.
    `virtual_host` names the overlay that is laid over the file; it wins over the virtual host in RABBITMQ_URL.
    """
    expander = Expander(environment, read)
    raw = expander.tree(overlay.laid(parsed, virtual_host))
    _choose_broker(raw, parsed, environment, virtual_host)
    if overlay.OVERLAYS in parsed:
        raw[overlay.OVERLAYS] = _sweep(parsed[overlay.OVERLAYS])  # a copy, whose strings stay as they are
    settings, problems = _structure(raw, Settings)
    problems = [*expander.problems, *overlay.mistakes(parsed, virtual_host), *problems]
    if not any(problem.path == "broker.url" for problem in problems):
        problems += _address_problems(settings, environment)
    empty = not overlay.laid(parsed, virtual_host).get("consumers")  # else they were taken out, and it was said why
    told = {problem.path for problem in problems} | (set() if empty else {"consumers"})
    problems += [problem for problem in lint(settings) if problem.path not in told]
    return settings, overlay.placed(problems, parsed, virtual_host)


def _choose_broker(
    raw: dict[str, Any], parsed: Mapping[str, Any], environment: Mapping[str, str], virtual_host: str | None
) -> None:
    """Put in what wins over the file's [broker]: RABBITMQ_URL, and over that the virtual host that was asked for."""
    broker = raw.get("broker", {})
    if not isinstance(broker, dict):
        return
    over = overlay.chosen(parsed, virtual_host).get("broker", {})
    said = {key: broker[key] for key in _OF_URL if key in over}  # expanded by now
    if "RABBITMQ_URL" in environment:
        own = {key: value for key, value in broker.items() if key not in _OF_URL}  # another broker gets no password
        raw["broker"] = broker = {**own, "url": environment["RABBITMQ_URL"]}
    if virtual_host in overlay.names(parsed):
        named = said["url"] if isinstance(said.get("url"), str) else ""
        raw["broker"] = {**broker, "virtual_host": said.get("virtual_host", virtual_host_of(named) or virtual_host)}


def heartbeat(environment: Mapping[str, str]) -> int | None:
    """Return RABBITMQ_HEARTBEAT, or None when it is not set; raise AddressError when it is no number."""
    text = environment.get("RABBITMQ_HEARTBEAT")
    return None if text is None else whole(text)


def _address_problems(settings: Settings, environment: Mapping[str, str]) -> Iterator[Problem]:
    try:
        heartbeat(environment)
    except AddressError as error:
        yield Problem("RABBITMQ_HEARTBEAT", str(error))
    try:
        address(settings.broker)
    except AddressError as error:
        yield Problem("RABBITMQ_URL" if "RABBITMQ_URL" in environment else "broker.url", str(error))


def table(raw: Mapping[str, Any], kind: type[TableT]) -> tuple[TableT, list[Problem]]:
    """Turn one table into an attrs class of settings, all of which have defaults, and a list of every problem."""
    return _structure(dict(raw), kind)


def _structure(raw: dict[str, Any], kind: type[TableT]) -> tuple[TableT, list[Problem]]:
    """Structure the tree; parts at fault are reported and taken out until the rest is right."""
    converter = _converter()
    problems: list[Problem] = []
    while True:
        try:
            return converter.structure(raw, kind), problems
        except BaseValidationError as error:
            found = list(_mistakes(error, kind, ()))
            fresh = [problem for path, within, mistake in found for problem in _problem(path, within, mistake)]
            if all(problem in problems for problem in fresh):
                raise SettingsError(problems) from error  # a mistake that can't be taken out must not be looked at for ever
            problems += fresh
            for path, within, mistake in found:
                _take_out(raw, path, within, mistake)
            raw = _sweep(raw)


def _exact(kind: type, wanted: str) -> Callable[[Any, Any], Any]:
    """Build a hook that takes a type and nothing that merely looks like it: "5" is no number, 1 no boolean."""

    def hook(value: Any, _target: Any) -> Any:
        if type(value) is not kind:
            got = "a number" if kind is str and type(value) in (int, float) else _shown(value)  # it may be a password
            hint = " (an empty one is {})" if kind is dict and value is None else ""
            raise ValueError(f"expected {wanted}, got {got}{hint}")
        return value

    return hook


def _seconds(value: Any, _target: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < LONGEST_SECONDS:
        raise ValueError(f"expected a number of seconds, got {_shown(value)}")
    return float(value)


def _positive(value: Any, _target: Any) -> int:
    if type(value) is not int or not 1 <= value < 2**63:
        raise ValueError(f"expected a whole number from 1, got {_shown(value)}")
    return int(value)


def _name(value: Any, _target: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value.encode(errors="replace")) <= MAX_SHORT:
        raise ValueError(f"expected a name of 1 to 255 bytes, got {_shown(value)}")
    return value


def _word(value: Any, target: Any) -> Any:
    words = typing.get_args(target)
    if value not in words or type(value) is not str:
        got = repr(value) if isinstance(value, str) else _shown(value)
        raise ValueError(f"expected {' or '.join(f'{word!r}' for word in words)}, got {got}")
    return value


def _shown(value: Any) -> str:
    """Show a value of the config by its kind, and by itself only where it can be no secret."""
    kinds: dict[Any, str] = {str: "a string", dict: "a table", list: "an array", type(None): "nothing"}
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, int | float) else kinds.get(type(value), f"a {type(value).__name__}")


def _container(
    origin: type, wanted: str, usual: Callable[[Any, cattrs.Converter], Any]
) -> Callable[[Any, cattrs.Converter], Any]:
    """Build a hook factory that checks for the container's own type before cattrs looks into it."""

    def factory(target: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
        check, structure = _exact(origin, wanted), usual(target, converter)
        return lambda value, kind: structure(check(value, kind), kind)

    return factory


def _section(target: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    return make_dict_structure_fn(target, converter, _cattrs_forbid_extra_keys=True)


def _origin(kind: Any) -> Any:
    return typing.get_origin(kind)


@functools.cache
def _converter() -> Any:
    converter: Any = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind, wanted in ((str, "a string"), (bool, "true or false"), (int, "a whole number")):
        converter.register_structure_hook(kind, _exact(kind, wanted))
    converter.register_structure_hook(tree.Seconds, _seconds)
    converter.register_structure_hook(tree.Positive, _positive)
    converter.register_structure_hook(tree.Name, _name)
    converter.register_structure_hook_func(lambda kind: kind is Any, lambda value, _target: value)
    converter.register_structure_hook_func(lambda kind: _origin(kind) is typing.Literal, _word)
    lists = _container(list, "an array", list_structure_factory)
    tables = _container(dict, "a table", mapping_structure_factory)
    converter.register_structure_hook_factory(lambda kind: _origin(kind) is list, lists)
    converter.register_structure_hook_factory(lambda kind: _origin(kind) is dict, tables)
    converter.register_structure_hook_factory(attrs.has, _container(dict, "a table", _section))
    return converter


def _mistakes(error: BaseException, kind: Any, path: Path) -> Iterator[tuple[Path, Any, BaseException]]:
    """Go through a tree of errors and yield each leaf with its path and the section class that it is in."""
    if not isinstance(error, BaseValidationError):
        yield path, kind, error
        return
    inside, here = error.group_exceptions()  # type: ignore[attr-defined]  # both kinds of group have it
    for each, note in inside:
        yield from _mistakes(each, error.cl, (*path, note.name if hasattr(note, "name") else note.index))
    for each in here:
        yield from _mistakes(each, error.cl, path)


def _problem(path: Path, kind: Any, mistake: BaseException) -> Iterator[Problem]:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if isinstance(mistake, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(mistake.cl)]
        for unknown in sorted(map(str, mistake.extra_fields)):
            close = difflib.get_close_matches(unknown, known, 1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
            yield Problem(f"{where}.{unknown}".lstrip("."), "unknown key", remedy)
    elif isinstance(mistake, KeyError):
        sentence = tree.sentences(kind).get(str(mistake.args[0]), "") if attrs.has(kind) else ""
        yield Problem(where, "missing", sentence)
    else:
        yield Problem(where, str(mistake))


_GONE = object()


def _take_out(raw: dict[str, Any], path: Path, kind: Any, mistake: BaseException) -> None:
    """Remove what is at fault from the raw tree; a section whose required key is missing or wrong goes as a whole."""
    if isinstance(mistake, ForbiddenExtraKeysError):
        section = _at(raw, path)
        for key in mistake.extra_fields if isinstance(section, dict) else ():  # else it has gone as a whole already
            section.pop(key, None)
        return
    if isinstance(mistake, KeyError) or _required(kind, path[-1]):
        path = path[:-1]
    holder: Any = _at(raw, path[:-1])
    last: Any = path[-1]
    if isinstance(holder, list):
        holder[last] = _GONE  # keeps the places of its neighbours until all mistakes are taken out
    elif isinstance(holder, dict):
        holder.pop(last, None)
        if path[:-1] in (("queues",), ("exchanges",)):
            holder[last] = {}  # others may refer to it: one mistake is not to look like several


def _required(kind: Any, name: str | int) -> bool:
    return attrs.has(kind) and any(field.name == name and field.default is attrs.NOTHING for field in attrs.fields(kind))


def _at(raw: Any, path: Path) -> Any:
    """Return what is at a path, or an empty table where another mistake has already been taken out."""
    part: Any
    for part in path:
        raw = raw.get(part, {}) if isinstance(raw, dict) else raw[part] if isinstance(raw, list) else {}
    return raw


def _sweep(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sweep(item) for key, item in value.items()}
    return [_sweep(item) for item in value if item is not _GONE] if isinstance(value, list) else value
