"""The harness for tests of handlers: what its callers see, and what it tells them."""

import asyncio
import base64
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

import rpcd
from rpcd.core.crypto import Keyring
from rpcd.core.errors import SettingsError
from rpcd.testing import Delivery, Harness, HarnessError, NoReply

CONFIG = """
[broker]
url = "amqps://shop:${credential:rabbitmq}@rabbit/shop"
[broker.tls]
certificate = "/nowhere.pem"
key = "/nowhere.key"
[service]
path = ["handlers"]
modules = ["harness_events"]
on_start = "harness_shop:prepare"
[exchanges.shop]
[queues.orders]
bindings = [{ exchange = "shop", routing_keys = ["order.#"] }]
[consumers.orders]
queue = "orders"
handler = "harness_shop:Order"
config = { greeting = "${GREETING:hello}" }
retry = { delays = [0.2, 60] }
"""

SHOP = """
import rpcd
prepared = []

def prepare():
    prepared.append(True)

class Order:
    def __init__(self, config):
        assert prepared
        self.greeting = config["greeting"]

    def __call__(self, message):
        message.publish("shop", "mail.thanks", {"to": message.body["customer"]})
        return {"said": self.greeting}
"""

EVENTS = """
import rpcd
sent = []

@rpcd.message_handler("mail.*", exchange="shop", queue="mails")
def mail(message):
    sent.append((message.routing_key, message.body))
"""


