"""Every row of the outcome table, asserted on the broker's side: what is in which queue, with which headers."""

import itertools
import pathlib
import time
from collections.abc import Callable, Iterator

import pytest
from daemon import Daemon
from peer import Peer

from rpcd.core import errors
from rpcd.core.outcome import ON_ERROR, TABLE
from rpcd.ops.rabbitmq import PrivateNode

HANDLERS = """
import threading
import rpcd

stuck = threading.Event()


class Boom(Exception):
    pass


async def later():
    return 1


def do(message):
    what = message.body["do"]
    if what == "return":
        return message.body.get("value")
    if what == "reply":
        return rpcd.Reply({"a": 1}, message="done")
    if what == "request_failed":
        raise rpcd.RequestFailed("customer is blocked", {"customer": 7})
    if what == "nack":
        if message.redelivered or message.nacks:
            return {"attempt": message.attempt}
        raise rpcd.Nack(message.body.get("delay"))
    if what == "drop":
        raise rpcd.Drop
    if what == "retry":
        if message.attempt <= message.body["times"]:
            raise rpcd.Retry(message.body.get("delay"))
        return {"attempt": message.attempt, "exchange": message.exchange, "key": message.routing_key}
    if what == "permanent":
        raise rpcd.PermanentFailure("no such warehouse")
    if what == "boom":
        raise Boom("a secret text")
    if what == "exit":
        raise SystemExit(0)
    if what == "publish":
        message.publish(message.body["exchange"], message.body["key"], {"from": "handler"}, headers={"h": 1})
        if message.body.get("fail"):
            raise Boom
        return {"published": True}
    if what == "publish_now":
        try:
            message.publish_now(message.body["exchange"], message.body["key"], {"now": 1}, mandatory=True)
        except rpcd.PublishError as error:
            return {"error": type(error).__name__}
        if message.body.get("fail"):
            raise Boom
        return {"published": True}
    if what == "give_up":
        message.publish("", message.body["key"], {"held": "back"})
        while not message.cancelled:
            stuck.wait(message.remaining)
        message.publish_now("", message.body["key"], {"too": "late"})
    if what == "unencodable":
        return {"value": object()}
    if what == "coroutine":
        return later()
    if what == "generator":
        return (number for number in range(3))
    if what == "stuck":
        message.publish("", message.body["key"], {})
        stuck.wait(60)
"""

CONSUMER = """
[queues.{name}]
delivery_limit = 2
type = "{type}"
[consumers.{name}]
queue = "{name}"
handler = "outcome_handlers:do"
workers = 2
on_error = "{on_error}"
time_limit = {limit}
max_reply = 2000
[consumers.{name}.retry]
delays = [0.1, 0.4]
attempts = 3
"""

POLICIES = [policy for policy in ON_ERROR if policy != "halt"]


