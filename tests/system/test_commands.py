"""The commands for people: what they print, and their exit codes."""

import os
import pathlib
import subprocess
import textwrap

import pytest
from daemon import RPCD, StartDaemon
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode, free_ports

ECHO = """
    import rpcd

    def echo(message):
        if message.body == "no":
            raise rpcd.RequestFailed("no")
        return message.body
"""

HANDLE = "def handle(message):\n    return {}\n"

CONFIG = '[queues.echo]\n[consumers.echo]\nqueue = "echo"\nhandler = "handlers_of_test:echo"\n'


def rpcd(*arguments: str, url: str | None = None, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ", "RPCD"))}
    env |= environment | ({"RABBITMQ_URL": url} if url else {})
    return subprocess.run([str(RPCD), *arguments], env=env, input=stdin, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", [[], ["call"], ["publish"], ["check"], ["run"]])
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    done = rpcd(*command, "--help")
    assert done.returncode == 0
    assert "Usage: rpcd" in done.stdout
    assert not command or "Example: rpcd" in done.stdout


def test_call_shows_the_reply_and_ends_with_what_it_says(start: StartDaemon, url: str) -> None:
    start(CONFIG, ECHO)
    done = rpcd("call", "echo", '{"a": [1, "ü"]}', url=url)
    assert (done.returncode, done.stdout) == (0, '{"success":true,"data":{"a":[1,"ü"]},"message":null}\n')
    done = rpcd("call", "echo", '"no"', url=url)
    assert (done.returncode, done.stdout) == (1, '{"success":false,"data":{},"message":"no"}\n')
    done = rpcd("call", "echo", "-", url=url, stdin='{"from": "stdin"}')
    assert '"from":"stdin"' in done.stdout
    done = rpcd("call", "--url", url, "echo", "{}")
    assert done.returncode == 0


def test_call_says_why_there_is_no_reply(url: str, peer: Peer) -> None:
    done = rpcd("call", "nobody", "{}", url=url)
    assert (done.returncode, done.stderr) == (69, "no queue takes exchange '', key 'nobody': NO_ROUTE\n")
    peer.channel.queue_declare("silent")
    done = rpcd("call", "silent", "{}", "--timeout", "0.3", url=url)
    assert (done.returncode, done.stderr) == (75, "the reply took longer than 0.3 s\n")
    assert peer.left("silent") == []  # it expired with its caller's patience
    (port,) = free_ports(1)
    done = rpcd("call", "silent", "{}", url=f"amqp://guest:secret@127.0.0.1:{port}/")
    assert done.returncode == 69
    assert done.stderr == f"amqp://127.0.0.1:{port}/: 127.0.0.1:{port}: refused by other side: 111: Connection refused\n"
    done = rpcd("call", "silent", "{}", url=url.replace("guest:guest", "guest:secret"))
    assert done.returncode == 77
    assert "ACCESS_REFUSED" in done.stderr
    assert "secret" not in done.stderr
    assert rpcd("call", "silent", "{bad", url=url).returncode == 2
    assert rpcd("call", "silent", "{}", url="http://localhost").returncode == 78


def test_publish_is_confirmed_or_says_why_not(url: str, peer: Peer) -> None:
    peer.channel.queue_declare("inbox")
    done = rpcd("publish", "", "inbox", '{"n": 17}', url=url)
    assert (done.returncode, done.stdout) == (0, "published to exchange '' with key 'inbox'\n")
    message = peer.get("inbox")
    assert (message.json, message.properties.delivery_mode, message.properties.content_type) == (
        {"n": 17},
        2,
        "application/json",
    )
    assert message.properties.message_id
    assert rpcd("publish", "", "nobody", "{}", url=url).returncode == 69
    assert rpcd("publish", "", "nobody", "{}", "--unroutable-is-fine", url=url).returncode == 0
    done = rpcd("publish", "nowhere", "k", "{}", url=url)
    assert done.returncode == 1
    assert "no exchange 'nowhere'" in done.stderr


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "handlers_of_check.py").write_text("def echo(message):\n    return message.body\n")
    file = tmp_path / "check.toml"
    file.write_text(
        f"[service]\npath = [{str(tmp_path)!r}]\n[exchanges.shop]\n[queues.echo]\n"
        'bindings = [{ exchange = "shop", routing_keys = ["a.*"] }]\n'
        '[consumers.echo]\nqueue = "echo"\nhandler = "handlers_of_check:echo"\n'
    )
    return file


def test_check_tells_that_all_is_well(config: pathlib.Path) -> None:
    done = rpcd("check", "--config", str(config))
    assert done.returncode == 0, done.stderr
    assert "handlers_of_check:echo" in done.stdout
    assert "all is well" in done.stdout
    assert rpcd("check", RPCD_CONFIG=str(config)).returncode == 0


def test_check_lists_every_mistake(config: pathlib.Path) -> None:
    config.write_text(config.read_text().replace("echo:", "no:").replace(":echo", ":ehco") + "workers = -1\n")
    done = rpcd("check", "--config", str(config))
    assert done.returncode == 78
    assert done.stderr.splitlines() == [
        f"{config}: consumers.echo.workers: expected a whole number from 1, got -1",
        f"{config}: consumers.echo.handler: handlers_of_check:ehco: 'handlers_of_check' has no 'ehco'; did you mean 'echo'?",
    ]
    assert rpcd("check").returncode == 78
    assert "can't be read: No such file" in rpcd("check", "--config", "/nowhere.toml").stderr
    config.write_text("[broker\n")
    assert "is not valid TOML: " in rpcd("check", "--config", str(config)).stderr


def test_check_broker_tries_everything_and_leaves_nothing(config: pathlib.Path, url: str, peer: Peer) -> None:
    done = rpcd("check", "--config", str(config), "--broker", url=url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("will be made") == 7
    assert "allowed" in done.stdout
    assert not any(peer.exists(name) for name in ("echo", "echo.archive", "echo.retry.200"))


def test_check_broker_disturbs_nobody(url: str, peer: Peer, start: StartDaemon, tmp_path: pathlib.Path) -> None:
    """Not even what hangs by a thread: an exchange that goes with its last binding, a queue that belongs to a daemon."""
    peer.channel.exchange_declare("fleeting", "fanout", durable=True, auto_delete=True)
    text = """
        [exchanges.fleeting]
        type = "fanout"
        auto_delete = true
        [queues.mine]
        exclusive = true
        bindings = [{ exchange = "fleeting" }]
        [consumers.mine]
        queue = "mine"
        handler = "handlers_of_test:handle"
        [queues.other]
        bindings = [{ exchange = "fleeting" }]
        """
    apart = tmp_path / "apart.toml"
    apart.write_text(f"[service]\npath = [{str(tmp_path)!r}]\n" + textwrap.dedent(text))
    (tmp_path / "handlers_of_test.py").write_text(HANDLE)
    first = rpcd("check", "--config", str(apart), "--broker", url=url)
    assert (first.returncode, first.stderr) == (0, "")
    peer.channel.exchange_declare("fleeting", passive=True)
    daemon = start(text, HANDLE)
    second = rpcd("check", "--config", str(apart), "--broker", url=url)
    assert (second.returncode, second.stderr) == (0, "")
    assert "is there: exclusive, and in use" in second.stdout
    assert peer.call("mine").json["success"] is True
    assert daemon.stop() == 0


def test_check_broker_finds_what_differs_and_what_is_forbidden(
    config: pathlib.Path, url: str, peer: Peer, node: PrivateNode, virtual_host: str
) -> None:
    peer.channel.queue_declare("echo", durable=True)
    peer.publish("echo", b"precious")
    done = rpcd("check", "--config", str(config), "--broker", url=url)
    assert done.returncode == 78
    assert "inequivalent arg" in done.stderr
    node.ctl("add_user", f"checker-{virtual_host}", "pw")
    node.ctl("set_permissions", "--vhost", virtual_host, f"checker-{virtual_host}", "^$", "^$", "^$")
    done = rpcd("check", "--config", str(config), "--broker", url=node.url(virtual_host, f"checker-{virtual_host}", "pw"))
    assert done.returncode == 77
    assert "ACCESS_REFUSED" in done.stderr
    assert [message.body for message in peer.left("echo")] == [b"precious"]
