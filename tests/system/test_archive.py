"""`rpcd archive`: looking wears nothing out, and what is sent back to work is never lost, whenever the tool dies."""

import collections
import concurrent.futures
import json
import logging
import pathlib
import re
import signal
import stat
import struct
import subprocess

import pytest
from archives import archived, declare, fill, numbers, taken, twice, waiting
from command import on_terminal, rpcd, running, surroundings
from daemon import RPCD, StartDaemon
from ledger import HANDLER, runs
from peer import Peer
from proxy import UP, Link, Proxy

from rpcd.ops.rabbitmq import PrivateNode

log = logging.getLogger(__name__)

HOSTILE = "\x1b]0;owned\x07\x9b31m\u202egone\r"

ORDERS = ("--queue", "orders.archive")

CONFIG = """
[queues.orders]
[consumers.orders]
queue = "orders"
handler = "handlers_of_test:note"
workers = 8
"""


def listed(url: str, *arguments: str) -> list[dict[str, object]]:
    done = rpcd("archive", "list", "--json", *arguments, url=url)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# Looking ------------------------------------------------------------------------------------------


def test_a_list_tells_what_happened_and_no_secret(url: str, peer: Peer, tmp_path: pathlib.Path) -> None:
    (tmp_path / "rpcd.toml").write_text(
        '[queues.o]\nname = "orders"\n[queues.bills]\n[queues.never]\n[consumers.c]\nqueue = "o"\nhandler = "shop:handle"\n'
    )
    config = ("--config", str(tmp_path / "rpcd.toml"))
    declare(peer, "orders.archive", "bills.archive")
    fill(peer, 3, errors=("ValueError", "KeyError"))
    done = rpcd("archive", "list", *config, url=url)
    assert done.returncode == 69
    assert "there is no archive 'never.archive'" in done.stderr
    row = r"orders\.archive +\d+d\d*h? +id1 +attempts are spent: KeyError +KeyError +5 +shop/order\.placed +8"
    assert re.search(row, done.stdout), done.stdout
    for names in (["o", "orders"], ["c", "orders.archive"]):  # one archive, by whatever name
        done = rpcd("archive", "list", *names, *config, url=url)
        assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 4)
        assert "secret-tenant" not in done.stdout
    done = rpcd("archive", "list", "bills", *config, url=url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "nothing is archived\n")
    done = rpcd("archive", "list", "nowhere", *config, url=url)
    assert (done.returncode, done.stdout) == (78, "")
    assert "there is no queue or consumer 'nowhere'; there are: o, bills, never, c" in done.stderr


def test_messages_are_chosen_by_what_is_known_of_them(url: str, peer: Peer) -> None:
    declare(peer, "orders.archive")
    fill(peer, 4, errors=("ValueError", "KeyError"))
    chosen = {
        ("--exception", "KeyError"): [1, 3],
        ("--id", "id0", "--id", "copy3"): [0, 3],
        ("--reason", "keyerror", "--correlation-id", "c3", "--handler", "shop.orders:PlaceOrder", "--newer", "9999w"): [3],
        ("--older", "1h", "--limit", "3"): [0, 1, 2],
    }
    for options, wanted in chosen.items():
        found = listed(url, *ORDERS, *options)
        assert [each["id"] for each in found] == [f"id{number}" for number in wanted], options
    assert "secret-tenant" not in json.dumps(found)
    assert (found[1]["exception"], found[1]["attempts"], found[1]["queue"]) == ("KeyError", 5, "orders")
    assert found[1]["time"] == "2023-11-14T22:13:21.000Z"


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_looking_wears_nothing_out_and_keeps_the_order(kind: str, url: str, peer: Peer) -> None:
    """However it is read: a part, the whole, through a filter, until nobody looks any more, until it is killed."""
    declare(peer, "orders.archive", kind=kind)
    count = 1300
    fill(peer, count)
    assert len(listed(url, *ORDERS, "--limit", "300")) == 300
    assert len(listed(url, *ORDERS, "--id", "id700")) == 1
    line = '"$0" archive list --json --queue orders.archive | head -1'
    done = subprocess.run(["sh", "-c", line, str(RPCD)], env=surroundings(url), capture_output=True, text=True, timeout=60)
    assert (json.loads(done.stdout)["id"], done.stderr) == ("id0", "")
    assert len(listed(url, *ORDERS, "--limit", "5")) == 5
    assert [each["id"] for each in listed(url, *ORDERS)] == [f"id{number}" for number in range(count)]
    with running("archive", "list", *ORDERS, "--json", url=url) as listing:
        listing.wait_for('"id":"id9', listing.out)
        listing.process.kill()
        listing.wait()
    peer.until(lambda: waiting(peer, "orders.archive") == count)
    assert sorted(numbers(peer, "orders.archive")) == list(range(count))


