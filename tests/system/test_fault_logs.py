"""Log lines that can't be written: what takes them stands still, is full or has gone, and the daemon goes on consuming."""

import fcntl
import os
import pathlib
import resource
import signal
import subprocess
import textwrap
import threading
from collections.abc import Iterator

import pytest
from canary import unsaid
from daemon import TWISTD, Daemon, StartDaemon
from ledger import Ledger
from peer import Peer

CONFIG = """
[service]
drain_timeout = 5
[queues.work]
type = "classic"
[consumers.work]
queue = "work"
handler = "handlers_of_test:handle"
workers = 4
on_error = "reply"
"""

TALKATIVE = """
    import logging, os, sys, time

    born = time.monotonic_ns()

    def handle(message):
        logging.getLogger("shop").info("%s %s", message.message_id, "x" * 50_000)
        logging.getLogger("shop").warning("careful %s %s", message.message_id, "y" * 50_000)
        print(message.message_id)
        if message.message_id.endswith("7"):
            raise ValueError("no")  # the reactor's own lines, with a traceback
        return {"born": born}
"""

REQUESTS = 150

OWN = """
[loggers]
keys = root
[handlers]
keys = own
[formatters]
keys = own
[logger_root]
level = INFO
handlers = own
[handler_own]
class = StreamHandler
formatter = own
args = (sys.__stdout__,)
[formatter_own]
format = OWN %(levelname)s %(name)s %(message)s
"""


