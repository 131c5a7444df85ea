"""The control socket and `rpcd ctl` against the real process: pause, resume, status, level, reload; and what is garbage."""

import json
import os
import pathlib
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from daemon import RPCD, StartDaemon
from peer import Peer

CONFIG = """
[service]
control = "control"
drain_timeout = 20
[queues.work]
[queues.other]
[consumers.work]
queue = "work"
handler = "handlers_of_test:handle"
workers = 1
prefetch = 3
[consumers.other]
queue = "other"
handler = "handlers_of_test:handle"
"""

HANDLERS = """
    import logging
    import rpcd

    def handle(message):
        logging.getLogger("shop").debug("a detail of %s", message.body)
        logging.info("running %s", message.body)
        if message.body == "wait":
            open("let-go").read()
        if message.body == "halt":
            open("let-go").read()
            raise rpcd.HaltConsumer()
        return message.body
"""


@pytest.fixture
def control(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "control"


class Client:
    """A plain client of the control socket."""

    def __init__(self, path: pathlib.Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self) -> Any:
        line = self._lines.readline()
        return json.loads(line) if line else None

    def ask(self, do: str, **more: Any) -> Any:
        self.write(json.dumps({"do": do, **more}).encode() + b"\n")
        return self.read()

    def say_no_more(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def client(start: StartDaemon, control: pathlib.Path) -> Iterator[Client]:
    start(CONFIG, HANDLERS)
    made = Client(control)
    yield made
    made.close()


def ctl(*words: str, cwd: pathlib.Path | None = None, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(RPCD), "ctl", *words], cwd=cwd, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, **options
    )


def states(client: Client) -> dict[str, str]:
    return {each["name"]: each["state"] for each in client.ask("status")["result"]["consumers"]}


# The socket ---------------------------------------------------------------------------------------


def test_security_15_only_its_owner_may_use_it_and_it_is_gone_at_the_end(start: StartDaemon, control: pathlib.Path) -> None:
    daemon = start(CONFIG, HANDLERS)
    mode = control.lstat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert daemon.stop() == 0
    assert not control.exists()


def test_a_socket_of_a_dead_process_is_replaced(start: StartDaemon, control: pathlib.Path) -> None:
    start(CONFIG, HANDLERS).kill()
    assert control.exists()
    start(CONFIG, HANDLERS)
    client = Client(control)
    assert client.ask("status")["ok"] is True
    client.close()


def test_a_socket_of_a_living_process_ends_the_second_one_with_78(start: StartDaemon, control: pathlib.Path) -> None:
    start(CONFIG, HANDLERS)
    second = start(CONFIG, HANDLERS, wait=False)
    assert second.wait() == 78
    assert f"service.control: another process listens on {control}" in second.output
    client = Client(control)
    assert states(client) == {"work": "consuming", "other": "consuming"}
    client.close()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no/such/control", "there is no directory"),
        ("rpcd.toml", "is there already and is no socket"),
        ("x" * 100, "is longer than the 107 bytes"),
    ],
)
def test_a_path_that_can_not_be_ends_it_with_78(start: StartDaemon, path: str, said: str) -> None:
    daemon = start(CONFIG.replace('"control"', f'"{path}"'), HANDLERS, wait=False)
    assert daemon.wait() == 78
    assert "rpcd.toml: service.control: " in daemon.output
    assert said in daemon.output


def test_it_is_there_again_after_a_reload(start: StartDaemon, control: pathlib.Path) -> None:
    daemon = start(CONFIG, HANDLERS)
    before = control.lstat().st_ino
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("ready, consuming: ", 2)
    assert stat.S_IMODE(control.lstat().st_mode) == 0o600
    client = Client(control)
    assert client.ask("status")["result"]["state"] == "ready"
    client.close()
    assert before


