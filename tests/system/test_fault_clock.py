"""The wall clock is set while the daemon runs: its timers take no notice."""

import os
import pathlib
import signal
import time

import pytest
from daemon import StartDaemon
from ledger import Ledger
from peer import Peer
from proxy import Proxy

HOUR = 3600

CLOCK = """
import os, time

real = time.time
time.time = lambda: real() + os.stat({file!r}).st_size - {hour}
"""
"""Python's own clock, by so many seconds ahead as a file is long, less an hour; set before anything is imported."""

CONFIG = """
[service]
drain_timeout = {drain}
[queues.work]
[consumers.work]
queue = "work"
handler = "handlers_of_test:handle"
workers = 2
time_limit = {limit}
[consumers.work.retry]
delays = [0.3]
"""

HANDLER = """
    import logging, time, threading
    import rpcd

    def handle(message):
        logging.info("running %s", message.message_id)
        if message.body == "retry" and message.attempt == 1:
            raise rpcd.Retry
        if message.body == "hang":
            threading.Event().wait()
        return {"time": time.time()}
"""


class WallClock:
    """The wall clock of a daemon that is started with `environment`."""

    def __init__(self, tmp_path: pathlib.Path) -> None:
        self._file = tmp_path / "clock"
        self.set(0)
        place = tmp_path / "site"
        place.mkdir()
        (place / "sitecustomize.py").write_text(CLOCK.format(file=str(self._file), hour=HOUR))
        self.environment = {"PYTHONPATH": str(place)}

    def set(self, ahead: int) -> None:
        self._file.touch()
        os.truncate(self._file, HOUR + ahead)


@pytest.fixture
def clock(tmp_path: pathlib.Path) -> WallClock:
    return WallClock(tmp_path)


def shifted(peer: Peer) -> float:
    """Ask the daemon for its time, less ours."""
    return float(peer.call("work").json["data"]["time"]) - time.time()


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_fault_50_the_clock_jumps(
    start: StartDaemon, peer: Peer, proxy: Proxy, url: str, clock: WallClock, jump: int
) -> None:
    daemon = start(CONFIG.format(drain=20, limit=2), HANDLER, at=proxy.url(url), RABBITMQ_HEARTBEAT="2", **clock.environment)
    ledger = Ledger(peer, "work", ("300",))
    (hung,) = ledger.publish(body=b'"hang"')
    daemon.wait_for(f"running {hung}")
    clock.set(jump)
    assert abs(shifted(peer) - jump) < HOUR / 2
    ledger.replies(1)  # the time limit counts what has passed
    assert proxy.cut() == 2
    daemon.wait_for("INFO rpcd.consumer: consuming", 2)  # after a pause, which is over in time
    ledger.publish(5, body=b'"retry"')
    ledger.replies(6)
    assert "heartbeat" not in daemon.output
    assert daemon.stop() == 0
    assert set(ledger.check()["archive"]) == {hung}


def test_fault_50_a_stop_takes_no_longer_when_the_clock_is_set_back(
    start: StartDaemon, peer: Peer, clock: WallClock
) -> None:
    daemon = start(CONFIG.format(drain=3, limit=600), HANDLER, **clock.environment)
    ledger = Ledger(peer, "work", ("300",))
    (hung,) = ledger.publish(body=b'"hang"')
    daemon.wait_for(f"running {hung}")
    daemon.signal(signal.SIGTERM)
    daemon.wait_for("SIGTERM: stopping")
    clock.set(-HOUR)
    assert daemon.wait() == 75
    assert "draining took longer than 3 s" in daemon.output  # not ended by the guard
    assert ledger.check()["queue"] == {hung: 1}


def test_fault_50_nothing_ends_early_when_the_clock_jumps_ahead(start: StartDaemon, peer: Peer, clock: WallClock) -> None:
    daemon = start(CONFIG.format(drain=600, limit=600), HANDLER, **clock.environment)
    ledger = Ledger(peer, "work", ("300",))
    ledger.publish(body=b'"hang"')
    daemon.wait_for("running id0")
    daemon.signal(signal.SIGTERM)
    daemon.wait_for("SIGTERM: stopping")
    clock.set(HOUR)
    daemon.wait_for("draining; handlers that still run: 1")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 75
    assert "took longer" not in daemon.output
    assert ledger.check()["queue"] == {"id0": 1}


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_fault_50_what_senders_say_of_the_time_costs_no_message(
    start: StartDaemon, peer: Peer, clock: WallClock, jump: int
) -> None:
    daemon = start(CONFIG.format(drain=20, limit=600), HANDLER, **clock.environment)
    clock.set(jump)
    ledger = Ledger(peer, "work", ("300",))
    for timestamp in (0, 1, int(time.time()) - HOUR, int(time.time()), int(time.time()) + HOUR, 2**63 - 1):
        ledger.publish(timestamp=timestamp, expiration="60000")
        ledger.publish(timestamp=timestamp, body=b'"retry"')
    ledger.replies(12)
    assert daemon.stop() == 0
    ledger.check()
