"""Showing an administrator the least that a daemon's user needs, as a line to be run."""

import shlex

import attrs

from rpcd.cli.show import json_line, say, table
from rpcd.core.address import address
from rpcd.core.permissions import permissions
from rpcd.core.settings import Settings

_FOR = {
    "configure": "declaring",
    "write": "copies and replies, bindings, what handlers publish",
    "read": "consuming, bindings, dead-lettering",
}


def show_permissions(settings: Settings, as_json: bool) -> None:
    """Print the three expressions and the command that grants them; raise AddressError if the URL is wrong."""
    needed = attrs.asdict(permissions(settings))
    where = address(settings.broker)
    words = ["rabbitmqctl", "set_permissions", "--vhost", where.virtual_host, where.username, *needed.values()]
    command = shlex.join(words)
    if as_json:
        say(
            json_line({"ok": True, "virtual_host": where.virtual_host, "user": where.username, **needed, "command": command})
        )
        return
    table(("permission", "pattern", "for"), [(name, pattern, _FOR[name]) for name, pattern in needed.items()])
    say(f"\n{command}")