def test_show_hides_secrets_until_asked(url: str, peer: Peer) -> None:
    declare(peer, "orders.archive")
    fill(peer, 2)
    plain = rpcd("archive", "show", "id1", *ORDERS, url=url)
    assert plain.returncode == 0
    for line in ("reason: attempts are spent: ValueError", "property correlation_id: c1", "header x-rpcd-copy = copy1"):
        assert f"  {line}\n" in plain.stdout
    assert "header tenant = hidden: say --headers" in plain.stdout
    assert "secret-tenant" not in plain.stdout
    assert '"n": 1' not in plain.stdout
    whole = rpcd("archive", "show", "copy1", *ORDERS, "--body", "--headers", url=url)
    assert "header tenant = secret-tenant" in whole.stdout
    assert '"n": 1' in whole.stdout
    as_json = json.loads(rpcd("archive", "show", "id1", *ORDERS, "--body", "--json", url=url).stdout)
    assert (as_json["body"], as_json["headers_hidden"]) == ({"n": 1}, ["tenant"])
    line = ["sh", "-c", '"$0" archive show id1 --queue orders.archive >/dev/full', str(RPCD)]
    assert subprocess.run(line, env=surroundings(url), capture_output=True, timeout=60).returncode == 74
    done = rpcd("archive", "show", "id2", *ORDERS, url=url)
    assert (done.returncode, done.stderr) == (1, "there is no message 'id2' in orders.archive\n")


def test_what_comes_from_outside_gives_a_terminal_no_orders(url: str, peer: Peer) -> None:
    declare(peer, "orders.archive")
    headers = {HOSTILE: HOSTILE, "x-rpcd-reason": HOSTILE, "x-rpcd-exception": HOSTILE, "x-rpcd-exchange": HOSTILE}
    peer.publish("orders.archive", HOSTILE.encode(), message_id=HOSTILE, headers=headers, content_type=HOSTILE)
    shown = (
        rpcd("archive", "list", *ORDERS, url=url),
        rpcd("archive", "list", *ORDERS, "--json", url=url),
        rpcd("archive", "show", HOSTILE, *ORDERS, "--headers", "--body", url=url),
        rpcd("archive", "export", "-", *ORDERS, url=url),
    )
    for done in shown:
        assert (done.returncode, done.stderr) == (0, "")
        assert "owned" in done.stdout or "body_base64" in done.stdout
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.stdout)


# Writing down -------------------------------------------------------------------------------------


