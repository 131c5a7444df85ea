"""The publishing connection: two channels that do not hurt each other, made again for ever, with nothing lost between."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from amqp_rig import ADDRESS
from amqp_wire import Broker, Chan, Link, Reactor
from pika import spec
from twisted.internet.defer import Deferred

from rpcd.amqp.declare import STEP_SECONDS
from rpcd.amqp.dial import Broker as Dialled
from rpcd.amqp.port import ABORT_AFTER
from rpcd.amqp.publisher import Publisher
from rpcd.core.errors import BrokerRefused, ExitCode, PublishRefused, PublishTimeout, Unroutable
from rpcd.core.outgoing import Outgoing
from rpcd.core.topology import Declaration, DeclareExchange, DeclareQueue
from rpcd.core.wire import Properties, write_properties

Results = Callable[[Deferred[Any]], list[Any]]


def outgoing(key: str, exchange: str = "", *, mandatory: bool = False) -> Outgoing:
    properties = write_properties(Properties(message_id=key))
    return Outgoing(exchange, key, b"body", properties, mandatory=mandatory, token=key)


class Bench:
    """A publisher and what it told."""

    def __init__(self, broker: Broker, plan: list[Declaration]) -> None:
        self.broker = broker
        self.reactor = broker.reactor
        self.refused: list[BrokerRefused] = []
        self.then: Callable[[], object] = lambda: None
        dialled = Dialled(ADDRESS, self.reactor, "0.1")
        self.publisher = Publisher(dialled, plan, 30.0, 60.0, self._refused, "title")

    def _refused(self, error: BrokerRefused) -> None:
        self.refused.append(error)
        self.then()

    def start(self) -> "Bench":
        self.publisher.start()
        self.reactor.run()
        return self

    @property
    def link(self) -> Link:
        (found,) = self.broker.live
        return found

    def chans(self) -> tuple[Chan, Chan]:
        """The channels of copies and of publications."""
        copies, publications = (chan for _, chan in sorted(self.link.chans.items()) if chan.confirming)
        return copies, publications

    def come_back(self) -> None:
        """Let time pass until there is a connection again that serves."""
        for _ in range(200):
            self.reactor.pass_time(0.5)
            if self.publisher.connection.trouble is None and len(self.broker.live) == 1:
                return
        pytest.fail("the publisher does not come back")


@pytest.fixture
def bench(broker: Broker, clocked: Reactor) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(plan: list[Declaration] | None = None) -> Bench:
        made.append(Bench(broker, plan or []))
        return made[-1]

    yield make
    for each in made:
        stopped: list[None] = []
        each.publisher.stop().addCallback(stopped.append)
        each.reactor.pass_time(2 * ABORT_AFTER)
        assert stopped == [None]


# Two channels -------------------------------------------------------------------------------------


def test_copies_and_publications_have_a_channel_each(bench: Callable[..., Bench], results: Results) -> None:
    it = bench().start()
    copy = results(it.publisher.copy(outgoing("archive")))
    publication = results(it.publisher.publish(outgoing("order.placed")))
    it.reactor.run()
    assert (copy, publication) == ([None], [None])
    by_key = {each.key: each.chan.number for each in it.broker.published}
    assert by_key["archive"] != by_key["order.placed"]
    assert it.publisher.ready.happened
    assert len(it.broker.links) == 1


def test_a_users_mistake_does_not_touch_a_copy(bench: Callable[..., Bench], broker: Broker, results: Results) -> None:
    it = bench().start()
    broker.confirms = False
    copy = results(it.publisher.copy(outgoing("archive")))
    wrong = results(it.publisher.publish(outgoing("k", "no-such-exchange")))
    it.reactor.run()
    assert [type(end) for end in wrong] == [PublishRefused]
    assert copy == []
    copies, publications = it.chans()
    copies.confirm(1)
    again = results(it.publisher.publish(outgoing("right")))
    it.reactor.run()
    publications.confirm(1)
    it.reactor.run()
    assert (copy, again) == ([None], [None])
    assert broker.routing_keys() == ["archive", "k", "right"]
    assert len(broker.links) == 1


def test_a_channel_that_is_closed_again_and_again_is_replaced_each_time(
    bench: Callable[..., Bench], results: Results
) -> None:
    it = bench().start()
    for _ in range(20):
        wrong = results(it.publisher.publish(outgoing("k", "no-such-exchange")))
        right = results(it.publisher.publish(outgoing("right")))
        it.reactor.run()
        assert [type(end) for end in wrong] == [PublishRefused]
        assert right == [None]
    assert len(it.broker.links) == 1
    assert len(it.link.chans) == 2


def test_what_is_returned_is_unroutable(bench: Callable[..., Bench], broker: Broker, results: Results) -> None:
    it = bench().start()
    broker.missing.add("gone")
    first = results(it.publisher.copy(outgoing("gone", mandatory=True)))
    second = results(it.publisher.copy(outgoing("there", mandatory=True)))
    it.reactor.run()
    assert [type(end) for end in first] == [Unroutable]
    assert second == [None]


# Silence and loss ---------------------------------------------------------------------------------


def test_silence_on_one_channel_makes_the_connection_anew_for_both(
    bench: Callable[..., Bench], broker: Broker, results: Results
) -> None:
    it = bench().start()
    broker.confirms = False
    copy = results(it.publisher.copy(outgoing("archive")))
    it.reactor.pass_time(29.5)
    publication = results(it.publisher.publish(outgoing("order")))
    assert len(broker.links) == 1
    it.reactor.pass_time(2.0)
    assert broker.links[0].aborted
    broker.confirms = True
    it.come_back()
    it.reactor.run()
    assert broker.routing_keys() == ["archive", "order", "archive", "order"]
    assert (copy, publication) == ([None], [None])


@pytest.mark.parametrize("end", ["fin", "rst", "close"])
def test_what_was_on_its_way_goes_out_on_the_next_connection(
    bench: Callable[..., Bench], broker: Broker, results: Results, end: str
) -> None:
    it = bench().start()
    broker.confirms = False
    flying = [results(it.publisher.publish(outgoing(f"f{number}"))) for number in range(3)]
    it.link.close(320, "CONNECTION_FORCED") if end == "close" else getattr(it.link, end)()
    waiting = results(it.publisher.copy(outgoing("waiting")))
    broker.confirms = True
    it.come_back()
    it.reactor.run()
    assert [*flying, waiting] == [[None]] * 4
    assert broker.routing_keys() == ["f0", "f1", "f2", "waiting", "f0", "f1", "f2"]


def test_what_is_published_before_the_start_waits(bench: Callable[..., Bench], reactor: Reactor, results: Results) -> None:
    it = bench()
    early = results(it.publisher.publish(outgoing("early")))
    reactor.run()
    assert early == []
    it.start()
    assert early == [None]


def test_without_a_broker_it_becomes_too_late(bench: Callable[..., Bench], reactor: Reactor, results: Results) -> None:
    listening, reactor.listener = reactor.listener, None
    it = bench().start()
    ends = results(it.publisher.publish(outgoing("k")))
    reactor.pass_time(59.0)
    assert ends == []
    reactor.pass_time(2.0)
    assert [type(end) for end in ends] == [PublishTimeout]
    reactor.listener = listening
    it.come_back()
    assert it.broker.routing_keys() == []


@pytest.mark.parametrize("unanswered", ["Channel.Open", "Confirm.Select", "Channel.Close"])
def test_every_step_of_a_start_has_an_end(
    bench: Callable[..., Bench], broker: Broker, results: Results, unanswered: str
) -> None:
    """A broker that answers heartbeats but not this: the connection is made anew, not waited for."""
    it = bench()
    ends = results(it.publisher.publish(outgoing("k")))
    broker.silent.add(unanswered)
    it.start()
    it.reactor.pass_time(STEP_SECONDS + ABORT_AFTER + 1)
    assert len(broker.links) > 1 or broker.links[0].is_lost
    broker.silent.clear()
    it.come_back()
    it.reactor.run()
    assert ends == [None]


def test_a_replacement_that_is_never_opened_costs_the_connection(
    bench: Callable[..., Bench], broker: Broker, results: Results
) -> None:
    it = bench().start()
    broker.silent.add("Channel.Open")
    results(it.publisher.publish(outgoing("k", "no-such-exchange")))
    it.reactor.run()
    waiting = results(it.publisher.publish(outgoing("waiting")))
    it.reactor.pass_time(30.0 + ABORT_AFTER + 0.5)
    assert broker.links[0].is_lost
    broker.silent.clear()
    it.come_back()
    it.reactor.run()
    assert waiting == [None]


# Blocked ------------------------------------------------------------------------------------------


def test_a_block_holds_both_channels(bench: Callable[..., Bench], broker: Broker, results: Results) -> None:
    it = bench().start()
    it.link.blocked()
    it.reactor.run()
    assert it.publisher.blocked
    copy, publication = results(it.publisher.copy(outgoing("c"))), results(it.publisher.publish(outgoing("p")))
    it.reactor.pass_time(120.0)
    assert broker.routing_keys() == []
    it.link.unblocked()
    it.reactor.run()
    assert not it.publisher.blocked
    assert (copy, publication) == ([None], [None])


def test_a_block_does_not_outlive_its_connection(
    bench: Callable[..., Bench], broker: Broker, reactor: Reactor, results: Results
) -> None:
    it = bench().start()
    it.link.blocked()
    reactor.run()
    ends = results(it.publisher.publish(outgoing("k")))
    it.link.rst()
    it.come_back()
    it.reactor.run()
    assert ends == [None]
    assert not it.publisher.blocked


def test_it_becomes_too_late_when_a_blocked_connection_is_lost_for_good(
    bench: Callable[..., Bench], reactor: Reactor, results: Results
) -> None:
    it = bench().start()
    it.link.blocked()
    reactor.run()
    ends = results(it.publisher.publish(outgoing("k")))
    reactor.listener = None
    it.link.rst()
    reactor.pass_time(300.0, 1.0)
    assert [type(end) for end in ends] == [PublishTimeout]


# What is declared ---------------------------------------------------------------------------------


def queue(name: str, *, passive: bool = False) -> DeclareQueue:
    return DeclareQueue(f"queues.{name}", name, True, False, False, passive, {})


def test_what_nobody_else_declares_is_declared_before_it_is_ready(bench: Callable[..., Bench], broker: Broker) -> None:
    exchange = DeclareExchange("exchanges.x", "x", "topic", True, False, False, False, {})
    it = bench([exchange, queue("spare")]).start()
    assert it.publisher.ready.happened
    assert "x" in broker.exchanges
    assert "spare" in broker.queues


def test_an_alarm_at_the_start_keeps_nobody_from_consuming(bench: Callable[..., Bench], broker: Broker) -> None:
    """What needs no publishing can be consumed, and that may be what ends the alarm."""
    broker.silent.add("Confirm.Select")
    it = bench([]).start()
    assert not it.publisher.ready.happened
    it.link.blocked("low on memory")
    it.reactor.run()
    assert it.publisher.ready.happened


def test_an_alarm_at_the_start_costs_no_connection_however_long_it_lasts(
    bench: Callable[..., Bench], broker: Broker, results: Results
) -> None:
    broker.probes = False
    it = bench([]).start()
    it.link.blocked("low on memory")
    it.reactor.pass_time(5 * STEP_SECONDS)
    assert it.publisher.why == "the broker blocks it: low on memory"
    it.link.unblocked()
    broker.probes = True
    (probe,) = (chan for chan in it.link.chans.values() if chan.confirming)
    probe.confirm(1)
    it.reactor.run()
    assert results(it.publisher.copy(outgoing("archive"))) == []
    it.reactor.run()
    assert (it.publisher.why, len(broker.links)) == (None, 1)
    assert "archive" in broker.routing_keys()


def test_a_probe_that_is_not_confirmed_without_an_alarm_costs_the_connection(
    bench: Callable[..., Bench], broker: Broker
) -> None:
    broker.probes = False
    it = bench([]).start()
    it.reactor.pass_time(STEP_SECONDS + 5)
    assert "the confirm of a probe took longer than 30 s" in (it.publisher.why or "")


def test_a_missing_object_is_waited_for_while_everybody_else_works(
    bench: Callable[..., Bench], broker: Broker, results: Results, caplog: pytest.LogCaptureFixture
) -> None:
    it = bench([queue("elsewhere", passive=True)]).start()
    copy = results(it.publisher.copy(outgoing("archive")))
    it.reactor.pass_time(20.0)
    assert it.publisher.ready.happened
    asked = broker.story.count("Queue.Declare")
    assert asked > 1
    broker.queue("elsewhere")
    it.reactor.pass_time(30.0)
    assert broker.story.count("Queue.Declare") == asked + 1
    assert caplog.text.count("waiting for it") == 1
    assert copy == [None]
    assert it.refused == []


@pytest.mark.parametrize(
    ("code", "text", "exit_code"),
    [
        (406, "PRECONDITION_FAILED - inequivalent arg 'durable'", ExitCode.CONFIG),
        (403, "ACCESS_REFUSED - access to queue 'spare' in vhost '/' refused", ExitCode.NOPERM),
    ],
)
def test_a_declaration_that_is_refused_at_first_start_is_told(
    bench: Callable[..., Bench], broker: Broker, code: int, text: str, exit_code: ExitCode
) -> None:
    broker.answers["Queue.Declare"] = lambda chan, _method: chan.close(code, text)
    it = bench([queue("spare")]).start()
    it.reactor.pass_time(0.9)
    assert [error.exit_code for error in it.refused] == [exit_code]
    assert text in str(it.refused[0])


def forbid_the_default_exchange(broker: Broker) -> None:
    text = "ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user 'shop'"

    def refuse(chan: Chan, _method: Any) -> None:
        chan._route = lambda _published: chan.close(403, text)  # type: ignore[method-assign]
        chan.confirming = True
        chan.reply(spec.Confirm.SelectOk())

    broker.answers["Confirm.Select"] = refuse


def test_no_permission_for_the_default_exchange_is_told(bench: Callable[..., Bench], broker: Broker) -> None:
    forbid_the_default_exchange(broker)
    it = bench().start()
    assert [error.exit_code for error in it.refused] == [ExitCode.NOPERM]
    assert "amq" in str(it.refused[0])


# Stopping -----------------------------------------------------------------------------------------


def test_stopping_in_the_middle_of_anything(broker: Broker, clocked: Reactor) -> None:
    """Stopped after any number of bytes from the broker, it ends within the time of an abort."""
    for size in range(0, 1200, 37):
        one = Broker(clocked)
        clocked.listener = one
        one.pieces = lambda data, size=size: [data[:size]] if size else []  # type: ignore[misc]
        it = Bench(one, [queue("spare")]).start()
        stopped: list[None] = []
        it.publisher.stop().addCallback(stopped.append)
        clocked.pass_time(ABORT_AFTER + 0.5)
        assert stopped == [None], size
        assert one.live == []


def test_stopping_while_it_waits_to_try_again(bench: Callable[..., Bench], reactor: Reactor, results: Results) -> None:
    reactor.listener = None
    it = bench().start()
    stopped = results(it.publisher.stop())
    reactor.run()
    assert stopped == [None]


def test_stopping_while_nobody_answers_at_all(bench: Callable[..., Bench], reactor: Reactor, results: Results) -> None:
    reactor.silent = True
    it = bench().start()
    stopped = results(it.publisher.stop())
    reactor.run()
    assert stopped == [None]


def test_stopping_before_the_start(bench: Callable[..., Bench], results: Results) -> None:
    assert results(bench().publisher.stop()) == [None]


def test_stopping_from_within_the_refusal(bench: Callable[..., Bench], broker: Broker) -> None:
    """What the service does: a mistake of the operator's stops everything, from inside the callback."""
    forbid_the_default_exchange(broker)
    it = bench()
    stopped: list[None] = []
    it.then = lambda: it.publisher.stop().addCallback(stopped.append)
    it.start()
    it.reactor.pass_time(ABORT_AFTER + 0.5)
    assert stopped == [None]
    assert len(broker.links) == 1


