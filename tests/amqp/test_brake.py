"""The kill switch of a consumer over the fake wire: when it trips, what it lets through, what else holds meanwhile."""

import logging
import threading
import time
from collections.abc import Callable

import pytest
from amqp_rig import Gate, Rig
from amqp_wire import LONGEST, Broker, Reactor

from rpcd.core import settings
from rpcd.core.errors import PermanentFailure, Retry

MakeRig = Callable[..., Rig]

THREE = settings.KillSwitch(failures=3, interval=10.0)


def failing(*names: str) -> Gate:
    gate = Gate(shut=False)
    for name in names:
        gate.says(name, Retry())
    return gate


def tripped(rig: MakeRig, *more: str, **section: object) -> Rig:
    """Make a consumer that three failures have just stopped; `more` is held."""
    it = rig(failing("a", "b", "c", "d"), kill_switch=THREE, prefetch=8, **section).start()
    it.put("a", "b", "c", *more)
    it.until(lambda: it.consumer.state == "tripped")
    it.until(lambda: len(it.source.acked) == 3)
    return it


def test_it_says_why_and_when_the_next_is_tried(rig: MakeRig, reactor: Reactor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    it = tripped(rig, "d")
    assert it.consumer.why == "3 failures in a row, the last by Retry, the next message is tried in 10 s"
    reactor.pass_time(4.0)
    assert it.consumer.why == "3 failures in a row, the last by Retry, the next message is tried in 6 s"
    said = [record.message for record in caplog.records if "failures in a row" in record.message]
    assert said == ["3 failures in a row, the last by Retry: nothing more is started, one message is tried every 10 s"]
    assert it.consumer.stats.tripped == 1
    assert it.consumer.consuming


def test_one_is_tried_each_time_until_one_succeeds(rig: MakeRig, reactor: Reactor) -> None:
    it = tripped(rig, "d", "e", "f", "g")
    order = it.handler.order
    assert order == ["a", "b", "c"]
    reactor.pass_time(9.0)
    assert len(order) == 3
    reactor.pass_time(1.0)
    it.until(lambda: len(it.source.acked) == 4)
    reactor.pass_time(5.0)
    assert order == ["a", "b", "c", "d"]
    assert it.consumer.state == "tripped"
    reactor.pass_time(5.0)
    it.until(lambda: len(it.source.acked) == 7)
    assert it.consumer.state == "consuming"
    assert it.consumer.why is None


def test_what_says_nothing_of_the_rest_uses_up_no_try(rig: MakeRig, reactor: Reactor) -> None:
    it = rig(failing("a", "b", "c", "d"), kill_switch=THREE, prefetch=8)
    it.handler.says("bad", PermanentFailure("bad"))
    it.start()
    it.put("a", "b", "c", "bad", "d", "e")
    it.until(lambda: len(it.source.acked) == 3)
    reactor.pass_time(10.0)
    it.until(lambda: len(it.source.acked) == 5)
    assert it.handler.order == ["a", "b", "c", "bad", "d"]


def test_a_try_waits_for_a_message(rig: MakeRig, reactor: Reactor) -> None:
    it = tripped(rig)
    reactor.pass_time(30.0)
    it.put("d", "e")
    it.until(lambda: len(it.source.acked) == 4)
    reactor.pass_time(1.0)
    assert it.handler.order[3:] == ["d"]


def test_with_a_lock_one_is_tried_too(rig: MakeRig, reactor: Reactor) -> None:
    it = tripped(rig, "d", "e", "f", lock="*")
    reactor.pass_time(10.0)
    it.until(lambda: len(it.source.acked) == 4)
    reactor.pass_time(10.0)
    it.until(lambda: len(it.source.acked) == 6)
    assert it.handler.order == ["a", "b", "c", "d", "e", "f"]


def test_a_pause_comes_first_and_an_order_to_resume_ends_both(rig: MakeRig, reactor: Reactor) -> None:
    it = tripped(rig, "e", "f")
    it.consumer.pause()
    assert it.consumer.state == "paused"
    reactor.pass_time(30.0)
    assert it.handler.order == ["a", "b", "c"]
    it.consumer.resume()
    it.until(lambda: len(it.source.acked) == 5)
    assert it.consumer.state == "consuming"


def test_an_order_to_resume_resets_it(rig: MakeRig) -> None:
    it = tripped(rig, "e", "f")
    it.consumer.resume()
    assert it.consumer.state == "consuming"
    it.until(lambda: len(it.source.acked) == 5)


def test_it_stays_tripped_over_a_lost_connection(rig: MakeRig, broker: Broker, reactor: Reactor) -> None:
    it = tripped(rig, "e", "f")
    it.link.rst()
    reactor.run()
    assert it.consumer.state == "connecting"
    it.again()
    assert it.consumer.state == "tripped"
    reactor.pass_time(10.0)
    it.until(lambda: len(it.source.acked) == 5)
    assert it.consumer.state == "consuming"


def test_a_drain_gives_back_what_is_held(rig: MakeRig) -> None:
    it = tripped(rig, "e", "f")
    it.drain()
    it.drained()
    assert [letter.name for letter in it.source.ready] == ["e", "f"]
    assert it.handler.order == ["a", "b", "c"]
    assert it.reactor.calls == [] or it.consumer.state == "stopped"


def test_0_never_trips(rig: MakeRig) -> None:
    names = [f"m{number}" for number in range(60)]
    it = rig(failing(*names), kill_switch=settings.KillSwitch(failures=0)).start()
    it.put(*names)
    it.until(lambda: len(it.source.acked) == 60)
    assert it.consumer.state == "consuming"


def test_what_trips_and_is_let_go_before_anybody_looks_starts_again(rig: MakeRig, reactor: Reactor) -> None:
    gate = Gate()
    for name in "abc":
        gate.says(name, Retry())
    it = rig(gate, kill_switch=settings.KillSwitch(failures=3, interval=10.0), workers=4, prefetch=8).start()
    it.put("a", "b", "c", "ok")
    gate.entered("a", "b", "c", "ok")
    switch = it.consumer.workers.switch
    gate.let("a", "b", "c")  # the reactor doesn't turn meanwhile
    until(lambda: switch.tripped)
    gate.let("ok")
    until(lambda: not switch.tripped)
    it.until(lambda: len(it.source.acked) == 4)
    it.put("next")
    gate.entered("next")
    assert it.consumer.state == "consuming"
    gate.let("next")
    it.until(lambda: "next" in it.source.acked)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in other threads, without a turn of the reactor."""
    limit = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < limit
        threading.Event().wait(0.005)