@pytest.fixture
def shop(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    (tmp_path / "handlers").mkdir()
    (tmp_path / "handlers/harness_shop.py").write_text(SHOP)
    (tmp_path / "handlers/harness_events.py").write_text(EVENTS)
    (tmp_path / "shop.toml").write_text(CONFIG)
    yield tmp_path / "shop.toml"
    for name in ("harness_shop", "harness_events"):
        sys.modules.pop(name, None)


class Boom(Exception):
    pass


def do(message: rpcd.Message[Any]) -> Any:
    """Do what the message says."""
    what = message.body
    if what == "boom":
        raise Boom
    if what == "object":
        return object()
    if what == "retry" and message.attempt < 3:
        raise rpcd.Retry
    if what == "nack" and not message.redelivered:
        raise rpcd.Nack(0)
    if what == "for ever":
        raise rpcd.Nack(0)
    if what == "put off" and not message.nacks:
        raise rpcd.Nack
    if what == "halt":
        raise rpcd.HaltConsumer(3, "no more")
    if what == "publish":
        message.publish("", "target", {"a": 1}, headers={"h": 1}, mandatory=True)
    if what == "publish now":
        message.publish_now("", "target", {"a": 1})
        raise Boom
    return {"attempt": message.attempt, "redelivered": message.redelivered}


@pytest.fixture
def harness() -> Iterator[Harness]:
    with Harness({"work": do}) as made:
        made.declare_queue("target")
        yield made


# A config ---------------------------------------------------------------------------------------------


def test_a_config_runs_without_its_broker_and_credentials(shop: pathlib.Path) -> None:
    with Harness.from_config(shop) as harness:
        assert harness.call("orders", {"customer": "ada"}).data == {"said": "hello"}


def test_a_config_is_expanded_from_an_environment_of_the_tests_own(shop: pathlib.Path) -> None:
    with Harness(shop, environment={"GREETING": "good morning"}) as harness:
        assert harness.call("orders", {"customer": "ada"}).data == {"said": "good morning"}


def test_what_one_handler_publishes_reaches_another_by_the_configs_bindings(shop: pathlib.Path) -> None:
    with Harness(shop) as harness:
        delivery = harness.deliver("order.placed", {"customer": "ada"}, exchange="shop")
        assert sys.modules["harness_events"].sent == [("mail.thanks", {"to": "ada"})]
        assert [each.consumer for each in harness.deliveries] == ["orders", "mails"]
        assert (delivery.consumer, delivery.verdict) == ("orders", "ack")
        assert [each.routing_key for each in delivery.published] == ["mail.thanks"]


def test_the_path_of_a_config_is_left_when_its_harness_is_closed(shop: pathlib.Path) -> None:
    before = list(sys.path)
    with Harness(shop):
        assert sys.path != before
    assert sys.path == before


def test_every_mistake_in_a_config_is_told_as_the_daemon_tells_it(tmp_path: pathlib.Path) -> None:
    (tmp_path / "wrong.toml").write_text('[queues.orders]\n[consumers.orders]\nqueue = "ordres"\nhandler = "no_such:x"\n')
    with pytest.raises(SettingsError) as raised:
        Harness(tmp_path / "wrong.toml")
    assert len(raised.value.problems) == 2
    assert all(problem.path.startswith(str(tmp_path / "wrong.toml")) for problem in raised.value.problems)


def test_the_tables_of_a_config_will_do(shop: pathlib.Path) -> None:
    tables = {"queues": {"orders": {}}, "consumers": {"orders": {"queue": "orders", "handler": f"{__name__}:do"}}}
    sys.modules.setdefault(__name__, sys.modules[do.__module__])
    with Harness(tables) as harness:
        assert harness.call("orders", "x").success


def test_a_virtual_hosts_overlay_counts(shop: pathlib.Path) -> None:
    shop.write_text(CONFIG + '[virtual_hosts.staging]\nconsumers.orders.config = { greeting = "psst" }\n')
    with Harness(shop, virtual_host="staging") as harness:
        assert harness.call("orders", {"customer": "ada"}).data == {"said": "psst"}


# What a caller sees -----------------------------------------------------------------------------------


def test_a_reply_is_an_envelope_that_was_opened(harness: Harness) -> None:
    reply = harness.call("work", "x", correlation_id="mine")
    assert (reply.success, reply.data, reply.message) == (True, {"attempt": 1, "redelivered": False}, None)
    assert reply.body == {"success": True, "data": reply.data, "message": None}
    assert reply.properties.correlation_id == "mine"


def test_a_plain_reply_is_its_own_data() -> None:
    with Harness() as harness:
        harness.consumer("work", lambda message: [message.body], reply="plain")
        assert (harness.call("work", 5).success, harness.call("work", 5).data) == (True, [5])


def test_a_reply_by_the_requests_own_exchange_arrives() -> None:
    with Harness() as harness:
        harness.consumer("work", do, exchange="shop", routing_keys="work.*", reply_via="request-exchange")
        assert harness.call("work.now", "x", exchange="shop").success


def test_a_request_by_a_fanout_is_not_taken_for_its_reply() -> None:
    with Harness({"exchanges": {"all": {"type": "fanout"}}}) as harness:
        harness.consumer("work", do, exchange="all")
        assert harness.call("x", "x", exchange="all").data["attempt"] == 1


def test_an_unexpected_exception_goes_through_to_the_test(harness: Harness) -> None:
    with pytest.raises(Boom):
        harness.call("work", "boom")
    assert [type(each) for each in harness.errors] == [Boom]


def test_a_test_may_see_what_a_caller_would(harness: Harness) -> None:
    reply = harness.call("work", "boom", reraise=False)
    assert (reply.success, reply.message) == (False, "An unexpected error occurred")
    assert isinstance(harness.deliveries[0].error, Boom)
    harness.reraise = False
    assert harness.call("work", "boom").success is False


def test_a_reply_that_no_json_can_hold_goes_through_as_well(harness: Harness) -> None:
    with pytest.raises(rpcd.PublishError, match="can't be encoded"):
        harness.call("work", "object")


def test_a_bad_body_is_the_tests_own_doing_and_answered(harness: Harness) -> None:
    reply = harness.call("work", b"{")
    assert (reply.success, reply.data["place"]) == (False, "body")
    assert harness.archive("work")[0].headers["x-rpcd-exception"] == "BadMessage"
    assert harness.deliveries[0].ran is False


def test_a_request_without_a_reply_says_what_became_of_it(harness: Harness) -> None:
    with pytest.raises(NoReply, match=r"work: retry in 0.2 s \(Retry\) \(something happens in 0.2 s: pass timeout="):
        harness.call("work", "retry")


def test_a_call_may_wait_for_its_retries(harness: Harness) -> None:
    began = harness.now
    assert harness.call("work", "retry", timeout=5).data["attempt"] == 3
    assert harness.now - began == pytest.approx(1.2)


def test_a_queue_that_is_not_there_is_told_with_one_that_is(harness: Harness) -> None:
    with pytest.raises(HarnessError, match="did you mean 'work'"):
        harness.call("wrok")
    with pytest.raises(HarnessError, match=r"did you mean 'work.archive'"):
        harness.queue("work.archiv")


def test_a_consumer_whose_queue_has_another_name_is_told() -> None:
    with Harness() as harness:
        harness.consumer("orders", do, queue="shop.orders.v1")
        with pytest.raises(HarnessError, match=r"the queue of the consumer 'orders' is 'shop.orders.v1'"):
            harness.call("orders")


def test_a_property_that_is_not_there_is_told_with_one_that_is(harness: Harness) -> None:
    with pytest.raises(TypeError, match="did you mean 'correlation_id'"):
        harness.call("work", "x", corelation_id="a")


def test_what_nobody_consumes_is_no_delivery(harness: Harness) -> None:
    with pytest.raises(HarnessError, match="it waits in target, which has no consumer"):
        harness.deliver("target", "x")


# Time -------------------------------------------------------------------------------------------------


def test_a_retry_waits_in_its_step_until_its_time_has_passed(harness: Harness) -> None:
    assert harness.deliver("work", "retry").verdict == "retry"
    (waiting,) = harness.retries("work")
    assert (waiting.queue, waiting.headers["x-retry-count"]) == ("work.retry.200", 1)
    harness.advance(0.19)
    assert len(harness.deliveries) == 1
    harness.advance(0.01)
    assert [each.message.attempt for each in harness.deliveries] == [1, 2]
    harness.advance(3600)
    assert [each.verdict for each in harness.deliveries] == ["retry", "retry", "ack"]
    assert harness.retries("work") == []


def test_a_deadline_passes_with_the_time(harness: Harness) -> None:
    harness.deliver("work", "put off", expiration=100)
    harness.advance(1000)
    assert harness.deliveries[-1].ran
    with Harness({"work": do}, now=1000.0) as late:
        assert late.deliver("work", "x", headers={"x-deadline": 999.0}).reason == "deadline passed before it started"


def test_a_message_that_is_put_off_at_once_comes_back_at_once(harness: Harness) -> None:
    assert harness.deliver("work", "nack").verdict == "requeue"
    assert [each.message.redelivered for each in harness.deliveries] == [False, True]


def test_a_message_that_never_stops_coming_back_is_given_up_by_its_queue(harness: Harness) -> None:
    harness.deliver("work", "for ever")
    assert len(harness.deliveries) == 21
    assert harness.archive("work")[0].headers["x-death"][0]["reason"] == "delivery_limit"


def test_a_message_that_spins_without_an_end_is_told() -> None:
    with Harness({"queues": {"work": {"type": "classic"}}}) as harness:
        harness.consumer("work", do)
        with pytest.raises(HarnessError, match="one comes back again and again"):
            harness.deliver("work", "for ever")


def test_a_queue_that_dies_with_its_connection_is_retried_in_the_process() -> None:
    tables = {"queues": {"work": {"name": ""}}}
    with Harness(tables) as harness:
        harness.consumer("events", do, queue="work", exchange="shop", retry={"delays": [1, 300]})
        assert harness.deliver("a", "retry", exchange="shop").verdict == "retry"
        harness.advance(61)
        assert [each.verdict for each in harness.deliveries] == ["retry", "retry", "ack"]


# Publishing -------------------------------------------------------------------------------------------


def test_what_was_published_is_told_decoded(harness: Harness) -> None:
    harness.call("work", "publish")
    (found,) = harness.published
    assert (found.exchange, found.routing_key, found.body, found.headers, found.mandatory) == (
        "",
        "target",
        {"a": 1},
        {"h": 1},
        True,
    )
    assert [each.body for each in harness.queue("target")] == [{"a": 1}]
    harness.clear()
    assert (harness.published, harness.deliveries) == ([], [])


def test_what_was_published_at_once_stays_when_its_handler_fails(harness: Harness) -> None:
    harness.deliver("work", "publish now", reraise=False)
    assert len(harness.published) == 1


@pytest.mark.parametrize(
    ("error", "verdict"), [(rpcd.PublishRefused, "retry"), (rpcd.Unroutable("x"), "retry"), (rpcd.PublishTimeout, "requeue")]
)
def test_publishing_fails_when_a_test_says_so(harness: Harness, error: Any, verdict: str) -> None:
    harness.fail_publishing(error)
    assert harness.deliver("work", "publish").verdict == verdict
    assert len(harness.deliveries) == 1
    harness.advance(60)  # publish_timeout is how long the daemon would have tried
    assert harness.deliveries[-1].verdict == "ack"
    assert len(harness.published) == 1


def test_a_copy_that_is_refused_leaves_its_message_in_the_queue(harness: Harness) -> None:
    harness.fail_publishing(rpcd.PublishRefused, copies=True)
    assert harness.deliver("work", "retry").verdict == "requeue"
    harness.advance(4.9)
    assert len(harness.deliveries) == 1
    harness.advance(0.1)
    assert harness.deliveries[1].verdict == "retry"


@pytest.mark.parametrize(("overflow", "kept"), [("reject-publish", ["1"]), ("drop-head", ["2"])])
def test_a_full_archive_refuses_or_loses_its_oldest(overflow: str, kept: list[str]) -> None:
    def give_up(message: rpcd.Message[Any]) -> None:
        raise rpcd.PermanentFailure

    with Harness() as harness:
        harness.consumer("work", give_up, archive={"max_length": 1, "overflow": overflow})
        assert harness.deliver("work", message_id="1").verdict == "archive"
        second = harness.deliver("work", message_id="2")
        assert second.verdict == ("requeue" if overflow == "reject-publish" else "archive")
        assert [each.properties.message_id for each in harness.archive("work")] == kept


def test_publishing_can_only_fail_by_what_publishing_fails_by(harness: Harness) -> None:
    with pytest.raises(TypeError, match="not by ValueError"):
        harness.fail_publishing(ValueError)


def test_an_exchange_that_is_not_there_refuses_until_it_is_declared() -> None:
    with Harness({"work": lambda message: message.publish("shop", "a", {})}) as harness:
        with pytest.raises(rpcd.PublishRefused, match="NOT_FOUND - no exchange 'shop'"):
            harness.deliver("work")
        assert harness.deliveries[0].verdict == "retry"
        harness.declare_exchange("shop", "fanout")
        harness.declare_queue("others", "shop")
        assert harness.deliver("work").verdict == "ack"
        assert len(harness.queue("others")) == 1


def test_another_service_is_stood_in_for(harness: Harness) -> None:
    harness.answer("prices", {"tea": 5})
    harness.answer("stock", lambda message: {"left": message.body})
    assert harness.call("prices").data == {"tea": 5}
    assert harness.call("stock", 7).data == {"left": 7}


# Redeliveries and halts -------------------------------------------------------------------------------


def test_a_message_with_an_id_does_not_run_twice_unless_the_process_is_another(harness: Harness) -> None:
    first = harness.deliver("work", "x", message_id="m", reply_to="amq.gen-gone")
    again = harness.redeliver(first)
    assert (first.ran, again.ran, again.verdict, again.reply and again.reply.data) == (True, False, "ack", None)
    crashed = harness.redeliver(first, crashed=True)
    assert (crashed.ran, crashed.message.redelivered) == (True, True)


def test_a_message_without_an_id_runs_again(harness: Harness) -> None:
    assert harness.redeliver(harness.deliver("work", "x")).ran


def test_a_halted_consumer_takes_nothing_more(harness: Harness) -> None:
    reply = harness.call("work", "halt")
    assert (reply.success, reply.message) == (False, "no more")
    assert (harness.halted["work"].exit_code, harness.exit_code) == (3, 3)
    with pytest.raises(NoReply, match="it waits in work, whose consumer work is halted"):
        harness.call("work", "x")


# Classes ----------------------------------------------------------------------------------------------


class Shop:
    made: list["Shop"]
    shut: list[tuple["Shop", BaseException | None]]

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.made.append(self)

    def __call__(self, message: rpcd.Message[Any]) -> Any:
        if message.body == "boom":
            raise Boom
        if message.body == "fail":
            raise rpcd.RequestFailed("no")
        return self.config

    def shutdown(self, exception: BaseException | None = None) -> None:
        self.shut.append((self, exception))


def test_an_instance_is_replaced_after_what_nobody_expected_and_shut_down_at_the_end() -> None:
    Shop.made, Shop.shut = [], []
    with Harness() as harness:
        harness.consumer("work", Shop, config={"a": 1}, on_error="archive")
        assert harness.call("work", "x").data == {"a": 1}
        assert harness.call("work", "fail").message == "no"
        assert len(Shop.made) == 1
        harness.call("work", "boom", reraise=False)
        harness.call("work", "x")
    first, second = Shop.made
    assert [(made, type(error)) for made, error in Shop.shut] == [(first, Boom), (second, type(None))]


def test_a_shutdown_that_fails_is_told() -> None:
    class Bad:
        def __call__(self, message: rpcd.Message[Any]) -> None:
            raise rpcd.Drop

        def shutdown(self) -> None:
            raise Boom

    harness = Harness({"work": Bad})
    harness.deliver("work")
    with pytest.raises(Boom):
        harness.close()


# Async ------------------------------------------------------------------------------------------------


class Async:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def __call__(self, message: rpcd.Message[Any]) -> Any:
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0)
        if message.body == "boom":
            raise Boom
        if message.body == "forget":
            message.publish_now("", "nowhere", {}, mandatory=True)
        if message.body == "publish":
            await message.publish_now("", "nowhere", {}, mandatory=True)
        return message.body

    async def shutdown(self, exception: BaseException | None = None) -> None:
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0)


