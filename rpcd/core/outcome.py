"""The one table from what happened to an outcome.

`TABLE` is that table; the README and the tests read it too. Every path of a message ends in an `Outcome`: there is no
statement that could be forgotten. Deciding is done where the handler ran (a worker thread), carrying out on the reactor.
"""

import logging
from collections.abc import Callable
from typing import Any

import attrs

from rpcd.core import errors
from rpcd.core.copies import printable, retriable
from rpcd.core.errors import ExitCode
from rpcd.core.message import Message
from rpcd.core.outgoing import Outgoing
from rpcd.core.policy import Policy
from rpcd.core.reply import UNEXPECTED
from rpcd.core.verdict import ACKED, LATE, Halt, Outcome, Verdict, trace

REQUEUE_PAUSE = 1000
"""Milliseconds that a failed message is held before `on_error = "requeue"` gives it back, so that nothing spins."""


def success(value: Any, message: Message[Any], policy: Policy) -> Outcome:
    """Return the outcome of a handler that returned `value`."""
    replies, published = policy.replies, message.published
    if published and not all(isinstance(each, Outgoing) for each in published):
        raise TypeError("message.published holds what message.publish() has not put there")
    if message.properties.reply_to is None or not replies.wanted(message):
        return Outcome(Verdict.ACK, publications=published, level=logging.DEBUG) if published else ACKED
    reply = replies.success(message, value)
    return Outcome(Verdict.ACK, reply=reply, publications=published or None, level=logging.DEBUG)


def judge(error: BaseException, message: Message[Any], policy: Policy, now: float) -> Outcome:
    """Return the outcome of whatever was raised; never raises itself."""
    case = Case(error, message, policy, now)
    try:
        outcome = rule_for(type(error)).decide(case)
    except BaseException as fault:  # noqa: BLE001  # data that JSON can't hold, a subclass of Retry without a delay, ...
        outcome = _fallback(attrs.evolve(case, error=fault))
    outcome.error = type(error).__name__
    return outcome


@attrs.frozen
class Case:
    """One thing that happened to one message."""

    error: Any
    message: Message[Any]
    policy: Policy
    now: float

    @property
    def answerable(self) -> bool:
        """Whether somebody waits for a reply and may be sent one."""
        replies = self.policy.replies
        return replies.wanted(self.message) and replies.allows(self.message)

    def failure(self, text: str | None, data: Any = None) -> Outgoing | None:
        """Build the failure reply, or None when nobody waits for one or may be answered."""
        return self.policy.replies.failure(self.message, text, data) if self.answerable else None


@attrs.frozen
class Rule:
    """One row of the outcome table."""

    what: str
    delivery: str
    reply: str
    error: type[BaseException] | None
    decide: Callable[[Case], Outcome]


# The decisions, one a row -------------------------------------------------------------------------


def _request_failed(case: Case) -> Outcome:
    reply = case.failure(case.error.message, case.error.data)
    return Outcome(Verdict.ACK, "request failed", reply=reply, level=logging.INFO)


def _nack(case: Case) -> Outcome:
    nacks, delay = case.message.nacks, case.error.delay
    step = None if delay == 0 else case.policy.steps.delay(nacks, delay)
    if step is None:
        reason = "put off by Nack" if delay == 0 else "put off by Nack; there are no retry steps"
        return Outcome(Verdict.REQUEUE, reason, level=logging.INFO, temporary=True)
    return _again(case, step, case.message.attempt - 1, nacks + 1, "put off by Nack", logging.INFO)


def _drop(case: Case) -> Outcome:
    return Outcome(Verdict.REJECT, "dropped", reply=case.failure("The message was dropped"))


def _retry(case: Case, delay: float | None = None) -> Outcome:
    attempt = case.message.attempt
    step = case.policy.steps.after(attempt, delay)
    if step is None:
        return _spent(case, f"attempts are spent: {type(case.error).__name__}")
    return _again(case, step, attempt, case.message.nacks, "", logging.WARNING)


