"""Handlers that ask other services, as the real daemon runs them: threads and async handlers alike."""

import json
import re
import threading
from typing import Any

import pytest
from daemon import Daemon, StartDaemon
from peer import Peer, Received
from proxy import Proxy

CONFIG = """
    [queues.front]
    [consumers.front]
    queue = "front"
    handler = "handlers_of_test:{front}"
    workers = {workers}
    {more}
    [queues.back]
    [consumers.back]
    queue = "back"
    handler = "handlers_of_test:back"
    workers = 4
"""

HANDLERS = """
    import asyncio, logging, time
    import attrs
    import rpcd

    @attrs.define
    class Price:
        of: str
        cents: int

    def options(body):
        found = {name: body[name] for name in ("timeout", "plain") if name in body}
        kind = body.get("type")
        return found | ({"reply_type": {"Price": Price, "int": int, "list": list[int]}[kind]} if kind else {})

    def shown(value):
        return {"type": type(value).__name__, "value": attrs.asdict(value) if attrs.has(type(value)) else value}

    def failed(error):
        logging.info("the call ended with %s: %s", type(error).__name__, error)
        return {"error": type(error).__name__, "text": str(error), "data": getattr(error, "data", None)}

    def ask(message):
        body = message.body
        begun = time.monotonic()
        try:
            value = message.call(body.get("exchange", ""), body.get("key", "back"), body.get("ask"), **options(body))
        except Exception as error:
            return failed(error) | {"seconds": time.monotonic() - begun}
        return shown(value)

    async def ask_async(message):
        body = message.body
        begun = time.monotonic()
        try:
            value = await message.call(body.get("exchange", ""), body.get("key", "back"), body.get("ask"), **options(body))
        except Exception as error:
            return failed(error) | {"seconds": time.monotonic() - begun}
        return shown(value)

    def through(message):
        return message.call("", message.body.get("key", "back"), message.body.get("ask"))

    async def through_async(message):
        return await message.call("", message.body.get("key", "back"), message.body.get("ask"))

    def back(message):
        what = message.body
        if what == "fail":
            raise rpcd.RequestFailed("no such price", {"of": "tea"})
        if what == "break":
            raise ValueError("CANARY")
        if what == "remaining":
            return {"remaining": message.remaining}
        if isinstance(what, dict) and "sleep" in what:
            logging.info("back sleeps")
            time.sleep(what["sleep"])
        return what
"""

SLOW = """
    def slow_back(message):
        logging.info("slow begins")
        time.sleep(1.5)
        return {"late": True}
"""

KINDS = ["ask", "ask_async"]


@pytest.fixture(params=KINDS)
def both(request: pytest.FixtureRequest, start: StartDaemon) -> Daemon:
    """A daemon whose handler `front` asks `back`: in a thread, and on a loop."""
    return start(CONFIG.format(front=request.param, workers=8, more=""), HANDLERS)


def ask(peer: Peer, **body: Any) -> Any:
    reply = peer.call("front", body).json
    assert reply["success"] is True, reply
    return reply["data"]


def test_a_handler_gets_the_data_of_the_reply_as_the_type_it_asks_for(both: Daemon, peer: Peer) -> None:
    price = {"of": "tea", "cents": 250}
    assert ask(peer, ask=price) == {"type": "dict", "value": price}
    assert ask(peer, ask=price, type="Price") == {"type": "Price", "value": price}
    assert ask(peer, ask=5) == {"type": "dict", "value": {"result": 5}}
    assert ask(peer, ask=5, type="int") == {"type": "int", "value": 5}
    assert ask(peer, ask=[1, 2], type="list") == {"type": "list", "value": [1, 2]}
    assert both.stop() == 0


def test_what_the_other_side_refuses_is_raised_with_its_words(both: Daemon, peer: Peer) -> None:
    assert ask(peer, ask="fail").items() >= {"error": "CallFailed", "text": "no such price", "data": {"of": "tea"}}.items()
    broken = ask(peer, ask="break")
    assert broken["error"] == "CallFailed"
    assert "CANARY" not in broken["text"]


