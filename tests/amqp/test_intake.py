"""Suspects over the fake wire: alone at the head of the queue and in the middle of the stream, whatever else happens."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from amqp_rig import Gate, Rig, events, spread_time
from amqp_wire import Broker, Chan, Reactor
from pika import frame, spec

from rpcd.amqp.declare import STEP_SECONDS
from rpcd.core.errors import HaltConsumer, Nack
from rpcd.core.wire import get_frame

MakeRig = Callable[..., Rig]


def begin(it: Rig, gate: Gate, name: str) -> None:
    """Start, until a suspect runs alone."""
    it.publisher.start()
    it.consumer.start()
    it.until(lambda: it.consumer.intake.alone is not None)
    gate.entered(name)


def came_back(it: Rig, *names: str, count: int = 3, **properties: Any) -> None:
    """Put in messages that have come back so often, as the broker delivers them."""
    for name in names:
        properties["headers"] = {"x-delivery-count": count}
        it.source.put(f'{{"name": "{name}"}}'.encode(), name=name, redelivered=True, message_id=name, **properties)
    it.reactor.run()


def only_channel(broker: Broker) -> Chan:
    """The channel of the consumer's connection."""
    (chan,) = broker.live[-1].chans.values()
    return chan


def taken(story: list[str]) -> list[str]:
    """What a consumer's connection did, by the names of the methods, from its prefetch or its first look on."""
    return [line for line in story if line in ("Basic.Get", "Basic.Qos", "Basic.Consume", "Basic.Cancel")]


def test_it_looks_at_the_head_of_the_queue_once_if_nothing_came_back(rig: MakeRig, broker: Broker) -> None:
    it = rig(Gate(shut=False))
    it.put("a", "b")
    it.start()
    it.until(lambda: it.source.acked == ["a", "b"])
    assert taken(broker.story) == ["Basic.Get", "Basic.Qos", "Basic.Consume"]


def test_a_queue_that_does_not_count_is_not_looked_at(rig: MakeRig, broker: Broker) -> None:
    it = rig(Gate(shut=False), queue={"type": "classic"}).start()
    came_back(it, "a", count=19)
    it.until(lambda: it.source.acked == ["a"])
    assert taken(broker.story) == ["Basic.Qos", "Basic.Consume"]
    assert it.consumer.stats.suspects == 0


