"""Replies to where no reply may go, and results that no reply can hold."""

import base64
from collections.abc import Iterator

import pika
import pytest
from canary import CANARY
from inputs import Inputs, ended
from raw import RawPeer, Refused

from rpcd.ops.rabbitmq import PrivateNode

HANDLERS = """
    import dataclasses, datetime, decimal
    import rpcd

    class Sealed:
        def __repr__(self):
            raise RuntimeError("no words for it")

    def itself():
        found = {}
        found["itself"] = found
        return found

    def deep():
        found = []
        for _ in range(100_000):
            found = [found]
        return found

    RESULTS = {
        "a_set_of_objects": lambda: {object()},
        "an_object": object,
        "an_object_without_a_repr": Sealed,
        "an_integer_of_5000_digits": lambda: {"n": 10 ** 5000},
        "not_a_number": lambda: float("nan"),
        "infinity": lambda: {"a": [float("inf")]},
        "what_contains_itself": itself,
        "what_is_nested_deep": deep,
        "a_lone_surrogate": lambda: "\\ud800",
        "a_key_that_is_no_text": lambda: {(1, 2): 3},
        "an_exception": lambda: ValueError("x"),
        "a_type": lambda: dict,
        "a_generator": lambda: (n for n in range(3)),
        "a_lambda": lambda: print,
        "too_much": lambda: "x" * 3000,
        "a_reply_of_an_object": lambda: rpcd.Reply({"a": object()}),
        "a_text_with_a_lone_surrogate": lambda: rpcd.Reply({}, message="\\ud800"),
    }

    PUBLICATIONS = {
        "a_header_that_is_a_set": {"headers": {"h": {1}}},
        "a_header_that_is_an_object": {"headers": {"h": object()}},
        "a_header_of_65_bits": {"headers": {"h": 1 << 64}},
        "a_header_with_a_long_name": {"headers": {"h" * 256: 1}},
        "headers_that_fill_more_than_a_frame": {"headers": {"h": "x" * 140_000}},
        "a_long_correlation_id": {"correlation_id": "c" * 256},
        "a_correlation_id_that_is_a_number": {"correlation_id": 17},
        "an_expiration_that_is_text": {"expiration": "soon"},
        "an_expiration_that_is_no_number": {"expiration": float("nan")},
        "priority_256": {"priority": 256},
        "priority_minus_1": {"priority": -1},
        "a_long_type": {"type": "t" * 256},
    }

    def handle(message):
        what = message.body["do"]
        if what == "result":
            return RESULTS[message.body["case"]]()
        if what == "publish":
            message.publish("", "target", {}, **PUBLICATIONS[message.body["case"]])
        if what == "long_key":
            message.publish("", "k" * 256, {})
        if what == "float":
            message.publish("", "target", {}, headers={"f": 1.5, "d": decimal.Decimal("0.07"), "deep": {"a": [1, b"x"]}})
        if what == "token":
            return {"token": message.reply_to}
        return {}
"""

CONSUMER = """
    [queues.{name}]
    type = "{kind}"
    [consumers.{name}]
    queue = "{name}"
    handler = "input_handlers:handle"
    max_reply = 2000
    reply = "{reply}"
    reply_confirm = {confirm}
    reply_to_allowed = {allowed}
    retry = {{ delays = [0.05] }}
"""

KINDS = ("quorum", "classic", "plain", "confirmed", "open")

CONFIG = "\n    [queues.target]" + "".join(
    CONSUMER.format(
        name=name,
        kind="classic" if name == "classic" else "quorum",
        reply="plain" if name == "plain" else "envelope",
        confirm="true" if name == "confirmed" else "false",
        allowed='["*"]' if name == "open" else '["replies.*"]',
    )
    for name in KINDS
)


@pytest.fixture(scope="module")
def inputs(node: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inputs]:
    made = Inputs(node, "input-replies", tmp_path_factory.mktemp("replies"), CONFIG, HANDLERS)
    made.may_raise = True
    made.peer.channel.queue_declare("bystander", durable=True)
    yield from ended(made, *KINDS)


# Where no reply may go: also row 1 of the security rows -------------------------------------------

OWN = [f"{queue}{suffix}" for queue in ("{0}", "quorum", "classic") for suffix in ("", ".archive", ".retry.50")]