def _again(case: Case, step: int, count: int, nacks: int, reason: str, level: int) -> Outcome:
    if case.policy.longest is not None:
        step = min(step, round(case.policy.longest * 1000))
    elif not retriable(case.message):
        return _spent(case, "its headers are too big for a retry")
    deadline = case.message.deadline
    if deadline is not None and case.now + step / 1000 > deadline:
        return _spent(case, f"the deadline comes before the next attempt: {type(case.error).__name__}")
    return Outcome(Verdict.RETRY, reason, step=step, count=count, nacks=nacks, level=level, temporary=True)


def _spent(case: Case, reason: str) -> Outcome:
    return Outcome(Verdict.ARCHIVE, reason, reply=case.failure(UNEXPECTED), level=logging.ERROR, temporary=True)


def _archive(case: Case, reason: str, text: str | None, level: int = logging.ERROR) -> Outcome:
    return Outcome(Verdict.ARCHIVE, reason, reply=case.failure(text), level=level)


def _permanent(case: Case) -> Outcome:
    reason = case.error.reason
    if reason is None:
        return _archive(case, "permanent failure", "Permanent failure", logging.WARNING)
    return _archive(case, printable(str(reason)), printable(str(reason)), logging.WARNING)


def _halt(case: Case) -> Outcome:
    error = case.error
    halt = Halt(int(error.exit_code), None if error.reason is None else printable(str(error.reason)))
    level = logging.ERROR if error.exit_code else logging.WARNING
    if error.requeue:
        return Outcome(Verdict.REQUEUE, "halted", halt=halt, level=level)
    return Outcome(
        Verdict.ACK, "halted", reply=case.failure(halt.reason or "The consumer was halted"), halt=halt, level=level
    )


def _bad_message(case: Case) -> Outcome:
    error = case.error
    data = {"place": error.place, "reason": error.reason}
    if error.faults:
        data["faults"] = [{"place": place, "reason": reason} for place, reason in error.faults]
        if error.more:
            data["more"] = error.more
    reply = case.failure(f"Bad message: {error}", data)
    return Outcome(Verdict.ARCHIVE, f"bad message: {error}", reply=reply)


def _reply_refused(case: Case) -> Outcome:
    return Outcome(Verdict.ARCHIVE, str(case.error))


def _expired(_case: Case) -> Outcome:
    return Outcome(Verdict.ACK, "deadline passed before it started", level=logging.INFO)


def _deadline_passed(case: Case) -> Outcome:
    if case.message.deadline is None or case.now < case.message.deadline:
        return _by_policy(case)  # some other deadline: the sender of this message still waits
    return Outcome(Verdict.ACK, LATE, reply=case.failure("The deadline has passed"), level=logging.INFO)


def _time_limit(case: Case) -> Outcome:
    return _archive(case, "time limit passed", "The time limit was passed")


def _by_policy(case: Case) -> Outcome:
    outcome = ON_ERROR[case.policy.on_error](case)
    refused = isinstance(case.error, errors.PublishError)
    if refused:
        outcome.reason = f"{outcome.reason}; {case.error}" if outcome.reason else str(case.error)
    if not refused or case.error.__traceback__ is not None:  # else no code raised it: what was held back was refused
        outcome.trace = trace(case.error)
    return outcome


def _fallback(case: Case) -> Outcome:
    try:
        return _by_policy(case)
    except BaseException as fault:  # noqa: BLE001  # not even a neutral answer can be addressed: nobody is answered
        return Outcome(Verdict.ARCHIVE, "no reply can be made", level=logging.ERROR, trace=trace(fault))


def _answer(case: Case) -> Outcome:
    if case.answerable:
        return Outcome(Verdict.ACK, "answered as failed", reply=case.failure(UNEXPECTED), level=logging.ERROR)
    return _archive(case, f"nobody to answer: {type(case.error).__name__}", None)


