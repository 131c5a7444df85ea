"""`rpcd dev`: a broker of its own, a new beginning at each change, and nothing left behind."""

import json
import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import click
import pytest
from command import Running, rpcd, surroundings
from daemon import RPCD
from peer import Peer

from rpcd.cli import readable
from rpcd.ops.announced import AlreadyAnnounced, Announcement, announced, place_of
from rpcd.ops.watch import Watch

CONFIG = """\
[service]
path = ["."]
[queues.orders]
[consumers.orders]
queue = "orders"
handler = "shop:handle"
"""

HANDLER = """\
def handle(message):
    print("an order came")
    return {"version": 1}
"""


@pytest.fixture
def shop(tmp_path: pathlib.Path) -> pathlib.Path:
    """The config of a small project."""
    (tmp_path / "shop.py").write_text(HANDLER)
    (tmp_path / "shop.toml").write_text(CONFIG)
    return tmp_path / "shop.toml"


class Dev(Running):
    """`rpcd dev`, with all that it makes below the directory of the project."""

    def __init__(self, config: pathlib.Path, url: str = "", **environment: str) -> None:
        self.directory = config.parent
        before = dict(os.environ)
        os.environ.update({"TMPDIR": str(config.parent), **environment})
        try:
            super().__init__("dev", "--config", str(config), url=url)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def shows(self, text: str, count: int = 1) -> None:
        self.wait_for(text, self.out, count)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def left(self) -> list[str]:
        """The processes that have to do with the project."""
        found = []
        for place in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                status = (place / "stat").read_text().rpartition(")")[2].split()[0]
                text = (place / "environ").read_bytes() + (place / "cmdline").read_bytes()
            except OSError:
                continue
            if str(self.directory).encode() in text and status != "Z" and int(place.name) != os.getpid():
                found.append((place / "cmdline").read_text().replace("\0", " "))
        return found


@pytest.fixture
def developing(shop: pathlib.Path) -> Iterator[list[Dev]]:
    """What a test starts; it ends with the test."""
    running: list[Dev] = []
    yield running
    for each in running:
        if each.process.poll() is None:
            each.process.kill()
        each.wait()
        for stream in (each.process.stdout, each.process.stderr):
            assert stream is not None
            stream.close()


