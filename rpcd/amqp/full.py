"""Queues that take nothing right now: said once, and once again when they take something."""

import logging
import time

from rpcd.core.message import Outgoing
from rpcd.core.tables import ShortString

REFUSED_KEPT = 600.0
"""Seconds for which a queue counts as full after its last refusal, unless it takes something before."""

MOST_REFUSING = 1000
"""Queues that are remembered as full."""

log = logging.getLogger("rpcd.publisher")


class Full:
    """The queues that refused what was last published straight to them; reactor only."""

    def __init__(self) -> None:
        """Know of none."""
        self._refusing: dict[ShortString, float] = {}

    def __bool__(self) -> bool:
        return bool(self._refusing)

    def __contains__(self, queue: ShortString) -> bool:
        since = self._refusing.get(queue)
        return since is not None and time.monotonic() - since < REFUSED_KEPT

    def refused(self, outgoing: Outgoing, seconds: float) -> None:
        """Be told that the broker did not take a publication; `seconds` is how long it is tried again."""
        if outgoing.exchange:  # which of its queues it was is not told
            return
        queue = outgoing.routing_key
        if len(self._refusing) >= MOST_REFUSING:
            self._refusing.clear()
        if queue not in self._refusing:
            log.warning(
                "the broker does not take what goes to queue %r (is it full?); trying again for %g s", queue, seconds
            )
        self._refusing[queue] = time.monotonic()

    def taken(self, outgoing: Outgoing) -> None:
        """Be told that the broker took a publication."""
        if not outgoing.exchange and self._refusing.pop(outgoing.routing_key, None) is not None:
            log.info("the broker takes again what goes to queue %r", outgoing.routing_key)
