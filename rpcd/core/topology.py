"""Settings -> an ordered plan of declarations, retry and archive queues included.

The arguments that rpcd chooses for its own queues were measured on RabbitMQ 3.10 and 4.0: quorum queues dead-letter at
least once only with `reject-publish`; a delivery limit of -1 means "none" from 4.0 on, while before it makes the broker drop
a message on its first return, so there it must not be said at all.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import attrs

from rpcd.core.copies import archive_queue, retry_queue
from rpcd.core.settings import Archive, Exchange, Queue, Settings

NO_DELIVERY_LIMIT = {"x-delivery-limit": -1}
"""Added from RabbitMQ 4.0 on, where a queue without it drops a message on the twentieth return."""


@attrs.frozen
class DeclareExchange:
    """One exchange to be declared, or checked for."""

    path: str
    """Where the config says so; error messages show it."""
    name: str
    type: str
    durable: bool
    auto_delete: bool
    internal: bool
    passive: bool
    arguments: Mapping[str, Any]


@attrs.frozen
class DeclareQueue:
    """One queue to be declared, or checked for."""

    path: str
    name: str
    durable: bool
    exclusive: bool
    auto_delete: bool
    passive: bool
    arguments: Mapping[str, Any]
    unlimited: bool = False
    """Whether it must not have a delivery limit, in the way that the broker's version wants it said."""


@attrs.frozen
class Bind:
    """One binding; an empty queue name stands for the queue that the broker named last."""

    path: str
    queue: str
    exchange: str
    routing_key: str
    arguments: Mapping[str, Any]


Declaration: TypeAlias = DeclareExchange | DeclareQueue | Bind


def ephemeral(settings: Settings, key: str) -> bool:
    """Tell whether a queue dies with its connection, so that nothing can come back to it later."""
    queue, name = settings.queues[key], settings.queue_name(key)
    return bool(queue.exclusive or queue.auto_delete or not name)


def kind_of(settings: Settings, key: str) -> str:
    """Return the type that a queue is declared with: classic or quorum, or what its arguments say."""
    queue = settings.queues[key]
    kind = queue.arguments.get("x-queue-type", queue.type)
    fleeting = ephemeral(settings, key) or queue.durable is False
    return str(kind) if kind is not None else "classic" if fleeting else "quorum"


def plan_consumer(settings: Settings, consumer: str) -> list[Declaration]:
    """Return what one consumer needs: exchanges, archive and retry queues, the queue, its bindings, in that order."""
    section = settings.consumers[consumer]
    return plan_queue(settings, section.queue)


def plan_queue(settings: Settings, key: str) -> list[Declaration]:
    """Return what one queue needs, in the order in which it must be declared."""
    queue = settings.queues[key]
    exchanges = {binding.exchange for binding in queue.bindings if binding.exchange in settings.exchanges}
    return [
        *(declare_exchange(settings, name) for name in settings.exchanges if name in exchanges),
        *_added(settings, key),
        _queue(settings, key),
        *_bindings(settings, key),
    ]


def plan_rest(settings: Settings) -> list[Declaration]:
    """Return what no consumer declares: exchanges that are only published to, queues that nobody here consumes."""
    consumed = {consumer.queue: None for consumer in settings.consumers.values()}
    done = [item for key in consumed for item in plan_queue(settings, key)]
    for key in settings.exchanges:
        done += [exchange] if (exchange := declare_exchange(settings, key)) not in done else []
    for key in settings.queues:
        done += [item for item in plan_queue(settings, key) if item not in done]
    rest = done[sum(len(plan_queue(settings, key)) for key in consumed) :]
    missing = {(type(item), item.name) for item in done if not isinstance(item, Bind) and item.passive}

    def may_wait(item: Declaration) -> bool:
        if isinstance(item, Bind):
            return (DeclareQueue, item.queue) in missing or (DeclareExchange, item.exchange) in missing
        return item.passive

    return sorted(rest, key=may_wait)  # else one missing object would keep all behind it from being declared


def declare_exchange(settings: Settings, key: str) -> DeclareExchange:
    """Return the declaration of one [exchanges] section."""
    exchange: Exchange = settings.exchanges[key]
    return DeclareExchange(
        f"exchanges.{key}",
        settings.exchange_name(key),
        exchange.type,
        exchange.durable,
        exchange.auto_delete,
        exchange.internal,
        exchange.passive or not settings.service.declare,
        exchange.arguments,
    )


def _queue(settings: Settings, key: str) -> DeclareQueue:
    queue, name = settings.queues[key], settings.queue_name(key)
    exclusive = queue.exclusive if queue.exclusive is not None else not name
    auto_delete = queue.auto_delete if queue.auto_delete is not None else not name
    durable = queue.durable if queue.durable is not None else not exclusive
    passive = queue.passive or not (settings.service.declare or exclusive)
    return DeclareQueue(
        f"queues.{key}", name, durable, exclusive, auto_delete, passive, _work_arguments(settings, key, queue)
    )


def _work_arguments(settings: Settings, key: str, queue: Queue) -> dict[str, Any]:
    """Choose a work queue's arguments; what the broker gives up goes to the archive, and is kept until it is safe there."""
    classic = queue.type == "classic" or (queue.type is None and (ephemeral(settings, key) or queue.durable is False))
    chosen: dict[str, Any] = {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": archive_queue(settings.queue_name(key) or key),
    }
    if queue.type == "classic":
        chosen["x-queue-type"] = "classic"
    if not classic:
        chosen |= {
            "x-queue-type": "quorum",
            "x-delivery-limit": queue.delivery_limit,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
    return chosen | queue.arguments


def _added(settings: Settings, key: str) -> Iterator[DeclareQueue]:
    """Yield the archive of a queue, and its retry steps if it is consumed here."""
    consumers = [consumer for consumer in settings.consumers.values() if consumer.queue == key]
    name = settings.queue_name(key)
    passive = not settings.service.declare
    yield _added_queue(
        f"queues.{key}",
        archive_queue(name or key),
        passive,
        _archive_arguments(consumers[0].archive if consumers else Archive()),
    )
    if ephemeral(settings, key):
        return  # retried in the process: there would be no queue to come back to
    for step in sorted({step for consumer in consumers for step in consumer.steps.milliseconds}):
        arguments = {
            "x-queue-type": "quorum",
            "x-message-ttl": step,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": name,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        yield _added_queue(f"queues.{key}", retry_queue(name, step), passive, arguments)


def _archive_arguments(archive: Archive) -> dict[str, Any]:
    if archive.max_length is None:
        return {"x-queue-type": "quorum"}
    return {"x-queue-type": "quorum", "x-max-length": archive.max_length, "x-overflow": archive.overflow}


def _added_queue(path: str, name: str, passive: bool, arguments: Mapping[str, Any]) -> DeclareQueue:
    return DeclareQueue(path, name, True, False, False, passive, arguments, unlimited=True)


def _bindings(settings: Settings, key: str) -> Iterator[Bind]:
    name = settings.queue_name(key)
    if not settings.service.declare and not (settings.queues[key].exclusive or not name):
        return  # a binding can't be checked for without making it
    for index, binding in enumerate(settings.queues[key].bindings):
        exchange = settings.exchange_name(binding.exchange)
        for routing_key in binding.routing_keys:
            yield Bind(f"queues.{key}.bindings[{index}]", name, exchange, routing_key, binding.arguments)
