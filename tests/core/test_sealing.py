"""What a handler gets of a body that has something encrypted in it, and what is refused."""

import dataclasses
import json
import typing
from collections.abc import Callable
from typing import Annotated, Any

import attrs
import msgspec
import pydantic
import pytest
from cryptography.fernet import Fernet

import rpcd
from rpcd.core.bodies import check
from rpcd.core.codec import JSON, TEXT
from rpcd.core.consumers import Consumer
from rpcd.core.copies import ARRIVAL_HEADER, replay_copy, retry_copy
from rpcd.core.crypto import EXPIRED, FROM_FUTURE, UNREADABLE, Keyring
from rpcd.core.errors import BadMessage
from rpcd.core.handler import Target
from rpcd.core.keys import SECRET_FIELDS
from rpcd.core.message import Message, delivered
from rpcd.core.policy import Policy
from rpcd.core.reply import Replies
from rpcd.core.retry import Steps
from rpcd.core.routes import Route
from rpcd.core.sealing import NOT_TEXT, NOT_VALID, DatedRoute, Sealing
from rpcd.core.tables import Headers, table
from rpcd.core.wire import Properties, read_properties
from rpcd.testing import Harness

NOW = 1_700_000_000.0
OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))
VALUE = "correct-horse"


def sealed(value: Any, now: float = NOW, key: str = NEW) -> str:
    data = value if isinstance(value, bytes) else value.encode()
    return Fernet(key).encrypt_at_time(data, int(now)).decode()


TOKEN = sealed(VALUE)


def sealing(ttl: float | None = None, **settings: Any) -> Sealing:
    return Sealing(Keyring([NEW, OLD], ttl), Consumer(queue="q", handler="a:b", **settings))


def opening(kind: Any = Any, accept: str = JSON, **settings: Any) -> Callable[[Any], Any]:
    decode = sealing(**settings).codec([accept], kind).decoder(None, None)
    return lambda body: decode(body if isinstance(body, bytes) else json.dumps(body).encode())


def refused(open_body: Callable[[Any], Any], body: Any) -> tuple[str, str]:
    with pytest.raises(BadMessage) as caught:
        open_body(body)
    assert VALUE not in str(caught.value)
    return caught.value.place, caught.value.reason


# Fields that their type says are secret -----------------------------------------------------------


@attrs.define
class AttrsOrder:
    card: rpcd.Secret[str]
    pin: rpcd.Secret[int] | None = None


@dataclasses.dataclass
class DataclassOrder:
    card: rpcd.Secret[str]
    pin: rpcd.Secret[int] | None = None


class StructOrder(msgspec.Struct):
    card: rpcd.Secret[str]
    pin: rpcd.Secret[int] | None = None


class ModelOrder(pydantic.BaseModel):
    card: rpcd.Secret[str]
    pin: rpcd.Secret[int] | None = None


class TableOrder(typing.TypedDict):
    card: rpcd.Secret[str]
    pin: typing.NotRequired[rpcd.Secret[int] | None] if hasattr(typing, "NotRequired") else rpcd.Secret[int] | None


CLASSES: list[Any] = [AttrsOrder, DataclassOrder, StructOrder, ModelOrder]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_secret_field_arrives_as_a_token_and_is_opened(kind: Any) -> None:
    check(kind)
    order = opening(kind)({"card": TOKEN, "pin": sealed("1234", key=OLD)})
    assert (type(order), order.card.reveal(), order.pin.reveal()) == (kind, VALUE, 1234)
    assert order.card.token == TOKEN
    assert VALUE not in repr(order)
    assert opening(kind)({"card": TOKEN, "pin": None}).pin is None
    assert opening(kind)({"card": TOKEN}).pin is None


def test_a_typed_dict_may_have_secrets_too() -> None:
    assert opening(TableOrder)({"card": TOKEN, "pin": sealed("5")}) == {"card": rpcd.Secret(VALUE), "pin": rpcd.Secret(5)}


