"""What becomes of a delivery, as values: a verdict, what to publish, and what the log says of it."""

import enum
import logging
import traceback

import attrs

from rpcd.core.outgoing import Outgoing


class Verdict(enum.Enum):
    """What is done with a delivery once everything that its outcome publishes is safe."""

    ACK = "ack"
    REQUEUE = "requeue"
    REJECT = "reject"
    RETRY = "retry"
    ARCHIVE = "archive"


@attrs.frozen
class Halt:
    """An order to stop: this consumer, or with a non-zero code the whole service."""

    exit_code: int = 0
    reason: str | None = None
    give_back: bool = False
    """Whether the culprit and every unstarted message go back to the queue first (`on_error = "halt"`)."""


class Outcome:
    """What becomes of one delivery: a verdict and what to publish; also what the log says of it."""

    __slots__ = (
        "count",
        "error",
        "halt",
        "level",
        "nacks",
        "publications",
        "reason",
        "reply",
        "step",
        "temporary",
        "trace",
        "verdict",
    )

    def __init__(
        self,
        verdict: Verdict,
        reason: str = "",
        *,
        reply: Outgoing | None = None,
        publications: list[Outgoing] | None = None,
        step: int = 0,
        count: int = 0,
        nacks: int = 0,
        error: str | None = None,
        level: int = logging.WARNING,
        trace: str | None = None,
        halt: Halt | None = None,
        temporary: bool = False,
    ) -> None:
        """Take the verdict; `step` is the retry step in milliseconds, `error` the name of an exception's type.

        `temporary` says that the failure may pass: it is tried again, or would be if attempts were left.
        """
        self.verdict = verdict
        self.reason = reason
        self.reply = reply
        self.publications = publications
        self.step = step
        self.count = count
        self.nacks = nacks
        self.error = error
        self.level = level
        self.trace = trace
        self.halt = halt
        self.temporary = temporary

    def __repr__(self) -> str:
        return f"<Outcome {self.verdict.value}: {self.reason or 'returned'}>"


LATE = "deadline passed while it ran"
"""The reason of a message whose handler gave up because its sender had stopped waiting."""

ACKED = Outcome(Verdict.ACK, level=logging.DEBUG)
"""The outcome of a handler that returned and has nothing to say: shared by all, never changed."""


def trace(error: BaseException) -> str:
    """Format an exception from where the user's code begins; the frames of rpcd above it help nobody."""
    start = frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith("rpcd."):
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, frame or start)).rstrip()
