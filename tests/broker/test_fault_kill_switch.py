"""What handlers depend on is down: nothing more is started, the queue keeps its messages, and all goes on by itself."""

import json
import pathlib
from typing import Any

import pytest
from command import rpcd
from daemon import StartDaemon
from ledger import HANDLER, Ledger, runs
from peer import Peer

HANDLERS = (
    HANDLER
    + """
    up = pathlib.Path(__file__).with_name("up")

    def work(message):
        answer = note(message)
        if not up.exists():
            raise rpcd.Retry()
        return answer

    async def work_async(message):
        return work(message)
    """
)

FAILURES = 10

CONFIG = f"""
[service]
control = "control"
[queues.work]
[consumers.work]
queue = "work"
handler = "handlers_of_test:{{handler}}"
workers = {{workers}}
prefetch = 16
retry.delays = [0.2, 1]
retry.attempts = 1000
kill_switch.failures = {FAILURES}
kill_switch.interval = {{interval}}
"""


def ctl(tmp_path: pathlib.Path, command: str) -> Any:
    found = rpcd("ctl", "--socket", str(tmp_path / "control"), "--json", command)
    return json.loads(found.stdout)["result"]


def tries(tmp_path: pathlib.Path) -> int:
    return sum(runs(tmp_path).values())


@pytest.mark.parametrize("handler", ["work", "work_async"])
def test_fault_46_one_message_is_tried_now_and_then_until_one_succeeds(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, handler: str
) -> None:
    daemon = start(CONFIG.format(handler=handler, workers=4, interval=0.5), HANDLERS)
    ledger = Ledger(peer, "work", ["200", "1000"])
    ledger.publish(40)
    daemon.wait_for(r"1\d failures in a row, the last by Retry: nothing more is started, one message is tried every 0.5 s")
    most = FAILURES + 3  # what the other workers had begun
    peer.until(lambda: tries(tmp_path) >= most + 3)
    (tmp_path / "up").touch()
    daemon.wait_for("a message succeeded: messages start again")
    ledger.replies(40)
    (report,) = ctl(tmp_path, "status")["consumers"]
    assert (report["state"], report["why"], report["tripped"]) == ("consuming", None, 1)
    assert daemon.stop() == 0
    assert not ledger.check(twice=0)["archive"]


def test_fault_46_nothing_runs_while_it_is_tripped_and_an_operator_resets_it(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    daemon = start(CONFIG.format(handler="work", workers=1, interval=3600), HANDLERS)
    ledger = Ledger(peer, "work", ["200", "1000"])
    ledger.publish(40)
    daemon.wait_for("failures in a row")
    answer = ctl(tmp_path, "status")
    (report,) = answer["consumers"]
    assert report["state"] == "tripped"
    assert report["why"].startswith(f"{FAILURES} failures in a row, the last by Retry, the next message is tried in 3")
    assert answer["ready"] is False
    status = rpcd("status", "--socket", str(tmp_path / "control"))
    assert status.returncode == 2
    assert "not consuming: work: 10 failures in a row" in status.stdout
    assert tries(tmp_path) == FAILURES
    (tmp_path / "up").touch()
    assert ctl(tmp_path, "resume") == {"work": "consuming"}
    ledger.replies(40)
    assert daemon.stop() == 0
    ledger.check(twice=0)


def test_fault_46_a_stop_gives_back_what_was_held(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path) -> None:
    daemon = start(CONFIG.format(handler="work", workers=1, interval=3600), HANDLERS)
    ledger = Ledger(peer, "work", ["200", "1000"])
    ledger.publish(40)
    daemon.wait_for("failures in a row")
    assert daemon.stop() == 0
    assert tries(tmp_path) == FAILURES
    found = ledger.check()
    assert len(found["queue"]) + len(found["retry"]) == 40
    assert not ledger.answered
