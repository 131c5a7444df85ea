"""What a daemon's user needs: shown, enough, and not more than enough."""

import json
import pathlib
import shlex
import textwrap

import pytest
from command import rpcd
from daemon import StartDaemon
from peer import Peer
from privilege import grant

from rpcd.ops.rabbitmq import PrivateNode

CONFIG = """
    [service]
    declare = {declare}
    [exchanges.shop]
    [exchanges.news]
    type = "fanout"
    [queues."or.ders"]
    bindings = [{{ exchange = "shop", routing_keys = ["order.#"] }}]
    [queues.mine]
    name = ""
    bindings = [{{ exchange = "news" }}]
    [consumers.orders]
    queue = "or.ders"
    handler = "handlers_of_test:handle"
    retry = {{ delays = [0.1], attempts = 2 }}
    [consumers.mine]
    queue = "mine"
    handler = "handlers_of_test:handle"
"""

HANDLERS = """
    def handle(message):
        if message.attempt == 1 and message.reply_to is None and message.exchange == "shop":
            raise ConnectionError
        if message.body.get("publish"):
            message.publish("news", "", {})
        print("run", message.consumer, message.attempt)
        return {}
"""

RIGHTS = ("configure", "write", "read")


@pytest.fixture(params=["true", "false"])
def config(request: pytest.FixtureRequest, tmp_path: pathlib.Path, url: str) -> str:
    """A config whose objects are there already if the daemon may not declare them."""
    text = CONFIG.format(declare=request.param)
    file = tmp_path / "shown.toml"
    file.write_text(textwrap.dedent(text).replace("[service]", '[service]\npath = ["."]'))
    if request.param == "false":
        done = rpcd("declare", "--config", str(file), url=url)
        assert done.returncode == 0, done.stderr
    return text


def shown(tmp_path: pathlib.Path, url: str) -> dict[str, str]:
    done = rpcd("declare", "--permissions", "--json", "--config", str(tmp_path / "shown.toml"), url=url)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_security_02_what_is_shown_is_enough_for_everything_that_a_daemon_does(
    config: str, start: StartDaemon, node: PrivateNode, virtual_host: str, tmp_path: pathlib.Path, url: str, peer: Peer
) -> None:
    rights = shown(tmp_path, url)
    grant(node, virtual_host, f"least-{virtual_host}", *(rights[name] for name in RIGHTS))
    daemon = start(config, HANDLERS, at=node.url(virtual_host, f"least-{virtual_host}", "pw"))
    peer.publish("order.placed", {}, "shop")
    daemon.wait_for("run orders 2")
    peer.publish("or.ders", b"{bad")
    assert peer.get("or.ders.archive").body == b"{bad"
    assert peer.call("or.ders", {"publish": True}).json["success"] is True
    daemon.wait_for("run mine 1")
    assert daemon.stop() == 0
    assert "refused" not in daemon.output


@pytest.mark.parametrize("right", RIGHTS)
def test_security_02_without_any_of_them_check_says_which_is_missing(
    config: str, right: str, start: StartDaemon, node: PrivateNode, virtual_host: str, tmp_path: pathlib.Path, url: str
) -> None:
    (tmp_path / "handlers_of_test.py").write_text(textwrap.dedent(HANDLERS))
    rights = shown(tmp_path, url)
    user = f"less-{virtual_host}"
    grant(node, virtual_host, user, *("^$" if name == right else rights[name] for name in RIGHTS))
    where = node.url(virtual_host, user, "pw")
    done = rpcd("check", "--broker", "--config", str(tmp_path / "shown.toml"), url=where)
    daemon = start(config, HANDLERS, at=where, wait=False)
    if right == "configure" and "declare = false" in config:  # only the queue that the broker names, which nobody can try
        assert done.returncode == 0
    else:
        assert done.returncode == 77
        assert f"`{right}`" in done.stderr
    assert daemon.wait() == 77
    assert f"`{right}`" in daemon.output


def test_security_02_the_command_is_shown_as_it_is_to_be_typed(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "shown.toml"
    file.write_text('[broker]\nurl = "amqp://rabbit/the shop"\nusername = "it\'s me"\n[queues."a b|c$"]\npassive = true\n')
    file.write_text(file.read_text() + '[consumers.c]\nqueue = "a b|c$"\nhandler = "not_there.at_all:handle"\n')
    done = rpcd("declare", "--permissions", "--config", str(file))
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.splitlines()[-1])
    assert words[:5] == ["rabbitmqctl", "set_permissions", "--vhost", "the shop", "it's me"]
    assert (
        words[7]
        == r"^(a b\|c\$|a b\|c\$\.retry\.1000|a b\|c\$\.retry\.1800000|a b\|c\$\.retry\.200|a b\|c\$\.retry\.60000)$"
    )
    for word, right in zip(words[5:], RIGHTS, strict=True):
        assert [row for row in done.stdout.splitlines() if row.startswith(right) and word in row]


def test_a_wrong_config_is_told_as_ever(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("[consumers.c]\n")
    done = rpcd("declare", "--permissions", "--config", str(file))
    assert done.returncode == 78
    assert "consumers.c.queue" in done.stderr