def test_an_export_is_for_its_owner_and_publishes_everything_again(url: str, peer: Peer, tmp_path: pathlib.Path) -> None:
    declare(peer, "orders.archive", "orders")
    bodies = [b'{"n": 0, "text": "\xc3\xa9"}', b' {"n":1}\n', b"\0\xff", b"", b'{"n":1.10}']
    for number, body in enumerate(bodies):
        properties, _ = archived(
            number, headers={"deep": {"l": [2**40, True, None]}}, app_id="shop", content_encoding="x", timestamp=5
        )
        peer.channel.basic_publish("", "orders.archive", body, properties)
    file = tmp_path / "out.jsonl"
    done = rpcd("archive", "export", str(file), *ORDERS, url=url)
    assert (done.returncode, done.stdout) == (0, "5 messages are exported\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    line = json.loads(file.read_text().splitlines()[0])
    assert (line["body"], line["archived"]["reason"]) == ({"n": 0, "text": "\u00e9"}, "attempts are spent: ValueError")
    assert waiting(peer, "orders.archive") == 5
    done = rpcd("archive", "export", str(file), *ORDERS, url=url)
    assert (done.returncode, done.stderr) == (2, f"{file}: exists; name a file that does not\n")
    done = rpcd("publish", "", "", "--file", str(file), "--messages", url=url)
    assert (done.returncode, done.stdout) == (0, "5 messages are published\n")
    rpcd("archive", "replay", *ORDERS, "--yes", url=url)
    found = peer.left("orders")
    assert [message.body for message in found] == bodies * 2
    for published, replayed in zip(found[:5], found[5:], strict=True):
        times = [message.headers.pop("x-rpcd-replayed-time") for message in (published, replayed)]
        assert all(times)
        assert vars(published.properties) == vars(replayed.properties)
    assert found[0].properties.app_id == "shop"


def test_what_is_dropped_is_written_down_first(url: str, peer: Peer, tmp_path: pathlib.Path) -> None:
    declare(peer, "orders.archive")
    fill(peer, 600, errors=("ValueError", "KeyError"))
    file = tmp_path / "old.jsonl"
    drop = ("archive", "drop", *ORDERS)
    done = rpcd(*drop, "--exception", "KeyError", "--dry-run", "--json", url=url)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 300)
    done = rpcd(*drop, "--exception", "KeyError", "--export", str(file), "--yes", "--json", url=url)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"ok": True, "dropped": 300, "seen": 600})
    assert [json.loads(line)["body"]["n"] for line in file.read_text().splitlines()] == list(range(1, 600, 2))
    done = rpcd(*drop, "--id", "id0", "--id", "nobody", "--yes", url=url)
    assert done.stdout == "1 message is dropped\n"
    done = rpcd(*drop, "--export", "/dev/full", "--yes", url=url)
    assert (done.returncode, done.stderr) == (2, "/dev/full: exists; name a file that does not\n")
    assert numbers(peer, "orders.archive") == list(range(2, 600, 2))


def test_somebody_has_to_agree(url: str, peer: Peer) -> None:
    declare(peer, "orders.archive", "orders")
    fill(peer, 1)
    for command in ("drop", "replay"):
        done = rpcd("archive", command, *ORDERS, url=url)
        assert (done.returncode, done.stderr) == (2, "there is nobody to ask: say --yes, or --dry-run to look first\n")
    code, said = on_terminal("archive", "drop", *ORDERS, url=url, answer=b"n\n")
    assert code == 1
    assert b"Drop all of orders.archive for good? [y/N]" in said
    assert waiting(peer, "orders.archive") == 1
    code, said = on_terminal("archive", "replay", *ORDERS, url=url, answer=b"y\n")
    assert code == 0, said
    assert b"1 message is replayed" in said
    assert numbers(peer, "orders") == [0]


# Sending back to work -----------------------------------------------------------------------------


