"""The config file as it lies on the disk: which file is read, and in which language it is written."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from rpcd.core.errors import Problem, SettingsError
from rpcd.core.expand import CREDENTIALS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

YAML = (".yaml", ".yml")
"""The endings of file names that mean YAML."""


def parse(path: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Read a config file and return its tables as they stand; raise SettingsError if it is no valid TOML or YAML.

    A name that ends with .yaml or .yml means YAML, any other TOML.

    systemd's copy is read instead of a file that this user may not read; messages go on naming the file itself.
    """
    try:
        text = located(path, environment).read_text(encoding="utf-8-sig")
    except PermissionError as error:
        way_out = f"let this user read it, or have systemd hand over a copy: LoadCredential={Path(path).name}:{path}"
        raise SettingsError([Problem(path, f"can't be read: {error.strerror}", way_out)]) from None
    except OSError as error:
        raise SettingsError([Problem(path, f"can't be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise SettingsError([Problem(path, "is not UTF-8 text")]) from None
    return _yaml(path, text) if path.lower().endswith(YAML) else _toml(path, text)


def _toml(path: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        way_out = "" if path.endswith(".toml") else "YAML is read from files whose names end with .yaml or .yml"
        raise SettingsError([Problem(path, f"is not valid TOML: {error}", way_out)]) from None


def _yaml(path: str, text: str) -> dict[str, Any]:
    try:
        from rpcd import yaml  # noqa: PLC0415  # PyYAML is an extra
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        way_out = 'pip install "rpcd[yaml]" (Debian: apt-get install python3-yaml), or write it in TOML'
        raise SettingsError([Problem(path, "is YAML, and PyYAML is not installed", way_out)]) from None
    try:
        return yaml.parse(text)
    except yaml.YamlError as error:
        named = [attrs.evolve(each, path=f"{path}: {each.path}" if each.path else path) for each in error.problems]
        raise SettingsError(named) from None


def located(path: str, environment: Mapping[str, str]) -> Path:
    """Return the file that is read: the config file, or systemd's copy if there is one and this user may read no other."""
    directory = environment.get(CREDENTIALS)
    if directory and _forbidden(path):  # a unit with DynamicUser=
        copy = Path(directory, Path(path).name)
        if copy.exists():
            return copy
    return Path(path)


def stale(path: str, environment: Mapping[str, str]) -> Problem | None:
    """Return why a config can't be read afresh, or None if it can: systemd copies it once, when the unit starts."""
    if located(path, environment) == Path(path):
        return None
    return Problem(
        path,
        "can't be read by this user, and systemd's copy of it is as old as this process",
        "restart the unit (systemctl restart), or keep secrets out of the file (${credential:...}) and let everybody "
        "read it",
    )


def _forbidden(path: str) -> bool:
    try:
        Path(path).stat()
    except PermissionError:
        return True
    except OSError:
        return False  # another matter, which reading it will tell
    return not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)
