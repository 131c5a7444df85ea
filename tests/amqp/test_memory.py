"""The garbage collector's number follows the messages in hand, and never falls below what the operator has set."""

import gc
from collections.abc import Iterator

import pytest

from rpcd.ops.memory import OBJECTS, settle_in


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.parametrize(
    ("before", "messages", "after"),
    [
        ((700, 10, 10), 2, (700, 5, 5)),
        ((700, 10, 10), 2000, (2000 * OBJECTS, 5, 5)),
        ((900_000, 3, 4), 2000, (900_000, 3, 4)),
        ((0, 10, 10), 2000, (0, 10, 10)),
    ],
)
def test_the_number_of_objects_follows_the_messages_in_hand(
    before: tuple[int, int, int], messages: int, after: tuple[int, int, int]
) -> None:
    gc.set_threshold(*before)
    settle_in(messages)
    assert gc.get_threshold() == after
