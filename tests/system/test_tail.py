"""`rpcd tail`: copies, taken from nobody; and nothing from outside that a terminal could take for an order."""

import base64
import json
import pathlib
import re
import signal

import pytest
from command import on_terminal, rpcd, running
from peer import Peer

from rpcd.ops.rabbitmq import PrivateNode

HOSTILE = "\x1b]0;owned\x07\x9b31m\u202egone\r"


@pytest.fixture
def shop(peer: Peer) -> Peer:
    """A topic exchange with a queue of somebody else."""
    peer.channel.exchange_declare("shop", "topic", durable=True)
    peer.channel.queue_declare("orders", durable=True)
    peer.channel.queue_bind("orders", "shop", "#")
    return peer


def test_copies_pass_and_nothing_is_taken(url: str, shop: Peer) -> None:
    with running("tail", "shop", "order.*", "--json", "--count", "3", url=url) as tail:
        tail.wait_for("copying exchange 'shop' with key 'order.*'", tail.err)
        shop.publish("order.a", {"n": 1}, exchange="shop", headers={"h": 5}, message_id="m", content_type="application/json")
        shop.publish("other.a", {"n": 2}, exchange="shop")
        shop.publish("order.b", b"\0\xff", exchange="shop")
        shop.publish("order.c", b'{\n "n": 1.10,\n "big": 123456789012345678901234567890}', exchange="shop")
        assert tail.wait() == 0
    first, second, third = map(json.loads, tail.out)
    assert (first["exchange"], first["routing_key"], first["body"], first["headers"]) == (
        "shop",
        "order.a",
        {"n": 1},
        {"h": 5},
    )
    assert (first["message_id"], first["delivery_mode"], first["size"]) == ("m", 2, len('{"n": 1}'))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert base64.b64decode(second["body_base64"]) == b"\0\xff"
    assert '"n":1.10' in tail.out[2]
    assert third["body"]["big"] == 123456789012345678901234567890
    assert len(shop.left("orders")) == 4
    assert tail.err == ["copying exchange 'shop' with key 'order.*'"]


def test_ctrl_c_ends_it_well_and_its_queue_goes_with_it(url: str, shop: Peer, node: PrivateNode, virtual_host: str) -> None:
    with running("tail", "shop", url=url) as tail:
        tail.wait_for("copying", tail.err)
        queues = node.ctl("list_queues", "-p", virtual_host, "name", "exclusive", "auto_delete", "arguments")
        (line,) = [each for each in queues.splitlines() if each.startswith("amq.gen")]
        assert "true\ttrue" in line
        assert "drop-head" in line
        tail.process.send_signal(signal.SIGINT)
        assert tail.wait() == 0
    assert "amq.gen" not in node.ctl("list_queues", "-p", virtual_host, "name")


