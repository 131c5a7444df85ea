"""Bodies and replies by type, over a real broker: what the handler, the caller, the log and the archive get."""

import json
import re
from typing import Any

import pytest
from daemon import Daemon, StartDaemon
from peer import Peer

SECRET = "4111-1111"

CONFIG = """
    [queues.{0}]
    [consumers.{0}]
    queue = "{0}"
    handler = "handlers_of_test:{0}"
    max_reply = 2000
"""

HANDLERS = """
    import dataclasses, datetime, decimal, enum, typing, uuid
    import attrs, msgspec, pydantic, rpcd

    class Colour(enum.Enum):
        RED = "red"

    class Item(pydantic.BaseModel):
        sku: str = pydantic.Field(alias="SKU", pattern="^[a-z]+$")
        count: int = pydantic.Field(1, gt=0)

    class Order(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        customer: str
        items: list[Item] = []
        prices: dict[str, int] = {}
        note: str = ""

        @pydantic.field_validator("note")
        @classmethod
        def check(cls, note):
            if note == "own words":
                raise rpcd.BadValue("no such note")
            if note.startswith("4111"):
                raise ValueError(f"{note} is blocked")
            if note == "key":
                raise KeyError(note)
            if note == "exit":
                raise SystemExit(3)
            return note

    @attrs.define
    class Box:
        inside: typing.Any

    @dataclasses.dataclass
    class Plain:
        customer: str
        items: list[int] = dataclasses.field(default_factory=list)

    class Opaque:
        def __repr__(self):
            return "4111-1111"

    class Loop(pydantic.BaseModel):
        me: typing.Any = None

    def cycle():
        loop = Loop()
        loop.me = [loop]
        return loop

    ANSWERS = {
        "opaque": lambda: {"a": Opaque()},
        "opaque in a model": lambda: Loop(me=Opaque()),
        "cycle": cycle,
        "long": lambda: Loop(me="x" * 3000),
        "nan": lambda: Loop(me=float("nan")),
        "a reply of an opaque": lambda: rpcd.Reply(Opaque()),
        "many": lambda: {
            "item": Item(SKU="tea"), "box": Box([Item(SKU="cup")]), "plain": Plain("ada"), "colour": Colour.RED,
            "at": datetime.datetime(2026, 1, 2), "id": uuid.UUID(int=1), "price": decimal.Decimal("1.10"), "bytes": b"a"},
        "reply": lambda: rpcd.Reply(Item(SKU="tea"), "here you are"),
        "items": lambda: [Item(SKU="tea")],
    }

    def model(message: rpcd.Message[Order]):
        order = message.body
        assert type(order) is Order and all(type(item) is Item for item in order.items)
        return order

    def struct(message: rpcd.Message[Plain]):
        assert type(message.body) is Plain
        return message.body

    def answer(message: rpcd.Message[str]):
        if message.body == "fail":
            raise rpcd.RequestFailed("no tea", Item(SKU="tea"))
        if message.body == "publish":
            message.publish("", "published", Box(Item(SKU="tea")))
            return None
        return ANSWERS[message.body]()

    async def later(message: rpcd.Message[Order | str]):
        return message.body if isinstance(message.body, Order) else ANSWERS[message.body]()
"""


@pytest.fixture
def daemon(start: StartDaemon, peer: Peer) -> Daemon:
    config = "".join(CONFIG.format(name) for name in ("model", "struct", "answer", "later"))
    return start(config + 'reply = "envelope"\n[queues.published]\n', HANDLERS)


WRONG = {"items": [{"SKU": "tea"}, {"SKU": SECRET, "count": 0}], "prices": {SECRET: SECRET}, "note": SECRET, SECRET: SECRET}
FAULTS = [
    {"place": "body.customer", "reason": "Field required"},
    {"place": "body.items[1].SKU", "reason": "String should match pattern '^[a-z]+$'"},
    {"place": "body.items[1].count", "reason": "Input should be greater than 0"},
    {"place": "body.prices[...]", "reason": "Input should be a valid integer"},
    {"place": "body.note", "reason": "not valid"},
    {"place": "body", "reason": "Extra inputs are not permitted"},
]
SAID = "; ".join(f"{fault['place']}: {fault['reason']}" for fault in FAULTS)


@pytest.mark.parametrize("queue", ["model", "later"])
def test_a_model_comes_to_the_handler_and_goes_back_by_alias(daemon: Daemon, peer: Peer, queue: str) -> None:
    reply = peer.call(queue, {"customer": "ada", "items": [{"SKU": "tea", "count": "2"}]}).json
    assert reply == {
        "success": True,
        "data": {"customer": "ada", "items": [{"SKU": "tea", "count": 2}], "prices": {}, "note": ""},
        "message": None,
    }


