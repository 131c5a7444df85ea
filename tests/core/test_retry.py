import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcd.core.retry import Steps, counted, deadline, milliseconds

PROPERTY = settings(max_examples=40, deadline=None)

USUAL = Steps((0.2, 1.0, 60.0, 1800.0), 5)

STEPS = st.builds(
    Steps,
    st.lists(st.floats(0.001, 4_000_000), min_size=1, max_size=8).map(lambda delays: tuple(sorted(delays))),
    st.integers(1, 12),
)


@pytest.mark.parametrize(("attempt", "step"), [(1, 200), (2, 1000), (3, 60_000), (4, 1_800_000), (5, None), (6, None)])
def test_each_attempt_has_its_step_and_the_last_has_none(attempt: int, step: int | None) -> None:
    assert USUAL.after(attempt) == step


@pytest.mark.parametrize(
    ("attempt", "minimum", "step"),
    [
        (1, 0.0, 200),
        (1, 0.2, 200),
        (1, 0.201, 1000),
        (1, 30.0, 60_000),
        (3, 0.2, 60_000),
        (1, 1800.0, 1_800_000),
        (1, 1801.0, 1_800_000),
        (1, math.inf, 1_800_000),
        (1, -5.0, 200),
        (5, 0.2, None),
    ],
)
def test_a_delay_takes_the_next_step_that_is_long_enough_or_else_the_longest(
    attempt: int, minimum: float, step: int | None
) -> None:
    assert USUAL.after(attempt, minimum) == step


def test_with_more_attempts_than_steps_the_last_step_serves_again() -> None:
    steps = Steps((1.0, 2.0), 6)
    assert [steps.after(attempt) for attempt in range(1, 7)] == [1000, 2000, 2000, 2000, 2000, None]


def test_a_longer_step_that_lies_behind_is_taken_when_none_ahead_is_long_enough() -> None:
    assert Steps((60.0, 1.0), 5).after(2, 30.0) == 60_000


def test_with_fewer_attempts_than_steps_the_rest_is_not_used() -> None:
    assert [Steps((1.0, 2.0, 3.0), 2).after(attempt) for attempt in (1, 2)] == [1000, None]


def test_without_steps_there_is_nothing_to_wait_in() -> None:
    assert (Steps((), 1).after(1), Steps((), 3).after(1), Steps((), 1).delay(0)) == (None, None, None)


@pytest.mark.parametrize(("index", "step"), [(0, 200), (3, 1_800_000), (4, 1_800_000), (10**6, 1_800_000)])
def test_a_nack_may_go_through_the_steps_for_ever(index: int, step: int) -> None:
    assert USUAL.delay(index) == step


def test_steps_are_told_as_the_broker_counts() -> None:
    assert USUAL.milliseconds == (200, 1000, 60_000, 1_800_000)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.2, 200), (1.0, 1000), (0.0001, 1), (0.0015, 2), (1.1, 1100), (4294967, 4294967000)]
)
def test_milliseconds_are_whole_and_never_none_at_all(seconds: float, expected: int) -> None:
    assert milliseconds(seconds) == expected


@PROPERTY
@given(STEPS, st.integers(1, 20))
def test_delays_only_grow_and_end_when_the_attempts_do(steps: Steps, attempt: int) -> None:
    now, later = steps.after(attempt), steps.after(attempt + 1)
    assert (now is None) == (attempt >= steps.attempts)
    assert later is None or (now is not None and now <= later)


@PROPERTY
@given(STEPS, st.integers(1, 20), st.none() | st.floats(0, 5_000_000))
def test_a_step_is_one_of_the_queues_and_long_enough_if_any_is(steps: Steps, attempt: int, minimum: float | None) -> None:
    step = steps.after(attempt, minimum)
    if step is None:
        return
    assert step in steps.milliseconds
    if minimum is not None and max(steps.milliseconds) >= minimum * 1000:
        assert step >= minimum * 1000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (0, 0),
        (-5, 0),
        (11, 10),
        (2**63 - 1, 10),
        ("3", 0),
        (2.5, 0),
        (None, 0),
        ([3], 0),
        (b"3", 0),
    ],
)
def test_a_counter_is_clamped_and_a_forged_one_is_none(value: Any, expected: int) -> None:
    assert counted({"x-retry-count": value}, "x-retry-count", 10) == expected


def test_a_counter_that_is_not_there_is_zero() -> None:
    assert counted({}, "x-retry-count", 10) == 0


NOW = 1_700_000_000.25


@pytest.mark.parametrize(
    ("headers", "expiration", "timestamp", "expected"),
    [
        ({}, None, None, None),
        ({}, None, 1_700_000_000, None),
        ({}, "5000", None, NOW + 5),
        ({}, "1", None, NOW + 0.001),
        ({}, "0", None, None),  # at once or never, and it was delivered
        ({}, b"5000", None, NOW + 5),
        ({}, "soon", None, None),
        ({}, "", None, None),
        ({}, b"\xff", None, None),
        ({}, "-5", None, None),
        ({}, "5.5", None, None),
        ({}, "9" * 255, None, NOW + int("9" * 255) / 1000),
        # a believable timestamp: whole seconds, rounded down, hence one second more
        ({}, "5000", 1_700_000_000, 1_700_000_006),
        ({}, "5000", 1_699_999_997, 1_700_000_003),
        ({}, "5000", 1_700_000_059, 1_700_000_065),
        # too far in the future, or so long ago that the broker would have expired the message itself
        ({}, "5000", 1_700_000_060, NOW + 5),
        ({}, "5000", 1_699_999_993, NOW + 5),
        ({}, "5000", 0, NOW + 5),
        ({}, "5000", 2**63, NOW + 5),
        ({}, "5000", 2**64 - 1, NOW + 5),
        # what a copy carries wins
        ({"x-deadline": 1_700_000_003.5}, None, None, 1_700_000_003.5),
        ({"x-deadline": 1_700_000_003}, "5000", 1_700_000_000, 1_700_000_003.0),
        ({"x-deadline": "soon"}, "5000", None, NOW + 5),
        ({"x-deadline": math.nan}, "5000", None, NOW + 5),
        ({"x-deadline": math.inf}, None, None, None),
        ({"x-deadline": True}, None, None, None),
        ({"x-deadline": None}, None, None, None),
        ({"x-deadline": [1]}, "5000", None, NOW + 5),
    ],
)
def test_fault_50_the_deadline_is_what_the_sender_meant_as_far_as_that_can_be_believed(
    headers: dict[str, Any], expiration: Any, timestamp: int | None, expected: float | None
) -> None:
    assert deadline(headers, expiration, timestamp, NOW) == expected


@PROPERTY
@given(
    st.none() | st.text(max_size=10) | st.binary(max_size=10) | st.integers(-(10**6), 10**12).map(str),
    st.none() | st.integers(0, 2**64 - 1),
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=5) | st.booleans(),
)
def test_whatever_a_sender_writes_gives_a_finite_deadline_or_none(
    expiration: Any, timestamp: int | None, carried: Any
) -> None:
    found = deadline({"x-deadline": carried}, expiration, timestamp, NOW)
    assert found is None or math.isfinite(found)
