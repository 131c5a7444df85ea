"""What systemd is told by the real process: ready only when it consumes, the reason when it does not, the watchdog."""

import contextlib
import os
import pathlib
import signal
import socket
from collections.abc import Iterator

import pytest
from daemon import StartDaemon
from notify import NotifySocket
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode
from rpcd.ops.systemd import Systemd

CONFIG = """
[service]
drain_timeout = 20
[queues.orders]
[queues.packing]
[consumers.orders]
queue = "orders"
handler = "handlers_of_test:handle"
[consumers.packing]
queue = "packing"
handler = "handlers_of_test:handle"
"""

HANDLERS = """
    import logging, os, time

    def handle(message):
        if message.body == "environment":
            return {name: os.environ.get(name) for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")}
        if message.body == "slow":
            logging.info("running slow")
            time.sleep(2)
        if message.body == "block":
            from twisted.internet import reactor
            reactor.callFromThread(lambda: open("let-go").read())  # a pipe that the test writes to
            logging.info("blocked")
        return message.body
"""


@pytest.fixture
def systemd(tmp_path: pathlib.Path) -> Iterator[NotifySocket]:
    made = NotifySocket(tmp_path / "notify")
    yield made
    made.close()


def test_what_systemd_has_no_room_for_is_told_later_and_nothing_blocks(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.bind(str(tmp_path / "notify"))
        told = Systemd({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for number in range(1000):
            told.tell(NUMBER=number)  # the system keeps a few hundred at most
        told.tell(READY=1)
        for number in range(100):
            told.tell(STATUS=number)
        full.setblocking(False)
        heard: list[bytes] = []
        while b"READY=1" not in heard:
            with contextlib.suppress(BlockingIOError):
                while True:
                    heard.append(full.recv(1000))
            told.tell(STATUS="more")
        told.tell(STATUS="a\nREADY=2")
        while True:
            with contextlib.suppress(BlockingIOError):
                heard.append(full.recv(1000))
                continue
            break
    assert heard[0] == b"NUMBER=0"
    assert heard[-1] == b"STATUS=a READY=2"  # a value stays on its line


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "2000000"}, 2.0),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}, 2.0),
    ],
)
def test_how_often_the_watchdog_wants_to_be_fed(variables: dict[str, str], seconds: float | None) -> None:
    environment = {**variables, "NOTIFY_SOCKET": "/nowhere", "HOME": "/"}
    assert Systemd.take(environment).watchdog == seconds
    assert environment == {"HOME": "/"}
    assert Systemd.take(variables).watchdog is None


def test_security_18_it_is_ready_only_when_all_consume_and_asks_for_time_until_then(
    start: StartDaemon, systemd: NotifySocket, own_node: PrivateNode
) -> None:
    own_node.ctl("stop_app")
    daemon = start(CONFIG, HANDLERS, at=own_node.url("/"), wait=False, NOTIFY_SOCKET=systemd.address)
    told = systemd.status("connecting: orders (")
    assert "packing (" in systemd.told[told - 1]["STATUS"]
    assert len([each for each in systemd.told if "EXTEND_TIMEOUT_USEC" in each]) >= 2
    assert not systemd.has("READY")
    own_node.ctl("start_app")
    told = systemd.ready()
    assert systemd.told[told - 1]["STATUS"] == "consuming: orders, packing"
    assert daemon.stop() == 0
    told = systemd.wait_for(lambda each: each.get("STOPPING") == "1", told)
    assert systemd.told[told - 1]["STATUS"] == "draining; handlers that still run: 0"
    assert len([each for each in systemd.told if "READY" in each]) == 1


def test_the_status_follows_a_lost_connection(start: StartDaemon, systemd: NotifySocket, peer: Peer) -> None:
    start(CONFIG, HANDLERS, NOTIFY_SOCKET=systemd.address)
    told = systemd.ready()
    peer.channel.queue_delete("orders")
    told = systemd.status("consuming: packing; not orders: ", told)
    systemd.status("consuming: orders, packing", told)


def test_an_abstract_socket_serves_as_well(start: StartDaemon, tmp_path: pathlib.Path) -> None:
    systemd = NotifySocket(f"@rpcd-test-{tmp_path.name}-{id(tmp_path)}")
    start(CONFIG, HANDLERS, NOTIFY_SOCKET=systemd.address)
    systemd.ready()
    systemd.close()


def test_nobody_who_listens_costs_nothing(start: StartDaemon, tmp_path: pathlib.Path) -> None:
    daemon = start(CONFIG, HANDLERS, NOTIFY_SOCKET=str(tmp_path / "nobody"))
    assert daemon.stop() == 0


def test_handlers_and_their_children_can_not_speak_for_it(start: StartDaemon, systemd: NotifySocket, peer: Peer) -> None:
    start(CONFIG, HANDLERS, NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="30000000")
    answer = peer.call("orders", "environment").json["data"]
    assert answer == {"NOTIFY_SOCKET": None, "WATCHDOG_USEC": None, "WATCHDOG_PID": None}


