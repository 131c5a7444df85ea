"""From the name of a config file to plans that can be run: everything that can be an operator's mistake is found here.

Nothing is connected and no thread is started. Handlers are imported, which runs their modules.
"""

import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from rpcd import modes
from rpcd.amqp.plan import Plan
from rpcd.amqp.tls import check_files
from rpcd.core import keys, lint, overlay
from rpcd.core.codec import Codec
from rpcd.core.copies import Circumstances
from rpcd.core.errors import Problem, SettingsError
from rpcd.core.handler import HandlerError, Target
from rpcd.core.load import load
from rpcd.core.policy import Policy
from rpcd.core.registration import PLACE, Registered, clashes, placed, registered, sections, traced, unreachable
from rpcd.core.reply import Replies
from rpcd.core.routes import Choose, Route, Stray, by_exchange, lane_key
from rpcd.core.settings import Settings
from rpcd.core.topology import Bind, Declaration, delivery_limit, ephemeral, plan_consumer
from rpcd.files import parse
from rpcd.importing import check_start, checked_target, imported
from rpcd.namespaces import bound, find
from rpcd.ops import health

CONFIG = "RPCD_CONFIG"
"""The environment variable that names the config file when the command line does not."""

VIRTUAL_HOST = "RPCD_VIRTUAL_HOST"
"""The environment variable that names the virtual host, and so its overlay, when the command line does not."""

Handlers: TypeAlias = Target | Mapping[str, Target]
"""A consumer's handler; or several, each under the exchange whose messages it is for."""

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
    found: list[Registered] = []
    if settings.service.modules:
        found, wrong = _registered(settings)
        settings, problems = structured(sections(raw, found), path, environment, virtual_host)
        if wrong:  # a section that only adds to what a decorator says may lack the rest because of that
            problems = [each for each in problems if not (each.path.startswith("consumers.") and each.what == "missing")]
        problems += [*wrong, *clashes(found, settings)]
    handlers, mistakes = _handlers(settings)
    problems += mistakes
    settings = bound(settings, {name: each for name, each in handlers.items() if not isinstance(each, Target)})
    if settings.service.on_start is not None and lint.dotted(settings.service.on_start):
        try:
            check_start(settings.service.on_start)
        except HandlerError as error:
            problems.append(Problem("service.on_start", str(error)))
    laid = overlay.laid(raw, virtual_host)
    problems = [traced(each, laid, found) for each in problems]
    problems = overlay.placed(problems, raw, virtual_host)
    if problems:
        raise SettingsError(
            [each if each.path.startswith(PLACE) else attrs.evolve(each, path=f"{path}: {each.path}") for each in problems]
        )
    plans = [_located(plan(settings, name, handlers[name]), laid, found) for name in settings.consumers]
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


def _registered(settings: Settings) -> tuple[list[Registered], list[Problem]]:
    """Import [service] modules; return what they register, and what is wrong with them."""
    modules, problems = [], []
    for index, name in enumerate(settings.service.modules):
        where = f"service.modules[{index}]"
        if not lint.package(name):
            continue
        try:
            module = imported(name, name)
        except HandlerError as error:
            problems.append(Problem(where, str(error)))
            continue
        modules.append(module)
        if not registered([module]):
            problems.append(
                Problem(
                    where, f"{name} registers no handler", "mark one with @rpcd.message_handler, or leave the module out"
                )
            )
    found = registered(modules)
    problems += [
        Problem(
            f"{PLACE}{module}:{name}",
            "no top-level name of its module leads to it, so it would never run",
            "give it one of its own, and use functools.wraps in decorators above",
        )
        for module, name in unreachable(modules, found)
        if any(each.path.startswith(f"{module}:") for each in found)  # else that is told of the whole module
    ]
    return [placed(each, settings) for each in found], problems


def _handlers(settings: Settings) -> tuple[dict[str, Handlers], list[Problem]]:
    """Import the handlers of all consumers; return them by the consumers' names, and what is wrong with them."""
    handlers: dict[str, Handlers] = {}
    problems: list[Problem] = []
    for name, consumer in settings.consumers.items():
        if consumer.handler is not None and lint.dotted(consumer.handler):
            try:
                handlers[name] = checked_target(consumer.handler)
            except HandlerError as error:
                problems.append(Problem(f"consumers.{name}.handler", str(error)))
        elif consumer.namespace is not None and lint.package(consumer.namespace):
            handlers[name], wrong = find(name, consumer, settings)
            problems += wrong
        found = handlers.get(name, {})
        targets = [found] if isinstance(found, Target) else found.values()
        problems += keys.unmet(settings, name, [(each.path, each.body) for each in targets])
    return handlers, problems


def plan(settings: Settings, name: str, handlers: Handlers) -> Plan:
    """Build the plan of one consumer: its routes with everything that is decided at start, and what it declares."""
    section = settings.consumers[name]
    queue = settings.queue_name(section.queue)
    by_name = {} if isinstance(handlers, Target) else {settings.exchange_name(key): each for key, each in handlers.items()}
    targets = [handlers] if isinstance(handlers, Target) else list(by_name.values())
    routes = _routes(settings, name, targets)
    return Plan(
        name,
        section,
        queue,
        queue or section.queue,
        plan_consumer(settings, name),
        routes,
        Circumstances(name, targets[0].path, socket.gethostname()),
        settings.service.publish_timeout,
        tuple(by_name),
        _choice(dict(zip(by_name, routes, strict=True))) if by_name else None,
        delivery_limit=delivery_limit(settings, section.queue),
    )


def _routes(settings: Settings, name: str, targets: list[Target]) -> tuple[Route, ...]:
    """Build the routes of one consumer, one for each handler; what they share is made once."""
    section = settings.consumers[name]
    own = {name for key in settings.queues for name in lint.own_queues(settings, key)}
    replies = Replies(section.reply, section.reply_via, tuple(section.reply_to_allowed), own, section.max_reply)
    longest = LONGEST_IN_PROCESS if ephemeral(settings, section.queue) else None
    sealing = keys.sealing(settings.broker, section)
    codec = Codec if sealing is None else sealing.codec
    first = Route(
        consumer=name,
        queue=settings.queue_name(section.queue),
        target=targets[0],
        codec=codec(section.accept, targets[0].body),
        policy=Policy(replies, section.on_error, section.steps, longest),
        clock=time.time,
        max_body=section.max_body,
        config=section.config,
        key=lane_key(section.lock) if section.lock is not None else None,
    )
    if sealing is not None:
        first = sealing.route(first)
    others = enumerate(targets[1:], start=1)
    return (
        first,
        *(
            attrs.evolve(first, target=each, codec=codec(section.accept, each.body), number=number)
            for number, each in others
        ),
    )


def _choice(routes: Mapping[str, Route]) -> Choose:
    """Let the exchange of a message choose among routes; what comes from another one is a bad message."""
    first = next(iter(routes.values()))
    nobody = Target("", None, False, False, None, Any)
    common = {each.name: getattr(first, each.name) for each in attrs.fields(Route)}
    stray = Stray(**{**common, "target": nobody, "known": tuple(routes)})
    return by_exchange(routes, stray)
