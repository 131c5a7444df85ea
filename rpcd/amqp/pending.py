"""One publication on its way to its confirm."""

from collections.abc import Callable

from twisted.internet.defer import Deferred

from rpcd.core.outgoing import Outgoing


class Pending:
    """One publication on its way."""

    __slots__ = ("again", "deferred", "expires", "nacks", "outgoing", "returned", "sent", "strikes")

    def __init__(self, outgoing: Outgoing, expires: float, again: Callable[[], None] | None = None) -> None:
        """Take a publication and the (monotonic) time at which it is too late; `again` is told when it is sent anew."""
        self.outgoing = outgoing
        self.again = again
        self.expires = expires
        self.deferred: Deferred[None] = Deferred()
        self.sent = 0.0
        self.nacks = 0
        self.strikes = 0
        self.returned: str | None = None

    def finish(self, error: Exception | None = None) -> None:
        """Tell the publisher how it ended, once."""
        if not self.deferred.called:
            if error is None:
                self.deferred.callback(None)
            else:
                self.deferred.errback(error)
