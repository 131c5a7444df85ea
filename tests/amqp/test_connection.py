"""A connection that is made again for ever: hosts, time limits, pauses, refusals, and stopping at any moment."""

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from amqp_rig import ADDRESS
from amqp_wire import Broker, Link, Reactor
from twisted.internet.defer import Deferred

from rpcd.amqp.connection import LOGIN_TRIES, LONGEST_PAUSE, Connection
from rpcd.amqp.dial import Broker as Dialled
from rpcd.amqp.port import ABORT_AFTER, BLOCKED_TIMEOUT, AmqpProtocol
from rpcd.amqp.waiting import Once
from rpcd.core.errors import BrokerRefused, ExitCode, LoginRefused, ObjectMissing

Results = Callable[[Deferred[Any]], list[Any]]


class Bench:
    """A connection that serves until it is lost, or raises what the test says."""

    def __init__(self, reactor: Reactor, **address: Any) -> None:
        self.reactor = reactor
        self.refused: list[BrokerRefused] = []
        self.served = 0
        self.raises: Exception | None = None
        self.says_so = True
        dialled = Dialled(attrs.evolve(ADDRESS, **address), reactor, "0.1", login_patience=60.0)
        self.connection = Connection("orders", "title", dialled, self._serve, self.refused.append)

    async def _serve(self, protocol: AmqpProtocol) -> None:
        ended = Once()
        protocol.when_lost(ended.fail)
        self.served += 1
        if self.raises is not None:
            raise self.raises
        if self.says_so:
            self.connection.serving()
        await ended.wait()

    def start(self) -> "Bench":
        self.connection.start()
        self.reactor.run()
        return self

    def pauses(self, seconds: float) -> list[float]:
        """Let time pass; return the times at which a connection was tried."""
        times, known = [], len(self.reactor.dialled)
        for _ in range(round(seconds / 0.25)):
            self.reactor.pass_time(0.25)
            if len(self.reactor.dialled) > known:
                known = len(self.reactor.dialled)
                times.append(self.reactor.seconds())
        return times


@pytest.fixture
def bench(reactor: Reactor) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**address: Any) -> Bench:
        made.append(Bench(reactor, **address))
        return made[-1]

    yield make
    for each in made:
        stopped: list[None] = []
        each.connection.stop().addCallback(stopped.append)
        reactor.pass_time(ABORT_AFTER + 1)
        assert stopped == [None]


# Where to -----------------------------------------------------------------------------------------

HOSTS = (("one", 1), ("two", 2), ("three", 3))


def test_every_host_is_tried_before_the_pause(bench: Callable[..., Bench], reactor: Reactor) -> None:
    it = bench(hosts=HOSTS).start()
    reactor.pass_time(1.2, 0.1)  # an endpoint waits a moment before it believes that a name has no further address
    assert sorted(reactor.dialled) == sorted(HOSTS)
    assert it.connection.trouble is not None
    for host, port in HOSTS:
        assert f"{host}:{port}: refused by other side" in it.connection.trouble


def test_hosts_are_tried_in_random_order(bench: Callable[..., Bench], reactor: Reactor, broker: Broker) -> None:
    it = bench(hosts=HOSTS).start()
    for _ in range(20):
        broker.links[-1].rst()
        reactor.pass_time(3.0)
    assert it.served > 15
    assert {host for host, _ in reactor.dialled} == {"one", "two", "three"}


def test_a_host_that_does_not_answer_is_left_for_the_next(bench: Callable[..., Bench], broker: Broker) -> None:
    """T7: nothing in pika limits the handshake."""
    mute = Broker(broker.reactor)
    mute.silent.add("Connection.Open")
    accept = iter([mute.accept, broker.accept])

    def one_each(protocol: AmqpProtocol) -> Link:
        return next(accept)(protocol)

    broker.accept = one_each  # type: ignore[method-assign]
    it = bench(hosts=HOSTS[:2], connect_timeout=10.0).start()
    it.reactor.pass_time(9.5)
    assert it.served == 0
    it.reactor.pass_time(1.0)
    assert it.served == 1
    assert mute.links[0].is_lost


def test_a_refused_login_is_not_tried_on_the_next_host(bench: Callable[..., Bench], broker: Broker) -> None:
    broker.answers["Connection.StartOk"] = lambda link, _answer: link.close(403, "ACCESS_REFUSED - no")  # type: ignore[attr-defined]
    bench(hosts=HOSTS).start()
    assert len(broker.reactor.dialled) == 1


# Pauses -------------------------------------------------------------------------------------------


