"""Bodies that no honest client sends: each is archived or answered once, and costs nobody else anything."""

import gzip
import json
import pathlib
import pickle
import re
from collections.abc import Iterator

import pytest
from canary import CANARY
from inputs import Inputs, ended
from raw import RawPeer, Refused

from rpcd.ops.rabbitmq import PrivateNode

MIB = 1024 * 1024

HANDLERS = """
    import dataclasses, pathlib, threading, typing
    import pydantic, rpcd

    gate = pathlib.Path(__file__).with_name("gate")

    @dataclasses.dataclass
    class Order:
        do: str
        customer: str = ""
        items: list[int] = dataclasses.field(default_factory=list)

    def handle(message):
        return {"type": type(message.body).__name__}

    def typed(message: rpcd.Message[Order]):
        return {"customer": message.body.customer}

    class Model(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        do: typing.Literal["return", "x"]
        customer: str = ""
        items: list[int] = []
        prices: dict[str, float] = {}
        anything: typing.Any = None

        @pydantic.field_validator("customer")
        @classmethod
        def check(cls, customer):
            if customer:
                raise ValueError(f"{customer} is blocked")
            return customer

    def model(message: rpcd.Message[Model]):
        return message.body

    def locked(message):
        if message.body.get("wait"):
            for _ in range(3000):
                if gate.exists():
                    break
                threading.Event().wait(0.01)
        return {"key": message.body["key"]}
"""

CONFIG = """
    [queues.quorum]
    [queues.classic]
    type = "classic"
    [queues.typed]
    [queues.model]
    [queues.locked]
    [queues.huge]
    [consumers.quorum]
    queue = "quorum"
    handler = "input_handlers:handle"
    [consumers.classic]
    queue = "classic"
    handler = "input_handlers:handle"
    [consumers.typed]
    queue = "typed"
    handler = "input_handlers:typed"
    [consumers.model]
    queue = "model"
    handler = "input_handlers:model"
    [consumers.locked]
    queue = "locked"
    handler = "input_handlers:locked"
    workers = 2
    lock = "body.key"
    [consumers.huge]
    queue = "huge"
    handler = "input_handlers:handle"
    max_body = 1_000_000
    prefetch = 1
"""

QUEUES = ("quorum", "classic", "typed", "model", "locked", "huge")
BOTH = pytest.mark.parametrize("queue", ["quorum", "classic"])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("bodies")


@pytest.fixture(scope="module")
def inputs(node: PrivateNode, directory: pathlib.Path) -> Iterator[Inputs]:
    yield from ended(Inputs(node, "input-bodies", directory, CONFIG, HANDLERS), *QUEUES)


def quoted(text: str) -> bytes:
    return f'"{CANARY}{text}"'.encode()


UNREADABLE = {
    "nothing": b"",
    "no_json": f"<order>{CANARY}</order>".encode(),
    "cut": b'{"a": ' + quoted(""),
    "something_behind_it": quoted("") + b" " + quoted(""),
    "not_a_number": b'{"a": NaN, "b": ' + quoted("") + b"}",
    "infinity": b"[-Infinity]",
    "a_million_digits": b"9" * 1_000_000,
    "an_exponent_without_end": b"1e" + b"9" * 1000,
    "nested_a_million_deep": b"[" * 1_000_000,
    "nested_and_closed": b"[" * 100_000 + b"]" * 100_000,
    "objects_nested_deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "lone_surrogates": quoted("\\ud800"),
    "no_utf8": b'"' + CANARY.encode() + b'\xff"',
    "utf16": json.dumps({"a": CANARY}).encode("utf-16"),
    "a_byte_order_mark": b"\xef\xbb\xbf{}",
    "control_characters": b'"' + CANARY.encode() + b'\x00\x1b[2J"',
    "a_pickle": pickle.dumps(print),
}

READABLE = {
    "a_scalar": (b"17", "int"),
    "a_string": (quoted(""), "str"),
    "null": (b"null", "NoneType"),
    "an_array": (b"[1]", "list"),
    "duplicate_keys": (b'{"a": 1, "a": ' + quoted("") + b"}", "dict"),
    "a_thousand_keys": (json.dumps(dict.fromkeys(map(str, range(1000)), CANARY)).encode(), "dict"),
    "white_space": (b" " * 100_000 + b"{}", "dict"),
}


