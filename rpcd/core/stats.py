"""Counters as plain integers, bumped where the event happens and read when somebody asks."""

import attrs

from rpcd.core.verdict import Outcome


@attrs.define(eq=False)
class Stats:
    """What one consumer has done since the process started; reactor only."""

    received: int = 0
    redelivered: int = 0
    acked: int = 0
    replied: int = 0
    retried: int = 0
    archived: int = 0
    requeued: int = 0
    rejected: int = 0
    expired: int = 0
    overdue: int = 0
    joined: int = 0
    stale_settlements: int = 0
    """Outcomes whose connection died before they could be settled; the broker delivers those messages again."""
    replies_unroutable: int = 0
    """Replies whose caller had gone."""
    replies_direct: int = 0
    """Replies by direct reply-to: the broker does not tell whether they arrived."""
    publish_failures: int = 0
    connections: int = 0
    cancelled: int = 0
    """How often the broker cancelled the consumer: its queue was deleted, or the node that has it went away."""
    ack_timeouts: int = 0
    """How often the broker waited too long for an ack and took the channel away."""
    channel_errors: dict[int, int] = attrs.field(factory=dict)
    """How often the broker closed the channel, by AMQP's reply code."""

    def count(self, outcome: Outcome) -> None:
        """Count one settled outcome by its verdict."""
        name = _NAMES[outcome.verdict.value]
        setattr(self, name, getattr(self, name) + 1)
        if outcome.error == "DeadlinePassed":
            self.expired += 1

    def channel_closed(self, code: int) -> None:
        """Count a channel that the broker closed."""
        self.channel_errors[code] = self.channel_errors.get(code, 0) + 1


@attrs.define(eq=False)
class PublishingStats:
    """What became of confirmed publications since the process started; reactor only."""

    nacks: int = 0
    """How often the broker did not take a publication (a full queue); it was tried again."""
    confirm_timeouts: int = 0
    """How often no confirm came in `confirm_timeout`, and the connection was made anew."""
    republished: int = 0
    """Publications that were sent again, because their channel was gone before the confirm: these may be there twice."""
    refused: int = 0
    """Publications that the broker closed a channel over."""
    channel_errors: dict[int, int] = attrs.field(factory=dict)
    """How often the broker closed a publishing channel, by AMQP's reply code."""

    def channel_closed(self, code: int) -> None:
        """Count a channel that the broker closed."""
        self.channel_errors[code] = self.channel_errors.get(code, 0) + 1


_NAMES = {"ack": "acked", "requeue": "requeued", "reject": "rejected", "retry": "retried", "archive": "archived"}
