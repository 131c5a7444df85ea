"""What the daemon does with an outcome, without waiting: publications, then the copy, then the reply, then the ack."""

from collections.abc import Callable
from typing import Any, Protocol

from rpcd.core.copies import Circumstances, copy_of
from rpcd.core.errors import PublishError, PublishTimeout, Unroutable
from rpcd.core.outgoing import Outgoing
from rpcd.core.pipeline import Job
from rpcd.core.verdict import Outcome, Verdict
from rpcd.testing.broker import Broker
from rpcd.testing.posted import Posted

REFUSED_MILLISECONDS = 5000
"""How long the daemon holds a message whose copy is refused."""


class Publishes(Protocol):
    """What takes publications: fails them if the test says so, and remembers them."""

    def __call__(self, outgoing: Outgoing) -> Posted:
        """Publish what a handler wants published."""

    def copy(self, outgoing: Outgoing) -> None:
        """Publish a copy."""


class Settling:
    """Publishes what the outcomes of one consumer say."""

    def __init__(
        self,
        broker: Broker,
        publish: Publishes,
        title: str,
        who: Callable[[Job], Circumstances],
        seconds: float,
        *,
        in_process: bool,
    ) -> None:
        """Take what the daemon's takes: `seconds` is `publish_timeout`; with `in_process` retries wait in the process."""
        self._broker = broker
        self._publish = publish
        self._title = title
        self._who = who
        self._seconds = seconds
        self._in_process = in_process
        self._tokens = 0
        self.refused: Exception | None = None
        """What kept a publication of the last outcome from being published."""

    def publish(self, job: Job, outcome: Outcome, now: float) -> tuple[Outcome, Posted | None]:
        """Publish what a job's outcome says; return what is left of it, and the reply that was sent.

        What a publication was refused by is in `refused` then.
        """
        self.refused = None
        try:
            left = self._copy(job, self._publications(job, outcome), now)
            return self._reply(job, left, now)
        except PublishTimeout as error:
            step = REFUSED_MILLISECONDS if isinstance(error, _CopyRefused) else round(self._seconds * 1000)
            reason = f"what it publishes is not confirmed: {error}"
            return Outcome(Verdict.REQUEUE, reason, error="PublishTimeout", step=step, halt=outcome.halt), None

    def _publications(self, job: Job, outcome: Outcome) -> Outcome:
        failures: list[Exception] = []
        for each in outcome.publications or ():
            try:
                self._publish(each)
            except (PublishError, PublishTimeout) as error:
                failures.append(error)
        late = next((error for error in failures if isinstance(error, PublishTimeout)), None)
        if late is not None:
            raise late
        if not failures:
            return outcome
        self.refused = failures[0]
        failures[0].__traceback__ = None  # no code of the user's has raised it
        return job.route.judge(failures[0], job.message)

    def _copy(self, job: Job, outcome: Outcome, now: float) -> Outcome:
        if outcome.verdict is Verdict.ARCHIVE or (outcome.verdict is Verdict.RETRY and not self._in_process):
            self._tokens += 1
            token = f"copy-{self._tokens}-{self._title}"[:100]
            arrival = job.route.arrival_mark(job.message)
            try:
                self._publish.copy(copy_of(outcome, job.message, self._title, self._who(job), now, token, arrival))
            except PublishError as error:
                raise _CopyRefused(str(error)) from error
        return outcome

    def _reply(self, job: Job, outcome: Outcome, now: float) -> tuple[Outcome, Posted | None]:
        reply = outcome.reply
        if reply is None:
            return outcome, None
        try:
            return outcome, self._broker.publish(reply)
        except Unroutable:
            return outcome, None  # the caller has gone; its request is done all the same
        except PublishError as error:
            if outcome.verdict is not Verdict.ACK:
                return outcome, None
            judged: Any = job.route.judge(error, job.message)
            judged.reply = None
            if judged.verdict is Verdict.ACK:
                judged.verdict, judged.reason = Verdict.ARCHIVE, f"its reply was refused: {error}"
            return self._copy(job, judged, now), None


class _CopyRefused(PublishTimeout):
    """A copy was refused: its message goes back to its queue, after a while."""