@BOTH
@pytest.mark.parametrize("case", UNREADABLE)
def test_input_17_a_body_that_is_no_json(inputs: Inputs, queue: str, case: str) -> None:
    body = UNREADABLE[case]
    inputs.raw.publish(queue.encode(), body, reply_to=inputs.peer.reply_queue.encode(), correlation_id=b"bad")
    (reply,) = inputs.peer.replies()
    assert (reply.properties.correlation_id, reply.json["success"], reply.json["data"]["place"]) == ("bad", False, "body")
    assert CANARY.encode() not in reply.body
    found = inputs.archived(queue)
    assert found.body == body
    assert CANARY.encode() not in found.headers
    inputs.neighbour(queue)


@BOTH
@pytest.mark.parametrize("case", READABLE)
def test_input_17_any_json_value_is_a_body(inputs: Inputs, queue: str, case: str) -> None:
    body, kind = READABLE[case]
    assert inputs.peer.call(queue, body).json["data"] == {"type": kind}
    inputs.neighbour(queue)


@BOTH
@pytest.mark.parametrize("cut", [1, 7, 4096])
def test_input_17_a_body_in_many_small_frames(inputs: Inputs, queue: str, cut: int) -> None:
    body = quoted("x" * 3000)
    inputs.raw.publish(queue.encode(), body, cut=cut, reply_to=inputs.peer.reply_queue.encode(), correlation_id=b"cut")
    (reply,) = inputs.peer.replies()
    assert reply.json["data"] == {"type": "str"}
    inputs.neighbour(queue)


def peak(inputs: Inputs) -> int:
    """The most memory that the daemon has had so far, in bytes; see proc(5)."""
    status = pathlib.Path(f"/proc/{inputs.daemon.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("size", [1_000_001, 64 * MIB])
def test_input_18_a_body_over_max_body_is_archived_whole_in_bounded_memory(inputs: Inputs, size: int) -> None:
    inputs.neighbour("huge")
    before = peak(inputs)
    body = b'"' + CANARY.encode().ljust(size - 2, b"x") + b'"'
    client = RawPeer(inputs.url)
    try:
        client.publish(b"huge", body)
    except Refused:
        assert size > 16 * MIB  # RabbitMQ 4 takes no more by default
    else:
        found = inputs.archived("huge")
        assert found.body == body
        assert f"bad message: body: {size} bytes; max_body allows 1000000".encode() in found.headers
        assert peak(inputs) - before < 5 * size + 32 * MIB
    client.close()
    inputs.neighbour("huge")


@BOTH
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "x-anything", "GZIP", "utf-8, gzip"])
def test_input_19_nothing_is_unpacked(inputs: Inputs, queue: str, encoding: str) -> None:
    bomb = gzip.compress(b'"' + CANARY.encode() + b"0" * (50 * MIB) + b'"')
    assert len(bomb) < 100_000
    before = peak(inputs)
    reply = inputs.peer.call(queue, bomb, content_encoding=encoding)
    assert reply.json["data"]["place"] == "content_encoding"
    found = inputs.archived(queue)
    assert found.body == bomb
    assert found.properties["content_encoding"] == encoding.encode()
    assert peak(inputs) - before < 10 * MIB
    inputs.neighbour(queue)


LIES = {
    "text/html": b"{}",
    "application/x-python-pickle": UNREADABLE["a_pickle"],
    "application/json; charset=utf-7": b"+AHsAfQ-",
    "application/json; charset=rot13": b"{}",
    "application/json; charset=idna": b"{}",
    "application/json; charset=../../etc/passwd": b"{}",
    "x" * 255: b"{}",
    ";;;=": b"{}",
}


@BOTH
@pytest.mark.parametrize("content_type", LIES, ids=range(len(LIES)))
def test_input_20_a_content_type_that_is_not_accepted(inputs: Inputs, queue: str, content_type: str) -> None:
    reply = inputs.peer.call(queue, LIES[content_type], content_type=content_type)
    assert reply.json["data"]["place"] == "content_type"
    assert content_type not in reply.json["message"]
    assert inputs.archived(queue).properties["content_type"] == content_type.encode()
    inputs.neighbour(queue)


@BOTH
def test_input_20_a_content_type_that_lies_is_found_out_by_the_body(inputs: Inputs, queue: str) -> None:
    reply = inputs.peer.call(queue, UNREADABLE["a_pickle"], content_type="application/json")
    assert reply.json["data"]["place"] == "body"
    inputs.archived(queue)
    inputs.neighbour(queue)


