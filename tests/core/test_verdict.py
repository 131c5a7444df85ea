import logging

import pytest

from rpcd.core.verdict import ACKED, Halt, Outcome, Verdict


def test_there_are_five_verdicts() -> None:
    assert [verdict.value for verdict in Verdict] == ["ack", "requeue", "reject", "retry", "archive"]


@pytest.mark.parametrize("verdict", Verdict)
def test_an_outcome_without_more_publishes_nothing_and_halts_nobody(verdict: Verdict) -> None:
    outcome = Outcome(verdict)
    assert outcome.verdict is verdict
    assert (outcome.reply, outcome.publications, outcome.halt, outcome.error, outcome.trace) == (None,) * 5
    assert (outcome.reason, outcome.step, outcome.count, outcome.nacks) == ("", 0, 0, 0)


def test_what_nobody_meant_to_happen_is_at_least_a_warning() -> None:
    assert Outcome(Verdict.RETRY).level == logging.WARNING


def test_the_outcome_of_a_plain_return_is_for_debugging_only() -> None:
    assert (ACKED.verdict, ACKED.level, ACKED.reply, ACKED.publications) == (Verdict.ACK, logging.DEBUG, None, None)


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [(ACKED, "<Outcome ack: returned>"), (Outcome(Verdict.ARCHIVE, "given up"), "<Outcome archive: given up>")],
)
def test_the_repr_says_what_becomes_of_the_delivery(outcome: Outcome, shown: str) -> None:
    assert repr(outcome) == shown


def test_a_halt_without_more_is_a_plain_end_that_gives_nothing_back() -> None:
    assert Halt() == Halt(exit_code=0, reason=None, give_back=False)
