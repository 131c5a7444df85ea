"""The manual pages, made from the same words as --help and the settings: `python -m rpcd.cli.man DIRECTORY`.

rpcd(1), a page for each command, and rpcd.toml(5). They hold no date, so that they are the same whenever they are made.
"""

import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import attrs
import click

from rpcd import __version__
from rpcd.cli import main
from rpcd.cli.compose import USAGE
from rpcd.core import settings

_KINDS: dict[Any, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    settings.Seconds: "seconds",
    settings.Positive: "integer from 1",
    settings.Name: "name",
    Any: "any value",
}
"""How an operator calls the types of settings."""

_ENVIRONMENT = (
    ("RPCD_CONFIG", "The config file, if no --config is given."),
    ("RABBITMQ_URL", "The broker; wins over the config's. --url wins over it."),
    ("RABBITMQ_HEARTBEAT", "Seconds between heartbeats; wins over the URL and the config."),
    ("RPCD_VIRTUAL_HOST", "The virtual host, and so its overlay in the config, if no --virtual-host is given."),
    ("CREDENTIALS_DIRECTORY", "Where ${credential:NAME} of the config is looked for; systemd sets it for a unit."),
    ("RPCD_LOG_FORMAT", "text or json; wins over the format in [logging]."),
    (
        "LOGGING_FILE_CONFIG",
        "A file for Python's logging.config.fileConfig that takes the place of [logging]; for the daemon.",
    ),
)

_PLACES = (
    "Strings may hold ${NAME}, ${NAME:default}, ${file:PATH} and ${credential:NAME}: a variable of the environment, the "
    "text of a file, a credential of systemd's. Times are seconds. Unknown keys are errors. `rpcd check` tells all mistakes."
)


def escaped(text: str) -> str:
    """Escape what roff would take for its own; `words` in backquotes become bold."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("^", "\\(ha").replace("~", "\\(ti")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fP", text)
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


def page(title: str, section: int, summary: str, parts: Iterator[str]) -> str:
    """Put a page together; `parts` are lines of roff."""
    head = [
        f'.TH "{escaped(title.upper())}" "{section}" "" "rpcd {escaped(__version__)}" "rpcd"',
        ".SH NAME",
        f"{escaped(title)} \\- {escaped(summary)}",
    ]
    return "\n".join([*head, *parts]) + "\n"


def commands() -> Iterator[tuple[str, str]]:
    """Yield name and text of rpcd(1) and of the page of each command."""
    context = click.Context(main, info_name="rpcd", **main.context_settings)
    pages = [f"rpcd-{name}" for name in sorted(main.commands)]
    yield (
        "rpcd.1",
        page("rpcd", 1, _summary(main), _command(main, context, [*(f"{each}(1)" for each in pages), "rpcd.toml(5)"])),
    )
    yield from _pages(main, context, "rpcd")


def _pages(group: click.Group, context: click.Context, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the page of each command of a group, and those of the commands within it."""
    for name, command in sorted(group.commands.items()):
        title = f"{prefix}-{name}"
        inner = click.Context(command, info_name=name, parent=context)
        within = sorted(command.commands) if isinstance(command, click.Group) else []
        also = [f"{prefix}(1)", *(f"{title}-{each}(1)" for each in within), "rpcd.toml(5)"]
        yield f"{title}.1", page(title, 1, _summary(command), _command(command, inner, also))
        if isinstance(command, click.Group):
            yield from _pages(command, inner, title)


def _summary(command: click.Command) -> str:
    first = _paragraphs(command)[0]
    return first[0].lower() + first[1:].rstrip(".")


def _paragraphs(command: click.Command) -> list[str]:
    """Return the paragraphs of a command's help; one that click is to leave as it is keeps its line ends."""
    found = []
    for part in textwrap.dedent(command.help or "").split("\n\n"):
        text = part.strip("\n").removeprefix("\b\n")
        kept = text != part.strip("\n") and not text.startswith("Example: ")
        found.append(text if kept else " ".join(text.split()))
    return [each for each in found if each]


