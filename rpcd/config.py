"""From the name of a config file to plans that can be run: everything that can be an operator's mistake is found here.

Nothing is connected and no thread is started. Handlers are imported, which runs their modules.
"""

import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from rpcd import modes
from rpcd.amqp.plan import Plan
from rpcd.amqp.tls import check_files
from rpcd.core import lint, overlay
from rpcd.core.codec import Codec
from rpcd.core.copies import Circumstances
from rpcd.core.errors import Problem, SettingsError
from rpcd.core.handler import HandlerError, Target
from rpcd.core.load import load
from rpcd.core.outcome import Policy
from rpcd.core.reply import Replies
from rpcd.core.routes import Route, lane_key
from rpcd.core.settings import Settings
from rpcd.core.topology import ephemeral, plan_consumer
from rpcd.files import parse
from rpcd.importing import check_start, checked_target
from rpcd.ops import health

CONFIG = "RPCD_CONFIG"
"""The environment variable that names the config file when the command line does not."""

VIRTUAL_HOST = "RPCD_VIRTUAL_HOST"
"""The environment variable that names the virtual host, and so its overlay, when the command line does not."""

LONGEST_IN_PROCESS = 60.0
"""Seconds that a message is kept in the process for another attempt when its queue dies with the connection."""


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
    settings = _beside(settings, place)
    problems += [Problem(f"broker.tls.{name}", what) for name, what in check_files(settings.broker.tls)]
    for index, directory in enumerate(settings.service.path):
        if not Path(directory).is_dir():
            problems.append(Problem(f"service.path[{index}]", f"{directory} is no directory"))
    problems += [Problem("service.http", what) for what in health.problems(settings.service.http)]
    problems += modes.problems(raw, path, environment, virtual_host, settings.broker.tls.key)
    return settings, overlay.placed(problems, raw, virtual_host)


def _beside(settings: Settings, place: Path) -> Settings:
    """Let relative paths begin at the config file's directory, wherever the process was started."""
    tls, service = settings.broker.tls, settings.service
    found = {name: str(place / value) for name in ("ca", "certificate", "key") if (value := getattr(tls, name)) is not None}
    return attrs.evolve(
        settings,
        broker=attrs.evolve(settings.broker, tls=attrs.evolve(tls, **found)),
        service=attrs.evolve(
            service,
            path=[str(place / each) for each in service.path],
            control=service.control and str(place / service.control),
        ),
    )


def assemble(path: str, environment: Mapping[str, str], virtual_host: str | None = None) -> tuple[Settings, list[Plan]]:
    """Read a config file and import its handlers; raise SettingsError with every problem that there is."""
    raw = parse(path, environment)
    settings, problems = structured(raw, path, environment, virtual_host)
    for directory in reversed(settings.service.path):
        if directory not in sys.path:
            sys.path.insert(0, directory)
    targets = {}
    for name, consumer in settings.consumers.items():
        where = f"consumers.{name}.handler"
        if consumer.handler is not None and lint.dotted(consumer.handler):
            try:
                targets[name] = checked_target(consumer.handler)
            except HandlerError as error:
                problems.append(Problem(where, str(error)))
    if settings.service.on_start is not None and lint.dotted(settings.service.on_start):
        try:
            check_start(settings.service.on_start)
        except HandlerError as error:
            problems.append(Problem("service.on_start", str(error)))
    problems = overlay.placed(problems, raw, virtual_host)
    if problems:
        raise SettingsError([Problem(f"{path}: {each.path}", each.what, each.remedy) for each in problems])
    return settings, [plan(settings, name, targets[name]) for name in settings.consumers]


def plan(settings: Settings, name: str, handler: Target) -> Plan:
    """Build the plan of one consumer: its route with everything that is decided at start, and what it declares."""
    section = settings.consumers[name]
    queue = settings.queue_name(section.queue)
    own = {name for key in settings.queues for name in lint.own_queues(settings, key)}
    replies = Replies(section.reply, section.reply_via, tuple(section.reply_to_allowed), own, section.max_reply)
    longest = LONGEST_IN_PROCESS if ephemeral(settings, section.queue) else None
    route = Route(
        consumer=name,
        queue=queue,
        target=handler,
        codec=Codec(section.accept, handler.body),
        policy=Policy(replies, section.on_error, section.steps, longest),
        clock=time.time,
        max_body=section.max_body,
        config=section.config,
        key=lane_key(section.lock) if section.lock is not None else None,
    )
    who = Circumstances(name, section.handler or "", socket.gethostname())
    return Plan(
        name,
        section,
        queue,
        queue or section.queue,
        plan_consumer(settings, name),
        route,
        who,
        settings.service.publish_timeout,
    )
