import copy
import dataclasses
import json
import logging
import pickle
import traceback
import typing
from collections.abc import Callable
from typing import Any, Generic, NewType, TypeVar

import attrs
import msgspec
import pytest

import rpcd
from rpcd.core.codec import encode_json
from rpcd.core.locks import lane_key
from rpcd.core.message import Message
from rpcd.core.secret import holds_secret

T = TypeVar("T")
VALUE = "correct-horse"
SECRET = rpcd.Secret(VALUE)


@attrs.define
class Order:
    card: rpcd.Secret[str]


@dataclasses.dataclass
class Inner:
    card: "rpcd.Secret[str] | None"


@dataclasses.dataclass
class Outer:
    inner: list[Inner]
    again: "Outer | None" = None


class Table(typing.TypedDict):
    inner: dict[str, Outer]


class Record(msgspec.Struct):
    inner: Outer | None = None


@dataclasses.dataclass
class Box(Generic[T]):
    inside: T


class Plain(msgspec.Struct):
    name: str
    password: str
    again: "Plain | None" = None


Alias = NewType("Alias", Order)

SHOWN: dict[str, Callable[[Any], str]] = {
    "str": str,
    "repr": repr,
    "format": lambda secret: f"{secret}",
    "format with a width": lambda secret: f"{secret:>40}",
    "format as a number": lambda secret: f"{secret:.2f}",
    "percent": lambda secret: "%s %r" % (secret, secret),  # noqa: UP031
    "in a list": lambda secret: repr([secret]),
    "attrs": lambda secret: repr(Order(secret)),
    "dataclass": lambda secret: repr(Inner(secret)),
    "asdict": lambda secret: repr((attrs.asdict(Order(secret)), dataclasses.asdict(Inner(secret)))),
    "a message": lambda secret: repr(Message(Order(secret))),
    "a log record": lambda secret: logging.makeLogRecord({"msg": "%s", "args": (secret,)}).getMessage(),
    "an exception": lambda secret: "".join(traceback.format_exception(ValueError(secret))),
}


@pytest.mark.parametrize("how", SHOWN)
def test_whatever_shows_a_secret_shows_a_mask(how: str) -> None:
    for secret in (SECRET, rpcd.Secret(VALUE, token=VALUE), rpcd.Secret(["x", VALUE])):
        shown = SHOWN[how](secret)
        assert VALUE not in shown
        assert "****" in shown or how == "a message"


def test_revealing_is_the_only_way_to_the_value() -> None:
    assert SECRET.reveal() == VALUE
    assert rpcd.Secret(5).reveal() + 1 == 6
    assert not hasattr(SECRET, "__dict__")
    assert [name for name in dir(SECRET) if not name.startswith("_")] == ["reveal", "token"]


@pytest.mark.parametrize("encode", [json.dumps, encode_json, msgspec.json.encode, msgspec.to_builtins, pickle.dumps])
@pytest.mark.parametrize("holder", [lambda secret: secret, lambda secret: {"a": [secret]}, Order])
def test_nothing_that_leaves_the_process_can_hold_a_secret(encode: Any, holder: Any) -> None:
    with pytest.raises(TypeError) as refused:
        encode(holder(SECRET))
    assert VALUE not in str(refused.value)


def test_a_handler_can_neither_publish_nor_return_a_secret() -> None:
    message: Message[Any] = Message()
    with pytest.raises(TypeError, match="Secret"):
        message.publish("shop", "key", {"card": SECRET})
    assert message.published == []


def test_secrets_are_equal_if_their_values_are() -> None:
    assert rpcd.Secret(VALUE, token="another") == SECRET
    assert hash(SECRET) == hash(rpcd.Secret(VALUE))
    assert rpcd.Secret("é") == rpcd.Secret("é")
    assert rpcd.Secret("\ud800") == rpcd.Secret("\ud800")
    assert rpcd.Secret([1]) == rpcd.Secret([1])
    for other in (rpcd.Secret("x"), rpcd.Secret(VALUE.encode()), rpcd.Secret(5), VALUE, None):
        assert other != SECRET
    assert {SECRET: 1}[rpcd.Secret(VALUE)] == 1


def test_a_secret_is_as_true_as_its_value() -> None:
    assert SECRET
    assert not rpcd.Secret("")
    assert not rpcd.Secret(0)


def test_a_copy_is_a_secret() -> None:
    assert copy.copy(SECRET) is SECRET
    inside = rpcd.Secret(["x"], "token")
    deep = copy.deepcopy(inside)
    inside.reveal().append("y")
    assert (deep.reveal(), deep.token) == (["x"], "token")


def test_a_lane_can_have_a_secret_as_its_key() -> None:
    key = lane_key("body.card")
    first, second, third = (key(Message(Order(rpcd.Secret(value)))) for value in ("a", "a", "b"))
    assert first == second != third
    assert len({first, second, third}) == 2


HOLD = [
    rpcd.Secret,
    rpcd.Secret[str],
    rpcd.Secret[int] | None,
    typing.Annotated[rpcd.Secret[str], "x"],
    list[dict[str, tuple[rpcd.Secret[str], ...]]],
    Order,
    Inner,
    Outer,
    Table,
    Record,
    Box[rpcd.Secret[str]],
    Alias,
    Order | Plain,
]


First = dataclasses.make_dataclass("First", [(f"field{n}", f"list[tuple[int, {n}]]") for n in range(50)])


@dataclasses.dataclass
class Second:
    secrets: "list[rpcd.Secret[str]]"


def test_a_secret_is_found_in_whichever_part_has_it() -> None:
    """Annotations that are text are made anew whenever they are looked at: none may pass for one that was seen before."""
    assert holds_secret(tuple[First, Second])
    assert holds_secret(tuple[Second, First])
    assert not holds_secret(tuple[First, First])


@pytest.mark.parametrize("kind", HOLD, ids=str)
def test_a_type_with_a_secret_in_it_is_known(kind: Any) -> None:
    assert holds_secret(kind)


@pytest.mark.parametrize(
    "kind", [Any, str, bytes, dict, dict[str, Any], list[int], Plain, Box[int], Plain | None, T], ids=str
)
def test_a_type_without_one_is_known_too(kind: Any) -> None:
    assert not holds_secret(kind)
