"""From the name of a config file to plans that can be run: everything that can be an operator's mistake is found here.

Nothing is connected and no thread is started. Handlers are imported, which runs their modules.
"""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from rpcd import modes
from rpcd.amqp.plan import Plan
from rpcd.amqp.tls import check_files
from rpcd.assembly import assembled, beside
from rpcd.core import overlay
from rpcd.core.building import Handlers, build
from rpcd.core.copies import Circumstances
from rpcd.core.errors import Problem
from rpcd.core.load import load
from rpcd.core.registered import traced
from rpcd.core.registration import Registered
from rpcd.core.settings import Settings
from rpcd.core.topology import Bind, Declaration, delivery_limit, plan_consumer
from rpcd.files import parse
from rpcd.ops import health

CONFIG = "RPCD_CONFIG"
"""The environment variable that names the config file when the command line does not."""

VIRTUAL_HOST = "RPCD_VIRTUAL_HOST"
"""The environment variable that names the virtual host, and so its overlay, when the command line does not."""


def read(path: str, environment: Mapping[str, str], virtual_host: str | None = None) -> tuple[Settings, list[Problem]]:
    """Read a config file; raise SettingsError if it can't be read at all, else return settings and problems."""
    return structured(parse(path, environment), path, environment, virtual_host)


def structured(
    raw: Mapping[str, Any], path: str, environment: Mapping[str, str], virtual_host: str | None = None
) -> tuple[Settings, list[Problem]]:
    """Turn the tables of a config file into settings and problems; `virtual_host` names the overlay that is laid over them.

    The tables stay as they are. With problems the settings are what is left without the parts at fault.
    """
    place = Path(path).absolute().parent
    settings, problems = load(
        raw, environment, lambda name: (place / name).read_text(encoding="utf-8"), virtual_host=virtual_host
    )
    settings = beside(settings, place)
    problems += [Problem(f"broker.tls.{name}", what) for name, what in check_files(settings.broker.tls)]
    for index, directory in enumerate(settings.service.path):
        if not Path(directory).is_dir():
            problems.append(Problem(f"service.path[{index}]", f"{directory} is no directory"))
    problems += [Problem("service.http", what) for what in health.problems(settings.service.http)]
    problems += modes.problems(raw, path, environment, virtual_host, settings.broker.tls.key)
    return settings, overlay.placed(problems, raw, virtual_host)


def assemble(path: str, environment: Mapping[str, str], virtual_host: str | None = None) -> tuple[Settings, list[Plan]]:
    """Read a config file and import its handlers; raise SettingsError with every problem that there is."""
    raw = parse(path, environment)
    found = assembled(
        raw,
        lambda tables: structured(tables, path, environment, virtual_host),
        path,
        Path(path).absolute().parent,
        virtual_host,
    )
    laid = overlay.laid(raw, virtual_host)
    settings = found.settings
    plans = [_located(plan(settings, name, found.handlers[name]), laid, found.registrations) for name in settings.consumers]
    return settings, [attrs.evolve(each, config=Path(path).name) for each in plans]


def _located(plan: Plan, raw: Mapping[str, Any], found: list[Registered]) -> Plan:
    """Let the broker's refusals name the decorator or the namespace that asked for a binding, where the file does not."""
    own = set(overlay.paths(raw))
    declarations: list[Declaration] = []
    for item in plan.declarations:
        path = traced(Problem(item.path, ""), raw, found).path
        if plan.exchanges and isinstance(item, Bind) and path not in own:
            path = f"consumers.{plan.name}.namespace"
        declarations.append(attrs.evolve(item, path=path))
    return attrs.evolve(plan, declarations=declarations)


def plan(settings: Settings, name: str, handlers: Handlers) -> Plan:
    """Build the plan of one consumer: its routes with everything that is decided at start, and what it declares."""
    section = settings.consumers[name]
    queue = settings.queue_name(section.queue)
    built = build(settings, name, handlers, time.time)
    return Plan(
        name,
        built.section,
        queue,
        queue or section.queue,
        plan_consumer(settings, name),
        built.routes,
        Circumstances(name, built.routes[0].target.path, socket.gethostname()),
        settings.service.publish_timeout,
        built.exchanges,
        built.choose,
        delivery_limit=delivery_limit(settings, section.queue),
    )
