from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcd.core.ledger import TRANSITIONS, Ledger, LedgerError, State

PROPERTY = settings(max_examples=40, deadline=None)


class PreconditionFailed(Exception):
    """What RabbitMQ closes the channel with: 406, unknown delivery tag."""


class Broker:
    """One channel as RabbitMQ keeps it: which of its deliveries wait for a settlement."""

    def __init__(self, deliveries: int) -> None:
        self.unacked = set(range(1, deliveries + 1))
        self.requeued: list[int] = []

    def ack(self, tag: int, multiple: bool) -> list[int]:
        if tag not in self.unacked:
            raise PreconditionFailed(tag)
        settled = sorted(each for each in self.unacked if each == tag or (multiple and each < tag))
        self.unacked.difference_update(settled)
        return settled

    def nack(self, tag: int) -> None:
        if tag not in self.unacked:
            raise PreconditionFailed(tag)
        self.unacked.remove(tag)
        self.requeued.append(tag)


def with_deliveries(count: int) -> Ledger:
    ledger = Ledger()
    for tag in range(1, count + 1):
        ledger.admit(tag)
    return ledger


def in_state(state: State, deliveries: int = 0) -> Ledger:
    ledger = with_deliveries(deliveries)
    if state is State.DRAINING:
        ledger.drain()
    elif state is State.CLOSED:
        ledger.close()
    return ledger


@pytest.mark.parametrize(
    ("state", "event", "then"),
    [
        (State.OPEN, "drain", State.DRAINING),
        (State.OPEN, "close", State.CLOSED),
        (State.DRAINING, "drain", State.DRAINING),
        (State.DRAINING, "close", State.CLOSED),
        (State.CLOSED, "drain", State.CLOSED),
        (State.CLOSED, "close", State.CLOSED),
    ],
)
def test_every_event_in_every_state(state: State, event: str, then: State) -> None:
    ledger = in_state(state)
    getattr(ledger, event)()
    assert (ledger.state, ledger.closed) == (then, then is State.CLOSED)


def test_the_table_knows_every_event_in_every_state_and_no_other() -> None:
    assert set(TRANSITIONS) == {(state, event) for state in State for event in ("drain", "close")}


def test_no_event_leads_back() -> None:
    order = list(State)
    assert all(order.index(then) >= order.index(state) for (state, _), then in TRANSITIONS.items())


@pytest.mark.parametrize("state", [State.OPEN, State.DRAINING])
def test_settlements_go_out_until_the_channel_is_gone(state: State) -> None:
    ledger = in_state(state, 3)
    ledger.settle(1)
    assert (ledger.ack([2, 3]), ledger.unsettled) == ([(3, True)], 0)


def test_nothing_can_be_settled_once_the_channel_is_gone() -> None:
    ledger = in_state(State.CLOSED, 2)
    with pytest.raises(LedgerError, match="closed"):
        ledger.ack([1])
    with pytest.raises(LedgerError, match="closed"):
        ledger.settle(1)


def test_a_consumer_that_is_being_cancelled_may_still_deliver() -> None:
    ledger = in_state(State.DRAINING, 1)
    ledger.admit(2)
    assert (ledger.unsettled, ledger.ack([1, 2])) == (2, [(2, True)])


@pytest.mark.parametrize(
    ("finished", "acks"),
    [
        ([], []),
        ([1], [(1, False)]),
        ([2], [(2, False)]),
        ([1, 2], [(2, True)]),
        ([2, 1], [(2, True)]),
        ([1, 2, 3, 4, 5], [(5, True)]),
        ([1, 3], [(1, False), (3, False)]),
        ([1, 2, 4, 5], [(2, True), (4, False), (5, False)]),
        ([5, 3], [(3, False), (5, False)]),
    ],
)
def test_a_finished_prefix_is_one_ack_and_all_others_go_one_by_one(
    finished: list[int], acks: list[tuple[int, bool]]
) -> None:
    assert with_deliveries(5).ack(finished) == acks


@pytest.mark.parametrize(
    ("batches", "acks"),
    [
        ([[2], [1]], [(1, False)]),
        ([[2, 3], [1]], [(1, False)]),
        ([[2], [1, 3]], [(3, True)]),
        ([[3], [1, 2]], [(2, True)]),
        ([[3], [1, 2, 4]], [(4, True)]),
        ([[1, 2], [3, 4]], [(4, True)]),
        ([[4], [5], [1, 2, 3]], [(3, True)]),
    ],
)
def test_an_ack_never_names_a_tag_that_was_acked_before(batches: list[list[int]], acks: list[tuple[int, bool]]) -> None:
    ledger = with_deliveries(5)
    for batch in batches[:-1]:
        ledger.ack(batch)
    assert ledger.ack(batches[-1]) == acks


