"""What brokers of different versions do differently with the same config.

Each sentence was measured on RabbitMQ 3.10.8 and 4.0.5, or, for what neither does yet, is the broker's own announcement.
"""

from collections.abc import Iterator
from typing import TypeAlias

import attrs

from rpcd.core.errors import Problem
from rpcd.core.settings import Settings
from rpcd.core.topology import ephemeral

Version: TypeAlias = tuple[int, ...]
"""(4, 0, 5), say; empty where nobody has told."""

LARGEST = 16 * 1024 * 1024
"""Bytes of a body that RabbitMQ takes from 4.0 on, unless its `max_message_size` says otherwise; before, 128 MiB."""

_FOUR = (4, 0)


@attrs.frozen
class Advice:
    """Something that is right on one version of the broker and not on another."""

    problem: Problem
    grave: bool = False
    """Whether messages would be lost, or nothing would work, on the version that was asked about."""

    def __str__(self) -> str:
        return str(self.problem)


_OBSOLETE = {
    "x-queue-mode": ((3, 12), "does nothing from RabbitMQ 3.12 on, where every classic queue is lazy", "remove it"),
    "x-queue-master-locator": ((4, 0), "is deprecated from RabbitMQ 4.0 on", "write x-queue-leader-locator"),
}
"""Arguments that have had their time: since when, what they are by now, and the way out."""


def advise(settings: Settings, version: Version = ()) -> list[Advice]:
    """Return what is worth knowing ahead of another version of the broker, or about this one if it is known."""
    return [*_queues(settings, version), *_sizes(settings, version)]


def _queues(settings: Settings, version: Version) -> Iterator[Advice]:
    for key, queue in settings.queues.items():
        path = f"queues.{key}"
        if queue.passive or not settings.service.declare:
            if queue.type != "classic" and not ephemeral(settings, key):
                yield from _made_elsewhere(path, version)
            continue
        if queue.durable is False and not ephemeral(settings, key):
            yield Advice(
                Problem(
                    f"{path}.durable",
                    "neither durable nor exclusive: deprecated from RabbitMQ 4.0 on, and refused by a later version",
                    "drop durable = false, or write exclusive = true",
                )
            )
        for name, value in queue.arguments.items():
            where = f"{path}.arguments.{name}"
            if name.startswith("x-ha-"):
                what = "mirrors nothing: that took a policy, and from RabbitMQ 4.0 on there are no mirrored queues"
                yield Advice(Problem(where, what, 'remove it; a queue of type = "quorum" is replicated'))
            elif name in _OBSOLETE and _from(version, _OBSOLETE[name][0]):
                yield Advice(Problem(where, *_OBSOLETE[name][1:]))
            elif name == "x-delivery-limit" and value == -1 and not (version and _from(version, _FOUR)):
                what = "means no limit from RabbitMQ 4.0 on; before, the broker gives a message up when it first comes back"
                yield Advice(Problem(where, what, "write delivery_limit with a large number"), grave=bool(version))


def _made_elsewhere(path: str, version: Version) -> Iterator[Advice]:
    """Tell of a limit that rpcd can't see; queues that it declares have one, and dead-letter to their archive."""
    if _from(version, _FOUR):
        yield Advice(
            Problem(
                path,
                "made elsewhere: from RabbitMQ 4.0 on, a quorum queue drops what has come back more than 20 times",
                "let it dead-letter or give it an x-delivery-limit, unless that is done",
            )
        )


def _sizes(settings: Settings, version: Version) -> Iterator[Advice]:
    if not _from(version, _FOUR):
        return
    for key, consumer in settings.consumers.items():
        for name, most in (("max_body", consumer.max_body), ("max_reply", consumer.max_reply)):
            if most > LARGEST:
                what = f"RabbitMQ takes no message of more than {LARGEST} bytes from 4.0 on"
                yield Advice(Problem(f"consumers.{key}.{name}", what, "raise the broker's max_message_size, or lower this"))


def _from(version: Version, first: Version) -> bool:
    """Tell whether a version, if it is known, has what came with another."""
    return not version or version >= first
