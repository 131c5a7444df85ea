"""The network between rpcd and its broker falls silent: nothing passes, nothing ends, and nobody says so.

A heartbeat's loss takes up to 2(h+5) s to be noticed, so the black holes of rows 5 to 7 open at the same time for daemons of
their own, and each test looks at one of them.
"""

import contextlib
import pathlib
import re
import signal
import ssl
import textwrap
import time
from collections.abc import Callable, Iterator

import pytest
from certificates import Authority
from daemon import Daemon, StartDaemon
from ledger import HANDLER, Ledger, runs
from peer import Peer
from proxy import DOWN, UP, WAYS, Link, Proxy
from report import get_report

from rpcd.ops.rabbitmq import PrivateNode, free_ports

HEARTBEAT = 2

HANDLERS = (
    HANDLER
    + """
    import logging, time

    gate = pathlib.Path(__file__).with_name("gate")
    BIG = "x" * (8 * 1024 * 1024 - 100)

    def slow(message):
        note(message)
        logging.info("running %s", message.message_id)
        while not gate.exists():
            time.sleep(0.01)
        return {"id": message.message_id}

    def answer_much(message):
        slow(message)
        return BIG

    def publish_much(message):
        message.publish("", "elsewhere", BIG)
        return slow(message)
"""
)

CONFIG = """
[broker]
connect_timeout = 1
{tls}
[service]
http = "tcp:{port}:interface=127.0.0.1"
drain_timeout = 3
[queues.work]
[consumers.work]
queue = "work"
handler = "handlers_of_test:{handler}"
workers = 4
{more}
[consumers.work.retry]
delays = [0.2]
"""

SECONDS = 2 * (HEARTBEAT + 5) + 2 + 20
"""How long to wait for the end of a dead connection: as long as it may take, and what a busy machine may need beyond."""

HEARTBEATS_STOPPED = "the broker's heartbeats stopped; trying again in .* connection="
CUT = "does not end by itself: cut off"


class Scene:
    """A daemon, the proxy that it reaches its broker through, and a client, in a virtual host of their own."""

    def __init__(
        self,
        directory: pathlib.Path,
        node: PrivateNode,
        virtual_host: str,
        handler: str,
        authority: Authority | None = None,
        *,
        silent: bool = False,
    ) -> None:
        """With an authority, TLS ends behind the proxy: a black hole takes its goodbyes. `silent`: from the start."""
        self.directory = directory
        self.peer = Peer(node.url(virtual_host))
        self.ledger = Ledger(self.peer, "work", ["200"])
        (self.port,) = free_ports(1)
        self.inner = None if authority is None else Proxy(node.port, tls=server(authority))
        self.proxy = Proxy(node.port if self.inner is None else self.inner.port)
        if silent:
            self.proxy.pause()
        (directory / "handlers_of_test.py").write_text(textwrap.dedent(HANDLERS))
        tls = "" if authority is None else f'[broker.tls]\nca = "{authority.file}"'
        self.write(handler=handler, tls=tls)
        url = self.proxy.url(node.url(virtual_host) if self.inner is None else self.inner.url(node.url(virtual_host)))
        self.daemon = Daemon(directory / "rpcd.toml", url, RABBITMQ_HEARTBEAT=str(HEARTBEAT))

    def write(self, **parts: str) -> None:
        text = CONFIG.format(**{"port": self.port, "tls": "", "more": "", **parts})
        (self.directory / "rpcd.toml").write_text(text.replace("[service]", f"[service]\npath = ['{self.directory}']"))

    def run(self, count: int) -> list[str]:
        """Publish, and wait until as many run as there are workers."""
        ids = self.ledger.publish(count)
        self.daemon.wait_for("running", min(count, 4))
        return ids

    def open_gate(self) -> None:
        (self.directory / "gate").touch()

    def consumes(self, times: int) -> None:
        self.daemon.wait_for("INFO rpcd.consumer: consuming", times, SECONDS)

    def runs(self) -> dict[str, int]:
        return runs(self.directory)

    def close(self) -> None:
        self.daemon.kill()
        self.proxy.close()
        if self.inner is not None:
            self.inner.close()
        self.peer.close()


def server(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("localhost"))
    return context


@pytest.fixture
def scene(tmp_path: pathlib.Path, node: PrivateNode, virtual_host: str) -> Iterator[Callable[..., Scene]]:
    """Make the scene of one test."""
    with contextlib.ExitStack() as stack:

        def make(handler: str = "note", authority: Authority | None = None, *, silent: bool = False) -> Scene:
            made = Scene(tmp_path, node, virtual_host, handler, authority, silent=silent)
            return stack.enter_context(contextlib.closing(made))

        yield make


# Rows 5 to 7: all black holes open at once --------------------------------------------------------

HANDLER_OF = {
    "idle": "note",
    "replies": "answer_much",
    "publications": "publish_much",
    "tls-idle": "note",
    "tls-replies": "answer_much",
    "up": "slow",
    "down": "slow",
}


