"""Every exception of rpcd: those that handlers raise to decide an outcome, and those that users get to see."""

import enum
from collections.abc import Mapping, Sequence
from typing import Any

import attrs


class ExitCode(enum.IntEnum):
    """What the process says when it ends; the words of sysexits(3) where there is one."""

    OK = 0
    """Drained, or halted by a handler that named no other code."""
    SOFTWARE = 70
    """An internal fault: too many threads lost, a stuck reactor, or a consumer whose `on_error` is "halt"."""
    TEMPFAIL = 75
    """Stopped with unfinished handlers; their messages went back to the broker."""
    NOPERM = 77
    """The broker refused the password or a permission for good."""
    CONFIG = 78
    """The config, a handler or an argument of a queue is wrong."""


MAX_EXIT_CODE = 255
"""A process has 8 bits for it: more would end it with another code than was asked for."""


LONGEST_TEXT = 800
"""Characters that several faults of one body take at most in a line of the log; the reply has them one by one."""


class ReplyCode(enum.IntEnum):
    """AMQP's numbers for why a channel or connection was closed, those that rpcd acts on; AMQP 0-9-1, section 1.1."""

    ACCESS_REFUSED = 403
    NOT_FOUND = 404
    RESOURCE_LOCKED = 405
    PRECONDITION_FAILED = 406
    FRAME_ERROR = 501
    SYNTAX_ERROR = 502
    COMMAND_INVALID = 503
    CHANNEL_ERROR = 504
    NOT_ALLOWED = 530
    NOT_IMPLEMENTED = 540
    INTERNAL_ERROR = 541


HARD_ERRORS = (
    ReplyCode.FRAME_ERROR,
    ReplyCode.SYNTAX_ERROR,
    ReplyCode.COMMAND_INVALID,
    ReplyCode.CHANNEL_ERROR,
    ReplyCode.NOT_ALLOWED,
    ReplyCode.NOT_IMPLEMENTED,
)
"""What closes the connection over a request that is wrong in itself."""


class RpcdError(Exception):
    """The root of every exception that rpcd defines."""


# What a handler may raise -------------------------------------------------------------------------


class RequestFailed(RpcdError):
    """Answer the request with `success` false; the message itself is done with."""

    def __init__(self, message: str | None = None, data: Any = None) -> None:
        """Say what the caller is told; both parts leave the process as they are. `data` is what a handler may return."""
        super().__init__(message)
        self.message = message
        self.data = data


class Nack(RpcdError):
    """Have the message come back later without using up an attempt."""

    def __init__(self, delay: float | None = None) -> None:
        """Wait for `delay` seconds at least; None backs off by the retry steps, 0 requeues at once."""
        super().__init__(delay)
        self.delay = delay


class Drop(RpcdError):
    """Reject the message without requeue: the broker's dead-letter rule decides where it goes."""


class Retry(RpcdError):
    """Try again later; the message is archived when its attempts are spent."""

    def __init__(self, delay: float | None = None) -> None:
        """Wait for `delay` seconds at least; None takes the next retry step."""
        super().__init__(delay)
        self.delay = delay


class PermanentFailure(RpcdError):
    """Archive the message at once: no further attempt can help."""

    def __init__(self, reason: str | None = None) -> None:
        """Give the reason; it is written on the archived message and sent to a caller."""
        super().__init__(reason)
        self.reason = reason


class HaltConsumer(RpcdError):
    """Stop this consumer; the process ends with its last consumer."""

    def __init__(self, exit_code: int = 0, reason: str | None = None, requeue: bool = False) -> None:
        """Name the exit code (one that is not 0 stops the whole service at once); `requeue` gives the message back."""
        super().__init__(exit_code, reason, requeue)
        if not 0 <= exit_code <= MAX_EXIT_CODE:
            raise ValueError(f"an exit code is 0 to {MAX_EXIT_CODE}, not {exit_code}")
        self.exit_code = exit_code
        self.reason = reason
        self.requeue = requeue


# What may happen to a message besides -------------------------------------------------------------


class Faulty(RpcdError):
    """A body is not what was asked for."""

    def __init__(self, place: str, reason: str, faults: Sequence[tuple[str, str]] = (), more: int = 0) -> None:
        """Name the place and the reason, never a value: both are sent to the caller and written to the archive.

        Where all faults are looked for, `faults` has place and reason of each, the first included, but for `more` others.
        """
        super().__init__(place, reason)
        self.place = place
        self.reason = reason
        self.faults = tuple(faults)
        self.more = more

    def __str__(self) -> str:
        text, left = f"{self.place}: {self.reason}", self.more + len(self.faults[1:])
        for place, reason in self.faults[1:]:
            if len(text) + len(place) + len(reason) > LONGEST_TEXT:
                break
            text, left = f"{text}; {place}: {reason}", left - 1
        return f"{text}; and {left} more" if left else text


