"""Counters as plain integers, bumped where the event happens and read when somebody asks.

Each says in one sentence what it counts. `/metrics` shows every one of them as `rpcd_NAME_total`, those of one family as one
metric that a label divides. Nothing is added up, formatted or timed before somebody asks.
"""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any, Protocol

import attrs

from rpcd.core.errors import CallInterrupted, CallTimeout, PublishRefused, Unroutable
from rpcd.core.verdict import LATE, Outcome


def counter(sentence: str, family: str = "", **label: str) -> Any:
    """Define a counter; with a family it is the value of that family's metric for this label."""
    return attrs.field(default=0, metadata={"sentence": sentence, "family": family, "label": label})


def counters(sentence: str, label: str, known: tuple[str, ...], family: str = "") -> Any:
    """Define counters that share a name and differ by a label; those for `known` values are shown even while they are 0."""
    return attrs.field(factory=dict, metadata={"sentence": sentence, "family": family, "divided": label, "known": known})


def bump(found: dict[str, int], value: object) -> None:
    """Count one event under the value of a label."""
    found[str(value)] = found.get(str(value), 0) + 1


CHANNEL_ERRORS = ("403", "404", "406")
"""The codes that an operator should be able to wait for; others show up with their first event."""

HANDLED = "Messages that were settled, by what became of them."
FAILED = "Publications that were given up, by the reason."


@attrs.define(eq=False)
class Stats:
    """What one consumer has done since the process started; reactor only."""

    received: int = counter("Messages that the broker delivered.", "messages_received")
    redelivered: int = counter("Messages that the broker delivered again.", "messages_redelivered")
    acked: int = counter(HANDLED, "messages_handled", outcome="ack")
    replied: int = counter("Replies that were sent.", "replies")
    retried: int = counter(HANDLED, "messages_handled", outcome="retry")
    archived: int = counter(HANDLED, "messages_handled", outcome="archive")
    requeued: int = counter(HANDLED, "messages_handled", outcome="requeue")
    rejected: int = counter(HANDLED, "messages_handled", outcome="reject")
    bad: int = counter("Messages that could not be opened (no JSON, a wrong shape, undecodable headers).", "messages_bad")
    expired: int = counter("Messages that were not run because their deadline had passed.", "messages_expired")
    late: int = counter("Messages whose handler gave up because their deadline passed while it ran.", "messages_late")
    overdue: int = counter("Handlers that overran their time limit and were written off.", "handlers_overdue")
    joined: int = counter(
        "Redelivered messages that did not run again: they took the outcome of their first run, finished or not.",
        "redeliveries_joined",
    )
    duplicates_suppressed: int = counter("Those redelivered messages whose outcome was known already.")
    stale_settlements: int = counter(
        "Outcomes whose connection died before they could be settled; the broker delivers those messages again."
    )
    replies_unroutable: int = counter("Replies whose caller had gone.")
    replies_direct: int = counter("Replies that went to a direct reply-to, for which the broker confirms nothing.")
    replies_republished: int = counter("Replies that were sent again because a connection died; the caller may see two.")
    publish_failures: int = counter("Outcomes that could not be published as they were.", "outcomes_unpublished")
    ack_timeouts: int = counter("Channels that the broker closed because a message was not acked in its time.")
    cancelled: int = counter(
        "How often the broker cancelled the consumer: its queue was deleted, say.", "consumers_cancelled"
    )
    connections: int = counter("How often it has begun to consume; reconnects are those after the first.")
    channel_errors: dict[str, int] = counters(
        "Channels that the broker closed over an error, by its code.", "code", CHANNEL_ERRORS
    )
    tripped: int = counter("How often so many messages failed in a row that nothing more was started.", "kill_switch_trips")
    suspects: int = counter("Messages that ran alone, because they had come back so often that they might end the process.")

    def count(self, outcome: Outcome) -> None:
        """Count one settled outcome by its verdict."""
        name = _NAMES[outcome.verdict.value]
        setattr(self, name, getattr(self, name) + 1)
        if outcome.error == "Expired":
            self.expired += 1
        elif outcome.reason == LATE:
            self.late += 1
        elif outcome.error == "BadMessage":
            self.bad += 1

    def channel_error(self, code: int, text: str) -> None:
        """Count a channel that the broker closed, by its own code and words."""
        bump(self.channel_errors, code)
        if "delivery acknowledgement on channel" in text:
            self.ack_timeouts += 1


_NAMES = {"ack": "acked", "requeue": "requeued", "reject": "rejected", "retry": "retried", "archive": "archived"}


@attrs.define(eq=False)
class OutboxStats:
    """What became of what was published on one channel of the publishing connection; reactor only."""

    confirmed: int = counter("Publications that the broker has confirmed.", "published")
    nacked: int = counter("How often the broker refused a publication for now (a full queue).", "publish_nacks")
    republished: int = counter("Publications that were sent again because their channel was lost.", "republished")
    silences: int = counter("How often the connection was dropped because a confirm did not come.", "confirm_timeouts")
    refused: int = counter(FAILED, "publish_failures", reason="refused")
    unroutable: int = counter(FAILED, "publish_failures", reason="unroutable")
    late: int = counter(FAILED, "publish_failures", reason="timeout")
    channel_errors: dict[str, int] = counters(
        "Publishing channels that the broker closed over an error, by its code.",
        "code",
        CHANNEL_ERRORS,
        "publisher_channel_errors",
    )


CALLED = "Calls that handlers made to other services, by how they ended."


@attrs.define(eq=False)
class CallStats:
    """What became of the calls on one connection; reactor only."""

    made: int = counter("Calls that handlers began to make to other services.", "calls_made")
    answered: int = counter(CALLED, "calls", outcome="answered")
    timed_out: int = counter(CALLED, "calls", outcome="timeout")
    unroutable: int = counter(CALLED, "calls", outcome="unroutable")
    refused: int = counter(CALLED, "calls", outcome="refused")
    interrupted: int = counter(CALLED, "calls", outcome="interrupted")
    cancelled: int = counter(CALLED, "calls", outcome="cancelled")
    replies_unclaimed: int = counter("Replies to calls that nobody waited for any more.")

    def end(self, error: BaseException | None) -> None:
        """Count one call that has ended, with a reply or an error."""
        if error is None:
            self.answered += 1
            return
        name = next((name for kind, name in _ENDS if isinstance(error, kind)), "cancelled")
        setattr(self, name, getattr(self, name) + 1)


_ENDS = (
    (CallTimeout, "timed_out"),
    (Unroutable, "unroutable"),
    (PublishRefused, "refused"),
    (CallInterrupted, "interrupted"),
)

# How long handlers take -----------------------------------------------------------------------------

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
"""Upper bounds in seconds of the histogram's buckets; what is longer falls into one more."""


class Timed(Protocol):
    """What knows how long its handler had it in hand."""

    seconds: float


class Durations:
    """A histogram of handlers' times as plain integers; reactor only."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        """Start without any."""
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, batch: Iterable[Timed]) -> None:
        """Enter the jobs of a batch that have come to their end."""
        buckets, total = self.buckets, self.seconds
        for job in batch:
            seconds = job.seconds
            buckets[bisect_left(BOUNDS, seconds)] += 1
            total += seconds
        self.seconds = total
