"""The process itself is hindered: it stands still, it is out of CPU or descriptors, it must connect again and again."""

import os
import pathlib
import re
import resource
import signal
import socket
import threading

import pytest
from daemon import Daemon, StartDaemon
from ledger import HANDLER, Ledger, runs
from peer import Peer
from proxy import UP, Link, Proxy
from report import get_report

from rpcd.ops.rabbitmq import free_ports

HANDLERS = (
    HANDLER
    + """
    import errno, gc, logging, time

    gate = pathlib.Path(__file__).with_name("gate")

    def slow(message):
        note(message)
        logging.info("running %s", message.message_id)
        while not gate.exists():
            time.sleep(0.01)
        return {"id": message.message_id}

    def spin(message):
        note(message)
        logging.info("running %s", message.message_id)
        while not gate.exists():
            sum(range(1000))
        return {"id": message.message_id}

    def look(message):
        from rpcd.amqp.port import AmqpProtocol

        gc.collect()  # what is left now is held by somebody
        return {"connections": sum(isinstance(each, AmqpProtocol) for each in gc.get_objects())}

    def take_every_descriptor(message):
        note(message)
        taken = []
        while not gate.exists():
            try:
                taken.append(os.dup(0))
            except OSError as error:
                assert error.errno == errno.EMFILE
                if taken[-1] is not None:
                    logging.info("running %s", message.message_id)
                    taken.append(None)
                time.sleep(0.01)
        for each in taken:
            if each is not None:
                os.close(each)
        return {"id": message.message_id}
"""
)

CONFIG = """
[broker]
heartbeat = 2
[service]
http = "tcp:{port}:interface=127.0.0.1"
[logging]
level = "debug"
[queues.work]
[consumers.work]
queue = "work"
handler = "handlers_of_test:{handler}"
workers = 4
[consumers.work.retry]
delays = [0.2]
"""

HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"

TRYING = "trying again in .* connection=work"


@pytest.fixture
def port() -> int:
    """A port for the daemon's health."""
    (free,) = free_ports(1)
    return free


def test_fault_29_the_process_stands_still_for_longer_than_two_heartbeats(
    start: StartDaemon, peer: Peer, proxy: Proxy, url: str, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(CONFIG.format(port=port, handler="slow"), HANDLERS, at=proxy.url(url))
    ledger = Ledger(peer, "work", ["200"])
    ids = ledger.publish(12)
    daemon.wait_for("running", 4)
    daemon.signal(signal.SIGSTOP)
    peer.until(lambda: not proxy.named(), 30)  # the broker has missed too many heartbeats
    daemon.signal(signal.SIGCONT)
    daemon.wait_for("INFO rpcd.consumer: consuming", 2)
    peer.until(lambda: get_report(port).consumer("work")["joined"] == 4)
    (tmp_path / "gate").touch()
    ledger.replies(12)
    assert daemon.stop() == 0
    ledger.check()
    assert runs(tmp_path) == dict.fromkeys(ids, 1)


def test_fault_30_handlers_run_for_longer_than_three_heartbeats_and_use_every_cpu(
    start: StartDaemon, peer: Peer, proxy: Proxy, url: str, port: int, tmp_path: pathlib.Path
) -> None:
    beats, enough = [0], threading.Event()

    def count(link: Link, way: str, piece: bytes) -> bytes:
        if link.name == "work" and way == UP and HEARTBEAT_FRAME in piece:
            beats[0] += 1
            if beats[0] > 6:  # two in each interval
                enough.set()
        return piece

    daemon = start(CONFIG.format(port=port, handler="spin"), HANDLERS, at=proxy.url(url))
    ledger = Ledger(peer, "work", ["200"])
    ids = ledger.publish(4)
    daemon.wait_for("running", 4)
    proxy.tamper = count
    peer.until(enough.is_set, 60)
    (tmp_path / "gate").touch()
    ledger.replies(4)
    assert get_report(port).consumer("work")["connections"] == 1
    assert daemon.stop() == 0
    ledger.check()
    assert runs(tmp_path) == dict.fromkeys(ids, 1)


def cpu_seconds(daemon: Daemon) -> float:
    fields = pathlib.Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors(daemon: Daemon) -> int:
    return len(list(pathlib.Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


def resident(daemon: Daemon) -> int:
    """Return the memory that it uses, in KiB."""
    text = pathlib.Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1])  # type: ignore[index]  # the kernel writes it


def test_fault_49_no_file_descriptor_is_left_for_a_connection(
    start: StartDaemon, peer: Peer, proxy: Proxy, url: str, port: int, tmp_path: pathlib.Path
) -> None:
    daemon = start(CONFIG.format(port=port, handler="take_every_descriptor"), HANDLERS, at=proxy.url(url))
    ledger = Ledger(peer, "work", ["200"])
    few = descriptors(daemon) + 10
    hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (few, hard))
    (first,) = ledger.publish(1)
    daemon.wait_for("running")
    proxy.reset()
    told = daemon.wait_for("Too many open files; " + TRYING)
    assert " WARNING " in told[0]
    before = cpu_seconds(daemon)
    with socket.create_connection(("127.0.0.1", port)):  # somebody knocks while none is left to let him in
        daemon.wait_for("Too many open files; " + TRYING, 3)
        assert cpu_seconds(daemon) - before < 1.5  # it waits for seconds in between
    (tmp_path / "gate").touch()
    daemon.wait_for("INFO rpcd.consumer: consuming", 2)
    ledger.publish(3)
    ledger.replies(4)
    assert runs(tmp_path)[first] == 1
    assert daemon.stop() == 0
    ledger.check()


