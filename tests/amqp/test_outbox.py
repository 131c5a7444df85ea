"""Confirmed publishing on one channel: whatever becomes of a publication, it ends once, and is never silently lost."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from amqp_rig import connected, spread_time
from amqp_wire import Broker, Chan, Link, Published, Reactor
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import spec
from twisted.internet.defer import Deferred, maybeDeferred

from rpcd.amqp import outbox as module
from rpcd.amqp.channel import Channel
from rpcd.amqp.full import REFUSED_KEPT
from rpcd.amqp.outbox import NACK_PAUSES, STRIKES, Outbox
from rpcd.amqp.port import AmqpProtocol
from rpcd.core.copies import Circumstances, archive_copy
from rpcd.core.errors import ChannelClosed, ConnectionLost, PublishRefused, PublishTimeout, Unroutable
from rpcd.core.message import Message
from rpcd.core.outgoing import Outgoing
from rpcd.core.wire import Properties, write_properties

Results = Callable[[Deferred[Any]], list[Any]]

STEADY = settings(max_examples=40, deadline=None, derandomize=True, database=None)

CONFIRM, PUBLISH = 30.0, 60.0


def outgoing(key: Any = "k", body: Any = b"", exchange: str = "", *, token: str = "", mandatory: bool = False) -> Outgoing:
    properties = write_properties(Properties(message_id=token or None))
    return Outgoing(exchange, key, body, properties, mandatory=mandatory, token=token)


class Bench:
    """An outbox, and channels for it as often as one is lost."""

    def __init__(self, broker: Broker, protocol: AmqpProtocol) -> None:
        self.broker = broker
        self.reactor = broker.reactor
        self.protocol = protocol
        self.outbox = Outbox(self.reactor, CONFIRM, PUBLISH)
        self.dropped: list[str] = []
        self.ends: dict[Any, list[Any]] = {}
        self.written: list[tuple[float, Any]] = []

    @property
    def chan(self) -> Chan:
        return self.broker.links[-1].chan

    def attach(self) -> Channel:
        opened: list[Channel] = []
        self.protocol.open_channel().addCallback(opened.append)
        self.reactor.run()
        Deferred.fromCoroutine(self.outbox.attach(opened[0], self.dropped.append))
        self.reactor.run()
        return opened[0]

    def publish(self, name: Any, **options: Any) -> list[Any]:
        """Publish under a name, which is the routing key unless another one is given."""
        ends = self.ends[name] = []
        options.setdefault("key", str(name))
        deferred = self.outbox.publish(outgoing(**options))
        deferred.addCallbacks(ends.append, lambda failure: ends.append(failure.value))
        return ends

    def sweeping(self, seconds: float) -> None:
        """Let time pass, with the sweep of every second."""
        for _ in range(round(seconds)):
            self.reactor.pass_time(1.0)
            self.outbox.sweep()
        self.reactor.run()

    def keys(self) -> list[Any]:
        return [each.key for each in self.broker.published]


@pytest.fixture
def bench(broker: Broker, protocol: AmqpProtocol, clocked: Reactor) -> Bench:
    """An outbox whose publications the test confirms by hand; time is the reactor's."""
    broker.confirms = False
    return Bench(broker, protocol)


@pytest.fixture
def ready(bench: Bench) -> Iterator[Bench]:
    """The same, with a channel."""
    bench.attach()
    yield bench
    assert all(len(ends) <= 1 for ends in bench.ends.values())


# Confirms -----------------------------------------------------------------------------------------


def test_a_publication_ends_when_it_is_confirmed_and_not_before(ready: Bench) -> None:
    ends = ready.publish("a", body=b"payload", token="t")
    ready.reactor.run()
    (published,) = ready.broker.published
    assert (published.key, published.body, published.number, published.properties.message_id) == ("a", b"payload", 1, "t")
    assert ends == []
    ready.chan.confirm(1)
    ready.reactor.run()
    assert ends == [None]
    assert len(ready.outbox) == 0


