"""What a body becomes by the type that its handler's annotation names."""

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import re
import sys
import typing
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import annotated_types
import attrs
import msgspec
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from labels import label
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, RootModel
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import PydanticCustomError, PydanticKnownError, core_schema
from typing_extensions import TypedDict

from rpcd.core.bodies import check, decode_json, is_pydantic
from rpcd.core.codec import ANY, JSON, TEXT, Codec
from rpcd.core.errors import BadMessage, BadValue
from rpcd.core.faults import MOST
from rpcd.core.handler import HandlerError, check_body_type

PROPERTY = settings(max_examples=60, deadline=None)

T = typing.TypeVar("T")

SECRET = "4111-1111"


def bad(kind: Any, payload: Any) -> BadMessage:
    with pytest.raises(BadMessage) as caught:
        decode_json(kind)(payload if isinstance(payload, bytes) else json.dumps(payload).encode())
    return caught.value


# Types of rpcd's own ------------------------------------------------------------------------------


class Sealed(typing.Generic[T]):
    """A type of rpcd's own kind: a hook makes its values."""

    __rpcd_opens__ = True

    def __init__(self, kind: Any, value: Any) -> None:
        self.kind = kind
        self.value = value

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, _handler: Any) -> Any:
        return core_schema.with_info_plain_validator_function(lambda value, info: info.context["rpcd"](source, value))


