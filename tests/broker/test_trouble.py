"""Connections and brokers go away; rpcd consumes again by itself, and no message goes with them."""

import json
import pathlib

import pytest
from command import rpcd
from daemon import StartDaemon
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode, free_ports

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
