"""Handlers that never return, that raise what nobody should, or return what is no answer: each message ends in one place."""

import json
import pathlib
import urllib.request
from collections.abc import Sequence
from typing import Any

import pytest
from daemon import Daemon, StartDaemon
from ledger import Ledger, runs
from peer import Peer
from proxy import Proxy

from rpcd.amqp.consumer import MOST_LOST

START = """
    import asyncio, logging, os, pathlib, threading, time
    import rpcd
    from twisted.internet.defer import Deferred

    here = pathlib.Path(__file__).parent
    ledger = os.open(here / "ledger", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def note(message):
        os.write(ledger, f"{message.message_id}\\n".encode())
        logging.info("running %s", message.message_id)
"""

HANG = (
    START
    + """
    def hang_until_let_go(message):
        while not (here / "let-go").exists():
            time.sleep(0.01)
        logging.info("ends late: %s", message.message_id)

    def handle(message):
        note(message)
        if message.body["do"] == "hang":
            message.publish("", "side", {})
            hang_until_let_go(message)
            message.publish("", "side", {})
        return {"id": message.message_id}
"""
)

HANG_ASYNC = (
    START
    + """
    async def hang_until_let_go(message):
        while not (here / "let-go").exists():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                pass
        logging.info("ends late: %s", message.message_id)

    async def handle(message):
        note(message)
        if message.body["do"] == "hang":
            message.publish("", "side", {})
            await hang_until_let_go(message)
            message.publish("", "side", {})
        return {"id": message.message_id}
"""
)

CONFIG = """
[service]
drain_timeout = 20
http = "tcp:0:interface=127.0.0.1"
[queues.side]
[queues.work]
[consumers.work]
queue = "work"
handler = "handlers_of_test:handle"
"""


def report_of(daemon: Daemon) -> Any:
    """Ask the daemon how its consumer does."""
    port = int(daemon.wait_for("health is told on")[0].rpartition("port=")[2].rstrip(")"))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready") as answer:
        return json.load(answer)["consumers"][0]


# 31: a handler never returns ------------------------------------------------------------------------


@pytest.mark.parametrize("source", [HANG, HANG_ASYNC], ids=["thread", "task"])
def test_fault_31_a_handler_never_returns(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, source: str) -> None:
    daemon = start(CONFIG + 'workers = 1\ntime_limit = 1\nlock = "body.key"\n', source)
    ledger = Ledger(peer, "work")
    (hung,) = ledger.publish(body={"do": "hang", "key": "a"})
    (waits,) = ledger.publish(body={"do": "go", "key": "a"})
    (passes,) = ledger.publish(body={"do": "go", "key": "b"})
    ledger.replies(2)
    assert set(ledger.answered) == {hung, passes}
    archived = peer.get("work.archive")
    assert archived.properties.message_id == hung
    assert archived.headers["x-rpcd-exception"] == "TimeLimitPassed"
    daemon.wait_for(rf"ERROR rpcd.consumer: .*TimeLimitPassed.* message_id={hung} ")
    assert [line for line in daemon.lines if line.startswith("  | ") and "hang_until_let_go" in line]
    peer.until(lambda: report_of(daemon)["lost"] == 1)
    assert report_of(daemon)["overdue"] == 1
    ledger.publish(3, body={"do": "go", "key": "b"})
    ledger.replies(5)
    assert waits not in runs(tmp_path)  # its key is held until the other one has ended
    (tmp_path / "let-go").touch()
    daemon.wait_for(f"ends late: {hung}")
    ledger.replies(6)
    assert waits in ledger.answered
    peer.until(lambda: report_of(daemon)["lost"] == 0)
    assert peer.left("side") == []
    assert daemon.stop() == 0
    assert ledger.check()["archive"] == {}
    assert set(runs(tmp_path).values()) == {1}


@pytest.mark.parametrize("keyword", ["", "async "], ids=["thread", "task"])
def test_fault_31_the_time_limit_passes_while_a_handler_waits_for_a_confirm(
    start: StartDaemon, peer: Peer, proxy: Proxy, url: str, tmp_path: pathlib.Path, keyword: str
) -> None:
    publish = f"{'await ' if keyword else ''}message.publish_now"
    source = f"""
    {keyword}def handle(message):
        note(message)
        if message.body["do"] == "publish":
            while not (here / "shut").exists():
                {"await asyncio.sleep" if keyword else "time.sleep"}(0.01)
            try:
                {publish}("", "side", {{}})
            finally:
                logging.info("it waits no longer")
        return {{"id": message.message_id}}
    """
    daemon = start(CONFIG + "workers = 2\ntime_limit = 2\n", START + source, at=proxy.url(url))
    ledger = Ledger(peer, "work")
    (late,) = ledger.publish(body={"do": "publish"})
    daemon.wait_for(f"running {late}")
    proxy.pause(name="publisher")
    (tmp_path / "shut").touch()
    peer.until(lambda: report_of(daemon)["overdue"] == 1)
    ledger.publish(5, body={"do": "go"})
    ledger.replies(5)
    proxy.resume()
    daemon.wait_for("it waits no longer")
    assert daemon.stop() == 0
    places = ledger.check()
    assert places["archive"] == {late: 1}
    assert places["answered"][late] == 1


# 32: all threads are lost ---------------------------------------------------------------------------