def test_ten_thousand_are_replayed_and_a_kill_half_way_loses_none(
    start: StartDaemon, url: str, peer: Peer, tmp_path: pathlib.Path
) -> None:
    daemon = start(CONFIG, HANDLER)
    count, window = 10_000, 100
    fill(peer, count)
    config = ("--config", str(tmp_path / "rpcd.toml"))
    ledger = tmp_path / "ledger"

    def handled() -> int:
        return ledger.read_bytes().count(b"\n") if ledger.exists() else 0

    with running("archive", "replay", "orders", *config, "--yes", url=url) as replay:
        peer.until(lambda: handled() >= count // 3)
        replay.process.kill()
        assert replay.wait() == -signal.SIGKILL
    peer.until(lambda: waiting(peer, "orders") == 0)
    left = waiting(peer, "orders.archive")
    assert 0 < left < count
    done = rpcd("archive", "replay", "orders", *config, "--yes", "--json", url=url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["replayed"] == left
    peer.until(lambda: len(runs(tmp_path)) == count, what=lambda: f"{len(runs(tmp_path))} of {count} were handled")
    peer.until(lambda: waiting(peer, "orders") == 0)
    assert daemon.stop() == 0
    times = runs(tmp_path)
    again = sum(times.values()) - count
    log.info("%s of %s messages were replayed twice; killed with %s left", again, count, left)
    assert set(times) == {f"id{number}" for number in range(count)}
    assert again <= window, f"{again} of {count} messages were replayed twice; killed with {left} left"
    for queue in ("orders", "orders.archive", "orders.retry.200"):
        peer.until(
            lambda queue=queue: waiting(peer, queue) == 0, what=lambda queue=queue: f"{waiting(peer, queue)} in {queue}"
        )  # type: ignore[misc]


def test_killed_at_the_worst_moment_a_window_comes_twice_and_no_more(url: str, peer: Peer, node: PrivateNode) -> None:
    """Every copy of a window is confirmed, and no ack reaches the broker."""
    declare(peer, "orders.archive", "orders")
    fill(peer, 100)
    proxy = Proxy(node.port)
    stuck: list[bool] = []

    def swallow(_link: Link, way: str, piece: bytes) -> bytes:
        ack = piece.find(struct.pack(">HH", 60, 80)) if way == UP else -1
        if stuck and way == UP:
            return b""
        if ack >= 0:
            stuck.append(True)
            return piece[: ack - 7]
        return piece

    proxy.tamper = swallow
    with running("archive", "replay", *ORDERS, "--window", "20", "--yes", url=proxy.url(url)) as replay:
        peer.until(lambda: bool(stuck) and waiting(peer, "orders") == 20)
        replay.process.kill()
        replay.wait()
    proxy.close()
    peer.until(lambda: waiting(peer, "orders.archive") == 100)
    assert rpcd("archive", "replay", *ORDERS, "--yes", url=url).returncode == 0
    found = taken(peer, "orders")
    assert twice([message.json["n"] for message in found], 100) == 20
    copies = collections.Counter(message.headers["x-rpcd-copy"] for message in found)
    assert collections.Counter(copies.values()) == {1: 80, 2: 20}, "whoever sees both can tell that they are the same"


def test_cut_half_way_it_says_how_far_it_came_and_the_next_run_goes_on(url: str, peer: Peer, node: PrivateNode) -> None:
    limits = [3000, 8000, 13_000, 18_000]
    queues = [f"cut{limit}" for limit in limits]
    for queue in queues:
        declare(peer, queue, f"{queue}.archive")
        fill(peer, 60, queue)

    def cut(limit: int) -> str:
        proxy = Proxy(node.port)
        proxy.limit[UP] = limit
        done = rpcd("archive", "replay", "--queue", f"cut{limit}.archive", "--window", "10", "--yes", url=proxy.url(url))
        proxy.close()
        assert done.returncode == 69, done.stderr
        return done.stderr

    def again(limit: int) -> int:
        return rpcd("archive", "replay", "--queue", f"cut{limit}.archive", "--yes", url=url).returncode

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        said = list(pool.map(cut, limits))
        assert list(pool.map(again, limits)) == [0] * len(limits)
    for limit, text in zip(limits, said, strict=True):
        found = re.search(
            r"(\d+) messages? (?:is|are) replayed; the others are where they were, so it can be run again", text
        )
        assert found, text
        more = twice(numbers(peer, f"cut{limit}"), 60)
        assert more <= 10, f"cut after {limit} bytes, {more} came twice"
    done = [int(text.rpartition("message")[0].split()[-1]) for text in said]
    assert done == sorted(done)
    assert 0 < done[-1] < 60


def test_ctrl_c_ends_it_in_good_order(url: str, peer: Peer) -> None:
    declare(peer, "orders.archive", "orders")
    fill(peer, 200)
    with running("archive", "replay", *ORDERS, "--rate", "20", "--yes", url=url) as replay:
        peer.until(lambda: waiting(peer, "orders") >= 5)
        replay.process.send_signal(signal.SIGINT)
        assert replay.wait() == 130
    found = numbers(peer, "orders")
    said = f"{len(found)} messages are replayed; the others are where they were, so it can be run again"
    assert replay.err == ["interrupted", said]
    assert found == list(range(len(found)))
    assert numbers(peer, "orders.archive") == list(range(len(found), 200))


def test_two_at_once_and_a_daemon_that_archives_meanwhile(url: str, peer: Peer) -> None:
    declare(peer, "orders.archive", "orders")
    fill(peer, 1000)
    with (
        running("archive", "replay", *ORDERS, "--yes", "--json", url=url) as one,
        running("archive", "replay", *ORDERS, "--yes", "--json", url=url) as other,
    ):
        peer.until(lambda: waiting(peer, "orders") > 0)
        fill_unseen(peer, 1000, 100)
        codes = [one.wait(), other.wait()]
        counts = [json.loads(each.out[0])["replayed"] for each in (one, other)]
    assert codes == [0, 0]
    found = numbers(peer, "orders")
    left = numbers(peer, "orders.archive")
    assert sum(counts) == len(found)
    assert sorted(found + left) == list(range(1100))


def fill_unseen(peer: Peer, first: int, count: int) -> None:
    for number in range(first, first + count):
        properties, body = archived(number)
        peer.channel.basic_publish("", "orders.archive", body, properties, mandatory=True)


HANDLERS = """
    import os, signal
    import rpcd

    def work(message):
        replayed = message.headers.get("x-rpcd-replayed", 0)
        print("run", message.message_id, message.attempt, replayed, message.exchange, message.routing_key, flush=True)
        if not replayed and message.body == "drop":
            raise rpcd.Drop
        if not replayed and message.body == "poison":
            raise rpcd.Nack(delay=0)
        if message.attempt == 1 or not replayed:
            raise ConnectionError
        print("done", message.message_id, flush=True)
    """


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_what_died_and_is_replayed_survives_the_brokers_cycle_check(
    kind: str, start: StartDaemon, url: str, peer: Peer, tmp_path: pathlib.Path
) -> None:
    """Died by rpcd's hand, by Drop() or by the delivery limit; replayed, retried through a step's time to live, handled."""
    peer.channel.exchange_declare("shop", "topic", durable=True)
    limit = "delivery_limit = 2\n" if kind == "quorum" else ""
    config = f"""
        [queues.orders]
        type = "{kind}"
        {limit}bindings = [{{ exchange = "shop", routing_keys = ["#"] }}]
        [exchanges.shop]
        passive = true
        [consumers.orders]
        queue = "orders"
        handler = "handlers_of_test:work"
        retry = {{ delays = [0.2], attempts = 2 }}
        """
    daemon = start(config, HANDLERS)
    bodies = ["spent", "drop", *(["poison"] if kind == "quorum" else [])]
    for body in bodies:
        peer.publish("order.placed", body, "shop", message_id=body, content_type="application/json", expiration="20000")
    peer.until(lambda: waiting(peer, "orders.archive") == len(bodies))
    found = {each["id"]: each for each in listed(url, *ORDERS)}
    reasons = {"spent": "attempts are spent: ConnectionError", "drop": "dead-lettered: rejected"}
    reasons |= {"poison": "dead-lettered: delivery_limit"} if kind == "quorum" else {}
    assert {name: each["reason"] for name, each in found.items()} == reasons
    assert {(each["exchange"], each["routing_key"], each["queue"]) for each in found.values()} == {
        ("shop", "order.placed", "orders")
    }
    done = rpcd("archive", "replay", "orders", "--config", str(tmp_path / "rpcd.toml"), "--yes", url=url)
    assert (done.returncode, done.stdout) == (0, f"{len(bodies)} messages are replayed\n"), done.stderr
    for body in bodies:
        daemon.wait_for(f"run {body} 1 1 shop order.placed")
        daemon.wait_for(f"run {body} 2 1 shop order.placed")
        daemon.wait_for(f"done {body}")
    assert daemon.stop() == 0
    assert [waiting(peer, queue) for queue in ("orders", "orders.archive", "orders.retry.200")] == [0, 0, 0]


def test_messages_may_be_sent_elsewhere(url: str, peer: Peer) -> None:
    declare(peer, "orders.archive", "debug", "bound")
    peer.channel.exchange_declare("other", "topic")
    peer.channel.queue_bind("bound", "other", "new.key")
    fill(peer, 2)
    assert rpcd("archive", "replay", *ORDERS, "--id", "id0", "--to", "debug", "--yes", url=url).returncode == 0
    assert rpcd("archive", "replay", *ORDERS, "--to", "other/new.key", "--yes", url=url).returncode == 0
    (first,), (second,) = peer.left("debug"), peer.left("bound")
    assert (first.json, first.headers["x-rpcd-exchange"]) == ({"n": 0}, "shop")
    assert (second.json, second.method.exchange, "x-rpcd-exchange" in second.headers) == ({"n": 1}, "other", False)


def test_what_no_copy_can_carry_stays_and_is_told(url: str, peer: Peer, tmp_path: pathlib.Path) -> None:
    declare(peer, "orders.archive", "orders", "strange")
    fill(peer, 1)
    peer.publish("orders.archive", b"x", headers={"x-rpcd-headers": b"\xff", "x-rpcd-queue": "orders"})
    done = rpcd("archive", "replay", *ORDERS, "--yes", url=url)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "1 message is left in the archive: its headers can't be read",
        "1 message is replayed; the others are where they were, so it can be run again",
    ]
    file = tmp_path / "out.jsonl"
    assert rpcd("archive", "export", str(file), *ORDERS, url=url).returncode == 0
    done = rpcd("publish", "", "", "--file", str(file), "--messages", url=url)
    assert done.returncode == 2
    assert "it can't be published again: its headers can't be read" in done.stderr
    peer.publish("strange", b"x")
    done = rpcd("archive", "replay", "--queue", "strange", "--yes", url=url)
    assert (done.returncode, waiting(peer, "strange")) == (1, 1)
    assert "nobody knows which queue it belongs to: give --to" in done.stderr


# What goes wrong ----------------------------------------------------------------------------------


def test_what_the_broker_refuses_is_told_in_a_sentence(url: str, peer: Peer, node: PrivateNode, virtual_host: str) -> None:
    declare(peer, "orders.archive")
    fill(peer, 3)
    node.ctl("add_user", f"blind-{virtual_host}", "pw")
    node.ctl("set_permissions", "--vhost", virtual_host, f"blind-{virtual_host}", ".*", ".*", "^$")
    node.ctl("add_user", f"mute-{virtual_host}", "pw")
    node.ctl("set_permissions", "--vhost", virtual_host, f"mute-{virtual_host}", "^$", "^$", ".*")
    blind, mute = (node.url(virtual_host, f"{name}-{virtual_host}", "pw") for name in ("blind", "mute"))
    cases = [
        (url, ["list", "--queue", "nowhere"], 69, "there is no archive 'nowhere'"),
        ("amqp://127.0.0.1:1/", ["list", *ORDERS], 69, "127.0.0.1:1"),
        (node.url(virtual_host, "guest", "wrong"), ["list", *ORDERS], 77, "or the password"),
        (blind, ["list", *ORDERS], 77, "grant the permission `read` on 'orders.archive'"),
        (mute, ["replay", *ORDERS, "--yes"], 77, "grant the permission `write` on that exchange"),
        (url, ["replay", *ORDERS, "--yes"], 69, "no queue takes exchange '', key 'orders'"),
        (url, ["replay", *ORDERS, "--yes", "--to", "nowhere/key"], 69, "no exchange 'nowhere'"),
        (url, ["list"], 78, "which archives? give --config FILE (or set RPCD_CONFIG), or --queue NAME.archive"),
        (url, ["list", "--config", "/nowhere"], 78, "/nowhere: can't be read"),
        (url, ["list", *ORDERS, "--older", "soon"], 2, "write a number and s, m, h, d or w"),
        (url, ["replay", *ORDERS, "--to", "q" * 256], 2, "--to: the routing key has 256 bytes; AMQP allows 255"),
        (url, ["export", "/nowhere/file", *ORDERS], 2, "/nowhere/file: can't be made: No such file or directory"),
    ]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(lambda case: rpcd("archive", *case[1], url=case[0]), cases))
    for (_, arguments, code, says), done in zip(cases, ended, strict=True):
        assert done.returncode == code, (arguments, done.stderr)
        assert says in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
    assert waiting(peer, "orders.archive") == 3
    assert len(listed(mute, *ORDERS)) == 3