def test_a_reply_of_the_wrong_shape_is_told_by_place_and_reason_alone(both: Daemon, peer: Peer) -> None:
    wrong = ask(peer, ask={"of": "tea", "cents": "secret"}, type="Price")
    assert wrong["error"] == "BadReply"
    assert wrong["text"] == "reply.data.cents: Expected `int`, got `str`"
    assert "secret" not in both.output.partition("consuming")[2]


def test_a_request_that_no_queue_takes_fails_at_once(both: Daemon, peer: Peer) -> None:
    found = ask(peer, key="nowhere", timeout=60)
    assert found["error"] == "Unroutable"
    assert found["text"] == "no queue takes exchange '', key 'nowhere': NO_ROUTE"
    assert found["seconds"] < 60


def test_a_mistake_about_one_exchange_fails_no_call_through_another(both: Daemon, peer: Peer) -> None:
    slow: list[Received] = []
    thread = threading.Thread(target=lambda: slow.append(Peer(peer.url).call("front", {"ask": {"sleep": 2}})))
    thread.start()
    both.wait_for("back sleeps")
    found = ask(peer, exchange="nowhere")
    assert found["error"] == "PublishRefused"
    assert "NOT_FOUND - no exchange 'nowhere'" in found["text"]
    thread.join()
    assert slow[0].json["data"]["value"] == {"sleep": 2}
    assert ask(peer, ask=1)["value"] == {"result": 1}


def test_no_reply_in_time_is_told(both: Daemon, peer: Peer) -> None:
    peer.channel.queue_declare("nobody-home")
    found = ask(peer, key="nobody-home", timeout=0.3)
    assert (found["error"], found["text"]) == ("CallTimeout", "no reply within 0.3 s")


def test_a_late_reply_is_dropped_and_disturbs_no_other_call(both: Daemon, peer: Peer) -> None:
    assert ask(peer, ask={"sleep": 1}, timeout=0.2)["error"] == "CallTimeout"
    for number in range(5):
        assert ask(peer, ask=number)["value"] == {"result": number}


def test_a_call_takes_no_longer_than_the_messages_deadline_and_hands_it_on(both: Daemon, peer: Peer) -> None:
    peer.channel.queue_declare("nobody-home")
    found = peer.call("front", {"key": "nobody-home"}, expiration="1500").json
    told = found["data"].get("error"), found["message"]  # an async handler may be cancelled before its call has ended
    assert told in (("DeadlinePassed", None), (None, "The deadline has passed"))
    handed = peer.call("front", {"ask": "remaining"}, expiration="9000").json["data"]["value"]["remaining"]
    assert 0 < handed < 11  # timestamps are whole seconds
    without = ask(peer, ask="remaining", timeout=500)["value"]["remaining"]
    assert 400 < without < 502


@pytest.mark.parametrize("front", ["through", "through_async"])
def test_what_a_handler_lets_through_is_an_unexpected_exception(front: str, start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG.format(front=front, workers=2, more=""), HANDLERS)
    assert peer.call("front", {"ask": {"a": 1}}).json == {"success": True, "data": {"a": 1}, "message": None}
    answer = peer.call("front", {"ask": "fail"}).json
    assert (answer["success"], answer["data"]) == (False, {})
    assert "no such price" not in answer["message"]  # what the other side said was said to us
    daemon.wait_for("CallFailed: no such price")
    assert peer.call("front", {"key": "nowhere"}).json["success"] is False
    daemon.wait_for("Unroutable")


