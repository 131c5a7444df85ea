"""Deadlines in the real daemon: what waits too long does not run, what runs too long is told, and what became of both."""

import pathlib
import signal
import time

import pytest
from daemon import Daemon, StartDaemon
from peer import Peer

HANDLERS = """
import asyncio, logging, pathlib, threading, time
import rpcd

HERE = pathlib.Path(__file__).parent
never = threading.Event()


def handle(message):
    what = message.body["do"]
    logging.info("running %s", what)
    if what == "gate":
        while not (HERE / "gate").exists():
            time.sleep(0.01)
    if what in ("late", "stuck", "hurry"):
        while not message.cancelled:
            never.wait(0.01)
        logging.info("told: %s has %s s left", what, message.remaining)
        if what == "stuck":
            (HERE / "over").touch()
        message.publish("", "out", {"from": what})
        return {"late": True}
    if what == "other":
        raise rpcd.DeadlinePassed("of somebody else")
    return {}


async def wait(message):
    what = message.body["do"]
    logging.info("running %s", what)
    if what == "gate":
        while not (HERE / "gate").exists():
            await asyncio.sleep(0.01)
    message.publish("", "out", {"from": what})
    try:
        if what in ("late", "stubborn"):
            await asyncio.sleep(60)
    except asyncio.CancelledError:
        logging.info("cancelled: %s has %s s left", what, message.remaining)
        if what != "stubborn":
            raise
    return {"late": what == "stubborn"}
"""

CONFIG = """
[service]
drain_timeout = 60
[queues.work]
[queues.out]
[consumers.work]
queue = "work"
handler = "handlers_of_test:{handler}"
{more}
"""

KINDS = pytest.mark.parametrize("handler", ["handle", "wait"])


def run(start: StartDaemon, handler: str, more: str = "") -> Daemon:
    return start(CONFIG.format(handler=handler, more=more), HANDLERS)


@KINDS
@pytest.mark.parametrize(
    "more", ["workers = 1\nprefetch = 10", 'workers = 2\nlock = "*"\nprefetch = 10'], ids=["thread", "lane"]
)
def test_what_waits_beyond_its_deadline_for_a_thread_or_a_lane_is_acked_and_not_run(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, handler: str, more: str
) -> None:
    daemon = run(start, handler, more)
    peer.publish("work", {"do": "gate"})
    daemon.wait_for("running gate")
    peer.publish("work", {"do": "never"}, expiration="2000")
    peer.publish("work", {"do": "in time"}, expiration="3600000")
    soon = time.time() + 2.5
    peer.until(lambda: time.time() > soon)
    (tmp_path / "gate").touch()
    daemon.wait_for("running in time")
    daemon.wait_for("done: deadline passed before it started")
    assert daemon.stop() == 0
    assert "running never" not in daemon.output
    assert (peer.left("work"), peer.left("work.archive")) == ([], [])


@KINDS
def test_what_waits_for_a_key_that_hangs_gives_its_place_in_the_prefetch_to_others_at_its_deadline(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, handler: str
) -> None:
    daemon = run(start, handler, 'workers = 2\nlock = "headers.key"\nprefetch = 4')
    for what in ("gate", "never", "never", "never"):
        peer.publish("work", {"do": what}, headers={"key": "hot"}, **({} if what == "gate" else {"expiration": "2000"}))
    daemon.wait_for("running gate")
    peer.publish("work", {"do": "other key"}, headers={"key": "cold"})  # there is no place for it
    daemon.wait_for("done: deadline passed before it started", 3)
    daemon.wait_for("running other key")
    (tmp_path / "gate").touch()
    assert daemon.stop() == 0
    assert "running never" not in daemon.output
    assert (peer.left("work"), peer.left("work.archive")) == ([], [])


@pytest.mark.parametrize(
    "properties",
    [{"expiration": "2000"}, {"expiration": "2000", "timestamp": 1}, {"expiration": "2000", "timestamp": 2**62}],
    ids=["alone", "long ago", "far ahead"],
)
def test_an_expiration_counts_from_arrival_unless_its_timestamp_makes_sense(
    start: StartDaemon, peer: Peer, properties: dict[str, int | str]
) -> None:
    daemon = run(start, "handle")
    began = time.time()
    answer = peer.call("work", {"do": "late"}, **properties)
    assert time.time() - began >= 2
    assert answer.json["data"] == {"late": True}
    daemon.wait_for("told: late has 0.0 s left")