NO_TOKEN: list[Any] = ["", "plain", VALUE, TOKEN[:-1], TOKEN + "\n", None, 5, True, [], [TOKEN], {}, {"card": TOKEN}]


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("value", NO_TOKEN, ids=range(len(NO_TOKEN)))
def test_what_is_no_token_is_never_taken_for_the_value(kind: Any, value: Any) -> None:
    assert refused(opening(kind), {"card": value}) == ("body.card", UNREADABLE)


def test_pydantic_tells_every_fault_and_no_value() -> None:
    with pytest.raises(BadMessage) as caught:
        opening(ModelOrder)({"card": VALUE, "pin": sealed('"correct-horse"')})
    assert caught.value.faults == (
        ("body.card", UNREADABLE),
        ("body.pin", f"{NOT_VALID}: Expected `int`, got `str`"),
    )


class Card(msgspec.Struct):
    number: str
    cvc: rpcd.Secret[str] | None = None


HELD: list[tuple[Any, str | bytes, Any]] = [
    (rpcd.Secret, VALUE, VALUE),
    (rpcd.Secret[str], "5", "5"),
    (rpcd.Secret[str], '"x"', '"x"'),
    (rpcd.Secret[str], "", ""),
    (rpcd.Secret[bytes], b"\xff\x00", b"\xff\x00"),
    (rpcd.Secret[int], "5", 5),
    (rpcd.Secret[list[str]], '["a"]', ["a"]),
    (rpcd.Secret[str | None], "null", None),
    (rpcd.Secret[Any], '{"a": 1}', {"a": 1}),
    (rpcd.Secret[Annotated[str, msgspec.Meta(min_length=2)]], "ab", "ab"),
    (rpcd.Secret[Card], '{"number": "1"}', Card("1")),
]


@pytest.mark.parametrize(("kind", "holds", "value"), HELD, ids=range(len(HELD)))
def test_a_token_holds_text_bytes_or_json_as_the_type_says(kind: Any, holds: Any, value: Any) -> None:
    (secret,) = opening(list[kind])([sealed(holds)])
    assert secret.reveal() == value


@pytest.mark.parametrize(
    ("kind", "holds", "reason"),
    [
        (rpcd.Secret[str], b"\xff", NOT_TEXT),
        (rpcd.Secret[int], VALUE, f"{NOT_VALID}: JSON is malformed: invalid character (byte 0)"),
        (rpcd.Secret[int], '"correct-horse"', f"{NOT_VALID}: Expected `int`, got `str`"),
        (rpcd.Secret[Card], '{"number": 5}', f"{NOT_VALID}: number: Expected `str`, got `int`"),
        (rpcd.Secret[Card], '{"number": "5", "cvc": "correct-horse"}', f"{NOT_VALID}: cvc: {UNREADABLE}"),
        (rpcd.Secret[Annotated[str, msgspec.Meta(max_length=2)]], VALUE, NOT_VALID),
    ],
)
def test_what_a_token_holds_is_checked_and_never_told(kind: Any, holds: Any, reason: str) -> None:
    assert refused(opening(dict[str, kind]), {"a": sealed(holds)}) == ("body[...]", reason)


def test_secrets_may_lie_in_arrays_and_objects() -> None:
    kind = dict[str, list[rpcd.Secret[str]]]
    assert opening(kind)({"a": [TOKEN]}) == {"a": [rpcd.Secret(VALUE)]}
    assert refused(opening(list[rpcd.Secret[str]]), [TOKEN, "plain"]) == ("body[1]", UNREADABLE)


def test_a_token_that_is_moved_to_another_field_is_opened_there() -> None:
    moved = opening(StructOrder)({"card": sealed("1234"), "pin": sealed("1234")})
    assert (moved.card.reveal(), moved.pin.reveal()) == ("1234", 1234)