def _auto(case: Case) -> Outcome:
    return _answer(case) if case.answerable else _retry(case)


def _stop(case: Case) -> Outcome:
    halt = Halt(ExitCode.SOFTWARE, f"on_error is halt: {type(case.error).__name__}", give_back=True)
    return Outcome(Verdict.REQUEUE, "halted", halt=halt, level=logging.CRITICAL)


ON_ERROR: dict[str, Callable[[Case], Outcome]] = {
    "auto": _auto,
    "reply": _answer,
    "retry": _retry,
    "archive": lambda case: _archive(case, f"unexpected exception: {type(case.error).__name__}", UNEXPECTED),
    "requeue": lambda _case: Outcome(Verdict.REQUEUE, step=REQUEUE_PAUSE, level=logging.ERROR, temporary=True),
    "drop": lambda case: Outcome(Verdict.REJECT, "dropped", reply=case.failure(UNEXPECTED), level=logging.ERROR),
    "halt": _stop,
}
"""What `on_error` may be, and what it does with an exception that has no row of its own."""


TABLE: tuple[Rule, ...] = (
    Rule("returned", "ack", "`success` true", None, lambda _case: ACKED),
    Rule(
        "`RequestFailed(message, data)`",
        "ack",
        "`success` false with that message and data",
        errors.RequestFailed,
        _request_failed,
    ),
    Rule(
        "`Nack(delay=None)`",
        "comes back later through the retry steps without using up an attempt; `Nack(delay=0)` is requeued at once",
        "none",
        errors.Nack,
        _nack,
    ),
    Rule(
        "`Drop()`",
        "reject without requeue: the queue's dead-letter rule decides (rpcd's own: their archive)",
        "`success` false",
        errors.Drop,
        _drop,
    ),
    Rule(
        "`Retry(delay=None)`",
        "a copy to the next retry step that is long enough (else the longest); archive when attempts are spent",
        "only when spent",
        errors.Retry,
        lambda case: _retry(case, case.error.delay),
    ),
    Rule("`PermanentFailure(reason)`", "a copy to the archive", "`success` false", errors.PermanentFailure, _permanent),
    Rule(
        "`HaltConsumer(exit_code=0, reason=None, requeue=False)`",
        "ack (or requeue); this consumer stops, the process ends with its last one; a non-zero code stops all at once",
        "`success` false, none with `requeue`",
        errors.HaltConsumer,
        _halt,
    ),
    Rule(
        "the body can't be opened (bad JSON, bad token, wrong shape)",
        "archive",
        "`success` false with place and reason, never a value",
        errors.BadMessage,
        _bad_message,
    ),
    Rule("`reply_to` is not allowed", "archive, not run", "none", errors.ReplyRefused, _reply_refused),
    Rule("deadline passed before it started", "ack, not run, counted", "none", errors.Expired, _expired),
    Rule("deadline passed, and it gave up", "ack, counted", "`success` false", errors.DeadlinePassed, _deadline_passed),
    Rule(
        "time limit passed",
        "archive; the thread is written off and replaced",
        "`success` false",
        errors.TimeLimitPassed,
        _time_limit,
    ),
    Rule(
        "what it publishes is refused (no exchange, no permission, too big)",
        "`on_error`",
        "as `on_error`",
        errors.PublishError,
        _by_policy,
    ),
    Rule(
        "any other exception",
        "`on_error`",
        "a neutral sentence; the traceback goes to the log only",
        BaseException,
        _by_policy,
    ),
)

_RULES = {rule.error: rule for rule in TABLE if rule.error is not None}


def rule_for(kind: type[BaseException]) -> Rule:
    """Return the row for a type of exception: its own, or that of the nearest of its bases."""
    found = _RULES.get(kind)
    if found is None:
        found = _RULES[kind] = next(_RULES[base] for base in kind.__mro__ if base in _RULES)
    return found
