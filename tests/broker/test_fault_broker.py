"""The broker stops, dies, closes what it likes or waits too long for an ack; rpcd consumes again and loses nothing."""

import pathlib
import signal
import struct
import threading
import time
from collections.abc import Iterator

import pika
import pytest
from daemon import StartDaemon
from ledger import HANDLER, Ledger, runs
from peer import Peer
from proxy import UP, Link, Proxy
from report import get_report as report

from rpcd.ops.rabbitmq import PrivateNode, alive, free_ports

CONFIG = """
[service]
http = "tcp:{port}:interface=127.0.0.1"
[queues.work]
[consumers.work]
queue = "work"
handler = "handlers_of_test:{handler}"
workers = 4
[queues.other]
[consumers.other]
queue = "other"
handler = "handlers_of_test:note"
"""

HANDLERS = (
    HANDLER
    + """
    import logging, time
    gate = pathlib.Path(__file__).with_name("gate")

    def slow(message):
        logging.info("running %s", message.message_id)
        note(message)
        while not gate.exists():
            time.sleep(0.01)
        return {"id": message.message_id}
"""
)


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


def shut_down(node: PrivateNode) -> None:
    """End a broker in order, as systemd would, and wait until its process is gone."""
    pid = node.pid
    node.signal(signal.SIGTERM)
    while alive(pid):
        time.sleep(0.01)
    node._reap()


# 11 to 14: it stops and comes back ----------------------------------------------------------------


