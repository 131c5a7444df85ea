"""One consumer with real threads over the fake wire: start, trouble, redelivery, overdue, halt, drain."""

import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from amqp_rig import Gate, Rig, events
from amqp_wire import LONGEST, Broker, Chan, Reactor, in_pieces
from pika import spec

from rpcd.amqp import consumer as consumer_module
from rpcd.amqp.declare import STEP_SECONDS
from rpcd.amqp.drain import BATCH, LINGER, PACE, SAFE
from rpcd.amqp.port import ABORT_AFTER
from rpcd.amqp.worker import DaemonPool
from rpcd.core import settings
from rpcd.core.errors import (
    Drop,
    ExitCode,
    HaltConsumer,
    Nack,
    PermanentFailure,
    PublishRefused,
    Retry,
    TimeLimitPassed,
    Unroutable,
)

REPLY_TO = "amq.gen-caller"

MakeRig = Callable[..., Rig]


def settlements(story: list[str]) -> list[str]:
    """What was settled, in order."""
    return list(events(story, "ack", "requeue", "reject"))


# The start ----------------------------------------------------------------------------------------


def test_a_start_declares_probes_then_consumes_with_its_prefetch(rig: MakeRig, broker: Broker) -> None:
    it = rig(Gate(), workers=3).start()
    asked = [method for _, method in it.link.methods]
    declared = [method.queue for method in asked if isinstance(method, spec.Queue.Declare)]
    assert declared == ["orders.archive", *(f"orders.retry.{step}" for step in (200, 1000, 60000, 1800000)), "orders"]
    (qos,) = [method for method in asked if isinstance(method, spec.Basic.Qos)]
    assert (qos.prefetch_count, qos.global_qos) == (6, False)
    names = [method.NAME for method in asked]
    assert names.index("Basic.Qos") < names.index("Basic.Consume")
    assert it.consumer.consuming
    assert it.consumer.stats.connections == 1


@pytest.mark.parametrize("sizes", [[1], [2], [3], [5], [7], [1, 4, 2, 7, 3]])
def test_everything_works_in_small_pieces(rig: MakeRig, broker: Broker, sizes: list[int]) -> None:
    broker.pieces = in_pieces(sizes)
    gate = Gate(shut=False)
    gate.says("replies", {"x": 1})
    gate.says("archives", PermanentFailure("no"))
    it = rig(gate, workers=2).start()
    it.put("replies", "archives", "c", reply_to=REPLY_TO, headers={"a": [1, {"b": "c"}]})
    it.until(lambda: len(it.source.acked) == 3)
    assert [link.fault for link in broker.links] == [None, None]
    assert sum(each.key == REPLY_TO for each in broker.published) == 3


def test_it_consumes_only_when_what_it_publishes_can_be_published(rig: MakeRig, broker: Broker, reactor: Reactor) -> None:
    it = rig(Gate())
    it.consumer.start()
    it.until(lambda: it.consumer.workers.ready.happened)
    reactor.pass_time(3.0)
    assert "Basic.Consume" not in broker.story
    it.publisher.start()
    it.until(lambda: it.consumer.consuming)


