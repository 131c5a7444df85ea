"""Queues that take nothing right now, by a refusal or in silence; a refusal is said once, and once again when it is over."""

import logging
import time

from rpcd.core.outgoing import Outgoing
from rpcd.core.tables import ShortString

REFUSED_KEPT = 600.0
"""Seconds for which a queue counts as full or silent after the last time, unless it takes something before."""

MOST_REFUSING = 1000
"""Queues that are remembered as full, and as silent."""

log = logging.getLogger("rpcd.publisher")


class Full:
    """The queues that did not take what was last published straight to them; reactor only."""

    def __init__(self) -> None:
        """Know of none."""
        self._refusing: dict[ShortString, float] = {}
        self._silent: dict[ShortString, float] = {}

    def __bool__(self) -> bool:
        return bool(self._refusing or self._silent)

    def __contains__(self, queue: ShortString) -> bool:
        return _lately(self._refusing.get(queue))

    def is_silent(self, queue: ShortString) -> bool:
        """Tell whether the broker did not confirm what was published to a queue: it has no leader, for all we know."""
        return _lately(self._silent.get(queue))

    def silent(self, outgoing: Outgoing) -> None:
        """Be told that a publication was not confirmed in its time."""
        if not outgoing.exchange:
            if len(self._silent) >= MOST_REFUSING:
                self._silent.clear()
            self._silent[outgoing.routing_key] = time.monotonic()

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
        if outgoing.exchange:
            return
        self._silent.pop(outgoing.routing_key, None)
        if self._refusing.pop(outgoing.routing_key, None) is not None:
            log.info("the broker takes again what goes to queue %r", outgoing.routing_key)


def _lately(since: float | None) -> bool:
    return since is not None and time.monotonic() - since < REFUSED_KEPT
