"""The settings of `[layers.inbox]`, checked when the config is read."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import attrs

from rpcd.core.errors import Problem
from rpcd.core.setting import Seconds, setting

FILE = "inbox.sqlite3"

SCHEMES = ("sqlite", "postgresql", "redis", "rediss")

ENCODE = "percent-encode user name and password"

_MISPLACED = re.compile(r"//[^/?#]*(@[^/?#]*@|[/?#].*@)")
"""A second @, or one behind the host: a part of the password would be taken for the host, and told as such."""


@attrs.frozen
class Inbox:
    """`[layers.inbox]`: where the results of messages are kept, and how a message is recognised."""

    url: str | None = setting(
        "sqlite:///PATH, postgresql://USER@HOST/DATABASE or redis://HOST; inbox.sqlite3 in the state directory if not set.",
        None,
        secret=True,
    )
    key: str = setting(
        "What a message is recognised by: message_id (and its body), or headers.NAME or body.NAME alone.", "message_id"
    )
    keep: Seconds = setting("How long a result is kept.", Seconds(86400.0))
    lease: Seconds = setting("How long a message of a process that has vanished is not run by another.", Seconds(60.0))
    scope: str = setting("What tells these queues from those of the same name that use the same store.", "")
    unguarded: bool = setting("Whether messages run without an inbox while the store can't be reached.", False)


def problems(settings: Inbox) -> Iterator[Problem]:
    """Yield what is wrong with settings although each of them has the right type."""
    if settings.url is not None:
        yield from _url(settings.url)
    root, *names = settings.key.split(".")
    if settings.key != "message_id" and (root not in ("body", "headers") or not names or not all(names)):
        yield Problem("key", "it is none of `message_id`, `headers.NAME`, `body.NAME`")
    for name in ("keep", "lease"):
        if getattr(settings, name) < 1:
            yield Problem(name, "expected 1 second or more")


def _url(url: str) -> Iterator[Problem]:
    scheme, colon, rest = url.partition(":")
    if not colon or scheme not in SCHEMES:
        yield Problem("url", "expected sqlite:///PATH, postgresql://USER@HOST/DATABASE or redis://HOST")
    elif scheme == "sqlite" and (not rest or (rest.startswith("//") and not rest.startswith("///"))):
        yield Problem("url", "it names no file", "sqlite:///PATH is absolute, sqlite:PATH is relative to the config file")
    elif scheme != "sqlite" and _MISPLACED.match(rest):
        yield Problem("url", "there is an @ that is not the one ahead of the host", ENCODE)


def file_of(url: str | None, place: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the file of an SQLite store; a relative one is beside the config file."""
    if url is None:
        return state_directory(environment) / FILE
    rest = url.partition(":")[2]
    return place / unquote(rest.removeprefix("//") if rest.startswith("///") else rest)


def state_directory(environment: Mapping[str, str]) -> Path:
    """Return where a daemon keeps what outlives it: systemd's StateDirectory=, or the user's own."""
    found = environment.get("STATE_DIRECTORY", "").partition(":")[0]
    if found:
        return Path(found)
    own = environment.get("XDG_STATE_HOME", "")
    return (Path(own) if own.startswith("/") else Path.home() / ".local/state") / "rpcd"
