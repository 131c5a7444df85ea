"""Daemons that log in as users who may do no more than they need: `script/test --least-privilege`, for a whole run.

The permissions are those that `rpcd declare --permissions` shows for the config, so a run also shows that they are enough. A
comment in it, `# publishes: NAME, NAME`, adds exchanges to which handlers publish though the config does not have them.
Nodes that a test makes for itself are left to the user guest.
"""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
from urllib.parse import unquote, urlsplit, urlunsplit

from rpcd.ops.rabbitmq import PrivateNode

WANTED = bool(os.environ.get("RPCD_TEST_LEAST_PRIVILEGE"))

NODES: dict[int, PrivateNode] = {}
"""The nodes on which users can be made, by port; a proxy adds its own port."""

_numbers = itertools.count()


def least(config: pathlib.Path, url: str | None, environment: dict[str, str]) -> str | None:
    """Return the URL of a user with the least permissions for a config; the same URL if the test has a login of its own."""
    if url is None or not WANTED:
        return url
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2]  # perhaps several
    ports = [int(port) for port in re.findall(r":(\d+)", hosts) if int(port) in NODES]
    if parts.username != "guest" or not ports:
        return url
    needed = permissions(config, environment | {"RABBITMQ_URL": url})
    if needed is None:  # a config that can't be used: the test is about that
        return url
    configure, write, read = needed
    if (more := re.search(r"^# publishes: (.+)$", config.read_text(), re.MULTILINE)) is not None:
        write = f"{write}|^({more[1].replace(', ', '|')})$"
    node, user = NODES[ports[0]], f"least{os.getpid()}-{next(_numbers)}"
    virtual_host = unquote(parts.path[1:]) or "/"
    grant(node, virtual_host, user, configure, write, read)
    return urlunsplit(parts._replace(netloc=f"{user}:pw@{hosts}"))


def permissions(config: pathlib.Path, environment: dict[str, str]) -> tuple[str, str, str] | None:
    """Ask rpcd what a config needs."""
    command = [str(pathlib.Path(sys.executable).parent / "rpcd"), "declare", "--permissions", "--json", "--config", config]
    done = subprocess.run(command, env=environment, cwd=config.parent, capture_output=True, text=True, timeout=60)
    told = json.loads(done.stdout) if done.returncode == 0 else {}
    return (told["configure"], told["write"], told["read"]) if told else None


def grant(node: PrivateNode, virtual_host: str, user: str, configure: str, write: str, read: str) -> None:
    """Make a user with the password `pw`, or change one that there is."""
    words = [json.dumps(each) for each in (user, virtual_host, configure, write, read)]
    name, place, *patterns = (f"<<{word}/utf8>>" for word in words)
    acting = '<<"tests">>'
    node.ctl(
        "eval",
        f'catch rabbit_auth_backend_internal:add_user({name}, <<"pw">>, {acting}), '
        f"rabbit_auth_backend_internal:set_permissions({name}, {place}, {', '.join(patterns)}, {acting}).",
    )
