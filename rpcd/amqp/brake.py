"""The kill switch of one consumer at work: nothing more starts when everything fails, and one message is tried now and then.

No channel is closed and no consumer cancelled: what has come waits, until the prefetch is full, and the broker keeps the
rest. The crew itself stops starting, in the very step that takes in the outcome; here that is told, and time passes.
"""

import logging
from collections.abc import Callable
from typing import Any

from rpcd.amqp.tasks import Tasks
from rpcd.amqp.waiting import repeating
from rpcd.amqp.workers import Workers
from rpcd.core.kill_switch import succeeded
from rpcd.core.pipeline import Job
from rpcd.core.stats import Stats

log = logging.getLogger("rpcd.consumer")


class Brake:
    """The kill switch of one consumer, over all its connections; reactor only."""

    def __init__(
        self,
        name: str,
        crew: Workers | Tasks,
        interval: float,
        stats: Stats,
        reactor: Any,
        may_start: Callable[[], bool],
        changed: Callable[[], object],
    ) -> None:
        """Take whether messages may start otherwise (no pause, no stop), and what is told that the state has changed."""
        self.tripped = False
        self._name = name
        self._crew = crew
        self._interval = interval
        self._stats = stats
        self._reactor = reactor
        self._may_start = may_start
        self._changed = changed
        self._next = 0.0
        self._trying = repeating(self._try_one, reactor)

    @property
    def why(self) -> str:
        """Why nothing starts, and when the next message is tried; only while it is tripped."""
        switch = self._crew.switch
        seconds = max(0.0, self._next - self._reactor.seconds())
        last = f", the last by {switch.error}" if switch.error else ""
        return f"{switch.failures} failures in a row{last}, the next message is tried in {seconds:.0f} s"

    def look(self, jobs: list[Job]) -> None:
        """Look at the switch after a batch of outcomes."""
        tripped = self._crew.switch.tripped
        if tripped and not self.tripped:
            self._trip()
        elif self.tripped and not tripped:
            self._let_go("a message succeeded: messages start again")
        elif not tripped and self._may_start():
            self._crew.resume()  # it was tripped and let go again between two looks: nobody else would start what is held
        elif tripped and not any(_counts(job) for job in jobs):
            self._try_one()  # what ended says nothing of the rest

    def reset(self) -> None:
        """Go on by an operator's word."""
        self._crew.reset()
        if self.tripped:
            self._let_go("messages start again by order, after so many failures in a row")

    def stop(self) -> None:
        """Try nothing any more."""
        if self._trying.running:
            self._trying.stop()

    def _trip(self) -> None:
        self.tripped = True
        self._stats.tripped += 1
        switch = self._crew.switch
        log.warning(
            "%s failures in a row%s: nothing more is started, one message is tried every %g s",
            switch.failures,
            f", the last by {switch.error}" if switch.error else "",
            self._interval,
            extra={"consumer": self._name},
        )
        if self._may_start():
            self._next = self._reactor.seconds() + self._interval
            self._trying.start(self._interval, now=False)
        self._changed()

    def _let_go(self, said: str) -> None:
        self.tripped = False
        self.stop()
        log.info(said, extra={"consumer": self._name})
        if self._may_start():
            self._crew.resume()
        self._changed()

    def _try_one(self) -> None:
        self._next = self._reactor.seconds() + self._interval
        if self._may_start() and not self._crew.running:
            self._crew.let_one()


def _counts(job: Job) -> bool:
    """Tell whether an outcome says that all are well, or that all may fail."""
    return job.outcome is not None and (job.outcome.temporary or succeeded(job.outcome))
