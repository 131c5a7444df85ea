"""What settings may say although it is likely to hurt: told by `rpcd check`, and no reason not to start."""

from rpcd.core.errors import Problem
from rpcd.core.settings import Settings

CONSUMER_TIMEOUT = 1800.0
"""Seconds after which RabbitMQ takes a message away that is not acked (its `consumer_timeout`, by default)."""


def cautions(settings: Settings) -> list[Problem]:
    """Return what a person should think about again.

    A message may wait in the prefetch for one run before its own begins, so two runs must fit into the broker's timeout.
    """
    most = CONSUMER_TIMEOUT / 2
    return [
        Problem(
            f"consumers.{key}.time_limit",
            f"{consumer.time_limit:g} s is over half of the 30 minutes in which RabbitMQ wants an ack (consumer_timeout)",
            f"at most {most:g}, or split the work; or raise consumer_timeout on every node of the broker",
        )
        for key, consumer in settings.consumers.items()
        if consumer.time_limit > most
    ]
