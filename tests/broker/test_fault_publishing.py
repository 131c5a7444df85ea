"""What is to be published is refused, nacked, never confirmed or held by an alarm; the request stays until it is safe."""

import json
import pathlib
from collections.abc import Iterator

import pytest
from daemon import StartDaemon
from ledger import HANDLER, Ledger, runs
from peer import Peer
from proxy import DOWN, UP, Proxy
from report import get_report as report

from rpcd.ops.rabbitmq import PrivateNode, free_ports, frozen

CONFIG = """
# publishes: gone
[service]
http = "tcp:{port}:interface=127.0.0.1"
confirm_timeout = {confirm_timeout}
publish_timeout = {publish_timeout}
drain_timeout = {drain_timeout}
[exchanges.shop]
type = "fanout"
[queues.taken]
bindings = [{{ exchange = "shop" }}]
[queues.work]
delivery_limit = 1000
[consumers.work]
queue = "work"
handler = "handlers_of_test:{handler}"
workers = 4
prefetch = {prefetch}
{consumer}
"""

HANDLERS = (
    HANDLER
    + """
    import logging, time
    gate = pathlib.Path(__file__).with_name("gate")

    def wait(message):
        logging.info("running %s", message.message_id)
        note(message)
        while not gate.exists():
            time.sleep(0.01)
        return {"id": message.message_id}

    def place(message):
        message.publish(message.body["exchange"], "k", {"id": message.message_id})
        return note(message)

    def archive(message):
        note(message)
        raise rpcd.PermanentFailure("for good")

    def wait_and_archive(message):
        wait(message)
        raise rpcd.PermanentFailure("for good")

    def later(message):
        note(message)
        if message.attempt == 1:
            raise rpcd.Retry
        return {"id": message.message_id}

    def waver(message):
        wait(message)
        if message.body == "again" and message.attempt == 1:
            raise rpcd.Retry
        if message.body == "never":
            raise rpcd.PermanentFailure("for good")
        return {"id": message.message_id}
"""
)


def config(port: int, handler: str, **values: object) -> str:
    rest = {"confirm_timeout": 30, "publish_timeout": 60, "drain_timeout": 30, "prefetch": 8, "consumer": ""}
    return CONFIG.format(port=port, handler=handler, **(rest | values))


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


# 19: the exchange is gone -------------------------------------------------------------------------


def test_fault_19_an_exchange_that_is_deleted_fails_only_what_goes_there(
    start: StartDaemon, proxy: Proxy, peer: Peer, url: str, port: int
) -> None:
    peer.channel.exchange_declare("gone", "fanout", durable=True)
    daemon = start(config(port, "place"), HANDLERS, at=proxy.url(url))
    peer.channel.exchange_delete("gone")
    ledger = Ledger(peer, "work")
    proxy.pause(UP, name="publisher")  # so that all are on their way when the channel is closed over one of them
    (guilty,) = ledger.publish(1, {"exchange": "gone"})
    peer.until(lambda: report(port).publishing["waiting"] == 1)
    innocent = ledger.publish(5, {"exchange": "shop"})
    peer.until(lambda: report(port).publishing["waiting"] == 6)
    proxy.resume()
    daemon.wait_for("WARNING rpcd.publisher: the broker closed a publishing channel: 404 NOT_FOUND - no exchange 'gone'")
    ledger.replies(6)
    found = report(port)
    assert found.publishing["refused"] == 1
    assert found.publishing["channel_errors"] == {"404": 1}
    assert found.publishing["republished"] == 5
    assert found.consumer("work")["publish_failures"] == 1
    assert found.consumer("work")["connections"] == 1
    assert daemon.stop() == 0
    taken = [message.json["id"] for message in peer.left("taken")]
    assert sorted(taken) == innocent
    ledger.check()
    assert guilty in ledger.answered


# 22: the broker does not take it ------------------------------------------------------------------

