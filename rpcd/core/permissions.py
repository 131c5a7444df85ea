"""The least that RabbitMQ's permissions must allow the user of a daemon, worked out from its settings.

What needs which permission was measured on RabbitMQ 3.10 and is in its guide (rabbitmq.com/docs/access-control): declaring
needs `configure`, and `read` on a queue that dead-letters with `write` on the exchange that it dead-letters to; a passive
declaration needs nothing; a binding needs `write` on the queue and `read` on the exchange; consuming needs `read`.
"""

import re
from collections.abc import Iterable, Iterator

import attrs

from rpcd.core.settings import Settings
from rpcd.core.topology import Bind, Declaration, DeclareExchange, DeclareQueue, plan_consumer, plan_rest

DEFAULT_EXCHANGE = "amq.default"
"""What the permissions call the default exchange: copies go through it, and replies."""

SERVER_NAMED = "amq.gen-"
"""How the names begin that the broker chooses."""

_SPECIAL = re.compile(r"[.^$*+?()\[\]{}|\\]")


@attrs.frozen
class Permissions:
    """Three regular expressions, as `rabbitmqctl set_permissions` takes them."""

    configure: str
    write: str
    read: str


def permissions(settings: Settings) -> Permissions:
    """Return the least that a daemon with these settings needs in its virtual host.

    Handlers are expected to publish to the exchanges that have a section, and to no others.
    """
    plan = [item for name in settings.consumers for item in plan_consumer(settings, name)] + plan_rest(settings)
    consumed = [settings.queue_name(each.queue) for each in settings.consumers.values()]
    published = [settings.exchange_name(key) for key in settings.exchanges]
    answered = [
        settings.exchange_name(binding.exchange)
        for each in settings.consumers.values()
        if each.reply_via == "request-exchange"
        for binding in settings.queues[each.queue].bindings
    ]
    return Permissions(
        _pattern(item.name for item in plan if not isinstance(item, Bind) and not item.passive),
        _pattern([DEFAULT_EXCHANGE, *published, *answered, *_written(plan)]),
        _pattern([*consumed, *_read(plan)]),
    )


def _written(plan: list[Declaration]) -> Iterator[str]:
    for item in plan:
        if isinstance(item, Bind):
            yield item.queue
        elif not item.passive:
            target = item.arguments.get(_target(item))
            if isinstance(target, str):
                yield target or DEFAULT_EXCHANGE


def _read(plan: list[Declaration]) -> Iterator[str]:
    for item in plan:
        if isinstance(item, Bind):
            yield item.exchange
        elif not item.passive and _target(item) in item.arguments:
            yield item.name


def _target(item: DeclareExchange | DeclareQueue) -> str:
    """Name the argument that sends messages on to an exchange."""
    return "x-dead-letter-exchange" if isinstance(item, DeclareQueue) else "alternate-exchange"


def _pattern(names: Iterable[str]) -> str:
    """Return the expression that matches these names and no others; an empty one stands for the broker's choice."""
    listed = sorted({_SPECIAL.sub(r"\\\g<0>", name or SERVER_NAMED) + ("" if name else ".*") for name in names})
    if not listed:
        return "^$"
    return f"^{listed[0]}$" if len(listed) == 1 else f"^({'|'.join(listed)})$"
