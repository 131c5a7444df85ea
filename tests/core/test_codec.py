import dataclasses
import enum
import json
import random
import re
import typing
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from labels import label

from rpcd.core.bodies import decode_json
from rpcd.core.codec import ANY, JSON, Codec, check_encoding, decode_raw, decode_text, encode_body
from rpcd.core.encoding import encode_json
from rpcd.core.errors import BadMessage

PROPERTY = settings(max_examples=40, deadline=None)

SECRET = "4111-1111"


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class DataclassOrder:
    customer: str
    items: list[int] = dataclasses.field(default_factory=list)


@attrs.define
class AttrsOrder:
    customer: str
    items: list[int] = attrs.field(factory=list)


class StructOrder(msgspec.Struct):
    customer: str
    items: list[int] = []


class TypedDictOrder(typing.TypedDict):
    customer: str
    items: list[int]


class StrictOrder(msgspec.Struct, forbid_unknown_fields=True):
    customer: str = ""


class Card(msgspec.Struct, tag="card"):
    number: str = ""


class Cash(msgspec.Struct, tag="cash"):
    amount: int = 0


@attrs.define
class ValidatedOrder:
    amount: int = attrs.field(validator=attrs.validators.lt(5))


@dataclasses.dataclass
class PickyOrder:
    customer: str

    def __post_init__(self) -> None:
        raise ValueError(f"{self.customer} is blocked")


def bad(kind: Any, payload: bytes) -> BadMessage:
    with pytest.raises(BadMessage) as caught:
        decode_json(kind)(payload)
    return caught.value


# Strict JSON --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        (b"{}", {}),
        (b"null", None),
        (b"1", 1),
        (b'"text"', "text"),
        (b"[1, 2.5, true, null]", [1, 2.5, True, None]),
        (b' {"a": {"b": []}}\n', {"a": {"b": []}}),
        (b'{"a": 1, "a": 2}', {"a": 2}),  # the last counts, as in Python's own
        ('{"ä": "€"}'.encode(), {"ä": "€"}),
        (b'"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
    ],
)
def test_any_json_value_is_a_body(payload: bytes, value: Any) -> None:
    assert decode_json(Any)(payload) == value


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"   ",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b'{"a": 1,}',
        b"[1,]",
        b"{'a': 1}",
        b'{"a": 1',
        b"1 2",
        b"{} {}",
        b"01",
        b'"\x01"',
        b"// comment\n1",
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b"1e999",
        b"1" * 10**6,
        b"-" + b"1" * 5000,
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'{"\xff": 1}',
        b"\xff",
        random.Random(1).randbytes(64),
    ],
    ids=lambda payload: repr(payload[:12]),
)
def test_what_is_no_json_is_a_bad_message_and_nothing_worse(payload: bytes) -> None:
    assert bad(Any, payload).place == "body"


def test_an_empty_body_is_said_to_be_empty() -> None:
    assert str(bad(Any, b"")) == "body: empty"


def test_deep_nesting_is_said_to_be_deep() -> None:
    assert str(bad(Any, b"[" * 100_000)) == "body: JSON is nested too deeply"


@PROPERTY
@given(st.binary(max_size=40) | st.text(st.sampled_from('{}[]",:01eE-.tfn\\u '), max_size=40).map(str.encode))
@example(b'["\xff"]')
def test_arbitrary_bytes_are_a_value_or_a_bad_message(payload: bytes) -> None:
    refused: str | None = None
    try:
        value = decode_json(Any)(payload)
    except BadMessage as error:
        refused = error.place
    assert refused == "body" if refused is not None else value == json.loads(payload)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=10,
)


@PROPERTY
@given(JSON_VALUES)
def test_what_is_encoded_is_decoded_as_it_was(value: Any) -> None:
    assert decode_json(Any)(encode_json(value)) == value


# Typed bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DataclassOrder, AttrsOrder, StructOrder])
def test_a_class_is_filled_from_the_body(kind: Any) -> None:
    assert decode_json(kind)(b'{"customer": "ann", "items": [1], "more": 1}') == kind(customer="ann", items=[1])


def test_a_typed_dict_is_filled_from_the_body() -> None:
    assert decode_json(TypedDictOrder)(b'{"customer": "ann", "items": [1]}') == {"customer": "ann", "items": [1]}


