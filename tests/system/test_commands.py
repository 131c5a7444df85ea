"""The commands for people: what they print, and their exit codes."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import textwrap
from collections.abc import Callable
from typing import Any

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


def surroundings(url: str | None, **environment: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ", "RPCD"))}
    return env | environment | ({"RABBITMQ_URL": url} if url else {})


def rpcd(*arguments: str, url: str | None = None, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    env = surroundings(url, **environment)
    return subprocess.run([str(RPCD), *arguments], env=env, input=stdin, capture_output=True, text=True, timeout=60)


def unread(*arguments: str, url: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose output nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [str(RPCD), *arguments],
            env=surroundings(url),
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writing)


def limited(node: PrivateNode, virtual_host: str, write: str) -> str:
    """Make a user of the virtual host who may write to what matches; return the URL."""
    user = f"limited-{virtual_host}"
    node.ctl("add_user", user, "pw")
    node.ctl("set_permissions", "--vhost", virtual_host, user, ".*", write, ".*")
    return node.url(virtual_host, user, "pw")


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


def test_a_message_that_is_published_is_published_though_nobody_reads_it(url: str, peer: Peer) -> None:
    """A script would publish it twice."""
    peer.channel.queue_declare("inbox")
    done = unread("publish", "", "inbox", "{}", url=url)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(peer.left("inbox")) == 1


def test_a_reply_says_what_it_says_though_nobody_reads_it(start: StartDaemon, url: str) -> None:
    start(CONFIG, ECHO)
    done = unread("call", "echo", "{}", url=url)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["call", "publish"])
def test_a_missing_permission_exits_77_and_says_which(command: str, node: PrivateNode, virtual_host: str) -> None:
    url = limited(node, virtual_host, "^$")
    done = rpcd(*{"call": ["call", "inbox", "{}"], "publish": ["publish", "", "inbox", "{}"]}[command], url=url)
    assert done.returncode == 77
    assert "403 ACCESS_REFUSED" in done.stderr
    assert "amq.default" in done.stderr
    assert "grant the permission `write`" in done.stderr


@pytest.mark.parametrize(
    ("number", "word", "code"), [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)]
)
def test_a_signal_ends_a_call_that_waits(url: str, peer: Peer, number: int, word: str, code: int) -> None:
    peer.channel.queue_declare("silent")
    waiting = subprocess.Popen(
        [str(RPCD), "call", "silent", "{}"],
        env=surroundings(url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peer.get("silent")  # the request is here, and nobody answers it
    waiting.send_signal(number)
    out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, out, err) == (code, "", f"{word}\n")


def test_a_signal_ends_a_command_that_does_not_get_through(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        host, port = deaf.getsockname()
        waiting = subprocess.Popen(
            [str(RPCD), "publish", "", "k", "{}"],
            env=surroundings(f"amqp://{host}:{port}/"),
            stderr=subprocess.PIPE,
            text=True,
        )
        link, _ = deaf.accept()
        assert link.recv(8) == b"AMQP\0\0\x09\x01"
        waiting.send_signal(signal.SIGINT)
        assert waiting.communicate(timeout=30)[1] == "interrupted\n"
        link.close()
    assert waiting.returncode == 130


# Whose address, and where it is written -----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "environment", "place"),
    [
        (["--url", "foo"], {"RABBITMQ_URL": "bar"}, "--url"),
        (["--url", "amqp://h:99999/"], {}, "--url"),
        ([], {"RABBITMQ_URL": "foo"}, "RABBITMQ_URL"),
        (["--url", "foo", "--config", "CONFIG"], {}, "--url"),
        ([], {"RABBITMQ_HEARTBEAT": "x"}, "RABBITMQ_HEARTBEAT"),
    ],
)
def test_an_address_that_is_no_address_says_where_it_is_written(
    config: pathlib.Path, arguments: list[str], environment: dict[str, str], place: str
) -> None:
    given = [str(config) if each == "CONFIG" else each for each in arguments]
    done = rpcd("call", "q", "{}", *given, **environment)
    assert done.returncode == 78
    assert done.stderr.startswith(f"{place}: ")
    assert "RABBITMQ_URL" not in done.stderr or place == "RABBITMQ_URL"


def test_a_refused_login_says_whose_it_is_and_where_it_is_written(url: str, config: pathlib.Path) -> None:
    bad = url.replace("guest:guest", "guest:secret")
    place = url.rpartition("/")[2]
    for given, where in (([], "RABBITMQ_URL"), (["--url", bad], "--url")):
        done = rpcd("call", "q", "{}", *given, url=bad)
        assert done.returncode == 77
        assert f"user 'guest' or the password for virtual host {place!r} in {where}\n" in done.stderr
        assert "secret" not in done.stderr
    config.write_text(f"[broker]\nurl = {bad!r}\n" + config.read_text())
    done = rpcd("call", "q", "{}", "--config", str(config))
    assert (done.returncode, done.stderr.partition(" lets ")[0]) == (78, f"{config}: mode: 0644")
    config.chmod(0o600)
    done = rpcd("call", "q", "{}", "--config", str(config))
    assert f"in [broker] of {config}\n" in done.stderr
    done = rpcd("call", "q", "{}", url=url.rpartition("/")[0] + "/nowhere")
    assert done.returncode == 77
    assert "there is no virtual host 'nowhere'" in done.stderr


def test_tls_on_a_port_without_it_says_so(url: str) -> None:
    done = rpcd("call", "q", "{}", url=url.replace("amqp://", "amqps://"))
    assert done.returncode == 69
    assert "the port probably doesn't speak TLS (amqps:// is usually 5671)" in done.stderr
    assert "SSL routines" not in done.stderr


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


def test_fault_16_check_warns_of_a_time_limit_that_the_broker_would_not_wait_for(config: pathlib.Path) -> None:
    config.write_text(config.read_text() + "time_limit = 1000\n")
    done = rpcd("check", "--config", str(config))
    assert done.returncode == 0
    assert done.stderr.startswith("advice: consumers.echo.time_limit: 1000 s is over half of the 30 minutes")
    found = json.loads(rpcd("check", "--config", str(config), "--json").stdout)
    assert found["ok"] is True
    assert [each["path"] for each in found["advice"]] == ["consumers.echo.time_limit"]


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


def test_check_tells_what_another_version_of_the_broker_does_differently(config: pathlib.Path, url: str) -> None:
    config.write_text(config.read_text().replace("[queues.echo]\n", "[queues.echo]\ndurable = false\n"))
    done = rpcd("check", "--config", str(config))
    assert done.returncode == 0
    (said,) = done.stderr.splitlines()
    assert said.startswith("advice: queues.echo.durable: neither durable nor exclusive: deprecated from RabbitMQ 4.0 on")
    found = json.loads(rpcd("check", "--config", str(config), "--broker", "--json", url=url).stdout)
    assert found["ok"] is True
    (advice,) = found["advice"]
    assert advice["path"] == "queues.echo.durable"
    assert advice["grave"] is False


def test_check_broker_finds_what_would_lose_messages_on_this_version(config: pathlib.Path, url: str, peer: Peer) -> None:
    arguments = "arguments = { x-delivery-limit = -1 }\n"
    config.write_text(config.read_text().replace("[queues.echo]\n", f"[queues.echo]\n{arguments}"))
    version = peer.connection._impl.server_properties["version"]
    done = rpcd("check", "--config", str(config), "--broker", url=url)
    assert rpcd("check", "--config", str(config)).returncode == 0
    if int(version.split(".")[0]) < 4:
        assert done.returncode == 78
        assert "error: queues.echo.arguments.x-delivery-limit: means no limit from RabbitMQ 4.0 on; before, " in done.stderr
        assert "all is well" not in done.stdout
    else:
        assert (done.returncode, done.stderr) == (0, "")


def _refused_login(url: str) -> str:
    return url.replace("guest:guest", "guest:secret")


def _closed_port(_url: str) -> str:
    return f"amqp://127.0.0.1:{free_ports(1)[0]}/"


@pytest.mark.parametrize(
    ("elsewhere", "code", "says"),
    [
        (_refused_login, 77, "403 ACCESS_REFUSED"),
        (_closed_port, 69, "refused by other side"),
        (lambda url: url.replace("amqp:", "amqps:"), 69, "doesn't speak TLS"),
        (lambda url: url.rpartition("/")[0] + "/nowhere", 77, "there is no virtual host 'nowhere'"),
    ],
)
def test_check_says_in_json_why_the_broker_can_not_be_asked(
    config: pathlib.Path, url: str, elsewhere: Callable[[str], str], code: int, says: str
) -> None:
    done = rpcd("check", "--config", str(config), "--broker", "--json", url=elsewhere(url))
    assert done.returncode == code
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["ok"] is False
    (problem,) = found["problems"]
    assert problem["path"] == "broker"
    assert says in problem["what"]
    assert done.stderr == ""


def test_check_says_in_json_what_is_wrong_with_a_config(config: pathlib.Path) -> None:
    config.write_text(config.read_text() + "workers = -1\n")
    done = rpcd("check", "--config", str(config), "--json")
    assert done.returncode == 78
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["path"] == f"{config}: consumers.echo.workers"
    done = rpcd("check", "--json")
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (78, False)


def test_check_that_is_interrupted_leaves_nothing_behind(config: pathlib.Path, url: str, peer: Peer) -> None:
    config.write_text(config.read_text() + "".join(f"[queues.further{number}]\n" for number in range(40)))
    checking = subprocess.Popen(
        [str(RPCD), "check", "--config", str(config), "--broker"],
        env=surroundings(url),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    peer.until(lambda: peer.exists("echo.archive"))
    checking.send_signal(signal.SIGINT)
    assert checking.communicate(timeout=60)[1] == "interrupted\n"
    assert checking.returncode == 130
    names = ["echo", "echo.archive", "echo.retry.200", *(f"further{number}" for number in range(40))]
    assert [name for name in names if peer.exists(name)] == []


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ('[queues.odd]\narguments = { "x-queue-type" = "foo" }\n', "invalid arg 'x-queue-type'"),
        ('[queues.odd]\narguments = { "x-max-length" = "a" }\n', "expected integer, got longstr"),
        ('[exchanges.odd]\ntype = "foo"\n', "exchange type 'foo'"),
    ],
)
def test_what_can_not_exist_is_to_be_corrected_not_deleted(config: pathlib.Path, url: str, section: str, words: str) -> None:
    config.write_text(section + config.read_text())
    done = rpcd("check", "--config", str(config), "--broker", url=url)
    assert done.returncode == 78
    (line,) = [line for line in done.stderr.splitlines() if words in line]
    assert line.endswith("; correct the arguments in the config")