# All of it at once --------------------------------------------------------------------------------


class Chaos:
    """A broker and a network in which anything may happen, by the throw of dice."""

    def __init__(self, it: Bench, seed: int) -> None:
        self.it = it
        self.broker = it.broker
        self.dice = random.Random(seed)
        self.ends: dict[str, list[Any]] = {}
        self.confirmed: set[str] = set()
        self._told: dict[Chan, int] = {}

    def publish(self) -> None:
        key = f"p{len(self.ends)}"
        one = self.ends[key] = []
        exchange = self.dice.choice(["", "", "x", "gone"])
        publish = self.it.publisher.copy if self.dice.random() < 0.3 else self.it.publisher.publish
        publish(outgoing(key, exchange)).addCallbacks(one.append, lambda failure: one.append(failure.value))

    def chans(self) -> list[Chan]:
        chans = [chan for link in self.broker.live for chan in link.chans.values()]
        return [chan for chan in chans if chan.is_open and chan.confirming]

    def confirm(self, share: float = 0.5) -> None:
        for chan in self.chans():
            told = self._told.get(chan, 0)
            waiting = [each for each in self.broker.published if each.chan is chan and each.number > told]
            taken = waiting[: max(1, round(len(waiting) * share))]
            if taken:
                self._told[chan] = taken[-1].number
                self.confirmed.update(each.key for each in taken)
                chan.confirm(taken[-1].number, multiple=True)

    def cut(self) -> None:
        for link in self.broker.live:
            end = self.dice.choice(["fin", "rst", "close"])
            link.close(320, "CONNECTION_FORCED") if end == "close" else getattr(link, end)()

    def close(self) -> None:
        for chan in self.chans():
            if self.dice.random() < 0.5:
                chan.close(541, "INTERNAL_ERROR - nobody knows why")

    def turn(self) -> None:
        acts = [self.publish, self.confirm, self.cut, self.close, lambda: self.it.reactor.pass_time(self.dice.random())]
        self.dice.choices(acts, [8, 5, 0.4, 0.3, 2])[0]()
        if self.dice.random() < 0.7:
            self.it.reactor.run()

    def come_to_rest(self) -> None:
        for _ in range(400):
            if all(self.ends.values()):
                return
            self.confirm(1.0)
            self.it.reactor.pass_time(0.5)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_each_publication_ends_once_and_success_means_confirmed(
    bench: Callable[..., Bench], broker: Broker, seed: int
) -> None:
    it = bench().start()
    broker.confirms = False
    broker.exchanges.add("x")
    chaos = Chaos(it, seed)
    for _ in range(150):
        chaos.turn()
    chaos.come_to_rest()
    assert all(len(one) == 1 for one in chaos.ends.values())
    succeeded = {key for key, (end,) in chaos.ends.items() if end is None}
    failed = [end for (end,) in chaos.ends.values() if end is not None]
    assert len(succeeded) > 10
    assert succeeded <= chaos.confirmed
    assert all(isinstance(end, PublishRefused | PublishTimeout) for end in failed)