@pytest.fixture(scope="module")
def daemon(node: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon with a queue for every policy."""
    node.add_virtual_hosts(["outcomes"])
    directory = tmp_path_factory.mktemp("outcomes")
    (directory / "outcome_handlers.py").write_text(HANDLERS)
    parts = ["# publishes: news, nowhere\n"]
    parts += [f"[service]\npath = [{str(directory)!r}]\npublish_timeout = 2\n[queues.target]\n"]
    parts += [CONSUMER.format(name=policy, type="quorum", on_error=policy, limit=600) for policy in POLICIES]
    parts += [CONSUMER.format(name="short", type="quorum", on_error="auto", limit=0.5).replace("workers = 2", "workers = 3")]
    parts += [CONSUMER.format(name="classic", type="classic", on_error="auto", limit=600)]
    config = pathlib.Path(directory, "rpcd.toml")
    config.write_text("".join(parts))
    url = node.url("outcomes")
    setup = Peer(url)
    setup.channel.exchange_declare("news", "fanout", durable=True)
    setup.close()
    daemon = Daemon(config, url).ready()
    yield daemon
    code = daemon.stop()
    daemon.kill()
    assert code == 0, daemon.output
    assert "Unhandled" not in daemon.output
    assert "CRITICAL" not in daemon.output


@pytest.fixture
def peer(node: PrivateNode, daemon: Daemon) -> Iterator[Peer]:
    client = Peer(node.url("outcomes"))
    yield client
    client.close()


ids = itertools.count()


def a_message(**more: object) -> dict[str, object]:
    """Properties that a copy must keep, and some that it must not."""
    return {
        "message_id": f"id-{next(ids)}",
        "correlation_id": "c-1",
        "app_id": "shop",
        "type": "order",
        "content_type": "application/json",
        "timestamp": int(time.time()),
        "headers": {"tenant": "acme", "x-death": [{"queue": "elsewhere", "count": 3}], "x-delivery-count": 7, "CC": []},
        **more,
    }


class TestReturned:
    def test_an_object_is_the_data(self, peer: Peer) -> None:
        assert peer.call("auto", {"do": "return", "value": {"number": 17}}).body == (
            b'{"success":true,"data":{"number":17},"message":null}'
        )

    @pytest.mark.parametrize(
        ("value", "data"),
        [
            (None, {}),
            (17, {"result": 17}),
            ([1, 2], {"result": [1, 2]}),
            ("tea", {"result": "tea"}),
            (False, {"result": False}),
        ],
    )
    def test_anything_else_is_wrapped(self, peer: Peer, value: object, data: object) -> None:
        assert peer.call("auto", {"do": "return", "value": value}).json == {"success": True, "data": data, "message": None}

    def test_a_reply_sets_data_and_message(self, peer: Peer) -> None:
        assert peer.call("auto", {"do": "reply"}).json == {"success": True, "data": {"a": 1}, "message": "done"}

    def test_a_reply_has_the_requests_correlation_id_and_a_content_type_and_nothing_else(self, peer: Peer) -> None:
        properties = peer.call("auto", {"do": "return"}, correlation_id="mine", message_id="m").properties
        assert {name: value for name, value in vars(properties).items() if value is not None} == {
            "content_type": "application/json",
            "correlation_id": "mine",
        }

    def test_a_message_that_wants_no_reply_is_just_done_with(self, peer: Peer) -> None:
        peer.publish("classic", {"do": "return"})
        peer.call("classic", {"do": "return"})
        assert peer.left("classic.archive") == []


class TestRequestFailed:
    def test_is_answered_and_acked(self, peer: Peer) -> None:
        assert peer.call("auto", {"do": "request_failed"}).json == {
            "success": False,
            "data": {"customer": 7},
            "message": "customer is blocked",
        }

    def test_leaves_nothing_behind(self, peer: Peer) -> None:
        peer.call("archive", {"do": "request_failed"})
        assert peer.left("archive.archive") == []


class TestNack:
    @pytest.mark.parametrize("delay", [None, 0, 0.3])
    def test_comes_back_without_using_up_an_attempt_and_sends_no_reply_before(self, peer: Peer, delay: float | None) -> None:
        assert peer.call("auto", {"do": "nack", "delay": delay}).json["data"] == {"attempt": 1}


class TestDrop:
    @pytest.mark.parametrize("queue", ["auto", "classic"])
    def test_is_dead_lettered_into_the_archive_of_rpcds_own_queue(self, peer: Peer, queue: str) -> None:
        assert peer.call(queue, {"do": "drop"}).json["success"] is False
        dropped = peer.get(f"{queue}.archive")
        assert dropped.headers["x-death"][0]["reason"] == "rejected"


class TestRetry:
    def test_is_tried_again_and_keeps_what_identifies_it(self, peer: Peer) -> None:
        answer = peer.call("auto", {"do": "retry", "times": 2}, **a_message())
        assert answer.json["data"] == {"attempt": 3, "exchange": "", "key": "auto"}

    def test_is_archived_and_answered_when_attempts_are_spent(self, peer: Peer) -> None:
        properties = a_message()
        answer = peer.call("auto", {"do": "retry", "times": 9}, **properties)
        assert answer.json == {"success": False, "data": {}, "message": "An unexpected error occurred"}
        spent = peer.get("auto.archive")
        assert spent.headers["x-retry-count"] == 2
        assert spent.headers["x-rpcd-attempt"] == 3
        assert spent.headers["x-rpcd-reason"] == "attempts are spent: Retry"
        assert spent.headers["x-rpcd-exception"] == "Retry"
        assert spent.headers["x-rpcd-handler"] == "outcome_handlers:do"
        assert spent.headers["x-rpcd-routing-key"] == "auto"
        assert spent.headers["tenant"] == "acme"
        assert {"x-death", "CC"} & set(spent.headers) == set()
        kept = ("message_id", "app_id", "type", "content_type", "timestamp")
        assert {name: getattr(spent.properties, name) for name in kept} == {name: properties[name] for name in kept}
        assert spent.properties.reply_to == peer.reply_queue
        assert spent.properties.expiration is None
        assert spent.body == b'{"do": "retry", "times": 9}'

    def test_waits_in_the_step_that_is_long_enough(self, peer: Peer) -> None:
        began = time.monotonic()
        peer.call("auto", {"do": "retry", "times": 1, "delay": 0.3})
        assert time.monotonic() - began >= 0.4

    def test_a_step_beyond_the_deadline_counts_as_spent(self, peer: Peer) -> None:
        peer.call("auto", {"do": "retry", "times": 1, "delay": 0.4}, expiration="300")
        late = peer.get("auto.archive")
        assert late.headers["x-rpcd-reason"] == "the deadline comes before the next attempt: Retry"
        assert late.headers["x-deadline"] > time.time() - 60


class TestPermanentFailure:
    def test_is_archived_with_its_reason_and_answered(self, peer: Peer) -> None:
        answer = peer.call("auto", {"do": "permanent"}, **a_message())
        assert answer.json == {"success": False, "data": {}, "message": "no such warehouse"}
        failed = peer.get("auto.archive")
        assert failed.headers["x-rpcd-reason"] == "no such warehouse"
        assert failed.headers["x-rpcd-exception"] == "PermanentFailure"
        assert failed.headers["x-rpcd-attempt"] == 1


class TestCannotBeOpened:
    @pytest.mark.parametrize(
        ("body", "properties", "place"),
        [
            (b"{bad", {}, "body"),
            (b"", {}, "body"),
            (b'{"a": NaN}', {}, "body"),
            (b"<a/>", {"content_type": "text/xml"}, "content_type"),
            (b"{}", {"content_type": "application/json; charset=utf-7"}, "content_type"),
            (b"\x1f\x8b", {"content_encoding": "gzip"}, "content_encoding"),
        ],
    )
    def test_is_archived_and_answered_with_place_and_reason(
        self, peer: Peer, body: bytes, properties: dict[str, str], place: str
    ) -> None:
        answer = peer.call("auto", body, **properties).json
        assert answer["success"] is False
        assert answer["data"]["place"] == place
        bad = peer.get("auto.archive")
        assert bad.body == body
        assert bad.headers["x-rpcd-reason"].startswith(f"bad message: {place}: ")


class TestReplyToIsNotAllowed:
    @pytest.mark.parametrize(
        "reply_to",
        ["target", "auto", "auto.archive", "auto.retry.100", "", "amq.rabbitmq.reply-to.AAAA.bbb"],
    )
    def test_is_archived_unrun_and_unanswered(self, peer: Peer, reply_to: str) -> None:
        peer.publish("auto", {"do": "return"}, reply_to=reply_to, message_id="evil")
        refused = peer.get("auto.archive")
        assert refused.headers["x-rpcd-exception"] == "ReplyRefused"
        assert refused.properties.message_id == "evil"
        assert peer.left("target") == []


class TestExpired:
    def test_is_acked_and_not_run(self, peer: Peer) -> None:
        peer.publish("auto", {"do": "permanent"}, headers={"x-deadline": int(time.time()) - 1})
        peer.call("auto", {"do": "return"})
        assert peer.left("auto.archive") == []


class TestDeadlinePassed:
    def test_is_acked_answered_and_publishes_nothing(self, peer: Peer) -> None:
        answer = peer.call("auto", {"do": "give_up", "key": "target"}, expiration="2000")
        assert answer.json == {"success": False, "data": {}, "message": "The deadline has passed"}
        assert (peer.left("target"), peer.left("auto.archive")) == ([], [])


class TestTimeLimitPassed:
    def test_is_archived_answered_and_publishes_nothing_it_held_back(self, peer: Peer) -> None:
        answer = peer.call("short", {"do": "stuck", "key": "target"})
        assert answer.json == {"success": False, "data": {}, "message": "The time limit was passed"}
        overdue = peer.get("short.archive")
        assert overdue.headers["x-rpcd-exception"] == "TimeLimitPassed"
        assert peer.left("target") == []

    def test_the_thread_is_replaced(self, peer: Peer) -> None:
        assert peer.call("short", {"do": "return"}).json["success"] is True


class TestPublishing:
    def test_what_a_handler_publishes_leaves_when_it_succeeds(self, peer: Peer) -> None:
        assert peer.call("auto", {"do": "publish", "exchange": "", "key": "target"}).json["data"] == {"published": True}
        sent = peer.get("target")
        assert sent.json == {"from": "handler"}
        assert sent.headers["h"] == 1
        assert sent.properties.delivery_mode == 2
        assert sent.properties.message_id

    def test_nothing_leaves_when_it_fails(self, peer: Peer) -> None:
        peer.call("auto", {"do": "publish", "exchange": "", "key": "target", "fail": True})
        assert peer.left("target") == []

    def test_a_missing_exchange_is_the_consumers_on_error(self, peer: Peer) -> None:
        assert peer.call("auto", {"do": "publish", "exchange": "nowhere", "key": "k"}).json["success"] is False
        assert peer.call("archive", {"do": "publish", "exchange": "nowhere", "key": "k"}).json["success"] is False
        refused = peer.get("archive.archive")
        assert refused.headers["x-rpcd-exception"] == "PublishRefused"
        assert "no exchange 'nowhere'" in refused.headers["x-rpcd-reason"]

    def test_an_unroutable_event_is_no_error(self, peer: Peer) -> None:
        assert peer.call("auto", {"do": "publish", "exchange": "news", "key": "k"}).json["success"] is True

    def test_publish_now_is_out_at_once(self, peer: Peer) -> None:
        peer.call("auto", {"do": "publish_now", "exchange": "", "key": "target", "fail": True})
        assert peer.get("target").json == {"now": 1}

    @pytest.mark.parametrize(
        ("exchange", "key", "error"), [("", "nobody", "Unroutable"), ("nowhere", "k", "PublishRefused")]
    )
    def test_publish_now_raises_where_it_was_called(self, peer: Peer, exchange: str, key: str, error: str) -> None:
        assert peer.call("auto", {"do": "publish_now", "exchange": exchange, "key": key}).json["data"] == {"error": error}

    @pytest.mark.parametrize("body", [{"do": "unencodable"}, {"do": "return", "value": "x" * 3000}])
    def test_a_reply_that_cannot_be_sent_is_an_error_reply(self, peer: Peer, body: dict[str, str]) -> None:
        assert peer.call("auto", body).json == {"success": False, "data": {}, "message": "An unexpected error occurred"}


def archived(peer: Peer, queue: str) -> None:
    failed = peer.get(f"{queue}.archive")
    assert failed.headers["x-rpcd-exception"] in ("Boom", "SystemExit")
    assert "secret" not in str(failed.headers)


def archived_at_once(peer: Peer, queue: str) -> None:
    failed = peer.get(f"{queue}.archive")
    assert failed.headers["x-rpcd-attempt"] == 1
    assert failed.headers["x-rpcd-reason"].startswith("unexpected exception: ")


def archived_by_the_broker(peer: Peer, queue: str) -> None:
    assert peer.get(f"{queue}.archive").headers["x-death"][0]["reason"] in ("rejected", "delivery_limit")


def nothing(peer: Peer, queue: str) -> None:
    assert peer.left(f"{queue}.archive") == []


class TestAnyOtherException:
    """What `on_error` makes of it, for a request and for an event."""

    @pytest.mark.parametrize("what", ["boom", "exit"])
    @pytest.mark.parametrize(
        ("policy", "left"),
        [
            ("auto", nothing),
            ("reply", nothing),
            ("retry", archived),
            ("archive", archived_at_once),
            ("drop", archived_by_the_broker),
        ],
    )
    def test_of_a_request(self, peer: Peer, policy: str, left: Callable[[Peer, str], None], what: str) -> None:
        answer = peer.call(policy, {"do": what}).json
        assert answer == {"success": False, "data": {}, "message": "An unexpected error occurred"}
        left(peer, policy)

    @pytest.mark.parametrize(
        ("policy", "left"),
        [
            ("auto", archived),
            ("reply", archived),
            ("retry", archived),
            ("archive", archived_at_once),
            ("drop", archived_by_the_broker),
            ("requeue", archived_by_the_broker),
        ],
    )
    def test_of_an_event(self, peer: Peer, policy: str, left: Callable[[Peer, str], None]) -> None:
        peer.publish(policy, {"do": "boom"})
        left(peer, policy)

    def test_requeue_sends_no_reply(self, peer: Peer) -> None:
        peer.publish("requeue", {"do": "boom"}, reply_to=peer.reply_queue)
        archived_by_the_broker(peer, "requeue")
        assert peer.call("requeue", {"do": "return"}).json["success"] is True

    def test_the_log_has_the_traceback_and_the_fields(self, peer: Peer, daemon: Daemon) -> None:
        peer.call("reply", {"do": "boom"}, correlation_id="look-for-me", message_id="m-17")
        (line,) = daemon.wait_for("correlation_id=look-for-me")
        assert "ERROR rpcd.consumer: done: answered as failed (Boom)" in line
        for field in ("consumer=reply", "queue=reply", "message_id=m-17", "attempt=1", "verdict=ack", "error=Boom"):
            assert field in line
        assert "  | outcome_handlers.Boom: a secret text" in daemon.output


class TestWorkThatNobodyWouldRun:
    """A coroutine or a generator that a handler returns is no success, and neither is a hidden one."""

    @pytest.mark.parametrize("what", ["coroutine", "generator"])
    def test_is_an_unexpected_exception(self, peer: Peer, what: str) -> None:
        peer.publish("archive", {"do": what})
        failed = peer.get("archive.archive")
        assert failed.headers["x-rpcd-exception"] == "TypeError"


def test_a_bad_message_is_not_answered_where_no_reply_may_go(peer: Peer) -> None:
    peer.publish("auto", b"{bad", reply_to="target", message_id="sly")
    assert peer.get("auto.archive").properties.message_id == "sly"
    assert peer.left("target") == []


def test_every_row_has_tests() -> None:
    elsewhere = {errors.HaltConsumer}  # it ends the daemon: tests/system/test_ending.py
    here = {
        None: TestReturned,
        errors.RequestFailed: TestRequestFailed,
        errors.Nack: TestNack,
        errors.Drop: TestDrop,
        errors.Retry: TestRetry,
        errors.PermanentFailure: TestPermanentFailure,
        errors.BadMessage: TestCannotBeOpened,
        errors.ReplyRefused: TestReplyToIsNotAllowed,
        errors.Expired: TestExpired,
        errors.DeadlinePassed: TestDeadlinePassed,
        errors.TimeLimitPassed: TestTimeLimitPassed,
        errors.PublishError: TestPublishing,
        BaseException: TestAnyOtherException,
    }
    assert {rule.error for rule in TABLE} == {*here, *elsewhere}
    assert all(any(name.startswith("test_") for name in vars(kind)) for kind in here.values())