def hook(kind: Any, value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith("sealed:"):
        raise BadValue("not sealed")
    return Sealed(kind, value.removeprefix("sealed:"))


class StructCard(msgspec.Struct):
    number: Sealed[str]


@attrs.define
class AttrsCard:
    number: Sealed[str]


@dataclasses.dataclass
class DataclassCard:
    number: Sealed[str]


class ModelCard(BaseModel):
    number: Sealed[str]


CARDS: list[Any] = [StructCard, AttrsCard, DataclassCard, ModelCard]


@pytest.mark.parametrize("kind", CARDS)
def test_a_hook_makes_the_values_of_types_that_are_rpcds_own(kind: Any) -> None:
    check(list[kind])
    (card,) = decode_json(list[kind], hook)(b'[{"number": "sealed:4111"}]')
    assert (type(card), card.number.kind, card.number.value) == (kind, Sealed[str], "4111")


@pytest.mark.parametrize("kind", CARDS)
def test_a_codec_hands_its_hook_on(kind: Any) -> None:
    codec = Codec([JSON], kind, hook)
    assert codec.decoder(None, None)(b'{"number": "sealed:1"}').number.value == "1"


@pytest.mark.parametrize("kind", CARDS)
def test_what_a_hook_refuses_has_its_place_and_the_hooks_own_words(kind: Any) -> None:
    with pytest.raises(BadMessage) as caught:
        decode_json(list[kind], hook)(b'[{"number": "4111"}]')
    assert (caught.value.place, caught.value.reason) == ("body[0].number", "not sealed")


def test_what_stands_in_a_type_of_rpcds_own_is_the_hooks_affair() -> None:
    assert not is_pydantic(Sealed[ModelCard])
    assert not is_pydantic(list[Sealed[ModelCard]])


# Whose a type is ----------------------------------------------------------------------------------


class Item(BaseModel):
    sku: str
    count: int = 1


class Order(BaseModel):
    customer: str
    items: list[Item] = []


@dataclasses.dataclass
class PlainOrder:
    customer: str
    items: "list[Item]" = dataclasses.field(default_factory=list)


class PlainTuple(NamedTuple):
    customer: str
    item: Item


class OrderDict(TypedDict):
    customer: str
    items: list[Item]


@pydantic_dataclass
class CheckedOrder:
    customer: str = Field(alias="Customer", min_length=2)


class Page(BaseModel, typing.Generic[T]):
    entries: list[T]


class Money:
    """A type that knows pydantic without being its own."""

    def __init__(self, text: str) -> None:
        self.text = text

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


class Deferred(BaseModel):
    model_config = ConfigDict(defer_build=True)
    customer: str


class Node(BaseModel):
    value: int
    children: "list[Node]" = []


class PlainNode(msgspec.Struct):
    value: int
    children: "list[PlainNode]" = []


OfPydantic = typing.NewType("OfPydantic", Order)

PYDANTIC: list[tuple[Any, Any, Callable[[Any], Any]]] = [
    (Order, {"customer": "ada"}, lambda body: body == Order(customer="ada")),
    (list[Order], [{"customer": "ada"}], lambda body: body == [Order(customer="ada")]),
    (Order | None, None, lambda body: body is None),
    (int | Order, {"customer": "ada"}, lambda body: body == Order(customer="ada")),
    (dict[str, list[Item]], {"a": [{"sku": "b"}]}, lambda body: body == {"a": [Item(sku="b")]}),
    (PlainOrder, {"customer": "ada", "items": [{"sku": "b"}]}, lambda body: body == PlainOrder("ada", [Item(sku="b")])),
    (PlainTuple, ["ada", {"sku": "b"}], lambda body: body == PlainTuple("ada", Item(sku="b"))),
    (
        OrderDict,
        {"customer": "a", "items": [{"sku": "b"}]},
        lambda body: body == {"customer": "a", "items": [Item(sku="b")]},
    ),
    (CheckedOrder, {"Customer": "ada"}, lambda body: body.customer == "ada"),
    (Page[Item], {"entries": [{"sku": "b"}]}, lambda body: body == Page[Item](entries=[Item(sku="b")])),
    (Page, {"entries": [1, "x"]}, lambda body: body.entries == [1, "x"]),
    (RootModel[list[int]], [1, 2], lambda body: body.root == [1, 2]),
    (Money, "1 EUR", lambda body: type(body) is Money and body.text == "1 EUR"),
    (Deferred, {"customer": "ada"}, lambda body: body == Deferred(customer="ada")),
    (Node, {"value": 1, "children": [{"value": 2}]}, lambda body: body.children[0].value == 2),
    (OfPydantic, {"customer": "ada"}, lambda body: body == Order(customer="ada")),
    (Annotated[int, Field(gt=0)], 5, lambda body: body == 5),
    (list[Annotated[int, annotated_types.Gt(0)]], [5], lambda body: body == [5]),
    (pydantic.PositiveInt, 5, lambda body: body == 5),
    (pydantic.HttpUrl, "http://a/", lambda body: str(body) == "http://a/"),
    (dict[str, pydantic.SecretStr], {"a": "b"}, lambda body: body["a"].get_secret_value() == "b"),
]


@pytest.mark.parametrize(
    ("kind", "sent", "right"), PYDANTIC, ids=lambda value: label(value) if not isinstance(value, dict) else ""
)
def test_a_type_with_anything_of_pydantics_in_it_is_decoded_by_pydantic(kind: Any, sent: Any, right: Any) -> None:
    check_body_type("shop:it", kind)
    assert is_pydantic(kind)
    assert right(decode_json(kind)(json.dumps(sent).encode()))


First = dataclasses.make_dataclass("First", [(f"field{n}", f"list[tuple[int, {n}]]") for n in range(50)])


@dataclasses.dataclass
class Second:
    values: "list[Order]"


def test_a_model_is_found_in_whichever_part_has_it() -> None:
    """Annotations that are text are made anew whenever they are looked at: none may pass for one that was seen before."""
    assert is_pydantic(tuple[First, Second])
    assert is_pydantic(tuple[Second, First])
    assert not is_pydantic(tuple[First, First])


class Kind(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int = 0


class Partial(typing.TypedDict, total=False):
    a: int


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str


@attrs.define
class Box:
    inside: "dict[str, Point]"


MSGSPEC: list[tuple[Any, Any, Any]] = [
    (Point, [1, 2], Point(1, 2)),
    (Partial, {}, {}),
    (Box, {"inside": {"a": [1]}}, Box({"a": Point(1)})),
    (Cat | Dog, {"type": "Dog", "name": "rex"}, Dog("rex")),
    (PlainNode, {"value": 1, "children": [{"value": 2}]}, PlainNode(1, [PlainNode(2)])),
    (Kind, "red", Kind.RED),
    (Literal["a", "b"], "b", "b"),
    (int | str | None, "x", "x"),
    (tuple[int, str], [1, "x"], (1, "x")),
    (frozenset[int], [1, 1], frozenset([1])),
    (dt.datetime, "2026-01-02T03:04:05Z", dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc)),
    (dt.date, "2026-01-02", dt.date(2026, 1, 2)),
    (dt.timedelta, "PT1M", dt.timedelta(minutes=1)),
    (uuid.UUID, "0" * 32, uuid.UUID(int=0)),
    (decimal.Decimal, "1.10", decimal.Decimal("1.10")),
    (decimal.Decimal, 1.1, decimal.Decimal("1.1")),
    (dict[str, bytes], {"a": "YQ=="}, {"a": b"a"}),
    (dict[int, float], {"1": 2}, {1: 2.0}),
    (Annotated[int, msgspec.Meta(gt=0)], 5, 5),
    (msgspec.Raw, [1], b"[1]"),
    (collections.abc.Sequence[int], [1], [1]),
]


@pytest.mark.parametrize(
    ("kind", "sent", "body"), MSGSPEC, ids=lambda value: "" if isinstance(value, dict) else label(value)
)
def test_every_other_type_is_decoded_by_msgspec(kind: Any, sent: Any, body: Any) -> None:
    check_body_type("shop:it", kind)
    assert not is_pydantic(kind)
    found = decode_json(kind)(json.dumps(sent).encode())
    assert (bytes(found) if isinstance(found, msgspec.Raw) else found) == body


@attrs.define
class AttrsWithModel:
    order: Order


class Nowhere(BaseModel):
    order: "NowhereToBeFound"  # type: ignore[name-defined]  # noqa: F821


class Odd:
    pass


class OldDict(typing.TypedDict):
    item: Item


class Wild(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    odd: Odd


REFUSED: list[tuple[Any, str]] = [
    (AttrsWithModel, "Unable to generate pydantic-core schema for <class '[^']*AttrsWithModel'>"),
    (Nowhere, "name 'NowhereToBeFound' is not defined"),
    (list[Nowhere], "name 'NowhereToBeFound' is not defined"),
    (Order | Odd, "Unable to generate pydantic-core schema for <class '[^']*Odd'>"),
    (Annotated[list[Order], msgspec.Meta(min_length=1)], "knows nothing of msgspec.Meta; write pydantic.Field"),
    (Odd, "use a dataclass, attrs class, TypedDict, NamedTuple, Struct, pydantic model or builtin type"),
    (Annotated[int, msgspec.Meta(pattern="x")], "Can only set `pattern` on a str type"),
    (Sealed[str] | int, "Type unions containing a custom type may not contain"),
]
if sys.version_info < (3, 12):
    REFUSED.append((OldDict, "Please use `typing_extensions.TypedDict` instead"))


@pytest.mark.parametrize(("kind", "said"), REFUSED, ids=[said[:30] for _, said in REFUSED])
def test_a_type_that_neither_can_decode_is_refused_at_start_in_one_line(kind: Any, said: str) -> None:
    with pytest.raises(HandlerError, match=f"^shop:it: a body can't be decoded to .*{said}") as caught:
        check_body_type("shop:it", kind)
    assert "\n" not in str(caught.value)


def test_a_pydantic_that_is_too_old_is_said_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pydantic.TypeAdapter, "rebuild")  # as before 2.10
    with pytest.raises(HandlerError, match=re.escape('is too old for rpcd; pip install "rpcd[pydantic]"')):
        check_body_type("shop:it", Order)


# Faults -------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Tea(BaseModel):
    kind: Literal["tea"]
    grams: int


class Cup(BaseModel):
    kind: Literal["cup"]
    colour: str


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    count: int = 0


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int]


