from typing import Any

import pytest
from sections import built

from rpcd.core.caution import cautions
from rpcd.core.settings import Settings


def config(**consumer: Any) -> Settings:
    return built({"queues": {"work": {}}, "consumers": {"work": {"queue": "work", "handler": "a.b:c", **consumer}}})


@pytest.mark.parametrize("seconds", [1, 600, 900])
def test_a_time_limit_that_leaves_room_is_no_reason_for_a_warning(seconds: float) -> None:
    assert cautions(config(time_limit=seconds)) == []


def test_the_default_is_fine() -> None:
    assert cautions(config()) == []


def test_a_time_limit_over_half_of_the_brokers_own_is_warned_of() -> None:
    (warning,) = cautions(config(time_limit=901))
    assert warning.path == "consumers.work.time_limit"
    assert "901 s" in warning.what
    assert "at most 900" in warning.remedy
