"""One config file in two languages, for several virtual hosts, kept from other people's eyes."""

import os
import pathlib
import subprocess
from collections.abc import Iterator

import pytest
from daemon import RPCD, TWISTD, Daemon
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode

YAML = """
broker: {{url: "{url}"}}
service: {{path: [.]}}
queues:
  echo: &durable {{}}
  more: *durable
consumers:
  echo: {{queue: echo, handler: "handlers_of_file:echo"}}
virtual_hosts:
  {other}:
    consumers: {{echo: {{workers: 2, config: {{greeting: hello}}}}}}
  elsewhere:
    broker: {{url: "amqp://nobody@nowhere"}}
"""

HANDLERS = """
class echo:
    def __init__(self, config):
        self.greeting = config.get("greeting", "nothing")

    def __call__(self, message):
        return self.greeting
"""

LITERAL = """
[broker]
password = "correct-horse"
[queues.echo]
[consumers.echo]
queue = "echo"
handler = "textwrap:dedent"
"""


@pytest.fixture
def other(node: PrivateNode, virtual_host: str) -> str:
    """A second virtual host."""
    name = f"{virtual_host}-other"
    node.add_virtual_hosts([name])
    return name


@pytest.fixture
def other_peer(node: PrivateNode, other: str) -> Iterator[Peer]:
    client = Peer(node.url(other))
    yield client
    client.close()


@pytest.fixture
def config(tmp_path: pathlib.Path, url: str, other: str) -> pathlib.Path:
    (tmp_path / "handlers_of_file.py").write_text(HANDLERS)
    file = tmp_path / "shop.yaml"
    file.write_text(YAML.format(url=url, other=other))
    return file


