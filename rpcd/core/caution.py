"""What settings may say although it is likely to hurt: told by `rpcd check`, and no reason not to start."""

import math
from collections.abc import Iterator, Mapping

import attrs

from rpcd.core.consumers import Consumer
from rpcd.core.errors import Problem

CONSUMER_TIMEOUT = 1800.0
"""Seconds after which RabbitMQ takes a message away that is not acked (its `consumer_timeout`, by default)."""


def cautions(consumers: Mapping[str, Consumer]) -> list[Problem]:
    """Return what a person should think about again; each consumer's lock is that of its handlers, whoever named it."""
    return [each for key, consumer in consumers.items() for each in _cautions(f"consumers.{key}", consumer)]


def _cautions(path: str, consumer: Consumer) -> Iterator[Problem]:
    if consumer.time_limit > CONSUMER_TIMEOUT / 2:  # one run before its own is what a message waits for by default
        yield Problem(
            f"{path}.time_limit",
            f"{consumer.time_limit:g} s is over half of the 30 minutes in which RabbitMQ wants an ack (consumer_timeout)",
            f"at most {CONSUMER_TIMEOUT / 2:g}, or split the work; or raise consumer_timeout on every node of the broker",
        )
    else:
        yield from _ageing(path, consumer)
    if consumer.lock:
        yield from _overtaking(path, consumer)


def _ageing(path: str, consumer: Consumer) -> Iterator[Problem]:
    """Warn of a prefetch whose last message may wait too long in this process; rpcd's own choice is no mistake of theirs."""
    if consumer.window <= attrs.evolve(consumer, prefetch=None).window:
        return
    abreast = 1 if consumer.lock else consumer.workers
    if math.ceil(consumer.window / abreast) * consumer.time_limit <= CONSUMER_TIMEOUT:
        return
    last = "with a lock they may all have the same key" if consumer.lock else f"{abreast} at a time are handled"
    fitting = max(abreast, math.floor(CONSUMER_TIMEOUT / consumer.time_limit) * abreast)
    yield Problem(
        f"{path}.prefetch",
        f"{consumer.window} messages are sent ahead, {last}, each for up to {consumer.time_limit:g} s (time_limit): the "
        "last may not be acked within the 30 minutes that RabbitMQ allows (consumer_timeout)",
        f"at most {fitting}, or leave it to rpcd; or a shorter time_limit",
    )


def _overtaking(path: str, consumer: Consumer) -> Iterator[Problem]:
    """Warn of a lock whose order does not outlive a failure."""
    steps = consumer.steps
    if consumer.on_error in ("auto", "retry") and steps.delays and steps.attempts > 1:
        what, remedy = "is tried again later", 'delays = [] in its [retry], or on_error = "archive" or "halt"'
    elif consumer.on_error == "requeue":
        what, remedy = "is requeued", 'on_error = "archive" or "halt"'
    else:
        return
    yield Problem(
        f"{path}.lock",
        f"a message that fails {what}, and the next one of its key passes it meanwhile",
        f"nothing to do if only one at a time is wanted; where the order matters: {remedy}",
    )