# The conversation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"garbage", "not a request"),
        (b"[]", "not a request"),
        (b"{}", "not a request"),
        (b'{"do": 5}', "not a request"),
        (b'{"do": "status", "x": 1}', "not a request"),
        (b"\xff\xfe\x00", "not a request"),
        (b'{"do": "explode"}', "'explode' is no command; there are status, pause, resume, level and reload"),
        (b'{"do": "pause", "consumers": ["wrok"]}', "there is no consumer 'wrok'; there are work, other"),
        (b'{"do": "level", "level": "loud"}', "'loud' is no level; there are debug, info, warning, error, critical"),
        (b'{"do": "level", "level": "debug", "logger": "pika.x"}', "the log of pika stays off"),
    ],
)
def test_what_is_no_request_gets_a_sentence_and_the_conversation_goes_on(client: Client, line: bytes, said: str) -> None:
    client.write(line + b"\n")
    answer = client.read()
    assert answer["ok"] is False
    assert said in answer["error"]
    assert client.ask("status")["ok"] is True


def test_a_line_that_is_too_long_ends_the_conversation(client: Client) -> None:
    client.write(b"x" * 70_000)
    assert client.read() == {"ok": False, "error": "a line is 65536 bytes at most"}
    assert client.read() is None


def test_many_requests_at_once_are_answered_in_order_even_to_one_who_says_no_more(client: Client) -> None:
    client.write(b'{"do": "status"}\n{"do": "no"}\n' * 50)
    client.say_no_more()
    answers = [client.read() for _ in range(101)]
    assert [answer and answer["ok"] for answer in answers] == [True, False] * 50 + [None]


def test_several_clients_are_served_and_one_who_does_not_read_hinders_nobody(
    client: Client, control: pathlib.Path, peer: Peer
) -> None:
    idle, greedy = Client(control), Client(control)
    greedy._socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        greedy.write(b'{"do": "status"}\n' * 1_000_000)  # and never reads
    assert client.ask("status")["ok"] is True
    assert peer.call("work", "a").json["data"] == {"result": "a"}
    idle.close()
    greedy.close()


# What can be asked for ----------------------------------------------------------------------------


def test_the_report_tells_everything(client: Client, peer: Peer, tmp_path: pathlib.Path) -> None:
    peer.call("work", "a")
    report = client.ask("status")["result"]
    assert report["state"] == "ready"
    assert report["ready"] is True
    assert report["config"] == str(tmp_path / "rpcd.toml")
    assert report["virtual_host"] is None
    assert "guest:" not in report["broker"].replace("guest:****", "")
    work = report["consumers"][0]
    expected = {"name": "work", "queue": "work", "state": "consuming", "why": None, "workers": 1, "prefetch": 3, "lost": 0}
    assert {name: work[name] for name in expected} == expected
    assert work["received"] == 1
    assert work["acked"] == 1


def test_a_paused_consumer_starts_nothing_and_loses_nothing(client: Client, peer: Peer) -> None:
    assert client.ask("pause", consumers=["work"]) == {"ok": True, "result": {"work": "paused"}}
    for number in range(5):
        peer.publish("work", number, reply_to=peer.reply_queue, correlation_id=str(number))
    assert peer.call("other", "a").json["data"] == {"result": "a"}
    peer.until(lambda: client.ask("status")["result"]["consumers"][0]["received"] == 3)  # the prefetch brakes
    report = client.ask("status")["result"]
    assert report["ready"] is True
    assert report["consumers"][0]["state"] == "paused"
    assert report["consumers"][0]["running"] == 0
    assert client.ask("pause", consumers=["work"])["ok"] is True  # again
    assert client.ask("resume") == {"ok": True, "result": {"work": "consuming", "other": "consuming"}}
    assert [reply.json["data"]["result"] for reply in peer.replies(5)] == list(range(5))