def test_it_consumes_only_when_there_is_an_instance_to_handle_with(
    rig: MakeRig, broker: Broker, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    may, made = threading.Event(), threading.Event()

    class Handler:
        def __init__(self) -> None:
            made.set()
            assert may.wait(LONGEST)

        def __call__(self, message: Any) -> None:
            pass

    it = rig(Handler)
    it.publisher.start()
    it.consumer.start()
    assert made.wait(LONGEST)
    reactor.pass_time(3.0)
    assert "Basic.Consume" not in broker.story
    may.set()
    it.until(lambda: it.consumer.consuming)


def test_a_loss_while_it_waits_for_the_publisher(rig: MakeRig, broker: Broker, reactor: Reactor) -> None:
    it = rig(Gate())
    it.consumer.start()
    reactor.pass_time(1.0)
    (link,) = broker.live
    link.rst()
    reactor.pass_time(5.0)
    assert len(broker.live) == 1
    it.publisher.start()
    it.until(lambda: it.consumer.consuming)


@pytest.mark.parametrize(
    "unanswered", ["Channel.Open", "Queue.Declare", "Channel.Close", "Basic.Get", "Basic.Qos", "Basic.Consume"]
)
def test_every_step_of_a_start_has_an_end(rig: MakeRig, broker: Broker, reactor: Reactor, unanswered: str) -> None:
    it = rig(Gate())
    it.publisher.start()
    reactor.run()
    broker.silent.add(unanswered)
    it.consumer.start()
    it.until(lambda: it.consumer.workers.ready.happened)
    reactor.pass_time(STEP_SECONDS + ABORT_AFTER + 1.0)
    assert broker.links[1].is_lost
    broker.silent.clear()
    it.again()


def test_a_message_that_comes_with_consume_ok_is_handled(rig: MakeRig, broker: Broker) -> None:
    broker.queue("orders").put(b'{"name": "early"}', name="early")
    it = rig(Gate(shut=False)).start()
    it.until(lambda: it.source.acked == ["early"])


def test_a_queue_that_the_broker_names(rig: MakeRig) -> None:
    gate = Gate(shut=False)
    it = rig(gate, queue={"name": ""}).start()
    assert it.link.consuming.consumers
    (source,) = it.link.consuming.consumers.values()
    assert source.name.startswith("amq.gen-")
    source.put(b'{"name": "a"}', name="a")
    it.until(lambda: source.acked == ["a"])


@pytest.mark.parametrize(
    ("code", "text", "exit_code"),
    [
        (403, "ACCESS_REFUSED - read access to queue 'orders' in vhost '/' refused for user 'shop'", ExitCode.NOPERM),
        (403, "ACCESS_REFUSED - queue 'orders' in vhost '/' in exclusive use", None),
        (404, "NOT_FOUND - no queue 'orders' in vhost '/'", None),
    ],
)
def test_a_refused_consumer_is_told_if_a_person_has_to_mend_it(
    rig: MakeRig, broker: Broker, reactor: Reactor, code: int, text: str, exit_code: ExitCode | None
) -> None:
    broker.answers["Basic.Consume"] = lambda chan, _method: chan.close(code, text)
    it = rig(Gate())
    it.publisher.start()
    it.consumer.start()
    it.until(lambda: it.consumer.workers.ready.happened)
    reactor.pass_time(5.0)
    assert [error.exit_code for error in it.refused] == ([exit_code] if exit_code is not None else [])
    assert it.consumer.connection.trouble is not None
    assert text in it.consumer.connection.trouble


# Settling over the wire ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_random_ends_of_many_threads_never_cost_the_channel(rig: MakeRig, broker: Broker, seed: int) -> None:
    dice = random.Random(seed)
    seen: Counter[int] = Counter()
    words = {n: dice.choice(["returns", "replies", "drops", "requeues", "archives", "retries"]) for n in range(200)}
    mutex = threading.Lock()

    def handler(message: Any) -> Any:
        number = int(message.body["name"])
        with mutex:
            seen[number] += 1
        word = words[number]
        for _ in range((number * 7919) % 97):
            pass
        if word == "drops":
            raise Drop
        if word == "archives":
            raise PermanentFailure
        if word == "retries":
            raise Retry
        if word == "requeues" and seen[number] == 1:
            raise Nack(delay=0)
        return {"n": number} if word == "replies" else None

    it = rig(handler, workers=8).start()
    link = it.link
    for number in range(200):
        it.put(number, reply_to=REPLY_TO if words[number] == "replies" else None)
    it.until(lambda: len(it.source.acked) + len(it.source.rejected) == 200)
    dropped = {number for number, word in words.items() if word == "drops"}
    assert set(it.source.rejected) == dropped
    assert sorted(it.source.acked) == [number for number in range(200) if number not in dropped]
    assert (link.is_lost, link.fault) == (False, None)
    assert len(broker.links) == 2
    assert all(seen[number] == (2 if word == "requeues" else 1) for number, word in words.items())
    assert broker.queues["orders.archive"].ready
    stats = it.consumer.stats
    assert (stats.received, stats.rejected) == (200 + sum(n - 1 for n in seen.values()), len(dropped))


def test_a_returned_reply_is_counted_and_costs_nothing(rig: MakeRig, broker: Broker) -> None:
    broker.missing.add(REPLY_TO)
    gate = Gate(shut=False)
    gate.says("a", {})
    it = rig(gate).start()
    it.put("a", reply_to=REPLY_TO, correlation_id="c")
    it.until(lambda: it.consumer.stats.replies_unroutable == 1)
    assert it.source.acked == ["a"]
    assert it.consumer.consuming


def test_a_returned_reply_with_a_correlation_id_that_is_no_text(rig: MakeRig, broker: Broker) -> None:
    broker.missing.add(REPLY_TO)
    gate = Gate(shut=False)
    gate.says("a", {})
    it = rig(gate).start()
    raw = b"\x06\x00\x02\xff\xfe" + bytes((len(REPLY_TO),)) + REPLY_TO.encode()
    it.source.put(b'{"name": "a"}', raw, name="a")
    it.until(lambda: it.consumer.stats.replies_unroutable == 1)
    assert it.link.fault is None
    assert broker.published[-1].properties.correlation_id == b"\xff\xfe"


@pytest.mark.parametrize(
    ("claimed", "key"),
    [
        ("x" * 300, None),
        ("x" * 300, "k"),
        ("shop", "k" * 300),
        ("nowhere", "k"),
        (17, "k"),
        (None, "k"),
        ({"a": 1}, "k"),
        ("shop", b"\xff"),
    ],
)
def test_a_client_that_claims_a_strange_exchange_disturbs_nobody(
    rig: MakeRig, broker: Broker, reactor: Reactor, claimed: Any, key: Any
) -> None:
    """What goes through the default exchange to the queue itself may look like a copy that came back from a retry."""
    gate = Gate(shut=False)
    gate.says("hostile", {})
    gate.says("good", {})
    it = rig(gate, workers=1, reply_via="request-exchange").start()
    broker.exchanges.add("shop")
    it.put("hostile", reply_to=REPLY_TO, headers={"x-rpcd-exchange": claimed, "x-rpcd-routing-key": key})
    it.source.put(b'{"name": "good"}', name="good", exchange="shop", key="k", reply_to=REPLY_TO)
    it.until(lambda: len(it.handler.order) == 2)
    it.until(lambda: "good" in it.source.acked)
    reactor.pass_time(100.0)
    assert [each.exchange for each in broker.published if each.key == REPLY_TO][-1:] == ["shop"]
    assert sorted(it.source.acked) == ["good", "hostile"]
    assert len(broker.links) == 2
    assert gate.order == ["hostile", "good"]


def test_a_handler_that_spoils_its_message_stops_nobody(rig: MakeRig) -> None:
    gate = Gate(shut=False)

    def spoil(message: Any) -> None:
        message.payload = message.body = None

    it = rig(gate, workers=1).start()
    for name in ("a", "b", "c"):
        gate.says(name, spoil)
        it.put(name, message_id=name)
    it.until(lambda: sorted(it.source.acked) == ["a", "b", "c"])
    assert gate.order == ["a", "b", "c"]


def test_a_fault_of_rpcd_while_settling_is_loud_and_loses_nothing(
    rig: MakeRig, broker: Broker, reactor: Reactor, complaints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = rig(Gate(shut=False), workers=1).start()
    whole, broken = it.consumer.settlement.finished, [True]

    def finished(jobs: list[Any]) -> None:
        if broken.pop() if broken else False:
            raise RuntimeError("a fault of rpcd")
        whole(jobs)

    monkeypatch.setattr(it.consumer.settlement, "finished", finished)
    it.put("a")
    it.until(lambda: not broken and it.consumer.connection.trouble is not None)
    reactor.pass_time(5.0)
    it.until(lambda: it.source.acked == ["a"])
    assert len(broker.links) == 3
    assert any("a fault of rpcd while settling" in each for each in complaints)
    complaints.clear()


def test_a_blocked_connection_goes_on(rig: MakeRig, caplog: pytest.LogCaptureFixture) -> None:
    it = rig(Gate(shut=False)).start()
    it.link.blocked("low on memory")
    it.put("a")
    it.until(lambda: it.source.acked == ["a"])
    assert "low on memory" in caplog.text


# Trouble ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["fin", "rst", "close", "channel", "cancel"])
def test_it_comes_back_from_every_kind_of_loss(rig: MakeRig, broker: Broker, end: str) -> None:
    gate = Gate()
    it = rig(gate, workers=2).start()
    it.put("a", "b", "c", message_id=None)
    gate.entered("a", "b")
    link = it.link
    mark = len(broker.story)
    if end == "close":
        link.close(320, "CONNECTION_FORCED")
    elif end == "channel":
        link.consuming.close(406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out")
    elif end == "cancel":
        link.consuming.cancel()
    else:
        getattr(link, end)()
    it.reactor.run()
    it.again()
    assert link.is_lost
    gate.let_all()
    it.until(lambda: sorted(it.source.acked) == ["a", "b", "c"])
    it.until(lambda: it.consumer.stats.stale_settlements == 2)
    assert settlements(broker.since(mark)).count("ack 1") <= 1
    assert it.consumer.stats.connections == 2


def test_a_handler_that_still_runs_is_joined_and_its_outcome_is_settled_on_the_new_channel(
    rig: MakeRig, broker: Broker
) -> None:
    gate = Gate()
    gate.says("a", {"n": 1})
    it = rig(gate).start()
    it.put("a", message_id="m", reply_to=REPLY_TO)
    gate.entered("a")
    it.link.rst()
    it.again()
    gate.let("a")
    it.until(lambda: it.source.acked == ["a"])
    assert gate.order == ["a"]
    assert broker.published[-1].chan.link is it.link
    assert list(events(broker.story, "publish", "ack"))[-2:] == [f"publish {REPLY_TO}", "ack 1"]


def test_an_ack_that_was_lost_is_given_again_and_its_reply_repeated(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    gate.says("a", {"n": 1})
    it = rig(gate).start()
    it.put("a", message_id="m", reply_to=REPLY_TO)
    gate.entered("a")
    it.link.deaf = True
    gate.let("a")
    it.until(lambda: it.consumer.stats.acked == 1)
    it.link.rst()
    it.again()
    it.until(lambda: it.source.acked == ["a"])
    assert gate.order == ["a"]
    assert [json.loads(each.body)["data"] for each in broker.published if each.key == REPLY_TO] == [{"n": 1}]


def test_ambiguous_ids_run_again(rig: MakeRig, broker: Broker) -> None:
    it = rig(Gate(shut=False)).start()
    for _ in range(2):
        it.source.put(b'{"name": "same"}', name="same", message_id="m")
    it.reactor.run()
    it.until(lambda: it.consumer.stats.acked == 2)
    for _ in range(2):
        it.source.put(b'{"name": "same"}', name="same", message_id="m")
    it.link.deaf = True
    it.until(lambda: it.consumer.stats.acked == 4)
    it.link.rst()
    it.again()
    it.until(lambda: it.source.acked == ["same"] * 4)
    assert it.handler.order == ["same"] * 6


def test_unstarted_jobs_of_a_lost_connection_never_run(rig: MakeRig) -> None:
    gate = Gate()
    it = rig(gate, prefetch=5).start()
    it.put(*"abcde", message_id=None)
    gate.entered("a")
    it.link.rst()
    it.reactor.run()
    assert it.consumer.workers.take_back() == []
    it.source.ready.clear()
    it.again()
    gate.let("a")
    it.until(lambda: it.consumer.stats.stale_settlements == 1)
    it.put("f")
    gate.entered("f")
    assert gate.order == ["a", "f"]


class Chaos:
    """Messages that come, connections that go, by the throw of dice; handlers that archive, publish and answer."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.ran: Counter[int] = Counter()
        self.given = 0
        self._mutex = threading.Lock()

    def __call__(self, message: Any) -> Any:
        number = int(message.body["name"])
        with self._mutex:
            self.ran[number] += 1
        for _ in range((number * 7919) % 997):
            pass
        if number % 7 == 0:
            raise PermanentFailure("no")
        if number % 5 == 0:
            message.publish("", "event", {"n": number})
        return {"n": number}

    def put(self, it: Rig) -> None:
        for _ in range(self.dice.randint(0, 6)):
            number = self.given
            named: dict[str, Any] = {"message_id": f"m{number}"} if number % 3 else {}
            if number % 4 == 0:
                named["reply_to"] = REPLY_TO
            it.source.put(b'{"name": "%d"}' % number, name=number, headers={"k": number % 5}, **named)
            self.given += 1

    def cut(self, broker: Broker) -> None:
        for link in broker.live:
            if self.dice.random() < 0.1:
                end = self.dice.choice(["fin", "rst", "close"])
                link.close(320, "CONNECTION_FORCED") if end == "close" else getattr(link, end)()
            elif self.dice.random() < 0.05:
                link.deaf = True


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_cut_whenever_nothing_is_lost(rig: MakeRig, broker: Broker, seed: int) -> None:
    chaos = Chaos(seed)
    it = rig(chaos, workers=4, prefetch=16, lock="headers.k" if seed % 2 else None).start()
    for _ in range(60):
        chaos.put(it)
        chaos.cut(broker)
        it.reactor.pass_time(chaos.dice.choice([0.0, 0.1, 1.0]))
    for link in broker.live:
        link.rst()
    it.reactor.pass_time(60.0)
    it.until(lambda: len(set(it.source.acked)) == chaos.given, "messages are left")
    numbers = range(chaos.given)
    assert sorted(it.source.acked) == list(numbers)
    assert it.source.rejected == []
    assert all(chaos.ran[number] for number in numbers)
    archived = {json.loads(each.body)["name"] for each in broker.queues["orders.archive"].ready}
    assert archived == {str(number) for number in numbers[::7]}
    replied = {json.loads(each.body)["data"].get("n") for each in broker.published if each.key == REPLY_TO}
    assert {number for number in numbers[::4] if number % 7} <= replied
    assert all(link.fault is None for link in broker.links)


# Publishing from a handler ------------------------------------------------------------------------


def test_publish_now_returns_when_it_is_confirmed(rig: MakeRig, broker: Broker) -> None:
    broker.confirms = False
    told: list[Any] = []

    def handler(message: Any) -> None:
        told.append(message.publish_now("", "event", {"a": 1}))

    it = rig(handler).start()
    it.put("a")
    it.until(lambda: "event" in broker.routing_keys())
    assert told == []
    broker.published[-1].chan.confirm(1)
    it.until(lambda: it.source.acked == ["a"])
    assert told == [None]


@pytest.mark.parametrize(
    ("exchange", "options", "kind"),
    [("no-such", {}, PublishRefused), ("", {"mandatory": True}, Unroutable)],
)
def test_publish_now_raises_what_went_wrong(
    rig: MakeRig, broker: Broker, exchange: str, options: dict[str, Any], kind: type[Exception]
) -> None:
    broker.missing.add("event")
    raised: list[BaseException] = []

    def handler(message: Any) -> None:
        try:
            message.publish_now(exchange, "event", {}, **options)
        except Exception as error:  # noqa: BLE001
            raised.append(error)

    it = rig(handler).start()
    it.put("a")
    it.until(lambda: it.source.acked == ["a"])
    assert [type(error) for error in raised] == [kind]


def test_a_failing_handlers_held_back_publications_never_leave(rig: MakeRig, broker: Broker) -> None:
    def handler(message: Any) -> None:
        message.publish("", "event", {})
        raise Drop

    it = rig(handler).start()
    it.put("a")
    it.until(lambda: it.source.rejected == ["a"])
    assert broker.routing_keys() == []


# Overdue ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("clocked")
def test_an_overdue_request_is_archived_answered_and_acked_and_its_late_end_ignored(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    gate.says("stuck", lambda message: message.publish("", "never", {}))
    it = rig(gate, workers=2, time_limit=60.0).start()
    it.put("stuck", reply_to=REPLY_TO)
    gate.entered("stuck")
    it.reactor.pass_time(59.0)
    assert it.source.acked == []
    it.reactor.pass_time(3.0)
    it.until(lambda: it.source.acked == ["stuck"])
    assert [key for key in broker.routing_keys() if key in ("orders.archive", REPLY_TO)] == ["orders.archive", REPLY_TO]
    assert it.consumer.stats.overdue == 1
    it.put("next")
    gate.entered("next")
    gate.let("stuck", "next")
    it.until(lambda: it.consumer.workers.lost == 0)
    it.until(lambda: it.source.acked == ["stuck", "next"])
    assert "never" not in broker.routing_keys()
    assert it.exhausted == 0


@pytest.mark.usefixtures("clocked")
def test_too_many_lost_threads_are_told(rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "MOST_LOST", 2)
    gate = Gate()
    it = rig(gate, workers=2, time_limit=60.0).start()
    it.put("a")
    gate.entered("a")
    it.reactor.pass_time(61.5)
    assert (it.consumer.workers.lost, it.exhausted) == (1, 0)
    it.put("b")
    gate.entered("b")
    it.reactor.pass_time(62.0)
    assert it.consumer.workers.lost == 2
    assert it.exhausted > 0


@pytest.mark.usefixtures("clocked")
def test_what_is_overdue_publishes_nothing_any_more(rig: MakeRig, broker: Broker) -> None:
    entered, go_on = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def handler(message: Any) -> None:
        entered.set()
        assert go_on.wait(LONGEST)
        try:
            message.publish_now("", "late", {})
        except TimeLimitPassed as error:
            raised.append(error)

    it = rig(handler, workers=1, time_limit=60.0).start()
    it.put("a")
    assert entered.wait(LONGEST)
    it.reactor.pass_time(62.0)
    go_on.set()
    it.until(lambda: it.consumer.workers.lost == 0)
    assert len(raised) == 1
    assert "late" not in broker.routing_keys()


# Draining -----------------------------------------------------------------------------------------


def test_an_idle_consumer_cancels_then_closes(rig: MakeRig, broker: Broker) -> None:
    it = rig(Gate()).start()
    mark = len(broker.story)
    it.drain()
    it.drained()
    assert broker.since(mark)[:3] == ["Basic.Cancel", "Channel.Close", "Connection.Close"]
    assert not it.consumer.consuming


def test_the_order_of_a_drain(rig: MakeRig, broker: Broker) -> None:
    """Cancel; no settlement before its answer; what has not started back in its order; what runs settles; close."""
    gate = Gate()
    it = rig(gate, workers=2, prefetch=6).start()
    it.put(*"abcdefgh")
    gate.entered("a", "b")
    link, chan = it.link, it.link.consuming
    broker.silent.add("Basic.Cancel")
    mark = len(broker.story)
    it.drain()
    it.reactor.run()
    gate.let("a")
    it.until(lambda: it.consumer.settlement._held)
    assert settlements(broker.since(mark)) == []
    chan.reply(
        spec.Basic.CancelOk(next(method.consumer_tag for _, method in link.methods if method.NAME == "Basic.Consume"))
    )
    it.reactor.run()
    assert settlements(broker.since(mark)) == ["ack 1", "requeue 3", "requeue 4", "requeue 5", "requeue 6"]
    assert chan.is_open
    assert not it.consumer.drained.happened
    gate.let("b")
    it.drained()
    said = broker.since(mark)
    assert said[:7] == ["Basic.Cancel", "ack 1", "requeue 3", "requeue 4", "requeue 5", "requeue 6", "ack 2"]
    assert said[7] == "Channel.Close"
    assert [letter.name for letter in it.source.ready] == list("cdefgh")
    assert gate.order == ["a", "b"]


def test_a_drain_settles_no_more_than_the_broker_takes_in_before_the_close(rig: MakeRig, broker: Broker) -> None:
    """A channel for a quorum queue forgets what it has not sent when it closes: acks of what ran must be among the first."""
    gate = Gate()
    it = rig(gate, workers=4, prefetch=200).start()
    it.put(*range(200))
    gate.entered("0", "1", "2", "3")
    mark = len(broker.story)
    it.drain()
    it.reactor.run()
    assert settlements(broker.since(mark)) == [f"requeue {tag}" for tag in range(5, 5 + BATCH)]
    gate.let_all()
    it.drained()
    assert len(settlements(broker.since(mark))) <= SAFE
    assert sorted(it.source.acked) == [0, 1, 2, 3]
    assert [letter.name for letter in it.source.ready] == list(range(4, 200))
    assert it.consumer.stats.requeued == 196
    assert it.consumer.went_back == 0


def test_a_drain_gives_all_back_while_a_handler_runs_and_lets_the_broker_take_it_in(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    it = rig(gate, workers=1, prefetch=50).start()
    it.put(*range(50))
    gate.entered("0")
    mark = len(broker.story)
    it.drain()
    it.reactor.pass_time(1.0, PACE)
    assert settlements(broker.since(mark)) == [f"requeue {tag}" for tag in range(2, 51)]
    gate.let_all()
    it.until(lambda: it.consumer.settlement.ledger.unsettled == 0)
    it.reactor.pass_time(LINGER - PACE, PACE)
    assert "Channel.Close" not in broker.since(mark)
    it.reactor.pass_time(PACE)
    it.drained()
    assert settlements(broker.since(mark))[-1] == "ack 1"
    assert [letter.name for letter in it.source.ready] == list(range(1, 50))


def test_a_connection_that_is_lost_takes_back_what_a_drain_still_has(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    it = rig(gate, workers=1, prefetch=50).start()
    it.put(*range(50))
    gate.entered("0")
    link = it.link
    it.drain()
    it.reactor.run()
    link.rst()
    it.reactor.pass_time(1.0, PACE)
    gate.let_all()
    it.drained()
    assert it.consumer.went_back == 50 - BATCH
    assert sorted(letter.name for letter in it.source.ready) == list(range(50))


def test_what_is_delivered_between_cancel_and_its_answer_goes_back(rig: MakeRig, broker: Broker) -> None:
    it = rig(Gate(shut=False)).start()
    source, chan = it.source, it.link.consuming

    def late(_chan: Chan, method: Any) -> None:
        source.put(b'{"name": "late"}', name="late")
        chan._forget(method.consumer_tag)
        chan.reply(spec.Basic.CancelOk(method.consumer_tag))

    broker.answers["Basic.Cancel"] = late
    it.drain()
    it.drained()
    assert [letter.name for letter in source.ready] == ["late"]
    assert it.handler.order == []
    assert settlements(broker.story) == ["requeue 1"]


def test_a_drain_publishes_confirms_and_acks_what_ran(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    gate.says("a", PermanentFailure("no"))
    it = rig(gate).start()
    it.put("a", reply_to=REPLY_TO)
    gate.entered("a")
    broker.confirms = False
    it.drain()
    it.reactor.run()
    gate.let("a")
    it.until(lambda: "orders.archive" in broker.routing_keys())
    it.reactor.run()
    assert not it.consumer.drained.happened
    broker.published[-1].chan.confirm(1)
    it.drained()
    assert it.source.acked == ["a"]
    assert broker.routing_keys() == ["orders.archive", REPLY_TO]


def test_with_a_lock_what_waits_in_a_running_lane_goes_back_after_it_has_ended(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    it = rig(gate, workers=2, lock="headers.k").start()
    it.put("a1", headers={"k": "a"})
    gate.entered("a1")
    it.put("a2", "a3", headers={"k": "a"})
    it.put("b1", headers={"k": "b"})
    gate.entered("b1")
    mark = len(broker.story)
    it.drain()
    it.reactor.run()
    gate.let("b1")
    it.until(lambda: it.source.acked == ["b1"])
    gate.let("a1")
    it.drained()
    assert settlements(broker.since(mark)) == ["ack 4", "ack 1"]
    assert [letter.name for letter in it.source.ready] == ["a2", "a3"]  # by the channel's close
    assert it.consumer.stats.requeued == 2
    assert gate.order == ["a1", "b1"]


def test_a_cancel_that_is_never_answered_costs_the_connection_only(rig: MakeRig, broker: Broker, reactor: Reactor) -> None:
    gate = Gate()
    it = rig(gate).start()
    it.put("a", "b")
    gate.entered("a")
    broker.silent.add("Basic.Cancel")
    it.drain()
    reactor.pass_time(STEP_SECONDS + 0.5)
    gate.let("a")
    it.drained()
    assert broker.links[1].aborted
    assert [letter.name for letter in it.source.ready] == ["a", "b"]
    assert gate.order == ["a"]


@pytest.mark.parametrize("end", ["fin", "rst", "close", "cancel", "channel"])
def test_a_loss_in_the_middle_of_a_drain(rig: MakeRig, broker: Broker, end: str) -> None:
    gate = Gate()
    it = rig(gate).start()
    it.put("a", "b")
    gate.entered("a")
    it.drain()
    it.reactor.run()
    link = broker.links[1]
    (chan,) = [chan for chan in link.chans.values() if chan.is_open]
    if end == "close":
        link.close(320, "CONNECTION_FORCED")
    elif end == "channel":
        chan.close(406, "PRECONDITION_FAILED - timed out")
    elif end == "cancel":
        chan.reply(spec.Basic.Cancel("whatever", True))
    else:
        getattr(link, end)()
    it.reactor.run()
    gate.let("a")
    it.drained()
    assert len(broker.links) == 2
    assert sorted(letter.name for letter in it.source.ready) == ["a", "b"]


def test_a_drain_while_there_is_no_connection(rig: MakeRig, broker: Broker, reactor: Reactor) -> None:
    gate = Gate()
    it = rig(gate).start()
    it.put("a")
    gate.entered("a")
    reactor.listener = None
    it.link.rst()
    reactor.pass_time(10.0)
    it.drain()
    it.reactor.run()
    assert not it.consumer.drained.happened
    gate.let("a")
    it.drained()
    assert it.consumer.stats.stale_settlements == 1


@pytest.mark.parametrize("at", ["Queue.Declare", "Confirm.Select", "Basic.Get", "Basic.Qos", "Basic.Consume"])
def test_a_drain_in_the_middle_of_a_start(rig: MakeRig, broker: Broker, reactor: Reactor, at: str) -> None:
    it = rig(Gate())
    it.publisher.start()
    reactor.run()
    broker.silent.add(at)
    it.consumer.start()
    it.until(lambda: it.consumer.workers.ready.happened and at in broker.story)
    reactor.run()
    it.drain()
    reactor.pass_time(ABORT_AFTER + STEP_SECONDS + 1.0)
    it.drained()
    assert broker.links[1].is_lost


def test_a_drain_waits_for_a_run_whose_connection_has_gone(rig: MakeRig, broker: Broker) -> None:
    """Nothing can be settled for it any more; when it ends, the drain goes on."""
    gate = Gate()
    it = rig(gate, workers=2).start()
    it.put("stale")
    gate.entered("stale")
    it.link.rst()
    it.source.ready.clear()
    it.again()
    it.drain()
    it.reactor.run()
    assert not it.consumer.drained.happened
    gate.let("stale")
    it.until(lambda: it.consumer.stats.stale_settlements == 1)
    it.reactor.pass_time(ABORT_AFTER + 1.0)
    it.until(lambda: it.consumer.drained.happened, "the drain hangs", 2.0)


def test_a_drain_gives_back_what_would_be_retried_in_the_process(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    gate.says("a", Retry())
    it = rig(gate, queue={"exclusive": True, "name": "orders"}, retry=settings.Retry(delays=[5.0])).start()
    it.put("a")
    gate.entered("a")
    it.drain()
    it.reactor.run()
    gate.let("a")
    it.until(lambda: not it.consumer.workers.running)
    it.until(lambda: it.consumer.stats.retried == 1 or it.consumer.drained.happened)
    it.reactor.pass_time(10.0)
    it.until(lambda: it.consumer.drained.happened, "the drain hangs", 2.0)
    assert [letter.name for letter in it.source.ready] == ["a"]


def test_a_drain_gives_back_what_sleeps_in_the_process(rig: MakeRig, broker: Broker) -> None:
    gate = Gate(shut=False)
    gate.says("a", Retry())
    it = rig(gate, queue={"exclusive": True, "name": "orders"}, retry=settings.Retry(delays=[5.0])).start()
    it.put("a")
    it.until(lambda: it.consumer.stats.retried == 1)
    it.drain()
    it.drained()
    assert settlements(broker.story) == ["requeue 1"]


def test_a_retry_in_the_process_runs_again_after_its_step(rig: MakeRig) -> None:
    attempts: list[int] = []

    def handler(message: Any) -> None:
        attempts.append(message.attempt)
        if message.attempt < 3:
            raise Retry

    it = rig(handler, queue={"exclusive": True, "name": "orders"}, retry=settings.Retry(delays=[5.0, 5.0])).start()
    it.put("a")
    it.until(lambda: it.consumer.stats.retried == 1)
    it.reactor.pass_time(4.5)
    assert attempts == [1]
    it.reactor.pass_time(1.0)
    it.until(lambda: it.consumer.stats.retried == 2)
    it.reactor.pass_time(5.5)
    it.until(lambda: it.source.acked == ["a"])
    assert attempts == [1, 2, 3]


def test_a_drain_settles_what_a_failing_instance_ran(rig: MakeRig, broker: Broker) -> None:
    entered, go_on = threading.Event(), threading.Event()
    log: list[str] = []

    class Handler:
        def __call__(self, message: Any) -> None:
            entered.set()
            assert go_on.wait(LONGEST)
            raise ValueError("no")

        def shutdown(self, exception: BaseException | None) -> None:
            log.append(f"{type(exception).__name__} {broker.queues['orders'].rejected}")

    it = rig(Handler, on_error="drop").start()
    it.put("a")
    assert entered.wait(LONGEST)
    it.drain()
    it.reactor.run()
    go_on.set()
    it.drained()
    assert log[0] == "ValueError ['a']"  # a fresh instance may have come and gone after that


def test_draining_twice_is_draining_once(rig: MakeRig, broker: Broker) -> None:
    it = rig(Gate()).start()
    it.drain()
    it.drain()
    it.drained()
    assert broker.story.count("Basic.Cancel") == 1


def test_abandoning_tells_how_much_goes_back(rig: MakeRig, broker: Broker, reactor: Reactor) -> None:
    gate = Gate()
    it = rig(gate, workers=2, prefetch=4).start()
    it.put(*"abcdef")
    gate.entered("a", "b")
    it.drain()
    reactor.run()
    assert it.consumer.abandon() == 2
    reactor.run()
    assert broker.links[1].aborted
    assert sorted(letter.name for letter in it.source.ready) == list("abcdef")


# Halting ------------------------------------------------------------------------------------------


def test_a_halt_acks_its_message_gives_back_the_rest_and_ends(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    gate.says("a", HaltConsumer(0, "enough"))
    it = rig(gate, workers=2, prefetch=6).start()
    it.put(*"abcdef")
    gate.entered("a", "b")
    mark = len(broker.story)
    gate.let("a")
    it.until(lambda: it.halts)
    gate.let("b")
    it.drained()
    said = [line for line in broker.since(mark) if not line.startswith("Connection")]
    assert said[0] == "Basic.Cancel"
    assert said[-1] == "Channel.Close"
    assert sorted(said[1:-1]) == ["ack 1", "ack 2", "requeue 3", "requeue 4", "requeue 5", "requeue 6"]
    assert [line for line in said if line.startswith("requeue")] == [f"requeue {tag}" for tag in (3, 4, 5, 6)]
    assert gate.order == ["a", "b"]
    assert [(halt.exit_code, halt.reason) for halt in it.halts] == [(0, "enough")]


def test_a_halt_by_policy_gives_its_message_back_as_well(rig: MakeRig, broker: Broker, complaints: list[str]) -> None:
    gate = Gate()
    gate.says("a", ValueError("no"))
    it = rig(gate, workers=1, prefetch=3, on_error="halt").start()
    it.put(*"abc")
    gate.entered("a")
    gate.let("a")
    it.drained()
    assert settlements(broker.story) == ["requeue 1", "requeue 2", "requeue 3"]
    assert [letter.name for letter in it.source.ready] == ["a", "b", "c"]
    assert [halt.exit_code for halt in it.halts] == [ExitCode.SOFTWARE]
    assert complaints == ["given back to the queue: halted (ValueError)"]
    complaints.clear()


def test_several_handlers_halt_one_after_the_other(rig: MakeRig, broker: Broker) -> None:
    """What all of them need has gone; the last one finds out when the consumer is cancelled already."""
    gate = Gate()
    for name in "abc":
        gate.says(name, HaltConsumer(0, "the disk is full"))
    it = rig(gate, workers=4, prefetch=4).start()
    it.put(*"abcd")
    gate.entered(*"abcd")
    gate.let("a")
    it.until(lambda: it.source.acked == ["a"])
    gate.let("b")
    it.until(lambda: len(it.halts) == 2)
    gate.let("c", "d")
    it.until(lambda: it.consumer.drained.happened, "the drain hangs", 2.0)
    assert sorted(it.source.acked) == ["a", "b", "c", "d"]


def test_a_halt_while_draining_for_another_reason(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    gate.says("a", HaltConsumer(3))
    it = rig(gate).start()
    it.put("a")
    gate.entered("a")
    it.drain()
    it.reactor.run()
    gate.let("a")
    it.until(lambda: it.consumer.drained.happened, "the drain hangs", 2.0)
    assert it.source.acked == ["a"]
    assert [halt.exit_code for halt in it.halts] == [3]


def test_a_halt_whose_connection_is_lost_before_it_ends(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    gate.says("a", HaltConsumer(0))
    it = rig(gate).start()
    it.put("a", message_id="m")
    gate.entered("a")
    it.link.rst()
    it.again()
    gate.let("a")
    it.drained()
    assert len(it.halts) >= 1
    assert it.source.acked == ["a"]
    assert gate.order == ["a"]


def test_a_halted_consumer_whose_reply_is_never_confirmed_ends_all_the_same(
    rig: MakeRig, broker: Broker, clocked: Reactor
) -> None:
    gate = Gate()
    gate.says("a", HaltConsumer(0))
    it = rig(gate, reply_confirm=True).start()
    broker.full.add(REPLY_TO)
    it.put("a", reply_to=REPLY_TO)
    gate.entered("a")
    gate.let("a")
    it.until(lambda: REPLY_TO in broker.routing_keys())
    clocked.pass_time(70.0)
    assert it.consumer.drained.happened or it.halts, "it takes nothing more, and nobody knows"


def test_a_pool_is_left_as_it_was(rig: MakeRig, pool: DaemonPool) -> None:
    it = rig(Gate(shut=False), workers=4).start()
    it.put(*"abcd")
    it.until(lambda: len(it.source.acked) == 4)
    it.drain()
    it.drained()
    assert it.consumer.workers.workers == []
    assert it.consumer.workers.lost == 0
