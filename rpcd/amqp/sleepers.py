"""Attempts in the process: jobs whose queue dies with its connection, so that no copy of theirs could come back to it."""

from collections.abc import Callable
from typing import Any

from rpcd.core.pipeline import Job
from rpcd.core.verdict import Outcome


class Sleepers:
    """The jobs of one consumer that wait for their next attempt; reactor only."""

    def __init__(self, submit: Callable[[Job], None], reactor: Any) -> None:
        """Take what runs a job again."""
        self._submit = submit
        self._reactor = reactor
        self._timers: dict[Job, Any] = {}

    def put(self, job: Job, outcome: Outcome) -> None:
        """Keep a job until the step of its outcome is over, then have it run again."""

        def again() -> None:
            del self._timers[job]
            job.claimed, job.outcome, job.entered = False, None, False
            job.message.attempt, job.message.nacks, job.message.published = outcome.count + 1, outcome.nacks, []
            self._submit(job)

        self._timers[job] = self._reactor.callLater(outcome.step / 1000, again)

    def wake(self) -> list[Job]:
        """Take back all that wait."""
        timers, self._timers = self._timers, {}
        for timer in timers.values():
            timer.cancel()
        return list(timers)