def test_a_pause_survives_a_lost_connection(client: Client, peer: Peer, node: Any, virtual_host: str) -> None:
    client.ask("pause", consumers=["work"])
    peer.publish("work", "a")
    peer.until(lambda: client.ask("status")["result"]["consumers"][0]["received"] == 1)
    node.ctl("close_all_connections", "--vhost", virtual_host, "test")
    again = Peer(peer.url)
    again.until(lambda: client.ask("status")["result"]["consumers"][0]["received"] == 2)
    work = client.ask("status")["result"]["consumers"][0]
    assert work["connections"] == 2
    assert work["state"] == "paused"
    assert work["acked"] == 0
    client.ask("resume")
    again.until(lambda: client.ask("status")["result"]["consumers"][0]["acked"] == 1)
    again.close()


def test_a_pause_and_a_stop_give_everything_back(start: StartDaemon, control: pathlib.Path, peer: Peer) -> None:
    daemon = start(CONFIG, HANDLERS)
    client = Client(control)
    client.ask("pause")
    for number in range(5):
        peer.publish("work", number)
    peer.until(lambda: client.ask("status")["result"]["consumers"][0]["received"] == 3)
    client.close()
    assert daemon.stop() == 0
    assert [json.loads(message.body) for message in peer.left("work")] == list(range(5))
    assert "running" not in daemon.output


def test_no_resume_undoes_a_halt(start: StartDaemon, control: pathlib.Path, peer: Peer, tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "let-go")
    daemon = start(CONFIG, HANDLERS)
    client = Client(control)
    peer.publish("work", "halt")
    daemon.wait_for("running halt")
    peer.publish("work", "after")
    client.ask("pause")
    with (tmp_path / "let-go").open("w"):
        pass
    daemon.wait_for("halted: ")
    peer.until(lambda: states(client)["work"] == "stopped")
    assert client.ask("resume", consumers=["work"]) == {"ok": False, "error": "it is stopping already: work"}
    report = client.ask("status")["result"]
    assert report["ready"] is False
    assert report["consumers"][0]["why"] == "halted: no reason given"
    assert [message.body for message in peer.left("work")] == [b'"after"']
    client.close()


def test_no_resume_undoes_a_stop(start: StartDaemon, control: pathlib.Path, peer: Peer, tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "let-go")
    daemon = start(CONFIG, HANDLERS)
    client = Client(control)
    peer.publish("work", "wait")
    daemon.wait_for("running wait")
    peer.publish("work", "after")
    client.ask("pause", consumers=["work"])
    daemon.signal(signal.SIGTERM)
    peer.until(lambda: client.ask("status")["result"]["state"] == "stopping")
    assert client.ask("resume", consumers=["work"])["ok"] is False
    assert client.ask("reload") == {"ok": False, "error": "no reload: the process is stopping"}
    with (tmp_path / "let-go").open("w"):
        pass
    assert daemon.wait() == 0
    client.close()
    assert [message.body for message in peer.left("work")] == [b'"after"']


def test_the_log_level_can_be_changed(start: StartDaemon, control: pathlib.Path, peer: Peer) -> None:
    daemon = start(CONFIG, HANDLERS)
    client = Client(control)
    peer.call("work", "first")
    assert client.ask("level", level="DEBUG", logger="shop") == {"ok": True, "result": {"shop": "debug"}}
    peer.call("work", "second")
    daemon.wait_for("DEBUG shop: a detail of second")
    assert "a detail of first" not in daemon.output
    assert client.ask("level", level="warning")["ok"] is True
    peer.call("work", "third")
    daemon.wait_for("a detail of third")
    assert "running third" not in daemon.output
    client.close()