def test_async_handlers_run_on_a_loop_of_the_harness() -> None:
    with Harness({"work": Async}) as harness:
        assert harness.call("work", 1).data == {"result": 1}
        with pytest.raises(Boom):
            harness.call("work", "boom")
        assert harness.call("work", 2).data == {"result": 2}


@pytest.mark.parametrize("body", ["publish", "forget"])
def test_what_an_async_handler_publishes_at_once_fails_it_awaited_or_not(body: str) -> None:
    with Harness({"work": Async}) as harness:
        delivery = harness.deliver("work", body, reraise=False)
        assert (delivery.verdict, type(delivery.error)) == ("retry", rpcd.Unroutable)


def test_what_a_thread_of_an_async_handler_publishes_is_published_when_it_returns() -> None:
    async def handle(message: rpcd.Message[Any]) -> str:
        try:
            await asyncio.to_thread(message.publish_now, "", "nowhere", {}, mandatory=True)
        except rpcd.Unroutable:
            return "refused"
        return "published"

    with Harness({"work": handle}) as harness:
        assert harness.call("work").data == {"result": "refused"}


def test_async_tests_await_the_twins_on_their_own_loop() -> None:
    async def test() -> None:
        async with Harness({"work": Async, "plain": do}) as harness:
            assert (await harness.acall("work", 1)).data == {"result": 1}
            assert (await harness.acall("plain", "x")).success
            delivery: Delivery = await harness.adeliver("plain", "retry")
            assert delivery.verdict == "retry"
            await harness.aadvance(10)
            assert harness.deliveries[-1].verdict == "ack"
            assert (await harness.aredeliver(delivery)).ran
            with pytest.raises(Boom):
                await harness.acall("work", "boom")

    asyncio.run(test())