@pytest.mark.parametrize("front", KINDS)
def test_the_end_of_the_connection_ends_the_calls_that_were_sent_and_later_ones_wait_for_the_next(
    front: str, start: StartDaemon, peer: Peer, proxy: Proxy, url: str
) -> None:
    daemon = start(CONFIG.format(front=front, workers=8, more=""), HANDLERS, at=proxy.url(url))
    assert ask(peer, ask=1)["value"] == {"result": 1}
    peer.publish("front", {"ask": {"sleep": 2}}, reply_to=peer.reply_queue, correlation_id="a")
    daemon.wait_for("back sleeps")
    assert proxy.cut("publisher") == 1
    (reply,) = peer.replies()
    assert reply.json["data"]["error"] == "CallInterrupted"
    assert reply.json["data"]["text"].endswith("; the request may or may not have been handled, and is not sent again")
    assert ask(peer, ask=2, timeout=60)["value"] == {"result": 2}
    assert len(daemon.wait_for("back sleeps")) == 1


@pytest.mark.parametrize("front", KINDS)
def test_without_a_connection_a_call_says_that_it_could_not_be_sent(
    front: str, start: StartDaemon, peer: Peer, proxy: Proxy, url: str
) -> None:
    daemon = start(CONFIG.format(front=front, workers=8, more=""), HANDLERS, at=proxy.url(url))
    proxy.refuse()
    proxy.cut("publisher")
    daemon.wait_for("trying again.*connection=publisher")
    found = ask(peer, timeout=0.5)
    assert found["error"] == "CallTimeout"
    assert re.match(r"the request could not be sent within 0.5 s: (127.0.0.1:\d+: .*refused|the connection)", found["text"])
    proxy.accept()
    assert ask(peer, ask=3, timeout=60)["value"] == {"result": 3}


def test_a_call_ends_with_the_time_limit_of_its_handler(start: StartDaemon, peer: Peer) -> None:
    peer.channel.queue_declare("nobody-home")
    daemon = start(CONFIG.format(front="through", workers=1, more="time_limit = 1"), HANDLERS)
    answer = peer.call("front", {"key": "nobody-home"}).json
    assert answer == {"success": False, "data": {}, "message": "The time limit was passed"}
    assert peer.call("front", {"ask": {"b": 2}}).json["data"] == {"b": 2}
    assert peer.get("front.archive").headers["x-rpcd-exception"] == "TimeLimitPassed"
    assert daemon.stop() == 0


@pytest.mark.parametrize("front", ["through", "through_async"])
def test_a_stop_lets_a_call_come_to_its_end(front: str, start: StartDaemon, peer: Peer) -> None:
    handlers = HANDLERS + SLOW
    back = start('[queues.slow]\n[consumers.slow]\nqueue = "slow"\nhandler = "handlers_of_test:slow_back"\n', handlers)
    daemon = start(CONFIG.format(front=front, workers=1, more=""), handlers)
    peer.publish("front", {"key": "slow"}, reply_to=peer.reply_queue, correlation_id="a")
    back.wait_for("slow begins")
    assert daemon.stop() == 0
    assert peer.replies()[0].json["data"] == {"late": True}
    assert back.stop() == 0


@pytest.mark.parametrize("front", ["through", "through_async"])
def test_a_stop_that_waits_no_longer_ends_a_call(front: str, start: StartDaemon, peer: Peer) -> None:
    peer.channel.queue_declare("nobody-home")
    config = "[service]\ndrain_timeout = 0.5\n" + CONFIG.format(front=front, workers=1, more="")
    daemon = start(config, HANDLERS)
    peer.publish("front", {"key": "nobody-home"})
    assert json.loads(peer.get("nobody-home").body) is None
    assert daemon.stop() == 75
    daemon.wait_for("stopped with unfinished handlers; messages that go back to the broker: 1")
    assert peer.get("front").json == {"key": "nobody-home"}


def test_many_handlers_ask_at_a_time_on_one_connection(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG.format(front="through_async", workers=500, more=""), HANDLERS)
    for number in range(500):
        peer.publish("front", {"ask": {"n": number}}, reply_to=peer.reply_queue, correlation_id=str(number))
    replies = peer.replies(500)
    assert all(reply.json["data"] == {"n": int(reply.properties.correlation_id)} for reply in replies)
    assert daemon.stop() == 0