def test_fault_11_a_broker_that_stops_in_order(
    start: StartDaemon, sick_node: PrivateNode, sick_url: str, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(CONFIG.format(port=port, handler="slow"), HANDLERS, at=sick_url)
    peer = Peer(sick_url)
    ledger = Ledger(peer, "work")
    ids = ledger.publish(4)
    daemon.wait_for("running", 4)
    shut_down(sick_node)
    (line, *_) = daemon.wait_for("WARNING .* connection=work")
    assert "the broker closed the connection: 320 CONNECTION_FORCED - broker forced connection closure" in line
    assert "'shutdown'" in line
    assert report(port).code == 503
    (tmp_path / "gate").touch()
    daemon.wait_for("settled too late", 4)
    sick_node.start()
    daemon.wait_for("INFO rpcd.consumer: consuming", 4)
    ledger.peer = again = Peer(sick_url)
    again.until(lambda: report(port).code == 200, 60)
    again.until(lambda: report(port).consumer("work")["replies_unroutable"] == 4)  # delivered again, and known
    ledger.answered.update(ids)  # their callers' queues went with the broker
    ledger.publish(1)
    ledger.replies(5)
    assert daemon.stop() == 0
    assert runs(tmp_path) == dict.fromkeys(ledger.published, 1)
    ledger.check()
    again.close()


MESSAGES = 600
DOUBT = 1
"""How many messages of a queue may run twice: the one whose confirm the kill took away, for its sender sends it again."""

KINDS = """
[queues.classic]
type = "classic"
[consumers.classic]
queue = "classic"
handler = "handlers_of_test:note"
workers = 8
[queues.quorum]
[consumers.quorum]
queue = "quorum"
handler = "handlers_of_test:note"
workers = 8
"""


class Sender(threading.Thread):
    """Publishes ids with confirms, from a connection that it makes again whenever it must; unconfirmed ids go again."""

    def __init__(self, url: str, queue: str, count: int) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.queue = queue
        self.left = [f"{queue}{number}" for number in range(count)]
        self.left.reverse()
        self.confirmed: list[str] = []
        self.half = threading.Event()

    def run(self) -> None:
        total = len(self.left)
        while self.left:
            try:
                self._send(total)
            except pika.exceptions.AMQPError:
                continue

    def _send(self, total: int) -> None:
        peer = Peer(self.url)
        while self.left:
            peer.publish(self.queue, b"{}", message_id=self.left[-1])
            self.confirmed.append(self.left.pop())
            if len(self.confirmed) >= total // 2:
                self.half.set()
        peer.close()


def test_fault_12_a_broker_that_is_killed_while_messages_flow(
    start: StartDaemon, sick_node: PrivateNode, sick_url: str, tmp_path: pathlib.Path
) -> None:
    daemon = start(KINDS, HANDLERS, at=sick_url)
    # a quorum queue that is killed seconds after its declaration may come back without a leader (rabbitmq-server#15725)
    sick_node.ctl("eval", "[dets:sync(T) || T <- dets:all()], ra_log_wal:force_roll_over(ra_log_wal).")
    senders = [Sender(sick_url, kind, MESSAGES) for kind in ("classic", "quorum")]
    for sender in senders:
        sender.start()
    assert all(sender.half.wait(60) for sender in senders)
    sick_node.kill()
    daemon.wait_for("trying again", 3)
    sick_node.start()
    for sender in senders:
        sender.join(120)
        assert not sender.left
    daemon.wait_for("INFO rpcd.consumer: consuming", 4)
    confirmed = {each for sender in senders for each in sender.confirmed}
    peer = Peer(sick_url)
    peer.until(lambda: confirmed <= set(runs(tmp_path)), 60, lambda: "some messages were never handled")
    assert daemon.stop() == 0
    ran = runs(tmp_path)
    assert set(ran) == confirmed
    more = {kind: sum(ran[each] - 1 for each in confirmed if each.startswith(kind)) for kind in ("classic", "quorum")}
    print(f"{len(confirmed)} messages, run more than once: {more}")  # noqa: T201  # the figures
    for queue in ("classic", "quorum"):
        assert more[queue] <= DOUBT
        assert peer.left(queue) == []
        assert peer.left(f"{queue}.archive") == []
    peer.close()


def test_fault_13_a_broker_that_is_stopped_and_started_within_its_node(
    start: StartDaemon, sick_node: PrivateNode, sick_url: str, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(CONFIG.format(port=port, handler="note"), HANDLERS, at=sick_url)
    first = Peer(sick_url)
    ledger = Ledger(first, "work")
    ledger.publish(3)
    ledger.replies(3)
    sick_node.ctl("stop_app")
    daemon.wait_for("320 CONNECTION_FORCED")
    daemon.wait_for("refused by other side")
    sick_node.ctl("start_app")
    daemon.wait_for("INFO rpcd.consumer: consuming", 4)
    ledger.peer = second = Peer(sick_url)
    ledger.publish(3)
    ledger.replies(6)
    assert daemon.stop() == 0
    assert report_of(ledger.check()) == ledger.published
    second.close()


def report_of(places: dict[str, object]) -> list[str]:
    """Return what was answered, in order."""
    return sorted(places["answered"])  # type: ignore[arg-type, type-var]  # a Counter of ids


def test_fault_14_an_operator_who_closes_the_connections(
    start: StartDaemon, node: PrivateNode, virtual_host: str, url: str, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(CONFIG.format(port=port, handler="slow"), HANDLERS)
    peer = Peer(url)
    ledger = Ledger(peer, "work")
    ids = ledger.publish(4)
    daemon.wait_for("running", 4)
    node.ctl("close_all_connections", "--vhost", virtual_host, "maintenance")
    daemon.wait_for("the broker closed the connection: 320 CONNECTION_FORCED - maintenance", 3)
    daemon.wait_for("INFO rpcd.consumer: consuming", 4)
    (tmp_path / "gate").touch()
    ledger.peer = again = Peer(url)
    again.until(lambda: report(port).consumer("work")["replies_unroutable"] == 4)
    ledger.answered.update(ids)  # their caller's connection was closed, too
    ledger.publish(1)
    ledger.replies(5)
    assert runs(tmp_path) == dict.fromkeys(ledger.published, 1)
    assert report(port).consumer("work")["joined"] == 4
    assert daemon.stop() == 0
    ledger.check()
    again.close()


# 15 and 16: it closes a channel -------------------------------------------------------------------

ACK = b"\x00\x3c\x00\x50"
UNKNOWN = struct.pack(">Q", 4711)


def test_fault_15_an_ack_that_the_broker_does_not_know(
    start: StartDaemon, proxy: Proxy, peer: Peer, url: str, port: int, tmp_path: pathlib.Path
) -> None:
    changed: list[bytes] = []

    def change_one_tag(link: Link, way: str, piece: bytes) -> bytes:
        at = piece.find(ACK)
        if link.name != "work" or way != UP or at < 0 or changed:
            return piece
        changed.append(piece[at + 4 : at + 12])
        return piece[: at + 4] + UNKNOWN + piece[at + 12 :]

    proxy.tamper = change_one_tag
    daemon = start(CONFIG.format(port=port, handler="note"), HANDLERS, at=proxy.url(url))
    ledger = Ledger(peer, "work")
    ledger.publish(1)
    (line,) = daemon.wait_for(r"ERROR rpcd\.consumer: the broker closed the channel")
    assert "406 PRECONDITION_FAILED - unknown delivery tag 4711" in line
    daemon.wait_for("INFO rpcd.consumer: consuming", 3)
    ledger.publish(5)
    ledger.replies(6)
    peer.until(lambda: report(port).consumer("work")["acked"] >= 7)  # the first one twice: its first ack was lost
    found = report(port)
    assert found.consumer("work")["channel_errors"] == {"406": 1}
    assert found.consumer("work")["connections"] == 2
    assert found.consumer("work")["joined"] == 1
    assert found.consumer("other")["connections"] == 1
    assert runs(tmp_path) == dict.fromkeys(ledger.published, 1)
    assert daemon.stop() == 0
    assert len(daemon.wait_for("the broker closed the channel")) == 1
    ledger.check(twice=1)


@pytest.fixture
def _impatient(sick_node: PrivateNode) -> Iterator[None]:
    """Have the broker wait 3 s for an ack, on channels that are opened meanwhile."""
    names = ("consumer_timeout", "channel_tick_interval")
    before = [sick_node.ctl("eval", f"application:get_env(rabbit, {name}).") for name in names]
    for name, value in zip(names, (3000, 500), strict=True):
        sick_node.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")
    yield
    for name, value in zip(names, before, strict=True):
        sick_node.ctl("eval", f"application:set_env(rabbit, {name}, {value.strip().removeprefix('{ok,').rstrip('}')}).")


@pytest.mark.usefixtures("_impatient")
def test_fault_16_a_broker_that_waits_too_long_for_an_ack(
    start: StartDaemon, sick_url: str, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(CONFIG.format(port=port, handler="slow"), HANDLERS, at=sick_url)
    peer = Peer(sick_url)
    ledger = Ledger(peer, "work")
    (only,) = ledger.publish(1)
    (line, *_) = daemon.wait_for(r"ERROR rpcd\.consumer: the broker waited too long for an ack and closed the channel: 406")
    assert "queue=work" in line
    assert f"handler handlers_of_test:slow has had message '{only}' for " in line
    assert "keep time_limit below half of the broker's consumer_timeout" in line
    peer.until(lambda: report(port).consumer("work")["joined"] >= 1)
    (tmp_path / "gate").touch()
    ledger.replies(1)
    peer.until(lambda: report(port).consumer("work")["acked"] == 1)
    found = report(port)
    assert runs(tmp_path) == {only: 1}
    assert found.consumer("work")["ack_timeouts"] == found.consumer("work")["channel_errors"]["406"] >= 1
    assert found.consumer("other")["connections"] == 1
    assert daemon.stop() == 0
    ledger.check()
    peer.close()
