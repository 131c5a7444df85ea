import attrs
import pytest

from rpcd.core.stats import Stats
from rpcd.core.verdict import ACKED, Outcome, Verdict


def counted(stats: Stats) -> dict[str, int]:
    return {name: value for name, value in attrs.asdict(stats).items() if value}


def test_everything_starts_at_zero() -> None:
    assert counted(Stats()) == {}


@pytest.mark.parametrize(
    ("verdict", "name"),
    [
        (Verdict.ACK, "acked"),
        (Verdict.REQUEUE, "requeued"),
        (Verdict.REJECT, "rejected"),
        (Verdict.RETRY, "retried"),
        (Verdict.ARCHIVE, "archived"),
    ],
)
def test_every_verdict_has_its_counter(verdict: Verdict, name: str) -> None:
    stats = Stats()
    stats.count(Outcome(verdict))
    stats.count(Outcome(verdict))
    assert counted(stats) == {name: 2}


def test_a_message_that_came_too_late_is_counted_as_expired_too() -> None:
    stats = Stats()
    stats.count(Outcome(Verdict.ACK, error="DeadlinePassed"))
    stats.count(ACKED)
    assert counted(stats) == {"acked": 2, "expired": 1}


def test_two_consumers_count_apart() -> None:
    first, second = Stats(), Stats()
    first.count(ACKED)
    assert (counted(first), counted(second), first == second) == ({"acked": 1}, {}, False)
