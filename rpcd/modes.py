"""Who may read a config's secrets, and who may change what it makes rpcd run: the modes of its files.

Everybody may read a config without secrets. A file that its group may change is taken only if the group is root's, or the
owner's own (Debian gives every user one). What systemd hands over in $CREDENTIALS_DIRECTORY is systemd's business.
"""

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rpcd.core import overlay, secrets
from rpcd.core.errors import Problem
from rpcd.core.expand import CREDENTIALS
from rpcd.files import located


def problems(
    raw: Mapping[str, Any], path: str, environment: Mapping[str, str], virtual_host: str | None, key: str | None
) -> Iterator[Problem]:
    """Check the config file, the files that its secrets are read from, and the private key for TLS."""
    written = secrets.written_out(raw)
    status = _status(located(path, environment), environment)
    if status is not None:
        wrong = faults(status, bool(written))
        if "o-r" in wrong:
            way_out = f"{_chmod(['o-r'], path)}, or keep it elsewhere: ${{credential:NAME}} or ${{file:PATH}}"
            yield Problem("mode", f"{_mode(status)} lets everybody read what is secret: {', '.join(written)}", way_out)
        changes = {fault: who for fault, who in wrong.items() if fault != "o-r"}
        if changes:
            what = f"{_mode(status)} lets {' and '.join(changes.values())} change it, and so choose the code that rpcd runs"
            yield Problem("mode", what, _chmod(changes, path))
    place = Path(path).absolute().parent
    named = {place / name: where for where, name in secrets.read_from(overlay.laid(raw, virtual_host))}
    if key is not None:
        named[Path(key)] = "broker.tls.key"
    for file, where in named.items():
        status = _status(file, environment)
        wrong = faults(status, secret=True) if status is not None else {}
        if status is not None and wrong:
            who = " and ".join(dict.fromkeys(wrong.values()))
            yield Problem(where, f"{file} is open to {who} (mode {_mode(status)})", _chmod(wrong, str(file)))


def _status(path: Path, environment: Mapping[str, str]) -> os.stat_result | None:
    """Return what is to be judged: a plain file that is not systemd's."""
    directory = environment.get(CREDENTIALS)
    if directory and path.is_relative_to(directory):
        return None
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None  # that it can't be read is told by whoever reads it
    return status if stat.S_ISREG(status.st_mode) else None


def faults(status: os.stat_result, secret: bool) -> dict[str, str]:
    """Return what is to be taken away from a file, in the words of chmod(1), and from whom."""
    found = {}
    if secret and status.st_mode & stat.S_IROTH:
        found["o-r"] = "everybody"
    if status.st_mode & stat.S_IWOTH:
        found["o-w"] = "everybody"
    if status.st_mode & stat.S_IWGRP and not _private(status):
        found["g-w"] = "its group"
    return found


def _private(status: os.stat_result) -> bool:
    """Tell whether a file's group is root's, or holds nobody but the file's owner."""
    if status.st_gid == 0:
        return True
    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return (group.gr_gid, group.gr_name) == (owner.pw_gid, owner.pw_name) and not {*group.gr_mem} - {owner.pw_name}


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"


def _chmod(changes: Mapping[str, str] | list[str], path: str) -> str:
    return f"chmod {','.join(changes)} {shlex.quote(path)}"
