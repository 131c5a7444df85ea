"""Consumers whose messages find their handlers by their exchange: the modules of a namespace, whoever installed them.

A namespace is a package, and best a native namespace package: a directory without an `__init__.py`, of which several
distributions may each bring a part. The module `acme.handlers.server_create` handles what comes from the exchange
`server_create`, or `server-create`, or `server.create`.
"""

import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from rpcd.core.errors import Problem
from rpcd.core.handler import HandlerError, Target, all_async
from rpcd.core.settings import Binding, Consumer, Exchange, Name, Settings
from rpcd.importing import checked_target, imported

NAMES = ("handle", "Handler")
"""What a module calls its handler: a function, or a class."""


def find(name: str, consumer: Consumer, settings: Settings) -> tuple[dict[str, Target], list[Problem]]:
    """Return the handlers of a namespace by their exchanges (names of sections, or their own), and what is wrong."""
    where, namespace = f"consumers.{name}.namespace", str(consumer.namespace)
    problems: list[Problem] = []
    if consumer.queue in settings.queues and not settings.queue_name(consumer.queue):
        problems.append(
            Problem(where, "its queue is named by the broker", "give it a name: that is the key of its bindings")
        )
    try:
        there = modules(namespace)
    except HandlerError as error:
        return {}, [*problems, Problem(where, str(error))]
    if not there and not consumer.exchanges:
        return {}, [
            *problems,
            Problem(where, f"there is no module in {namespace}", "add one for each exchange, or `exchanges`"),
        ]
    found: dict[str, Target] = {}
    wanted = [(str(each), f"consumers.{name}.exchanges[{index}]") for index, each in enumerate(consumer.exchanges)]
    for exchange, place in wanted or [(_exchange(module, settings), where) for module in there]:
        try:
            found[exchange] = _handler(namespace, exchange, there)
        except HandlerError as error:
            problems.append(Problem(place, str(error)))
    try:
        all_async(found.values())
    except HandlerError as error:
        problems.append(Problem(where, str(error)))
    return found, problems


def modules(namespace: str) -> list[str]:
    """Return the names of the modules in a package, over all its directories; those that begin with `_` are its own."""
    package = imported(namespace, namespace)
    try:
        directories = list(package.__path__)
    except AttributeError:
        raise HandlerError(f"{namespace} is a module, not a package ({_file(package)})") from None
    return sorted({each.name for each in pkgutil.iter_modules(directories) if not each.name.startswith("_")})


def module_name(exchange: str) -> str:
    """Return the name of the module that handles what comes from an exchange."""
    return exchange.replace("-", "_").replace(".", "_")


def _exchange(module: str, settings: Settings) -> str:
    """Return the exchange that a module is for: that of a section whose name leads there, or of the module's own name."""
    if module in settings.exchanges:
        return module
    return next((key for key in settings.exchanges if module_name(key) == module), module)


def _handler(namespace: str, exchange: str, there: Iterable[str]) -> Target:
    name = module_name(exchange)
    if not name.isidentifier():
        raise HandlerError(f"no module can be named for the exchange {exchange!r}: {name!r} is no Python name")
    path = f"{namespace}.{name}"
    if name not in there:  # it may be found all the same: a package without an `__init__.py`, an importer of its own
        hint = f"there are {', '.join(there)}" if there else "there is none at all"
        module = imported(path, f"exchange {exchange!r}: {path}", f"; of modules in {namespace} {hint}")
    else:
        module = imported(path, path)
    has = [each for each in NAMES if hasattr(module, each)]
    if len(has) != 1:
        said = (
            "has both `handle` and `Handler`; keep one" if has else "has neither a function `handle` nor a class `Handler`"
        )
        raise HandlerError(f"{path} {said} ({_file(module)})")
    if has == ["Handler"] and not inspect.isclass(module.Handler):
        raise HandlerError(f"{path}.Handler is no class; a function or callable object is called `handle` ({_file(module)})")
    return checked_target(f"{path}:{has[0]}")


def _file(module: Any) -> str:
    return getattr(module, "__file__", None) or ", ".join(getattr(module, "__path__", [module.__name__]))


def bound(settings: Settings, found: Mapping[str, Iterable[str]]) -> Settings:
    """Add to settings what the exchanges of each namespace consumer need: themselves, and a binding to its queue.

    An exchange without a section is declared as a durable direct one, unless it is one of the broker's own (`amq.`).
    """
    exchanges, queues = dict(settings.exchanges), dict(settings.queues)
    for name, names in found.items():
        key = settings.consumers[name].queue
        if key not in queues:
            continue
        for exchange in names:
            if not exchange.startswith("amq.") and exchange not in _names(settings):
                exchanges.setdefault(exchange, Exchange(type="direct"))
            binding = Binding(exchange=Name(exchange), routing_keys=[settings.queue_name(key)])
            queues[key] = attrs.evolve(queues[key], bindings=[*queues[key].bindings, binding])
    return attrs.evolve(settings, exchanges=exchanges, queues=queues)


def _names(settings: Settings) -> Iterator[str]:
    for key in settings.exchanges:
        yield from (key, settings.exchange_name(key))
