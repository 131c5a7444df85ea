"""Queues are deleted, refused or other than expected, and callers go away before their reply."""

import base64
import pathlib
import time
from collections.abc import Iterator

import pika
import pytest
from daemon import Daemon, StartDaemon
from ledger import HANDLER, Ledger, runs
from peer import Peer
from proxy import Proxy
from report import get_report as report

from rpcd.ops.rabbitmq import PrivateNode, free_ports

CONFIG = """
[service]
http = "tcp:{port}:interface=127.0.0.1"
[queues.work]
{queue}
[consumers.work]
queue = "work"
handler = "handlers_of_test:{handler}"
{consumer}
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

BACK = "INFO rpcd.consumer: consuming"


def config(port: int, handler: str = "note", queue: str = "", consumer: str = "") -> str:
    return CONFIG.format(port=port, handler=handler, queue=queue, consumer=consumer)


def all_well(daemon: Daemon, ledger: Ledger, count: int = 3) -> None:
    """Insist that requests are answered, that everything published is found, and that the daemon stops in order."""
    ledger.publish(count)
    ledger.replies(len(ledger.published))
    assert daemon.stop() == 0
    ledger.check()


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


# 17: the queue is deleted -------------------------------------------------------------------------


def test_fault_17_a_deleted_queue_is_made_again(start: StartDaemon, peer: Peer, port: int) -> None:
    daemon = start(config(port), HANDLERS)
    peer.channel.queue_delete("work")
    daemon.wait_for(r"ERROR rpcd\.consumer: the broker cancelled the consumer of 'work': its queue was deleted")
    daemon.wait_for(BACK, 3)
    assert report(port).consumer("work")["cancelled"] == 1
    assert report(port).consumer("other")["connections"] == 1
    all_well(daemon, Ledger(peer, "work"))


def test_fault_17_a_deleted_archive_is_made_again(start: StartDaemon, peer: Peer, port: int) -> None:
    daemon = start(config(port), HANDLERS)
    peer.channel.queue_delete("work.archive")
    ledger = Ledger(peer, "work")
    (bad,) = ledger.publish(1, b"{bad")
    daemon.wait_for("a copy found no queue")
    daemon.wait_for(BACK, 3)
    ledger.replies(1)  # answered when the archive has it
    assert daemon.stop() == 0
    assert ledger.check()["archive"] == {bad: 1}


def test_fault_17_a_deleted_queue_of_somebody_else_is_waited_for(start: StartDaemon, peer: Peer, port: int) -> None:
    peer.channel.queue_declare("work", durable=True)
    daemon = start(config(port, queue="passive = true"), HANDLERS)
    peer.channel.queue_delete("work")
    (line,) = daemon.wait_for("no queue 'work' in vhost .*; waiting for it")
    assert "queues.work: the broker refused queue 'work': 404 NOT_FOUND" in line
    found = report(port)
    assert (found.code, found.consumer("work")["state"], found.consumer("other")["state"]) == (
        503,
        "connecting",
        "consuming",
    )
    assert "waiting for it" in found.consumer("work")["why"]
    assert not peer.exists("work")
    peer.channel.queue_declare("work", durable=True)
    daemon.wait_for(BACK, 3)
    assert report(port).code == 200
    all_well(daemon, Ledger(peer, "work"))
    assert len(daemon.wait_for("waiting for it")) == 1


def test_fault_17_a_handler_that_outlives_its_queue(
    start: StartDaemon, peer: Peer, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(config(port, "slow"), HANDLERS)
    ledger = Ledger(peer, "work")
    ids = ledger.publish(1)
    daemon.wait_for("running")
    peer.channel.queue_delete("work")  # and with it the request that runs
    daemon.wait_for(BACK, 3)
    (tmp_path / "gate").touch()
    daemon.wait_for("settled too late")
    assert report(port).consumer("work")["stale_settlements"] == 1
    assert runs(tmp_path) == dict.fromkeys(ids, 1)
    ledger.published.clear()
    all_well(daemon, ledger, 1)


# 18: what is declared is refused ------------------------------------------------------------------


@pytest.fixture
def user(node: PrivateNode, virtual_host: str) -> Iterator[str]:
    name = f"user-{virtual_host}"
    node.ctl("add_user", name, "pw")
    node.ctl("set_permissions", "--vhost", virtual_host, name, ".*", ".*", ".*")
    yield name
    node.ctl("delete_user", name)


def test_fault_18_other_arguments_at_the_start(start: StartDaemon, peer: Peer, port: int) -> None:
    peer.channel.queue_declare("work", durable=True)
    ledger = Ledger(peer, "work")
    ids = ledger.publish(2)
    daemon = start(config(port), HANDLERS, wait=False)
    assert daemon.wait() == 78
    assert "queues.work: the broker refused queue 'work': 406 PRECONDITION_FAILED - inequivalent arg" in daemon.output
    assert "set passive = true to take it as it is" in daemon.output
    assert sorted(ledger.check()["queue"]) == ids


def tries(proxy: Proxy, name: str, more: int) -> None:
    """Wait until a consumer has tried to connect some times more."""
    known = len([link for link in proxy.links if link.name == name])
    deadline = time.monotonic() + 60
    while len([link for link in list(proxy.links) if link.name == name]) < known + more:
        assert time.monotonic() < deadline, f"{name} does not try again"
        time.sleep(0.02)


def test_fault_18_other_arguments_after_it_has_worked(
    start: StartDaemon, proxy: Proxy, peer: Peer, url: str, port: int
) -> None:
    daemon = start(config(port), HANDLERS, at=proxy.url(url))
    ledger = Ledger(peer, "work")
    ledger.publish(1)
    ledger.replies(1)
    proxy.refuse()
    proxy.cut("work")
    daemon.wait_for("refused by other side")
    peer.channel.queue_delete("work")
    peer.channel.queue_declare("work", durable=True)
    proxy.accept()
    (line,) = daemon.wait_for("inequivalent arg")
    assert "ERROR rpcd.connection: queues.work: the broker refused queue 'work': 406" in line
    assert "received" in line
    assert "current is" in line
    tries(proxy, "work", 2)
    assert report(port).code == 503
    assert "inequivalent arg" in report(port).consumer("work")["why"]
    ledger.publish(2)
    peer.channel.queue_delete("work")  # the administrator moves them out of the way
    del ledger.published[1:]
    daemon.wait_for(BACK, 3)
    assert report(port).code == 200
    assert len(daemon.wait_for("inequivalent arg")) == 1
    all_well(daemon, ledger)


@pytest.mark.parametrize(
    ("permissions", "says"),
    [
        (("^$", ".*", ".*"), "grant the permission `configure`"),
        ((".*", ".*", "^work.retry"), "grant the permission `read` on 'work'"),
    ],
)
def test_fault_18_a_permission_that_is_taken_away_and_given_back(
    start: StartDaemon,
    proxy: Proxy,
    peer: Peer,
    node: PrivateNode,
    virtual_host: str,
    user: str,
    port: int,
    permissions: tuple[str, str, str],
    says: str,
) -> None:
    daemon = start(config(port), HANDLERS, at=proxy.url(node.url(virtual_host, user, "pw")))
    ledger = Ledger(peer, "work")
    node.ctl("set_permissions", "--vhost", virtual_host, user, *permissions)
    proxy.cut("work")
    (line,) = daemon.wait_for(says)
    assert "ERROR rpcd.connection" in line
    assert "403 ACCESS_REFUSED" in line
    ledger.publish(2)
    tries(proxy, "work", 1)
    assert report(port).code == 503
    node.ctl("set_permissions", "--vhost", virtual_host, user, ".*", ".*", ".*")
    daemon.wait_for(BACK, 3)
    assert len(daemon.wait_for(says)) == 1
    all_well(daemon, ledger, 1)


# 20 and 21: the caller goes away ------------------------------------------------------------------


@pytest.mark.parametrize("confirmed", ["false", "true"])
def test_fault_20_a_reply_queue_that_is_gone(
    start: StartDaemon, peer: Peer, url: str, port: int, tmp_path: pathlib.Path, confirmed: str
) -> None:
    daemon = start(config(port, "slow", consumer=f"reply_confirm = {confirmed}"), HANDLERS)
    caller = Peer(url)
    gone = Ledger(caller, "work")
    ids = gone.publish(2)
    daemon.wait_for("running", 1)
    caller.close()
    (tmp_path / "gate").touch()
    (line, _) = daemon.wait_for("INFO rpcd.consumer: a reply came back, its caller has gone", 2)
    assert "correlation_id=id" in line
    peer.until(lambda: report(port).consumer("work")["acked"] == 2)
    found = report(port).consumer("work")
    assert (found["replies_unroutable"], found["retried"], found["archived"]) == (2, 0, 0)
    assert runs(tmp_path) == dict.fromkeys(ids, 1)
    assert daemon.stop() == 0
    assert peer.left("work") == peer.left("work.archive") == []


DIRECT = "amq.rabbitmq.reply-to"


def test_fault_21_a_caller_that_waits_directly(start: StartDaemon, peer: Peer, port: int) -> None:
    daemon = start(config(port), HANDLERS)
    answers: list[bytes] = []
    peer.channel.basic_consume(DIRECT, lambda _ch, _method, _props, body: answers.append(body), auto_ack=True)
    peer.publish("work", b"{}", message_id="id0", reply_to=DIRECT)
    peer.until(lambda: len(answers) == 1)
    peer.until(lambda: report(port).consumer("work")["acked"] == 1)
    found = report(port).consumer("work")
    assert (found["replied"], found["replies_direct"], found["replies_unroutable"]) == (1, 1, 0)
    assert daemon.stop() == 0
    assert len(answers) == 1
    assert peer.left("work") == []


def test_fault_21_a_caller_that_waited_directly_and_is_gone(
    start: StartDaemon, peer: Peer, url: str, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(config(port, "slow"), HANDLERS)
    caller = Peer(url)
    caller.channel.basic_consume(DIRECT, lambda *_reply: None, auto_ack=True)
    caller.publish("work", b"{}", message_id="id0", reply_to=DIRECT)
    daemon.wait_for("running")
    caller.close()
    (tmp_path / "gate").touch()
    peer.until(lambda: report(port).consumer("work")["acked"] == 1)
    found = report(port).consumer("work")
    assert (found["replies_direct"], found["connections"], found["archived"]) == (1, 1, 0)
    assert runs(tmp_path) == {"id0": 1}
    all_well(daemon, Ledger(peer, "other"))
    assert peer.left("work") == []


PID = bytes((131, 88, 119, 3)) + b"a@b" + bytes(12)
WHOLE = f"{DIRECT}.{base64.b64encode(PID).decode()}.key"
"""Of the form that RabbitMQ gives, a whole Erlang pid term, but of a node that nobody knows."""


@pytest.mark.parametrize("token", [f"{DIRECT}.AAAA.bbb", WHOLE], ids=["broken", "whole"])
def test_fault_21_a_forged_caller(start: StartDaemon, peer: Peer, port: int, tmp_path: pathlib.Path, token: str) -> None:
    daemon = start(config(port), HANDLERS)
    ledger = Ledger(peer, "work")
    channel = peer.connection.channel()
    channel.basic_publish("", "work", b"{}", pika.BasicProperties(reply_to=token, message_id="forged", delivery_mode=2))
    ledger.publish(5)
    ledger.replies(5)

    def settled() -> bool:
        found = report(port).consumer("work")
        return bool(found["archived"] + found["acked"] >= 6 and found["state"] == "consuming")

    peer.until(settled, 60)
    found = report(port)
    assert found.consumer("work")["connections"] <= 2
    assert found.consumer("other")["connections"] == 1
    assert runs(tmp_path)["forged"] <= 1
    assert daemon.stop() == 0
    left = [message.properties.message_id for message in peer.left("work.archive")]
    assert left in (["forged"], [])  # newer brokers drop a reply to a node that they don't know: it is done
    assert peer.left("work") == []
    ledger.check(twice=5)
