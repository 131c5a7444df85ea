"""The promises of `conformance.py`, kept by the daemon with a real broker: one for all of them."""

import json
import pathlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from conformance import CONFIG, KEY, PROMISES, World
from daemon import Daemon
from peer import Peer, Received
from proxy import Proxy

from rpcd.core.crypto import Keyring
from rpcd.ops.rabbitmq import PrivateNode

VIRTUAL_HOST = "conformance"


def named(number: str, received: Received) -> bool:
    return number in (received.properties.message_id, received.properties.correlation_id)


class BrokerWorld:
    """The config in a daemon, and a plain client of the same broker; what it finds on its way is kept."""

    def __init__(self, peer: Peer, daemon: Daemon, proxy: Proxy, go: pathlib.Path) -> None:
        self._peer = peer
        self._daemon = daemon
        self._proxy = proxy
        self._go = go
        self._found: dict[str, list[Received]] = defaultdict(list)
        self._replies: dict[str, Received] = {}
        go.touch()

    def send(self, key: str, body: Any, exchange: str, properties: Mapping[str, Any], *, asks: bool) -> None:
        said = dict(properties)
        if asks:
            said.setdefault("reply_to", self._peer.reply_queue)
        if asks and exchange:
            self._peer.channel.queue_bind(said["reply_to"], exchange, said["reply_to"])
        if not isinstance(body, bytes):
            said.setdefault("content_type", "application/json")
        self._peer.publish(key, body, exchange, **said)

    def _collect(self) -> None:
        for each in self._peer.replies(0):
            number = each.properties.correlation_id
            assert number not in self._replies, "a second reply"
            self._replies[number] = each

    def reply(self, number: str) -> Received:
        self._peer.until(lambda: self.has_reply(number), what=lambda: f"no reply to {number}")
        return self._replies[number]

    def has_reply(self, number: str) -> bool:
        self._peer.connection.process_data_events(0)
        self._collect()
        return number in self._replies

    def _find(self, queue: str, number: str) -> Received | None:
        self._found[queue] += self._peer.left(queue)
        return next((each for each in self._found[queue] if named(number, each)), None)

    def get(self, queue: str, number: str) -> Received:
        self._peer.until(lambda: self.holds(queue, number), what=lambda: f"{number} does not come to {queue}")
        found = self._find(queue, number)
        assert found is not None
        self._found[queue].remove(found)
        return found

    def holds(self, queue: str, number: str) -> bool:
        return self._find(queue, number) is not None

    def runs(self, number: str, count: int) -> list[dict[str, Any]]:
        def found() -> list[dict[str, Any]]:
            self._found["seen"] += self._peer.left("seen")
            return [each.json for each in self._found["seen"] if named(number, each)]

        self._peer.until(lambda: len(found()) >= count, what=lambda: f"{number} does not run {count} times")
        return found()

    def encrypt(self, value: str) -> str:
        return Keyring([KEY]).seal(value.encode(), time.time())

    def lose_the_ack(self, number: str, key: str) -> None:
        self._go.unlink()
        consuming = len(self._daemon.wait_for("consuming, workers"))
        self.send(key, {}, "", {"message_id": number, "correlation_id": number}, asks=True)
        self.runs(number, 1)
        self._proxy.cut(key)
        self._daemon.wait_for("consuming, workers", consuming + 1)
        self._go.touch()


@pytest.fixture(scope="module")
def running(node: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Proxy, pathlib.Path]]:
    """One daemon for all promises."""
    directory = tmp_path_factory.mktemp("conformance")
    (directory / "rpcd.toml").write_text(CONFIG)
    (directory / "rpcd.toml").chmod(0o600)  # it has a key
    node.add_virtual_hosts([VIRTUAL_HOST])
    setup = Peer(node.url(VIRTUAL_HOST))
    setup.channel.queue_declare("elsewhere", durable=True)
    setup.close()
    proxy, go = Proxy(node.port), directory / "go"
    daemon = Daemon(directory / "rpcd.toml", proxy.url(node.url(VIRTUAL_HOST)), PROMISED_GO=str(go)).ready()
    yield daemon, proxy, go
    code = daemon.stop()
    daemon.kill()
    proxy.close()
    assert code == 0, daemon.output
    assert "CRITICAL" not in daemon.output
    assert "Unhandled" not in daemon.output


@pytest.fixture(scope="module")
def world(running: tuple[Daemon, Proxy, pathlib.Path], node: PrivateNode) -> Iterator[World]:
    client = Peer(node.url(VIRTUAL_HOST))
    yield BrokerWorld(client, *running)
    client.close()


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_the_daemon_keeps_a_promise(promise: Callable[[World], None], world: World) -> None:
    promise(world)


def test_a_reply_is_told_as_json(world: World) -> None:
    world.send("auto", {}, "", {"correlation_id": "last", "message_id": "last"}, asks=True)
    assert json.loads(world.reply("last").body) == world.reply("last").json
