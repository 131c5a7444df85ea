"""Connections and brokers go away; rpcd consumes again by itself, and no message goes with them."""

import json
import pathlib
import threading

import pika
import pytest
from command import rpcd
from daemon import StartDaemon
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode, free_ports

MESSAGES = 2000

LEDGER = """
    import logging, os, pathlib, time
    import rpcd

    ledger = os.open(pathlib.Path(__file__).with_name("ledger"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    gate = pathlib.Path(__file__).with_name("gate")

    def note(message):
        os.write(ledger, f"{message.message_id}\\n".encode())

    def slow(message):
        logging.info("running %s", message.message_id)
        os.write(ledger, f"{message.message_id}\\n".encode())
        while not gate.exists():
            time.sleep(0.01)
        return {"id": message.message_id}

    def fail(message):
        slow(message)
        raise rpcd.PermanentFailure("not today")
"""

CONFIG = """
[queues.work]
type = "{kind}"
[consumers.work]
queue = "work"
handler = "handlers_of_test:{handler}"
workers = 8
"""


def handled(tmp_path: pathlib.Path) -> list[str]:
    return (tmp_path / "ledger").read_text().split() if (tmp_path / "ledger").exists() else []


def _counted(tmp_path: pathlib.Path, name: str) -> int:
    """Ask the daemon for one of its counters."""
    report = rpcd("ctl", "--socket", str(tmp_path / "control"), "--json", "status")
    return int(json.loads(report.stdout)["result"]["consumers"][0][name])


class Sender(threading.Thread):
    """Publishes ids with confirms, from a connection that it makes again whenever it must; unconfirmed ids go again."""

    def __init__(self, url: str, count: int) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.left = [f"id{number}" for number in range(count)]
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
            peer.publish("work", b"{}", message_id=self.left[-1])
            self.confirmed.append(self.left.pop())
            if len(self.confirmed) >= total // 2:
                self.half.set()
        peer.close()


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_the_broker_is_killed_while_messages_flow(
    start: StartDaemon, own_node: PrivateNode, tmp_path: pathlib.Path, kind: str
) -> None:
    daemon = start(CONFIG.format(kind=kind, handler="note"), LEDGER, at=own_node.url())
    # a quorum queue that is killed seconds after its declaration may come back without a leader (rabbitmq-server#15725)
    own_node.ctl("eval", "ra_log_wal:force_roll_over(ra_log_wal).")
    sender = Sender(own_node.url(), MESSAGES)
    sender.start()
    assert sender.half.wait(60)
    own_node.kill()
    daemon.wait_for("trying again")
    own_node.start()
    sender.join(120)
    assert not sender.left
    daemon.wait_for("INFO rpcd.consumer: consuming", 2)
    peer = Peer(own_node.url())
    peer.until(lambda: set(sender.confirmed) <= set(handled(tmp_path)), 60, lambda: "some messages were never handled")
    assert daemon.stop() == 0
    assert peer.left("work") == []
    assert peer.left("work.archive") == []
    peer.close()