def call(config: pathlib.Path) -> dict[str, object]:
    done = rpcd("call", "orders", "{}", "--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, object] = json.loads(done.stdout)["data"]
    return found


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_whole_working_day_with_a_private_broker(shop: pathlib.Path, developing: list[Dev]) -> None:
    dev = Dev(shop)
    developing.append(dev)
    dev.shows("no broker is named")
    dev.shows(f"rpcd call orders '{{}}' --config {shop}")
    assert call(shop) == {"version": 1}  # in another terminal, without any word about the broker
    dev.shows("print   an order came consumer=orders")
    (shop.parent / "shop.py").write_text(HANDLER.replace("1", "2"))
    dev.shows("changed: ")
    dev.shows("ready, consuming: orders", 2)
    assert call(shop) == {"version": 2}
    (shop.parent / "shop.py").write_text("def handle(message:\n")
    dev.shows("reload refused: ")
    assert call(shop) == {"version": 2}  # as before
    (shop.parent / "shop.py").write_text(HANDLER.replace("1", "3"))
    dev.shows("ready, consuming: orders", 3)
    assert call(shop) == {"version": 3}
    shop.write_text(CONFIG.replace("[queues.orders]", "[queues.orders]\ndelivery_limit = 5"))
    dev.shows("stop `rpcd dev` and start it again for an empty one")
    shop.write_text("[")
    dev.shows("reload refused: ", 3)
    shop.write_text(CONFIG)
    dev.shows("ready, consuming: orders", 4)
    again = rpcd("dev", "--config", str(shop))
    assert (again.returncode, again.stderr) == (1, f"{shop}: `rpcd dev` runs for it already\n")
    (pid_file,) = shop.parent.glob("rpcd-dev-*/pid")
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    dev.shows("the private broker has ended by itself")
    dev.shows("the private broker is there again")
    assert call(shop) == {"version": 3}
    assert rpcd("check", "--broker", "--config", str(shop)).returncode == 0
    assert dev.stop() == 0
    assert "stopping: handlers that run are finished" in "\n".join(dev.out)
    assert dev.err == []
    assert dev.left() == []
    assert sorted(each.name for each in shop.parent.iterdir() if each.name != "__pycache__") == ["shop.py", "shop.toml"]


def test_nothing_is_left_behind_by_one_that_was_killed(shop: pathlib.Path, developing: list[Dev]) -> None:
    dev = Dev(shop)
    developing.append(dev)
    dev.shows("ready, consuming: orders")
    assert len(dev.left()) > 3
    url = announced(str(shop))
    assert url is not None
    dev.process.kill()
    until(lambda: dev.left() == [])
    until(lambda: list(shop.parent.glob("rpcd-dev-*")) == [])
    assert place_of(str(shop)).exists()
    assert announced(str(shop)) is None  # nobody is sent to where nobody is any more


def test_a_stop_while_the_broker_starts_is_one(shop: pathlib.Path, developing: list[Dev]) -> None:
    dev = Dev(shop)
    developing.append(dev)
    dev.shows("starting a private RabbitMQ")
    until(lambda: list(shop.parent.glob("rpcd-dev-*/log/start.log")) != [])
    assert dev.stop() == 0
    assert dev.left() == []
    assert list(shop.parent.glob("rpcd-dev-*")) == []


def test_a_private_broker_that_can_not_be_started_is_told(shop: pathlib.Path, developing: list[Dev]) -> None:
    dev = Dev(shop, PATH="/nowhere")
    developing.append(dev)
    assert dev.wait() == 69
    assert "or name a broker: [broker] url, or RABBITMQ_URL" in "\n".join(dev.out)
    assert dev.left() == []


def test_the_private_broker_has_the_login_and_the_virtual_host_of_the_config(
    shop: pathlib.Path, developing: list[Dev]
) -> None:
    shop.write_text(f'[broker]\nusername = "ada"\npassword = "sword/fish"\nvirtual_host = "shop"\n{CONFIG}')
    shop.chmod(0o600)
    dev = Dev(shop)
    developing.append(dev)
    dev.shows("ready, consuming: orders")
    dev.shows("the private broker is amqp://ada@127.0.0.1:")
    assert call(shop) == {"version": 1}
    assert dev.stop() == 0
    assert "fish" not in "".join(dev.out)


def test_a_named_broker_is_used_and_a_daemon_that_ends_is_started_at_the_next_change(
    shop: pathlib.Path, developing: list[Dev], url: str, peer: Peer
) -> None:
    handler = shop.parent / "shop.py"
    handler.write_text("import nowhere\n")
    dev = Dev(shop, url)
    developing.append(dev)
    dev.shows("No module named 'nowhere'")
    dev.shows("the daemon has ended (exit code 78); it is started again at the next change")
    handler.write_text("import os\ndef handle(message):\n    os._exit(3)\n")
    dev.shows("ready, consuming: orders")
    peer.publish("orders", {})
    dev.shows("the daemon has ended (exit code 3)")
    handler.write_text(HANDLER)
    dev.shows("an order came")  # it was not lost
    assert dev.stop() == 0
    assert "private" not in "\n".join(dev.out)


def test_a_second_stop_hurries(shop: pathlib.Path, developing: list[Dev], url: str, peer: Peer) -> None:
    stuck = "import time\ndef handle(message):\n    print('here')\n    time.sleep(600)\n"
    (shop.parent / "shop.py").write_text(stuck)
    dev = Dev(shop, url)
    developing.append(dev)
    dev.shows("ready, consuming: orders")
    peer.publish("orders", {})
    dev.shows("here")
    dev.process.send_signal(signal.SIGINT)
    dev.shows("SIGTERM: stopping")
    dev.process.send_signal(signal.SIGINT)
    assert dev.wait() == 75
    assert dev.left() == []


def test_a_traceback_is_shown_with_its_source(shop: pathlib.Path, developing: list[Dev], url: str, peer: Peer) -> None:
    (shop.parent / "shop.py").write_text("def handle(message):\n    return 1 / 0  # oh\n")
    dev = Dev(shop, url)
    developing.append(dev)
    dev.shows("ready, consuming: orders")
    assert peer.call("orders", {}).json["success"] is False
    dev.shows("return 1 / 0  # oh")
    dev.shows("  | ZeroDivisionError")
    assert dev.stop() == 0


def test_dev_needs_a_config_that_can_be_read(tmp_path: pathlib.Path) -> None:
    assert rpcd("dev").returncode == 78
    (tmp_path / "broken.toml").write_text("[")
    for name in ("missing.toml", "broken.toml"):
        done = rpcd("dev", "--config", str(tmp_path / name))
        assert done.returncode == 78
        assert str(tmp_path / name) in done.stderr
        assert "Traceback" not in done.stderr


def test_the_end_of_its_reader_is_the_end_of_it(shop: pathlib.Path, url: str) -> None:
    line = ["sh", "-c", '"$@" | head -n 1; :', "sh", str(RPCD), "dev", "--config", str(shop)]
    done = subprocess.run(line, env=surroundings(url), capture_output=True, text=True, timeout=90)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr


# The log ------------------------------------------------------------------------------------------


def log_line(**found: object) -> str:
    return json.dumps({"time": "2026-01-02T03:04:05.678+00:00", "level": "info", "logger": "shop", "message": "hi", **found})


def test_a_log_line_is_short_and_readable() -> None:
    shown = click.unstyle(readable.line_of(log_line(consumer="orders", error="a b")))
    assert shown == "03:04:05 info    shop: hi consumer=orders error='a b'"
    assert click.unstyle(readable.line_of(log_line(logger="stdout"))) == "03:04:05 print   hi"


def test_nothing_in_a_log_line_steers_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\n\u202e"
    shown = readable.line_of(log_line(message=evil, consumer=evil, traceback=f"Traceback\n  x{evil}", logger=evil))
    assert "\x1b]" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert readable.line_of(evil) == r"\x1b]0;owned\x07\n\u202e"


@pytest.mark.parametrize("raw", ["", "no JSON", "[]", '{"level": "info"}', '{"time": 1, "level": "x", "message": "y"}'])
def test_what_is_no_log_line_stays_as_it_is(raw: str) -> None:
    assert readable.line_of(raw) == raw


def test_the_own_code_in_a_traceback_is_bright(tmp_path: pathlib.Path) -> None:
    trace = f'Traceback (most recent call last):\n  File "{json.__file__}", line 1, in x\n    foreign\n'
    trace += f'  File "{tmp_path}/shop.py", line 2, in y\n    mine\nKeyError: 1'
    lines = readable.line_of(log_line(traceback=trace)).splitlines()[1:]
    assert [click.unstyle(line) for line in lines] == [f"  | {line}" for line in trace.splitlines()]
    assert [bool(re.search("\x1b\\[[0-9;]*2m", line)) for line in lines] == [False, True, True, False, False, False]


# Watching -----------------------------------------------------------------------------------------


def test_what_is_written_made_or_removed_is_noticed_and_what_no_daemon_imports_is_not(tmp_path: pathlib.Path) -> None:
    config, package = tmp_path / "shop.toml", tmp_path / "shop"
    package.mkdir()
    config.write_text("")
    (package / "a.py").write_text("")
    for left_out in (".hidden/x.py", "venv/lib/x.py", "node_modules/x.py", "test_shop.py", "conftest.py", "notes.txt"):
        (package / left_out).parent.mkdir(parents=True, exist_ok=True)
        (package / left_out).write_text("")
    (package / "venv/pyvenv.cfg").write_text("")
    watch = Watch()
    watch.look_at([config, package, package, tmp_path / "nowhere"])
    assert watch.count == 2
    assert watch.changed() == []
    for left_out in (".hidden/x.py", "venv/lib/x.py", "test_shop.py", "notes.txt"):
        (package / left_out).write_text("more")
    assert watch.changed() == []
    config.write_text("more")
    (package / "b.py").write_text("")
    assert watch.changed() == [package / "b.py", config]
    replaced = package / "c"
    replaced.write_text("")
    os.utime(replaced, ns=(0, (package / "b.py").stat().st_mtime_ns))
    replaced.rename(package / "b.py")  # same size, same time
    (package / "a.py").unlink()
    assert watch.changed() == [package / "a.py", package / "b.py"]
    assert watch.changed() == []


# Where the private broker is ----------------------------------------------------------------------


def test_an_announcement_counts_as_long_as_it_is_held(tmp_path: pathlib.Path) -> None:
    config = str(tmp_path / "shop.toml")
    assert announced(config) is None
    held = Announcement(config)
    assert announced(config) is None  # nothing is said yet
    held.say("amqp://a/")
    assert announced(config) == "amqp://a/"
    assert place_of(config).stat().st_mode & 0o077 == 0
    with pytest.raises(AlreadyAnnounced):
        Announcement(config)
    held.close()
    assert announced(config) is None
    place_of(config).write_text("amqp://stale/")
    assert announced(config) is None
    Announcement(config).close()
    assert not place_of(config).exists()


def test_an_announcement_is_not_followed_to_somebody_elses(tmp_path: pathlib.Path) -> None:
    config = str(tmp_path / "shop.toml")
    held = Announcement(config)
    held.say("amqp://a/")
    (tmp_path / ".other.toml.dev").symlink_to(place_of(config))
    assert announced(str(tmp_path / "other.toml")) is None
    if os.geteuid() == 0:
        os.chown(place_of(config), 65534, 65534)
        assert announced(config) is None
    held.close()
