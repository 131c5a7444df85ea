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
    """Redelivered messages that did not run again, because their first run was alive or its outcome was known."""
    suppressed: int = 0
    """Those of them whose first run had ended: only its ack was given again, and its reply if that may have been lost."""
    stale_settlements: int = 0
    """Outcomes whose connection died before they could be settled; the broker delivers those messages again."""
    replies_unroutable: int = 0
    """Replies whose caller had gone."""
    publish_failures: int = 0
    connections: int = 0
    tripped: int = 0
    """How often the kill switch was tripped: so many failures in a row that nothing more was started."""
    suspects: int = 0
    """Messages that ran alone, because they had come back so often that they might end the process."""

    def count(self, outcome: Outcome) -> None:
        """Count one settled outcome by its verdict."""
        name = _NAMES[outcome.verdict.value]
        setattr(self, name, getattr(self, name) + 1)
        if outcome.error == "DeadlinePassed":
            self.expired += 1


_NAMES = {"ack": "acked", "requeue": "requeued", "reject": "rejected", "retry": "retried", "archive": "archived"}