FULL = "WARNING rpcd.publisher: the broker does not take what goes to queue '{queue}'"
ROOM = "INFO rpcd.publisher: the broker takes again what goes to queue '{queue}'"


def test_fault_22_a_full_archive_brakes_the_consumer(start: StartDaemon, peer: Peer, port: int) -> None:
    daemon = start(config(port, "archive", consumer="[consumers.work.archive]\nmax_length = 1\n"), HANDLERS)
    ledger = Ledger(peer, "work")
    ids = ledger.publish(30)
    daemon.wait_for(FULL.format(queue="work.archive"))

    def braked() -> bool:
        found = report(port)
        ready = peer.channel.queue_declare("work", passive=True).method.message_count
        return bool(found.publishing["waiting"] == 8 and ready == 22 - found.consumer("work")["archived"])

    peer.until(braked, 40, lambda: json.dumps(report(port).document))
    assert report(port).consumer("work")["requeued"] == 0
    found = [message.properties.message_id for message in peer.take("work.archive", 30, 30)]  # each makes room for another
    assert sorted(found) == sorted(ids)
    daemon.wait_for(ROOM.format(queue="work.archive"))
    assert daemon.stop() == 0
    assert len(daemon.wait_for(FULL.format(queue="work.archive"))) <= len(ids)
    ledger.check()


def test_fault_22_what_a_full_archive_does_not_take_goes_back_to_the_queue(
    start: StartDaemon, peer: Peer, port: int
) -> None:
    consumer = "[consumers.work.archive]\nmax_length = 1\n"
    daemon = start(config(port, "archive", publish_timeout=1, consumer=consumer), HANDLERS)
    ledger = Ledger(peer, "work")
    ids: list[str] = []

    def is_full() -> bool:
        return any("does not take what goes to queue 'work.archive'" in line for line in daemon.lines)

    while not is_full():  # a full quorum queue takes what comes before its channels are told
        assert len(ids) < 50
        ids += ledger.publish(1)
        peer.until(lambda: report(port).consumer("work")["archived"] == len(ledger.published) or is_full())
    daemon.wait_for(r"the broker refused to take it for 1 s \(is the queue full\?\)")
    found = [message.properties.message_id for message in peer.take("work.archive", len(ids), 60)]
    assert sorted(found) == sorted(ids)
    assert report(port).consumer("work")["requeued"] >= 1
    assert daemon.stop() == 0
    assert peer.left("work") == []
    ledger.check()


