"""Which messages must run alone: by their count, the queue's limit, and what is known of them here."""

from typing import Any

import attrs
import pytest

from rpcd.core import settings, suspects
from rpcd.core.ledger import Ledger
from rpcd.core.message import Message
from rpcd.core.pipeline import Job
from rpcd.core.suspects import Suspicion, returns
from rpcd.core.topology import delivery_limit
from rpcd.core.wire import Properties


def came_back(count: Any, message_id: str | None = "m1", payload: bytes = b"{}") -> Job:
    """Make the job of a message that came back."""
    properties = Properties(message_id=message_id)
    headers = {} if count is None else {"x-delivery-count": count}
    message = Message(payload=payload, properties=properties, headers=headers, redelivered=True)
    return Job(message, None, Ledger(), 1)  # type: ignore[arg-type]  # no handler runs here


@pytest.mark.parametrize(("limit", "least"), [(20, 3), (6, 3), (3, 3), (2, 2), (1, 1), (-1, 3)], ids=str)
def test_it_is_a_suspect_at_three_returns_or_at_the_limit(limit: int, least: int) -> None:
    suspicion = Suspicion(limit)
    assert [count for count in range(least + 3) if suspicion.falls_on(came_back(count))] == [least, least + 1, least + 2]


def test_a_queue_that_does_not_count_has_no_suspects() -> None:
    suspicion = Suspicion(None)
    assert not suspicion.counts
    assert not suspicion.falls_on(came_back(19))


@pytest.mark.parametrize("count", [None, "7", b"7", 7.0, True, [7]])
def test_what_no_broker_writes_counts_nothing(count: Any) -> None:
    assert returns(came_back(count).message) == 0


def test_headers_that_can_not_be_read_count_nothing() -> None:
    message: Message[Any] = Message(properties=Properties(headers=b"broken"))
    assert returns(message) == 0


def test_what_ran_here_and_was_given_back_is_no_suspect() -> None:
    suspicion = Suspicion(20)
    suspicion.acquit(came_back(2))
    assert not suspicion.falls_on(came_back(3))
    assert suspicion.falls_on(came_back(3, "m2"))


def test_without_an_id_an_equal_body_is_known() -> None:
    suspicion = Suspicion(20)
    suspicion.acquit(came_back(2, None, b"one"))
    assert not suspicion.falls_on(came_back(3, None, b"one"))
    assert suspicion.falls_on(came_back(3, None, b"two"))


def test_only_so_many_are_remembered_and_the_last_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "KEPT", 2)
    suspicion = Suspicion(20)
    for each in ("a", "b", "a", "c"):
        suspicion.acquit(came_back(1, each))
    assert [each for each in "abc" if suspicion.falls_on(came_back(3, each))] == ["b"]


@pytest.mark.parametrize(("limit", "count", "spared"), [(6, 5, True), (6, 6, False), (1, 1, False), (-1, 1000, True)])
def test_at_the_limit_it_must_not_go_back(limit: int, count: int, spared: bool) -> None:
    assert Suspicion(limit).spares(came_back(count)) is spared


@pytest.mark.parametrize(
    ("queue", "limit"),
    [
        ({}, 20),
        ({"delivery_limit": 6}, 6),
        ({"arguments": {"x-delivery-limit": 4}}, 4),
        ({"passive": True}, 20),
        ({"type": "classic"}, None),
        ({"exclusive": True}, None),
        ({"name": ""}, None),
        ({"arguments": {"x-queue-type": "stream"}}, None),
    ],
)
def test_the_limit_of_a_queue(queue: dict[str, Any], limit: int | None) -> None:
    tree = attrs.evolve(settings.Settings(), queues={"work": settings.Queue(**queue)})
    assert delivery_limit(tree, "work") == limit
