"""The Fernet keys that a command works with: from a config, or from a key file, which it may also write."""

import os
import time
from pathlib import Path
from typing import NoReturn

from rpcd.cli.show import end
from rpcd.config import read
from rpcd.core.crypto import Keyring
from rpcd.core.errors import ExitCode, SettingsError
from rpcd.core.keys import GENERATE, is_key, keys_in
from rpcd.modes import faults

EXISTS = 1
"""The exit code of a command that would have to write over something."""

CANNOT_CREATE = 73
"""A file can't be written; the word of sysexits(3)."""

OWNER_ONLY = 0o600


def keyring(config: str | None, virtual_host: str | None, key_file: str | None) -> Keyring:
    """Return the keys of a key file or a config; end with 78 if there are none, or one of them is wrong."""
    return Keyring(in_file(key_file) if key_file is not None else _of_config(str(config), virtual_host))


def _of_config(config: str, virtual_host: str | None) -> list[str]:
    try:
        found, problems = read(config, dict(os.environ), virtual_host)
    except SettingsError as error:
        end(str(error), ExitCode.CONFIG)
    wrong = [
        f"{config}: {each}" for each in problems if "fernet" in each.path or each.path == f"virtual_hosts.{virtual_host}"
    ]
    if wrong:
        end("\n".join(wrong), ExitCode.CONFIG)
    if not found.broker.fernet_keys:
        end(f"{config}: broker.fernet_keys: there is no key; {GENERATE}", ExitCode.CONFIG)
    return keys_in(found.broker)


def in_file(name: str) -> list[str]:
    """Return the keys of a key file, newest first; end with 78 if it holds none, something else, or is open to others."""
    try:
        text, status = Path(name).read_text(encoding="utf-8"), Path(name).stat()
    except (OSError, ValueError) as error:
        end(f"{name}: can't be read: {getattr(error, 'strerror', None) or 'it is no text'}", ExitCode.CONFIG)
    for fault, who in faults(status, secret=True).items():
        end(f"{name}: is open to {who}; chmod {fault} {name}", ExitCode.CONFIG)
    keys = text.split()
    for number, key in enumerate(keys, 1):
        if not is_key(key):
            end(f"{name}: line {number} is no Fernet key (32 bytes in URL-safe base64: 44 characters)", ExitCode.CONFIG)
    if not keys:
        end(f"{name}: holds no key; {GENERATE}", ExitCode.CONFIG)
    return keys


def create(name: str, key: str) -> None:
    """Write a new key file that only its owner may read; end with 1 if there is such a file."""
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OWNER_ONLY)
    except FileExistsError:
        end(f"{name}: is there already, and is not written over; --append {name} adds a key to it", EXISTS)
    except (OSError, ValueError) as error:
        _cannot(name, error)
    try:
        with os.fdopen(descriptor, "w") as file:
            _written(file.fileno(), [key])
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        _cannot(name, error)


def replace(name: str, keys: list[str]) -> None:
    """Write a key file anew in one step, with the mode and the owner that it has: a reader finds the old keys or the new."""
    place = os.path.realpath(name)  # a link stays one
    fresh = f"{place}.{os.getpid()}-{time.monotonic_ns()}"
    try:
        status = Path(place).stat()
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OWNER_ONLY)
        try:
            _written(descriptor, keys)
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, status.st_mode & 0o7777)
            Path(fresh).replace(place)
        except OSError:
            Path(fresh).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        _cannot(name, error)


def _written(descriptor: int, keys: list[str]) -> None:
    data = "".join(f"{key}\n" for key in keys).encode()
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)


def _cannot(name: str, error: Exception) -> NoReturn:
    end(f"{name}: can't be written: {getattr(error, 'strerror', None) or error}", CANNOT_CREATE)