@pytest.mark.parametrize("kind", [DataclassOrder, AttrsOrder, StructOrder, TypedDictOrder])
@pytest.mark.parametrize(
    ("payload", "place", "reason"),
    [
        (b'{"items": []}', "body", "Object missing required field `customer`"),
        (b'{"customer": 4111}', "body.customer", "Expected `str`, got `int`"),
        (b'{"customer": "ann", "items": [1, "4111"]}', "body.items[1]", "Expected `int`, got `str`"),
        (b"[4111]", "body", "Expected `object`, got `array`"),
        (b"null", "body", "Expected `object`, got `null`"),
    ],
)
def test_a_wrong_shape_says_place_and_reason_and_never_a_value(kind: Any, payload: bytes, place: str, reason: str) -> None:
    error = bad(kind, payload)
    assert (error.place, error.reason) == (place, reason)
    assert "4111" not in str(error)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Colour, f'"{SECRET}"'),
        (dict[str, Colour], f'{{"colour": "{SECRET}"}}'),
        (typing.Literal["red", "blue"], f'"{SECRET}"'),
        (typing.Literal[1, 2], "41111111"),
        (Card | Cash, f'{{"type": "{SECRET}"}}'),
        (StrictOrder, f'{{"{SECRET}": 1}}'),
        (ValidatedOrder, '{"amount": 41111111}'),
        (PickyOrder, f'{{"customer": "{SECRET}"}}'),
        (dict[int, int], f'{{"{SECRET}": 1}}'),
        (dict[str, int], f'{{"{SECRET}": "{SECRET}"}}'),
        (int, f'"{SECRET}"'),
        (typing.Annotated[str, msgspec.Meta(pattern="^x$")], f'"{SECRET}"'),
        (typing.Annotated[int, msgspec.Meta(lt=5)], "41111111"),
    ],
    ids=["enum", "nested enum", "literal", "number literal", "tag", "unknown field", "attrs validator", "own validation",
         "key", "value", "type", "pattern", "bound"],
)  # fmt: skip
def test_no_error_of_any_type_shows_a_value_of_the_body(kind: Any, payload: str) -> None:
    error = str(bad(kind, payload.encode()))
    assert SECRET not in error
    assert "41111111" not in error


def test_a_value_that_looks_like_a_place_is_not_taken_for_one() -> None:
    assert bad(dict[str, Colour], b'{"colour": "x - at `$.elsewhere`"}').place == "body[...]"


def test_a_type_that_cannot_be_decoded_to_is_a_type_error_at_start() -> None:
    with pytest.raises(TypeError):
        decode_json(DataclassOrder | AttrsOrder)


# Content types ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "content_type", "payload", "body"),
    [
        ([JSON], JSON, b"[1]", [1]),
        ([JSON], None, b"[1]", [1]),
        ([JSON], "application/json; charset=utf-8", b"[1]", [1]),
        ([JSON], 'Application/JSON;charset="UTF-8"', b"[1]", [1]),
        ([JSON], "application/json;charset=utf8", b"[1]", [1]),
        ([JSON], "application/json;charset=us-ascii", b"[1]", [1]),
        ([JSON], "application/json; version=1", b"[1]", [1]),
        (["application/vnd.shop+json"], "application/vnd.shop+json", b"[1]", [1]),
        (["text/plain"], "text/plain", "ä".encode(), "ä"),
        (["text/csv"], "text/csv", b"1,2", "1,2"),
        (["text/plain", JSON], None, b"[1]", "[1]"),
        (["text/plain", JSON], JSON, b"[1]", [1]),
        (["application/octet-stream"], "application/octet-stream", b"\xff", b"\xff"),
        (["image/png"], None, b"\x89PNG", b"\x89PNG"),
        ([ANY], None, b"\xff", b"\xff"),
        ([ANY], "image/png", b"\xff", b"\xff"),
        ([ANY], JSON, b"[1]", [1]),
        ([ANY], "text/plain", b"1", "1"),
        ([ANY], b"\xff", b"1", b"1"),
        ([JSON, ANY], None, b"[1]", [1]),
        ([JSON, ANY], "image/png", b"[1]", b"[1]"),
    ],
)
def test_the_content_type_decides_how_a_body_is_decoded(
    accept: list[str], content_type: Any, payload: bytes, body: Any
) -> None:
    decoded = Codec(accept).decoder(content_type, None)(payload)
    assert (decoded, type(decoded)) == (body, type(body))


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/xml",
        "application/vnd.shop+json",
        "json",
        "*/*",
        b"\xff",
        b"application/json",
        "application/json, text/plain",
        "application/x-python-serialize",
        "\x00",
    ],
)
def test_a_content_type_that_is_not_accepted_is_a_bad_message_that_says_what_is(content_type: Any) -> None:
    with pytest.raises(BadMessage, match=re.escape("content_type: not accepted here; accepted: application/json")):
        Codec([JSON]).decoder(content_type, None)