def test_a_reload_answers_with_what_is_wrong(client: Client, tmp_path: pathlib.Path) -> None:
    config = tmp_path / "rpcd.toml"
    good = config.read_text()
    config.write_text(good.replace("prefetch = 3", "prefecth = 3"))
    answer = client.ask("reload")
    assert answer["ok"] is False
    assert "consumers.work.prefecth: unknown key; did you mean 'prefetch'?" in answer["error"]
    assert "prefecth" in client.ask("status")["result"]["refused"]
    config.write_text(good.replace('"control"', '"no/such"'))
    assert "service.control: there is no directory" in client.ask("reload")["error"]
    config.write_text(good.replace('"control"', '"control"\nhttp = "tpc:1"'))
    assert "service.http: 'tpc:1' is nothing that can be listened on" in client.ask("reload")["error"]
    config.write_text(good)
    assert client.ask("reload")["ok"] is True
    assert client.read() is None  # the end of this process, and the beginning of the next


# rpcd ctl -----------------------------------------------------------------------------------------


def test_the_command_shows_a_table_and_does_what_it_is_told(client: Client, tmp_path: pathlib.Path) -> None:
    done = ctl("--config", "rpcd.toml", "status", cwd=tmp_path)
    assert done.returncode == 0
    assert [line.split()[:3] for line in done.stdout.splitlines()[-2:]] == [
        ["work", "work", "consuming"],
        ["other", "other", "consuming"],
    ]
    done = ctl("pause", "work", "--config", str(tmp_path / "rpcd.toml"))
    assert (done.returncode, done.stdout) == (0, "paused: work\n")
    assert states(client) == {"work": "paused", "other": "consuming"}
    done = ctl("--socket", str(tmp_path / "control"), "--json", "resume")
    assert json.loads(done.stdout) == {"ok": True, "result": {"work": "consuming", "other": "consuming"}}
    done = ctl("--socket", str(tmp_path / "control"), "level", "debug", "shop")
    assert (done.returncode, done.stdout) == (0, "shop: debug\n")
    done = ctl("--socket", str(tmp_path / "control"), "pause", "nobody")
    assert (done.returncode, done.stderr) == (1, "there is no consumer 'nobody'; there are work, other\n")
    done = ctl("--socket", str(tmp_path / "control"), "reload")
    assert (done.returncode, done.stdout) == (0, "all is well; draining, then starting anew\n")


def test_the_command_says_why_it_can_not(tmp_path: pathlib.Path) -> None:
    config = tmp_path / "shop.toml"
    done = ctl("status", env={**os.environ, "RPCD_CONFIG": ""})
    assert (done.returncode, done.stderr) == (78, "which daemon? give --config FILE or --socket PATH, or set RPCD_CONFIG\n")
    config.write_text("")
    done = ctl("--config", str(config), "status")
    assert done.returncode == 78
    assert "service.control is not set" in done.stderr
    config.write_text('[service]\ncontrol = "control"\n')
    done = ctl("--config", str(config), "status")
    assert done.returncode == 69
    assert f"{tmp_path}/control: nobody listens there: No such file or directory; is it running?" in done.stderr
    for words in (("level",), ("status", "x"), ("explode",)):
        assert ctl("--config", str(config), *words).returncode == 2


def test_the_command_waits_no_longer_than_it_is_told(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "control"))
        silent.listen()
        done = ctl("--socket", str(tmp_path / "control"), "--timeout", "0.2", "status")
    assert (done.returncode, done.stderr) == (75, f"{tmp_path}/control: no answer within 0.2 s\n")


def test_nobody_else_may_use_it() -> None:
    place = pathlib.Path(tempfile.mkdtemp(prefix="rpcd-test-"))
    place.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "control"))
        (place / "control").chmod(0o600 if os.geteuid() == 0 else 0)
        server.listen()
        code = (
            "import os, sys\n"
            "from rpcd.cli.ctl import NoAnswer, ask\n"
            "if os.geteuid() == 0:\n"
            "    os.setresuid(61234, 61234, 61234)\n"
            "try:\n"
            "    ask(sys.argv[1], {'do': 'status'}, 5.0)\n"
            "except NoAnswer as error:\n"
            "    print(error.code, error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(place / "control")], capture_output=True, text=True)
    shutil.rmtree(place)
    assert done.stdout.startswith(f"77 {place}/control: no permission; only the user who runs the daemon, and root")
