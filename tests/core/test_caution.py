from typing import Any

import pytest

from rpcd.core.caution import cautions
from rpcd.core.consumers import Consumer, Retry
from rpcd.core.errors import Problem


def told(**settings: Any) -> list[Problem]:
    return cautions({"work": Consumer(queue="work", handler="a.b:c", **settings)})


def places(**settings: Any) -> list[str]:
    return [each.path.removeprefix("consumers.work.") for each in told(**settings)]


@pytest.mark.parametrize("seconds", [1, 600, 900])
def test_a_time_limit_that_leaves_room_is_no_reason_for_a_warning(seconds: float) -> None:
    assert told(time_limit=seconds) == []


def test_the_default_is_fine() -> None:
    assert told() == []


def test_a_time_limit_over_half_of_the_brokers_own_is_warned_of() -> None:
    (warning,) = told(time_limit=901)
    assert warning.path == "consumers.work.time_limit"
    assert "901 s" in warning.what
    assert "at most 900" in warning.remedy


# A prefetch that ages -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 16},
        {"workers": 16, "prefetch": 32},
        {"workers": 16, "prefetch": 48},  # three runs of 600 s are 30 minutes
        {"workers": 1, "prefetch": 1000, "time_limit": 1.8},
        {"workers": 1, "prefetch": 3},
        {"lock": "body.key", "on_error": "archive"},  # what rpcd chooses itself is no mistake of the operator's
        {"lock": "body.key", "on_error": "archive", "workers": 16},
        {"lock": "*", "on_error": "archive"},
        {"lock": "body.key", "on_error": "archive", "prefetch": 100, "time_limit": 18},
    ],
)
def test_a_prefetch_whose_last_message_is_acked_in_time_is_fine(settings: dict[str, Any]) -> None:
    assert told(**settings) == []


@pytest.mark.parametrize(
    ("settings", "at_most"),
    [
        ({"workers": 16, "prefetch": 49}, 48),
        ({"workers": 1, "prefetch": 100}, 3),
        ({"workers": 4, "prefetch": 1000, "time_limit": 60}, 120),
        ({"lock": "body.key", "prefetch": 100}, 3),
        ({"lock": "body.key", "prefetch": 1000, "workers": 16, "time_limit": 10}, 180),
        ({"lock": "*", "prefetch": 10}, 3),
    ],
)
def test_a_prefetch_whose_last_message_may_wait_too_long_is_warned_of(settings: dict[str, Any], at_most: int) -> None:
    (warning,) = told(on_error="archive", **settings)
    assert warning.path == "consumers.work.prefetch"
    assert f"{settings['prefetch']} messages are sent ahead" in warning.what
    assert ("the same key" in warning.what) == ("lock" in settings)
    assert warning.remedy.startswith(f"at most {at_most}, ")
    assert told(on_error="archive", **{**settings, "prefetch": at_most}) == []


# Order and failure --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"on_error": "archive"},
        {"on_error": "halt"},
        {"on_error": "drop"},
        {"on_error": "reply"},
        {"retry": Retry(delays=[])},
        {"retry": Retry(delays=[1.0], attempts=1)},
    ],
)
def test_a_lock_whose_order_no_failure_upsets_is_fine(settings: dict[str, Any]) -> None:
    assert places(lock="body.key", **settings) == []


@pytest.mark.parametrize("lock", ["body.key", "*", "routing_key", "body.a / body.b"])
@pytest.mark.parametrize(
    ("on_error", "happens"),
    [("auto", "is tried again later"), ("retry", "is tried again later"), ("requeue", "is requeued")],
)
def test_a_lock_with_retries_is_warned_of(lock: str, on_error: Any, happens: str) -> None:
    (warning,) = told(lock=lock, on_error=on_error)
    assert warning.path == "consumers.work.lock"
    assert happens in warning.what
    assert "the next one of its key passes it" in warning.what
    assert 'on_error = "archive"' in warning.remedy


@pytest.mark.parametrize("lock", [None, ""])
def test_retries_without_a_lock_are_fine(lock: str | None) -> None:
    assert told(lock=lock) == []
