"""Messages that are trouble by themselves: poison, twice the same at once, many of one key, returned too often."""

import json
import pathlib
import re
import struct
import urllib.request
from typing import Any

import pika
import pytest
from daemon import Daemon, StartDaemon
from ledger import HANDLER, Ledger, runs
from peer import Peer
from proxy import Proxy

import rpcd
from rpcd.ops.rabbitmq import PrivateNode

CONFIG = """
[service]
http = "tcp:0:interface=127.0.0.1"
[queues.work]
type = "{kind}"
[consumers.work]
queue = "work"
handler = "handlers_of_test:note"
workers = 4
"""

GATED = (
    HANDLER
    + """
    import logging, time

    note_it, here = note, pathlib.Path(__file__).parent

    def note(message):
        logging.info("running %s", message.message_id)
        while not (here / message.body.get("gate", ".")).exists():
            time.sleep(0.01)
        return note_it(message)
"""
)


def report_of(daemon: Daemon) -> Any:
    """Ask the daemon how its consumer does."""
    port = int(daemon.wait_for("health is told on")[0].rpartition("port=")[2].rstrip(")"))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready") as answer:
        return json.load(answer)["consumers"][0]


# 41: headers that pika can't decode -----------------------------------------------------------------


class RawHeaders(pika.BasicProperties):
    """Properties whose headers are these bytes."""

    raw = b""

    def encode(self) -> list[bytes]:
        flags = 1 << 13 | 1 << 12 | 1 << 10 | 1 << 9 | 1 << 7
        texts = [str(each).encode() for each in (self.correlation_id, self.reply_to, self.message_id)]
        table = struct.pack(">I", len(self.raw)) + self.raw
        return [struct.pack(">H", flags), table, b"\x02", *(bytes([len(each)]) + each for each in texts)]


def nested(depth: int) -> bytes:
    """Tables in tables, each the only entry of the one around it."""
    table = b""
    for _ in range(depth):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    return table


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize(
    ("raw", "archived"),
    [(b"\x01tT" + struct.pack(">Q", 2**63), True), (nested(900), True), (b"\x02\xff\xfeI\x00\x00\x00\x01", False)],
    ids=["timestamp", "depth", "name"],
)
def test_fault_41_headers_that_pika_cannot_decode(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, kind: str, raw: bytes, archived: bool
) -> None:
    daemon = start(CONFIG.format(kind=kind), HANDLER)
    ledger = Ledger(peer, "work")
    ledger.publish(5)
    properties = RawHeaders(correlation_id="poison", message_id="poison", reply_to=peer.reply_queue)
    properties.raw = raw
    peer.channel.basic_publish("", "work", b"{}", properties, mandatory=True)
    ledger.published.append("poison")
    ledger.publish(5)
    ledger.replies(11)
    assert daemon.stop() == 0
    assert daemon.output.count("INFO rpcd.consumer: consuming") == 1  # its connection lived
    assert ledger.check()["archive"] == ({"poison": 1} if archived else {})
    assert runs(tmp_path)["poison"] == (0 if archived else 1)
    said = re.search("WARNING rpcd.consumer: archived: bad message: headers: .* message_id=poison", daemon.output)
    assert (said is not None) == archived


# 42: the same message twice at once -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_fault_42_the_same_message_is_delivered_twice_at_once(
    start: StartDaemon, peer: Peer, proxy: Proxy, url: str, tmp_path: pathlib.Path, kind: str
) -> None:
    daemon = start(CONFIG.format(kind=kind), GATED, at=proxy.url(url))
    ledger = Ledger(peer, "work")
    ids = ledger.publish(4, body={"gate": "open"})
    daemon.wait_for("running", 4)
    assert proxy.reset(name="work") == 1
    daemon.wait_for("INFO rpcd.consumer: consuming", 2)
    peer.until(lambda: report_of(daemon)["joined"] == 4)
    (tmp_path / "open").touch()
    ledger.replies(4)
    assert report_of(daemon)["stale_settlements"] == 4
    assert daemon.stop() == 0
    ledger.check()
    assert runs(tmp_path) == dict.fromkeys(ids, 1)