# Fields that the config names ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Any, dict, dict[str, Any]], ids=str)
@pytest.mark.parametrize("name", SECRET_FIELDS)
def test_the_usual_names_are_secret_in_a_body_without_a_type(kind: Any, name: str) -> None:
    body = opening(kind)({name: TOKEN, "other": "plain", "nested": {name: "plain"}})
    assert body == {name: rpcd.Secret(VALUE), "other": "plain", "nested": {name: "plain"}}
    assert body[name].token == TOKEN
    assert refused(opening(kind), {name: VALUE}) == (f"body.{name}", UNREADABLE)


@pytest.mark.parametrize("value", [*NO_TOKEN[:8], [TOKEN, 5], {"a": [VALUE]}], ids=range(10))
def test_nothing_else_may_stand_in_a_secret_field(value: Any) -> None:
    place, reason = refused(opening(), {"password": value})
    assert place.startswith("body.password")
    assert reason == UNREADABLE


def test_a_secret_field_may_hold_several_tokens() -> None:
    body = opening()({"secret_values": {"a": TOKEN, "b": [TOKEN, {}], "c": []}})
    secret = rpcd.Secret(VALUE)
    assert body == {"secret_values": {"a": secret, "b": [secret, {}], "c": []}}
    assert refused(opening(), {"secret_values": [TOKEN, VALUE]}) == ("body.secret_values[1]", UNREADABLE)
    assert refused(opening(), {"secret_values": {VALUE: VALUE}}) == ("body.secret_values[...]", UNREADABLE)
    deep: Any = TOKEN
    for _ in range(100):
        deep = [deep]
    assert refused(opening(), {"password": deep})[1] == "nested too deeply"


@pytest.mark.parametrize("body", [[], "x", 5, None, {}, {"other": "x"}, [{"password": "plain"}]], ids=str)
def test_a_body_without_secret_fields_is_left_alone(body: Any) -> None:
    assert opening()(body) == body


def test_the_names_are_the_configs() -> None:
    body = {"card": TOKEN, "password": "plain"}
    assert opening(secret_fields=["card"])(body) == {"card": rpcd.Secret(VALUE), "password": "plain"}
    assert opening(secret_fields=[])(body) == body


class Login(msgspec.Struct):
    user: str
    password: str


class LoginModel(pydantic.BaseModel):
    user: str
    password: str


@pytest.mark.parametrize("kind", [Login, LoginModel])
def test_a_type_without_secrets_gets_what_the_config_names_as_it_wants_it(kind: Any) -> None:
    body = {"user": "ada", "password": TOKEN}
    assert opening(kind)(body).password == TOKEN  # no name is taken for secret by itself: the type says all
    assert opening(kind, secret_fields=["password"])(body).password == VALUE
    assert refused(opening(kind, secret_fields=["password"]), {**body, "password": VALUE}) == ("body.password", UNREADABLE)
    assert opening(kind, secrets="opportunistic")(body).password == VALUE
    assert opening(kind, secrets="opportunistic")({**body, "password": "plain"}).password == "plain"
    refused(opening(kind, secrets="opportunistic"), {"user": 5, "password": TOKEN})


def test_opportunistically_every_top_level_text_that_is_a_token_is_opened_and_all_else_passes() -> None:
    broken = TOKEN[:-5] + "AAAA="
    body = {"a": TOKEN, "b": "plain", "c": broken, "password": "plain", "d": 5, "e": None, "f": [TOKEN], "g": {"h": TOKEN}}
    assert opening(secrets="opportunistic")(body) == {**body, "a": VALUE}
    assert refused(opening(secrets="opportunistic"), {"a": sealed(b"\xff")}) == ("body[...]", NOT_TEXT)


def test_numbers_at_the_edge_stay_what_they_are() -> None:
    open_body = opening(dict[str, int | float | str], secret_fields=["password"])
    for number in ("123456789012345678901234567890", "18446744073709551615", "1e300", "0.1", "-9223372036854775808"):
        try:
            wanted = opening(dict[str, int | float | str])(f'{{"n": {number}}}'.encode())
        except BadMessage:
            wanted = None
        payload = f'{{"password": "{TOKEN}", "n": {number}}}'.encode()
        if wanted is None:
            refused(open_body, payload)
        else:
            assert open_body(payload)["n"] == wanted["n"]