def test_fault_22_a_full_retry_queue(
    start: StartDaemon, peer: Peer, node: PrivateNode, virtual_host: str, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(config(port, "later", consumer="[consumers.work.retry]\ndelays = [0.5]\n"), HANDLERS)
    limit = '{"max-length":1,"overflow":"reject-publish"}'
    node.ctl("set_policy", "-p", virtual_host, "full", r"^work\.retry\.", limit, "--apply-to", "queues")
    ledger = Ledger(peer, "work", ["500"])
    ids: list[str] = []
    while not any(FULL.format(queue="work.retry.500") in line for line in daemon.lines):
        assert len(ids) < 200  # a full quorum queue takes what comes before its channels are told
        ids += ledger.publish(1)
        peer.until(lambda: report(port).consumer("work")["received"] >= len(ledger.published))
    ledger.replies(len(ids), 60)  # each that comes back makes room for another
    found = report(port)
    assert found.publishing["nacks"] >= 1
    assert (found.consumer("work")["retried"], found.consumer("work")["requeued"]) == (len(ids), 0)
    assert runs(tmp_path) == dict.fromkeys(ids, 2)
    assert daemon.stop() == 0
    ledger.check()


# 23: confirms never come --------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["copies", "replies"])
def test_fault_23_confirms_that_never_come(
    start: StartDaemon, proxy: Proxy, peer: Peer, url: str, port: int, tmp_path: pathlib.Path, what: str
) -> None:
    handler = "wait_and_archive" if what == "copies" else "wait"
    text = config(port, handler, confirm_timeout=2, consumer="reply_confirm = true")
    daemon = start(text, HANDLERS, at=proxy.url(url))
    ledger = Ledger(peer, "work")
    ids = ledger.publish(4)
    daemon.wait_for("running", 4)
    proxy.pause(DOWN, name="publisher")
    (tmp_path / "gate").touch()
    daemon.wait_for("WARNING rpcd.publisher: no confirm for 2 s; to be published again: 4")
    ledger.replies(4)
    peer.until(lambda: report(port).consumer("work")["acked" if what == "replies" else "archived"] == 4)
    found = report(port)
    assert found.publishing["confirm_timeouts"] == 1
    assert found.publishing["republished"] == 4
    assert found.consumer("work")["connections"] == 1
    assert runs(tmp_path) == dict.fromkeys(ids, 1)
    assert daemon.stop() == 0
    assert peer.left("work") == []
    if what == "copies":
        archived = peer.left("work.archive")
        copies = {message.headers["x-rpcd-copy"]: message.properties.message_id for message in archived}
        assert sorted(copies.values()) == ids  # there twice, and to be told by their own ids
        assert len(archived) == 8
    ledger.check(twice=4 if what == "replies" else 0)


def test_fault_23_a_broker_that_freezes(
    start: StartDaemon, sick_node: PrivateNode, sick_url: str, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(config(port, "wait_and_archive", confirm_timeout=1), HANDLERS, at=sick_url)
    peer = Peer(sick_url)
    ledger = Ledger(peer, "work")
    ledger.publish(4)
    daemon.wait_for("running", 4)
    with frozen(sick_node):
        (tmp_path / "gate").touch()
        daemon.wait_for("no confirm for 1 s; to be published again: 4")
    ledger.replies(4, 60)
    peer.until(lambda: report(port).consumer("work")["archived"] == 4)
    assert report(port).publishing["republished"] >= 4
    more = report(port).publishing["republished"]
    assert daemon.stop() == 0
    assert peer.left("work") == []
    ledger.check(copies=more)
    peer.close()


def test_fault_23_an_archive_that_is_silent_is_told(
    start: StartDaemon, sick_node: PrivateNode, sick_url: str, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(config(port, "wait_and_archive", confirm_timeout=1), HANDLERS, at=sick_url)
    peer = Peer(sick_url)
    ledger = Ledger(peer, "work")
    ledger.publish(4)
    daemon.wait_for("running", 4)
    member = f"'{sick_url.rpartition('/')[2]}_work.archive'"
    sick_node.ctl("eval", f"sys:suspend({member}).")
    (tmp_path / "gate").touch()
    daemon.wait_for("no confirm for 1 s; to be published again: 4")
    peer.until(lambda: not report(port).consumer("work")["ready"])
    said = "the broker does not confirm copies to work.archive; perhaps it has no leader"
    assert report(port).consumer("work")["why"] == said
    sick_node.ctl("eval", f"sys:resume({member}).")
    ledger.replies(4, 60)
    peer.until(lambda: report(port).consumer("work")["archived"] == 4)
    assert report(port).consumer("work")["ready"]
    more = report(port).publishing["republished"]
    assert daemon.stop() == 0
    ledger.check(copies=more)
    peer.close()


# 24: an alarm -------------------------------------------------------------------------------------

ALARMS = {"memory": "low on memory", "disk": "low on disk"}


def alarm(node: PrivateNode, what: str) -> None:
    node.ctl("eval", f"rabbit_alarm:set_alarm({{{{resource_limit,{what},node()}},[]}}).")


def clear(node: PrivateNode) -> None:
    for what in ALARMS:
        node.ctl("eval", f"rabbit_alarm:clear_alarm({{resource_limit,{what},node()}}).")


@pytest.fixture
def _calm(sick_node: PrivateNode) -> Iterator[None]:
    yield
    clear(sick_node)


@pytest.mark.usefixtures("_calm")
@pytest.mark.parametrize("what", list(ALARMS))
def test_fault_24_an_alarm_while_it_consumes_replies_and_retries(
    start: StartDaemon, sick_node: PrivateNode, sick_url: str, port: int, tmp_path: pathlib.Path, what: str
) -> None:
    daemon = start(config(port, "waver"), HANDLERS, at=sick_url)
    peer = Peer(sick_url)
    ledger = Ledger(peer, "work")
    for body in ("once", "again", "never"):
        ledger.publish(6, json.dumps(body).encode())
    daemon.wait_for("running", 4)
    alarm(sick_node, what)
    (tmp_path / "gate").touch()
    daemon.wait_for(f"WARNING rpcd.publisher: the broker blocks publishing: {ALARMS[what]}")
    daemon.wait_for(
        f"WARNING rpcd.consumer: the broker blocks this connection, and with it replies and acks: {ALARMS[what]}"
    )
    found = report(port)
    assert found.code == 200
    assert found.consumer("work")["why"] == f"the broker blocks it: {ALARMS[what]}"
    assert found.publishing["why"] == f"the broker blocks it: {ALARMS[what]}"
    clear(sick_node)
    daemon.wait_for("the broker takes publications again")
    ledger.replies(18)
    found = report(port)
    assert (found.publishing["why"], found.consumer("work")["why"]) == (None, None)
    assert (found.publishing["confirm_timeouts"], found.consumer("work")["connections"]) == (0, 1)
    assert daemon.stop() == 0
    assert len(ledger.check()["archive"]) == 6
    assert peer.left("work") == []
    peer.close()


@pytest.mark.usefixtures("_calm")
def test_fault_24_an_alarm_at_the_start(
    start: StartDaemon, sick_node: PrivateNode, sick_url: str, port: int, tmp_path: pathlib.Path
) -> None:
    first = start(config(port, "waver"), HANDLERS, at=sick_url)
    assert first.stop() == 0
    peer = Peer(sick_url)
    ledger = Ledger(peer, "work")
    for number in range(4):
        peer.publish("work", b'"once"', message_id=f"quiet{number}")
    ledger.publish(4, b'"never"')
    (tmp_path / "gate").touch()
    alarm(sick_node, "memory")
    daemon = start(config(port, "waver"), HANDLERS, at=sick_url)  # ready all the same: what needs no publishing is done
    peer.until(lambda: report(port).consumer("work")["acked"] == 4)
    assert report(port).publishing["why"] == "the broker blocks it: low on memory"
    assert report(port).consumer("work")["archived"] == 0
    clear(sick_node)
    ledger.replies(4)
    assert daemon.stop() == 0
    assert sorted(ledger.check()["archive"]) == ledger.published
    assert runs(tmp_path) == dict.fromkeys([f"quiet{number}" for number in range(4)] + ledger.published, 1)
    peer.close()


@pytest.mark.usefixtures("_calm")
def test_fault_24_an_alarm_while_it_drains(
    start: StartDaemon, sick_node: PrivateNode, sick_url: str, port: int, tmp_path: pathlib.Path
) -> None:
    text = config(port, "waver", drain_timeout=2)
    daemon = start(text, HANDLERS, at=sick_url)
    peer = Peer(sick_url)
    ledger = Ledger(peer, "work")
    for body in ("once", "again", "never"):
        ledger.publish(4, json.dumps(body).encode())
    daemon.wait_for("running", 4)
    alarm(sick_node, "memory")
    (tmp_path / "gate").touch()
    daemon.wait_for("the broker blocks this connection")
    assert daemon.stop() == 75
    daemon.wait_for("messages that go back to the broker: ")
    clear(sick_node)
    after = start(text, HANDLERS, at=sick_url)
    ledger.replies(12)
    assert after.stop() == 0
    ledger.check(twice=12, copies=4)
    peer.close()
