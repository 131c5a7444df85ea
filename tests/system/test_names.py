"""What a person sees in RabbitMQ's own pages: who is connected, and what for."""

import pathlib
import re
import socket

from command import running
from daemon import StartDaemon
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode

HOST = re.escape(socket.gethostname())

CONFIG = '[queues.work]\n[consumers.work]\nqueue = "work"\nhandler = "handlers_of_test:echo"\n'


def connections(node: PrivateNode, virtual_host: str) -> list[str]:
    listed = node.ctl("list_connections", "vhost", "client_properties")
    return [line for line in listed.splitlines() if line.startswith(f"{virtual_host}\t")]


def test_connections_and_consumers_of_a_daemon_say_whose_they_are(
    start: StartDaemon, node: PrivateNode, virtual_host: str, tmp_path: pathlib.Path
) -> None:
    daemon = start(CONFIG, "def echo(message):\n    return message.body\n")
    pid = daemon.process.pid
    listed = "\n".join(connections(node, virtual_host))
    for what in ("work", "publisher"):
        assert re.search(rf'"connection_name","rpcd {what} of rpcd\.toml on {HOST} \(pid {pid}\)"', listed)
    assert '"product","rpcd"' in listed
    (consumer,) = node.ctl("list_consumers", "-p", virtual_host, "queue_name", "consumer_tag").splitlines()[-1:]
    assert re.fullmatch(rf"work\trpcd\.work\.{HOST}\.{pid}\.[0-9a-f]{{6}}", consumer)


def test_a_command_says_which_it_is(node: PrivateNode, virtual_host: str, url: str, peer: Peer) -> None:
    peer.channel.exchange_declare("shop", "topic")
    with running("tail", "shop", url=url) as tail:
        tail.wait_for("copying", tail.err)
        listed = "\n".join(connections(node, virtual_host))
        assert re.search(rf'"connection_name","rpcd tail on {HOST} \(pid {tail.process.pid}\)"', listed)
        consumers = node.ctl("list_consumers", "-p", virtual_host, "consumer_tag")
        assert re.search(rf"rpcd\.tail\.{HOST}\.{tail.process.pid}\.[0-9a-f]{{6}}", consumers)


def test_a_call_says_that_it_is_one(node: PrivateNode, virtual_host: str, url: str, peer: Peer) -> None:
    peer.channel.queue_declare("silent")
    with running("call", "silent", "{}", url=url) as call:
        peer.get("silent")
        listed = "\n".join(connections(node, virtual_host))
        assert re.search(rf'"connection_name","rpcd call on {HOST} \(pid {call.process.pid}\)"', listed)
