"""From what a test names, a file, tables or handlers, to checked settings and handlers: by the daemon's own rules."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from rpcd.assembly import Assembled, assembled, beside
from rpcd.core import overlay
from rpcd.core.errors import Problem
from rpcd.core.load import load
from rpcd.core.settings import Settings
from rpcd.files import parse

KEYS = "fernet_keys"
"""Those that a config takes from elsewhere are not there; the harness puts one of its own in their place."""

_CONNECTING = ("url", "username", "password", "tls", "heartbeat")
"""What a config says of the broker that a test does not need; its credentials are not there."""

_BROKERS = ("RABBITMQ_URL", "RABBITMQ_HEARTBEAT")

_NO_NAME = re.compile(r"\W")


@attrs.define
class Sources:
    """Where the settings of one harness come from."""

    tables: dict[str, Any]
    """Those of the config file, or what a test has said instead."""
    path: str = "the harness's config"
    place: Path = attrs.field(factory=Path)
    """What relative paths begin at."""
    environment: Mapping[str, str] = attrs.field(factory=lambda: dict(os.environ))
    virtual_host: str | None = None
    given: dict[str, Any] = attrs.field(factory=dict)
    """Handlers that need no import, by the names of their consumers."""

    def read(self) -> Assembled:
        """Import and check everything; raise SettingsError with every problem that there is."""
        return assembled(self.tables, self._structured, self.path, self.place.absolute(), self.virtual_host, self.given)

    def _structured(self, raw: Mapping[str, Any]) -> tuple[Settings, list[Problem]]:
        environment = {name: value for name, value in self.environment.items() if name not in _BROKERS}
        settings, problems = load(raw, environment, self._content, virtual_host=self.virtual_host)
        settings = beside(settings, self.place)
        if not raw.get("consumers"):  # a test may add them later
            problems = [each for each in problems if each.path != "consumers"]
        for index, directory in enumerate(settings.service.path):
            if not Path(directory).is_dir():
                problems.append(Problem(f"service.path[{index}]", f"{directory} is no directory"))
        return settings, overlay.placed(problems, raw, self.virtual_host)

    def _content(self, name: str) -> str:
        return (self.place / name).read_text(encoding="utf-8")

    def add(self, name: str, handler: Any, queue: str, bindings: list[dict[str, Any]], said: Mapping[str, Any]) -> None:
        """Add a consumer, and its queue unless that is there."""
        queues, consumers = self.tables.setdefault("queues", {}), self.tables.setdefault("consumers", {})
        section = queues.setdefault(queue, {})
        section["bindings"] = [*section.get("bindings", []), *bindings]
        if isinstance(handler, str):
            path = handler
        else:
            self.given[name] = handler
            path = _path(name, handler)
        consumers[name] = {"queue": queue, "handler": path, **said}


def _path(name: str, handler: Any) -> str:
    """Say where a handler comes from: its own path if an import could find it there, else the consumer's name."""
    module, within = getattr(handler, "__module__", None), getattr(handler, "__qualname__", "")
    whole = f"{module}:{within}"
    return whole if re.fullmatch(r"[\w.]+:[\w.]+", whole) else f"in_a_test:_{_NO_NAME.sub('_', name)}"


def from_file(path: str | os.PathLike[str], environment: Mapping[str, str] | None, virtual_host: str | None) -> Sources:
    """Read a config file; raise SettingsError if it can't be read."""
    known = dict(os.environ if environment is None else environment)
    name = os.fspath(path)
    return Sources(_without_broker(parse(name, known)), name, Path(name).absolute().parent, known, virtual_host)


def from_tables(tables: Mapping[str, Any], environment: Mapping[str, str] | None, virtual_host: str | None) -> Sources:
    """Take the tables of a config as they are parsed, or handlers by the names of their queues."""
    known = dict(os.environ if environment is None else environment)
    if all(isinstance(each, Mapping) for each in tables.values()):
        return Sources(_without_broker(tables), environment=known, virtual_host=virtual_host)
    sources = Sources({}, environment=known, virtual_host=virtual_host)
    for name, handler in tables.items():
        sources.add(name, handler, name, [], {})
    return sources


def _without_broker(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a config without what connecting needs, and without keys that are elsewhere, in its overlays as well."""
    copied = {key: _copied(value) for key, value in tables.items()}
    overlays = copied.get(overlay.OVERLAYS)
    own: list[str] = []
    for each in (copied, *(overlays.values() if isinstance(overlays, dict) else ())):
        broker = each.get("broker") if isinstance(each, dict) else None
        if isinstance(broker, dict):
            each["broker"] = broker = {name: value for name, value in broker.items() if name not in _CONNECTING}
        for holder in (each, broker):  # an overlay may have keys without a [broker]
            if isinstance(holder, dict) and isinstance(holder.get(KEYS), list):
                holder[KEYS] = [_there(text, own) for text in holder[KEYS]]
    return copied


def _there(text: Any, own: list[str]) -> Any:
    """Return a key as the config has it, or the harness's own, the same for all, for one that is elsewhere."""
    if not (isinstance(text, str) and "${" in text):
        return text
    if not own:
        own.append(_new_key())
    return own[0]


def _new_key() -> str:
    from cryptography.fernet import Fernet  # noqa: PLC0415  # who has no keys does not pay for loading it

    return Fernet.generate_key().decode()


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value