def test_a_plain_call_in_an_async_test_is_told() -> None:
    async def test() -> None:
        async with Harness({"work": Async}) as harness:
            with pytest.raises(HarnessError, match=r"await harness.acall"):
                harness.call("work", 1)

    asyncio.run(test())


def test_a_task_that_a_handler_has_left_behind_ends_with_the_harness() -> None:
    ended = []

    async def leave(message: rpcd.Message[Any]) -> None:
        async def stay() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                ended.append(True)

        message.properties.task = asyncio.ensure_future(stay())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    with Harness({"work": leave}) as harness:
        harness.deliver("work")
    assert ended == [True]


# Bodies -----------------------------------------------------------------------------------------------


@attrs.define
class Order:
    customer: str


def typed(message: rpcd.Message[Order]) -> str:
    return message.body.customer


def test_a_body_may_be_an_object_of_its_type() -> None:
    with Harness({"orders": typed}) as harness:
        assert harness.call("orders", Order("ada")).data == {"result": "ada"}
        assert harness.call("orders", {"customer": 1}).data["place"] == "body.customer"


def test_a_lock_whose_key_is_missing_is_a_bad_body() -> None:
    with Harness() as harness:
        harness.consumer("work", do, lock="body.customer")
        assert harness.call("work", {"customer": 1}).success
        assert harness.call("work", {"customre": 1}).data["place"] == "body.customer"