VIOLATIONS = {
    "a_missing_field": ({"customer": CANARY}, "body", "Object missing required field `do`"),
    "a_wrong_type": ({"do": "x", "customer": [CANARY]}, "body.customer", "Expected `str`, got `array`"),
    "a_wrong_item": ({"do": "x", "items": [1, CANARY]}, "body.items[1]", "Expected `int`, got `str`"),
    "another_type": ([CANARY], "body", "Expected `object`, got `array`"),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_input_22_a_violation_of_the_schema_is_told_by_place_never_by_value(inputs: Inputs, case: str) -> None:
    body, place, reason = VIOLATIONS[case]
    reply = inputs.peer.call("typed", body)
    assert reply.json == {
        "success": False,
        "data": {"place": place, "reason": reason},
        "message": f"Bad message: {place}: {reason}",
    }
    assert CANARY.encode() not in inputs.archived("typed").headers
    inputs.neighbour("typed")


INTEGER, NUMBER, EXTRA = (
    "Input should be a valid integer",
    "Input should be a valid number",
    "Extra inputs are not permitted",
)

OF_A_MODEL = {
    "all_at_once": (
        {"do": CANARY, "customer": CANARY, "items": [1, CANARY], "prices": {CANARY: CANARY}, CANARY: CANARY},
        [
            ("body.do", "Input should be 'return' or 'x'"),
            ("body.customer", "not valid"),
            ("body.items[1]", INTEGER),
            ("body.prices[...]", NUMBER),
            ("body", EXTRA),
        ],
    ),
    "a_key_like_a_place": ({"do": "x", "prices": {f"a[0].{CANARY}": {CANARY: 1}}}, [("body.prices[...]", NUMBER)]),
    "another_type": ([CANARY], [("body", "Input should be an object")]),
    "many_unknown_keys": ({"do": "x", **{f"{CANARY}{n}": CANARY for n in range(1000)}}, [("body", EXTRA)]),
}


@pytest.mark.parametrize("case", OF_A_MODEL)
def test_input_22_every_violation_of_a_model_is_told_by_place_never_by_value(inputs: Inputs, case: str) -> None:
    body, faults = OF_A_MODEL[case]
    reply = inputs.peer.call("model", body)
    assert reply.json["data"]["faults"] == [{"place": place, "reason": reason} for place, reason in faults]
    assert CANARY.encode() not in reply.body
    assert CANARY.encode() not in inputs.archived("model").headers
    inputs.neighbour("model")


def test_input_22_a_flood_of_violations_is_counted(inputs: Inputs) -> None:
    reply = inputs.peer.call("model", {"do": "x", "items": [CANARY] * 100_000})
    assert reply.json["data"] == {"place": "body", "reason": "not valid in 100000 places"}
    inputs.archived("model")
    inputs.neighbour("model")


@pytest.mark.parametrize(
    "anything", [b"NaN", b"1e999", b"[" * 5000 + b"]" * 5000, b'"\\ud800"', quoted("\\u0001")[:-1], b"1" * 10_000], ids=repr
)
def test_what_is_no_json_is_no_model_either(inputs: Inputs, anything: bytes) -> None:
    inputs.peer.publish("model", b'{"do": "x", "anything": ' + anything + b"}")
    assert b"bad message: body" in inputs.archived("model").headers
    inputs.neighbour("model")


def test_input_30_a_flood_of_one_key_does_not_hold_another_up(inputs: Inputs, directory: pathlib.Path) -> None:
    for number in range(50):  # fewer than the prefetch, which is 64 with a lock
        inputs.peer.publish(
            "locked",
            {"key": "hot", "wait": True, "canary": CANARY},
            reply_to=inputs.peer.reply_queue,
            correlation_id=f"hot{number}",
        )
    assert inputs.peer.call("locked", {"key": "cold"}).json["data"] == {"key": "cold"}
    (directory / "gate").touch()
    replies = inputs.peer.replies(50)
    assert [reply.properties.correlation_id for reply in replies] == [f"hot{number}" for number in range(50)]
    inputs.unharmed()


def test_input_30_a_body_without_the_key_is_archived(inputs: Inputs) -> None:
    assert inputs.peer.call("locked", {"canary": CANARY}).json["data"]["place"] == "body.key"
    inputs.archived("locked")
    assert inputs.peer.call("locked", {"key": {"a": CANARY}}).json["data"]["place"] == "body.key"
    inputs.archived("locked")
    inputs.unharmed()
