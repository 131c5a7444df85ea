"""SIGHUP: what is wrong is told and nothing changes; what is right begins anew in the same process, and nothing is lost."""

import contextlib
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator

import attrs
import pika
import pytest
from daemon import RPCD, TWISTD, Daemon, StartDaemon
from notify import NotifySocket
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode

CONFIG = """
[service]
drain_timeout = 20
[queues.work]
[consumers.work]
queue = "work"
handler = "handlers_of_test:handle"
workers = 4
"""

HANDLERS = """
    import logging, os, threading

    def handle(message):
        if message.body == "stuck":
            logging.info("running stuck")
            threading.Event().wait()
        if message.body == "wait":
            logging.info("running wait")
            open("let-go").read()
        return {"version": 1, "notify": os.environ.get("NOTIFY_SOCKET")}
"""


SOURCES = f"{pathlib.Path(__file__).parent.parent.parent}:{pathlib.Path(pika.__file__).parent.parent}"
"""Where an interpreter from outside of the virtual environment finds rpcd and what it needs."""


@pytest.fixture
def systemd(tmp_path: pathlib.Path) -> Iterator[NotifySocket]:
    made = NotifySocket(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "rpcd.toml"


@pytest.fixture
def handlers(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "handlers_of_test.py"


def version(peer: Peer, queue: str = "work") -> int:
    data = peer.call(queue, "x").json["data"]
    assert data["notify"] is None
    return int(data["version"])


def edit(file: pathlib.Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(
        text.replace(old, new) + "\n"
    )  # by its size Python tells it from the one compiled within the same second


def test_changed_code_and_config_begin_anew_in_the_same_process(
    start: StartDaemon, systemd: NotifySocket, peer: Peer, config: pathlib.Path, handlers: pathlib.Path
) -> None:
    daemon = start(CONFIG, HANDLERS, NOTIFY_SOCKET=systemd.address)
    told = systemd.ready()
    assert version(peer) == 1
    edit(handlers, '"version": 1', '"version": 2')
    config.write_text(
        config.read_text() + '[queues.more]\n[consumers.more]\nqueue = "more"\nhandler = "handlers_of_test:handle"\n'
    )
    daemon.signal(signal.SIGHUP)
    told = systemd.wait_for(lambda each: each.get("RELOADING") == "1", told)
    assert int(systemd.told[told - 1]["MONOTONIC_USEC"]) > 0
    assert systemd.told[told - 1]["STATUS"] == "reloading: checking the config"
    reloading, told = told, systemd.ready(told)
    assert systemd.told[told - 1]["STATUS"] == "consuming: work, more"
    assert not any("STOPPING" in each for each in systemd.told[reloading:told])
    assert version(peer) == 2
    assert version(peer, "more") == 2
    assert len(daemon.wait_for("ready, consuming: ")) == 2
    assert daemon.stop() == 0
    assert "stopped, starting anew" in daemon.output


@pytest.mark.parametrize("broken", ["config", "handlers"])
def test_a_mistake_is_told_and_it_carries_on(
    start: StartDaemon, systemd: NotifySocket, peer: Peer, config: pathlib.Path, handlers: pathlib.Path, broken: str
) -> None:
    daemon = start(CONFIG, HANDLERS, NOTIFY_SOCKET=systemd.address)
    told = systemd.ready()
    if broken == "config":
        edit(config, "workers = 4", "wrokers = 4\nprefetch = 0")
    else:
        edit(handlers, "import logging", "1 / 0; import logging")
    daemon.signal(signal.SIGHUP)
    told = systemd.ready(systemd.wait_for(lambda each: each.get("RELOADING") == "1", told))
    status = systemd.told[told - 1]["STATUS"]
    assert status.startswith("consuming: work; the last reload was refused: ")
    said = daemon.wait_for("ERROR rpcd: reload refused: ", 2 if broken == "config" else 1)
    if broken == "config":
        assert "consumers.work.prefetch: expected a whole number from 1, got 0 (and 1 more)" in status
        assert "wrokers: unknown key; did you mean 'workers'?" in said[1]
    else:
        assert "ZeroDivisionError" in status
    assert version(peer) == 1
    assert len(daemon.wait_for("rpcd 0.* starting")) == 1
    if broken == "config":
        edit(config, "wrokers = 4\nprefetch = 0", "workers = 2")
    else:
        edit(handlers, "1 / 0; import", "import")
    daemon.signal(signal.SIGHUP)
    told = systemd.ready(told)
    assert systemd.told[told - 1]["STATUS"] == "consuming: work"
    daemon.wait_for("rpcd 0.* starting", 2)


@pytest.mark.parametrize("wrong", ["password", "arguments"])
def test_what_the_broker_would_refuse_is_told_and_it_carries_on(
    start: StartDaemon, peer: Peer, config: pathlib.Path, wrong: str
) -> None:
    """The new program would end over it, for good."""
    start(CONFIG, HANDLERS).stop()
    config.write_text(f"[broker]\nurl = {peer.url!r}\n{config.read_text()}")
    config.chmod(0o600)
    daemon = Daemon(config, None)  # RABBITMQ_URL would win over the file
    try:
        daemon.ready()
        if wrong == "password":
            edit(config, "guest:guest@", "guest:wrong@")
        else:
            edit(config, "[queues.work]", "[queues.work]\narguments = { x-max-length = 7 }")
        daemon.signal(signal.SIGHUP)
        said = {"password": "refused the login", "arguments": "PRECONDITION_FAILED"}[wrong]
        (line,) = daemon.wait_for("reload refused|starting, broker", 2)[1:]
        assert "reload refused: " in line
        assert said in line
        assert version(peer) == 1
    finally:
        daemon.kill()


def test_a_broker_that_is_away_keeps_nobody_from_reloading(start: StartDaemon, own_node: PrivateNode) -> None:
    daemon = start(CONFIG, HANDLERS, at=own_node.url("/"))
    own_node.ctl("stop_app")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reload: the broker could not be asked about the new config")
    daemon.wait_for("starting, broker", 2)
    own_node.ctl("start_app")
    daemon.wait_for("ready, consuming: ", 2)


def test_what_runs_is_finished_first_and_what_has_not_started_waits_in_the_queue(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    os.mkfifo(tmp_path / "let-go")
    daemon = start(CONFIG.replace("workers = 4", "workers = 1\nprefetch = 3"), HANDLERS)
    peer.publish("work", "wait", reply_to=peer.reply_queue, correlation_id="wait")
    peer.publish("work", "x", reply_to=peer.reply_queue, correlation_id="x")
    daemon.wait_for("running wait")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reload: all is well; draining")
    daemon.signal(signal.SIGHUP)  # the same reload
    daemon.wait_for("reload: it is under way already")
    with (tmp_path / "let-go").open("w"):
        pass
    first, second = peer.replies(2)
    assert (first.properties.correlation_id, second.properties.correlation_id) == ("wait", "x")
    daemon.wait_for("ready, consuming: ", 2)
    assert daemon.output.count("rpcd 0") == 2


def test_what_does_not_finish_goes_back_and_it_begins_anew_all_the_same(start: StartDaemon, peer: Peer) -> None:
    daemon = start(CONFIG.replace("drain_timeout = 20", "drain_timeout = 1"), HANDLERS)
    peer.publish("work", "stuck")
    daemon.wait_for("running stuck")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("go back to the broker: 1")
    daemon.wait_for("running stuck", 2)  # delivered again
    assert daemon.process.poll() is None


def test_sigterm_wins_over_a_reload_that_drains(start: StartDaemon, systemd: NotifySocket, peer: Peer) -> None:
    daemon = start(CONFIG, HANDLERS, NOTIFY_SOCKET=systemd.address)
    peer.publish("work", "stuck")
    daemon.wait_for("running stuck")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reload: all is well; draining")
    daemon.signal(signal.SIGTERM)
    systemd.wait_for(lambda each: each.get("STOPPING") == "1")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reload: it is under way already|no reload: the process is stopping")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 75
    assert daemon.output.count("starting, broker") == 1


def test_sigterm_wins_over_a_check_that_is_under_way(
    start: StartDaemon, handlers: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    os.mkfifo(tmp_path / "let-go")
    daemon = start(CONFIG, HANDLERS)
    edit(handlers, "import logging", "open('let-go').read(); import logging")
    daemon.signal(signal.SIGHUP)
    with (tmp_path / "let-go").open("w"):  # the check is importing
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
    assert daemon.output.count("starting, broker") == 1


def test_a_second_sighup_while_it_is_checked_is_checked_too(
    start: StartDaemon, handlers: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    os.mkfifo(tmp_path / "let-go")
    daemon = start(CONFIG, HANDLERS)
    edit(handlers, "import logging", "open('let-go').read(); import logging")
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("reload: checking")
    with (tmp_path / "let-go").open("w"):
        edit(handlers, "open('let-go').read(); import", "1 / 0; import")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reload: it is being checked already")
    daemon.wait_for("reload refused: .*ZeroDivisionError")
    assert daemon.output.count("starting, broker") == 1


def test_a_reload_is_refused_where_only_a_restart_can_help(start: StartDaemon) -> None:
    daemon = start(CONFIG, HANDLERS, arguments=("--uid", str(os.geteuid())))
    daemon.signal(signal.SIGHUP)
    (line,) = daemon.wait_for("reload refused")
    assert "twistd was given --uid, which can't be done twice; restart it instead" in line


def test_nohup_is_respected(tmp_path: pathlib.Path, start: StartDaemon, peer: Peer) -> None:
    start(CONFIG, HANDLERS).stop()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            ["nohup", str(TWISTD), "-n", "--pidfile=", "rpcd", "--config", "rpcd.toml"],
            cwd=tmp_path,
            env={**os.environ, "RABBITMQ_URL": peer.url},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        peer.until(lambda: "ready, consuming: " in (tmp_path / "log").read_text())
        process.send_signal(signal.SIGHUP)
        assert version(peer) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
    assert "reload" not in (tmp_path / "log").read_text()


def test_a_terminal_that_is_closed_ends_what_ran_in_it(tmp_path: pathlib.Path, start: StartDaemon, peer: Peer) -> None:
    start(CONFIG, HANDLERS).stop()
    pid, terminal = os.forkpty()
    if pid == 0:
        os.chdir(tmp_path)
        os.environ["RABBITMQ_URL"] = peer.url
        arguments = ["-n", "--pidfile=", "--logfile=log", "rpcd", "--config", "rpcd.toml"]
        os.execv(str(TWISTD), [str(TWISTD), *arguments])
    peer.until(lambda: (tmp_path / "log").exists() and "ready, consuming: " in (tmp_path / "log").read_text())
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "SIGHUP: stopping" in (tmp_path / "log").read_text()


def test_a_daemonised_twistd_begins_anew_with_a_new_pid_file(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, handlers: pathlib.Path
) -> None:
    start(CONFIG, HANDLERS).stop()
    (tmp_path / "place").mkdir()
    subprocess.run(
        [str(TWISTD), "--rundir", "place", "rpcd", "--config", "rpcd.toml"],
        cwd=tmp_path,
        env={"RABBITMQ_URL": peer.url, "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        timeout=30,
    )
    pid_file, log = tmp_path / "twistd.pid", tmp_path / "twistd.log"
    first = int(pid_file.read_text())
    assert version(peer) == 1
    edit(handlers, '"version": 1', '"version": 2')
    os.kill(first, signal.SIGHUP)
    peer.until(lambda: log.read_text().count("ready, consuming: ") == 2, what=log.read_text)
    second = int(pid_file.read_text())
    assert second != first
    assert version(peer) == 2
    os.kill(second, signal.SIGTERM)
    peer.until(lambda: not pid_file.exists())
    peer.until(lambda: "stopped, exit code 0" in log.read_text())


def test_an_interpreter_that_has_gone_ends_it_with_70(tmp_path: pathlib.Path, start: StartDaemon, url: str) -> None:
    """The check uses the same interpreter, so it goes away between the check and the end."""
    own = tmp_path / "python"
    own.symlink_to(TWISTD.parent / "python")
    start(CONFIG, HANDLERS).stop()
    environment = {**os.environ, "RABBITMQ_URL": url, "OWN": str(own), "PYTHONPATH": SOURCES}
    (tmp_path / "handlers_of_test.py").write_text(
        "import atexit, os, sys\n"
        "if 'twistd' in sys.argv[0]:\n    atexit.register(os.remove, os.environ['OWN'])\n"
        "def handle(message): pass\n"
    )
    with subprocess.Popen(
        [str(own), str(TWISTD), "-n", "--pidfile=", "rpcd", "--config", "rpcd.toml"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "ready, consuming: " in line:
                process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 70
    assert "could not start anew" in lines[-1]


def test_rpcd_run_begins_anew_as_well(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, handlers: pathlib.Path
) -> None:
    start(CONFIG, HANDLERS).stop()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [str(RPCD), "run", "--config", "rpcd.toml"],
            cwd=tmp_path,
            env={**os.environ, "RABBITMQ_URL": peer.url},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        assert version(peer) == 1
        edit(handlers, '"version": 1', '"version": 2')
        process.send_signal(signal.SIGHUP)
        peer.until(lambda: (tmp_path / "log").read_text().count("ready, consuming: ") == 2)
        assert version(peer) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()


def test_a_hail_of_sighups_kills_nobody(start: StartDaemon, peer: Peer) -> None:
    """Also between the end of the old program and the handlers of the new one, when the signal's own action is death."""
    daemon = start(CONFIG, HANDLERS)
    while daemon.output.count("ready, consuming: ") < 4:
        assert daemon.process.poll() is None
        daemon.signal(signal.SIGHUP)
        daemon.wait_a_little()
    assert version(peer) == 1
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() in (0, -signal.SIGTERM)  # the latter if it came while the next program was starting


def test_a_sighup_while_handlers_are_imported_for_the_first_time_waits_until_it_can_be_heeded(
    start: StartDaemon, tmp_path: pathlib.Path
) -> None:
    os.mkfifo(tmp_path / "importing")
    importing = "import os\nif 'twistd' in __import__('sys').argv[0] and os.path.exists('importing'):\n"
    importing += "    open('importing', 'w').close(); open('importing').close(); os.remove('importing')\n"
    daemon = start(CONFIG, importing + "def handle(message): pass\n", wait=False)
    (tmp_path / "importing").read_text()
    daemon.signal(signal.SIGHUP)
    with (tmp_path / "importing").open("w"):
        pass
    daemon.wait_for("reload: all is well")
    daemon.wait_for("starting, broker", 2)
    assert daemon.stop() == 0


def test_no_descriptor_is_left_behind(start: StartDaemon) -> None:
    daemon = start(CONFIG, HANDLERS + "\n    os.set_inheritable(os.open('/dev/null', os.O_RDONLY), True)\n")
    opened = pathlib.Path(f"/proc/{daemon.process.pid}/fd")
    before = len(list(opened.iterdir()))
    for count in (2, 3):
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("ready, consuming: ", count)
    assert len(list(opened.iterdir())) == before


def test_a_socket_that_systemd_passes_on_is_passed_on_again(start: StartDaemon, tmp_path: pathlib.Path, url: str) -> None:
    config = CONFIG.replace("[service]", '[service]\nhttp = "systemd:domain=INET:index=0"')
    launcher = tmp_path / "launcher"
    launcher.write_text(
        f"#!{sys.executable}\nimport os, socket, sys\n"
        "listening = socket.create_server(('127.0.0.1', 0))\n"
        "print('port', listening.getsockname()[1], flush=True)\n"
        "os.dup2(os.dup2(listening.fileno(), 9), 3, inheritable=True)\n"
        "os.environ |= {'LISTEN_FDS': '1', 'LISTEN_FDNAMES': 'http', 'LISTEN_PID': str(os.getpid())}\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    launcher.chmod(0o755)
    daemon = start(config, HANDLERS, command=(str(launcher), str(TWISTD)))
    port = int(daemon.wait_for("^port ")[0].split()[1])
    for count in (2, 3):
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("ready, consuming: ", count)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=20) as answer:
            assert answer.status == 200


# Unprivileged, as systemd runs it -----------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[pathlib.Path]:
    """A directory that another user may enter."""
    made = pathlib.Path(tempfile.mkdtemp(prefix="rpcd-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


STRANGER = 61234


@attrs.frozen
class Unprivileged:
    """Who may not read every file, what it runs twistd by, and how a file is kept from it."""

    user: int | None
    command: tuple[str, ...]

    def forbid(self, file: pathlib.Path) -> None:
        if os.geteuid() != 0:
            file.chmod(0)
            return
        file.chmod(0o600)
        if self.user is None:
            os.chown(file, STRANGER, STRANGER)


@pytest.fixture
def unprivileged() -> Unprivileged:
    """Another user; or root without the power to read everything, if no other user may run our Python."""
    if os.geteuid() != 0:
        return Unprivileged(None, (str(TWISTD),))
    python = python_of(STRANGER)
    if python is not None:
        return Unprivileged(STRANGER, (python, str(TWISTD)))
    return Unprivileged(None, ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", str(TWISTD)))


def python_of(user: int) -> str | None:
    """Find an interpreter of our version that a user may run: ours may lie in a home directory."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/python{own}", f"/usr/local/bin/python{own}"):
        with contextlib.suppress(OSError):
            environment = {"PYTHONPATH": SOURCES, "PYTHONDONTWRITEBYTECODE": "1"}
            command = [candidate, "-c", "import msgspec, pika, rpcd.tap"]
            if subprocess.run(command, env=environment, user=user, group=user, cwd="/").returncode == 0:
                return candidate
    return None


def test_an_unprivileged_daemon_reads_systemds_copy_and_says_that_it_can_not_reload_it(
    place: pathlib.Path, unprivileged: Unprivileged, peer: Peer
) -> None:
    systemd = NotifySocket(place / "notify")
    (place / "handlers_of_test.py").write_text("def handle(message):\n    return {'version': 1, 'notify': None}\n")
    config = place / "shop.toml"
    config.write_text(CONFIG.replace("[service]", "[service]\npath = ['.']"))
    credentials = place / "credentials"
    credentials.mkdir(mode=0o755)
    shutil.copy(config, credentials / "shop.toml")
    (credentials / "shop.toml").chmod(0o400)
    if unprivileged.user is not None:
        os.chown(credentials / "shop.toml", unprivileged.user, unprivileged.user)
    unprivileged.forbid(config)
    daemon = Daemon(
        config,
        peer.url,
        command=unprivileged.command,
        user=unprivileged.user,
        PYTHONPATH=SOURCES,
        NOTIFY_SOCKET=systemd.address,
        CREDENTIALS_DIRECTORY=str(credentials),
        HOME="/nonexistent",
    )
    try:
        told = systemd.ready()
        assert version(peer) == 1
        daemon.signal(signal.SIGHUP)
        told = systemd.ready(told)
        (line,) = daemon.wait_for("reload refused")
        assert f"{config}: can't be read by this user, and systemd's copy of it is as old as this process" in line
        assert "systemctl restart" in line
        config.chmod(0o644)
        daemon.signal(signal.SIGHUP)
        systemd.ready(told)
        assert version(peer) == 1
        assert daemon.stop() == 0
    finally:
        daemon.kill()
        systemd.close()


# Nothing is lost ----------------------------------------------------------------------------------

RELOADS = 20

LEDGER = """
    import os, time

    ledger = os.open("ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def handle(message):
        time.sleep(0.01)
        os.write(ledger, b"%d\\n" % message.body["id"])
"""


class Traffic:
    """Publishes numbered messages, confirmed, until it is told to stop."""

    def __init__(self, url: str) -> None:
        self.sent: list[int] = []
        self.failure: BaseException | None = None
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            connection = pika.BlockingConnection(pika.URLParameters(self._url))
            channel = connection.channel()
            channel.confirm_delivery()
            for number in itertools.count():
                body = json.dumps({"id": number}).encode()
                properties = pika.BasicProperties(delivery_mode=2, message_id=str(number))
                channel.basic_publish("", "work", body, properties, mandatory=True)
                self.sent.append(number)
                if self._stop.wait(0.002):
                    break
            connection.close()
        except BaseException as error:  # noqa: BLE001  # told to the test
            self.failure = error

    def stop(self) -> list[int]:
        self._stop.set()
        self._thread.join(30)
        assert self.failure is None
        return self.sent


def test_nothing_is_lost_or_done_twice_over_many_reloads(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path) -> None:
    daemon = start(CONFIG + "prefetch = 50\n", LEDGER)
    traffic = Traffic(peer.url)
    try:
        for count in range(RELOADS):
            daemon.signal(signal.SIGHUP)
            daemon.wait_for("ready, consuming: ", count + 2)
    finally:
        sent = traffic.stop()
    peer.until(lambda: (tmp_path / "ledger").read_text().count("\n") >= len(sent))
    assert daemon.stop() == 0
    assert peer.left("work") == []
    assert peer.left("work.archive") == []
    handled = Counter(int(line) for line in (tmp_path / "ledger").read_text().splitlines())
    assert sorted(handled) == sent
    assert {number: times for number, times in handled.items() if times > 1} == {}, daemon.output
