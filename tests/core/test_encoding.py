"""What a handler returns or publishes as JSON, whatever types it is made of."""

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import re
import types
import typing
import uuid
import warnings
from typing import Any

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel
from pydantic.dataclasses import dataclass as pydantic_dataclass

import rpcd
from rpcd.core.bodies import decode_json
from rpcd.core.encoding import encode_json
from rpcd.core.errors import ReplyUnencodable
from rpcd.core.reply import Replies
from rpcd.core.wire import Properties

PROPERTY = settings(max_examples=40, deadline=None)

SECRET = "4111-1111"
NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.timezone.utc)


class Colour(enum.Enum):
    RED = "red"


class Item(BaseModel):
    sku: str = Field(alias="SKU")
    at: dt.datetime = NOON
    price: decimal.Decimal = decimal.Decimal("1.10")
    more: Any = 0


@attrs.define
class Box:
    inside: Any
    note: str | None = ""


@dataclasses.dataclass
class Crate:
    inside: Any


class Chest(msgspec.Struct):
    inside: Any


class Parts(typing.NamedTuple):
    a: int
    b: Any


@pydantic_dataclass
class Tag:
    text: str = Field(alias="Text")


class Fails(BaseModel):
    value: str = SECRET

    @pydantic.field_serializer("value")
    def refuse(self, value: str) -> str:
        raise KeyError(value)


