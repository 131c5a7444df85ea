"""Carrying one job from message to outcome: stops 4 and 5, and the only `try` around user code.

What ends in `_async` is for async handlers and runs on their loop; everything else is the same for both.
"""

from collections.abc import Callable
from typing import Any

from rpcd.core.handler import Handler
from rpcd.core.identity import key_of
from rpcd.core.ledger import Ledger
from rpcd.core.message import Message
from rpcd.core.routes import Route
from rpcd.core.verdict import Outcome


class Job:
    """One delivery on its way through the seven stops.

    Made on the reactor, opened and run in a worker thread or on a loop, settled on the reactor. `claimed` turns true once,
    when the reactor has an outcome for it, and is touched there only: what comes later for the same job counts for nothing.
    """

    __slots__ = (
        "claimed",
        "entered",
        "identity",
        "joined",
        "key",
        "ledger",
        "message",
        "outcome",
        "route",
        "seconds",
        "tag",
        "waiter",
    )

    def __init__(self, message: Message[Any], route: Route, ledger: Ledger, tag: int) -> None:
        """Bind a message to its route and to the ledger and tag that it must be settled with."""
        self.message = message
        self.route = route
        self.ledger = ledger
        self.tag = tag
        self.identity = key_of(message)  # now: the handler may change its message as it likes
        self.key: Any = None
        self.entered = False
        self.outcome: Outcome | None = None
        self.claimed = False
        self.seconds = 0.0
        """How long a worker had it in hand, once it has let go of it."""
        self.joined: Job | None = None
        self.waiter: Callable[[], None] | None = None

    def done(self) -> None:
        """Tell the worker that waits for it, on the reactor, that the job is settled or never can be."""
        if self.waiter is not None:
            self.waiter()


def opened(job: Job) -> bool:
    """Open the job's message (stop 4); when that fails the job has its outcome already and False is returned."""
    try:
        route = job.route
        route.open(job.message)
        if route.key is not None:
            job.key = route.key(job.message)
    except BaseException as error:  # noqa: BLE001  # decoding may run the user's types; nothing may escape an outcome
        job.outcome = job.route.judge(error, job.message)
        return False
    return True


def run(job: Job, handler: Handler) -> BaseException | None:
    """Run the job's handler (stop 5), give the job its outcome, and return what was raised, if anything was."""
    try:
        job.route.check_deadline(job.message)  # it may have waited in its lane since it was opened
        job.outcome = job.route.run(job.message, handler)
    except BaseException as error:  # noqa: BLE001  # SystemExit in a handler must not pass for a success
        job.outcome = job.route.judge(error, job.message)
        return error
    return None


async def run_async(job: Job, handler: Handler) -> BaseException | None:
    """Run the job's async handler; otherwise as `run`. A cancelled task counts as a handler that raised CancelledError."""
    try:
        job.route.check_deadline(job.message)
        job.outcome = await job.route.run_async(job.message, handler)
    except BaseException as error:  # noqa: BLE001  # what leaves a task as SystemExit would end the loop of all others
        job.outcome = job.route.judge(error, job.message)
        return error
    return None


def perform(job: Job, handler: Handler) -> BaseException | None:
    """Carry a job from message to outcome, which it has afterwards whatever happened; return what the handler raised.

    A job that has entered its lane is open already, and one that could not be opened has its outcome already.
    """
    if job.outcome is None and (job.entered or opened(job)):
        return run(job, handler)
    return None


async def perform_async(job: Job, handler: Handler) -> BaseException | None:
    """Carry a job from message to outcome with an async handler; otherwise as `perform`."""
    if job.outcome is None and (job.entered or opened(job)):
        return await run_async(job, handler)
    return None