def test_pauses_grow_to_their_limit(bench: Callable[..., Bench], reactor: Reactor) -> None:
    it = bench().start()
    times = [0.0, *it.pauses(300.0)]
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert 1.0 <= pauses[0] <= 2.25
    assert pauses[3] > pauses[0]
    assert all(pause <= LONGEST_PAUSE + 1.25 for pause in pauses)
    assert pauses[-1] > LONGEST_PAUSE - 1


def test_pauses_start_anew_only_after_it_has_served(bench: Callable[..., Bench], broker: Broker, reactor: Reactor) -> None:
    it = bench()
    it.says_so = False
    it.start()
    for _ in range(6):
        broker.links[-1].rst()
        reactor.pass_time(40.0)
    broker.links[-1].rst()
    (long,) = it.pauses(40.0)[:1]
    assert long - (reactor.seconds() - 40.0) > 10.0
    it.connection.serving()
    broker.links[-1].rst()
    (short,) = it.pauses(40.0)[:1]
    assert short - (reactor.seconds() - 40.0) < 3.0


def test_trouble_is_said_once_while_it_stays_the_same(
    bench: Callable[..., Bench], reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    it = bench().start()
    it.pauses(200.0)
    assert sum("refused by other side" in record.getMessage() for record in caplog.records) == 1


# Refusals -----------------------------------------------------------------------------------------


def test_a_login_is_tried_three_times_before_its_refusal_is_believed(bench: Callable[..., Bench], broker: Broker) -> None:
    broker.answers["Connection.StartOk"] = lambda link, _answer: link.close(403, "ACCESS_REFUSED - no")  # type: ignore[attr-defined]
    it = bench().start()
    it.reactor.pass_time(59.0)
    assert it.refused == []
    it.reactor.pass_time(2.0)
    assert len(broker.links) == LOGIN_TRIES
    assert [type(error) for error in it.refused] == [LoginRefused]
    assert it.refused[0].exit_code == ExitCode.NOPERM


def test_a_refusal_after_it_has_served_ends_nothing(bench: Callable[..., Bench], broker: Broker, reactor: Reactor) -> None:
    it = bench().start()
    it.raises = BrokerRefused("not any more", ExitCode.CONFIG)
    broker.links[0].rst()
    reactor.pass_time(100.0)
    assert it.refused == []
    assert it.connection.trouble == "not any more"
    it.raises = None
    reactor.pass_time(40.0)
    assert it.connection.trouble is None


def test_a_refusal_after_it_has_served_is_tried_again_soon_then_seldom_and_said_once(
    bench: Callable[..., Bench], broker: Broker, reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    it = bench().start()
    it.raises = BrokerRefused("not any more", ExitCode.CONFIG)
    caplog.clear()
    broker.links[0].rst()
    reactor.pass_time(12.0)
    soon = len(broker.links)
    assert soon >= 3
    reactor.pass_time(600.0)
    assert len(broker.links) - soon <= 600 / (LONGEST_PAUSE / 2)
    (said,) = [record for record in caplog.records if "not any more" in record.message and record.levelname != "DEBUG"]
    assert said.levelname == "ERROR"


def test_a_refusal_at_first_start_is_told_once_each_time(bench: Callable[..., Bench], broker: Broker) -> None:
    it = bench()
    it.raises = BrokerRefused("other arguments", ExitCode.CONFIG)
    it.start()
    assert len(it.refused) == 1
    assert broker.live == []


def test_a_refusal_that_ends_the_process_promises_no_other_try(
    bench: Callable[..., Bench], broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    it = bench()
    it.raises = BrokerRefused("other arguments", ExitCode.CONFIG)
    it.start()
    assert len(it.refused) == 1
    told = [record.levelno for record in caplog.records if "trying again" in record.getMessage()]
    assert told == [logging.DEBUG] * len(told)


def test_what_it_is_told_to_refuse_after_it_has_served_promises_no_other_try(
    bench: Callable[..., Bench], broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A publisher serves before it has declared everything."""
    it = bench()
    error = BrokerRefused("other arguments", ExitCode.CONFIG)

    async def serve(_protocol: AmqpProtocol) -> None:
        it.connection.serving()
        it.connection.refuse(error)
        raise error

    it.connection._serve = serve
    it.start()
    assert it.refused == [error]
    told = [record.levelno for record in caplog.records if "trying again" in record.getMessage()]
    assert told == [logging.DEBUG] * len(told)


def test_a_refused_login_is_told_with_its_place(
    bench: Callable[..., Bench], broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.answers["Connection.StartOk"] = lambda link, _answer: link.close(403, "ACCESS_REFUSED - no")  # type: ignore[attr-defined]
    it = bench().start()
    it.reactor.pass_time(61.0)
    place = "user 'shop' or the password for virtual host '/shop' in broker.url, or RABBITMQ_URL"
    assert place in str(it.refused[0])
    (line,) = [text for record in caplog.records if "trying again" in (text := record.getMessage())]
    assert line == f"the broker refused the login: 403 ACCESS_REFUSED - no; correct {place}; trying again in 30.0 s"


def test_a_lost_connection_is_told_in_plain_words(
    bench: Callable[..., Bench], broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    it = bench().start()
    broker.links[0].fin()
    it.reactor.run()
    (line,) = [text for record in caplog.records if "trying again" in (text := record.getMessage())]
    assert line.startswith("the connection was lost (the other side closed it without goodbye); trying again in ")


def test_a_missing_object_is_waited_for(bench: Callable[..., Bench], broker: Broker) -> None:
    it = bench()
    it.raises = ObjectMissing("no queue yet")
    it.start()
    it.reactor.pass_time(100.0)
    assert it.refused == []
    assert it.connection.trouble == "no queue yet"
    assert it.served > 3


# Dropping and stopping ----------------------------------------------------------------------------


def test_a_connection_that_is_dropped_is_made_anew(bench: Callable[..., Bench], broker: Broker, reactor: Reactor) -> None:
    it = bench().start()
    it.connection.again("it consumed nothing")
    reactor.run()
    assert broker.links[0].aborted
    assert it.connection.trouble == "it consumed nothing"
    reactor.pass_time(3.0)
    assert it.served == 2


@pytest.mark.parametrize("unanswered", [None, "Connection.StartOk", "Connection.Open", "Connection.Close"])
def test_stopping_closes_and_ends(
    bench: Callable[..., Bench], broker: Broker, reactor: Reactor, results: Results, unanswered: str | None
) -> None:
    if unanswered is not None:
        broker.silent.add(unanswered)
    it = bench().start()
    first, second = results(it.connection.stop()), results(it.connection.stop())
    reactor.pass_time(ABORT_AFTER + 0.5)
    assert first == second == [None]
    assert broker.live == []
    reactor.pass_time(60.0)
    assert len(broker.links) == 1


def test_the_last_connection_goes_on_until_it_ends(
    bench: Callable[..., Bench], broker: Broker, reactor: Reactor, results: Results
) -> None:
    it = bench().start()
    it.connection.last()
    reactor.pass_time(10.0)
    assert len(broker.live) == 1
    broker.links[0].rst()
    reactor.pass_time(60.0)
    assert len(broker.links) == 1
    assert results(it.connection.stop()) == [None]


def test_no_further_connection_while_it_is_in_trouble(
    bench: Callable[..., Bench], reactor: Reactor, results: Results
) -> None:
    it = bench().start()
    it.connection.last()
    reactor.listener = Broker(reactor)
    reactor.pass_time(60.0)
    assert it.served == 0


def test_a_fault_while_serving_is_trouble_like_any_other_but_shows_its_place(
    bench: Callable[..., Bench], broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    it = bench()
    it.raises = ZeroDivisionError("a fault of rpcd")
    it.start()
    it.reactor.pass_time(5.0)
    assert it.served > 1
    assert isinstance(it.connection.trouble, str)
    assert "a fault of rpcd" in it.connection.trouble
    assert "Traceback" in caplog.text
    assert "raise self.raises" in caplog.text


# The broker's side of it --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [320, 501, 541])
def test_a_connection_that_the_broker_closes_is_made_anew(
    bench: Callable[..., Bench], broker: Broker, reactor: Reactor, code: int
) -> None:
    it = bench().start()
    broker.links[0].close(code, "TEXT")
    reactor.run()
    assert it.connection.trouble == f"the broker closed the connection: {code} TEXT"
    assert it.refused == []
    reactor.pass_time(3.0)
    assert it.served == 2
    assert it.connection.trouble is None


def test_a_silent_broker_is_left_after_its_heartbeats(bench: Callable[..., Bench], broker: Broker, reactor: Reactor) -> None:
    it = bench(heartbeat=4).start()
    broker.links[0].stuck = True
    reactor.pass_time(17.5)
    assert it.connection.trouble is None
    reactor.pass_time(ABORT_AFTER + 1.0)
    assert broker.links[0].aborted
    assert it.connection.trouble == "the broker's heartbeats stopped"
    reactor.pass_time(3.0)
    assert it.served == 2


def test_a_connection_that_stays_blocked_is_made_anew(bench: Callable[..., Bench], broker: Broker, reactor: Reactor) -> None:
    it = bench().start()
    broker.links[0].blocked()
    reactor.pass_time(BLOCKED_TIMEOUT - 1.0, 10.0)
    assert it.connection.trouble is None
    reactor.pass_time(1.5)
    assert it.connection.trouble is not None
    assert "blocked the connection for 300 s" in it.connection.trouble
    reactor.pass_time(3.0)
    assert it.served == 2


def test_a_broker_that_hangs_up_in_the_middle_of_a_login_has_refused_nothing(
    bench: Callable[..., Bench], broker: Broker
) -> None:
    """RabbitMQ says so when it refuses; one that is just stopping does not, and that must end nobody's process."""
    broker.answers["Connection.StartOk"] = lambda link, _answer: link.fin()  # type: ignore[attr-defined]
    it = bench().start()
    it.reactor.pass_time(200.0)
    assert it.refused == []
    broker.answers.clear()
    it.reactor.pass_time(LONGEST_PAUSE + 5.0)
    assert it.connection.trouble is None


def test_a_login_that_is_accepted_in_the_end(bench: Callable[..., Bench], broker: Broker) -> None:
    """A password that was just changed: both sides have it a little later."""
    broker.answers["Connection.StartOk"] = lambda link, _answer: link.close(403, "ACCESS_REFUSED - no")  # type: ignore[attr-defined]
    it = bench().start()
    it.reactor.pass_time(45.0)
    broker.answers.clear()
    it.reactor.pass_time(20.0)
    assert it.refused == []
    assert it.served == 1
    assert it.connection.trouble is None


def test_a_password_that_is_changed_later_ends_nothing(
    bench: Callable[..., Bench], broker: Broker, reactor: Reactor
) -> None:
    it = bench().start()
    broker.answers["Connection.StartOk"] = lambda link, _answer: link.close(403, "ACCESS_REFUSED - no")  # type: ignore[attr-defined]
    broker.links[0].rst()
    reactor.pass_time(300.0)
    assert it.refused == []
    assert len(broker.links) > 5
    broker.answers.clear()
    reactor.pass_time(LONGEST_PAUSE + 5.0)
    assert it.served == 2


def test_stopping_while_it_is_told_of_a_refusal(bench: Callable[..., Bench], broker: Broker, reactor: Reactor) -> None:
    it = bench()
    it.raises = BrokerRefused("other arguments", ExitCode.CONFIG)
    stopped: list[None] = []
    it.connection._refused = lambda _error: it.connection.stop().addCallback(stopped.append)
    it.start()
    assert stopped == [None]
    reactor.pass_time(100.0)
    assert it.served == 1


def test_an_end_while_it_prepares_to_serve_is_trouble(bench: Callable[..., Bench], broker: Broker, reactor: Reactor) -> None:
    it = bench()
    it.says_so = False
    it.start()
    broker.links[0].close(320, "CONNECTION_FORCED")
    reactor.run()
    assert not it.connection.served
    assert it.connection.trouble == "the broker closed the connection: 320 CONNECTION_FORCED"


# Several connections of one process ---------------------------------------------------------------


@pytest.fixture
def pair(bench: Callable[..., Bench]) -> tuple[Bench, Bench]:
    """Two connections to one broker, as a consumer and the publisher are."""
    one, two = bench(), bench()
    two.connection._broker = one.connection._broker
    return one, two


def test_when_one_serves_again_nobody_else_waits_for_his_turn(
    pair: tuple[Bench, Bench], broker: Broker, reactor: Reactor
) -> None:
    reactor.listener = None
    for each in pair:
        each.start()
    reactor.pass_time(200.0)  # both have come to the longest pause by now
    reactor.listener = broker
    waited = 0.0
    while not any(each.served for each in pair):
        reactor.pass_time(0.05, 0.05)
        waited += 0.05
        assert waited < LONGEST_PAUSE + 2
    reactor.run()
    assert [each.served for each in pair] == [1, 1]
    assert pair[0].connection._broker.patient == set()


def test_after_its_first_failure_nobody_is_woken(pair: tuple[Bench, Bench], broker: Broker, reactor: Reactor) -> None:
    one, two = pair
    one.start()
    two.start()
    broker.links[1].rst()
    reactor.run()
    one.connection.serving()
    reactor.run()
    assert two.served == 1
    reactor.pass_time(3.0)
    assert two.served == 2


def test_whom_the_broker_refuses_is_not_woken(pair: tuple[Bench, Bench], broker: Broker, reactor: Reactor) -> None:
    one, two = pair
    one.start()
    two.start()
    two.raises = BrokerRefused("other arguments", ExitCode.CONFIG)
    broker.links[1].rst()
    reactor.pass_time(20.0)
    tried = two.served
    one.connection.serving()
    reactor.run()
    assert two.served == tried


def test_who_is_stopped_while_it_waits_is_forgotten(pair: tuple[Bench, Bench], reactor: Reactor) -> None:
    reactor.listener = None
    one, two = pair
    one.start()
    reactor.pass_time(60.0)
    assert len(one.connection._broker.patient) == 1
    one.connection.stop()
    reactor.run()
    assert one.connection._broker.patient == set()
    two.start()