class Parcel(BaseModel):
    """One of everything; what a test does not give has its default."""

    model_config = ConfigDict(validate_by_name=False)
    aliased: int = Field(1, alias="Aliased", gt=0)
    within: int = Field(1, validation_alias=AliasPath("deep", 0, "within"))
    either: int = Field(1, validation_alias=AliasChoices("one", AliasPath("two", "three")))
    items: list[Item] = []
    union: Tea | Cup | int = 1
    tagged: Annotated[Tea | Cup, Field(discriminator="kind")] | None = None
    prices: dict[str, int] = {}
    by_number: dict[int, Item] = {}
    node: Node | None = None
    point: Point = Point(1)
    entry: OrderDict | None = None
    plain: PlainOrder | None = None
    checked: CheckedOrder | None = None
    strict: Strict = Strict()
    open: Open = Open()
    colour: Colour = Colour.RED
    literal: Literal["red", 1] = 1
    pair: tuple[int, str] = (1, "")
    numbers: tuple[int, ...] = ()
    unique: set[int] = set()
    text: pydantic.Json[list[int]] = []
    amount: decimal.Decimal = Field(decimal.Decimal(1), gt=decimal.Decimal("0.5"), max_digits=3)
    day: dt.date = Field(dt.date(2026, 1, 1), ge=dt.date(2020, 1, 1))
    code: str = Field("abc", min_length=3, max_length=5, pattern="^[a-z]+$")
    few: list[int] = Field([], max_length=2)
    url: pydantic.HttpUrl | None = None
    root: RootModel[list[int]] | None = None
    ratio: float = Field(1, gt=0, allow_inf_nan=False)
    id: pydantic.UUID4 | None = None
    hidden: pydantic.SecretStr | None = None
    money: Money | None = None