def test_an_operator_closes_the_connections(start: StartDaemon, peer: Peer, node: PrivateNode, virtual_host: str) -> None:
    daemon = start(CONFIG.format(kind="quorum", handler="note"), LEDGER)
    node.ctl("close_all_connections", "--vhost", virtual_host, "maintenance")
    daemon.wait_for("the broker closed the connection: 320 CONNECTION_FORCED - maintenance")
    daemon.wait_for("INFO rpcd.consumer: consuming", 2)
    again = Peer(peer.url)
    assert again.call("work").json["success"] is True
    again.close()


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_fault_42_a_handler_that_outlives_its_connection_does_not_run_twice(
    start: StartDaemon, peer: Peer, node: PrivateNode, virtual_host: str, tmp_path: pathlib.Path, kind: str
) -> None:
    daemon = start('[service]\ncontrol = "control"\n' + CONFIG.format(kind=kind, handler="slow"), LEDGER)
    ids = [f"slow{number}" for number in range(4)]
    reply_to = "amq.gen-kept"  # a name that only looks server-made, so that it outlives the connection
    resource = f'rabbit_misc:r(<<"{virtual_host}">>, queue, <<"{reply_to}">>)'
    node.ctl("eval", f'rabbit_amqqueue:declare({resource}, true, false, [], none, <<"test">>).')
    for each in ids:
        peer.publish("work", b"{}", message_id=each, reply_to=reply_to, correlation_id=each)
    daemon.wait_for("running", 4)
    node.ctl("close_all_connections", "--vhost", virtual_host, "cut")
    daemon.wait_for("INFO rpcd.consumer: consuming", 2)
    client = Peer(peer.url)
    client.until(lambda: _counted(tmp_path, "joined") == 4)
    (tmp_path / "gate").touch()
    answers = list(client.take(reply_to, 4))
    assert sorted(answer.json["data"]["id"] for answer in answers) == ids
    assert daemon.stop() == 0
    assert sorted(handled(tmp_path)) == ids
    assert client.left("work") == []
    assert client.left(reply_to) == []
    client.close()


def test_a_deleted_queue_is_made_again(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG.format(kind="quorum", handler="note"), LEDGER)
    peer.channel.queue_delete("work")
    daemon.wait_for("the broker cancelled the consumer of 'work'")
    daemon.wait_for("INFO rpcd.consumer: consuming", 2)
    assert peer.call("work").json["success"] is True


def test_a_deleted_archive_is_made_again_and_nothing_is_lost(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG.format(kind="quorum", handler="note"), LEDGER)
    peer.channel.queue_delete("work.archive")
    peer.publish("work", b"{bad")
    daemon.wait_for("INFO rpcd.consumer: consuming", 2)
    assert peer.get("work.archive").body == b"{bad"


def test_hosts_that_are_down_are_passed_over(start: StartDaemon, peer: Peer, node: PrivateNode, url: str) -> None:
    dead = free_ports(2)
    hosts = f"127.0.0.1:{dead[0]},127.0.0.1:{dead[1]},127.0.0.1:{node.port}"
    start(CONFIG.format(kind="quorum", handler="note"), LEDGER, at=url.replace(f"127.0.0.1:{node.port}", hosts))
    assert peer.call("work").json["success"] is True


def test_no_host_at_all_is_said_once_with_every_cause_and_never_ends_the_process(start: StartDaemon) -> None:
    ports = free_ports(2)
    at = f"amqp://guest:guest@127.0.0.1:{ports[0]},no-such-host.invalid:{ports[1]}/"
    daemon = start(CONFIG.format(kind="quorum", handler="note"), LEDGER, at=at, wait=False)
    (line, *_) = daemon.wait_for("connection=work")
    assert f"127.0.0.1:{ports[0]}: refused by other side: 111: Connection refused" in line
    assert f"no-such-host.invalid:{ports[1]}: the name is unknown" in line
    assert daemon.stop() == 0


def test_an_alarm_delays_copies_and_loses_none(
    start: StartDaemon, peer: Peer, own_node: PrivateNode, tmp_path: pathlib.Path
) -> None:
    daemon = start(CONFIG.format(kind="quorum", handler="fail"), LEDGER, at=own_node.url())
    client = Peer(own_node.url())
    for number in range(20):
        client.publish("work", b"{}", message_id=f"m{number}")
    daemon.wait_for("running", 8)
    own_node.ctl("eval", "rabbit_alarm:set_alarm({{resource_limit,memory,node()},[]}).")
    (tmp_path / "gate").touch()
    daemon.wait_for("the broker blocks publishing: low on memory")
    assert client.left("work.archive") == []
    own_node.ctl("eval", "rabbit_alarm:clear_alarm({resource_limit,memory,node()}).")
    daemon.wait_for("the broker takes publications again")
    archived = [message.properties.message_id for message in client.take("work.archive", 20)]
    assert sorted(archived) == sorted(f"m{number}" for number in range(20))
    assert daemon.stop() == 0
    assert client.left("work") == []
    client.close()