@pytest.mark.parametrize("charset", ["latin-1", "utf-7", "utf-16", "rot13", "idna", ""])
def test_any_charset_but_utf8_is_refused(charset: str) -> None:
    with pytest.raises(BadMessage, match="only the charset utf-8 is accepted"):
        Codec([JSON, ANY]).decoder(f"application/json; Charset={charset}", None)


@pytest.mark.parametrize("encoding", [None, "", "utf-8", "UTF-8", "utf8", " identity "])
def test_an_encoding_that_changes_nothing_is_accepted(encoding: Any) -> None:
    assert Codec([JSON]).decoder(JSON, encoding)(b"1") == 1


@pytest.mark.parametrize(
    "encoding", ["gzip", "deflate", "br", "zstd", "base64", "utf-16", "gzip, identity", b"\xff", b"utf-8"]
)
def test_nothing_is_unpacked_unasked(encoding: Any) -> None:
    with pytest.raises(BadMessage, match="content_encoding: not accepted here"):
        Codec([ANY]).decoder(JSON, encoding)
    with pytest.raises(BadMessage, match="content_encoding: not accepted here"):
        check_encoding(encoding)


def test_text_that_is_no_utf8_is_a_bad_message_that_names_the_byte() -> None:
    with pytest.raises(BadMessage, match=re.escape("body: not UTF-8 (byte 2)")):
        decode_text(b"ab\xff")


def test_raw_bytes_are_the_very_bytes_that_came() -> None:
    payload = b"\x00\xff"
    assert decode_raw(payload) is payload


def test_a_handler_that_wants_bytes_gets_them_whatever_the_type() -> None:
    codec = Codec([JSON, "text/plain"], bytes)
    assert [codec.decoder(kind, None)(b"\xff") for kind in (None, JSON, "text/plain")] == [b"\xff"] * 3


def test_a_handler_that_wants_a_class_gets_it() -> None:
    assert Codec([JSON], StructOrder).decoder(None, None)(b'{"customer": "ann"}') == StructOrder("ann")


# Encoding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "encoded"),
    [
        (b"\xff", None, (b"\xff", "application/octet-stream")),
        (bytearray(b"a"), None, (b"a", "application/octet-stream")),
        (memoryview(b"a"), "image/png", (b"a", "image/png")),
        (b"{}", JSON, (b"{}", JSON)),
        ("ä", "text/plain", ("ä".encode(), "text/plain")),
        ("ä", None, ('"ä"'.encode(), JSON)),
        ("ä", JSON, ('"ä"'.encode(), JSON)),
        ({"a": 1}, None, (b'{"a":1}', JSON)),
        ({"a": 1}, "application/vnd.shop+json", (b'{"a":1}', "application/vnd.shop+json")),
        (None, None, (b"null", JSON)),
        (StructOrder("ann"), None, (b'{"customer":"ann","items":[]}', JSON)),
        (DataclassOrder("ann"), None, (b'{"customer":"ann","items":[]}', JSON)),
    ],
)
def test_bytes_stay_text_goes_as_text_and_the_rest_is_json(
    body: Any, content_type: str | None, encoded: tuple[bytes, str]
) -> None:
    assert encode_body(body, content_type) == encoded


@pytest.mark.parametrize("value", [object(), {("a",): 1}, 1j, ValueError("x"), lambda: None], ids=label)
def test_a_value_that_json_has_no_form_for_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError):
        encode_json(value)


def test_a_value_that_contains_itself_is_a_value_error() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="nested too deeply, or contains itself"):
        encode_json(value)


@pytest.mark.parametrize(("body", "content_type"), [("\ud800", None), ("\ud800", "text/plain"), ({"\ud800": 1}, None)])
def test_text_with_lone_surrogates_is_a_value_error(body: Any, content_type: str | None) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        encode_body(body, content_type)


@pytest.mark.parametrize("value", [float("nan"), {"a": [1, {"b": float("inf")}]}, (None, -float("inf"))], ids=repr)
def test_what_json_has_no_form_for_does_not_become_null(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON has no form for"):
        encode_json(value)
    assert encode_json({"a": [None, 1.5]}) == b'{"a":[null,1.5]}'