def test_the_harness_loads_neither_twisted_nor_pika() -> None:
    code = "import sys; from rpcd.testing import Harness; print(sorted({'twisted', 'pika'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Asking -----------------------------------------------------------------------------------------------


def price(message: rpcd.Message[Any]) -> Any:
    return {"total": message.call("", "prices", {"of": message.body}, timeout=5)["price"] + 1}


async def price_async(message: rpcd.Message[Any]) -> Any:
    found = await message.call("", "prices", {"of": message.body}, timeout=5)
    return {"total": found["price"] + 1}


@pytest.fixture(params=[price, price_async], ids=["plain", "async"])
def asking(request: pytest.FixtureRequest) -> Iterator[Harness]:
    with Harness({"orders": request.param}) as made:
        yield made


def test_a_handler_asks_another_consumer_of_the_harness(asking: Harness) -> None:
    asked = []

    def answer(message: rpcd.Message[Any]) -> Any:
        asked.append((message.body, message.deadline))
        return {"price": 5}

    asking.consumer("prices", answer)
    assert asking.call("orders", "tea").data == {"total": 6}
    ((body, deadline),) = asked
    assert body == {"of": "tea"}
    assert deadline == pytest.approx(asking.now + 5, abs=1)


def test_a_test_answers_in_the_place_of_another_service(asking: Harness) -> None:
    asking.answer("prices", {"price": 1})
    assert asking.call("orders", "tea").data == {"total": 2}


