"""What becomes of log lines: those that can't be written, those that handlers meddle with, and those of imported modules."""

import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess

import pytest
from daemon import RPCD, Daemon, StartDaemon
from peer import Peer

CONFIG = """
[service]
drain_timeout = 1
[logging]
format = "json"
[queues.work]
type = "classic"
[consumers.work]
queue = "work"
handler = "handlers_of_test:handle"
"""

TALK = """
    import logging, sys

    def handle(message):
        logging.getLogger("shop").info("said %s", message.body)
        print("printed", message.body)
        print("complained", message.body, file=sys.stderr)
        if message.body == "fail":
            raise ValueError("no")
        return message.body
"""


def called(peer: Peer, body: str) -> object:
    """Wait for the queue, call, and return what the handler returned."""
    peer.until(lambda: peer.exists("work"))
    return peer.call("work", body).json["data"]


def lines_of(daemon: Daemon, **wanted: str) -> list[dict[str, object]]:
    """Return the lines with these values; every line has to be JSON."""
    lines = [json.loads(line) for line in daemon.lines]
    return [line for line in lines if all(line.get(name) == value for name, value in wanted.items())]


# Lines that can't be written ----------------------------------------------------------------------


def test_a_log_on_a_full_disk_costs_lines_but_no_messages(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG, TALK, wait=False, arguments=("--logfile=/dev/full",))
    assert called(peer, "a") == {"result": "a"}
    assert called(peer, "fail") == {}
    assert called(peer, "b") == {"result": "b"}
    assert daemon.stop() == 0


def test_an_operators_own_log_on_a_full_disk_costs_lines_but_no_messages(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "logging.ini").write_text(INI.format(handler="FileHandler", arguments="('/dev/full',)"))
    daemon = start(CONFIG, TALK, wait=False, LOGGING_FILE_CONFIG="logging.ini")
    assert called(peer, "a") == {"result": "a"}
    assert called(peer, "fail") == {}
    assert daemon.stop() == 0


def test_lines_come_again_when_there_is_room_again(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path) -> None:
    log = tmp_path / "rpcd.log"
    daemon = start(CONFIG, TALK, wait=False, arguments=(f"--logfile={log}",))
    assert called(peer, "before") == {"result": "before"}
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (log.stat().st_size, resource.RLIM_INFINITY))
    assert called(peer, "fail") == {}
    assert called(peer, "meanwhile") == {"result": "meanwhile"}
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert called(peer, "after") == {"result": "after"}
    assert "said after" in log.read_text()
    assert daemon.stop() == 0