class Constants(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    value: float = math.nan


class Name(str):
    """Text of a class of its own, as template engines have it."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Count(int):
    pass


class Ratio(float):
    pass


class Opaque:
    """What nobody can encode, and nobody may see."""

    def __repr__(self) -> str:
        return SECRET

    __str__ = __repr__


ITEM = Item(SKU="tea")
SENT = {"SKU": "tea", "at": "2026-01-02T12:00:00Z", "price": "1.10", "more": 0}


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (ITEM, SENT),
        ([ITEM], [SENT]),
        ({"a": (ITEM,)}, {"a": [SENT]}),
        (Box(ITEM), {"inside": SENT, "note": ""}),
        ([Crate([ITEM])], [{"inside": [SENT]}]),
        (Chest({"a": ITEM}), {"inside": {"a": SENT}}),
        (Item(SKU="tea", more=Box(ITEM)), {**SENT, "more": {"inside": SENT, "note": ""}}),
        (Item(SKU="tea", more=Chest(Crate(ITEM))), {**SENT, "more": {"inside": {"inside": SENT}}}),
        (RootModel[list[int]]([1]), [1]),
        (Tag(Text="x"), {"Text": "x"}),
        ({"tags": [Tag(Text="x")]}, {"tags": [{"Text": "x"}]}),
        (Box(None, None), {"inside": None, "note": None}),
        (Item(SKU="tea", more=None), {**SENT, "more": None}),
        (Parts(1, [b"a"]), [1, ["YQ=="]]),
        (NOON, "2026-01-02T12:00:00Z"),
        (NOON.date(), "2026-01-02"),
        (dt.timedelta(seconds=90), "PT90S"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.10"), "1.10"),
        (Colour.RED, "red"),
        ({Colour.RED: {1}}, {"red": [1]}),
        (collections.OrderedDict(a=frozenset([1])), {"a": [1]}),
        (Name("x"), "x"),
        ([Count(5), Ratio(0.5), None], [5, 0.5, None]),
        (Item(SKU="tea", more=[Name("x"), Chest(Count(1))]), {**SENT, "more": ["x", {"inside": 1}]}),
        (types.MappingProxyType({"a": ITEM}), {"a": SENT}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_type_has_its_form(value: Any, sent: Any) -> None:
    assert json.loads(encode_json(value)) == sent


def cyclic_model() -> Any:
    model = Item(SKU="a")
    model.more = model
    return model


def cyclic_attrs() -> Any:
    box = Box(None)
    box.inside = [box]
    return box


def cyclic_mixture() -> Any:
    table: dict[str, Any] = {}
    table["model"] = Item(SKU="a", more=Box(table))
    return table


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


UNENCODABLE: list[Any] = [
    Opaque(),
    {"a": [Opaque()]},
    Box(Opaque()),
    Item(SKU="a", more=Opaque()),
    {"a": Item(SKU="a", more=Box(Opaque()))},
    Fails(),
    [Fails()],
    Item.model_construct(sku="\ud800"),
    Item,
    Box,
    Item(SKU="a", more=Item),
    cyclic_model(),
    cyclic_attrs(),
    cyclic_mixture(),
    deep(100_000),
    Item(SKU="a", more=deep(100_000)),
    math.nan,
    Item(SKU="a", more=math.nan),
    [Box(Item(SKU="a", more=[math.inf]))],
    Ratio("nan"),
    {"a": [None, Ratio("inf")]},
    collections.deque([1]),
    Constants(),
    {"a": Constants()},
    {("a",): 1},
    (each for each in ()),
]


@pytest.mark.parametrize("value", UNENCODABLE, ids=lambda value: type(value).__name__)
def test_what_json_has_no_form_for_is_an_error_that_shows_no_value(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        encode_json(value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("value", UNENCODABLE, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("form", ["envelope", "plain"])
def test_it_is_no_reply_either_in_any_form(value: Any, form: str) -> None:
    message: rpcd.Message[Any] = rpcd.Message(properties=Properties(reply_to="amq.gen-x"))
    for each in (value, rpcd.Reply(value)):
        with pytest.raises(ReplyUnencodable, match="the reply can't be encoded: ") as caught:
            Replies(form).success(message, each)
        assert SECRET not in str(caught.value)
    with pytest.raises(ReplyUnencodable):
        Replies(form).failure(message, "no", value)


@pytest.mark.parametrize("inside", [lambda it: it, lambda it: [Box(it)], lambda it: Item(SKU="a", more={"a": Chest(it)})])
def test_the_type_that_has_no_form_is_named_however_deep_it_lies(inside: Any) -> None:
    for value in (rpcd.Secret(SECRET), Opaque()):
        with pytest.raises(TypeError, match=f"^Encoding objects of type {type(value).__name__} is unsupported$"):
            encode_json({"a": Item(SKU="a", more=inside(value))})


def test_a_field_of_the_wrong_type_is_sent_without_a_warning_that_would_show_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert json.loads(encode_json(Item.model_construct(sku=4111)))["SKU"] == 4111


def test_a_model_that_is_not_built_yet_builds_itself() -> None:
    class Deferred(BaseModel):
        model_config = ConfigDict(defer_build=True)
        a: int = 1

    assert encode_json(Deferred.model_construct()) == b'{"a":1}'


def test_a_reply_over_the_limit_is_refused_however_it_was_encoded() -> None:
    message: rpcd.Message[Any] = rpcd.Message(properties=Properties(reply_to="amq.gen-x"))
    for form in ("envelope", "plain"):
        with pytest.raises(ReplyUnencodable, match=re.escape("bytes; max_reply allows 1024")):
            Replies(form, max_reply=1024).success(message, Item(SKU="x" * 1024))


def test_what_is_published_may_be_a_model() -> None:
    message: rpcd.Message[Any] = rpcd.Message()
    message.publish("shop", "item", ITEM)
    message.publish("shop", "item", [Box(ITEM)], content_type="application/vnd.shop+json")
    assert json.loads(message.published[0].body) == SENT
    with pytest.raises(TypeError, match="Encoding objects of type Opaque is unsupported"):
        message.publish("shop", "item", {"a": Opaque()})


class Round(BaseModel):
    """What goes out and comes in as the same."""

    number: int = Field(alias="Number")
    text: str
    when: dt.datetime
    inner: "Round | None" = None
    table: dict[str, float] = {}


ROUNDS = st.recursive(
    st.builds(
        lambda number, text, when, table: Round(Number=number, text=text, when=when, table=table),
        st.integers(-(2**80), 2**80),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.datetimes(timezones=st.just(dt.timezone.utc)),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.floats(allow_nan=False, allow_infinity=False)),
    ),
    lambda inner: st.builds(lambda model: model.model_copy(update={"inner": model}), inner),
    max_leaves=4,
)


@PROPERTY
@given(ROUNDS)
def test_a_model_that_was_sent_arrives_as_it_was(model: Round) -> None:
    assert decode_json(Round)(encode_json(model)) == model
    assert decode_json(list[Round])(encode_json([model])) == [model]
