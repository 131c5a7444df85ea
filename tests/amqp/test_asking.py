"""Calls on a connection that comes and goes: each ends once, is written once at most, and fails no other."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from amqp_rig import connected
from amqp_wire import Broker, Chan, Letter, encoded
from twisted.internet.defer import CancelledError, Deferred

from rpcd.amqp.asking import MOST_CHANNELS, OPEN_SECONDS, Asking
from rpcd.amqp.caller import Answer
from rpcd.core.errors import CallInterrupted, CallTimeout, PublishRefused, Unroutable
from rpcd.core.outgoing import DIRECT_REPLY_TO
from rpcd.core.question import question

Results = Callable[[Deferred[Any]], list[Any]]


class Bench:
    """One `Asking`, the broker that it talks to, and how its calls ended."""

    def __init__(self, broker: Broker, results: Results) -> None:
        self.broker = broker
        self.reactor = broker.reactor
        self.why: str | None = None
        self.asking = Asking(self.reactor, lambda: self.why)
        self._results = results
        self._numbers = itertools.count(1)
        broker.queue(DIRECT_REPLY_TO)
        broker.exchanges |= {"shop", "stock"}

    def connect(self) -> "Bench":
        self.asking.attach(connected(self.broker))
        self.reactor.run()
        return self

    def start(self, key: str = "orders", exchange: str = "", seconds: float = 5.0) -> tuple[Deferred[Answer], list[Any]]:
        number = str(next(self._numbers))
        request = question(exchange, key, {}).outgoing(number, seconds, 0.0)
        deferred = self.asking.call(request, number, seconds)
        ends = self._results(deferred)
        self.reactor.run()
        return deferred, ends

    def ask(self, key: str = "orders", exchange: str = "", seconds: float = 5.0) -> list[Any]:
        return self.start(key, exchange, seconds)[1]

    def asked(self) -> list[str]:
        return [each.properties.correlation_id for each in self.broker.published]

    def chan(self, exchange: str) -> Chan:
        """The channel that was asked on last through an exchange."""
        return [each.chan for each in self.broker.published if each.exchange == exchange][-1]

    def answer(self, correlation_id: str, exchange: str = "", body: bytes = b"{}") -> None:
        chan = self.chan(exchange)
        (tag,) = chan.consumers
        chan.deliver(Letter(None, body, encoded(correlation_id=correlation_id), "", "reply"), None, tag)
        self.reactor.run()


@pytest.fixture
def bench(broker: Broker, results: Results) -> Bench:
    return Bench(broker, results)


def counts(bench: Bench) -> dict[str, int]:
    stats = bench.asking.stats
    return {name: value for name in stats.__slots__ if isinstance(value := getattr(stats, name, None), int) and value}


def test_who_never_asks_opens_no_channel(bench: Bench) -> None:
    bench.connect()
    assert bench.broker.live[0].chans == {}


def test_a_call_that_comes_before_the_connection_is_written_once_it_is_there(bench: Bench) -> None:
    ends = bench.ask()
    assert (bench.asked(), ends) == ([], [])
    bench.connect()
    bench.answer("1", body=b"answer")
    assert [end.body for end in ends] == [b"answer"]
    assert not [call for call in bench.reactor.getDelayedCalls() if call.active()]
    assert (len(bench.asking), counts(bench)) == (0, {"made": 1, "answered": 1})


def test_all_calls_through_one_exchange_share_a_channel(bench: Bench) -> None:
    bench.connect()
    ends = [bench.ask("a", exchange) for exchange in ("", "shop", "", "shop", "")]
    assert len(bench.broker.live[0].chans) == 2
    for number, exchange in (("5", ""), ("4", "shop"), ("1", ""), ("2", "shop"), ("3", "")):
        bench.answer(number, exchange, number.encode())
    assert [end[0].body for end in ends] == [b"1", b"2", b"3", b"4", b"5"]


def test_a_mistake_about_one_exchange_fails_no_call_through_another(bench: Bench) -> None:
    bench.connect()
    good, bad = bench.ask(), bench.ask("k", "nowhere")
    assert [type(end) for end in bad] == [PublishRefused]
    assert "NOT_FOUND - no exchange 'nowhere'" in str(bad[0])
    again = bench.ask("k", "nowhere")  # on a channel anew
    assert [type(end) for end in again] == [PublishRefused]
    assert good == []
    bench.answer("1")
    assert len(good) == 1
    assert counts(bench) == {"made": 3, "answered": 1, "refused": 2}


def test_a_request_that_no_queue_takes_fails_at_once(bench: Bench) -> None:
    bench.connect()
    bench.broker.missing.add("gone")
    there, gone = bench.ask("there"), bench.ask("gone")
    assert [type(end) for end in gone] == [Unroutable]
    assert there == []


def test_the_end_of_a_connection_ends_what_was_written_and_the_next_takes_the_rest(bench: Bench) -> None:
    bench.connect()
    written = bench.ask()
    bench.asking.block(True)
    unwritten = bench.ask()
    bench.broker.live[0].rst()
    bench.reactor.run()
    assert [type(end) for end in written] == [CallInterrupted]
    assert str(written[0]).endswith("; the request may or may not have been handled, and is not sent again")
    assert unwritten == []
    bench.asking.block(False)
    bench.connect()
    assert bench.asked() == ["1", "2"]
    bench.answer("2")
    assert len(unwritten) == 1


def test_nothing_is_written_while_the_broker_blocks(bench: Bench) -> None:
    bench.connect()
    bench.ask()
    bench.asking.block(True)
    bench.why = "the broker blocks it: low on memory"
    ends = bench.ask(seconds=2.0)
    bench.reactor.pass_time(3.0)
    assert bench.asked() == ["1"]
    assert [type(end) for end in ends] == [CallTimeout]
    assert str(ends[0]) == "the request could not be sent within 2 s: the broker blocks it: low on memory"
    bench.asking.block(False)
    bench.reactor.run()
    assert bench.asked() == ["1"]  # nobody waits for it any more


def test_a_time_that_is_over_is_told_and_the_late_reply_counted(bench: Bench) -> None:
    bench.connect()
    ends = bench.ask(seconds=2.0)
    bench.reactor.pass_time(3.0)
    assert [str(end) for end in ends] == ["no reply within 2 s"]
    bench.answer("1")
    bench.answer("somebody's")
    assert len(ends) == 1
    assert counts(bench) == {"made": 1, "timed_out": 1, "replies_unclaimed": 2}


def test_a_cancelled_call_is_forgotten(bench: Bench) -> None:
    bench.connect()
    written, ends = bench.start()
    bench.asking.block(True)
    unwritten, others = bench.start()
    for deferred in (written, unwritten):
        deferred.cancel()
    bench.asking.block(False)
    bench.answer("1")
    assert [type(end) for end in (*ends, *others)] == [CancelledError] * 2
    assert bench.asked() == ["1"]
    assert (len(bench.asking), counts(bench)) == (0, {"made": 2, "cancelled": 2, "replies_unclaimed": 1})


def test_the_end_of_all_ends_all_calls_and_those_to_come(bench: Bench) -> None:
    bench.connect()
    written = bench.ask()
    bench.asking.block(True)
    unwritten = bench.ask()
    bench.asking.close("rpcd is stopping")
    later = bench.ask()
    assert [type(end) for end in (*written, *unwritten, *later)] == [CallInterrupted] * 3
    assert str(written[0]).startswith("rpcd is stopping; the request may or may not")
    assert str(unwritten[0]) == str(later[0]) == "rpcd is stopping; the request was not sent"
    assert not [call for call in bench.reactor.getDelayedCalls() if call.active()]


def test_a_broker_that_opens_no_channel_is_left(bench: Bench) -> None:
    bench.broker.silent.add("Channel.Open")
    bench.connect()
    ends = bench.ask(seconds=OPEN_SECONDS * 2)
    bench.reactor.pass_time(OPEN_SECONDS + 1)
    assert bench.broker.live == []
    assert ends == []
    bench.broker.silent.clear()
    bench.connect()
    bench.answer("1")
    assert len(ends) == 1


def test_a_call_in_a_callback_of_a_channels_end_is_a_call_like_others(bench: Bench) -> None:
    bench.connect()
    first, _ends = bench.start()
    more: list[list[Any]] = []
    first.addErrback(lambda _failure: None)
    deferred, _same = bench.start()
    deferred.addErrback(lambda _failure: None)
    asked = question("", "orders", {})
    deferred.addCallback(
        lambda _none: more.append(
            bench._results(bench.asking.call(asked.outgoing("more", 5.0, 0.0), "more", 5.0))  # on its way down
        )
    )
    bench.chan("").close(406, "PRECONDITION_FAILED")
    bench.reactor.run()
    bench.answer("more")
    assert [len(ends) for ends in more] == [1]


def test_channels_that_nobody_uses_are_closed_when_there_are_many(bench: Bench) -> None:
    names = [f"x{number}" for number in range(MOST_CHANNELS + 20)]
    bench.broker.exchanges |= set(names)
    bench.connect()
    kept = bench.ask("k", names[0])
    for name in names[1:]:
        ends = bench.ask("k", name)
        bench.answer(bench.asked()[-1], name)
        assert len(ends) == 1
    open_ = [chan for chan in bench.broker.live[0].chans.values() if chan.is_open]
    assert len(open_) <= MOST_CHANNELS + 1
    bench.answer("1", names[0])
    assert len(kept) == 1
    again = bench.ask("k", names[1])
    bench.answer(bench.asked()[-1], names[1])
    assert len(again) == 1
