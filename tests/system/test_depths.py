"""How much waits in retry steps and lies in archives: asked of the broker for who scrapes, harmless whatever it answers."""

import http.client
import re
from collections.abc import Callable

import pytest
from daemon import Daemon, StartDaemon
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode, free_ports

CONFIG = """
    [service]
    http = "tcp:{port}:interface=127.0.0.1"
    [queues.work]
    [queues.fleeting]
    name = ""
    [consumers.work]
    queue = "work"
    handler = "handlers_of_test:handle"
    retry = {{ delays = [600, 1200] }}
    [consumers.fleeting]
    queue = "fleeting"
    handler = "handlers_of_test:handle"
"""

HANDLERS = """
    import rpcd

    def handle(message):
        what = message.body["do"]
        if what == "fail":
            raise ValueError("no")
        if what == "archive":
            raise rpcd.PermanentFailure("no")
"""

Depths = dict[str, int]


@pytest.fixture
def port() -> int:
    (found,) = free_ports(1)
    return found


@pytest.fixture
def depths(port: int) -> Callable[[], Depths]:
    """Scrape the daemon; return its depths by step, or "archive", those of the fleeting consumer left out."""

    def scrape() -> Depths:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        assert 'rpcd_retry_depth{consumer="fleeting"' not in text  # it is retried in the process
        found = re.findall(r'^rpcd_retry_depth\{consumer="work",queue="work",step="(\d+)"\} (\d+)', text, re.MULTILINE)
        archived = re.findall(r'^rpcd_archive_depth\{consumer="work",queue="work"\} (\d+)', text, re.MULTILINE)
        return {step: int(depth) for step, depth in [*found, *(("archive", depth) for depth in archived)]}

    return scrape


@pytest.fixture
def busy(start: StartDaemon, peer: Peer, port: int) -> Daemon:
    """A daemon that has put off two messages and given up one, and that nobody has scraped yet."""
    daemon = start(CONFIG.format(port=port), HANDLERS)
    for what in ("fail", "fail", "archive"):
        peer.publish("work", {"do": what})
    daemon.wait_for("to be tried again in 600 s", 2)
    daemon.wait_for("archived: no")
    return daemon


def test_the_first_scrape_has_the_broker_asked_and_the_next_one_tells(
    busy: Daemon, peer: Peer, depths: Callable[[], Depths]
) -> None:
    assert depths() == {}
    peer.until(lambda: len(depths()) == 3)
    assert depths() == {"600000": 2, "1200000": 0, "archive": 1}
    peer.publish("work", {"do": "archive"})
    peer.until(lambda: depths()["archive"] == 2)
    assert busy.stop() == 0


def test_a_queue_that_is_gone_is_left_out_and_nothing_else_comes_to_harm(
    busy: Daemon, peer: Peer, depths: Callable[[], Depths]
) -> None:
    peer.channel.queue_delete("work.retry.600000")
    depths()
    peer.until(lambda: len(depths()) == 2)
    assert depths() == {"1200000": 0, "archive": 1}
    assert peer.call("work", {"do": "nothing"}).json["success"] is True
    peer.publish("work", {"do": "archive"})
    peer.until(lambda: depths().get("archive") == 2)
    assert [line for line in busy.lines if "ERROR" in line or "connection went" in line] == []
    assert len(busy.wait_for("connected to ")) == 3
    assert busy.stop() == 0


def test_nothing_is_told_of_a_broker_that_has_gone_and_it_is_asked_again_when_it_is_back(
    busy: Daemon, peer: Peer, node: PrivateNode, virtual_host: str, depths: Callable[[], Depths]
) -> None:
    depths()
    peer.until(lambda: len(depths()) == 3)
    node.ctl("close_all_connections", "--vhost", virtual_host, "cut")
    busy.wait_for("INFO rpcd.consumer: consuming", 4)
    again = Peer(peer.url)
    again.publish("work", {"do": "archive"})
    again.until(lambda: depths().get("archive") == 2)
    again.close()
    assert busy.stop() == 0