def test_a_service_that_says_no_fails_the_handler(asking: Harness) -> None:
    def no(message: rpcd.Message[Any]) -> None:
        raise rpcd.RequestFailed("sold out")

    asking.answer("prices", no)
    with pytest.raises(rpcd.CallFailed, match="sold out"):
        asking.call("orders", "tea")


def test_a_service_that_is_not_there_is_told_at_once(asking: Harness) -> None:
    with pytest.raises(rpcd.Unroutable, match="`answer` stands in for another service"):
        asking.call("orders", "tea")


def test_a_service_that_keeps_silent_lets_time_pass(asking: Harness) -> None:
    asking.declare_queue("prices")
    began = asking.now
    with pytest.raises(rpcd.CallTimeout, match="no reply within 5 s"):
        asking.call("orders", "tea")
    assert asking.now - began == 5


def test_a_call_ends_with_the_deadline_of_its_message(asking: Harness) -> None:
    asking.declare_queue("prices")
    began = asking.now
    reply = asking.call("orders", "tea", expiration=2)
    assert (reply.success, reply.message) == (False, "The deadline has passed")
    assert asking.now - began == 2


def test_a_service_behind_an_exchange_is_stood_in_for() -> None:
    def ask(message: rpcd.Message[Any]) -> Any:
        return message.call("shop", "price.tea")

    with Harness({"orders": ask}) as harness:
        harness.answer("price.*", lambda message: message.routing_key, exchange="shop")
        assert harness.call("orders").data == {"result": "price.tea"}