def _command(command: click.Command, context: click.Context, also: list[str]) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield from (".SH SYNOPSIS", f".B {escaped(context.command_path)}", escaped(usage), ".SH DESCRIPTION")
    codes, examples = [], []
    for paragraph in _paragraphs(command):
        kind, _, rest = paragraph.partition(": ")
        if kind == "Exit code":
            codes.append(rest)
        elif kind == "Example":
            examples.append(rest)
        elif "\n" in paragraph:
            yield from (".PP", ".nf", ".RS", *map(escaped, paragraph.splitlines()), ".RE", ".fi")
        else:
            yield from (".PP", escaped(paragraph))
    yield from _options(command, context)
    yield from _section("EXIT STATUS", codes)
    yield ".SH ENVIRONMENT"
    for name, meaning in _ENVIRONMENT:
        yield from (".TP", f".B {name}", escaped(meaning))
    if examples:
        yield ".SH EXAMPLES"
        for example in examples:
            yield from (".PP", ".nf", ".RS", escaped(example), ".RE", ".fi")
    yield from _section("SEE ALSO", [", ".join(also)])


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    yield ".SH OPTIONS"
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)) is not None:
            yield from (".TP", f".B {escaped(record[0])}", escaped(record[1]))
    if isinstance(command, click.Group):
        yield ".SH COMMANDS"
        for name, each in sorted(command.commands.items()):
            yield from (".TP", f".B {escaped(f'{context.command_path} {name}')}", escaped(_paragraphs(each)[0]))


def _section(title: str, paragraphs: list[str]) -> Iterator[str]:
    if paragraphs:
        yield f".SH {title}"
        yield from (line for paragraph in paragraphs for line in (".PP", escaped(paragraph)))


def config() -> str:
    """Return the text of rpcd.toml(5)."""
    return page("rpcd.toml", 5, "the config file of rpcd", _config())


def _config() -> Iterator[str]:
    yield from _section(
        "DESCRIPTION", ["One TOML file tells rpcd which broker to use, what to declare and what to run.", _PLACES]
    )
    yield from _table(settings.Settings, ())
    yield ".SH EXAMPLE"
    example = '[queues.orders]\n[consumers.orders]\nqueue = "orders"\nhandler = "shop.orders:PlaceOrder"\nworkers = 8'
    yield from (".PP", ".nf", ".RS", escaped(example), ".RE", ".fi")
    yield from _section("SEE ALSO", ["rpcd(1), rpcd-check(1), rpcd-declare(1), twistd(1)"])


def _table(kind: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Describe a section and those within it."""
    types = typing.get_type_hints(kind)
    if path:
        name = ".".join(path)
        yield f'.SH "{escaped(f"[{name}]")}"'
        yield from (".PP", escaped(_about(kind))) if _about(kind) else ()
    inner = []
    for field in attrs.fields(kind):
        found = _inside(types[field.name])
        if found is not None and typing.get_origin(types[field.name]) is not list:
            inner.append((found, (*path, field.name, *(("NAME",) if _is_table(types[field.name]) else ()))))
            continue
        yield from _setting(field, types[field.name])
        if found is not None:
            yield ".RS"
            yield from (
                line for each in attrs.fields(found) for line in _setting(each, typing.get_type_hints(found)[each.name])
            )
            yield ".RE"
    for found, where in inner:
        yield from _table(found, where)


def _about(kind: Any) -> str:
    """Return what a section is for, from its docstring: `[name]`: what it is for."""
    text = (kind.__doc__ or "").partition(": ")[2].strip()
    return text[:1].upper() + text[1:]


def _setting(field: Any, kind: Any) -> Iterator[str]:
    default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
    shown = "" if default in (None, attrs.NOTHING) else f" Default: {_value(default)}."
    required = " Required." if default is attrs.NOTHING else ""
    yield from (".TP", f'.BR {escaped(field.name)} " ({escaped(_kind(kind))})"')
    yield escaped(field.metadata["sentence"] + required + shown)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return "{}" if value == {} else f"{value:g}" if isinstance(value, float) else str(value)


def _is_table(kind: Any) -> bool:
    return typing.get_origin(kind) is dict


def _inside(kind: Any) -> Any:
    """Return the section class of a setting that is a section, a table of them or an array of them; else None."""
    inner = typing.get_args(kind)[-1] if typing.get_origin(kind) in (dict, list) else kind
    return inner if isinstance(inner, type) and attrs.has(inner) else None


def _kind(kind: Any) -> str:
    """Name the type of a setting."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (UnionType, typing.Union):
        return " or ".join(_kind(each) for each in inner if each is not NoneType)
    if origin is typing.Literal:
        return " or ".join(f'"{each}"' for each in inner)
    if origin is list:
        return "array of tables" if _inside(kind) is not None else f"array of {_kind(inner[0])}s"
    return "table" if origin is dict else _KINDS.get(kind, str(kind))


def write(directory: Path) -> list[Path]:
    """Write all pages into a directory and return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    pages = {**dict(commands()), "rpcd.toml.5": config()}
    for name, text in pages.items():
        (directory / name).write_text(text, encoding="utf-8")
    return [directory / name for name in pages]


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004  # the program and one argument
        sys.stderr.write("usage: python -m rpcd.cli.man DIRECTORY\n")
        sys.exit(USAGE)
    for path in write(Path(sys.argv[1])):
        sys.stdout.write(f"{path}\n")
