"""Questions to other services: what a request carries, and how replies are read or refused."""

import contextlib
import dataclasses
import math
from typing import Any, Optional

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcd.core.errors import BadReply, CallError, CallFailed, CallTimeout
from rpcd.core.question import question, reader
from rpcd.core.wire import Properties, read_properties

JSON = Properties(content_type="application/json")


@attrs.define
class Price:
    of: str
    cents: int


@dataclasses.dataclass
class Nothing:
    note: str = "none"


def envelope(data: str, success: str = "true", message: str = "null") -> bytes:
    return f'{{"success":{success},"data":{data},"message":{message}}}'.encode()


def test_a_request_carries_all_that_the_other_side_needs() -> None:
    asked = question("shop", "price", {"of": "tea"}, timeout=5, headers={"tenant": "north"}, type="ask", priority=3)
    request = asked.outgoing("id-1", 2.5, 1_700_000_000.9)
    properties = read_properties(request.properties)
    assert (request.exchange, request.routing_key, request.body) == ("shop", "price", b'{"of":"tea"}')
    assert request.mandatory
    assert (properties.reply_to, properties.correlation_id) == ("amq.rabbitmq.reply-to", "id-1")
    assert properties.message_id == "id-1"  # without one, a redelivered request would run again
    assert (properties.expiration, properties.timestamp) == ("2500", 1_700_000_000)
    assert (properties.headers, properties.type, properties.priority) == ({"tenant": "north"}, "ask", 3)


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf])
def test_a_timeout_is_a_time(timeout: float) -> None:
    with pytest.raises(ValueError, match="a timeout is a number of seconds above 0"):
        question("", "q", None, timeout=timeout)


@pytest.mark.parametrize("name", ["correlation_id", "reply_to", "expiration", "mandatory", "timestamp"])
def test_what_a_call_decides_itself_can_not_be_given(name: str) -> None:
    with pytest.raises(TypeError, match=f"a call has its own {name}"):
        question("", "q", None, **{name: 1})


def test_a_type_that_nobody_can_read_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(TypeError):
        question("", "q", None, reply_type=question)


READ = [
    (Any, '{"a":1}', {"a": 1}),
    (Any, '{"result":1}', {"result": 1}),
    (Any, "{}", {}),
    (Any, "null", {}),
    (dict[str, int], '{"a":1}', {"a": 1}),
    (Price, '{"of":"tea","cents":2}', Price("tea", 2)),
    (Nothing, "{}", Nothing()),
    (Nothing, "null", Nothing()),
    (int, '{"result":3}', 3),
    (str, '{"result":"a"}', "a"),
    (bool, '{"result":true}', True),
    (list[int], '{"result":[1,2]}', [1, 2]),
    (list[Price], '{"result":[{"of":"tea","cents":2}]}', [Price("tea", 2)]),
    (Optional[int], '{"result":3}', 3),  # noqa: UP045  # as users write it
    (Price | None, '{"of":"tea","cents":2}', Price("tea", 2)),
]


@pytest.mark.parametrize(("kind", "data", "value"), READ)
def test_the_data_of_an_envelope_is_what_was_asked_for(kind: Any, data: str, value: Any) -> None:
    assert reader(kind, plain=False)(envelope(data), JSON) == value


def test_an_envelope_may_have_less_or_more_than_rpcds_own() -> None:
    assert reader(Any, plain=False)(b'{"success":true}', Properties()) == {}
    assert reader(int, plain=False)(b'{"data":{"result":1},"success":true,"version":2}', Properties()) == 1


REFUSED = [
    (Any, b"", "reply: empty; plain=True takes replies without an envelope"),
    (Any, b"{", "reply: Input data was truncated; plain=True takes replies without an envelope"),
    (Any, b"[1]", "reply: Expected `object`, got `array`; plain=True takes replies without an envelope"),
    (Any, b'{"a":1}', "reply: Object missing required field `success`; plain=True takes replies without an envelope"),
    (Any, b'{"success":1}', "reply.success: Expected `bool`, got `int`; plain=True takes replies without an envelope"),
    (Price, envelope('{"of":"tea","cents":"CANARY"}'), "reply.data.cents: Expected `int`, got `str`"),
    (Price, envelope("{}"), "reply.data: Object missing required field `of`"),
    (int, envelope('{"result":"CANARY"}'), "reply.data.result: Expected `int`, got `str`"),
    (int, envelope('{"sum":1}'), "reply.data: Object missing required field `result`"),
    (list[Price], envelope('{"result":[{"of":1}]}'), "reply.data.result[0].of: Expected `str`, got `int`"),
]