def test_a_believable_timestamp_counts_and_a_message_that_was_under_way_too_long_is_not_run(
    start: StartDaemon, peer: Peer
) -> None:
    daemon = run(start, "handle", "workers = 1")
    peer.publish("work", {"do": "never"}, expiration="2000", timestamp=int(time.time()) - 2)
    peer.call("work", {"do": "in time"}, expiration="60000", timestamp=int(time.time()) - 2)
    assert daemon.stop() == 0
    said = [line for line in daemon.lines if "running" in line or "deadline passed" in line]
    assert any("running in time" in line for line in said)
    # the timestamp is that of a second, so up to one more is given: it was late, or ran within that time
    assert any("deadline passed before it started" in line or "running never" in line for line in said)


def test_a_thread_is_told_of_its_deadline_and_what_it_returns_counts(start: StartDaemon, peer: Peer) -> None:
    daemon = run(start, "handle")
    answer = peer.call("work", {"do": "late"}, expiration="2000")
    assert answer.json == {"success": True, "data": {"late": True}, "message": None}
    assert peer.get("out").json == {"from": "late"}
    daemon.wait_for("told: late has 0.0 s left")
    assert daemon.stop() == 0


def test_a_coroutine_is_cancelled_at_its_deadline_and_its_caller_told(start: StartDaemon, peer: Peer) -> None:
    daemon = run(start, "wait")
    answer = peer.call("work", {"do": "late"}, expiration="2000")
    assert answer.json == {"success": False, "data": {}, "message": "The deadline has passed"}
    daemon.wait_for("cancelled: late has 0.0 s left")
    (said,) = daemon.wait_for("deadline passed while it ran")
    assert "INFO" in said
    assert peer.call("work", {"do": "stubborn"}, expiration="2000").json["data"] == {"late": True}
    assert peer.get("out").json == {"from": "stubborn"}
    assert daemon.stop() == 0
    assert [peer.left(queue) for queue in ("work", "out", "work.archive")] == [[], [], []]


def test_a_deadline_that_is_somebody_elses_is_an_exception_like_any_other(start: StartDaemon, peer: Peer) -> None:
    daemon = run(start, "handle", "[consumers.work.retry]\ndelays = []")
    answer = peer.call("work", {"do": "other"}, expiration="3600000")
    assert answer.json["success"] is False
    assert "deadline" not in answer.json["message"]
    peer.publish("work", {"do": "other"})
    assert peer.get("work.archive").headers["x-rpcd-exception"] == "DeadlinePassed"
    assert daemon.stop() == 0


def test_a_thread_is_told_that_its_time_limit_has_passed(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path) -> None:
    daemon = run(start, "handle", "time_limit = 0.5")
    peer.publish("work", {"do": "stuck"})
    assert peer.get("work.archive").headers["x-rpcd-exception"] == "TimeLimitPassed"
    daemon.wait_for("told: stuck has None s left")
    peer.until((tmp_path / "over").exists)
    assert daemon.stop() == 0  # its thread has come back
    assert peer.left("out") == []


@pytest.mark.parametrize("how", ["drain_timeout", "a second SIGTERM"])
def test_a_thread_is_told_when_the_process_waits_no_longer_and_its_message_goes_back(
    start: StartDaemon, peer: Peer, how: str
) -> None:
    config = CONFIG.format(handler="handle", more="")
    daemon = start(config.replace("= 60", "= 0.5") if how == "drain_timeout" else config, HANDLERS)
    peer.publish("work", {"do": "hurry"})
    daemon.wait_for("running hurry")
    daemon.signal(signal.SIGTERM)
    daemon.wait_for("SIGTERM: stopping")
    if how != "drain_timeout":
        daemon.signal(signal.SIGTERM)
    daemon.wait_for("told: hurry has None s left")
    assert daemon.wait() == 75
    assert [message.json for message in peer.left("work")] == [{"do": "hurry"}]
    assert peer.left("out") == []