def test_confirms_may_come_out_of_order_and_for_many_at_once(ready: Bench) -> None:
    for name in range(1, 7):
        ready.publish(name)
    ready.chan.confirm(4)
    ready.reactor.run()
    assert [name for name, ends in ready.ends.items() if ends] == [4]
    ready.chan.confirm(2, multiple=True)
    ready.reactor.run()
    assert [name for name, ends in ready.ends.items() if ends] == [1, 2, 4]
    ready.chan.confirm(6, multiple=True)
    ready.reactor.run()
    assert all(ends == [None] for ends in ready.ends.values())


def test_a_confirm_of_what_is_done_is_ignored(ready: Bench) -> None:
    first = ready.publish("a")
    ready.chan.confirm(1)
    ready.chan.confirm(1)
    ready.chan.confirm(7, taken=False)
    second = ready.publish("b")
    ready.reactor.run()
    assert (first, second) == ([None], [])
    ready.chan.confirm(2)
    ready.reactor.run()
    assert second == [None]


@STEADY
@given(st.data())
def test_any_order_of_confirms_returns_and_refusals(data: st.DataObject) -> None:
    """A model of what the broker said decides how each publication has to end."""
    with pytest.MonkeyPatch.context() as patch:
        reactor = Reactor()
        spread_time(reactor, patch)
        broker = Broker(reactor)
        broker.confirms = False
        bench = Bench(broker, connected(broker))
        bench.attach()
        count = data.draw(st.integers(1, 12))
        mandatory = [data.draw(st.booleans()) for _ in range(count)]
        for name in range(1, count + 1):
            bench.publish(name, key=f"k{name % 2}", token=f"t{name}", mandatory=mandatory[name - 1])
        waiting = list(range(1, count + 1))
        expected: dict[int, str] = {}
        while waiting:
            number = data.draw(st.sampled_from(waiting))
            multiple, taken = data.draw(st.booleans()), data.draw(st.integers(0, 5)) > 0
            meant = [each for each in waiting if each <= number] if multiple else [number]
            for each in meant:
                returned = taken and mandatory[each - 1] and data.draw(st.booleans())
                if returned:
                    bench.chan.give_back(broker.published[each - 1])
                expected[each] = "again" if not taken else "returned" if returned else "taken"
                waiting.remove(each)
            bench.chan.confirm(number, multiple=multiple, taken=taken)
        reactor.run()
        for number, fate in expected.items():
            ends = bench.ends[number]
            if fate == "again":
                assert ends == []
            else:
                assert [type(end) for end in ends] == [Unroutable if fate == "returned" else type(None)]
        again = [number for number, fate in expected.items() if fate == "again"]
        assert sorted(each.properties.message_id for each in broker.published[count:]) == []
        reactor.pass_time(NACK_PAUSES[0] + 0.01, 0.01)
        assert [each.properties.message_id for each in broker.published[count:]] == [f"t{number}" for number in again]


def test_a_publication_made_while_another_one_ends(ready: Bench) -> None:
    inner: list[Any] = []

    def more(_none: None) -> None:
        inner.append(ready.publish("second"))

    ready.outbox.publish(outgoing("first")).addCallback(more)
    ready.chan.confirm(1, multiple=True)
    ready.reactor.run()
    assert ready.keys() == ["first", "second"]
    ready.chan.confirm(2)
    ready.reactor.run()
    assert inner == [[None]]


# Returns ------------------------------------------------------------------------------------------


def test_a_return_is_matched_by_its_token_among_several(ready: Bench) -> None:
    for name in ("t1", "t2", "t3"):
        ready.publish(name, key="same", token=name, mandatory=True)
    ready.chan.give_back(ready.broker.published[1])
    ready.chan.confirm(3, multiple=True)
    ready.reactor.run()
    assert [type(ready.ends[name][0]) for name in ("t1", "t2", "t3")] == [type(None), Unroutable, type(None)]
    assert "'same'" in str(ready.ends["t2"][0])
    assert "312 NO_ROUTE" in str(ready.ends["t2"][0])


