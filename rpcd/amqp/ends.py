"""What the end of a consumer's channel is said to be, when the broker has decided it.

The remedy is the same for all of them: a new connection. A person who reads the log must know the cause all the same.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rpcd.core.errors import ChannelClosed, ConsumerCancelled
from rpcd.core.pipeline import Job

CANCELS_LATE_ACKS = (4, 3)
"""From this version of RabbitMQ on, it cancels the consumer of a quorum queue where it would have closed the channel."""

WAY_OUT = "keep time_limit below half of the broker's consumer_timeout (30 minutes by default), or split the work"

_ACK_TIMEOUT = re.compile(r"delivery acknowledgement\b.* timed out")

log = logging.getLogger("rpcd.consumer")


def tell_end(
    reason: Exception, running: Iterable[Job], version: tuple[int, ...], now: float, fields: Mapping[str, Any]
) -> None:
    """Log why the broker ended a channel; `running` is what handlers have in hand, `now` the time of day."""
    if isinstance(reason, ChannelClosed):
        if _ACK_TIMEOUT.search(reason.text):
            said = "the broker waited too long for an ack and closed the channel: %s; %s; %s"
            log.error(said, reason, _oldest(running, now), WAY_OUT, extra=fields)
        else:
            log.error("the broker closed the channel: %s; its messages are delivered again", reason, extra=fields)
    elif isinstance(reason, ConsumerCancelled):
        causes = "its queue was deleted, or the node that has it went away"
        if version >= CANCELS_LATE_ACKS:
            causes += f", or it waited too long for an ack: {_oldest(running, now)}; {WAY_OUT}"
        log.error("%s: %s", reason, causes, extra=fields)


def _oldest(running: Iterable[Job], now: float) -> str:
    """Name the handler that has had its message for the longest time."""
    oldest = min(running, key=lambda job: job.message.received, default=None)
    if oldest is None:
        return "no handler was running: an outcome could not be published, or waits for its next attempt"
    seconds = now - oldest.message.received
    return f"handler {oldest.route.target.path} has had message {oldest.message.message_id!r} for {seconds:.0f} s"