def test_security_18_the_watchdog_is_fed_until_the_reactor_is_blocked(
    start: StartDaemon, systemd: NotifySocket, peer: Peer, tmp_path: pathlib.Path
) -> None:
    start(CONFIG, HANDLERS, NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="1000000")

    def fed(since: int) -> int:
        return systemd.wait_for(lambda each: "WATCHDOG" in each, since, "WATCHDOG=1")

    told = systemd.ready()
    for _ in range(4):
        told = fed(told)
    os.mkfifo(tmp_path / "let-go")
    peer.publish("orders", "block")
    with (tmp_path / "let-go").open("w"):  # opens when the reactor does: from here on it is blocked
        told = systemd.mark()
        with pytest.raises(AssertionError, match="not told"):
            systemd.wait_for(lambda each: "WATCHDOG" in each, told, seconds=2.0)
    fed(told)


def test_a_watchdog_of_another_process_is_not_fed(start: StartDaemon, systemd: NotifySocket) -> None:
    daemon = start(CONFIG, HANDLERS, NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="200000", WATCHDOG_PID="1")
    told = systemd.ready()
    daemon.stop()
    systemd.wait_for(lambda each: "STOPPING" in each, told)
    assert [each for each in systemd.told[1:] if "WATCHDOG" in each] == []


def test_while_it_drains_it_asks_for_time_and_says_so(start: StartDaemon, systemd: NotifySocket, peer: Peer) -> None:
    daemon = start(CONFIG, HANDLERS, NOTIFY_SOCKET=systemd.address)
    told = systemd.ready()
    peer.publish("orders", "slow")
    daemon.wait_for("running slow")
    daemon.signal(signal.SIGTERM)
    told = systemd.wait_for(lambda each: each.get("STOPPING") == "1", told)
    assert systemd.told[told - 1]["STATUS"] == "draining; handlers that still run: 1"
    systemd.wait_for(lambda each: "EXTEND_TIMEOUT_USEC" in each, told)
    assert daemon.wait() == 0


def test_a_mistake_is_its_last_status(start: StartDaemon, systemd: NotifySocket, url: str) -> None:
    wrong = url.replace("guest:guest", "guest:wrong")
    config = CONFIG + "[broker]\nlogin_patience = 0.2\n"
    daemon = start(config, HANDLERS, at=wrong, wait=False, NOTIFY_SOCKET=systemd.address)
    assert daemon.wait() == 77
    systemd.wait_for(lambda each: each.get("EXIT_STATUS") == "77")
    said = [each["STATUS"] for each in systemd.told if "STATUS" in each]
    assert said[-1].startswith("the broker refused the login: 403 ACCESS_REFUSED")
    assert not systemd.has("READY")


def test_a_wrong_config_is_told_too(start: StartDaemon, systemd: NotifySocket) -> None:
    daemon = start(CONFIG.replace("handle", "hadnle", 1), HANDLERS, wait=False, NOTIFY_SOCKET=systemd.address)
    assert daemon.wait() == 78
    told = systemd.wait_for(lambda each: each.get("EXIT_STATUS") == "78")
    assert "consumers.orders" in systemd.told[told - 1]["STATUS"]


SLOW = """
    import time

    time.sleep(1.5)

    def prepare():
        time.sleep(1.5)

    def handle(message): pass
"""


def test_imports_and_on_start_get_their_time_from_the_watchdog_at_a_start_and_at_a_reload(
    start: StartDaemon, systemd: NotifySocket
) -> None:
    """EXTEND_TIMEOUT_USEC holds for the watchdog, too; WATCHDOG=1 starts it, or sets it back to WatchdogSec=."""
    config = CONFIG.replace("[service]", '[service]\non_start = "handlers_of_test:prepare"')
    daemon = start(config, SLOW, NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="1000000")
    first = systemd.ready()
    daemon.signal(signal.SIGHUP)
    second = systemd.ready(systemd.wait_for(lambda each: each.get("RELOADING") == "1", first))
    reading = [number for number in range(second) if "reading the config" in systemd.told[number].get("STATUS", "")]
    assert [number < first for number in reading] == [True, False]
    for begun, ready in zip(reading, (first, second), strict=True):
        told = systemd.told[begun:ready]
        fed = next(number for number, each in enumerate(told) if "WATCHDOG" in each)
        assert len([each for each in told[:fed] if each.get("EXTEND_TIMEOUT_USEC") == "120000000"]) == 2
    before = [each for each in systemd.told[: reading[1]] if "WATCHDOG" in each or "EXTEND_TIMEOUT_USEC" in each]
    assert before[-1] == {"EXTEND_TIMEOUT_USEC": "120000000"}
