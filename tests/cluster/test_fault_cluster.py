"""Nodes of a cluster die, freeze and fall apart; rpcd goes on with those that are left, and loses nothing.

Run by `script/test --cluster`.
"""

import pathlib
import time

import pytest
from cluster import TICK, Cluster, Member, all_frozen
from daemon import Daemon, StartDaemon
from ledger import HANDLER, Ledger, runs
from peer import Peer
from report import get_report as report

CONFIG = """
[broker]
heartbeat = 4
connect_timeout = 5
[service]
http = "tcp:{port}:interface=127.0.0.1"
confirm_timeout = {confirm_timeout}
[queues.work]
type = "{kind}"
[consumers.work]
queue = "work"
handler = "handlers_of_test:{handler}"
workers = 4
{consumer}
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

    def archive(message):
        slow(message)
        raise rpcd.PermanentFailure("for good")
"""
)

AGAIN = "INFO rpcd.consumer: consuming"

pytestmark = pytest.mark.timeout(300)


def config(port: int, handler: str = "note", kind: str = "quorum", confirm_timeout: int = 30, consumer: str = "") -> str:
    return CONFIG.format(port=port, handler=handler, kind=kind, confirm_timeout=confirm_timeout, consumer=consumer)


def make_queue(cluster: Cluster, virtual_host: str, at: Member, kind: str) -> None:
    """Make the work queue as rpcd would, by way of a member, which then leads it."""
    peer = Peer(cluster.url(virtual_host, at))
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "work.archive", "x-queue-type": kind}
    if kind == "quorum":
        arguments |= {"x-delivery-limit": 20, "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    peer.channel.queue_declare("work", durable=True, arguments=arguments)
    peer.close()


def serving(daemon: Daemon) -> str:
    """Return the port of the broker that the consumer has connected to last."""
    lines = daemon.wait_for(r"connected to 127\.0\.0\.1:\d+, .*connection=work")
    return lines[-1].split("127.0.0.1:")[1].split(",")[0]


def check(cluster: Cluster, virtual_host: str, ledger: Ledger, twice: int = 0) -> None:
    """Do the ledger check when all nodes are back: a queue without a leader can't be emptied."""
    cluster.mend()
    ledger.peer = Peer(cluster.url(virtual_host, cluster.members[0]))
    ledger.check(twice=twice)
    ledger.peer.close()


def test_fault_23_confirms_stop_when_two_of_three_are_frozen(
    start: StartDaemon, cluster: Cluster, virtual_host: str, port: int, tmp_path: pathlib.Path
) -> None:
    first, *others = cluster.members
    make_queue(cluster, virtual_host, first, "quorum")
    url = cluster.url(virtual_host, first)
    daemon = start(config(port, "archive", confirm_timeout=2), HANDLERS, at=url)
    peer = Peer(url)
    ledger = Ledger(peer, "work")
    ids = ledger.publish(4)
    daemon.wait_for("running", 4)
    with all_frozen(others):
        (tmp_path / "gate").touch()
        daemon.wait_for("WARNING rpcd.publisher: no confirm for 2 s; to be published again: 4")
    peer.until(lambda: report(port).consumer("work")["archived"] == 4, 90)
    ledger.replies(4, 60)
    more = report(port).publishing["republished"]
    assert more >= 4
    assert runs(tmp_path) == dict.fromkeys(ids, 1)
    assert daemon.stop() == 0
    ledger.check(copies=more, twice=4)
    peer.close()


def test_fault_25_the_leader_of_a_quorum_queue_is_killed(
    start: StartDaemon, cluster: Cluster, virtual_host: str, port: int, tmp_path: pathlib.Path
) -> None:
    first, second, _ = cluster.members
    make_queue(cluster, virtual_host, second, "quorum")
    url = cluster.url(virtual_host, first)
    daemon = start(config(port), HANDLERS, at=url)
    peer = Peer(url)
    ledger = Ledger(peer, "work")
    ledger.publish(100)
    assert cluster.holder(virtual_host, "work") is second
    ledger.publish(100)
    second.kill()
    ledger.publish(100)
    ledger.replies(300, 60)
    assert set(runs(tmp_path)) == set(ledger.published)
    assert report(port).consumer("work")["connections"] == 1  # the same connection all the time
    assert daemon.stop() == 0
    peer.close()
    check(cluster, virtual_host, ledger, twice=16)


def test_fault_26_the_node_of_a_classic_queue_is_killed(
    start: StartDaemon, cluster: Cluster, virtual_host: str, port: int, tmp_path: pathlib.Path
) -> None:
    first, second, _ = cluster.members
    make_queue(cluster, virtual_host, second, "classic")
    assert cluster.holder(virtual_host, "work") is second
    url = cluster.url(virtual_host, first)
    daemon = start(config(port, "slow", "classic"), HANDLERS, at=url)
    peer = Peer(url)
    ledger = Ledger(peer, "work")
    ids = ledger.publish(20)
    daemon.wait_for("running", 4)
    second.kill()
    daemon.wait_for("ERROR rpcd.consumer: the broker cancelled the consumer of 'work': .* the node that has it went away")
    (line, *_) = daemon.wait_for("waiting for it")
    assert "queue 'work'" in line
    found = report(port)
    assert (found.code, found.consumer("work")["cancelled"]) == (503, 1)
    (tmp_path / "gate").touch()
    daemon.wait_for("settled too late", 4)
    second.start()
    daemon.wait_for(AGAIN, 2, 60)
    ledger.replies(20, 60)
    assert runs(tmp_path) == dict.fromkeys(ids, 1)
    assert daemon.stop() == 0
    peer.close()
    check(cluster, virtual_host, ledger)


def test_fault_27_the_node_falls_into_the_minority(
    start: StartDaemon, cluster: Cluster, virtual_host: str, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(config(port), HANDLERS, at=cluster.url(virtual_host))
    ours = next(member for member in cluster.members if str(member.port) == serving(daemon))
    others = cluster.after(ours)
    peer = Peer(cluster.url(virtual_host, ours))
    ledger = Ledger(peer, "work")
    ledger.publish(10)
    ledger.replies(10)
    peer.close()
    for member in others:
        member.kill()
    (line, *_) = daemon.wait_for("WARNING rpcd.connection: .* connection=work", seconds=60)
    refused = daemon.wait_for("refused by other side.*connection=work", seconds=60)[0]
    assert all(f"127.0.0.1:{member.port}" in refused for member in cluster.members), line
    assert report(port).code == 503
    others[0].start()  # two of three: a majority again
    daemon.wait_for(f"{AGAIN}", 2, 90)
    ledger.peer = again = Peer(cluster.url(virtual_host, others[0]))
    ledger.publish(10)
    ledger.replies(20, 60)
    again.until(lambda: report(port).code == 200, 60)
    assert daemon.stop() == 0
    again.close()
    check(cluster, virtual_host, ledger)


def test_fault_27_another_node_is_taken_when_ours_is_killed(
    start: StartDaemon, cluster: Cluster, virtual_host: str, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(config(port, "slow"), HANDLERS, at=cluster.url(virtual_host))
    ours = next(member for member in cluster.members if str(member.port) == serving(daemon))
    peer = Peer(cluster.url(virtual_host, cluster.after(ours)[0]))
    ledger = Ledger(peer, "work")
    ids = ledger.publish(8)
    daemon.wait_for("running", 4)
    ours.kill()
    daemon.wait_for(AGAIN, 2, 60)
    assert serving(daemon) != str(ours.port)
    (tmp_path / "gate").touch()
    ledger.replies(8, 60)
    assert runs(tmp_path) == dict.fromkeys(ids, 1)
    assert daemon.stop() == 0
    peer.close()
    check(cluster, virtual_host, ledger, twice=4)


def test_fault_28_a_partition_with_unsettled_messages_heals(
    start: StartDaemon, cluster: Cluster, virtual_host: str, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(config(port, "slow"), HANDLERS, at=cluster.url(virtual_host))
    ours = next(member for member in cluster.members if str(member.port) == serving(daemon))
    peer = Peer(cluster.url(virtual_host, cluster.after(ours)[0]))
    ledger = Ledger(peer, "work")
    ids = ledger.publish(12)
    daemon.wait_for("running", 4)
    with all_frozen([ours]):  # rpcd's heartbeats end, and the others take the node for dead
        daemon.wait_for(AGAIN, 2, 120)
        (tmp_path / "gate").touch()
        ledger.replies(12, 120)
        began = time.monotonic()
        peer.until(lambda: time.monotonic() - began > 2 * TICK, 3 * TICK)  # it must wake up on its own side of a partition
    peer.close()  # with a reply queue that may not live through the healing
    cluster.mend()
    ledger.peer = again = Peer(cluster.url(virtual_host, cluster.members[0]))
    ledger.publish(4)
    ledger.replies(16, 90)
    found = report(port).consumer("work")
    assert found["redelivered"] >= 4
    assert set(runs(tmp_path)) == set(ledger.published)
    twice = sum(runs(tmp_path).values()) - len(ledger.published)
    assert twice <= len(ids)
    assert daemon.stop() == 0
    ledger.check(twice=found["redelivered"])
    again.close()