@pytest.mark.parametrize("queue", KINDS)
@pytest.mark.parametrize("target", [*OWN, "target"])
def test_input_23_and_security_01_a_reply_never_goes_to_a_queue_of_ours(inputs: Inputs, queue: str, target: str) -> None:
    reply_to = target.format(queue)
    inputs.peer.publish(queue, {"do": "return", "canary": CANARY}, reply_to=reply_to, message_id="sly")
    found = inputs.archived(queue)
    assert found.properties["reply_to"] == reply_to.encode()
    assert b"reply_to is not allowed here" in found.headers
    inputs.neighbour(queue)
    assert inputs.peer.left("target") == []


@pytest.mark.parametrize("queue", ["quorum", "confirmed"])
@pytest.mark.parametrize("reply_to", ["bystander", "amq", "AMQ.GEN-x", " amq.gen-x", "xamq.gen-", "replies", "x.replies.a"])
@pytest.mark.parametrize("body", [{"do": "return"}, b"{bad"], ids=["good", "bad"])
def test_input_23_and_security_01_nor_to_one_that_is_not_listed(
    inputs: Inputs, queue: str, reply_to: str, body: object
) -> None:
    inputs.peer.publish(queue, body, reply_to=reply_to)
    inputs.archived(queue)
    inputs.neighbour(queue)
    assert inputs.peer.left("bystander") == []


@pytest.mark.parametrize("reply_to", ["replies.\n", "replies.[x]", "replies.*"])
def test_security_01_a_pattern_is_matched_as_a_whole_and_says_nothing_of_the_text(inputs: Inputs, reply_to: str) -> None:
    inputs.peer.publish("quorum", {"do": "return"}, reply_to=reply_to, message_id="returned")
    inputs.daemon.wait_for("a reply came back, its caller has gone: 312 NO_ROUTE, key replies\\.")
    inputs.neighbour("quorum")


# Direct reply-to ----------------------------------------------------------------------------------

FORGED = ["", ".", ".x", ".AAAA.bbb", ".g2dkAA==.key", "." + "A" * 200, "../../x", ".\x00.\x00"]


@pytest.mark.parametrize("queue", ["quorum", "classic", "confirmed", "open"])
@pytest.mark.parametrize("suffix", FORGED)
def test_input_24_a_forged_direct_reply_to(inputs: Inputs, queue: str, suffix: str) -> None:
    client = RawPeer(inputs.url)
    try:
        client.publish(queue.encode(), b'{"do": "return"}', reply_to=b"amq.rabbitmq.reply-to" + suffix.encode())
    except Refused:
        assert not suffix  # the broker wants to give the name itself, and only to those who consume it
    else:
        inputs.archived(queue)
    client.close()
    inputs.neighbour(queue)


@pytest.fixture(scope="module")
def token(inputs: Inputs) -> str:
    """A name that the broker gave to a client which has gone since."""
    connection = pika.BlockingConnection(pika.URLParameters(inputs.url))
    channel = connection.channel()
    got: list[bytes] = []
    channel.basic_consume("amq.rabbitmq.reply-to", lambda _c, _m, _p, body: got.append(body), auto_ack=True)
    channel.basic_publish("", "quorum", b'{"do":"token"}', pika.BasicProperties(reply_to="amq.rabbitmq.reply-to"))
    while not got:
        connection.process_data_events(1)
    connection.close()
    return got[0].decode().split('"token":"')[1].split('"')[0]


@pytest.mark.parametrize("queue", ["quorum", "classic", "confirmed"])
def test_input_24_a_caller_that_has_gone_costs_nothing(inputs: Inputs, queue: str, token: str) -> None:
    for _ in range(3):
        inputs.peer.publish(queue, {"do": "return"}, reply_to=token)
    inputs.neighbour(queue)


@pytest.mark.parametrize("queue", ["quorum", "classic"])
def test_input_24_the_right_caller_with_a_wrong_key_costs_nothing(inputs: Inputs, queue: str, token: str) -> None:
    inputs.peer.publish(queue, {"do": "return"}, reply_to=token.rpartition(".")[0] + ".AAAAAAAAAAAAAAAAAAAAAA==")
    inputs.neighbour(queue)


