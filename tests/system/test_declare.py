"""`rpcd declare`: what an administrator makes, so that a daemon that may not can run."""

import json
import pathlib
import signal
import textwrap

import pytest
from command import rpcd, running
from daemon import StartDaemon
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode, free_ports

CONFIG = """
    [service]
    declare = false
    [exchanges.shop]
    [exchanges.audit]
    type = "fanout"
    [queues.orders]
    bindings = [{ exchange = "shop", routing_keys = ["order.*", "[red]"] }]
    [queues.log]
    type = "classic"
    [queues.mine]
    name = ""
    bindings = [{ exchange = "audit" }]
    [queues.alone]
    exclusive = true
    bindings = [{ exchange = "audit" }]
    [consumers.orders]
    queue = "orders"
    handler = "not_installed.here:handle"
    [consumers.orders.retry]
    delays = [1]
"""


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "shop.toml"
    file.write_text(textwrap.dedent(CONFIG))
    return file


def results(text: str) -> dict[str, str]:
    return {step["what"]: step["result"] for step in json.loads(text)["steps"]}


def test_everything_is_made_once_though_the_daemon_may_not(config: pathlib.Path, url: str, peer: Peer) -> None:
    done = rpcd("declare", "--config", str(config), url=url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "key '[red]'" in done.stdout
    for name in ("orders", "orders.archive", "orders.retry.1000", "log", "log.archive", "alone.archive", "mine.archive"):
        assert peer.exists(name), name
    assert not peer.exists("alone")
    peer.publish("order.1", {"a": 1}, exchange="shop")
    assert peer.get("orders").json == {"a": 1}
    done = rpcd("declare", "--config", str(config), "--json", url=url)
    assert done.returncode == 0
    found = results(done.stdout)
    assert found["queue 'orders'"] == found["exchange 'shop'"] == "was there"
    assert found["queue ''"] == "skipped: the broker names it, for the daemon's own connection"
    assert found["queue 'alone'"] == "skipped: it is exclusive to the daemon's own connection"
    assert found["binding of queue 'alone' to exchange 'audit', key ''"].startswith("skipped: its queue belongs")
    assert found["binding of queue 'orders' to exchange 'shop', key 'order.*'"] == "bound"


def test_a_daemon_without_rights_runs_after_it(start: StartDaemon, url: str, node: PrivateNode, virtual_host: str) -> None:
    config = """
        [service]
        declare = false
        [queues.work]
        [consumers.work]
        queue = "work"
        handler = "handlers_of_test:echo"
        """
    user = f"plain-{virtual_host}"
    node.ctl("add_user", user, "pw")
    node.ctl("set_permissions", "--vhost", virtual_host, user, "^$", ".*", ".*")
    daemon = start(
        config, "def echo(message):\n    return message.body\n", at=node.url(virtual_host, user, "pw"), wait=False
    )
    daemon.wait_for("no queue 'work")
    done = rpcd("declare", "--config", str(daemon.process.args[-1]), url=url)  # type: ignore[index]
    assert done.returncode == 0
    daemon.ready()
    assert daemon.stop() == 0


def test_a_dry_run_needs_no_broker(config: pathlib.Path) -> None:
    (port,) = free_ports(1)
    done = rpcd("declare", "--config", str(config), "--dry-run", "--json", url=f"amqp://127.0.0.1:{port}/")
    assert done.returncode == 0
    found = results(done.stdout)
    assert found["queue 'orders.archive'"] == "declare"
    assert found["queue 'alone'"].startswith("skip: ")
    done = rpcd("declare", "--config", str(config), "--dry-run")
    assert "x-queue-type=quorum" in done.stdout


def test_every_failure_is_told_and_keeps_nothing_else_from_being_made(
    config: pathlib.Path, url: str, peer: Peer, node: PrivateNode, virtual_host: str
) -> None:
    config.write_text(
        config.read_text()
        + '[exchanges.theirs]\npassive = true\n[exchanges.odd]\ntype = "x-nowhere"\n[queues.last]\n'
        + 'bindings = [{ exchange = "theirs", routing_keys = ["k"] }]\n'
    )
    peer.channel.queue_declare("orders", durable=True, arguments={"x-max-length": 5})
    peer.publish("orders", b"precious")
    done = rpcd("declare", "--config", str(config), "--json", url=url)
    assert done.returncode == 78
    steps = {step["what"]: step for step in json.loads(done.stdout)["steps"]}
    assert json.loads(done.stdout)["ok"] is False
    assert steps["queue 'orders'"]["result"] == "failed"
    assert "inequivalent arg" in steps["queue 'orders'"]["error"]
    assert steps["exchange 'theirs'"]["result"] == "missing"
    assert steps["exchange 'theirs'"]["error"].endswith("it is passive, so somebody else has to make it")
    assert steps["binding of queue 'last' to exchange 'theirs', key 'k'"]["result"] == "skipped: one end of it is missing"
    assert steps["binding of queue 'orders' to exchange 'shop', key 'order.*'"]["result"].startswith("skipped: ")
    assert "exchange type 'x-nowhere'" in steps["exchange 'odd'"]["error"]
    assert steps["queue 'last'"]["result"] == "made"
    assert all("waiting" not in (step["error"] or "") for step in steps.values())
    assert [message.body for message in peer.left("orders")] == [b"precious"]
    user = f"weak-{virtual_host}"
    node.ctl("add_user", user, "pw")
    node.ctl("set_permissions", "--vhost", virtual_host, user, "^shop$", ".*", ".*")
    config.write_text(textwrap.dedent(CONFIG))
    done = rpcd("declare", "--config", str(config), url=node.url(virtual_host, user, "pw"))
    assert done.returncode == 77
    assert done.stderr.count("grant the permission") >= 2


def test_a_signal_tells_what_was_made(config: pathlib.Path, url: str, peer: Peer) -> None:
    config.write_text(config.read_text() + "".join(f"[queues.further{number}]\n" for number in range(60)))
    with running("declare", "--config", str(config), "--json", url=url) as command:
        peer.until(lambda: peer.exists("orders.archive"))
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130
    found = results("".join(command.out))
    for what, result in found.items():
        if what.startswith("queue 'further"):
            assert peer.exists(what.split("'")[1]) == (result == "made"), what
    assert command.err == ["interrupted"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "--config: no config file; give --config FILE, or set RPCD_CONFIG"),
        ("[queues.a]\nx = 1\n[consumers.a]\nqueue = 5\n", "queues.a.x: unknown key"),
        ("[", "is not valid TOML"),
    ],
)
def test_a_wrong_config_ends_with_78(tmp_path: pathlib.Path, text: str | None, says: str) -> None:
    file = tmp_path / "wrong.toml"
    if text is not None:
        file.write_text(text)
    given = ["--config", str(file)] if text is not None else []
    done = rpcd("declare", *given)
    assert done.returncode == 78
    assert says in done.stderr
    done = rpcd("declare", *given, "--json")
    assert done.returncode == 78
    assert json.loads(done.stdout)["ok"] is False