def run(program: pathlib.Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ", "RPCD"))}
    command = [str(program), *arguments]
    return subprocess.run(command, env=env | environment, capture_output=True, text=True, timeout=60, check=False)


def daemon_ends(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run a daemon whose config is named by the environment, and which can't start."""
    return run(TWISTD, "-n", "--pidfile=", "rpcd", **environment)


def test_a_file_in_yaml_serves_the_virtual_host_that_it_is_told(
    config: pathlib.Path, url: str, other: str, peer: Peer, other_peer: Peer
) -> None:
    daemon = Daemon(config, None, options=("--virtual-host", other)).ready()
    try:
        assert other_peer.call("echo").json["data"] == {"result": "hello"}
        assert other_peer.exists("more")
        assert not peer.exists("echo")
        done = run(RPCD, "call", "--config", str(config), "--virtual-host", other, "echo", "{}")
        assert (done.returncode, done.stderr) == (0, "")
        done = run(RPCD, "call", "--config", str(config), "echo", "{}")
        assert done.returncode == 69  # the file's own virtual host has no such queue
        done = run(RPCD, "call", "--url", url, "--virtual-host", other, "echo", "{}")
        assert (done.returncode, done.stderr) == (0, "")
        assert daemon.stop() == 0
    finally:
        daemon.kill()


def test_the_same_file_serves_its_own_virtual_host_without_a_name(
    config: pathlib.Path, peer: Peer, other_peer: Peer
) -> None:
    daemon = Daemon(config, None).ready()
    try:
        assert peer.call("echo").json["data"] == {"result": "nothing"}
        assert not other_peer.exists("echo")
        assert daemon.stop() == 0
    finally:
        daemon.kill()


def test_a_virtual_host_that_is_asked_for_wins_over_the_environments_url(
    config: pathlib.Path, url: str, other: str, peer: Peer, other_peer: Peer
) -> None:
    daemon = Daemon(config, url, RPCD_VIRTUAL_HOST=other).ready()
    try:
        assert other_peer.call("echo").json["data"] == {"result": "hello"}
        assert not peer.exists("echo")
        assert daemon.stop() == 0
    finally:
        daemon.kill()


def test_the_environment_names_config_and_virtual_host_for_the_daemon_and_for_run(config: pathlib.Path) -> None:
    sentence = f"{config}: virtual_hosts.nowhere: there is no such section, but this virtual host is asked for"
    for done in (
        daemon_ends(RPCD_CONFIG=str(config), RPCD_VIRTUAL_HOST="nowhere"),
        run(RPCD, "run", RPCD_CONFIG=str(config), RPCD_VIRTUAL_HOST="nowhere"),
        run(RPCD, "run", "--config", str(config), "--virtual-host", "nowhere"),
        run(RPCD, "check", RPCD_CONFIG=str(config), RPCD_VIRTUAL_HOST="nowhere"),
    ):
        assert done.returncode == 78
        assert done.stderr.startswith(sentence)


def test_security_07_a_secret_that_everybody_may_read_ends_the_start(tmp_path: pathlib.Path) -> None:
    config = tmp_path / "shop.toml"
    config.write_text(LITERAL)
    config.chmod(0o644)
    for done in (daemon_ends(RPCD_CONFIG=str(config)), run(RPCD, "check", "-c", str(config))):
        assert done.returncode == 78
        assert done.stderr == (
            f"{config}: mode: 0644 lets everybody read what is secret: broker.password; chmod o-r {config}, or keep it "
            "elsewhere: ${credential:NAME} or ${file:PATH}\n"
        )
    config.chmod(0o600)
    assert run(RPCD, "check", "-c", str(config)).returncode == 0


def test_a_logging_config_that_is_not_there_ends_the_start(tmp_path: pathlib.Path) -> None:
    config = tmp_path / "shop.toml"
    config.write_text(LITERAL)
    config.chmod(0o600)
    done = daemon_ends(RPCD_CONFIG=str(config), LOGGING_FILE_CONFIG=str(tmp_path / "nowhere.ini"))
    assert done.returncode == 78
    assert done.stderr.startswith("LOGGING_FILE_CONFIG: ")
    assert "nowhere.ini" in done.stderr


def test_a_variable_that_is_set_to_nothing_is_not_set(tmp_path: pathlib.Path) -> None:
    """An /etc/default file says so when it means to take something back."""
    done = daemon_ends(RPCD_CONFIG="")
    assert (done.returncode, done.stderr) == (78, "no config file: give --config FILE, or set RPCD_CONFIG\n")
    (tmp_path / "shop.toml").write_text("")
    done = daemon_ends(RPCD_CONFIG=str(tmp_path / "shop.toml"), LOGGING_FILE_CONFIG="")
    assert "there is no [consumers.NAME] section" in done.stderr
    assert "LOGGING_FILE_CONFIG" not in done.stderr


# check --------------------------------------------------------------------------------------------


def test_check_goes_through_the_file_and_every_overlay(config: pathlib.Path, other: str) -> None:
    done = run(RPCD, "check", "--config", str(config))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("echo")]
    assert [line[3] for line in lines] == ["1", "2", "1"]
    assert [line[6:] for line in lines] == [[], [other], ["elsewhere"]]
    done = run(RPCD, "check", "--config", str(config), "--virtual-host", other)
    assert done.stdout.count("handlers_of_file:echo") == 1


def test_check_tells_each_problem_once_and_names_the_overlay_that_it_arises_with(tmp_path: pathlib.Path) -> None:
    config = tmp_path / "shop.toml"
    config.write_text(
        """
        [broker]
        hearbeat = 5
        url = "amqps://h"
        tls = { server_name = "x" }
        [queues.echo]
        [consumers.echo]
        queue = "echo"
        handler = "textwrap:nothing"
        [virtual_hosts.a.broker]
        usrname = "x"
        [virtual_hosts.b.broker]
        url = "amqp://h"
        [virtual_hosts.c.brokr]
        """
    )
    expected = [
        "virtual_hosts.c.brokr: unknown key; did you mean 'broker'?",
        "broker.hearbeat: unknown key; did you mean 'heartbeat'?",
        "consumers.echo.handler: textwrap:nothing: 'textwrap' has no 'nothing'",
        "virtual_hosts.a.broker.usrname: unknown key; did you mean 'username'?",
        "broker.tls (with virtual_hosts.b): the URL says amqp://, which is plain TCP; write amqps:// to use TLS",
    ]
    done = run(RPCD, "check", "--config", str(config))
    assert done.returncode == 78
    assert done.stderr.splitlines() == [f"{config}: {each}" for each in expected]


def test_check_broker_wants_to_know_which_virtual_host_if_the_file_alone_does_nothing(
    tmp_path: pathlib.Path, node: PrivateNode, virtual_host: str, url: str, peer: Peer
) -> None:
    config = tmp_path / "shop.toml"
    consumer = 'queue = "echo"\nhandler = "textwrap:dedent"\n'
    config.write_text(f"[queues.echo]\n[virtual_hosts.{virtual_host}.consumers.echo]\n{consumer}")
    assert run(RPCD, "check", "--config", str(config)).returncode == 0
    at = node.url("/")
    done = run(RPCD, "check", "--config", str(config), "--broker", RABBITMQ_URL=at)
    assert (done.returncode, done.stderr) == (
        78,
        f"--broker: the file has no consumers of its own; pick one with --virtual-host: {virtual_host}\n",
    )
    done = run(RPCD, "check", "--config", str(config), "--broker", "--virtual-host", virtual_host, RABBITMQ_URL=at)
    assert (done.returncode, done.stderr) == (0, "")
    assert "will be made" in done.stdout
