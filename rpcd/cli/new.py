"""`rpcd new`: a small project that works: handlers, config, tests, and what systemd needs."""

import errno
import importlib.machinery
import importlib.resources
import keyword
import re
import shlex
import sys
from pathlib import Path

import click

from rpcd.cli.compose import USAGE
from rpcd.cli.show import end, say

_FILES = {
    "README.md": "README.md.txt",
    ".gitignore": "gitignore.txt",
    "pyproject.toml": "pyproject.toml.txt",
    "@name@.toml": "config.toml.txt",
    "@name@/__init__.py": None,
    "@name@/handlers.py": "handlers.py.txt",
    "tests/test_handlers.py": "test_handlers.py.txt",
    "systemd/default": "default.txt",
    "systemd/unit.conf": "unit.conf.txt",
}
"""Every file of the project, and the template that it is made from."""

LONGEST = 26
"""Characters of a name: the unit's user is called after it; see systemd/rpcd@.service."""


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="What the project is called, if not as DIR is.")
def new(directory: Path, name: str | None) -> None:
    """Make a small project that works.

    It has handlers, a config, tests, and what systemd needs. The tests pass, and `rpcd dev` runs it.

    DIR is made, or is empty but for hidden files and virtual environments. Its name is that of the project, and so of its
    package, config, unit and queues.

    Exit code: 0 if it was made, 1 if DIR is not empty or can't be written to, 2 if that can't be a name.

    Example: rpcd new shop
    """
    place = directory.resolve()
    chosen = name if name is not None else place.name
    if (wrong := _wrong(chosen)) is not None:
        end(f"{chosen!r} can't be the name: {wrong}; say another one: {_advice(directory, chosen)}", USAGE)
    try:
        if (there := _in_the_way(place, chosen)) is not None:
            end(f"{directory} is not empty: {there} is there; name a new directory", 1)
        _write(place, chosen)
    except OSError as error:
        end(f"{error.filename or directory}: {error.strerror}", 1)
    inside = "" if place == Path.cwd() else f"cd {shlex.quote(str(directory))}\n"
    say(f"{chosen} is made. Go on with:\n\n{inside}pytest\nrpcd dev --config {chosen}.toml\n\nREADME.md says more.")


def _wrong(name: str) -> str | None:
    """Say why a project can't be called like that, or return None."""
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
        return "it has to be an identifier of Python's, for a package is called like that"
    if len(name) > LONGEST:
        return f"it has {len(name)} characters, and {LONGEST} are the most: the unit's user is called after it"
    if name in sys.stdlib_module_names or name in ("rpcd", "tests", "systemd"):
        return "there is a package of that name already"
    if (found := importlib.machinery.PathFinder.find_spec(name)) is not None and found.origin is not None:
        return f"there is a package of that name already ({found.origin})"
    return None


def _advice(directory: Path, name: str) -> str:
    """Return a command that would do."""
    close = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()[:LONGEST]
    close = close if close and _wrong(close) is None else "shop"
    return f"rpcd new {shlex.quote(str(directory))} --name {close}"


def _in_the_way(directory: Path, name: str) -> str | None:
    """Return what is in a directory already, but for what a new project usually begins with."""
    if not directory.exists():
        return None
    made = {_named(place, name).partition("/")[0] for place in _FILES}
    return next(
        (
            each.name
            for each in sorted(directory.iterdir())
            if each.name in made or not (each.name.startswith(".") or (each / "pyvenv.cfg").exists())
        ),
        None,
    )


def _write(directory: Path, name: str) -> None:
    templates = importlib.resources.files("rpcd.cli") / "project"
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is no directory", str(directory))
    for place, template in _FILES.items():
        path = directory / _named(place, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "" if template is None else _named((templates / template).read_text("utf-8"), name)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)


def _named(text: str, name: str) -> str:
    return text.replace("@name@", name)