class Unread:
    """A daemon whose output goes to a small pipe that nobody reads until somebody does."""

    def __init__(self, tmp_path: pathlib.Path, url: str, handlers: str, **environment: str) -> None:
        (tmp_path / "handlers_of_test.py").write_text(textwrap.dedent(handlers))
        text = CONFIG.replace("[service]\n", f"[service]\npath = [{str(tmp_path)!r}]\n")
        (tmp_path / "rpcd.toml").write_text(text)
        (tmp_path / "logging.ini").write_text(OWN)
        self.end, inner = os.pipe()
        fcntl.fcntl(inner, fcntl.F_SETPIPE_SZ, 4096)
        self.process = subprocess.Popen(
            [str(TWISTD), "-n", "--pidfile=", "rpcd", "--config", str(tmp_path / "rpcd.toml")],
            cwd=tmp_path,
            env={**os.environ, "RABBITMQ_URL": url, **environment},
            stdin=subprocess.DEVNULL,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)
        self.text = bytearray()
        self._reader: threading.Thread | None = None

    def read(self) -> None:
        """Begin to read what it has written, and what it is going to."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while piece := os.read(self.end, 65536):
            self.text += piece

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._reader is None:
            self.read()  # what nobody has read is in the pipe
        assert self._reader is not None
        self._reader.join(10)
        os.close(self.end)
        unsaid(bytes(self.text))


@pytest.fixture
def unread(tmp_path: pathlib.Path, url: str, request: pytest.FixtureRequest) -> Iterator[Unread]:
    found = Unread(tmp_path, url, TALKATIVE, **getattr(request, "param", {}))
    yield found
    found.close()


def used(peer: Peer) -> Ledger:
    """Publish requests once there is a queue, and wait until all are answered."""
    peer.until(lambda: peer.exists("work"))
    ledger = Ledger(peer, "work", ())
    ledger.publish(REQUESTS)
    ledger.replies(REQUESTS)
    return ledger


def asked(ledger: Ledger) -> str:
    """Have one more request answered; return its id."""
    (found,) = ledger.publish()
    ledger.replies(len(ledger.published))
    return found


def lines_of(ledger: Ledger) -> int:
    """Return how many lines the requests are worth."""
    return 3 * len(ledger.published) + sum(each.endswith("7") for each in ledger.published)


def test_fault_48_nobody_reads_the_pipe_that_the_log_goes_to(unread: Unread, peer: Peer) -> None:
    ledger = used(peer)  # 15 MB of lines into a pipe of 4 KB
    unread.read()
    peer.until(lambda: f"WARNING shop: careful {asked(ledger)} ".encode() in unread.text)
    unread.process.send_signal(signal.SIGTERM)
    assert unread.process.wait(20) == 0
    peer.until(lambda: b"stopped, exit code 0" in unread.text)
    told = [line for line in unread.text.decode().splitlines() if "log lines that are lost" in line]
    assert "WARNING rpcd: log lines that are lost, because they could not be written: " in told[0]
    lost = sum(int(line.rpartition(": ")[2]) for line in told)
    infos, warnings = (unread.text.count(each) for each in (b"INFO shop: id", b"WARNING shop: careful id"))
    assert infos < warnings < len(ledger.published)  # the more important ones have more room
    printed, failed = unread.text.count(b"INFO stdout: id"), unread.text.count(b"verdict=ack error=ValueError")
    assert infos + warnings + printed + failed + lost == lines_of(ledger)
    ledger.check()


def test_fault_48_a_stuck_log_holds_no_end_up(unread: Unread, peer: Peer) -> None:
    ledger = used(peer)
    unread.process.send_signal(signal.SIGTERM)
    assert unread.process.wait(20) == 0
    ledger.check()


def test_fault_48_a_stuck_log_holds_no_reload_up(unread: Unread, peer: Peer) -> None:
    ledger = used(peer)
    before = born(peer)
    unread.process.send_signal(signal.SIGHUP)
    peer.until(lambda: born(peer) != before, 60)
    unread.process.send_signal(signal.SIGTERM)
    assert unread.process.wait(20) == 0
    ledger.check()


def born(peer: Peer) -> object:
    """Ask when the program was started that answers now."""
    return peer.call("work", message_id="born").json["data"]["born"]


def test_fault_48_whoever_reads_the_log_goes_away(unread: Unread, peer: Peer) -> None:
    peer.until(lambda: peer.exists("work"))
    os.close(unread.end)
    ledger = used(peer)
    unread.process.send_signal(signal.SIGTERM)
    assert unread.process.wait(20) == 0
    ledger.check()
    unread.end = os.open("/dev/null", os.O_RDONLY)


def test_fault_48_the_disk_that_the_log_is_on_is_full_for_a_while(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    log = tmp_path / "rpcd.log"
    daemon = start(CONFIG, TALKATIVE, wait=False, arguments=(f"--logfile={log}",))
    peer.until(lambda: log.exists() and "ready, consuming: " in log.read_text())
    room = log.stat().st_size + 1_000_010  # so that a line is cut
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    ledger = used(peer)
    assert log.stat().st_size == room
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    after = asked(ledger)
    assert daemon.stop() == 0
    ledger.check()
    lines = log.read_text().splitlines()
    (told,) = [line for line in lines if "log lines that are lost" in line]
    (cut,) = [line for line in lines if " shop: " in line and len(line) < 50_000]
    assert cut.endswith(("x", "y"))
    written = sum(" shop: " in line or " stdout: " in line or "error=ValueError" in line for line in lines) - 1
    assert written + int(told.rpartition(": ")[2]) == lines_of(ledger)
    assert any(f" shop: {after} " in line for line in lines)


@pytest.mark.parametrize("unread", [{"LOGGING_FILE_CONFIG": "logging.ini"}], indirect=True)
def test_fault_48_an_operators_own_log_handlers_stand_still(unread: Unread, peer: Peer) -> None:
    ledger = used(peer)
    unread.read()
    peer.until(lambda: b"log lines that are lost" in unread.text)
    unread.process.send_signal(signal.SIGTERM)
    assert unread.process.wait(20) == 0
    assert b"OWN INFO " in unread.text  # its last lines may be lost behind so many: the end waits for less than a second
    ledger.check()


@pytest.mark.parametrize("to", ["stream", "file"])
def test_fault_48_the_last_words_of_a_handler_that_kills_the_process_are_there(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, to: str
) -> None:
    log = tmp_path / "rpcd.log"
    daemon = start(
        CONFIG,
        """
        import logging, os

        def handle(message):
            for number in range(100):
                logging.getLogger("shop").info("line %s", number)
            os._exit(7)
        """,
        wait=False,
        arguments=(f"--logfile={log}",) if to == "file" else (),
    )
    peer.until(lambda: peer.exists("work"))
    ledger = Ledger(peer, "work", ())
    ids = ledger.publish(1)
    assert daemon.wait() == 7
    assert set(ledger.check()["queue"]) == set(ids)
    lines = log.read_text().splitlines() if to == "file" else daemon.lines
    assert sum(" shop: line " in line for line in lines) == 100


def test_fault_48_a_process_that_a_handler_forks_writes_its_own_lines_once(start: StartDaemon, peer: Peer) -> None:
    daemon = start(
        CONFIG,
        """
        import logging, os

        def handle(message):
            child = os.fork()
            if not child:
                logging.getLogger("shop").info("child of %s", message.message_id)
                os._exit(0)
            os.waitpid(child, 0)
            logging.getLogger("shop").info("parent of %s", message.message_id)
        """,
    )
    ledger = Ledger(peer, "work", ())
    ledger.publish(50)
    ledger.replies(50)
    assert daemon.stop() == 0
    ledger.check()
    for who in ("child", "parent"):
        assert [daemon.output.count(f" shop: {who} of {each} ") for each in ledger.published] == [1] * 50


@pytest.mark.parametrize("to", ["stream", "file"])
def test_a_daemon_that_says_what_a_message_holds_is_found_out(peer: Peer, tmp_path: pathlib.Path, to: str) -> None:
    (tmp_path / "handlers_of_test.py").write_text("def handle(message):\n    print(message.payload)\n    return {}\n")
    file = tmp_path / "rpcd.toml"
    file.write_text(CONFIG.replace("[service]", f"[service]\npath = [{str(tmp_path)!r}]"))
    daemon = Daemon(file, peer.url, arguments=("--logfile=rpcd.log",) if to == "file" else ())
    peer.until(lambda: peer.exists("work"))
    ledger = Ledger(peer, "work", ())
    ledger.publish(1)
    ledger.replies(1)
    assert daemon.stop() == 0
    with pytest.raises(AssertionError, match="a log holds what a message holds"):
        daemon.kill()