INTEGER = "Input should be a valid integer"

FAULTS: list[tuple[Any, dict[str, str]]] = [
    ({"Aliased": 0}, {"body.Aliased": "Input should be greater than 0"}),
    ({"deep": [{"within": SECRET}]}, {"body.deep[0].within": INTEGER}),
    ({"one": SECRET}, {"body.one": INTEGER}),
    ({"two": {"three": SECRET}}, {"body.two.three": INTEGER}),
    ({"items": [{"sku": "a"}, {"sku": 1, "count": SECRET}]}, {
        "body.items[1].sku": "Input should be a valid string", "body.items[1].count": INTEGER}),
    ({"items": {SECRET: 1}}, {"body.items": "Input should be a valid array"}),
    ({"items": [SECRET]}, {"body.items[0]": "Input should be an object"}),
    ({"union": {"kind": "tea", "grams": SECRET}}, {
        "body.union.grams": INTEGER, "body.union.kind": "Input should be 'cup'", "body.union.colour": "Field required",
        "body.union": INTEGER}),
    ({"tagged": {"kind": "tea", "grams": SECRET}}, {"body.tagged.grams": INTEGER}),
    ({"tagged": {"kind": SECRET}}, {"body.tagged": "Tag should be one of 'tea', 'cup'"}),
    ({"tagged": {}}, {"body.tagged": "Tag 'kind' required"}),
    ({"prices": {SECRET: SECRET}}, {"body.prices[...]": INTEGER}),
    ({"prices": {"union": SECRET}}, {"body.prices[...]": INTEGER}),
    ({"by_number": {SECRET: {"sku": "a"}}}, {"body.by_number[...]": INTEGER}),
    ({"by_number": {"41111": {}}}, {"body.by_number[...].sku": "Field required"}),
    ({"node": {"value": 1, "children": [{"value": 2, "children": [{"value": SECRET}]}]}}, {
        "body.node.children[0].children[0].value": INTEGER}),
    ({"point": [SECRET]}, {"body.point[0]": INTEGER}),
    ({"point": {"x": SECRET, SECRET: 1}}, {"body.point.x": INTEGER, "body.point": "Extra inputs are not permitted"}),
    ({"entry": {"customer": "a", "items": [{}]}}, {"body.entry.items[0].sku": "Field required"}),
    ({"plain": {"customer": "a", "items": [{"sku": 1}]}}, {"body.plain.items[0].sku": "Input should be a valid string"}),
    ({"checked": {"Customer": "a"}}, {"body.checked.Customer": "Length should be at least 2"}),
    ({"strict": {"count": "1", SECRET: 1}}, {
        "body.strict.count": INTEGER, "body.strict": "Extra inputs are not permitted"}),
    ({"open": {SECRET: SECRET}}, {"body.open[...]": INTEGER}),
    ({"colour": SECRET}, {"body.colour": "Input should be 'red' or 'blue'"}),
    ({"literal": SECRET}, {"body.literal": "Input should be 'red' or 1"}),
    ({"pair": [SECRET, 1]}, {"body.pair[0]": INTEGER, "body.pair[1]": "Input should be a valid string"}),
    ({"numbers": [1, SECRET]}, {"body.numbers[1]": INTEGER}),
    ({"unique": [SECRET]}, {"body.unique[0]": INTEGER}),
    ({"text": f"[1, {SECRET}"}, {"body.text": "Input should be a string of valid JSON"}),
    ({"text": '["x"]'}, {"body.text[0]": INTEGER}),
    ({"amount": "0.1"}, {"body.amount": "Input should be greater than 0.5"}),
    ({"amount": "4111.1"}, {"body.amount": "Input should have at most 3 digits"}),
    ({"day": "2019-12-31"}, {"body.day": "Input should be greater than or equal to 2020-01-01"}),
    ({"day": SECRET}, {"body.day": "Input should be a valid date"}),
    ({"code": "a"}, {"body.code": "Length should be at least 3"}),
    ({"code": "abcdef"}, {"body.code": "Length should be at most 5"}),
    ({"code": "4111"}, {"body.code": "String should match pattern '^[a-z]+$'"}),
    ({"few": [1, 2, 3]}, {"body.few": "Length should be at most 2"}),
    ({"url": f"ftp://{SECRET}"}, {"body.url": "Scheme of the URL should be 'http' or 'https'"}),
    ({"url": SECRET}, {"body.url": "Input should be a valid URL"}),
    ({"root": [SECRET]}, {"body.root[0]": INTEGER}),
    ({"ratio": -0.5}, {"body.ratio": "Input should be greater than 0"}),
    ({"ratio": "NaN"}, {"body.ratio": "Input should be a finite number"}),
    ({"id": SECRET}, {"body.id": "Input should be a valid UUID"}),
    ({"id": str(uuid.UUID(int=0))}, {"body.id": "Input should be a UUID of version 4"}),
    ({"hidden": 41111111}, {"body.hidden": "Input should be a valid string"}),
    ({"money": 41111111}, {"body.money": "Input should be a valid string"}),
    ([SECRET], {"body": "Input should be an object"}),
    ({"Aliased": SECRET, "prices": {SECRET: 1.5}, "pair": [], "colour": SECRET, "few": SECRET}, {
        "body.Aliased": INTEGER,
        "body.prices[...]": "Input should be a valid integer, got a number with a fractional part",
        "body.colour": "Input should be 'red' or 'blue'",
        "body.pair[0]": "Field required",
        "body.pair[1]": "Field required",
        "body.few": "Input should be a valid array"}),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "faults"), FAULTS, ids=[f"{'+'.join(faults)}{n}" for n, (_, faults) in enumerate(FAULTS)])
