"""Waiting: everyone is told once, nobody waits for ever, and nobody's Deferred is cancelled for somebody else."""

from collections.abc import Callable
from typing import Any

import pytest
from amqp_wire import Reactor
from twisted.internet.defer import CancelledError, Deferred

from rpcd.amqp.waiting import Once, WaitTooLong, bounded, unless

Results = Callable[[Deferred[Any]], list[Any]]


def test_everyone_who_waits_is_told(results: Results) -> None:
    once = Once()
    first, second = results(once.wait()), results(once.wait())
    assert first == second == []
    once.fire()
    assert first == second == [None]
    assert results(once.wait()) == [None]
    assert once.happened


def test_everyone_hears_what_went_wrong(results: Results) -> None:
    once, reason = Once(), ValueError("no")
    early = results(once.wait())
    once.fail(reason)
    assert early == results(once.wait()) == [reason]


@pytest.mark.parametrize("first", ["fire", "fail"])
def test_only_the_first_word_counts(results: Results, first: str) -> None:
    once, reason = Once(), ValueError("no")
    once.fire() if first == "fire" else once.fail(reason)
    once.fail(KeyError("late"))
    once.fire()
    assert results(once.wait()) == ([None] if first == "fire" else [reason])


def test_one_who_has_stopped_waiting_does_not_disturb_the_others(results: Results) -> None:
    once = Once()
    gone, there = once.wait(), results(once.wait())
    ends = results(gone)
    gone.cancel()
    assert isinstance(ends[0], CancelledError)
    once.fire()
    assert there == [None]
    assert len(ends) == 1


def test_one_may_wait_again_while_being_told(results: Results) -> None:
    once = Once()
    again: list[list[Any]] = []
    once.wait().addCallback(lambda _none: again.append(results(once.wait())))
    once.fire()
    assert again == [[None]]


def test_a_failure_that_nobody_waits_for_is_no_error() -> None:
    Once().fail(ValueError("unheard"))


# unless -------------------------------------------------------------------------------------------


def test_unless_fires_as_the_inner_one_does(results: Results) -> None:
    ended, inner = Once(), Deferred[int]()
    outer = results(unless(ended, inner))
    inner.callback(7)
    ended.fail(ValueError("later"))
    assert outer == [7]


def test_unless_fails_as_the_inner_one_does(results: Results) -> None:
    inner: Deferred[int] = Deferred()
    outer = results(unless(Once(), inner))
    inner.errback(ValueError("inner"))
    assert [str(error) for error in outer] == ["inner"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_unless_fails_with_the_end_and_leaves_the_inner_one_alone(results: Results, when: str) -> None:
    ended, inner = Once(), Deferred[int]()
    if when == "before":
        ended.fail(ValueError("the end"))
    outer = results(unless(ended, inner))
    ended.fail(ValueError("the end"))
    assert [str(error) for error in outer] == ["the end"]
    assert not inner.called
    inner.callback(3)
    assert len(outer) == 1


def test_unless_leaves_nobody_waiting_for_an_end_that_is_far_away(results: Results) -> None:
    ended = Once()
    for number in range(3):
        inner: Deferred[int] = Deferred()
        outer = results(unless(ended, inner))
        inner.callback(number)
        assert outer == [number]
    assert ended._waiting == []


def test_unless_swallows_what_fails_too_late(results: Results) -> None:
    ended, inner = Once(), Deferred[int]()
    outer = results(unless(ended, inner))
    ended.fail(ValueError("the end"))
    inner.errback(KeyError("too late"))
    assert len(outer) == 1


# bounded ------------------------------------------------------------------------------------------


def test_bounded_fires_in_time_and_leaves_no_timer(reactor: Reactor, results: Results) -> None:
    inner: Deferred[int] = Deferred()
    outer = results(bounded(inner, 5.0, reactor, "it"))
    reactor.pass_time(4.5)
    inner.callback(1)
    assert outer == [1]
    assert reactor.getDelayedCalls() == []


def test_bounded_passes_on_a_failure_and_leaves_no_timer(reactor: Reactor, results: Results) -> None:
    inner: Deferred[int] = Deferred()
    outer = results(bounded(inner, 5.0, reactor, "it"))
    inner.errback(ValueError("no"))
    assert [str(error) for error in outer] == ["no"]
    assert reactor.getDelayedCalls() == []


def test_bounded_takes_what_has_fired_already(reactor: Reactor, results: Results) -> None:
    inner: Deferred[int] = Deferred()
    inner.callback(2)
    assert results(bounded(inner, 5.0, reactor, "it")) == [2]
    assert reactor.getDelayedCalls() == []


@pytest.mark.parametrize("end", ["callback", "errback", "never"])
def test_bounded_gives_up_and_does_not_cancel_the_inner_one(reactor: Reactor, results: Results, end: str) -> None:
    inner: Deferred[int] = Deferred()
    order: list[str] = []
    outer = bounded(inner, 5.0, reactor, "the answer", lambda: order.append("late"))
    outer.addErrback(lambda failure: order.append(str(failure.value)))
    ends = results(outer)
    reactor.pass_time(4.5)
    assert order == []
    reactor.pass_time(1.0)
    assert order == ["late", "the answer took longer than 5 s"]
    assert not inner.called
    if end == "callback":
        inner.callback(3)
    elif end == "errback":
        inner.errback(ValueError("too late"))
    assert len(ends) == 1


def test_a_time_that_is_up_is_a_timeout() -> None:
    assert issubclass(WaitTooLong, TimeoutError)


def test_bounded_that_was_cancelled_stays_quiet(reactor: Reactor, results: Results) -> None:
    inner: Deferred[int] = Deferred()
    outer = bounded(inner, 5.0, reactor, "it")
    ends = results(outer)
    outer.cancel()
    reactor.pass_time(6.0)
    inner.callback(1)
    assert len(ends) == 1