def test_two_returns_in_a_row_before_their_confirms(ready: Bench) -> None:
    for name in ("t1", "t2", "t3"):
        ready.publish(name, key="same", token=name, mandatory=True)
    ready.chan.give_back(ready.broker.published[2])
    ready.chan.give_back(ready.broker.published[0])
    ready.chan.confirm(1)
    ready.chan.confirm(2)
    ready.chan.confirm(3)
    ready.reactor.run()
    assert [type(ready.ends[name][0]) for name in ("t1", "t2", "t3")] == [Unroutable, type(None), Unroutable]


def test_returned_copies_are_told_apart_by_their_own_ids(ready: Bench) -> None:
    """The copies of one client's messages share its message_id, if the client is careless."""
    who = Circumstances("orders", "test:handler", "host")
    message = Message(properties=Properties(message_id="always the same"), payload=b"x")
    for token in ("c1", "c2", "c3"):
        ends = ready.ends[token] = []
        copy = archive_copy(message, "orders.archive", who, "reason", None, 0.0, token)
        ready.outbox.publish(copy).addCallbacks(ends.append, lambda failure, ends=ends: ends.append(failure.value))
    ready.chan.give_back(ready.broker.published[1])
    ready.chan.confirm(3, multiple=True)
    ready.reactor.run()
    assert [type(ready.ends[token][0]) for token in ("c1", "c2", "c3")] == [type(None), Unroutable, type(None)]


def test_without_tokens_the_oldest_comes_back_first(ready: Bench) -> None:
    for name in (1, 2, 3):
        ready.publish(name, key="same", mandatory=True)
    ready.chan.give_back(ready.broker.published[0])
    ready.chan.give_back(ready.broker.published[1])
    ready.chan.confirm(3, multiple=True)
    ready.reactor.run()
    assert [type(ready.ends[name][0]) for name in (1, 2, 3)] == [Unroutable, Unroutable, type(None)]


def test_a_return_is_never_matched_to_what_is_not_mandatory_or_goes_elsewhere(ready: Bench) -> None:
    ready.broker.exchanges.add("x")
    ready.publish("plain", key="same", token="same")
    ready.publish("other", key="same", exchange="x", token="same", mandatory=True)
    ready.publish("guilty", key="same", token="same", mandatory=True)
    ready.chan.give_back(ready.broker.published[2])
    ready.chan.confirm(3, multiple=True)
    ready.reactor.run()
    assert [type(ready.ends[name][0]) for name in ("plain", "other", "guilty")] == [type(None), type(None), Unroutable]


def test_what_came_back_on_a_lost_channel_is_tried_again(ready: Bench) -> None:
    ends, other = ready.publish("a", mandatory=True, token="t"), ready.publish("b")
    ready.chan.give_back(ready.broker.published[0])
    ready.chan.close(541, "INTERNAL_ERROR - nobody knows")
    ready.reactor.run()
    ready.attach()
    ready.chan.confirm(1)
    ready.reactor.run()
    ready.chan.confirm(2)
    ready.reactor.run()
    assert ready.keys() == ["a", "b", "a", "b"]
    assert (ends, other) == ([None], [None])


# Refusals by nack ---------------------------------------------------------------------------------