@pytest.mark.parametrize(("keyword", "lost"), [("", MOST_LOST), ("async ", 1)], ids=["threads", "loop"])
def test_fault_32_all_threads_are_lost(start: StartDaemon, peer: Peer, keyword: str, lost: int) -> None:
    daemon = start(
        CONFIG + "workers = 8\ntime_limit = 0.5\nprefetch = 16\n", HANG.replace("def handle", f"{keyword}def handle")
    )
    ledger = Ledger(peer, "work")
    ledger.publish(10, body={"do": "go"})
    ledger.replies(10)
    stuck = ledger.publish(MOST_LOST, body={"do": "hang"})
    ledger.publish(20, body={"do": "go"})
    daemon.wait_for("CRITICAL rpcd: ")
    assert daemon.wait(60) == 70
    assert [line for line in daemon.lines if "CRITICAL rpcd: " in line and ("threads are stuck" in line or "blocks" in line)]
    places = ledger.check()
    assert set(places["archive"]) <= set(stuck)
    assert len(places["archive"]) == lost
    assert set(stuck) <= places["archive"].keys() | places["queue"].keys()


# 33: retries of mixed delays ------------------------------------------------------------------------


def test_fault_33_a_long_delay_does_not_hold_up_a_short_one(start: StartDaemon, peer: Peer) -> None:
    daemon = start(
        CONFIG + "[consumers.work.retry]\ndelays = [1, 60]\n",
        START
        + """
    def handle(message):
        note(message)
        if message.attempt == 1:
            raise rpcd.Retry(delay=message.body["delay"])
        return {"id": message.message_id}
    """,
    )
    ledger = Ledger(peer, "work")
    (slow,) = ledger.publish(body={"delay": 60})
    daemon.wait_for("running", 1)
    (quick,) = ledger.publish(body={"delay": 1})
    ledger.replies(1)
    assert daemon.stop() == 0
    places = ledger.check()
    assert places["answered"] == {quick: 1}
    assert places["retry"] == {slow: 1}


# 34 and 35: what handlers raise and return ----------------------------------------------------------

POLICY = """
workers = 2
on_error = "{on_error}"
max_reply = 2000
[consumers.work.retry]
delays = [60]
"""

RAISED = {
    'rpcd.RequestFailed("no", {})': ("answered",),
    "rpcd.Retry()": ("retry",),
    'rpcd.PermanentFailure("never")': ("answered", "archive"),
    "rpcd.Drop()": ("answered", "archive"),
    "rpcd.Nack()": ("retry",),
    'ValueError("no")': ("retry",),
    "MemoryError()": ("retry",),
    "rpcd.PublishRefused('no')": ("retry",),
}
"""What a handler raises for a request, `on_error` being "retry", and where the request is then.

The rows of the outcome table one by one, with all policies: tests/broker/test_outcomes.py.
"""

STRANGE = (
    "raise SystemExit",
    "raise SystemExit(0)",
    "raise KeyboardInterrupt",
    "raise GeneratorExit",
    "raise asyncio.CancelledError",
    "raise StopIteration",
    "raise BaseException",
    "raise Odd",
    "return Deferred()",
    "return answer()",
    "return (number for number in range(3))",
    "return iter([1])",
    "return object()",
    "return {1, object()}",
    "return float('nan')",
    "return {'a': float('inf')}",
    "return circle",
    "return deep",
    "return 'x' * 3000",
    "return '\\ud800'",
    "return 10 ** 10000",
    "return ValueError('returned')",
    "return asyncio.sleep",
)


ODD = """
    circle = []
    circle.append(circle)
    deep = []
    for _ in range(100_000):
        deep = [deep]

    class Odd(BaseException):
        def __str__(self):
            return 1 / 0

    async def answer():
        return 1
"""


def of_each(cases: Sequence[str], keyword: str) -> str:
    """Write a handler that does what one of the cases says, by the number of its message."""
    head = [f"    {keyword}def handle(message):", "note(message)", "number = int(message.message_id[2:])"]
    body = [f"if number == {number}: {case}" for number, case in enumerate(cases)]
    return START + ODD + "\n" + "\n        ".join([*head, *body, "return {'id': message.message_id}"]) + "\n"


@pytest.mark.parametrize("keyword", ["", "async "], ids=["thread", "task"])
def test_fault_34_a_handler_raises(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, keyword: str) -> None:
    cases = [f"raise {each}" for each in RAISED]
    daemon = start(CONFIG + POLICY.format(on_error="retry"), of_each(cases, keyword))
    ledger = Ledger(peer, "work", ("60000",))
    ids = ledger.publish(len(cases) + 1)
    daemon.wait_for("running", len(ids))
    ledger.replies(sum("answered" in each for each in RAISED.values()) + 1)
    assert daemon.stop() == 0
    places = ledger.check()
    found = {
        each: tuple(place for place in ("answered", "retry", "archive", "queue") if each in places[place]) for each in ids
    }
    assert found == dict(zip(ids, (*RAISED.values(), ("answered",)), strict=True))
    assert set(runs(tmp_path).values()) == {1}


@pytest.mark.parametrize("keyword", ["", "async "], ids=["thread", "task"])
@pytest.mark.parametrize("on_error", ["auto", "archive"])
def test_fault_35_a_handler_raises_or_returns_what_is_no_answer(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, keyword: str, on_error: str
) -> None:
    daemon = start(CONFIG + POLICY.format(on_error=on_error), of_each(STRANGE, keyword))
    ledger = Ledger(peer, "work", ("60000",))
    ids = ledger.publish(len(STRANGE) + 1)
    received = peer.replies(len(ids), 60)
    ledger.count(received)  # doubles as well
    replies = {reply.properties.correlation_id: reply.json for reply in received}
    succeeded = [STRANGE[int(each[2:])] for each in ids[:-1] if replies[each]["success"]]
    assert succeeded == []
    assert replies[ids[-1]]["success"]
    assert daemon.stop() == 0
    assert set(ledger.check()["archive"]) == (set(ids[:-1]) if on_error == "archive" else set())
    assert runs(tmp_path) == dict.fromkeys(ids, 1)
    assert "Unhandled" not in daemon.output
    assert "CRITICAL" not in daemon.output
