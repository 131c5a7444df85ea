"""`publish_now` in a coroutine: something to await, and what nobody awaits is not lost."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from amqp_rig import Rig
from amqp_wire import LONGEST, Broker

from rpcd.core.errors import PublishRefused, PublishTimeout, TimeLimitPassed, Unroutable

MakeRig = Callable[..., Rig]


def test_it_is_awaited_and_the_loop_goes_on_meanwhile(rig: MakeRig, broker: Broker) -> None:
    broker.confirms = False
    told: list[Any] = []

    async def handler(message: Any) -> None:
        if message.body["name"] == "a":
            told.append(await message.publish_now("", "event", {"a": 1}))

    it = rig(handler, workers=2).start()
    it.put("a", "b")
    it.until(lambda: "event" in broker.routing_keys() and it.source.acked == ["b"])
    assert told == []
    broker.published[-1].chan.confirm(1)
    it.until(lambda: it.source.acked == ["b", "a"])
    assert told == [None]


@pytest.mark.parametrize(
    ("exchange", "options", "kind"),
    [("no-such", {}, PublishRefused), ("", {"mandatory": True}, Unroutable)],
)
@pytest.mark.parametrize("how", ["await", "gather", "thread"])
def test_it_raises_what_went_wrong_wherever_it_is_awaited(
    rig: MakeRig, broker: Broker, exchange: str, options: dict[str, Any], kind: type[Exception], how: str
) -> None:
    broker.missing.add("event")
    raised: list[BaseException] = []

    async def handler(message: Any) -> None:
        try:
            if how == "await":
                await message.publish_now(exchange, "event", {}, **options)
            elif how == "gather":
                await asyncio.gather(*(message.publish_now(exchange, "event", {}, **options) for _ in range(2)))
            else:
                await asyncio.to_thread(message.publish_now, exchange, "event", {}, **options)
        except Exception as error:  # noqa: BLE001
            raised.append(error)

    it = rig(handler).start()
    it.put("a")
    it.until(lambda: it.source.acked == ["a"])
    assert [type(error) for error in raised] == [kind]


def test_what_a_handler_forgot_to_await_fails_it(rig: MakeRig, broker: Broker) -> None:
    broker.missing.add("event")

    async def handler(message: Any) -> None:
        message.publish_now("", "fine", {})
        message.publish_now("", "event", {}, mandatory=True)
        message.publish("", "held-back", {})

    it = rig(handler, on_error="archive").start()
    it.put("a")
    it.until(lambda: it.source.acked == ["a"])
    assert broker.routing_keys()[-1] == "orders.archive"
    assert "fine" in broker.routing_keys()
    assert "held-back" not in broker.routing_keys()


def test_what_a_handler_left_to_another_task_is_waited_for_too(rig: MakeRig, broker: Broker) -> None:
    broker.confirms = False
    tasks: list[Any] = []

    async def handler(message: Any) -> None:
        tasks.append(asyncio.ensure_future(message.publish_now("", "event", {})))
        await asyncio.sleep(0)

    it = rig(handler, workers=1).start()
    it.put("a")
    it.until(lambda: "event" in broker.routing_keys())
    it.reactor.run()
    assert it.source.acked == []
    broker.published[-1].chan.confirm(1)
    it.until(lambda: it.source.acked == ["a"])


def test_a_handler_that_gives_up_waiting_has_been_told(rig: MakeRig, broker: Broker) -> None:
    broker.confirms = False
    gave_up: list[bool] = []

    async def handler(message: Any) -> None:
        try:
            await asyncio.wait_for(message.publish_now("", "event", {}), 0.01)
        except asyncio.TimeoutError:
            gave_up.append(True)

    it = rig(handler).start()
    it.put("a")
    it.until(lambda: it.source.acked == ["a"])
    assert gave_up == [True]
    broker.published[-1].chan.confirm(1)
    it.reactor.run()


def test_it_waits_no_longer_than_publish_timeout(rig: MakeRig, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpcd.amqp.outlet.MARGIN", 0.01)
    broker.confirms = False
    raised: list[BaseException] = []

    async def handler(message: Any) -> None:
        try:
            await message.publish_now("", "event", {})
        except PublishTimeout as error:
            raised.append(error)

    it = rig(handler, publish_timeout=0.01).start()
    it.put("a")
    it.until(lambda: it.source.acked == ["a"])
    assert str(raised[0]) == "not confirmed within 0.01 s"


@pytest.mark.usefixtures("clocked")
@pytest.mark.parametrize("in_thread", [False, True])
def test_what_is_written_off_publishes_nothing_any_more(rig: MakeRig, broker: Broker, in_thread: bool) -> None:
    entered, ended = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    async def handler(message: Any) -> None:
        entered.set()
        try:
            await asyncio.sleep(LONGEST)
        except asyncio.CancelledError:
            try:
                if in_thread:
                    await asyncio.to_thread(message.publish_now, "", "late", {})
                else:
                    await message.publish_now("", "late", {})
            except TimeLimitPassed as error:
                raised.append(error)
            ended.set()

    it = rig(handler, workers=1, time_limit=60.0).start()
    it.put("a")
    assert entered.wait(LONGEST)
    for _ in range(62):
        it.reactor.pass_time(1.0)
        answered = threading.Event()  # the loop's thread keeps real time: let it answer before more time has passed
        it.consumer.workers.thread.call(answered.set)
        assert answered.wait(LONGEST)
    assert ended.wait(LONGEST)
    it.until(lambda: it.source.acked == ["a"])
    assert len(raised) == 1
    assert "late" not in broker.routing_keys()
    assert it.exhausted == 0