def test_a_refused_publication_is_tried_again_with_growing_pauses_until_it_is_too_late(ready: Bench) -> None:
    times: list[float] = []

    def refuse(chan: Chan, published: Published) -> None:
        times.append(chan.broker.reactor.seconds())
        chan.confirm(published.number, taken=False)

    ready.chan._route = lambda published: refuse(ready.chan, published)  # type: ignore[method-assign]
    ends = ready.publish("full")
    ready.reactor.pass_time(59.0, 0.05)
    pauses = [round(after - before, 1) for before, after in itertools.pairwise(times)]
    assert pauses[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert set(pauses[7:]) == {5.0}
    ready.reactor.pass_time(2.0)
    assert [type(end) for end in ends] == [PublishTimeout]
    assert "queue full" in str(ends[0])
    assert max(times) < PUBLISH
    assert ready.reactor.getDelayedCalls() == []


def test_a_refused_publication_that_is_taken_later(ready: Bench) -> None:
    ends, other = ready.publish("full"), ready.publish("fine")
    ready.chan.confirm(1, taken=False)
    ready.chan.confirm(2)
    ready.reactor.run()
    assert (ends, other) == ([], [None])
    ready.reactor.pass_time(0.2, 0.05)
    assert ready.keys() == ["full", "fine", "full"]
    ready.chan.confirm(3)
    ready.reactor.run()
    assert ends == [None]


def test_what_is_not_taken_is_said_and_counted_once_until_it_is(ready: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first, second = ready.publish("a", key="full"), ready.publish("b", key="full")
    ready.chan.confirm(2, multiple=True, taken=False)
    ready.reactor.run()
    assert len(ready.outbox) == 2  # they wait for their next try
    ready.reactor.pass_time(0.2, 0.05)
    ready.chan.confirm(3, taken=False)
    ready.chan.confirm(4)
    ready.reactor.pass_time(0.4, 0.05)
    ready.chan.confirm(5)
    ready.reactor.run()
    assert (first, second) == ([None], [None])
    assert ready.outbox.stats.nacked == 3
    assert [record.getMessage() for record in caplog.records] == [
        "the broker does not take what goes to queue 'full' (is it full?); trying again for 60 s",
        "the broker takes again what goes to queue 'full'",
    ]
    assert len(ready.outbox) == 0


def test_a_pause_that_ends_without_a_channel(ready: Bench) -> None:
    ends = ready.publish("full")
    ready.chan.confirm(1, taken=False)
    ready.reactor.run()
    ready.chan.close(320, "gone")
    ready.reactor.pass_time(1.0)
    assert ends == []
    ready.attach()
    ready.chan.confirm(1)
    ready.reactor.run()
    assert ends == [None]


# Silence ------------------------------------------------------------------------------------------


def test_silence_gives_the_channel_up_and_everything_is_sent_again(bench: Bench) -> None:
    channel = bench.attach()
    first, second = bench.publish("a", token="ta"), bench.publish("b", token="tb")
    third = bench.publish("c", token="tc")
    bench.chan.confirm(2)
    bench.sweeping(CONFIRM)
    assert bench.dropped == []
    bench.sweeping(1)
    assert bench.dropped == ["no confirm for 30 s"]
    assert bench.outbox.stats.silences == 1
    assert (first, second, third) == ([], [None], [])
    channel.close()
    bench.reactor.run()
    bench.attach()
    assert [each.properties.message_id for each in bench.broker.published[3:]] == ["ta", "tc"]
    assert bench.outbox.stats.republished == 2
    bench.chan.confirm(2, multiple=True)
    bench.reactor.run()
    assert (first, second, third) == ([None], [None], [None])


def test_what_was_on_a_lost_connection_goes_out_again_in_its_order(bench: Bench, broker: Broker, reactor: Reactor) -> None:
    bench.attach()
    for name in range(5):
        bench.publish(name)
    bench.chan.confirm(2)
    reactor.run()
    broker.links[0].rst()
    bench.publish("later")
    bench.protocol = connected(broker)
    opened: list[Channel] = []
    bench.protocol.open_channel().addCallback(opened.append)
    reactor.run()
    Deferred.fromCoroutine(bench.outbox.attach(opened[0], bench.dropped.append))
    reactor.run()
    assert bench.keys()[5:] == ["0", "2", "3", "4", "later"]
    broker.links[1].chan.confirm(5, multiple=True)
    reactor.run()
    assert all(ends == [None] for ends in bench.ends.values())


def test_it_is_too_late_while_the_broker_is_silent(ready: Bench) -> None:
    ends = ready.publish("a")
    ready.sweeping(PUBLISH + 1)
    assert [type(end) for end in ends] == [PublishTimeout]
    ready.chan.confirm(1)
    ready.reactor.run()
    assert len(ends) == 1


def test_what_was_too_late_is_not_sent_on_the_next_channel(ready: Bench) -> None:
    ready.publish("late")
    ready.sweeping(PUBLISH + 1)
    ready.publish("fresh")
    ready.chan.close(320, "gone")
    ready.reactor.run()
    ready.attach()
    assert ready.keys() == ["late", "fresh", "fresh"]


# The broker closes the channel over one of several -------------------------------------------------


def test_a_missing_exchange_refuses_only_what_goes_there(ready: Bench) -> None:
    ready.broker.exchanges.add("there")
    for name, exchange in (("a", ""), ("b", "gone"), ("c", "there"), ("d", "gone"), ("e", "")):
        ready.publish(name, exchange=exchange)
    ready.reactor.run()
    for name in "bd":
        assert [type(end) for end in ready.ends[name]] == [PublishRefused]
        assert "404 NOT_FOUND - no exchange 'gone'" in str(ready.ends[name][0])
    assert [ready.ends[name] for name in "ace"] == [[], [], []]
    before = len(ready.broker.published)
    ready.attach()
    assert ready.keys()[before:] == ["a", "c", "e"]
    ready.chan.confirm(3, multiple=True)
    ready.reactor.run()
    assert [ready.ends[name] for name in "ace"] == [[None]] * 3


@pytest.mark.parametrize(
    "text",
    [
        "ACCESS_REFUSED - access to exchange 'secret' in vhost '/' refused for user 'shop'",
        "ACCESS_REFUSED - write access to exchange 'secret' in vhost '/' refused for user 'shop'",
    ],
)
def test_a_refused_permission_refuses_only_what_goes_there(ready: Bench, text: str) -> None:
    ready.broker.exchanges |= {"secret", "open"}
    ready.publish("a", exchange="open")
    ready.publish("b", exchange="secret")
    ready.chan.close(403, text)
    ready.reactor.run()
    assert ready.ends["a"] == []
    assert [type(end) for end in ready.ends["b"]] == [PublishRefused]
    assert text in str(ready.ends["b"][0])


def test_what_is_too_big_is_refused_and_the_rest_is_sent_again(ready: Bench) -> None:
    ready.publish("small", body=b"x" * 10)
    ready.publish("big", body=b"x" * 101)
    ready.publish("exact", body=b"x" * 100)
    ready.chan.close(406, "PRECONDITION_FAILED - message size 101 is larger than configured max size 100")
    ready.reactor.run()
    assert [type(end) for end in ready.ends["big"]] == [PublishRefused]
    ready.attach()
    assert ready.keys()[3:] == ["small", "exact"]


def test_the_only_one_in_flight_is_the_one_that_is_meant(ready: Bench) -> None:
    ready.publish("done")
    ready.chan.confirm(1)
    ends = ready.publish("alone")
    ready.chan.close(406, "PRECONDITION_FAILED - words that nobody understands")
    ready.reactor.run()
    assert [type(end) for end in ends] == [PublishRefused]
    assert ready.ends["done"] == [None]


@pytest.mark.parametrize(
    "text",
    [
        "PRECONDITION_FAILED - words that nobody understands",
        "ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user 'shop'",
        "NOT_FOUND - no exchange 'with a ' in its name' in vhost '/'",
    ],
)
def test_words_that_name_nobody_send_them_one_at_a_time(ready: Bench, text: str) -> None:
    names = ["a", "b", "guilty", "d"]
    for name in names:
        ready.publish(name)
    ready.chan.close(406, text)
    ready.publish("new")
    ready.reactor.run()
    assert all(ends == [] for ends in ready.ends.values())
    ready.attach()
    assert ready.keys()[4:] == ["a"]
    ready.chan.confirm(1)
    ready.reactor.run()
    ready.chan.confirm(2)
    ready.reactor.run()
    assert ready.keys()[4:] == ["a", "b", "guilty"]
    ready.chan.close(406, text)
    ready.reactor.run()
    assert [type(end) for end in ready.ends["guilty"]] == [PublishRefused]
    ready.attach()
    assert ready.keys()[7:] == ["d", "new"]
    ready.chan.confirm(2, multiple=True)
    ready.reactor.run()
    assert [ready.ends[name] for name in ("a", "b", "d", "new")] == [[None]] * 4


def test_one_at_a_time_ends_when_all_suspects_are_through(ready: Bench) -> None:
    for name in ("a", "b"):
        ready.publish(name)
    ready.chan.close(541, "INTERNAL_ERROR")
    ready.reactor.run()
    ready.attach()
    for number in (1, 2):
        ready.chan.confirm(number)
        ready.reactor.run()
    ready.publish("c")
    ready.publish("d")
    assert ready.keys()[2:] == ["a", "b", "c", "d"]


def test_a_publication_that_costs_the_connection_each_time_is_refused_and_the_innocent_go_out(ready: Bench) -> None:
    """A forged direct reply-to that a handler publishes to, say: the broker closes the connection, naming nothing."""
    guilty, innocent = ready.publish("guilty"), ready.publish("innocent")
    for _ in range(1 + STRIKES):
        assert guilty == innocent == []
        ready.broker.links[-1].close(541, "INTERNAL_ERROR")
        ready.reactor.run()
        ready.protocol = connected(ready.broker)
        ready.attach()
    assert ready.keys() == ["guilty", "innocent", *["guilty"] * STRIKES, "innocent"]
    assert isinstance(guilty[0], PublishRefused)
    ready.chan.confirm(1)
    ready.reactor.run()
    assert innocent == [None]


def test_a_body_that_is_none_is_refused_and_stops_nobody(ready: Bench) -> None:
    first = ready.publish("broken", body=None)
    second = ready.publish("whole")
    assert isinstance(first[0], PublishRefused)
    ready.chan.confirm(1)
    ready.reactor.run()
    assert (ready.keys(), second) == (["whole"], [None])


def test_an_idle_channel_that_is_closed_costs_nothing(ready: Bench) -> None:
    ready.chan.close(320, "CONNECTION_FORCED")
    ready.reactor.run()
    ready.attach()
    ends = ready.publish("a")
    ready.chan.confirm(1)
    ready.reactor.run()
    assert ends == [None]


# Limits -------------------------------------------------------------------------------------------


def test_no_more_bytes_are_in_flight_than_allowed(ready: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IN_FLIGHT_BYTES", 10_000)
    for name in range(5):
        ready.publish(name, body=b"x" * 3000)
    assert ready.keys() == ["0", "1"]
    ready.chan.confirm(1)
    ready.reactor.run()
    assert ready.keys() == ["0", "1", "2"]
    ready.chan.confirm(3, multiple=True)
    ready.reactor.run()
    assert ready.keys() == ["0", "1", "2", "3", "4"]


def test_one_that_is_bigger_than_the_limit_goes_alone(ready: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IN_FLIGHT_BYTES", 10_000)
    ready.publish("small", body=b"x")
    ready.publish("huge", body=b"x" * 50_000)
    ready.publish("last", body=b"x")
    assert ready.keys() == ["small"]
    ready.chan.confirm(1)
    ready.reactor.run()
    assert ready.keys() == ["small", "huge"]
    ready.chan.confirm(2)
    ready.reactor.run()
    assert ready.keys() == ["small", "huge", "last"]


def test_the_bytes_of_a_lost_channel_are_forgotten(ready: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IN_FLIGHT_BYTES", 10_000)
    for name in range(4):
        ready.publish(name, body=b"x" * 3000, exchange="gone" if name == 1 else "")
    ready.reactor.run()
    before = len(ready.broker.published)
    ready.attach()
    assert ready.keys()[before:] == ["0", "2"]


# A publication whose properties do not fit into a frame


def test_properties_that_fit_into_no_frame_are_refused_and_cost_no_connection(ready: Bench, link: Link) -> None:
    """The broker closes the whole connection (501) over such a frame, with everybody's copies on it."""
    huge = write_properties(Properties(headers=b"\x01hS" + (140_000).to_bytes(4, "big") + b"x" * 140_000))
    ends: list[Any] = []
    ready.outbox.publish(Outgoing("", "k", b"", huge)).addCallbacks(ends.append, lambda failure: ends.append(failure.value))
    ready.reactor.run()
    assert not link.is_lost
    assert [type(end) for end in ends] == [PublishRefused]


@pytest.mark.parametrize("exchange", ["x" * 256, 17])
def test_what_can_not_be_written_fails_and_shifts_no_other_confirm(ready: Bench, results: Results, exchange: Any) -> None:
    """A number that is given to what is never written would give every later confirm to the wrong publication."""
    bad = results(maybeDeferred(ready.outbox.publish, outgoing("bad", exchange=exchange)))
    first, second = ready.publish("first"), ready.publish("second")
    ready.chan.confirm(1)
    ready.reactor.run()
    assert ready.keys() == ["first", "second"]
    assert (first, second) == ([None], [])
    assert len(bad) == 1
    assert isinstance(bad[0], Exception)


# Blocked ------------------------------------------------------------------------------------------


def test_nothing_is_written_while_the_broker_blocks(ready: Bench) -> None:
    ready.outbox.block(True)
    ends = ready.publish("a")
    ready.sweeping(5)
    assert ready.keys() == []
    ready.outbox.block(False)
    assert ready.keys() == ["a"]
    ready.chan.confirm(1)
    ready.reactor.run()
    assert ends == [None]


def test_no_time_limit_runs_while_the_broker_blocks(ready: Bench) -> None:
    flying = ready.publish("flying")
    ready.sweeping(10)
    ready.outbox.block(True)
    waiting = ready.publish("waiting")
    ready.sweeping(500)
    assert (flying, waiting, ready.dropped) == ([], [], [])
    ready.outbox.block(False)
    ready.chan.confirm(1)
    ready.sweeping(29)
    assert (flying, waiting) == ([None], [])
    ready.chan.confirm(2)
    ready.reactor.run()
    assert waiting == [None]


def test_after_a_block_the_broker_gets_its_whole_time_to_confirm(ready: Bench) -> None:
    ends = ready.publish("flying")
    ready.outbox.block(True)
    ready.sweeping(CONFIRM + 10)
    ready.outbox.block(False)
    ready.sweeping(1)
    assert ready.dropped == []
    ready.chan.confirm(1)
    ready.reactor.run()
    assert ends == [None]


def test_being_told_twice_of_a_block_loses_no_time(ready: Bench) -> None:
    ends = ready.publish("a")
    ready.outbox.block(True)
    ready.sweeping(70)
    ready.outbox.block(True)
    ready.sweeping(10)
    ready.outbox.block(False)
    ready.sweeping(1)
    assert ends == []


def test_time_counts_again_after_a_block(ready: Bench) -> None:
    ready.outbox.block(True)
    ends = ready.publish("a")
    ready.sweeping(100)
    ready.outbox.block(False)
    ready.sweeping(PUBLISH - 1)
    assert ends == []
    ready.sweeping(2)
    assert [type(end) for end in ends] == [PublishTimeout]


# Without a channel --------------------------------------------------------------------------------


def test_what_is_published_before_there_is_a_channel_waits(bench: Bench) -> None:
    ends = bench.publish("early")
    bench.sweeping(PUBLISH - 1)
    assert ends == []
    bench.attach()
    assert bench.keys() == ["early"]
    bench.chan.confirm(1)
    bench.reactor.run()
    assert ends == [None]


def test_it_is_too_late_without_a_channel_as_well(bench: Bench) -> None:
    ends = bench.publish("a")
    bench.sweeping(PUBLISH)
    assert [type(end) for end in ends] == [PublishTimeout]
    assert len(bench.outbox) == 0
    bench.attach()
    assert bench.keys() == []


def test_t2_nothing_is_written_before_confirms_are_on(bench: Bench, broker: Broker, link: Link) -> None:
    broker.silent.add("Confirm.Select")
    bench.publish("early")
    bench.attach()
    bench.publish("later")
    bench.reactor.run()
    assert bench.keys() == []
    bench.chan.confirming = True
    bench.chan.reply(spec.Confirm.SelectOk())
    bench.reactor.run()
    assert [(each.key, each.number) for each in broker.published] == [("early", 1), ("later", 2)]


def test_a_channel_that_dies_before_confirms_are_on(bench: Bench, broker: Broker, link: Link, results: Results) -> None:
    broker.silent.add("Confirm.Select")
    ends = bench.publish("a")
    opened: list[Channel] = []
    bench.protocol.open_channel().addCallback(opened.append)
    bench.reactor.run()
    attached = results(Deferred.fromCoroutine(bench.outbox.attach(opened[0], bench.dropped.append)))
    link.chan.close(406, "PRECONDITION_FAILED")
    bench.reactor.run()
    assert [type(end) for end in attached] == [ChannelClosed]
    broker.silent.clear()
    bench.attach()
    bench.chan.confirm(1)
    bench.reactor.run()
    assert ends == [None]


def test_a_publication_that_nobody_waits_for_any_more_is_not_written(bench: Bench) -> None:
    deferred = bench.outbox.publish(outgoing("given up"))
    deferred.addErrback(lambda _failure: None)
    bench.publish("wanted")
    deferred.cancel()
    bench.attach()
    assert bench.keys() == ["wanted"]


def test_a_lost_connection_is_nobodys_fault(ready: Bench, link: Link) -> None:
    first, second = ready.publish("a"), ready.publish("b")
    link.close(541, "INTERNAL_ERROR")
    ready.reactor.run()
    assert isinstance(ready.protocol.cause(), ConnectionLost)
    assert (first, second) == ([], [])
    assert len(ready.outbox) == 2


# What is counted ------------------------------------------------------------------------------------


def test_a_queue_that_refused_is_known_as_full_until_it_takes_something(ready: Bench) -> None:
    ready.publish("full", key="q.archive")
    ready.chan.confirm(1, taken=False)
    ready.reactor.run()
    assert ready.outbox.refuses("q.archive")
    assert not ready.outbox.refuses("other")
    assert ready.outbox.stats.nacked == 1
    ready.reactor.pass_time(NACK_PAUSES[0])
    ready.reactor.run()
    ready.chan.confirm(2)
    ready.reactor.run()
    assert not ready.outbox.refuses("q.archive")
    assert ready.outbox.stats.confirmed == 1


def test_a_refusal_of_long_ago_says_nothing_of_now(ready: Bench) -> None:
    ready.publish("full", key="q.archive")
    ready.chan.confirm(1, taken=False)
    ready.reactor.run()
    ready.reactor.pass_time(REFUSED_KEPT - 1)
    assert ready.outbox.refuses("q.archive")
    ready.reactor.pass_time(1)
    assert not ready.outbox.refuses("q.archive")


def test_queues_that_refuse_are_remembered_within_bounds(ready: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpcd.amqp.full.MOST_REFUSING", 2)
    for number, name in enumerate("abc", start=1):
        ready.publish(name)
        ready.chan.confirm(number, taken=False)
        ready.reactor.run()
    assert [ready.outbox.refuses(name) for name in "abc"] == [False, False, True]


def test_what_is_sent_again_is_counted_and_told(ready: Bench, link: Link) -> None:
    told: list[str] = []
    ready.outbox.publish(outgoing("a"), lambda: told.append("a"))
    ready.publish("b")
    ready.reactor.run()
    assert ready.outbox.unconfirmed == 2
    link.rst()
    ready.reactor.run()
    assert (told, ready.outbox.stats.republished, ready.outbox.unconfirmed) == (["a"], 2, 0)