@pytest.fixture(scope="module")
def scenes(
    node: PrivateNode, _virtual_hosts: Iterator[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Scene]]:
    """Start a daemon for each black hole, give it its messages, and open the hole."""
    authority = Authority(tmp_path_factory.mktemp("authority"), "ours")
    with contextlib.ExitStack() as stack:
        made = {}
        for name, handler in HANDLER_OF.items():
            directory = tmp_path_factory.mktemp(name)
            one = Scene(directory, node, next(_virtual_hosts), handler, authority if "tls" in name else None)
            made[name] = stack.enter_context(contextlib.closing(one))
        for name, one in made.items():
            one.daemon.ready()
            one.peer.channel.queue_declare("elsewhere")
            if HANDLER_OF[name] != "note":
                one.run(6)
            strike(one.proxy, name)
            one.open_gate()
        deadline = time.monotonic() + 2 * SECONDS
        for name, one in made.items():
            while not re.search(PASSED[name], one.daemon.output):
                assert time.monotonic() < deadline, f"{name} is not through:\n{one.daemon.output}"
                for each in made.values():
                    each.peer.connection.process_data_events(0.02)  # the broker drops a client that takes nothing
        yield made


PASSED = dict.fromkeys(HANDLER_OF, "(?s)INFO rpcd.consumer: consuming.*INFO rpcd.consumer: consuming") | {
    "publications": "(?s)connected to.*publisher.*connected to.*publisher"
}
"""What each daemon has said when it is through."""


def strike(proxy: Proxy, name: str) -> None:
    """Silence the connections that are there; new ones pass."""
    silenced = {"replies": ["work"], "publications": ["publisher"]}
    for connection in silenced.get(name, [""] if "tls" in name else ["work", "publisher"]):
        proxy.pause(*((name,) if name in WAYS else WAYS), name=connection)


def finish(one: Scene) -> None:
    """Insist that it goes on, that it ends well, and that nothing is lost, whatever comes out of the hole again."""
    one.ledger.publish(3)
    one.ledger.replies(len(one.ledger.published), SECONDS)
    one.proxy.resume()
    assert one.daemon.stop() == 0
    one.ledger.check()


def test_fault_05_a_dead_peer_while_idle(scenes: dict[str, Scene]) -> None:
    one = scenes["idle"]
    for connection in ("work", "publisher"):
        one.daemon.wait_for(HEARTBEATS_STOPPED + connection, seconds=SECONDS)
    one.consumes(2)
    finish(one)
    assert set(one.runs().values()) == {1}


def test_fault_06_a_dead_peer_with_replies_unsent(scenes: dict[str, Scene]) -> None:
    """Replies as large as these are not kept, so their handlers run again; the first ones never left."""
    one = scenes["replies"]
    one.daemon.wait_for(CUT, seconds=SECONDS)
    one.daemon.wait_for(HEARTBEATS_STOPPED + "work", seconds=SECONDS)
    one.consumes(2)
    finish(one)
    assert set(one.runs().values()) <= {1, 2}
    assert HEARTBEATS_STOPPED + "publisher" not in one.daemon.output


def test_fault_06_a_dead_peer_with_publications_unsent(scenes: dict[str, Scene]) -> None:
    one = scenes["publications"]
    one.daemon.wait_for(CUT, seconds=SECONDS)
    one.daemon.wait_for(HEARTBEATS_STOPPED + "publisher", seconds=SECONDS)
    finish(one)
    assert set(one.runs().values()) == {1}
    assert len(one.peer.left("elsewhere")) == len(one.ledger.published)


def test_fault_07_a_dead_peer_under_tls_while_idle(scenes: dict[str, Scene]) -> None:
    """TLS waits for the other side's goodbye: without the cut it would do so for ever."""
    one = scenes["tls-idle"]
    one.daemon.wait_for(CUT, 2, SECONDS)
    for connection in ("work", "publisher"):
        one.daemon.wait_for(HEARTBEATS_STOPPED + connection, seconds=SECONDS)
    one.consumes(2)
    finish(one)
    assert set(one.runs().values()) == {1}


def test_fault_07_a_dead_peer_under_tls_with_replies_unsent(scenes: dict[str, Scene]) -> None:
    one = scenes["tls-replies"]
    one.daemon.wait_for(CUT, seconds=SECONDS)
    one.daemon.wait_for(HEARTBEATS_STOPPED + "work", seconds=SECONDS)
    one.consumes(2)
    finish(one)
    assert set(one.runs().values()) <= {1, 2}


def test_a_black_hole_on_the_way_up_only(scenes: dict[str, Scene]) -> None:
    """The broker misses rpcd's heartbeats and ends the connection; what it never heard of is written again."""
    one = scenes["up"]
    one.consumes(2)
    finish(one)
    assert "heartbeats stopped" not in one.daemon.output
    assert set(one.runs().values()) == {1}