def test_suspects_at_the_head_run_one_by_one_before_all_others(
    rig: MakeRig, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    it = rig(gate, workers=4)
    came_back(it, "s1", "s2", count=4)
    it.put("a", "b", "c")
    begin(it, gate, "s1")
    for name in ("s1", "s2"):
        gate.entered(name)
        assert len(only_channel(broker).unsettled) == 1
        assert (it.consumer.state, it.consumer.why) == ("consuming", "a message that came back 4 times runs alone")
        gate.let(name)
        it.until(lambda name=name: name in it.source.acked)  # type: ignore[misc]
    gate.let_all()
    it.until(lambda: len(it.source.acked) == 5)
    assert gate.at_once[:2] == [1, 1]
    assert taken(broker.story) == ["Basic.Get"] * 3 + ["Basic.Qos", "Basic.Consume"]
    assert it.consumer.stats.suspects == 2
    assert (it.consumer.state, it.consumer.why) == ("consuming", None)
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said == [
        f"message {name} came back 4 times, perhaps because it ends the process: it runs alone" for name in ("s1", "s2")
    ]


def test_what_came_back_less_often_runs_beside_others_and_is_waited_for_by_a_suspect(rig: MakeRig) -> None:
    gate = Gate()
    it = rig(gate, workers=4)
    came_back(it, "a", "b", count=2)
    came_back(it, "s")
    it.start()
    gate.entered("a", "b")
    assert not gate.has_entered("s", 0.1)
    assert it.consumer.why == "a message that came back often will run alone, when all others have ended"
    gate.let("a", "b")
    it.until(lambda: len(it.source.acked) == 2)
    gate.entered("s")
    gate.let_all()
    it.until(lambda: sorted(it.source.acked) == ["a", "b", "s"])
    assert it.source.acked[-1] == "s"
    assert gate.at_once[-1] == 1


def test_a_suspect_in_the_stream_waits_for_what_is_in_hand_and_runs_alone(rig: MakeRig, broker: Broker) -> None:
    gate = Gate()
    it = rig(gate, workers=2, prefetch=6).start()
    it.put("a", "b", "c")
    gate.entered("a", "b")
    came_back(it, "s")
    it.put("d", "e")
    gate.let("a", "b", "c")
    it.until(lambda: len(it.source.acked) == 3)
    gate.entered("s")
    assert it.consumer.state == "consuming"
    assert it.consumer.consuming
    assert len(only_channel(broker).unsettled) == 1
    gate.let_all()
    it.until(lambda: len(it.source.acked) == 6)
    assert gate.order == ["a", "b", "c", "s", "d", "e"]
    assert len(broker.live) == 2
    assert it.consumer.consuming


def test_of_several_in_the_stream_one_runs_and_the_others_come_one_by_one(rig: MakeRig, broker: Broker) -> None:
    gate = Gate(shut=False)
    it = rig(gate, workers=2, prefetch=6).start()
    it.reactor.run()
    came_back(it, "s1", "s2", "s3")
    it.until(lambda: len(it.source.acked) == 3)
    assert gate.at_once == [1, 1, 1]
    assert it.consumer.stats.suspects == 3


def test_what_would_be_given_up_at_its_next_return_is_not_given_back(rig: MakeRig, broker: Broker) -> None:
    gate = Gate(shut=False)
    it = rig(gate, queue={"delivery_limit": 3}, workers=2, prefetch=6).start()
    came_back(it, "s1", "s2", "s3")
    it.until(lambda: it.source.acked == ["s1", "s2", "s3"])
    assert list(events(broker.story, "requeue")) == []
    assert gate.at_once == [1, 1, 1]


def test_what_gives_itself_back_is_no_suspect_the_next_time(rig: MakeRig) -> None:
    gate = Gate(shut=False)
    gate.says("n", Nack(delay=0))
    it = rig(gate, prefetch=4)
    came_back(it, "n")
    it.start()
    it.until(lambda: len(gate.order) > 3)
    gate.says("n", None)
    it.until(lambda: it.source.acked == ["n"])
    assert it.consumer.stats.suspects == 1


def test_a_refused_look_leads_to_consuming_as_ever(rig: MakeRig, broker: Broker) -> None:
    broker.answers["Basic.Get"] = lambda chan, _method: chan.close(405, "RESOURCE_LOCKED - single active consumer")
    gate = Gate(shut=False)
    it = rig(gate, workers=2, prefetch=6).start()
    it.put("a")
    it.until(lambda: it.source.acked == ["a"])
    assert len(broker.links) == 2
    came_back(it, "s1", "s2")
    it.until(lambda: len(it.source.acked) == 3)
    it.put("b", "c")
    it.until(lambda: len(it.source.acked) == 5)
    assert gate.at_once[1:3] == [1, 1]
    assert it.link.consuming.prefetch == 6


def test_a_look_that_is_never_answered_costs_the_connection(rig: MakeRig, broker: Broker, reactor: Reactor) -> None:
    broker.silent.add("Basic.Get")
    it = rig(Gate(shut=False))
    it.publisher.start()
    it.consumer.start()
    it.until(lambda: "Basic.Get" in broker.story)
    asked = broker.links[1]
    reactor.pass_time(STEP_SECONDS + 5.0)
    assert asked.is_lost
    broker.silent.clear()
    it.again()
    it.put("a")
    it.until(lambda: it.source.acked == ["a"])


@pytest.mark.parametrize("end", ["rst", "close"])
def test_a_connection_that_is_lost_while_a_suspect_runs_alone(rig: MakeRig, broker: Broker, end: str) -> None:
    gate = Gate()
    it = rig(gate, workers=2)
    came_back(it, "s")
    begin(it, gate, "s")
    if end == "rst":
        broker.live[-1].rst()
    else:
        only_channel(broker).close(406, "PRECONDITION_FAILED - delivery acknowledgement timed out")
    it.reactor.run()
    it.again()
    gate.let("s")
    it.until(lambda: it.source.acked == ["s"])
    assert gate.order == ["s"]
    assert it.consumer.stats.joined == 1


def test_a_drain_while_a_suspect_of_the_head_runs_alone(rig: MakeRig) -> None:
    gate = Gate()
    it = rig(gate, workers=2)
    came_back(it, "s")
    it.put("a", "b")
    begin(it, gate, "s")
    it.drain()
    it.reactor.run()
    gate.let("s")
    it.drained()
    assert it.source.acked == ["s"]
    assert [letter.name for letter in it.source.ready] == ["a", "b"]


def test_a_drain_while_a_suspect_of_the_stream_runs_alone(rig: MakeRig) -> None:
    gate = Gate()
    it = rig(gate, workers=2).start()
    came_back(it, "s")
    it.put("a", "b")
    gate.entered("s")
    it.drain()
    it.reactor.run()
    gate.let("s")
    it.drained()
    assert it.source.acked == ["s"]
    assert [letter.name for letter in it.source.ready] == ["a", "b"]


def test_a_drain_gives_back_a_suspect_that_waits(rig: MakeRig) -> None:
    gate = Gate()
    it = rig(gate, workers=2, prefetch=6).start()
    it.put("a")
    gate.entered("a")
    came_back(it, "s")
    it.drain()
    it.reactor.run()
    gate.let("a")
    it.drained()
    assert it.source.acked == ["a"]
    assert [letter.name for letter in it.source.ready] == ["s"]


def test_a_pause_holds_a_suspect_as_well(rig: MakeRig, reactor: Reactor) -> None:
    gate = Gate(shut=False)
    it = rig(gate).start()
    it.consumer.pause()
    came_back(it, "s")
    reactor.pass_time(60.0)
    assert gate.order == []
    it.consumer.resume()
    it.until(lambda: it.source.acked == ["s"])


def test_a_suspect_may_halt(rig: MakeRig) -> None:
    gate = Gate(shut=False)
    gate.says("s", HaltConsumer())
    it = rig(gate)
    came_back(it, "s")
    it.put("a")
    it.publisher.start()
    it.consumer.start()
    it.drained()
    assert it.source.acked == ["s"]
    assert [letter.name for letter in it.source.ready] == ["a"]


def test_an_overdue_suspect_makes_room(rig: MakeRig, reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    spread_time(reactor, monkeypatch)
    gate = Gate()
    it = rig(gate, workers=1, time_limit=5.0)
    came_back(it, "s")
    it.put("a")
    begin(it, gate, "s")
    reactor.pass_time(7.0)
    it.until(lambda: it.source.acked == ["s"])
    gate.entered("a")
    assert it.consumer.stats.overdue == 1
    gate.let_all()
    it.until(lambda: it.source.acked == ["s", "a"])


def test_get_is_one_frame_that_pika_reads() -> None:
    size, found = frame.decode_frame(get_frame(3, "orders"))
    assert size == len(get_frame(3, "orders"))
    assert isinstance(found.method, spec.Basic.Get)
    assert (found.channel_number, found.method.queue, found.method.no_ack) == (3, "orders", False)


def test_a_suspect_that_waits_for_a_key_that_nobody_frees_ends_the_process(
    rig: MakeRig, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread_time(reactor, monkeypatch)
    gate = Gate()
    it = rig(gate, workers=4, lock="headers.k", time_limit=5, prefetch=16).start()
    it.put("hang", headers={"k": 1})
    it.put("parked", headers={"k": 1})
    gate.entered("hang")
    reactor.pass_time(8)
    it.until(lambda: it.consumer.stats.overdue == 1)
    it.source.put(b"{}", name="s", redelivered=True, message_id="s", headers={"x-delivery-count": 3, "k": 2})
    reactor.pass_time(20)
    assert it.exhausted
    gate.let_all()


def test_a_stop_during_the_first_look_lets_handlers_finish(
    rig: MakeRig, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gets: list[Chan] = []
    real = Chan._get

    def get(self: Chan, method: Any) -> Any:
        gets.append(self)
        return None if len(gets) == 2 else real(self, method)  # the second answer never comes

    monkeypatch.setattr(Chan, "_get", get)
    gate = Gate()
    it = rig(gate, workers=4, prefetch=8)
    came_back(it, "a", count=1)
    it.publisher.start()
    it.consumer.start()
    it.until(lambda: len(gets) == 2)
    gate.entered("a")
    it.drain()
    reactor.pass_time(1)
    gate.let("a")
    it.drained()
    assert it.source.acked == ["a"]
    assert it.consumer.went_back == 0
