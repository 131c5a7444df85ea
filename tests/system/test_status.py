"""Health over HTTP from the real process, and `rpcd status`: over units (a fake systemctl), HTTP and control sockets."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from typing import Any

import pytest
from daemon import RPCD, StartDaemon
from peer import Peer

from rpcd.ops.rabbitmq import free_ports

CONFIG = """
[service]
control = "control"
http = "tcp:{port}:interface=127.0.0.1"
drain_timeout = 20
[queues.work]
[queues.other]
[consumers.work]
queue = "work"
handler = "handlers_of_test:handle"
[consumers.other]
queue = "other"
handler = "handlers_of_test:handle"
"""

HANDLERS = """
    import logging

    def handle(message):
        logging.info("running")
        open("let-go").read()
"""


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


def get(port: int, path: str, method: str = "GET") -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            status, body = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            status, body = error.code, error.read()
    return status, json.loads(body) if body else None


def status(*words: str, **options: Any) -> tuple[int, str]:
    done = subprocess.run([str(RPCD), "status", *words], capture_output=True, text=True, timeout=60, **options)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return done.returncode, done.stdout.rstrip("\n")


# HTTP ---------------------------------------------------------------------------------------------


def test_ready_is_true_only_while_every_consumer_consumes(start: StartDaemon, peer: Peer, port: int) -> None:
    daemon = start(CONFIG.format(port=port), HANDLERS)
    assert get(port, "/live") == (200, {"status": "OK"})
    code, report = get(port, "/ready")
    assert code == 200
    assert report["state"] == "ready"
    peer.channel.queue_delete("work")
    peer.until(lambda: get(port, "/ready")[0] == 503)
    report = get(port, "/ready")[1]
    assert report["state"] == "not ready"
    assert [each["state"] for each in report["consumers"]] == ["connecting", "consuming"]
    peer.until(lambda: report["consumers"][0]["why"] or report.update(get(port, "/ready")[1]))
    assert status("--http", f"http://127.0.0.1:{port}")[0] in (0, 2)
    peer.until(lambda: get(port, "/ready")[0] == 200)
    assert get(port, "/ready", "HEAD") == (200, None)
    assert get(port, "/ready?verbose=1")[0] == 200
    assert get(port, "/")[0] == 404
    assert get(port, "/ready", "POST")[0] == 405
    assert "GET" not in daemon.output  # probes come every few seconds


def test_nothing_is_ready_before_the_broker_answers_and_while_it_drains(
    start: StartDaemon, peer: Peer, port: int, tmp_path: pathlib.Path
) -> None:
    nowhere = f"amqp://127.0.0.1:{free_ports(1)[0]}/"
    early = start(CONFIG.format(port=port), HANDLERS, at=nowhere, wait=False)
    early.wait_for("Connection refused|refused")
    code, report = get(port, "/ready")
    assert (code, report["state"]) == (503, "starting")
    assert "refused" in report["consumers"][0]["why"]
    assert get(port, "/live")[0] == 200
    said = status("--http", f"127.0.0.1:{port}")
    assert said[0] == 2
    assert said[1].startswith(f"CRITICAL: not consuming: 127.0.0.1:{port} (connecting: work (127.0.0.1:")
    assert early.stop() == 0
    os.mkfifo(tmp_path / "let-go")
    daemon = start(CONFIG.format(port=port), HANDLERS)
    peer.publish("work", "a")
    daemon.wait_for("running")
    daemon.signal(signal.SIGTERM)
    peer.until(lambda: get(port, "/ready")[0] == 503)
    assert get(port, "/ready")[1]["state"] == "stopping"
    with (tmp_path / "let-go").open("w"):
        pass
    assert daemon.wait() == 0


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("tpc:8001", "is nothing that can be listened on"),
        ("tcp:port", "is nothing that can be listened on"),
        ("8001", "is nothing that can be listened on"),
        ("tcp:99999999", "is nothing that can be listened on: a port is 0 to 65535"),
    ],
)
def test_an_endpoint_that_is_none_ends_it_with_78(start: StartDaemon, endpoint: str, said: str) -> None:
    config = CONFIG.format(port=1).replace("tcp:1:interface=127.0.0.1", endpoint)
    daemon = start(config, HANDLERS, wait=False)
    assert daemon.wait() == 78
    assert f"rpcd.toml: service.http: '{endpoint}' {said}" in daemon.output
    assert "Traceback" not in daemon.output


def test_a_port_that_is_taken_ends_it_with_78(start: StartDaemon, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        daemon = start(CONFIG.format(port=port), HANDLERS, wait=False)
        assert daemon.wait() == 78
    said = f"service.http: can't listen on tcp:{port}:interface=127.0.0.1: Address already in use"
    assert f"CRITICAL rpcd: {said}" in daemon.output
    assert "Traceback" not in daemon.output


def test_the_port_is_there_again_after_a_reload(start: StartDaemon, port: int) -> None:
    daemon = start(CONFIG.format(port=port), HANDLERS)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("ready, consuming: ", 2)
    assert get(port, "/ready")[0] == 200


def test_twisted_web_is_loaded_only_for_those_who_want_it(start: StartDaemon, peer: Peer, port: int) -> None:
    look = "    import sys\n    def handle(message):\n        return 'twisted.web.server' in sys.modules\n"
    config = CONFIG.format(port=port)
    daemon = start(config.replace("http =", "# http ="), look)
    assert peer.call("work", "a").json["data"] == {"result": False}
    daemon.stop()
    start(config, look)
    assert peer.call("work", "a").json["data"] == {"result": True}


# rpcd status for daemons --------------------------------------------------------------------------


def test_daemons_are_asked_over_http_and_sockets(start: StartDaemon, port: int, tmp_path: pathlib.Path) -> None:
    start(CONFIG.format(port=port), HANDLERS)
    url, control = f"http://127.0.0.1:{port}", str(tmp_path / "control")
    assert status("--http", url) == (0, f"OK: 1 daemon is consuming: {url}")
    assert status("--http", f"{url}/ready", "--socket", control)[1] == (
        f"OK: 2 daemons are consuming: {url}/ready, {control}"
    )
    subprocess.run([str(RPCD), "ctl", "--socket", control, "pause", "work"], check=True, timeout=60)
    assert status("--socket", control) == (1, f"WARNING: paused: {control} (consuming: other; paused: work)")
    free = free_ports(1)[0]
    said = status("--http", url, "--http", f"http://127.0.0.1:{free}")
    assert said == (
        2,
        (
            f"CRITICAL: no answer: http://127.0.0.1:{free} ([Errno 111] Connection refused); "
            f"paused: {url} (consuming: other; paused: work)"
        ),
    )
    code, line = status("--socket", str(tmp_path / "nothing"), "--json")
    assert code == 2
    assert json.loads(line) == {
        "status": "CRITICAL",
        "text": f"no answer: {tmp_path}/nothing (nobody listens there: No such file or directory; is it running?)",
        "found": [
            {
                "name": f"{tmp_path}/nothing",
                "verdict": "CRITICAL",
                "word": "no answer",
                "why": "nobody listens there: No such file or directory; is it running?",
            }
        ],
    }


ANSWERS = {
    b"AMQP\0\0\x09\x01": "it is not rpcd that answers",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]": "it is not rpcd that answers",
    b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000: "it is not rpcd that answers",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{": "the answer ends in its middle",
    b"HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\n{": "the answer ends in its middle",
}


@pytest.mark.parametrize(("answer", "why"), ANSWERS.items(), ids=range(len(ANSWERS)))
def test_whatever_answers_a_question_over_http_is_judged(answer: bytes, why: str) -> None:
    """A stack trace would end with 1, which monitoring takes for a warning."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _address = server.accept()
            with client:
                client.recv(65536)
                client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert status("--http", url) == (2, f"CRITICAL: no answer: {url} ({why})")


