"""When everything fails: whether a consumer should go on starting messages, or try them one by one until one succeeds.

Theory. When what handlers depend on is down, every message fails, is tried again, fails again, and ends in the archive in
the end, although nothing is wrong with it. After so many failures in a row the switch is tripped: the consumer starts
nothing, and messages stay in the queue, where they are safe. Now and then one is let through. As soon as one succeeds, all
goes on. Only what is tried again counts: an answer (`RequestFailed`), a bad body, a `PermanentFailure` say something of one
message, nothing of the rest, and neither count as failures nor as successes.
"""

import logging

import attrs

from rpcd.core.verdict import Outcome, Verdict


def succeeded(outcome: Outcome) -> bool:
    """Tell whether an outcome is that of a handler that returned."""
    return outcome.verdict is Verdict.ACK and outcome.level == logging.DEBUG


@attrs.define(eq=False)
class KillSwitch:
    """What one consumer's outcomes add up to; whoever uses it from several threads guards it."""

    limit: int = 0
    """How many failures in a row trip it; 0 is never."""
    failures: int = 0
    """How many there are in a row."""
    error: str = ""
    """The type of the last of them."""
    tripped: bool = False

    def note(self, outcome: Outcome) -> bool:
        """Count an outcome; return True if that trips it."""
        if succeeded(outcome):
            self.reset()
        elif outcome.temporary:
            self.failures += 1
            self.error = outcome.error or ""
            if not self.tripped and 0 < self.limit <= self.failures:
                self.tripped = True
                return True
        return False

    def reset(self) -> None:
        """Begin to count anew."""
        self.failures, self.tripped = 0, False