def test_every_fault_of_a_model_is_told_with_place_and_reason_and_never_a_value(sent: Any, faults: dict[str, str]) -> None:
    error = bad(Parcel, sent)
    assert dict(error.faults) == faults
    assert (error.place, error.reason) == error.faults[0]
    assert error.more == 0
    assert "4111" not in str(error)


@pytest.mark.parametrize(
    ("plain", "checked", "payload"),
    [
        (PlainNode, Node, b'{"value": 1, "children": [{"value": 2}, {"value": "x"}]}'),
        (PlainNode, Node, b'{"value": 1, "children": [{}]}'),
        (dict[str, list[PlainNode]], dict[str, list[Node]], b'{"4111": [{"value": "x"}]}'),
        (list[dict[str, int]], RootModel[list[dict[str, int]]], b'[{}, {"4111": "x"}]'),
        (PlainNode, Node, b"[]"),
    ],
)
def test_a_place_is_written_the_same_whoever_decodes(plain: Any, checked: Any, payload: bytes) -> None:
    missing = ".value" if payload == b'{"value": 1, "children": [{}]}' else ""  # msgspec names the object that lacks it
    assert bad(checked, payload).place == bad(plain, payload).place + missing


class Exact(msgspec.Struct, forbid_unknown_fields=True):
    """A type that takes no field that it does not know."""

    inside: "Exact | None" = None


@pytest.mark.parametrize(
    ("sent", "place"),
    [
        ({SECRET: 1}, "body"),
        ({"inside": {SECRET: 1}}, "body.inside"),
        ({f"x` - at `$.{SECRET}": 1}, "body"),
        ({f"x` - at `${SECRET}": 1}, "body"),
        ({f"x - at `$ {SECRET}": 1}, "body"),
        ({"inside": {f"x` - at `$.{SECRET}": 1}}, "body.inside"),
    ],
)
def test_a_key_that_nobody_knows_is_not_told_whatever_it_looks_like(sent: Any, place: str) -> None:
    found = bad(Exact, sent)
    assert (found.place, found.reason) == (place, "Object contains unknown field")


def raising(error: Callable[[Any], BaseException]) -> Any:
    """Return a model whose field is never right."""

    def refuse(value: Any) -> Any:
        raise error(value)

    return pydantic.create_model("Refusing", field=(Annotated[str, pydantic.AfterValidator(refuse)], ...))