def test_what_is_no_url_is_unknown() -> None:
    assert status("--http", "http://[") == (3, "UNKNOWN: http://[ is no URL: Invalid IPv6 URL")


# rpcd status for units ----------------------------------------------------------------------------

SYSTEMCTL = """#!/bin/sh
# show --property=... -- NAME...
[ "$1" = show ] && [ "$3" = -- ] || { echo "unexpected: $*" >&2; exit 1; }
shift 3
first=yes
for name; do
    for file in "$UNITS"/$name; do
        [ -e "$file" ] || continue
        [ $first = yes ] || echo
        first=no
        echo "Id=$(basename "$file")"
        cat "$file"
    done
done
"""


class Systemd:
    """A systemctl that shows what a test has written down."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.units = directory / "units"
        self.units.mkdir()
        programs = directory / "bin"
        programs.mkdir()
        (programs / "systemctl").write_text(SYSTEMCTL)
        (programs / "systemctl").chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "UNITS": str(self.units)}

    def has(self, name: str, active: str = "active", text: str = "", **more: str) -> None:
        lines = {"LoadState": "loaded", "ActiveState": active, "StatusText": text, "ExecMainStatus": "0", **more}
        (self.units / name).write_text("".join(f"{key}={value}\n" for key, value in lines.items()))

    def status(self, *words: str) -> tuple[int, str]:
        return status(*words, env=self.environment)


@pytest.fixture
def systemd(tmp_path: pathlib.Path) -> Systemd:
    return Systemd(tmp_path)


def test_all_units_consume(systemd: Systemd) -> None:
    systemd.has("rpcd.target")
    systemd.has("rpcd@a.service", text="consuming: orders")
    systemd.has("rpcd@b.service", text="consuming: orders, packing")
    systemd.has("rpcd@c.service", text="consuming: x (the broker blocks it: low on memory)")
    assert systemd.status() == (0, "OK: 3 units are consuming: rpcd@a, rpcd@b, rpcd@c")


def test_the_worst_of_all_units_counts(systemd: Systemd) -> None:
    systemd.has("rpcd.target", Wants="rpcd@e.service network.target")
    systemd.has("rpcd@a.service", "failed", ExecMainCode="1", ExecMainStatus="78")
    systemd.has("rpcd@b.service", text="consuming: packing; not orders: Connection refused")
    systemd.has("rpcd@c.service", text="consuming: orders")
    systemd.has("rpcd@d.service", text="consuming: orders; paused: packing")
    assert systemd.status() == (
        2,
        (
            "CRITICAL: inactive: rpcd@a (failed, exit code 78); "
            "not consuming: rpcd@b (consuming: packing; not orders: Connection refused); "
            "paused: rpcd@d (consuming: orders; paused: packing)"
        ),
    )


@pytest.mark.parametrize(
    ("active", "text", "code", "said"),
    [
        ("active", "paused: a, b", 1, "WARNING: paused: rpcd@x (paused: a, b)"),
        (
            "active",
            "consuming: a; the last reload was refused: f: x; y",
            1,
            "WARNING: reload refused: rpcd@x (consuming: a; ",
        ),
        ("reloading", "reloading: checking the config", 1, "WARNING: reloading: rpcd@x (reloading: checking the config)"),
        ("active", "", 2, "CRITICAL: not consuming: rpcd@x (it has told nothing)"),
        ("active", "not consuming: a: no", 2, "CRITICAL: not consuming: rpcd@x (not consuming: a: no)"),
        ("activating", "connecting: a (no)", 2, "CRITICAL: not consuming: rpcd@x (activating: connecting: a (no))"),
        ("deactivating", "", 2, "CRITICAL: not consuming: rpcd@x (deactivating)"),
        ("inactive", "", 2, "CRITICAL: inactive: rpcd@x (inactive)"),
        ("active", "consuming: a\x1b[31m", 0, "OK: 1 unit is consuming: rpcd@x"),
        ("active", "not a: \x1b[31m", 2, "CRITICAL: not consuming: rpcd@x (not a: [31m)"),
    ],
)
def test_one_unit(systemd: Systemd, active: str, text: str, code: int, said: str) -> None:
    systemd.has("rpcd@x.service", active, text)
    found = systemd.status()
    assert found[0] == code
    assert found[1].startswith(said)


def test_a_unit_that_was_killed_and_one_that_is_wanted_but_was_never_started(systemd: Systemd) -> None:
    systemd.has("rpcd.target", Wants="rpcd@wanted.service")
    systemd.has("rpcd@killed.service", "failed", ExecMainCode="2", ExecMainStatus="9")
    (systemd.units / "rpcd@wanted.service").write_text("LoadState=loaded\nActiveState=inactive\n")
    assert systemd.status() == (2, "CRITICAL: inactive: rpcd@killed (failed, signal 9), rpcd@wanted (inactive)")


def test_no_units_are_critical(systemd: Systemd) -> None:
    systemd.has("rpcd.target", LoadState="not-found")
    assert systemd.status() == (2, "CRITICAL: no rpcd units")
    code, line = systemd.status("--json")
    assert (code, json.loads(line)) == (2, {"status": "CRITICAL", "text": "no rpcd units", "found": []})


def test_without_systemctl_nothing_is_known(tmp_path: pathlib.Path) -> None:
    found = status(env={**os.environ, "PATH": str(tmp_path)})
    assert found == (
        3,
        "UNKNOWN: systemctl can't be run: No such file or directory; ask daemons with --http or --socket",
    )


def test_a_systemctl_that_fails_or_hangs_is_unknown(systemd: Systemd, tmp_path: pathlib.Path) -> None:
    program = tmp_path / "bin" / "systemctl"
    program.write_text("#!/bin/sh\necho 'Failed to connect to bus' >&2\nexit 1\n")
    assert systemd.status() == (3, "UNKNOWN: systemctl failed: Failed to connect to bus")
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    assert systemd.status("--timeout", "0.2") == (3, "UNKNOWN: systemctl gave no answer within 0.2 s")