def test_every_fault_of_a_model_is_told_to_the_caller_the_log_and_the_archive_and_never_a_value(
    daemon: Daemon, peer: Peer
) -> None:
    reply = peer.call("model", WRONG)
    assert reply.json == {
        "success": False,
        "data": {**FAULTS[0], "faults": FAULTS},
        "message": f"Bad message: {SAID}",
    }
    archived = peer.get("model.archive")
    assert archived.headers["x-rpcd-reason"] == f"bad message: {SAID}"
    assert archived.json == WRONG
    daemon.wait_for(re.escape(f"bad message: {SAID}"))
    assert SECRET not in reply.body.decode() + str(archived.headers) + daemon.output


def test_the_first_fault_is_told_where_msgspec_decodes(daemon: Daemon, peer: Peer) -> None:
    reply = peer.call("struct", {"customer": "ada", "items": [1, SECRET]})
    assert reply.json == {
        "success": False,
        "data": {"place": "body.items[1]", "reason": "Expected `int`, got `str`"},
        "message": "Bad message: body.items[1]: Expected `int`, got `str`",
    }
    assert peer.get("struct.archive").headers["x-rpcd-reason"] == "bad message: body.items[1]: Expected `int`, got `str`"
    assert SECRET not in daemon.output


def test_what_a_type_says_with_bad_value_reaches_the_caller(daemon: Daemon, peer: Peer) -> None:
    reply = peer.call("model", {"customer": "ada", "note": "own words"})
    assert reply.json["message"] == "Bad message: body.note: no such note"


@pytest.mark.parametrize(("note", "error"), [("key", "KeyError"), ("exit", "SystemExit")])
def test_a_validator_that_breaks_is_an_exception_as_in_the_handler(
    daemon: Daemon, peer: Peer, note: str, error: str
) -> None:
    reply = peer.call("model", {"customer": "ada", "note": note})
    assert reply.json == {"success": False, "data": {}, "message": "An unexpected error occurred"}
    daemon.wait_for(error)
    assert peer.call("model", {"customer": "ada"}).json["success"] is True  # the daemon goes on


@pytest.mark.parametrize(
    "body",
    [b'{"customer": NaN}', b'{"customer": "\\ud800"}', b'{"customer": "\xff"}', b"{", b"", b'{"prices": {"a": 1e999}}'],
)
@pytest.mark.parametrize("queue", ["model", "struct"])
def test_what_is_no_json_is_none_for_anybody(daemon: Daemon, peer: Peer, queue: str, body: bytes) -> None:
    reply = peer.call(queue, body)
    assert reply.json["success"] is False
    assert reply.json["data"]["place"].startswith("body")
    assert peer.get(f"{queue}.archive").body == body


@pytest.mark.parametrize("queue", ["answer", "later"])
@pytest.mark.parametrize(
    ("asked", "data", "message"),
    [
        ("reply", {"SKU": "tea", "count": 1}, "here you are"),
        ("items", {"result": [{"SKU": "tea", "count": 1}]}, None),
        (
            "many",
            {
                "item": {"SKU": "tea", "count": 1},
                "box": {"inside": [{"SKU": "cup", "count": 1}]},
                "plain": {"customer": "ada", "items": []},
                "colour": "red",
                "at": "2026-01-02T00:00:00",
                "id": "00000000-0000-0000-0000-000000000001",
                "price": "1.10",
                "bytes": "YQ==",
            },
            None,
        ),
    ],
)
def test_what_is_returned_may_be_of_any_type(
    daemon: Daemon, peer: Peer, queue: str, asked: str, data: Any, message: str | None
) -> None:
    assert peer.call(queue, json.dumps(asked).encode()).json == {"success": True, "data": data, "message": message}


@pytest.mark.parametrize("queue", ["answer", "later"])
@pytest.mark.parametrize("asked", ["opaque", "opaque in a model", "cycle", "long", "nan", "a reply of an opaque"])
def test_what_cannot_be_sent_is_an_error_reply_at_once(daemon: Daemon, peer: Peer, queue: str, asked: str) -> None:
    reply = peer.call(queue, json.dumps(asked).encode())
    assert reply.json == {"success": False, "data": {}, "message": "An unexpected error occurred"}
    daemon.wait_for("the reply can't be encoded|max_reply allows 2000")
    assert SECRET not in daemon.output


def test_a_failure_and_a_publication_may_hold_a_model(daemon: Daemon, peer: Peer) -> None:
    assert peer.call("answer", b'"fail"').json == {
        "success": False,
        "data": {"SKU": "tea", "count": 1},
        "message": "no tea",
    }
    assert peer.call("answer", b'"publish"').json["success"] is True
    assert peer.get("published").json == {"inside": {"SKU": "tea", "count": 1}}