def test_a_log_file_whose_directory_goes_away_costs_lines_but_no_messages(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    log = tmp_path / "logs/rpcd.log"
    log.parent.mkdir()
    daemon = start(CONFIG, TALK, wait=False, arguments=(f"--logfile={log}",))
    assert called(peer, "before") == {"result": "before"}
    shutil.rmtree(log.parent)
    assert called(peer, "fail") == {}
    log.parent.mkdir()
    assert called(peer, "after") == {"result": "after"}
    assert "said after" in log.read_text()
    assert daemon.stop() == 0


def piped(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, handlers: str) -> subprocess.Popen[str]:
    """Start `rpcd run` with a pipe that is read up to the line that says it is ready."""
    start(CONFIG, handlers).stop()  # writes the files
    process = subprocess.Popen(
        [str(RPCD), "run", "--config", "rpcd.toml"],
        cwd=tmp_path,
        env={**os.environ, "RABBITMQ_URL": peer.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert any("ready, consuming: " in line for line in process.stdout)
    return process


def test_a_reader_of_the_log_that_goes_away_costs_lines_but_no_messages(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    with piped(start, peer, tmp_path, TALK) as process:
        try:
            process.stdout.close()  # type: ignore[union-attr]
            assert called(peer, "a") == {"result": "a"}
            assert called(peer, "fail") == {}
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_a_reader_of_the_log_that_stops_reading_cannot_hold_the_end_up(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    flood = """
        import logging, pathlib

        def handle(message):
            for number in range(10_000):
                logging.info("%s %s", number, "x" * 200)
                pathlib.Path("written").write_text(str(number))
    """
    with piped(start, peer, tmp_path, flood) as process:
        try:
            peer.publish("work", "flood")
            peer.until((tmp_path / "written").exists)
            seen = [""]

            def stands_still() -> bool:
                seen.append((tmp_path / "written").read_text())
                return len(seen) > 20 and len(set(seen[-20:])) == 1

            peer.until(stands_still)
            process.terminate()
            assert process.wait(20) in {0, 70, 75}
        finally:
            process.kill()


@pytest.mark.parametrize("how", ["SIGTERM", "halt"])
def test_a_log_handler_that_stays_locked_cannot_hold_the_end_up(start: StartDaemon, peer: Peer, how: str) -> None:
    daemon = start(
        CONFIG,
        """
        import logging, threading
        import rpcd

        own = logging.StreamHandler()

        def lock(held):
            own.acquire()
            held.set()
            threading.Event().wait()

        def handle(message):
            held = threading.Event()
            threading.Thread(target=lock, args=(held,), daemon=True).start()
            held.wait()
            if message.body == "halt":
                raise rpcd.HaltConsumer
            return message.body
        """,
    )
    peer.publish("work", how, reply_to=peer.reply_queue, correlation_id="1")
    if how == "SIGTERM":
        peer.replies()
        daemon.signal(signal.SIGTERM)
    assert daemon.wait(20) == 0
    assert "stopped, exit code 0" in daemon.output


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_wrong_log_call_of_a_handler_is_one_line_that_says_where(start: StartDaemon, peer: Peer, form: str) -> None:
    daemon = start(
        CONFIG.replace('"json"', f'"{form}"'),
        """
        import logging

        class Odd:
            def __str__(self):
                raise RuntimeError("odd")

        def handle(message):
            logging.getLogger("shop").warning("number %d", "x")
            logging.getLogger("shop").warning("fine", extra={"verdict": Odd()})
            return message.body
        """,
    )
    assert called(peer, "a") == {"result": "a"}
    first, second = daemon.wait_for("wrong log call", 2)
    assert "handlers_of_test.py:9" in first
    assert "TypeError: %d format: a real number is required, not str" in first
    assert "handlers_of_test.py:10" in second
    assert "RuntimeError: odd" in second
    assert daemon.stop() == 0
    assert sum("shop" in line for line in daemon.lines) == 2
    assert "Traceback" not in daemon.output


# Handlers that meddle with logging ----------------------------------------------------------------

DICT_CONFIG = """
    import logging.config

    def meddle(disable=True):
        logging.config.dictConfig({
            "version": 1,
            "disable_existing_loggers": disable,
            "handlers": {"own": {"class": "logging.StreamHandler"}},
            "root": {"handlers": ["own"], "level": "ERROR"},
        })
"""


def test_rpcd_keeps_its_log_when_a_handlers_module_calls_dict_config(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG, DICT_CONFIG + "    meddle()\n" + TALK)
    assert called(peer, "fail") == {}
    daemon.stop()
    assert len(lines_of(daemon, logger="rpcd.consumer", level="error")) == 1
    assert len(lines_of(daemon, logger="shop", message="said fail")) == 1
    assert len(lines_of(daemon, logger="stdout", message="printed fail")) == 1


@pytest.mark.parametrize(
    "call", ["meddle()", "meddle(disable=False)", "logging.basicConfig(force=True, level=logging.ERROR)"]
)
@pytest.mark.parametrize("to", ["stdout", "file"])
def test_rpcd_keeps_its_log_when_a_handler_replaces_the_root_handlers(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, call: str, to: str
) -> None:
    arguments = (f"--logfile={tmp_path / 'rpcd.log'}",) if to == "file" else ()
    meddling = f"""
    def handle(message):
        {call}
        logging.getLogger("new").error("own line")
        print("printed")
        raise ValueError("no")
"""
    daemon = start(CONFIG, DICT_CONFIG + meddling, wait=False, arguments=arguments)
    assert called(peer, "a") == {}
    assert daemon.stop() == 0
    if to == "file":
        assert daemon.lines == []
        daemon.lines += (tmp_path / "rpcd.log").read_text().splitlines()
    assert len(lines_of(daemon, logger="rpcd.consumer", level="error")) == 1
    assert len(lines_of(daemon, logger="stdout", message="printed")) == 1
    assert len(lines_of(daemon, logger="stderr", level="warning")) == 1  # the handler's own line, as it wants it now
    assert len(lines_of(daemon, logger="rpcd", message="stopped, exit code 0")) == 1


INI = """
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
class = {handler}
formatter = own
args = {arguments}
[formatter_own]
format = OWN %(levelname)s %(name)s %(message)s
"""


def test_an_operators_own_logging_file_decides_everything(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path) -> None:
    (tmp_path / "logging.ini").write_text(INI.format(handler="StreamHandler", arguments="(sys.stdout,)"))
    daemon = start(CONFIG, DICT_CONFIG + "    meddle()\n" + TALK, LOGGING_FILE_CONFIG="logging.ini")
    assert called(peer, "a") == {"result": "a"}
    assert daemon.stop() == 0
    assert all(line.startswith("OWN ") for line in daemon.lines)
    for line in ("INFO shop said a", "INFO stdout printed a", "WARNING stderr complained a"):
        assert daemon.lines.count(f"OWN {line}") == 1
    assert daemon.lines.count("OWN INFO rpcd stopped, exit code 0") == 1


# What handlers write ------------------------------------------------------------------------------


def test_what_a_handler_writes_to_standard_error_is_a_warning_of_its_own_name(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG, TALK)
    called(peer, "a")
    daemon.stop()
    assert [line["message"] for line in lines_of(daemon, logger="stderr", level="warning")] == ["complained a"]
    assert lines_of(daemon, level="error") == []


def test_a_very_long_traceback_is_cut_in_the_middle(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG, 'def handle(message):\n    raise ValueError("z" * 1_000_000 + "the end")\n')
    called(peer, "a")
    daemon.stop()
    (line,) = lines_of(daemon, level="error")
    trace = str(line["traceback"])
    assert len(trace) < 20_100
    assert trace.startswith("Traceback (most recent call last)")
    assert trace.endswith("zthe end")
    assert "characters left out" in trace


def test_what_a_handlers_module_logs_and_prints_when_imported_is_logged_like_everything_else(
    start: StartDaemon, peer: Peer
) -> None:
    daemon = start(
        CONFIG,
        """
        import faulthandler, io, logging, sys, threading, warnings

        print("printed")
        sys.stdout.reconfigure(errors="replace")  # what real modules do to the real stream has to go on working
        faulthandler.enable()
        logging.basicConfig(level="INFO", format="mine %(message)s")
        logging.getLogger("shop").warning("logged")
        thread = threading.Thread(target=logging.getLogger("shop").warning, args=("of a thread",))
        thread.start()
        thread.join()
        warnings.warn("old")
        sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")

        def handle(message):
            return message.body
        """,
    )
    assert called(peer, "a") == {"result": "a"}
    daemon.stop()
    assert len(lines_of(daemon, logger="stdout", message="printed")) == 1
    assert len(lines_of(daemon, logger="shop", message="logged", level="warning")) == 1
    assert len(lines_of(daemon, logger="shop", message="of a thread")) == 1
    assert any("UserWarning: old" in str(line["message"]) for line in lines_of(daemon, logger="stderr"))
    assert len(lines_of(daemon, logger="rpcd", message="stopped, exit code 0")) == 1


def test_a_module_that_prints_and_then_fails_still_shows_what_is_wrong_with_the_config(start: StartDaemon) -> None:
    daemon = start(CONFIG, 'print("printed")\nraise RuntimeError("no")\n', wait=False)
    assert daemon.wait() == 78
    assert [json.loads(line)["message"] for line in daemon.lines if line.startswith("{")] == ["printed"]
    assert any("consumers.work.handler: handlers_of_test:handle can't be imported" in line for line in daemon.lines)


def test_without_a_standard_output_lines_go_to_standard_error(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    start(CONFIG, TALK).stop()  # writes the files
    with subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$0" run --config rpcd.toml >&-', str(RPCD)],
        cwd=tmp_path,
        env={**os.environ, "RABBITMQ_URL": peer.url},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert any("ready, consuming: " in line for line in process.stderr)
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