@pytest.mark.parametrize("queue", ["quorum", "classic"])
def test_input_24_a_caller_on_a_node_that_there_is_not_costs_nothing(inputs: Inputs, queue: str, token: str) -> None:
    pid, key = token.removeprefix("amq.rabbitmq.reply-to.").split(".")
    term = base64.b64decode(pid).replace(b"@localhost", b"@elsewhere")
    forged = f"amq.rabbitmq.reply-to.{base64.b64encode(term).decode()}.{key}"
    inputs.peer.publish(queue, {"do": "return"}, reply_to=forged)
    inputs.neighbour(queue)


@pytest.mark.parametrize("queue", ["quorum", "classic", "plain", "confirmed"])
@pytest.mark.parametrize("reply_to", ["amq.gen-nobody", "amq_x", "amq.gen-".ljust(255, "x")])
def test_input_25_a_queue_that_there_is_not(inputs: Inputs, queue: str, reply_to: str) -> None:
    inputs.peer.publish(queue, {"do": "return"}, reply_to=reply_to, correlation_id="c" * 255)
    inputs.neighbour(queue)


@pytest.mark.parametrize("queue", ["quorum", "classic", "confirmed"])
def test_input_25_an_empty_name(inputs: Inputs, queue: str) -> None:
    inputs.peer.publish(queue, {"do": "return"}, reply_to="")
    inputs.archived(queue)
    inputs.neighbour(queue)


# Results ------------------------------------------------------------------------------------------

RESULTS = [
    "a_set_of_objects",
    "an_object",
    "an_object_without_a_repr",
    "an_integer_of_5000_digits",
    "not_a_number",
    "infinity",
    "what_contains_itself",
    "what_is_nested_deep",
    "a_lone_surrogate",
    "a_key_that_is_no_text",
    "an_exception",
    "a_type",
    "a_generator",
    "a_lambda",
    "too_much",
    "a_reply_of_an_object",
]

PUBLICATIONS = [
    "a_header_that_is_a_set",
    "a_header_that_is_an_object",
    "a_header_of_65_bits",
    "a_header_with_a_long_name",
    "headers_that_fill_more_than_a_frame",
    "a_long_correlation_id",
    "a_correlation_id_that_is_a_number",
    "an_expiration_that_is_text",
    "an_expiration_that_is_no_number",
    "priority_256",
    "priority_minus_1",
    "a_long_type",
]

NEUTRAL = {"success": False, "data": {}, "message": "An unexpected error occurred"}


@pytest.mark.parametrize("queue", ["quorum", "plain", "confirmed"])
@pytest.mark.parametrize("case", RESULTS)
def test_input_31_a_result_that_no_reply_can_hold_is_answered_neutrally(inputs: Inputs, queue: str, case: str) -> None:
    assert inputs.peer.call(queue, {"do": "result", "case": case, "canary": CANARY}).json == NEUTRAL
    inputs.neighbour(queue)


def test_input_31_a_text_that_no_reply_can_hold_is_answered_neutrally(inputs: Inputs) -> None:
    assert inputs.peer.call("quorum", {"do": "result", "case": "a_text_with_a_lone_surrogate"}).json == NEUTRAL
    inputs.neighbour("quorum")


@pytest.mark.parametrize("queue", ["quorum", "classic"])
@pytest.mark.parametrize("case", PUBLICATIONS)
def test_input_31_a_publication_that_amqp_cannot_hold_is_the_handlers_mistake(inputs: Inputs, queue: str, case: str) -> None:
    assert inputs.peer.call(queue, {"do": "publish", "case": case, "canary": CANARY}).json == NEUTRAL
    assert inputs.peer.left("target") == []
    inputs.neighbour(queue)


def test_input_31_a_routing_key_over_255_bytes_is_the_handlers_mistake(inputs: Inputs) -> None:
    assert inputs.peer.call("quorum", {"do": "long_key"}).json == NEUTRAL
    inputs.neighbour("quorum")


def test_input_31_headers_of_every_type_that_amqp_has_are_sent(inputs: Inputs) -> None:
    assert inputs.peer.call("quorum", {"do": "float"}).json["success"] is True
    found = inputs.raw.get(b"target")
    assert found is not None
    assert b"\x01fd?\xf8\x00\x00\x00\x00\x00\x00" in found.headers
    assert b"\x01dD\x02\x00\x00\x00\x07" in found.headers
