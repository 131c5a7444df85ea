"""Giving an outbox its channels: one on each connection, another whenever the broker closes it over a publication."""

import logging
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from rpcd.amqp.connection import Connection
from rpcd.amqp.outbox import Outbox
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import Once, bounded
from rpcd.core.errors import ChannelClosed, ConnectionLost
from rpcd.core.stats import bump

CHANNEL_SECONDS = 30.0
"""How long the broker may take to open a channel."""

log = logging.getLogger("rpcd.publisher")


async def supply(outbox: Outbox, protocol: AmqpProtocol, connection: Connection, ended: Once, reactor: Any) -> None:
    """Give an outbox a channel of a fresh connection; `ended` fails if another one is needed and can't be opened."""
    channel = await bounded(protocol.open_channel(), CHANNEL_SECONDS, reactor, "opening a channel")

    def failed(failure: Failure) -> None:
        ended.fail(failure.value or ConnectionLost("a channel could not be opened"))

    def closed(reason: Exception) -> None:
        if isinstance(reason, ChannelClosed) and not protocol.is_lost:
            log.warning("the broker closed a publishing channel: %s", reason)
            bump(outbox.stats.channel_errors, reason.code)
            Deferred.fromCoroutine(supply(outbox, protocol, connection, ended, reactor)).addErrback(failed)

    await bounded(
        Deferred.fromCoroutine(outbox.attach(channel, connection.again)),
        CHANNEL_SECONDS,
        reactor,
        "switching confirms on",
    )
    channel.when_closed(closed)