def test_an_archive_that_reading_wears_out_is_not_read(url: str, peer: Peer) -> None:
    declare(peer, "orders.archive", **{"x-delivery-limit": 1})
    fill(peer, 1)
    for _ in range(3):
        done = rpcd("archive", "list", *ORDERS, url=url)
        assert done.returncode == 1
        assert "archive 'orders.archive' has a delivery limit of 1: each reading counts" in done.stderr
    assert len(listed(url, *ORDERS, "--wear")) == 1
    assert [message.headers["x-delivery-count"] for message in peer.left("orders.archive")] == [1]


def test_a_full_disk_keeps_a_message_from_being_dropped(url: str, peer: Peer, tmp_path: pathlib.Path) -> None:
    declare(peer, "orders.archive")
    fill(peer, 300)
    line = f'ulimit -f 8; exec "$0" archive drop --queue orders.archive --export {tmp_path}/x.jsonl --yes'
    command = ["bash", "-c", f"trap '' XFSZ; {line}", str(RPCD)]
    done = subprocess.run(command, env=surroundings(url), capture_output=True, text=True, timeout=60)
    assert done.returncode == 74, done.stderr
    assert "x.jsonl: can't be written: File too large" in done.stderr
    assert numbers(peer, "orders.archive") == list(range(300))
