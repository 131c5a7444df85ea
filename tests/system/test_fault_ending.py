"""The daemon is told to stop, told again, or killed: what it took is settled or goes back, and nothing is lost."""

import collections
import contextlib
import os
import pathlib
import random
import signal
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest
from daemon import Daemon, StartDaemon
from ledger import HANDLER, Ledger, runs
from peer import Peer
from proxy import Proxy

CONFIG = """
[service]
drain_timeout = {drain}
[queues.work]
type = "{kind}"
[consumers.work]
queue = "work"
handler = "handlers_of_test:note"
workers = 8
prefetch = 16
reply_confirm = {confirm}
"""

GATED = (
    HANDLER
    + """
    import logging, time

    note_it, gate = note, pathlib.Path(__file__).with_name("gate")

    def note(message):
        logging.info("running %s", message.message_id)
        while not gate.exists():
            time.sleep(0.01)
        return note_it(message)
"""
)

STUCK = (
    HANDLER
    + """
    import logging, threading

    note_it = note

    def note(message):
        logging.info("running %s", message.message_id)
        threading.Thread(target=threading.Event().wait).start()  # no daemon: Python itself would wait for it
        threading.Event().wait()
"""
)


def config(drain: float = 30, kind: str = "quorum", confirm: bool = False) -> str:
    return CONFIG.format(drain=drain, kind=kind, confirm=str(confirm).lower())


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_fault_37_sigterm_while_idle(start: StartDaemon, peer: Peer, kind: str) -> None:
    daemon = start(config(kind=kind), HANDLER)
    ledger = Ledger(peer, "work")
    ledger.publish(20)
    ledger.replies(20)
    assert daemon.stop() == 0
    assert "stopped, exit code 0" in daemon.output
    assert "unfinished" not in daemon.output
    assert ledger.check()["queue"] == {}


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_fault_37_sigterm_just_when_messages_come(start: StartDaemon, peer: Peer, kind: str) -> None:
    daemon = start(config(kind=kind), HANDLER)
    ledger = Ledger(peer, "work")
    ledger.publish(10)
    daemon.signal(signal.SIGTERM)
    ledger.publish(190)
    assert daemon.wait() == 0
    ledger.check()


@pytest.mark.parametrize(("kind", "confirm"), [("classic", False), ("quorum", False), ("quorum", True)])
def test_fault_38_sigterm_with_handlers_running(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, kind: str, confirm: bool
) -> None:
    daemon = start(config(kind=kind, confirm=confirm), GATED)
    ledger = Ledger(peer, "work")
    ledger.publish(24)
    daemon.wait_for("running", 8)
    daemon.signal(signal.SIGTERM)
    daemon.wait_for("SIGTERM: stopping")
    (tmp_path / "gate").touch()
    assert daemon.wait() == 0
    places = ledger.check()
    assert len(places["answered"]) == 8
    assert sum(places["queue"].values()) == 16
    assert runs(tmp_path) == places["answered"]
    assert "stopped, exit code 0" in daemon.output