def test_a_single_settlement_closes_the_gap_below_later_acks() -> None:
    ledger = with_deliveries(4)
    ledger.ack([2])
    ledger.settle(1)
    assert ledger.ack([3, 4]) == [(4, True)]


def test_a_requeued_tag_is_covered_by_no_multiple_ack_that_comes_before_it() -> None:
    ledger = with_deliveries(3)
    assert ledger.ack([1, 3]) == [(1, False), (3, False)]
    ledger.settle(2)
    assert ledger.unsettled == 0


@pytest.mark.parametrize("tag", [0, -1, 4])
def test_a_tag_that_was_never_admitted_cannot_be_settled(tag: int) -> None:
    ledger = with_deliveries(3)
    with pytest.raises(LedgerError):
        ledger.ack([tag])
    with pytest.raises(LedgerError):
        ledger.settle(tag)


@pytest.mark.parametrize("first", ["ack", "settle"])
@pytest.mark.parametrize("second", ["ack", "settle"])
@pytest.mark.parametrize("tag", [1, 2])
def test_a_tag_is_settled_once_and_never_again(first: str, second: str, tag: int) -> None:
    ledger = with_deliveries(3)

    def do(what: str) -> Any:
        return ledger.ack([tag]) if what == "ack" else ledger.settle(tag)

    do(first)
    with pytest.raises(LedgerError):
        do(second)


def test_a_batch_with_one_wrong_tag_changes_nothing() -> None:
    ledger = with_deliveries(3)
    ledger.ack([2])
    with pytest.raises(LedgerError):
        ledger.ack([1, 2, 3])
    assert (ledger.unsettled, ledger.ack([1, 3])) == (2, [(3, True)])


@pytest.mark.parametrize(
    ("admitted", "acked", "settled", "left"), [(0, [], [], 0), (3, [], [], 3), (3, [3], [], 2), (3, [3], [1], 1)]
)
def test_the_unsettled_are_counted(admitted: int, acked: list[int], settled: list[int], left: int) -> None:
    ledger = with_deliveries(admitted)
    ledger.ack(acked)
    for tag in settled:
        ledger.settle(tag)
    assert ledger.unsettled == left


@st.composite
def endings(draw: st.DrawFn) -> tuple[int, list[tuple[str, list[int]]]]:
    """Deliveries, and the order in which they end: in batches of acks, with nacks in between."""
    count = draw(st.integers(1, 40))
    order = draw(st.permutations(range(1, count + 1)))
    steps: list[tuple[str, list[int]]] = []
    while order:
        size = draw(st.integers(1, 8))
        what = draw(st.sampled_from(["ack", "ack", "nack"]))
        steps.append((what, list(order[:size])))
        order = order[size:]
    return count, steps


@PROPERTY
@given(endings())
def test_in_any_order_every_tag_is_settled_exactly_once_and_the_broker_never_objects(
    ending: tuple[int, list[tuple[str, list[int]]]],
) -> None:
    count, steps = ending
    ledger, broker = with_deliveries(count), Broker(count)
    for what, tags in steps:
        if what == "nack":
            for tag in tags:
                ledger.settle(tag)
                broker.nack(tag)
        else:
            settled = [tag for ack in ledger.ack(tags) for tag in broker.ack(*ack)]
            assert sorted(settled) == sorted(tags)  # no ack settled what has not finished
        assert ledger.unsettled == len(broker.unacked)
    assert (broker.unacked, ledger.unsettled) == (set(), 0)
    assert broker.requeued == [tag for what, tags in steps if what == "nack" for tag in tags]


@PROPERTY
@given(st.lists(st.tuples(st.sampled_from(["deliver", "deliver", "ack"]), st.integers(0, 10)), max_size=80))
def test_deliveries_that_come_in_between_change_nothing_of_that(steps: list[tuple[str, int]]) -> None:
    ledger, broker = Ledger(), Broker(0)
    running: list[int] = []
    came = 0
    for what, number in steps:
        if what == "deliver":
            came += 1
            ledger.admit(came)
            broker.unacked.add(came)
            running.append(came)
        elif running:
            tag = running.pop(number % len(running))
            assert [each for ack in ledger.ack([tag]) for each in broker.ack(*ack)] == [tag]
        assert ledger.unsettled == len(running)
    assert [each for ack in ledger.ack(running) for each in broker.ack(*ack)] == running
    assert (ledger.unsettled, broker.unacked) == (0, set())


def test_a_ledger_keeps_nothing_of_what_it_has_settled() -> None:
    ledger = with_deliveries(1000)
    for tag in range(500, 0, -1):
        ledger.settle(tag)
    ledger.ack(range(502, 1001))
    ledger.ack([501])
    assert (ledger.unsettled, ledger._above) == (0, set())


def test_nacks_alone_keep_nothing_either() -> None:
    ledger = with_deliveries(1000)
    for tag in range(1, 1001):
        ledger.settle(tag)
    assert (ledger.unsettled, ledger._above) == (0, set())
