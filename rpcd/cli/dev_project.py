"""The config file that `rpcd dev` works with: which broker, which code, how its consumers are called."""

import contextlib
import importlib.machinery
import importlib.util
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rpcd.config import structured
from rpcd.core import overlay
from rpcd.core.address import address
from rpcd.core.settings import Settings
from rpcd.files import parse
from rpcd.ops.keeper import Wanted

_MOST_HINTS = 3


class Project:
    """What the config file says, as it is by now."""

    def __init__(self, config: str, virtual_host: str | None) -> None:
        """Read it; raises SettingsError if it can't be read."""
        self.config = config
        self.virtual_host = virtual_host
        self.settings: Settings
        self.wrong: list[str] = []
        """What is wrong with [broker]."""
        self.named = False
        """Whether the config or the environment names a broker."""
        self.read()

    def read(self) -> None:
        """Read it again; what it said before stays if it can't be read: raises SettingsError."""
        raw = parse(self.config, os.environ)
        self.settings, problems = structured(raw, self.config, os.environ, self.virtual_host)
        self.wrong = [f"{self.config}: {each}" for each in problems if each.path.startswith("broker")]
        section = overlay.laid(raw, self.virtual_host).get("broker")
        self.named = "RABBITMQ_URL" in os.environ or (isinstance(section, dict) and "url" in section)

    def wanted(self) -> Wanted:
        """Return what a private broker must have so that the config's login works; raises AddressError."""
        found = address(self.settings.broker)
        return Wanted("dev", found.username, found.password, found.virtual_host)

    def places(self) -> list[Path]:
        """Return where a change is to count: the config, service.path, and the packages of the handlers."""
        path = self.settings.service.path
        packages = (place for name in sorted(self._packages()) for place in _places(name, path))
        return [Path(self.config).absolute(), *map(Path, path), *packages]

    def _packages(self) -> set[str]:
        service, consumers = self.settings.service, self.settings.consumers.values()
        named = [*service.modules, service.on_start, *(each.handler or each.namespace for each in consumers)]
        return {name.replace(":", ".").partition(".")[0] for name in named if name}

    def hints(self, consumers: Iterable[str]) -> Iterator[str]:
        """Say how consumers are called."""
        for name in list(consumers)[:_MOST_HINTS]:
            section = self.settings.consumers.get(name)
            queue_name = (
                self.settings.queue_name(section.queue) if section and section.queue in self.settings.queues else name
            )
            options = f" --virtual-host {shlex.quote(self.virtual_host)}" if self.virtual_host else ""
            if queue_name:
                yield f"rpcd call {shlex.quote(queue_name)} '{{}}' --config {shlex.quote(self.config)}{options}"


def _places(package: str, path: list[str]) -> Iterator[Path]:
    """Find where a package or module lies without importing it."""
    with contextlib.suppress(Exception):  # an import hook may do anything; who can't import it says so
        found = importlib.machinery.PathFinder.find_spec(package, [*path, *sys.path]) or importlib.util.find_spec(package)
        if found is not None and found.submodule_search_locations is not None:
            yield from map(Path, found.submodule_search_locations)
        elif found is not None and found.origin is not None:
            yield Path(found.origin)
