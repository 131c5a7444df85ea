"""Two distributions that share a namespace, one consumer: the exchange of a message picks its handler."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
from daemon import RPCD, Daemon
from peer import Peer

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0"

[tool.hatch.build.targets.wheel]
packages = ["acme"]
"""

CREATE = """
class Handler:
    def __init__(self, config):
        self.node = config["node"]

    def __call__(self, message):
        return {"by": "create", "node": self.node, "exchange": message.exchange}
"""

DELETE = """
import dataclasses
import rpcd

@dataclasses.dataclass
class Server:
    name: str

def handle(message: rpcd.Message[Server]):
    if message.body.name == "flaky" and message.attempt == 1:
        raise OSError("try again")
    if message.body.name == "stuck":
        raise rpcd.PermanentFailure("it is stuck")
    return {"by": "delete", "server": message.body.name, "exchange": message.exchange, "attempt": message.attempt}
"""

CONFIG = """
[service]
path = {path}

[queues.node1]

[consumers.cluster]
queue = "node1"
namespace = "acme.handlers"
exchanges = {exchanges}
on_error = "retry"
config = {{ node = "node1" }}

[consumers.cluster.retry]
delays = [0.1, 0.2]
"""


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    """The wheels of two distributions, each of which brings one module of acme.handlers, and no `__init__.py`."""
    directory = tmp_path_factory.mktemp("wheels")
    for name, module, source in (("acme-create", "server_create", CREATE), ("acme-delete", "server_delete", DELETE)):
        package = directory / name / "acme/handlers"
        package.mkdir(parents=True)
        (package / f"{module}.py").write_text(source)
        (directory / name / "pyproject.toml").write_text(PROJECT.format(name=name))
        build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", directory)
        run(sys.executable, "-m", "pip", *build, directory / name)
    return sorted(directory.glob("*.whl"))


@pytest.fixture(scope="module", params=["one directory", "a directory each"])
def path(request: pytest.FixtureRequest, wheels: list[pathlib.Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The directories that the distributions are installed in."""
    directory = tmp_path_factory.mktemp("installed")
    together = {"site": wheels}
    apart = {"first": wheels[:1], "second": wheels[1:]}
    targets = together if request.param == "one directory" else apart
    for target, brought in targets.items():
        where = ("--target", directory / target)
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", *where, *brought)
    assert not list(directory.glob("*/acme/**/__init__.py"))
    return [str(directory / target) for target in targets]


@pytest.fixture
def config(path: list[str], tmp_path: pathlib.Path) -> pathlib.Path:
    """A config with one consumer for the whole namespace."""
    file = tmp_path / "cluster.toml"
    file.write_text(CONFIG.format(path=path, exchanges=["server-create", "server-delete"]))
    return file


@pytest.fixture
def daemon(config: pathlib.Path, url: str) -> Iterator[Daemon]:
    running = Daemon(config, url)
    try:
        yield running.ready()
    finally:
        running.kill()


def check(config: pathlib.Path, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(RPCD), "check", "--config", str(config), *options]
    return subprocess.run(command, env={**os.environ, "RABBITMQ_URL": url}, capture_output=True, text=True, timeout=60)


def test_a_request_is_answered_by_the_handler_of_its_exchange(daemon: Daemon, peer: Peer) -> None:
    for _ in range(2):
        assert peer.call("node1", {}, "server-create").json["data"] == {
            "by": "create",
            "node": "node1",
            "exchange": "server-create",
        }
        assert peer.call("node1", {"name": "a"}, "server-delete").json["data"] == {
            "by": "delete",
            "server": "a",
            "exchange": "server-delete",
            "attempt": 1,
        }
    reply = peer.call("node1", {}, "server-delete").json  # each handler has a body type of its own
    assert (reply["success"], reply["data"]["place"]) == (False, "body")
    assert daemon.stop() == 0


def test_a_message_that_is_tried_again_comes_back_to_its_own_handler(daemon: Daemon, peer: Peer) -> None:
    assert peer.call("node1", {"name": "flaky"}, "server-delete").json["data"] == {
        "by": "delete",
        "server": "flaky",
        "exchange": "server-delete",
        "attempt": 2,
    }


def test_the_archive_names_the_handler_that_gave_up(daemon: Daemon, peer: Peer) -> None:
    peer.publish("node1", {"name": "stuck"}, "server-delete")
    assert peer.get("node1.archive").headers["x-rpcd-handler"] == "acme.handlers.server_delete:handle"


@pytest.mark.parametrize("exchange", ["other", ""])
def test_input_21_a_message_from_any_other_exchange_is_answered_and_archived(
    daemon: Daemon, peer: Peer, exchange: str
) -> None:
    if exchange:
        peer.channel.exchange_declare(exchange, "fanout")
        peer.channel.queue_bind("node1", exchange, "")
    reply = peer.call("node1", b"no json", exchange).json
    reason = "no handler here is for it; there are handlers for server-create, server-delete"
    assert reply == {
        "success": False,
        "data": {"place": "exchange", "reason": reason},
        "message": f"Bad message: exchange: {reason}",
    }
    archived = peer.get("node1.archive")
    assert archived.body == b"no json"
    assert archived.headers["x-rpcd-reason"] == f"bad message: exchange: {reason}"
    assert archived.headers["x-rpcd-exchange"] == exchange
    assert "x-rpcd-handler" not in archived.headers


def test_check_shows_which_handler_is_for_which_exchange_and_tries_the_bindings(
    config: pathlib.Path, url: str, peer: Peer
) -> None:
    done = check(config, url, "--broker")
    assert done.returncode == 0, done.stderr
    assert "server-create -> acme.handlers.server_create:Handler" in done.stdout
    assert "server-delete -> acme.handlers.server_delete:handle" in done.stdout
    assert "exchange 'server-create'" in done.stdout
    assert "binding of queue 'node1' to exchange 'server-delete', key 'node1'" in done.stdout
    assert "all is well" in done.stdout
    assert not peer.exists("node1")


def test_without_exchanges_all_distributions_count_and_a_wrong_one_is_told(
    config: pathlib.Path, path: list[str], url: str
) -> None:
    config.write_text(CONFIG.format(path=path, exchanges=[]))
    done = check(config, url)
    assert "server_create -> acme.handlers.server_create:Handler" in done.stdout
    assert "server_delete -> acme.handlers.server_delete:handle" in done.stdout
    config.write_text(CONFIG.format(path=path, exchanges=["server-move"]))
    done = check(config, url)
    assert done.returncode == 78
    assert "consumers.cluster.exchanges[0]: exchange 'server-move': " in done.stderr
    assert "of modules in acme.handlers there are server_create, server_delete" in done.stderr