class BadMessage(Faulty):
    """The message can't be opened: bad JSON, a wrong shape, a content type that is not accepted."""


class BadValue(RpcdError, ValueError):
    """One value of a body is not valid, said in words that are sent on: rpcd adds the place.

    A type of the user's may raise it where it checks its values, in `__post_init__` or in a validator of attrs or pydantic.
    Other exceptions' words are not sent on, for they may hold a value.
    """


class ReplyRefused(RpcdError):
    """The message's `reply_to` is not one that this consumer may write to."""


PASSED = "the deadline of this message has passed: its sender waits no longer"


class DeadlinePassed(RpcdError):
    """The time that the sender gave for the message is over; what a handler begins from then on fails with this.

    A handler may let it through, or raise it itself: the message is acked, and a caller told. Ahead of the message's own
    deadline, or without one, it is an unexpected exception like any other.
    """


class Expired(DeadlinePassed):
    """The time that the sender gave for the message was over before its handler could start."""


class TimeLimitPassed(RpcdError):
    """The handler ran longer than the consumer's `time_limit`; what it does from now on counts for nothing."""


class PublishError(RpcdError):
    """A message could not be published and never will be as it is."""


class Unroutable(PublishError):
    """The broker had no queue for a mandatory message and returned it."""


class PublishRefused(PublishError):
    """The broker refused a message: no such exchange, no permission, too big."""


class ReplyUnencodable(PublishError):
    """What the handler returned can't be sent as a reply: no JSON can hold it, or it is over `max_reply`."""


class PublishTimeout(RpcdError):
    """The broker did not confirm in time; the message may or may not have arrived."""


# What asking another service may end with ----------------------------------------------------------


class CallError(RpcdError):
    """A call to another service brought no good reply."""


class CallFailed(CallError):
    """The other service answered `success` false; `message` and `data` are what it said."""

    def __init__(self, message: str | None = None, data: Mapping[str, Any] | None = None) -> None:
        """Keep the other side's words; `data` is shown nowhere, for nobody knows what it holds."""
        super().__init__(message if message is not None else "the service answered that the request failed")
        self.message = message
        self.data = {} if data is None else data


class CallTimeout(CallError, TimeoutError):
    """No reply came in time; the request may have been handled, may be handled yet, or was never sent: the text says."""


class CallInterrupted(CallError):
    """The connection ended before the reply came; the request may or may not have been handled, and is not sent again."""


class BadReply(Faulty, CallError):
    """The reply is not what was asked for: no envelope, a wrong shape. Its text names place and reason, never a value."""


# What an operator gets to see ---------------------------------------------------------------------


@attrs.frozen
class Problem:
    """One mistake in the config: where it is, what is wrong and the way out."""

    path: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


class SettingsError(RpcdError):
    """The config is wrong; every mistake that could be found is in `problems`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Collect all problems of one config."""
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class BrokerRefused(RpcdError):
    """The broker refused a login, a declaration or a permission; a person has to change something."""

    def __init__(self, sentence: str, exit_code: ExitCode) -> None:
        """Say what was refused and the way out; `exit_code` is what a first start ends with."""
        super().__init__(sentence)
        self.exit_code = exit_code


class LoginRefused(BrokerRefused):
    """The broker refused the credentials or the virtual host: tried again a few times, for both may be new."""


class ObjectMissing(RpcdError):
    """A queue or exchange that rpcd only checks for (passive) does not exist yet; it is waited for."""


class ConnectionLost(RpcdError):
    """The connection is gone; `code` is the broker's reply code, or 0 when it said none."""

    def __init__(self, reason: str, code: int = 0) -> None:
        """Keep the real cause: the broker's text, a missed heartbeat, the error of the socket or of TLS."""
        super().__init__(reason)
        self.code = code


class ChannelClosed(RpcdError):
    """The broker closed a channel; `code` and `text` are its own (404, 403, 406, ...)."""

    def __init__(self, code: int, text: str) -> None:
        """Keep the broker's reply code and text."""
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


class ConsumerCancelled(RpcdError):
    """The broker cancelled the consumer: its queue was deleted, or the node that holds it went away."""
