"""The whole daemon over the fake wire: it supervises its consumers, and ends in good order with the right exit code."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from amqp_rig import Gate
from amqp_wire import LONGEST, Broker, Link, Reactor
from twisted.internet.defer import Deferred

from rpcd.amqp import consumer as consumer_module
from rpcd.amqp.consumer import Consumer
from rpcd.config import plan
from rpcd.core import settings
from rpcd.core.errors import ExitCode, HaltConsumer
from rpcd.core.handler import target
from rpcd.ops import ending
from rpcd.ops.report import sentence
from rpcd.service import SUPERVISE_SECONDS, Daemon

Results = Callable[[Deferred[Any]], list[Any]]

NOW = SUPERVISE_SECONDS + 0.5
"""Long enough for one look of the supervisor."""


class Rig:
    """A daemon with one consumer for each handler, each with a queue of its name."""

    def __init__(self, broker: Broker, reactor: Reactor, handlers: dict[str, Any], **section: Any) -> None:
        self.broker = broker
        self.reactor = reactor
        self.handlers = handlers
        service = settings.Service(drain_timeout=section.pop("drain_timeout", 30.0), on_start=section.pop("on_start", None))
        tree = settings.Settings(
            broker=settings.Broker(url="amqp://broker.test", heartbeat=0),
            service=service,
            queues={name: settings.Queue() for name in handlers},
            consumers={name: settings.Consumer(queue=name, handler="test:handler", **section) for name in handlers},
        )
        plans = [plan(tree, name, target("test:handler", handler)) for name, handler in handlers.items()]
        self.daemon = Daemon(tree, plans, reactor, environment={})

    def start(self) -> "Rig":
        self.daemon.startService()
        self.until(lambda: all(consumer.consuming for consumer in self.daemon.consumers))
        return self

    def until(self, condition: Callable[[], object], what: str = "") -> None:
        self.reactor.until(condition, what)

    def consumer(self, name: str) -> Consumer:
        return next(consumer for consumer in self.daemon.consumers if consumer.name == name)

    def link(self, name: str) -> Link:
        """The live connection that consumes from the queue of a consumer."""
        ((chan, _tag),) = self.broker.queues[name].consumers
        return chan.link

    def unheard(self, name: str) -> Link:
        """Let a consumer's consumer tag vanish while its channel stays open, as if neither side had noticed."""
        link, consumer = self.link(name), self.consumer(name)
        channel: Any = consumer.settlement.channel
        channel._inner.basic_cancel(consumer.intake.tag)  # behind rpcd's back
        self.reactor.run()
        return link

    def put(self, name: str, *letters: str) -> None:
        for letter in letters:
            self.broker.queues[name].put(f'{{"name": "{letter}"}}'.encode(), name=letter)
        self.reactor.run()

    def end(self) -> None:
        for handler in self.handlers.values():
            if isinstance(handler, Gate):
                handler.let_all()
        if self.daemon.pool.started:
            self.daemon.stop()
            self.reactor.pass_time(40.0)
            for consumer in self.daemon.consumers:
                consumer.workers.stop()
                self.until(lambda consumer=consumer: consumer.workers.ended.happened, "workers do not end")  # type: ignore[misc]
                if consumer._watch.running:
                    consumer._watch.stop()
            if self.daemon.pool.started:  # else the stop has come to its end, and took the pool with it
                self.daemon.pool.stop()


MakeRig = Callable[..., Rig]


@pytest.fixture
def rig(broker: Broker, reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRig]:
    made: list[Rig] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    monkeypatch.setattr(ending, "_code", None)
    monkeypatch.setattr(ending, "_anew", False)
    monkeypatch.setattr(ending, "guard", lambda _seconds, _pidfile: None)

    def make(**handlers: Any) -> Rig:
        section = {name: value for name, value in handlers.items() if not callable(value)}
        found = {name: value for name, value in handlers.items() if callable(value)}
        made.append(Rig(broker, reactor, found or {"orders": Gate(shut=False)}, **section))
        return made[-1]

    yield make
    for each in made:
        each.end()
    for number, handler in before.items():
        signal.signal(number, handler)


# Pausing ------------------------------------------------------------------------------------------