# 43: long waits for a key ---------------------------------------------------------------------------


def test_fault_43_a_hundred_messages_of_one_key_let_another_pass(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    daemon = start(CONFIG.format(kind="quorum") + 'lock = "body.key"\nprefetch = 128\n', GATED)
    ledger = Ledger(peer, "work")
    same = ledger.publish(100, body={"key": "a", "gate": "open"})
    (other,) = ledger.publish(body={"key": "b"})
    ledger.replies(1)
    assert set(ledger.answered) == {other}
    assert report_of(daemon)["running"] == 1  # those that wait have no thread
    (tmp_path / "open").touch()
    ledger.replies(101)
    assert daemon.stop() == 0
    ledger.check()
    assert (tmp_path / "ledger").read_text().split() == [other, *same]


# 44: prefetch ---------------------------------------------------------------------------------------


def test_fault_44_a_prefetch_of_0_is_refused(start: StartDaemon) -> None:
    daemon = start(CONFIG.format(kind="quorum") + "prefetch = 0\n", HANDLER, wait=False)
    assert daemon.wait() == 78
    assert "consumers.work.prefetch: expected a whole number from 1, got 0" in daemon.output


def test_fault_44_the_prefetch_is_the_consumers_own_and_twice_its_workers(
    start: StartDaemon, node: PrivateNode, virtual_host: str
) -> None:
    start(CONFIG.format(kind="quorum"), HANDLER)
    told = node.ctl("list_consumers", "-p", virtual_host, "--silent", "--no-table-headers", "prefetch_count")
    assert told.split() == ["8"]
    sources = pathlib.Path(rpcd.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if "global_qos" in path.read_text()] == []


# 45: another instance's virtual host ----------------------------------------------------------------


def test_fault_45_a_virtual_host_that_goes_is_the_trouble_of_one_process(
    start: StartDaemon, peer: Peer, node: PrivateNode, virtual_host: str
) -> None:
    gone = f"{virtual_host}-gone"
    node.add_virtual_hosts([gone])
    other = start(CONFIG.format(kind="quorum"), HANDLER, at=node.url(gone))
    daemon = start(CONFIG.format(kind="quorum"), HANDLER)
    ledger = Ledger(peer, "work")
    ledger.publish(10)
    node.ctl("delete_vhost", gone)
    ledger.publish(10)
    ledger.replies(20)
    other.wait_for(f"vhost '?{gone}'? (is down|not found)")  # it goes on trying, for it has consumed before
    ledger.publish(10)
    ledger.replies(30)
    assert daemon.stop() == 0
    assert len([line for line in daemon.lines if "INFO rpcd.consumer: consuming" in line]) == 1
    ledger.check()


# 47: the broker gives up ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raise rpcd.Nack(delay=0)", 'raise ValueError("no")'])
def test_fault_47_what_is_returned_too_often_is_archived_by_the_broker(start: StartDaemon, peer: Peer, how: str) -> None:
    daemon = start(
        CONFIG.format(kind="quorum").replace("[consumers.work]", "delivery_limit = 2\n[consumers.work]")
        + 'on_error = "requeue"\n',
        f"""
    import rpcd

    def note(message):
        if message.message_id == "id0":
            {how}
        return {{"id": message.message_id}}
    """,
    )
    ledger = Ledger(peer, "work")
    ledger.publish(10)
    ledger.replies(9)
    given_up = peer.get("work.archive")
    assert given_up.properties.message_id == "id0"
    assert given_up.headers["x-death"][0]["reason"] == "delivery_limit"
    peer.publish("work.archive", given_up.body, message_id="id0")
    assert report_of(daemon)["requeued"] == 3
    assert daemon.stop() == 0
    assert ledger.check()["archive"] == {"id0": 1}
