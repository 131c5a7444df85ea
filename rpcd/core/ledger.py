"""The unsettled deliveries of one channel, and which of their acks may be merged.

Theory. A channel numbers its deliveries 1, 2, 3, ... and every tag must be settled exactly once. An ack with
`multiple=True` settles every unsettled tag up to and including the one it names. Two rules make that safe: every lower tag
must be settled or be settled by this very ack, *and the named tag itself must not be settled yet*, else the broker closes
the channel (406). So the ledger keeps `base`, the lowest tag that is not settled, and the set of tags above it that are.

A ledger goes through three states, never back:

    open      deliveries come in, settlements go out
    draining  the consumer was cancelled: settlements still go out
    closed    the channel is gone: a settlement is dropped, and the broker delivers the message again

Object identity stands for the channel: a job that finishes after its channel died meets a closed ledger.
"""

import enum
from collections.abc import Iterable


class State(enum.Enum):
    """Where a ledger is in its life."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


TRANSITIONS: dict[tuple[State, str], State] = {
    (State.OPEN, "drain"): State.DRAINING,
    (State.OPEN, "close"): State.CLOSED,
    (State.DRAINING, "close"): State.CLOSED,
    (State.DRAINING, "drain"): State.DRAINING,
    (State.CLOSED, "close"): State.CLOSED,
    (State.CLOSED, "drain"): State.CLOSED,
}
"""State and event -> state; an event that is not here is a mistake in rpcd."""


class LedgerError(RuntimeError):
    """A delivery would have been settled twice, or settled without having been admitted."""


class Ledger:
    """The deliveries of one channel that are not settled yet; reactor only."""

    __slots__ = ("_above", "_highest", "_lowest", "_settled", "state")

    def __init__(self) -> None:
        """Open a ledger for a fresh channel."""
        self.state = State.OPEN
        self._lowest = 1
        self._highest = 0
        self._settled = 0
        self._above: set[int] = set()

    def admit(self, tag: int) -> None:
        """Enter a delivery; tags come in the order in which the broker gives them."""
        self._highest = tag

    @property
    def unsettled(self) -> int:
        """How many deliveries have not been settled."""
        return self._highest - self._settled

    @property
    def closed(self) -> bool:
        """Whether the channel is gone, so that nothing can be settled any more."""
        return self.state is State.CLOSED

    def drain(self) -> None:
        """Note that no more deliveries will come."""
        self.state = TRANSITIONS[self.state, "drain"]

    def close(self) -> None:
        """Note that the channel is gone."""
        self.state = TRANSITIONS[self.state, "close"]

    def settle(self, tag: int) -> None:
        """Enter that a single tag is settled (nack, reject); raise LedgerError if it is already."""
        self._check(tag)
        self._settled += 1
        if tag == self._lowest:
            self._lowest += 1
            self._advance()
        else:
            self._above.add(tag)

    def ack(self, tags: Iterable[int]) -> list[tuple[int, bool]]:
        """Enter that tags are finished and return the acks to send, as (tag, multiple), in the order to send them.

        The finished prefix becomes one ack; every other tag gets its own at once, for a finished message never waits for
        a slow older one.
        """
        finished = set(tags)
        for tag in finished:
            self._check(tag)
        self._settled += len(finished)
        above, lowest, last, count = self._above, self._lowest, 0, 0
        while True:
            if lowest in finished:
                finished.remove(lowest)
                last = lowest
                count += 1
            elif lowest in above:
                above.remove(lowest)
            else:
                break
            lowest += 1
        self._lowest = lowest
        acks = [(last, count > 1)] if last else []
        acks += [(tag, False) for tag in sorted(finished)]
        above |= finished
        return acks

    def _advance(self) -> None:
        while self._lowest in self._above:
            self._above.remove(self._lowest)
            self._lowest += 1

    def _check(self, tag: int) -> None:
        if self.state is State.CLOSED or tag < self._lowest or tag in self._above or tag > self._highest:
            raise LedgerError(
                f"tag {tag} can't be settled: {self.state.value}, lowest {self._lowest}, highest {self._highest}"
            )