@pytest.mark.parametrize(
    "error",
    [
        lambda value: ValueError(f"{value} is blocked"),
        lambda value: AssertionError(f"{value} is blocked"),
        lambda value: PydanticCustomError("blocked", "{value} is blocked", {"value": value}),
        lambda value: PydanticCustomError("int_type", "{value} is blocked", {"value": value}),
        lambda value: PydanticCustomError("value_error", "{error}", {"error": value}),
        lambda value: PydanticKnownError("string_pattern_mismatch", {"pattern": value}),
        lambda value: PydanticKnownError("literal_error", {"expected": value}),
        lambda value: PydanticKnownError("greater_than", {"gt": 41111111}),
        lambda value: UnicodeDecodeError("utf-8", value.encode(), 0, 1, value),
    ],
)
def test_what_a_validator_says_is_not_sent_on(error: Any) -> None:
    found = bad(raising(error), {"field": SECRET})
    assert found.place == "body.field"
    assert found.reason in ("not valid", INTEGER)
    assert "4111" not in str(found)


def test_a_limit_of_the_type_is_shown_and_the_same_number_from_elsewhere_is_not() -> None:
    class Between(BaseModel):
        low: int = Field(ge=10)
        high: int

        @pydantic.field_validator("high")
        @classmethod
        def above(cls, high: int, info: Any) -> int:
            raise PydanticKnownError("greater_than", {"gt": info.data.get("low", 4111)})

    assert bad(Between, {"low": 4111, "high": 1}).reason == "not valid"
    assert bad(Between, {"low": 1, "high": 1}).reason == "Input should be greater than or equal to 10"


def _refused(value: str) -> str:
    raise BadValue("customers are at least 18")


class OwnWordsModel(BaseModel):
    name: str
    _check = pydantic.field_validator("name")(_refused)


class OwnWordsStruct(msgspec.Struct):
    name: str

    def __post_init__(self) -> None:
        _refused(self.name)


@attrs.define
class OwnWordsAttrs:
    name: str = attrs.field(validator=lambda _self, _field, value: _refused(value))


@pytest.mark.parametrize(
    ("kind", "place"), [(OwnWordsModel, "body[0].name"), (OwnWordsStruct, "body[0]"), (OwnWordsAttrs, "body[0]")]
)
def test_what_a_type_says_with_bad_value_is_sent_on_as_it_is(kind: Any, place: str) -> None:
    found = bad(list[kind], [{"name": SECRET}])
    assert (found.place, found.reason) == (place, "customers are at least 18")


@pytest.mark.parametrize("error", [KeyError, SystemExit, OSError, ZeroDivisionError, KeyboardInterrupt, BadMessage])
def test_what_else_a_validator_raises_comes_through_as_if_the_handler_had_raised_it(error: Any) -> None:
    raised = error("body.field", "said by hand") if error is BadMessage else error("4111")
    with pytest.raises(error) as caught:
        decode_json(raising(lambda _value: raised))(b'{"field": "a"}')
    assert caught.value is raised


def test_a_validator_that_recurses_for_ever_is_a_bad_message() -> None:
    def again(value: Any) -> Any:
        return again(value)

    kind = pydantic.create_model("Endless", field=(Annotated[str, pydantic.AfterValidator(again)], ...))
    assert str(bad(kind, {"field": "a"})) == "body: JSON is nested too deeply"


def test_faults_are_told_once_and_no_more_than_anybody_reads() -> None:
    error = bad(Order, {"customer": "a", "items": [{"sku": 1}] * 50})
    assert [place for place, _ in error.faults] == [f"body.items[{n}].sku" for n in range(MOST)]
    assert error.more == 30
    assert len(str(error)) < 1000
    told = str(error).count(": ")
    assert str(error).endswith(f"; and {50 - told} more")


def test_a_flood_of_faults_is_counted_instead_of_looked_at() -> None:
    assert str(bad(list[Item], [1] * 20_000)) == "body: not valid in 20000 places"


def test_the_words_of_long_types_are_cut() -> None:
    kind = pydantic.create_model("Long", **{"x" * 1000: (Literal[tuple(map(str, range(1000)))], ...)})  # type: ignore[call-overload]
    error = bad(kind, {"x" * 1000: "no"})
    assert (len(error.place), len(error.reason)) == (200, 200)


# Strict JSON --------------------------------------------------------------------------------------