def test_a_consumer_that_asks_itself_waits_for_ever_unless_it_has_two_workers() -> None:
    def ask(message: rpcd.Message[Any]) -> Any:
        return message.call("", "work", "inner") if message.body == "outer" else message.body

    with Harness() as harness:
        harness.consumer("work", ask, workers=2)
        assert harness.call("work", "outer").data == {"result": "inner"}
    with Harness({"work": ask}) as harness, pytest.raises(rpcd.CallTimeout):
        harness.call("work", "outer")


# Layers -----------------------------------------------------------------------------------------------


def test_the_layers_of_a_config_are_folded_around_its_handlers(tmp_path: pathlib.Path) -> None:
    (tmp_path / "harness_layers.py").write_text(
        "def loudly(handler):\n    return lambda message: {'loud': handler(message)}\n"
        "def greet(message):\n    return message.body\n"
    )
    (tmp_path / "layered.toml").write_text(
        '[service]\npath = ["."]\n[queues.work]\n[consumers.work]\nqueue = "work"\nhandler = "harness_layers:greet"\n'
        'layers = ["harness_layers:loudly"]\n'
    )
    with Harness(tmp_path / "layered.toml") as harness:
        assert harness.call("work", 1).data == {"loud": 1}
    sys.modules.pop("harness_layers")


# Secrets ----------------------------------------------------------------------------------------------


@attrs.define
class Card:
    number: rpcd.Secret[str]
    pin: rpcd.Secret[int]


def pay(message: rpcd.Message[Card]) -> Any:
    return {"last": message.body.number.reveal()[-4:], "odd": message.body.pin.reveal() % 2}


@pytest.mark.parametrize("where", ["broker", "overlay"])
def test_a_config_with_secret_keys_runs_with_one_of_the_harness(where: str) -> None:
    secret = {"fernet_keys": ["${file:/nowhere/fernet.key}"]}
    tables: dict[str, Any] = {"virtual_hosts": {"x": {}}}
    if where == "broker":
        tables["broker"] = secret
    else:
        tables["virtual_hosts"]["x"] = secret
    with Harness(tables, virtual_host="x") as harness:
        harness.consumer("pay", pay)
        card = {"number": harness.encrypt("4711-0815"), "pin": harness.encrypt(7)}
        assert harness.call("pay", card).data == {"last": "0815", "odd": 1}
        refused = harness.call("pay", {**card, "number": "4711-0815"})
        assert (refused.success, refused.data["place"]) == (False, "body.number")


def test_a_token_gets_older_with_the_time() -> None:
    with Harness({"broker": {"fernet_keys": ["${KEY}"], "fernet_ttl": 60}}) as harness:
        harness.consumer("pay", pay)
        card = {"number": harness.encrypt("4711-0815"), "pin": harness.encrypt(7)}
        assert harness.call("pay", card).success
        harness.advance(90)
        assert not harness.call("pay", card).success


def test_a_key_that_a_test_names_is_used() -> None:
    key = base64.urlsafe_b64encode(bytes(32)).decode()
    with Harness({"broker": {"fernet_keys": [key]}}) as harness:
        harness.consumer("pay", pay)
        ring = Keyring([key])
        card = {"number": ring.seal(b"4711-0815", harness.now), "pin": harness.encrypt(7)}
        assert harness.call("pay", card).data == {"last": "0815", "odd": 1}
    with pytest.raises(SettingsError, match=r"broker.fernet_keys\[0\]: is no Fernet key"):
        Harness({"broker": {"fernet_keys": ["x"]}})


def test_nothing_is_encrypted_for_a_config_without_keys(harness: Harness) -> None:
    with pytest.raises(HarnessError, match="no `fernet_keys`"):
        harness.encrypt("x")
