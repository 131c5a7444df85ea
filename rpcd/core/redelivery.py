"""Redelivered messages whose first run is still alive, or whose outcome is still known, do not run again.

Theory. When a connection dies, the broker delivers again whatever was not acked. Its handler may still be running, may have
finished too late to be acked, or may have been acked by an ack that was lost on the way. The redelivery then takes that
outcome instead of running a second time. What a message is recognised by is its identity. Two rules keep a mistake from
losing a message: only a delivery that the broker itself flags as redelivered is ever matched, and a key that stood for more
than one message when the connection died matches nothing: those messages run.
"""

import itertools
import logging
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import attrs

from rpcd.core.identity import Key, key_of
from rpcd.core.message import Message
from rpcd.core.outgoing import Outgoing
from rpcd.core.pipeline import Job
from rpcd.core.verdict import ACKED, Outcome, Verdict

KEPT = 10_000
"""How many outcomes are remembered."""

KEPT_SECONDS = 600.0
"""How long an outcome is remembered after its connection died."""

LARGEST = 64 * 1024
"""A message whose reply is longer than this many bytes is not remembered: it runs again."""

LARGEST_KEPT = 1024 * 1024
"""Nor is one whose outcome still has more than this many bytes to publish."""


@attrs.frozen
class Known:
    """What is known of a message that may come again."""

    since: float
    job: Job | None
    """Its first run, without its body once it has ended; None when only the outcome was kept."""
    outcome: Outcome | None
    """What is left to do for it; None while it still runs."""


class Redeliveries:
    """What one consumer knows of messages that may come again; reactor only. Times are monotonic, in seconds."""

    def __init__(self, window: int = KEPT) -> None:
        """Know nothing; `window` is the prefetch: not more acks than that can be on their way at a time.

        Twice as many are remembered, for the acks of one batch are not written in the order in which its jobs are told.
        """
        self._recent: deque[tuple[Key, Outcome | None]] = deque(maxlen=min(2 * window, KEPT))
        self._known: dict[Key, Known] = {}

    def settled(self, job: Job, reply: Outgoing | None) -> None:
        """Remember a job whose ack is on its way and could be lost; `reply` is what was sent unconfirmed, if anything."""
        key = job.identity
        if key is not None:
            self._recent.append((key, done(reply) if reply is None or len(reply.body) <= LARGEST else None))

    def connection_lost(self, running: Iterable[Job], unstarted: Iterable[Job], now: float) -> None:
        """Turn what was in hand into what can be recognised."""
        seen: list[tuple[Key | None, Known | None]] = [
            (key, None if outcome is None else Known(now, None, outcome)) for key, outcome in self._recent
        ]
        seen += [(job.identity, Known(now, job, None)) for job in running]
        seen += [(job.identity, None) for job in unstarted]
        self._recent.clear()
        times = Counter(key for key, _ in seen)
        kept = {key: known for key, known in self._known.items() if now - known.since < KEPT_SECONDS and key not in times}
        fresh = {key: known for key, known in seen if key is not None and known is not None and times[key] == 1}
        known = kept | fresh
        self._known = dict(itertools.islice(known.items(), max(0, len(known) - KEPT), None))

    def finished(self, job: Job, outcome: Outcome, now: float) -> None:
        """Keep the outcome of a job that came to its end after its connection had died."""
        key = job.identity
        if key is None or key not in self._known:
            return
        reply = outcome.reply
        size = sum(len(each.body) for each in outcome.publications or ())
        if size > LARGEST_KEPT or (reply is not None and len(reply.body) > LARGEST):
            del self._known[key]
        else:
            self._known[key] = Known(now, _without_body(job), outcome)

    def recognise(self, message: Message[Any], now: float) -> Known | None:
        """Return what is known of a redelivered message; it is handed out once."""
        if not self._known:
            return None
        key = key_of(message)
        known = self._known.pop(key, None) if key is not None else None
        return known if known is not None and now - known.since < KEPT_SECONDS else None


def _without_body(job: Job) -> Job:
    """Return of a job that has ended what opening its message has found out; the message comes again."""
    its = job.message
    message: Message[Any] = Message(exchange=its.exchange, routing_key=its.routing_key, attempt=its.attempt)
    message.nacks, message.deadline = its.nacks, its.deadline
    return Job(message, job.route, job.ledger, job.tag)


def done(reply: Outgoing | None) -> Outcome:
    """Return what is left to do for a message whose publications are safe: its ack, and its reply once more."""
    if reply is None:
        return ACKED
    return Outcome(Verdict.ACK, "already done", reply=reply, level=logging.DEBUG)