CONSUMERS = 30
CONNECTIONS = CONSUMERS + 3
ROUNDS = 10
SETTLED = 2
"""After how many rounds it is looked at first: more than 50 connections have been made anew by then."""

GROWTH = 1024
"""KiB by which the memory may grow between the two looks; so many lost connections, held for good, have five times that."""


def test_fault_49_hundreds_of_connections_leave_nothing_behind(
    start: StartDaemon, peer: Peer, proxy: Proxy, url: str, port: int
) -> None:
    text = "".join(
        f'[consumers.c{number}]\nqueue = "work"\nhandler = "handlers_of_test:note"\n' for number in range(CONSUMERS - 1)
    )
    text += '[queues.own]\nname = ""\ntype = "classic"\nexclusive = true\n'
    text += '[consumers.own]\nqueue = "own"\nhandler = "handlers_of_test:note"\n'
    text += '[queues.look]\n[consumers.look]\nqueue = "look"\nhandler = "handlers_of_test:look"\n'
    config = CONFIG.format(port=port, handler="note").replace('"debug"', '"info"') + text
    # connections that die together hand a message from one to the next: it would come back more than 20 times at a stroke
    config = config.replace("[queues.work]\n", "[queues.work]\ndelivery_limit = 1000\n")
    daemon = start(config, HANDLERS, at=proxy.url(url))
    ledger = Ledger(peer, "work", ["200"])
    looked = []
    for turn in range(1, ROUNDS + 1):
        ledger.publish(CONSUMERS)
        assert proxy.reset() == CONNECTIONS
        daemon.wait_for("INFO rpcd.consumer: consuming", (turn + 1) * (CONNECTIONS - 1), 60)
        daemon.wait_for("connected to .* connection=publisher", turn + 1, 60)
        ledger.replies(len(ledger.published))
        alive = peer.call("look").json["data"]["connections"]
        assert alive == CONNECTIONS
        looked.append((turn * CONNECTIONS, descriptors(daemon), resident(daemon)))
    for connections, open_now, memory in looked:
        print(f"after {connections} connections: {open_now} descriptors, {memory} KiB")  # noqa: T201  # the figures
    (_, first_open, first_memory), (_, last_open, last_memory) = looked[SETTLED - 1], looked[-1]
    assert last_open == first_open
    assert last_memory - first_memory < GROWTH
    assert daemon.stop() == 0
    ledger.check(twice=len(ledger.published))