def test_a_black_hole_on_the_way_down_only(scenes: dict[str, Scene]) -> None:
    """What rpcd wrote has arrived: nothing is answered twice, though no answer of the broker's comes back."""
    one = scenes["down"]
    one.daemon.wait_for(HEARTBEATS_STOPPED + "work", seconds=SECONDS)
    one.consumes(2)
    finish(one)
    assert set(one.runs().values()) == {1}


# Row 9: it is accepted, and never answered --------------------------------------------------------


def only_start(link: Link, way: str, piece: bytes) -> bytes:
    """Let the broker's first words through and nothing after them."""
    return b"" if way == DOWN and link.passed[DOWN] else piece


HANDSHAKES: dict[str, Callable[[Proxy], None]] = {
    "nothing": lambda proxy: proxy.pause(),
    "half": lambda proxy: setattr(proxy, "tamper", only_start),
    "nothing read": lambda proxy: proxy.pause(UP),
}


def answer_again(proxy: Proxy) -> None:
    proxy.tamper = None
    proxy.resume()


@pytest.mark.parametrize("silence", HANDSHAKES)
def test_fault_09_a_broker_that_accepts_and_never_answers(
    start: StartDaemon, peer: Peer, proxy: Proxy, url: str, silence: str
) -> None:
    too_long = "WARNING .*: the AMQP handshake took longer than 1 s; trying again in .* connection=work"
    (port,) = free_ports(1)
    config = CONFIG.format(port=port, tls="", handler="note", more="")
    HANDSHAKES[silence](proxy)
    daemon = start(config, HANDLERS, at=proxy.url(url), wait=False)
    daemon.wait_for(too_long)
    assert get_report(port).code == 503
    answer_again(proxy)
    daemon.ready()
    ledger = Ledger(peer, "work", ["200"])
    ledger.publish(3)
    ledger.replies(3)
    HANDSHAKES[silence](proxy)
    proxy.reset()
    daemon.wait_for(too_long, 2)
    ledger.publish(3)
    answer_again(proxy)
    ledger.replies(6)
    peer.until(lambda: get_report(port).code == 200)
    HANDSHAKES[silence](proxy)
    proxy.reset()
    proxy.wait_for(1)  # a handshake has begun; a stop does not wait for its end
    assert daemon.stop() == 0
    ledger.check()


def test_fault_09_tls_that_never_answers(scene: Callable[..., Scene], tmp_path: pathlib.Path) -> None:
    """The hole is there before the handshake of TLS."""
    one = scene(authority=Authority(tmp_path, "ours"), silent=True)
    one.daemon.wait_for("the AMQP handshake took longer than 1 s; trying again in .* connection=work")
    one.proxy.resume()
    one.daemon.ready()
    one.ledger.publish(3)
    one.ledger.replies(3)
    assert one.daemon.stop() == 0
    one.ledger.check()


# A black hole while it stops or reloads -----------------------------------------------------------


@pytest.mark.parametrize("arrives", [True, False], ids=["late", "never"])
def test_a_black_hole_during_a_drain(scene: Callable[..., Scene], arrives: bool) -> None:
    """What it wrote into the hole may come out of it, or never: either way each message is found once."""
    one = scene("slow")
    one.daemon.ready()
    one.run(12)
    one.daemon.signal(signal.SIGTERM)
    one.daemon.wait_for("SIGTERM: stopping")
    one.proxy.pause()
    one.open_gate()
    assert one.daemon.wait(SECONDS) == 75
    if arrives:
        one.proxy.resume()
    else:
        one.proxy.reset()
    found = one.ledger.check()
    assert set(found["queue"]) | set(found["answered"]) == set(one.ledger.published)
    assert arrives or not found["answered"]


def test_a_black_hole_before_a_drain(scene: Callable[..., Scene]) -> None:
    one = scene()
    one.daemon.ready()
    one.proxy.pause()
    one.ledger.publish(5)
    one.daemon.signal(signal.SIGTERM)
    assert one.daemon.wait(SECONDS) == 75
    one.proxy.reset()
    assert len(one.ledger.check()["queue"]) == 5


def test_a_black_hole_during_a_reload(scene: Callable[..., Scene]) -> None:
    """The broker can't be asked and the drain can't be told of: it starts anew all the same, and consumes when it can."""
    one = scene("slow")
    one.daemon.ready()
    one.run(12)
    one.proxy.pause()
    one.write(handler="slow", more="prefetch = 4")
    one.daemon.signal(signal.SIGHUP)
    one.open_gate()
    one.daemon.wait_for("rpcd .* starting, broker", 2, SECONDS + 20)
    one.daemon.wait_for("the AMQP handshake took longer than 1 s; trying again in .* connection=work", seconds=SECONDS)
    one.proxy.resume()
    one.daemon.wait_for("ready, consuming: ", 2)
    one.ledger.replies(12)
    assert one.daemon.stop() == 0
    one.ledger.check()
