import attrs
import pytest

from rpcd.core.stats import BOUNDS, Durations, OutboxStats, Stats
from rpcd.core.verdict import ACKED, LATE, Outcome, Verdict


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
    stats.count(Outcome(Verdict.ACK, error="Expired"))
    stats.count(ACKED)
    assert counted(stats) == {"acked": 2, "expired": 1}


def test_a_handler_that_gave_up_at_its_deadline_is_counted_as_late_and_one_that_failed_by_another_is_not() -> None:
    stats = Stats()
    stats.count(Outcome(Verdict.ACK, LATE, error="DeadlinePassed"))
    stats.count(Outcome(Verdict.ARCHIVE, error="DeadlinePassed"))
    assert counted(stats) == {"acked": 1, "archived": 1, "late": 1}


def test_two_consumers_count_apart() -> None:
    first, second = Stats(), Stats()
    first.count(ACKED)
    assert (counted(first), counted(second), first == second) == ({"acked": 1}, {}, False)


def test_a_message_that_could_not_be_opened_is_counted_as_bad_too() -> None:
    stats = Stats()
    stats.count(Outcome(Verdict.ARCHIVE, error="BadMessage"))
    assert counted(stats) == {"archived": 1, "bad": 1}


def test_channel_errors_are_counted_by_code_and_ack_timeouts_by_the_brokers_words() -> None:
    stats = Stats()
    stats.channel_error(404, "NOT_FOUND - no queue 'x' in vhost '/'")
    stats.channel_error(406, "PRECONDITION_FAILED - unknown delivery tag 7")
    stats.channel_error(
        406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: ..."
    )
    assert counted(stats) == {"channel_errors": {"404": 1, "406": 2}, "ack_timeouts": 1}


@attrs.define
class Job:
    seconds: float


def test_durations_fall_into_the_bucket_whose_bound_they_do_not_pass() -> None:
    durations = Durations()
    durations.add([Job(0.0), Job(BOUNDS[0]), Job(BOUNDS[0] + 0.001)])
    durations.add([Job(BOUNDS[-1]), Job(BOUNDS[-1] + 1)])
    assert durations.buckets == [2, 1, *[0] * (len(BOUNDS) - 3), 1, 1]
    assert durations.seconds == pytest.approx(2 * BOUNDS[0] + 0.001 + 2 * BOUNDS[-1] + 1)


def test_every_counter_says_what_it_counts() -> None:
    for field in (*attrs.fields(Stats), *attrs.fields(OutboxStats)):
        assert field.metadata["sentence"].endswith(".")