class Loose(BaseModel):
    number: float = 0
    anything: Any = None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b'{"number": NaN}',
        b'{"number": Infinity}',
        b'{"anything": -Infinity}',
        b'{"number": 1e999}',
        b'{"anything": "\\ud800"}',
        b'{"anything": "\xff"}',
        b'{"\xff": 1}',
        b'{"anything": ' + b"1" * 10_000 + b"}",
        b'{"number": 1} ',
        b'{"number": 1}x',
        b'{"number": 01}',
        b"\xef\xbb\xbf{}",
        b'{"anything": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"anything": ' + b"[" * 300 + b"]" * 300 + b"}",
    ],
    ids=lambda payload: repr(payload[:24]),
)
def test_a_model_takes_no_json_that_other_types_would_not_take(payload: bytes) -> None:
    if payload == b'{"number": 1} ':
        assert decode_json(Loose)(payload).number == 1
    else:
        error = bad(Loose, payload)
        assert error.place.startswith("body")
        assert error.reason != "not valid"


def test_the_last_of_equal_keys_counts_for_a_model_too() -> None:
    assert decode_json(Loose)(b'{"number": 1, "number": 2}').number == decode_json(Any)(b'{"a": 1, "a": 2}')["a"] == 2


def test_a_model_is_as_strict_as_its_own_config_says() -> None:
    class Exact(BaseModel):
        model_config = ConfigDict(strict=True)
        count: int
        at: dt.datetime  # in JSON, text is what a strict model takes

    assert decode_json(Item)(b'{"sku": "a", "count": "5"}').count == 5
    assert decode_json(Exact)(b'{"count": 5, "at": "2026-01-01T00:00:00Z"}').at.year == 2026
    assert bad(Exact, {"count": "5", "at": "2026-01-01T00:00:00Z"}).place == "body.count"


def test_each_message_has_a_context_of_its_own() -> None:
    seen = []

    class Curious(BaseModel):
        field: int

        @pydantic.field_validator("field")
        @classmethod
        def look(cls, value: int, info: Any) -> int:
            seen.append(dict(info.context))
            info.context["mine"] = value
            return value

    decode = decode_json(Curious)
    decode(b'{"field": 1}')
    decode(b'{"field": 2}')
    assert seen == [{"rpcd": None}, {"rpcd": None}]


# Other content types ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [int, Order, list[str], Kind])
def test_text_is_of_the_type_that_was_asked_for_or_a_bad_message(kind: Any) -> None:
    decode = Codec([JSON, TEXT], kind).decoder(TEXT, None)
    if kind is Kind:
        assert decode(b"red") is Kind.RED
    with pytest.raises(BadMessage, match=r"^body: (Expected|Input should|Invalid enum value)"):
        decode(b"4111")


def test_text_is_text_to_whoever_asks_for_text() -> None:
    assert Codec([TEXT], str).decoder(None, None)('a "ä"'.encode()) == 'a "ä"'
    assert Codec([TEXT]).decoder(None, None)(b"a") == "a"


@pytest.mark.parametrize("kind", [str, Order, dict[str, int]])
def test_bytes_are_no_body_of_another_type(kind: Any) -> None:
    with pytest.raises(BadMessage, match="content_type: bytes can't be what the handler's annotation asks for"):
        Codec([ANY], kind).decoder("image/png", None)(b"\x00")
    assert Codec([ANY], Any).decoder("image/png", None)(b"\x00") == b"\x00"


# Whatever comes -----------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).map(lambda text: f"4111{text}")
NAMES = st.sampled_from([*Parcel.model_fields, "Aliased", "deep", "one", "two", "sku", "kind", "customer", "value"]) | TEXTS
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
KINDS: list[Any] = [Parcel, Node, Page[Item], dict[str, Order], Order | None, PlainOrder, PlainNode, Box, Cat | Dog, Point]
DECODERS = [(kind, decode_json(kind)) for kind in KINDS]


@PROPERTY
@given(st.dictionaries(NAMES, VALUES, max_size=4) | VALUES)
@example({"prices": {"4111key": "4111value"}})
def test_any_json_is_of_the_type_or_a_bad_message_without_a_word_of_it(sent: Any) -> None:
    payload = json.dumps(sent).encode()
    for kind, decode in DECODERS:
        error: BadMessage | None = None
        try:
            body = decode(payload)
        except BadMessage as caught:
            error = caught
        if error is None:
            assert kind is not Parcel or type(body) is Parcel
        else:
            assert error.place.startswith("body")
            assert "4111" not in f"{error} {error.faults}"