# Whole bodies -------------------------------------------------------------------------------------


def test_a_whole_body_may_be_a_token() -> None:
    assert opening(encrypted=True)(sealed('{"a": 1}').encode()) == {"a": 1}
    assert opening(str, accept=TEXT, encrypted=True)(sealed("text").encode()) == "text"
    assert opening(bytes, encrypted=True)(sealed(b"\xff").encode()) == b"\xff"
    order = opening(AttrsOrder, encrypted=True)(sealed(json.dumps({"card": TOKEN})).encode())
    assert order.card.reveal() == VALUE
    assert opening(encrypted=True)(sealed(json.dumps({"password": TOKEN})).encode()) == {"password": rpcd.Secret(VALUE)}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"a": 1}', json.dumps(TOKEN).encode(), TOKEN[:-1].encode()], ids=range(5))
def test_a_body_that_must_be_a_token_and_is_none_is_refused(body: bytes) -> None:
    assert refused(opening(encrypted=True), body) == ("body", UNREADABLE)


def test_what_a_whole_body_holds_is_checked_as_any_body() -> None:
    assert refused(opening(encrypted=True), sealed("{").encode())[0] == "body"
    assert refused(opening(Login, encrypted=True), sealed("{}").encode())[1] == "Object missing required field `user`"


# The age of tokens --------------------------------------------------------------------------------


def route(ttl: float | None = None, kind: Any = Any, **settings: Any) -> Route:
    how = sealing(ttl, **settings)
    plain = Route(
        consumer="c",
        queue="q",
        target=Target("a:b", None, False, False, None, kind),
        codec=how.codec([JSON], kind),
        policy=Policy(Replies(), "auto", Steps((1.0,), 2), None),
        clock=lambda: NOW,
    )
    return how.route(plain)


def arriving(body: Any, received: float = NOW, headers: dict[str, Any] | None = None) -> Message[Any]:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = None
    if headers is not None:
        found = Headers(table(headers))
        found.update(headers)
    return delivered(Message().source, payload, Properties(headers=found), "", "q", False, received)


def test_without_a_ttl_a_route_is_as_any_other() -> None:
    assert type(route()) is Route
    message = arriving({"password": sealed(VALUE, NOW - 10**9)})
    route().open(message)
    assert message.body["password"].reveal() == VALUE
    assert route().arrival_mark(message) is None