def test_fault_38_a_long_drain_says_every_five_seconds_what_it_waits_for(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    daemon = start(config(), GATED)
    ledger = Ledger(peer, "work")
    ledger.publish(3)
    daemon.wait_for("running", 3)
    daemon.signal(signal.SIGTERM)
    daemon.wait_for("draining; handlers that still run: 3")
    (tmp_path / "gate").touch()
    assert daemon.wait() == 0
    assert len(ledger.check()["answered"]) == 3


@pytest.mark.parametrize("how", ["the deadline", "a second SIGTERM"])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_fault_39_handlers_that_do_not_end(start: StartDaemon, peer: Peer, how: str, kind: str) -> None:
    daemon = start(config(1 if how == "the deadline" else 600, kind), STUCK)
    ledger = Ledger(peer, "work")
    ledger.publish(24)
    daemon.wait_for("running", 8)
    daemon.signal(signal.SIGTERM)
    daemon.wait_for("SIGTERM: stopping")
    if how == "a second SIGTERM":
        daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 75
    (said,) = [
        line for line in daemon.lines if "stopped with unfinished handlers; messages that go back to the broker: " in line
    ]
    assert 8 <= int(said.rpartition(": ")[2]) <= 16  # the unstarted ones have gone back already, or go now
    assert sum(ledger.check()["queue"].values()) == 24


def test_fault_39_threads_that_handlers_have_left_behind(start: StartDaemon, peer: Peer) -> None:
    daemon = start(
        config(),
        HANDLER
        + """
    import threading

    note_it = note

    def note(message):
        threading.Thread(target=threading.Event().wait).start()
        return note_it(message)
    """,
    )
    ledger = Ledger(peer, "work")
    ledger.publish(4)
    ledger.replies(4)
    assert daemon.stop() == 0
    ledger.check()


# In the middle of a reload --------------------------------------------------------------------------


def test_fault_38_sigterm_while_a_reload_asks_the_broker(start: StartDaemon, peer: Peer, proxy: Proxy, url: str) -> None:
    daemon = start(config(), HANDLER, at=proxy.url(url))
    ledger = Ledger(peer, "work")
    ledger.publish(10)
    ledger.replies(10)
    assert len(proxy.named()) == 2
    proxy.pause()
    daemon.signal(signal.SIGHUP)
    proxy.wait_for(3)
    daemon.signal(signal.SIGTERM)
    daemon.wait_for("SIGTERM: stopping")
    proxy.resume()
    ledger.publish(10)
    assert daemon.wait() == 0
    assert "starting anew" not in daemon.output
    ledger.check()


def test_fault_39_sigterm_while_the_start_function_hangs_after_a_reload(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    source = (
        HANDLER
        + """
    import logging, threading

    def begin():
        if pathlib.Path(__file__).with_name("hang").exists():
            logging.info("hanging")
            threading.Event().wait()
    """
    )
    text = config(1).replace("[service]\n", '[service]\non_start = "handlers_of_test:begin"\n')
    daemon = start(text, source)
    ledger = Ledger(peer, "work")
    ledger.publish(10)
    ledger.replies(10)
    (tmp_path / "hang").touch()
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("hanging")
    ledger.publish(10)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 70
    assert "CRITICAL rpcd: did not end by itself within" in daemon.output
    assert sum(ledger.check()["queue"].values()) == 10


def test_fault_39_a_handler_that_hangs_through_a_reload(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path) -> None:
    daemon = start(config(1), GATED)
    ledger = Ledger(peer, "work")
    ledger.publish(24)
    daemon.wait_for("running", 8)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("stopped with unfinished handlers; messages that go back to the broker: ", seconds=60)
    daemon.wait_for("running", 16, 60)
    (tmp_path / "gate").touch()
    ledger.replies(24)
    assert daemon.stop() == 0
    assert ledger.check()["queue"] == {}


# Killed at any moment -----------------------------------------------------------------------------

KILLS = 50

KINDS = ("quorum", "classic")

AT_A_TIME = 150
"""How many requests of a queue are on their way, so that there is always something in every state."""

BUSY = """
    import pathlib, random, time
    import rpcd

    def handle(message):
        time.sleep(random.random() / 50)
        number = int(message.message_id[2:])
        if number % 5 == 1 and message.attempt == 1:
            raise rpcd.Retry
        if number % 5 == 2:
            raise rpcd.PermanentFailure("never")
        if number % 5 == 3:
            message.publish("", "side", {"id": message.message_id}, mandatory=True)
        return {"id": message.message_id}
"""

BUSY_CONSUMER = """
[queues.{kind}]
type = "{kind}"
delivery_limit = 1000
[consumers.{kind}]
queue = "{kind}"
handler = "handlers_of_test:handle"
workers = 4
prefetch = 16
[consumers.{kind}.retry]
delays = [0.2]
"""


class Load(threading.Thread):
    """Has requests answered by one queue, without a pause, until it is told to end; it uses a connection of its own."""

    def __init__(self, url: str, queue: str) -> None:
        super().__init__(daemon=True)
        self.ledger = Ledger(Peer(url), queue, ("200",))
        self.ending = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                self.ledger.publish(10)
                self.ledger.replies(len(self.ledger.published) - AT_A_TIME, 120)
            self.ledger.replies(len(self.ledger.published), 120)
        except BaseException as error:  # noqa: BLE001  # told in the test's own thread
            self.error = error

    def end(self) -> None:
        self.ending.set()
        self.join(180)
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def always_two(file: pathlib.Path, url: str) -> Iterator[list[Daemon]]:
    daemons = [Daemon(file, url) for _ in range(2)]
    try:
        yield daemons
    finally:
        for each in daemons:
            each.kill()


def test_fault_40_sigkill_at_fifty_random_moments(peer: Peer, tmp_path: pathlib.Path, url: str) -> None:
    seed = int(os.environ.get("RPCD_TEST_SEED", time.time_ns() % 1_000_000))
    print(f"RPCD_TEST_SEED={seed}")  # noqa: T201  # to see a failed run again
    moments = random.Random(seed)
    (tmp_path / "handlers_of_test.py").write_text(textwrap.dedent(BUSY))
    text = "[queues.side]\n" + "".join(BUSY_CONSUMER.format(kind=kind) for kind in KINDS)
    file = tmp_path / "rpcd.toml"
    file.write_text(f"[service]\npath = [{str(tmp_path)!r}]\n{text}")
    with always_two(file, url) as daemons:
        for each in daemons:
            each.ready()
        loads = [Load(url, kind) for kind in KINDS]
        for load in loads:
            load.start()
        for number in range(KILLS):
            daemons[number % 2].ready()
            peer.connection.process_data_events(moments.uniform(0, 0.5))  # the moment
            daemons[number % 2].kill()
            daemons[number % 2] = Daemon(file, url)
        for load in loads:
            load.end()
        assert [each.ready().stop() for each in daemons] == [0, 0]
    for load in loads:
        check_killed(peer, load.ledger)
    side = collections.Counter(message.json["id"] for message in peer.left("side"))
    assert set(side) == {each for load in loads for each in load.ledger.published if int(each[2:]) % 5 == 3}


def check_killed(peer: Peer, ledger: Ledger) -> None:
    """Insist that every request was answered, that what failed for good is archived, and that nothing is left over."""
    published, answered, queue = ledger.published, ledger.answered, ledger.queue
    archived = collections.Counter(message.properties.message_id for message in peer.left(f"{queue}.archive"))
    assert set(answered) == set(published)
    assert set(archived) == {each for each in published if int(each[2:]) % 5 == 2}
    assert peer.left(queue) == peer.left(f"{queue}.retry.200") == []
    twice = sum(answered.values()) - len(answered)
    print(  # noqa: T201  # figures for a report
        f"{queue}: {len(published)} requests, 0 lost, {twice} answered and {archived.total() - len(archived)} archived twice"
    )
    assert twice <= KILLS * 16  # no more than were with the daemon when it was killed
