"""When so many failures in a row stop a consumer, and which outcomes count as failures at all."""

import logging

import pytest

from rpcd.core.errors import BadMessage, Drop, HaltConsumer, Nack, PermanentFailure, RequestFailed, Retry
from rpcd.core.kill_switch import KillSwitch, succeeded
from rpcd.core.message import Message
from rpcd.core.outcome import judge
from rpcd.core.outgoing import Outgoing
from rpcd.core.policy import Policy
from rpcd.core.reply import Replies
from rpcd.core.retry import Steps
from rpcd.core.verdict import ACKED, Outcome, Verdict

FAILED = Outcome(Verdict.RETRY, error="ConnectionError", temporary=True)
ANSWERED = Outcome(Verdict.ACK, "request failed", level=logging.INFO)
BAD = Outcome(Verdict.ARCHIVE, "bad message")


def noted(*outcomes: Outcome, limit: int = 3) -> KillSwitch:
    switch = KillSwitch(limit)
    for each in outcomes:
        switch.note(each)
    return switch


@pytest.mark.parametrize(
    ("outcomes", "tripped"),
    [
        ((), False),
        ((FAILED, FAILED), False),
        ((FAILED, FAILED, FAILED), True),
        ((FAILED, FAILED, ACKED, FAILED, FAILED), False),
        ((FAILED, ANSWERED, FAILED, BAD, FAILED), True),
        ((FAILED, FAILED, FAILED, ANSWERED, BAD), True),
        ((FAILED, FAILED, FAILED, FAILED, ACKED), False),
        ((ANSWERED, BAD) * 10, False),
    ],
)
def test_so_many_failures_in_a_row_trip_it_and_one_success_resets_it(outcomes: tuple[Outcome, ...], tripped: bool) -> None:
    assert noted(*outcomes).tripped is tripped


def test_it_is_told_once_that_it_trips() -> None:
    switch = KillSwitch(3)
    assert [switch.note(FAILED) for _ in range(5)] == [False, False, True, False, False]
    assert (switch.failures, switch.error) == (5, "ConnectionError")


def test_0_is_never() -> None:
    assert not noted(*[FAILED] * 1000, limit=0).tripped


def test_an_order_resets_it() -> None:
    switch = noted(FAILED, FAILED, FAILED)
    switch.reset()
    assert (switch.failures, switch.tripped) == (0, False)


@pytest.mark.parametrize(
    ("error", "on_error", "attempt", "temporary"),
    [
        (Retry(), "auto", 1, True),
        (Retry(), "auto", 5, True),
        (Nack(), "auto", 1, True),
        (Nack(delay=0), "auto", 1, True),
        (OSError(), "auto", 1, True),
        (OSError(), "retry", 5, True),
        (OSError(), "requeue", 1, True),
        (OSError(), "archive", 1, False),
        (OSError(), "drop", 1, False),
        (OSError(), "halt", 1, False),
        (OSError(), "reply", 1, False),
        (RequestFailed("no"), "auto", 1, False),
        (PermanentFailure("no"), "auto", 1, False),
        (Drop(), "auto", 1, False),
        (HaltConsumer(requeue=True), "auto", 1, False),
        (BadMessage("body", "no JSON"), "auto", 1, False),
    ],
)
def test_what_is_tried_again_or_would_be_is_a_temporary_failure(
    error: BaseException, on_error: str, attempt: int, temporary: bool
) -> None:
    outcome = judge(error, Message(attempt=attempt), Policy(Replies(), on_error, Steps((0.2, 1.0, 60.0, 1800.0), 5)), 0.0)
    assert outcome.temporary is temporary
    assert not succeeded(outcome)


def test_a_return_is_a_success_whatever_it_sends() -> None:
    reply = Outgoing("", "amq.gen-x", b"{}", b"")
    assert succeeded(ACKED)
    assert succeeded(Outcome(Verdict.ACK, reply=reply, publications=[reply], level=logging.DEBUG))