def test_the_bindings_of_a_queue_of_the_config_are_taken(url: str, shop: Peer, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "rpcd.toml"
    file.write_text(
        '[exchanges.own]\nname = "shop"\n[queues.o]\nname = "orders"\n'
        'bindings = [{ exchange = "own", routing_keys = ["a", "b.#"] }]\n[queues.none]\n'
    )
    for name in ("o", "orders"):
        with running("tail", "--queue", name, "--config", str(file), "--count", "2", "--json", url=url) as tail:
            tail.wait_for("copying exchange 'shop' with key 'a', exchange 'shop' with key 'b.#'", tail.err)
            for key in ("c", "a", "b.c"):
                shop.publish(key, {}, exchange="shop")
            assert tail.wait() == 0
        assert [json.loads(line)["routing_key"] for line in tail.out] == ["a", "b.c"]
    done = rpcd("tail", "--queue", "nowhere", "--config", str(file), url=url)
    assert (done.returncode, done.stderr) == (78, f"{file}: there is no queue 'nowhere'; there are: o, none\n")
    done = rpcd("tail", "--queue", "none", "--config", str(file), url=url)
    assert done.returncode == 2
    assert "has no bindings" in done.stderr


def test_the_default_exchange_can_not_be_copied_and_the_way_out_works(
    own_node: PrivateNode,
) -> None:
    url = own_node.url()
    done = rpcd("tail", "", url=url)
    assert done.returncode == 2
    assert "rabbitmqctl trace_on -p VIRTUAL-HOST, then: rpcd tail amq.rabbitmq.trace 'deliver.QUEUE'" in done.stderr
    own_node.ctl("trace_on")
    peer = Peer(url)
    peer.channel.queue_declare("direct")
    with running("tail", "amq.rabbitmq.trace", "deliver.direct", "--json", "--count", "1", url=url) as tail:
        tail.wait_for("copying", tail.err)
        peer.publish("direct", {"a": 1})
        assert peer.get("direct").json == {"a": 1}
        assert tail.wait() == 0
    assert json.loads(tail.out[0])["body"] == {"a": 1}
    peer.close()


@pytest.mark.parametrize("form", [[], ["--json"], ["--no-bodies"]])
def test_what_comes_from_outside_gives_a_terminal_no_orders(url: str, shop: Peer, form: list[str]) -> None:
    with running("tail", "shop", "--count", "3", *form, url=url) as tail:
        tail.wait_for("copying", tail.err)
        properties = {"headers": {HOSTILE: HOSTILE, "l": [HOSTILE]}, "message_id": HOSTILE, "content_type": HOSTILE}
        shop.publish(f"k{HOSTILE}", HOSTILE.encode(), exchange="shop", **properties)
        shop.publish("k", json.dumps({HOSTILE: HOSTILE}, ensure_ascii=False).encode(), exchange="shop")
        shop.publish("k", b"\x9b31m", exchange="shop")
        assert tail.wait() == 0
    text = "\n".join(tail.out)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    if form == ["--json"]:
        assert json.loads(tail.out[0])["headers"][HOSTILE] == HOSTILE
        assert json.loads(tail.out[1])["body"] == {HOSTILE: HOSTILE}
    elif not form:
        assert "\\x1b]0;owned\\x07" in text


def test_a_reply_and_an_error_give_a_terminal_no_orders(url: str) -> None:
    code, said = on_terminal("tail", f"no{HOSTILE}", url=url)
    assert code == 69
    assert b"\x1b]" not in said
    assert b"\x07" not in said
    assert b"owned" in said


def test_people_get_readable_copies(url: str, shop: Peer) -> None:
    with running("tail", "shop", "--count", "3", url=url) as tail:
        tail.wait_for("copying", tail.err)
        shop.publish("order.a", {"n": [1]}, exchange="shop", headers={"h": 5}, message_id="m-1")
        shop.publish("order.b", b"\0\xff" * 50, exchange="shop")
        shop.publish("order.c", b"x" * 10_000, exchange="shop")
        assert tail.wait() == 0
    text = "\n".join(tail.out)
    assert re.search(r"^\d\d:\d\d:\d\d\.\d{3}  shop  order\.a  10 bytes$", text, re.MULTILINE)
    assert "  message_id: m-1" in text
    assert "  h = 5\n" in text
    assert '  {\n    "n": [\n      1\n    ]\n  }' in text
    assert "  not text: 00 ff 00 ff" in text
    assert "(100 bytes)" in text
    assert "... (1808 characters more)" in text


def test_it_connects_again_and_says_so(own_node: PrivateNode) -> None:
    peer = Peer(own_node.url())
    peer.channel.exchange_declare("shop", "topic", durable=True)
    with running("tail", "shop", "--json", url=own_node.url()) as tail:
        tail.wait_for("copying", tail.err)
        own_node.kill()
        tail.wait_for("connecting again (what passes meanwhile is not shown)", tail.err)
        own_node.start()
        tail.wait_for("copying", tail.err, 2)
        again = Peer(own_node.url())
        again.publish("k", {"n": 1}, exchange="shop")
        tail.wait_for('"n":1', tail.out)
        own_node.kill()
        tail.wait_for("connecting again", tail.err, 2)
        tail.process.send_signal(signal.SIGTERM)
        assert tail.wait() == 0
    assert not any("Traceback" in line for line in tail.err)


def test_a_slow_reader_costs_the_oldest_copies_only(url: str, shop: Peer) -> None:
    """Nobody reads what it prints for a while; it must neither grow nor hold anybody up."""
    with running("tail", "shop", "--count", "1", url=url) as tail:
        tail.wait_for("copying", tail.err)
        for _ in range(300):
            shop.publish("k", b"x" * 1000, exchange="shop")
        assert tail.wait() == 0
    assert len(shop.left("orders")) == 300


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "Give either EXCHANGE or --queue NAME."),
        (["shop", "--queue", "q"], 2, "Give either EXCHANGE or --queue NAME."),
        (["--queue", "q"], 2, "--queue is a queue of a config: give --config FILE."),
        (["--queue", "q", "--config", "/nowhere"], 78, "/nowhere: can't be read"),
        (["shop", "--count", "0"], 2, "0 is not in the range"),
        (["nowhere"], 69, "no exchange 'nowhere'"),
        (["x" * 256], 2, "the exchange has 256 bytes; AMQP allows 255"),
        (["shop", "k" * 256], 2, "the routing key has 256 bytes; AMQP allows 255"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(url: str, shop: Peer, arguments: list[str], code: int, says: str) -> None:
    done = rpcd("tail", *arguments, url=url)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_permission_ends_with_77(shop: Peer, node: PrivateNode, virtual_host: str) -> None:
    user = f"blind-{virtual_host}"
    node.ctl("add_user", user, "pw")
    node.ctl("set_permissions", "--vhost", virtual_host, user, ".*", ".*", "^$")
    done = rpcd("tail", "shop", url=node.url(virtual_host, user, "pw"))
    assert done.returncode == 77
    assert "`read` on the exchange" in done.stderr