WAYS: dict[str, tuple[Callable[[str], Any], dict[str, Any]]] = {
    "typed": (lambda token: {"card": token}, {"kind": AttrsOrder}),
    "named": (lambda token: {"password": token}, {}),
    "named and typed": (lambda token: {"user": "x", "password": token}, {"kind": Login, "secret_fields": ["password"]}),
    "opportunistic": (lambda token: {"x": token}, {"secrets": "opportunistic"}),
    "whole": (lambda token: token.encode(), {"encrypted": True}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_token_that_is_out_of_its_time_is_refused_wherever_it_stands(way: str) -> None:
    body, settings = WAYS[way]
    value = "{}" if way == "whole" else VALUE
    fresh = arriving(body(sealed(value, NOW - 60)))
    route(60, **settings).open(fresh)
    for made, reason in ((NOW - 61, EXPIRED), (NOW + 61, FROM_FUTURE)):
        with pytest.raises(BadMessage) as error:
            route(60, **settings).open(arriving(body(sealed(value, made))))
        assert error.value.reason == reason


def test_a_token_ages_until_its_message_arrives_and_no_longer() -> None:
    dated = route(60)
    first = arriving({"password": sealed(VALUE, NOW - 50)})
    dated.open(first)
    for copy in (
        retry_copy(first, "q", 1, 1, 0, "id", dated.arrival_mark(first)),
        archived_and_replayed(first, dated),
    ):
        late = arriving(copy.body, NOW + 10**6)
        late.properties.headers = read_properties(copy.properties).headers
        dated.open(late)
        assert late.body["password"].reveal() == VALUE
        assert dated.arrival_mark(late) == dated.arrival_mark(first)


def archived_and_replayed(message: Message[Any], dated: Route) -> Any:
    copy = retry_copy(message, "q", 1, 1, 0, "id", dated.arrival_mark(message))
    return replay_copy(read_properties(copy.properties), copy.body, "", "q", None, "token", NOW)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", [-7200, 7200])
def test_what_a_wrong_clock_of_ours_has_refused_can_be_replayed_when_it_is_right(way: str, wrong: int) -> None:
    body, settings = WAYS[way]
    dated = route(3600, **settings)
    token = sealed("{}" if way == "whole" else VALUE)
    refused_one = arriving(body(token), NOW + wrong)
    with pytest.raises(BadMessage):
        dated.open(refused_one)
    assert dated.arrival_mark(refused_one) is None
    replayed = arriving(body(token), NOW + 60)
    dated.open(replayed)
    assert dated.arrival_mark(replayed) is not None


def test_what_was_refused_for_its_shape_keeps_its_first_arrival() -> None:
    dated = route(60, kind=AttrsOrder)
    message = arriving({"card": sealed(VALUE), "pin": "plain"})
    with pytest.raises(BadMessage):
        dated.open(message)
    assert dated.arrival_mark(message) is not None


def test_a_forged_first_arrival_makes_no_token_younger() -> None:
    old = sealed(VALUE, NOW - 61)
    whole = json.dumps({"password": old}).encode()
    other = Keyring([Fernet.generate_key().decode()]).mark(NOW - 61, whole)
    for mark in ("1699999939.000", f"{NOW - 61:.3f} {'0' * 64}", other, 1_699_999_939, Keyring([NEW]).mark(NOW - 61, b"{}")):
        with pytest.raises(BadMessage, match="expired"):
            route(60).open(arriving(whole, headers={ARRIVAL_HEADER: mark}))
    route(60).open(arriving(whole, headers={ARRIVAL_HEADER: Keyring([OLD]).mark(NOW - 61, whole)}))


def test_a_copy_of_a_consumer_without_a_ttl_drops_what_a_client_claims() -> None:
    claimed = arriving({}, headers={ARRIVAL_HEADER: "1699999939.000 x"})
    copy = retry_copy(claimed, "q", 1, 1, 0, "id", route().arrival_mark(claimed))
    assert ARRIVAL_HEADER not in read_properties(copy.properties).headers


def test_the_arrival_of_one_message_is_not_that_of_the_next() -> None:
    dated = route(60)
    assert isinstance(dated, DatedRoute)
    with pytest.raises(BadMessage):
        dated.open(arriving({"password": sealed(VALUE, NOW - 61)}))
    codec = sealing(60).codec([JSON])
    assert codec.decoder(None, None)(json.dumps({"password": sealed(VALUE, 0)}).encode())["password"].reveal() == VALUE


def test_the_payload_stays_as_it_came() -> None:
    message = arriving({"password": TOKEN})
    before = message.payload
    route().open(message)
    assert message.payload is before
    assert VALUE.encode() not in before


# All of it together, in a time that a test lets pass -----------------------------------------------


def test_a_retry_long_after_the_ttl_opens_what_came_in_time() -> None:
    seen: list[tuple[int, str]] = []

    def handle(message: rpcd.Message[AttrsOrder]) -> None:
        seen.append((message.attempt, message.body.card.reveal()))
        if message.attempt < 3:
            raise rpcd.Retry

    keys = {"broker": {"fernet_keys": [NEW], "fernet_ttl": 60}}
    with Harness(keys, now=NOW) as harness:
        harness.consumer("orders", handle, retry={"delays": [3600.0, 86400.0]})
        token = harness.encrypt(VALUE)
        harness.advance(59)
        harness.deliver("orders", {"card": token})
        harness.advance(86400.0 * 2)
        assert seen == [(1, VALUE), (2, VALUE), (3, VALUE)]
        late = harness.call("orders", {"card": token})
        assert late.data == {"place": "body.card", "reason": EXPIRED}