def test_a_paused_consumer_starts_nothing_until_it_is_resumed(rig: MakeRig, broker: Broker) -> None:
    it = rig().start()
    consumer = it.consumer("orders")
    consumer.pause()
    it.put("orders", "a", "b", "c")
    assert consumer.state == "paused"
    it.reactor.pass_time(3 * NOW)  # the supervisor wakes nobody either
    assert broker.queues["orders"].acked == []
    assert it.handlers["orders"].order == []
    consumer.resume()
    it.until(lambda: broker.queues["orders"].acked == ["a", "b", "c"])
    assert consumer.state == "consuming"


def test_a_pause_lets_what_runs_finish(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    it = rig(orders=gate).start()
    it.put("orders", "a", "b")
    gate.entered("a")
    it.consumer("orders").pause()
    gate.let("a")
    it.until(lambda: broker.queues["orders"].acked == ["a"])
    it.reactor.pass_time(NOW)
    assert gate.order == ["a"]


@pytest.mark.parametrize("lock", [None, "body.name"])
def test_a_stop_of_a_paused_consumer_gives_everything_back(rig: MakeRig, broker: Broker, lock: str | None) -> None:
    it = rig(lock=lock).start()
    it.consumer("orders").pause()
    it.put("orders", "a", "b")
    it.daemon.stop()
    it.consumer("orders").resume()
    it.until(lambda: it.reactor.stops == 1)
    assert ending.exit_code() == ExitCode.OK
    assert sorted(letter.name for letter in broker.queues["orders"].ready) == ["a", "b"]
    assert it.handlers["orders"].order == []


def test_a_paused_consumer_is_supervised_again_when_it_is_resumed(rig: MakeRig) -> None:
    it = rig().start()
    it.consumer("orders").pause()
    link = it.unheard("orders")
    it.reactor.pass_time(NOW)
    assert not link.is_lost
    it.consumer("orders").resume()
    it.reactor.pass_time(NOW)
    assert link.aborted


# The report ---------------------------------------------------------------------------------------


def test_the_report_follows_the_life_of_the_process(rig: MakeRig, broker: Broker, reactor: Reactor) -> None:
    gate = Gate()
    it = rig(orders=gate, invoices=Gate(shut=False))
    reactor.listener = None  # refuses connections
    it.daemon.startService()
    reactor.run()
    report = it.daemon.doors.report
    assert (report()["state"], report()["ready"]) == ("starting", False)
    assert sentence(report()).startswith("connecting: orders (")
    reactor.listener = broker
    reactor.pass_time(5.0)
    it.until(lambda: all(consumer.consuming for consumer in it.daemon.consumers))
    assert (report()["state"], report()["ready"]) == ("ready", True)
    assert sentence(report()) == "consuming: orders, invoices"
    it.consumer("invoices").pause()
    assert (report()["state"], report()["ready"]) == ("ready", True)
    assert sentence(report()) == "consuming: orders; paused: invoices"
    it.link("invoices").rst()
    reactor.run()
    assert report()["ready"] is True
    it.put("orders", "a")
    gate.entered("a")
    it.link("orders").rst()
    reactor.run()
    assert (report()["state"], report()["ready"]) == ("not ready", False)
    assert "not orders: " in sentence(report())
    reactor.pass_time(5.0)
    it.until(lambda: it.consumer("orders").consuming)
    it.daemon.stop()
    reactor.run()
    assert (report()["state"], report()["ready"]) == ("stopping", False)
    assert sentence(report()) == "draining; handlers that still run: 1"


# Reloading ----------------------------------------------------------------------------------------


def test_a_reload_does_not_outlive_the_halt_of_the_last_consumer(
    rig: MakeRig, monkeypatch: pytest.MonkeyPatch, broker: Broker
) -> None:
    guards: list[float] = []
    monkeypatch.setattr(ending, "guard", lambda seconds, _pidfile: guards.append(seconds))
    gate = Gate()
    gate.says("halt", HaltConsumer())
    it = rig(orders=gate).start()
    it.put("orders", "halt")
    gate.entered("halt")
    it.daemon._start_anew()  # what the look ahead ends with
    it.reactor.run()
    assert ending._anew
    assert not it.daemon.doors.phase.stopping
    gate.let("halt")
    it.until(lambda: it.reactor.stops == 1)
    assert not ending._anew
    assert ending.exit_code() == ExitCode.OK
    assert broker.queues["orders"].acked == ["halt"]
    assert len(guards) == 1


def test_there_is_no_reload_while_a_consumer_halts_or_everything_stops(rig: MakeRig, results: Results) -> None:
    gate = Gate()
    gate.says("halt", HaltConsumer())
    it = rig(orders=gate, invoices=Gate(shut=False), workers=2).start()
    it.put("orders", "slow", "halt")
    gate.entered("slow", "halt")
    gate.let("halt")
    it.until(lambda: it.consumer("orders").draining)
    assert results(it.daemon.reloading.begin()) == [["no reload: consumer orders is halting; try again when it has"]]
    it.daemon.stop()
    assert results(it.daemon.reloading.begin()) == [["no reload: the process is stopping"]]
    gate.let("slow")
    it.until(lambda: it.reactor.stops == 1)


def test_settings_that_a_program_made_can_not_be_reloaded(rig: MakeRig, results: Results) -> None:
    it = rig().start()
    assert results(it.daemon.reloading.begin()) == [["it was not started from a config file"]]
    assert it.daemon.doors.report()["refused"] == "it was not started from a config file"
    assert it.daemon.doors.report()["state"] == "ready"


# The supervisor -----------------------------------------------------------------------------------


def test_a_connection_that_looks_up_and_consumes_nothing_is_made_anew(
    rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    it = rig().start()
    link = it.unheard("orders")
    assert not it.consumer("orders").consuming
    it.put("orders", "a")
    it.reactor.pass_time(SUPERVISE_SECONDS - 1.0)
    assert not link.is_lost
    it.reactor.pass_time(1.5)
    assert link.aborted
    assert "connected, but not consuming" in caplog.text
    it.reactor.pass_time(3.0)
    it.until(lambda: it.broker.queues["orders"].acked == ["a"])


def test_only_the_connection_at_fault_is_touched(rig: MakeRig) -> None:
    it = rig(orders=Gate(shut=False), invoices=Gate(shut=False)).start()
    publishing, other = it.broker.links[0], it.link("invoices")
    bad = it.unheard("orders")
    it.reactor.pass_time(NOW)
    assert bad.is_lost
    assert not other.is_lost
    assert not publishing.is_lost


def test_a_connection_that_consumes_nothing_again_is_made_anew_again(rig: MakeRig) -> None:
    it = rig().start()
    for _ in range(3):
        link = it.unheard("orders")
        it.reactor.pass_time(NOW)
        assert link.aborted
        it.reactor.pass_time(5.0)
        it.until(lambda: it.consumer("orders").consuming)


def test_a_consumer_that_consumes_is_left_alone(rig: MakeRig) -> None:
    it = rig(orders=Gate(shut=False), invoices=Gate(shut=False)).start()
    it.reactor.pass_time(5 * NOW)
    assert len(it.broker.links) == 3
    assert it.broker.live == it.broker.links


def test_a_consumer_that_drains_is_left_alone(rig: MakeRig) -> None:
    """It is cancelled while its handlers run on: a cut would let their messages run twice."""
    gate = Gate()
    it = rig(orders=gate, invoices=Gate(shut=False)).start()
    it.put("orders", "a")
    gate.entered("a")
    link = it.link("orders")
    Deferred.fromCoroutine(it.consumer("orders").drain())
    it.reactor.pass_time(3 * NOW)
    assert not link.is_lost
    gate.let("a")
    it.until(lambda: it.consumer("orders").drained.happened)
    assert it.broker.queues["orders"].acked == ["a"]
    assert not link.aborted


def test_a_consumer_on_its_way_back_is_left_alone(rig: MakeRig, broker: Broker) -> None:
    """Its own pauses and time limits apply; another cut would only keep it from coming back."""
    it = rig().start()
    broker.silent.add("Basic.Consume")
    it.link("orders").rst()
    it.reactor.pass_time(2 * NOW)
    (link,) = broker.live[1:]
    broker.silent.clear()
    chan = next(iter(link.chans.values()))
    chan.reply(next(_consume_ok(chan)))
    it.reactor.run()
    assert not link.is_lost
    assert it.consumer("orders").consuming


def _consume_ok(chan: Any) -> Iterator[Any]:
    from pika import spec  # noqa: PLC0415  # the one place that answers late

    for tag in chan.consumers:
        yield spec.Basic.ConsumeOk(tag)


def test_a_consumer_that_never_consumed_is_left_alone(rig: MakeRig, broker: Broker, reactor: Reactor) -> None:
    """What it waits for is its trouble, which is said already."""
    it = rig()
    broker.silent.add("Queue.Declare")
    it.daemon.startService()
    reactor.pass_time(2 * NOW)
    assert len(broker.links) == 2
    assert broker.live == broker.links


def test_a_worker_that_sleeps_while_work_waits_is_woken(rig: MakeRig) -> None:
    it = rig().start()
    workers = it.consumer("orders").workers
    it.until(lambda: len(workers._parked) == workers.count)
    workers._waking = True  # as if a wake-up had been lost
    it.put("orders", "a")
    assert it.broker.queues["orders"].acked == []
    it.reactor.pass_time(NOW)
    it.until(lambda: it.broker.queues["orders"].acked == ["a"])


def test_nobody_is_supervised_any_more_while_it_stops(rig: MakeRig) -> None:
    gate = Gate()
    it = rig(orders=gate).start()
    it.put("orders", "a")
    gate.entered("a")
    link = it.link("orders")
    it.daemon.stop()
    it.reactor.pass_time(2 * NOW)
    assert not link.is_lost
    gate.let("a")
    it.until(lambda: it.reactor.stops == 1)
    assert ending.exit_code() == ExitCode.OK


# Start --------------------------------------------------------------------------------------------


def test_ready_is_said_once_when_everything_consumes(rig: MakeRig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rpcd")
    it = rig(orders=Gate(shut=False), invoices=Gate(shut=False)).start()
    it.link("orders").rst()
    it.reactor.pass_time(5.0)
    it.until(lambda: it.consumer("orders").consuming)
    assert [record.getMessage() for record in caplog.records if "ready" in record.getMessage()] == [
        "ready, consuming: orders, invoices"
    ]


def test_a_start_function_that_fails_ends_the_process_before_anything_connects(
    rig: MakeRig, reactor: Reactor, complaints: list[str]
) -> None:
    it = rig(on_start="signal:no_such_function")
    it.daemon.startService()
    reactor.run()
    assert reactor.dialled == []
    assert reactor.stops == 1
    assert ending.exit_code() == ExitCode.SOFTWARE
    assert complaints == ["service.on_start: signal:no_such_function failed"]
    complaints.clear()


def test_a_refusal_at_first_start_ends_the_process_with_its_code(
    rig: MakeRig, broker: Broker, reactor: Reactor, complaints: list[str]
) -> None:
    broker.answers["Queue.Declare"] = lambda chan, _method: chan.close(406, "PRECONDITION_FAILED - inequivalent arg")
    it = rig()
    it.daemon.startService()
    it.until(lambda: reactor.stops)
    reactor.pass_time(5.0)
    it.until(lambda: it.daemon._stopped.happened)
    assert ending.exit_code() == ExitCode.CONFIG
    assert broker.live == []
    assert len(complaints) == 1
    assert "inequivalent arg" in complaints.pop()


# Stop ---------------------------------------------------------------------------------------------


def test_a_stop_closes_consumers_before_the_publisher(rig: MakeRig, broker: Broker, results: Results) -> None:
    it = rig(orders=Gate(shut=False), invoices=Gate(shut=False)).start()
    stopped = results(it.daemon.stopService())
    it.until(lambda: stopped)
    assert stopped == [None]
    assert it.reactor.stops == 1
    assert broker.live == []
    assert broker.story[-3:] == ["Channel.Close", "Channel.Close", "Connection.Close"]  # only the publisher has two
    assert broker.story.count("Basic.Cancel") == 2
    assert ending.exit_code() == ExitCode.OK
    assert not any(thread.is_alive() for thread in it.daemon.pool.threads)


def test_a_stop_that_takes_too_long_gives_back_what_runs(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    it = rig(orders=gate, drain_timeout=5.0).start()
    it.put("orders", "a", "b")
    gate.entered("a")
    it.daemon.stop()
    it.reactor.pass_time(10.0)
    assert it.daemon._stopped.happened
    assert ending.exit_code() == ExitCode.TEMPFAIL
    assert sorted(letter.name for letter in broker.queues["orders"].ready) == ["a", "b"]
    assert broker.live == []


def test_what_the_broker_takes_back_while_draining_is_told_by_the_exit_code(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    it = rig(orders=gate).start()
    it.put("orders", "a")
    gate.entered("a")
    link = it.link("orders")
    it.daemon.stop()
    it.reactor.run()
    link.rst()
    it.reactor.run()
    gate.let("a")
    it.until(lambda: it.daemon._stopped.happened)
    assert ending.exit_code() == ExitCode.TEMPFAIL
    assert [letter.name for letter in broker.queues["orders"].ready] == ["a"]


def test_a_fault_of_the_supervisor_is_told_and_does_not_end_it(
    rig: MakeRig, complaints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = rig().start()
    turns: list[float] = []

    def nudge() -> None:
        turns.append(it.reactor.seconds())
        raise RuntimeError("a fault")

    monkeypatch.setattr(it.consumer("orders").workers, "nudge", nudge)
    it.reactor.pass_time(3 * SUPERVISE_SECONDS)
    assert len(turns) == 3
    assert complaints == ["a fault of rpcd"] * 3
    complaints.clear()


def test_the_second_signal_hurries(rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    guards: list[float] = []
    monkeypatch.setattr(ending, "guard", lambda seconds, _pidfile: guards.append(seconds))
    gate = Gate()
    it = rig(orders=gate).start()
    it.put("orders", "a")
    gate.entered("a")
    signal.raise_signal(signal.SIGTERM)
    it.reactor.run()
    assert it.reactor.stops == 0
    signal.raise_signal(signal.SIGINT)
    it.reactor.pass_time(5.0)
    assert it.reactor.stops == 1
    assert ending.exit_code() == ExitCode.TEMPFAIL
    assert len(guards) == 1
    assert guards[0] > 30.0


# Halting ------------------------------------------------------------------------------------------


def halting(*arguments: Any) -> Gate:
    gate = Gate(shut=False)
    gate.says("halt", HaltConsumer(*arguments))
    return gate


def test_the_last_halt_waits_for_its_neighbours_no_longer_than_a_stop_does(rig: MakeRig) -> None:
    gate = Gate()
    gate.says("halt", HaltConsumer())
    it = rig(orders=gate, workers=2, drain_timeout=5.0).start()
    it.put("orders", "slow", "halt")
    gate.entered("slow", "halt")
    gate.let("halt")
    it.until(lambda: it.daemon._stopping)
    it.reactor.pass_time(10.0)
    assert it.daemon._stopped.happened
    assert ending.exit_code() == ExitCode.TEMPFAIL


def test_a_halt_ends_its_consumer_and_the_last_one_the_process(rig: MakeRig, broker: Broker) -> None:
    it = rig(orders=halting(0), invoices=halting(0)).start()
    it.put("orders", "halt")
    it.until(lambda: it.consumer("orders").drained.happened)
    it.reactor.pass_time(NOW)
    assert it.reactor.stops == 0
    it.put("invoices", "good")
    it.until(lambda: broker.queues["invoices"].acked == ["good"])
    it.put("invoices", "halt")
    it.until(lambda: it.reactor.stops == 1)
    assert ending.exit_code() == ExitCode.OK
    assert broker.queues["orders"].acked == ["halt"]


def test_a_halt_with_a_code_ends_all_consumers_with_it(rig: MakeRig, broker: Broker) -> None:
    it = rig(orders=halting(3, "enough"), invoices=Gate(shut=False)).start()
    it.put("orders", "halt")
    it.until(lambda: it.reactor.stops == 1)
    assert ending.exit_code() == 3
    assert broker.queues["orders"].acked == ["halt"]
    assert broker.live == []


def test_a_process_that_has_lost_too_many_threads_ends(
    rig: MakeRig, reactor: Reactor, complaints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "MOST_LOST", 1)
    entered, go_on = threading.Event(), threading.Event()

    def stuck(_message: Any) -> None:
        entered.set()
        assert go_on.wait(LONGEST)

    it = rig(orders=stuck, time_limit=0.01, drain_timeout=5.0).start()
    it.put("orders", "a")
    assert entered.wait(LONGEST)
    it.until(lambda: (reactor.advance(0.5), it.daemon._stopping)[1] or _again(reactor))
    reactor.pass_time(10.0)
    go_on.set()
    assert ending.exit_code() == ExitCode.SOFTWARE
    assert any("threads are stuck" in complaint for complaint in complaints)
    complaints.clear()


def _again(reactor: Reactor) -> bool:
    """Look again at once."""
    reactor.callFromThread(lambda: None)
    return False