@pytest.mark.parametrize(("kind", "body", "text"), REFUSED)
def test_a_reply_that_is_no_such_thing_is_refused_by_place_and_reason(kind: Any, body: bytes, text: str) -> None:
    with pytest.raises(BadReply) as caught:
        reader(kind, plain=False)(body, JSON)
    assert str(caught.value) == text
    assert isinstance(caught.value, CallError)


@pytest.mark.parametrize("plain", [True, False])
def test_a_failure_is_raised_with_its_message_and_data(plain: bool) -> None:
    with pytest.raises(CallFailed, match="no tea") as caught:
        reader(Price, plain)(envelope('{"of":"CANARY"}', "false", '"no tea"'), JSON)
    assert (caught.value.message, caught.value.data) == ("no tea", {"of": "CANARY"})
    assert "CANARY" not in str(caught.value) + repr(caught.value)


def test_a_failure_without_words_has_some() -> None:
    with pytest.raises(CallFailed, match="the service answered that the request failed") as caught:
        reader(Any, plain=False)(envelope("null", "false"), JSON)
    assert (caught.value.message, caught.value.data) == (None, {})


PLAIN = [
    (Any, b'{"a":1}', JSON, {"a": 1}),
    (Any, b"3", Properties(), 3),
    (int, b"3", JSON, 3),
    (Price, b'{"of":"tea","cents":2}', Properties(content_type="application/vnd.shop+json; charset=utf-8"), Price("tea", 2)),
    (Any, b"tea", Properties(content_type="text/plain"), "tea"),
    (str, b"tea", Properties(content_type="text/plain; charset=utf-8"), "tea"),
    (Any, b"\xff", Properties(content_type="image/png"), b"\xff"),
    (bytes, b"\xff", Properties(content_type="application/json", content_encoding="gzip"), b"\xff"),
    (Any, b'{"success":false,"reason":"none"}', JSON, {"success": False, "reason": "none"}),
    (Any, b'{"success":true,"data":{},"message":null}', JSON, {"success": True, "data": {}, "message": None}),
]


@pytest.mark.parametrize(("kind", "body", "properties", "value"), PLAIN)
def test_a_plain_reply_is_what_its_content_type_says(kind: Any, body: bytes, properties: Properties, value: Any) -> None:
    assert reader(kind, plain=True)(body, properties) == value


@pytest.mark.parametrize(
    ("kind", "body", "properties", "text"),
    [
        (Any, b"", JSON, "reply: empty"),
        (int, b'"CANARY"', JSON, "reply: Expected `int`, got `str`"),
        (Price, b"CANARY", Properties(content_type="text/plain"), "reply.content_type: no JSON"),
        (
            Any,
            b"1",
            Properties(content_encoding="gzip"),
            "reply.content_encoding: not accepted here; send the body unencoded",
        ),
        (str, b"\xff", Properties(content_type="text/plain"), "reply: not UTF-8 (byte 0)"),
    ],
)
def test_a_plain_reply_that_is_no_such_thing_is_refused(kind: Any, body: bytes, properties: Properties, text: str) -> None:
    with pytest.raises(BadReply) as caught:
        reader(kind, plain=True)(body, properties)
    assert str(caught.value) == text


@given(st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(msgspec.json.encode))
def test_no_reply_raises_anything_but_what_is_promised(body: bytes) -> None:
    for kind in (Any, Price, int, bytes):
        for plain in (True, False):
            with contextlib.suppress(CallFailed, BadReply):
                reader(kind, plain)(body, JSON)


def test_readers_are_built_once_for_each_type() -> None:
    assert reader(Price, plain=False) is reader(Price, plain=False)
    assert reader(Price, plain=True) is not reader(Price, plain=False)


def test_a_timeout_of_a_call_is_a_timeout() -> None:
    assert issubclass(CallTimeout, TimeoutError)


def test_every_fault_of_a_pydantic_model_is_told() -> None:
    model = pydantic.create_model("Model", of=(str, ...), cents=(int, ...))
    good = reader(model, plain=False)(envelope('{"of":"tea","cents":2}'), JSON)
    assert (good.of, good.cents) == ("tea", 2)
    with pytest.raises(BadReply) as caught:
        reader(model, plain=False)(envelope('{"cents":"CANARY"}'), JSON)
    assert {place for place, _reason in caught.value.faults} == {"reply.data.of", "reply.data.cents"}
    assert "CANARY" not in str(caught.value)
