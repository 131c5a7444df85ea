import base64
import re
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rpcd
from rpcd.core.errors import ReplyRefused, ReplyUnencodable
from rpcd.core.message import Message
from rpcd.core.outgoing import Outgoing
from rpcd.core.reply import Replies, direct_reply_token_is_whole
from rpcd.core.wire import Properties, read_properties

PROPERTY = settings(max_examples=40, deadline=None)

PREFIX = "amq.rabbitmq.reply-to."
REAL = [
    PREFIX + "g1h2AA9yZXBseUAxMDc5ODE1ODgAAAKwAAAAAGsCYYE=.qO/vPxK4uaObSQFuOgwp/Q==",
    PREFIX + "g1h2AA9yZXBseUAxMDc5ODE1ODgAAAKwAAAAAGsCYYY=.qO/vPxK4uaObSQFuOgwp/Q==",
]


def term(node: bytes = b"reply@10798158", pid: int = 88, atom: int = 118, version: int = 131) -> bytes:
    """Build an Erlang pid term as `term_to_binary` does."""
    size = {118: 2, 100: 2, 119: 1, 115: 1}.get(atom, 2)
    behind = {88: 12, 103: 9}.get(pid, 12)
    return bytes((version, pid, atom)) + len(node).to_bytes(size, "big") + node + b"\x00" * behind


def token(data: bytes, key: str = ".qO/vPxK4uaObSQFuOgwp/Q==") -> str:
    return PREFIX + base64.b64encode(data).decode() + key


def asked(reply_to: Any = "amq.gen-caller", correlation_id: Any = "c1", exchange: str = "") -> Message[Any]:
    return Message(properties=Properties(reply_to=reply_to, correlation_id=correlation_id), exchange=exchange)


def document(sent: Outgoing) -> Any:
    return msgspec.json.decode(sent.body)


# Direct reply-to tokens ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_a_token_that_a_broker_gave_is_whole(name: str) -> None:
    assert direct_reply_token_is_whole(name)


@pytest.mark.parametrize("pid", [88, 103])
@pytest.mark.parametrize("atom", [100, 115, 118, 119])
def test_every_form_of_an_erlang_pid_is_whole(pid: int, atom: int) -> None:
    assert direct_reply_token_is_whole(token(term(pid=pid, atom=atom)))


@pytest.mark.parametrize(
    "name",
    [
        "amq.rabbitmq.reply-to",
        PREFIX,
        PREFIX + "AAAA.bbb",
        PREFIX + "..",
        PREFIX + ".key",
        PREFIX + "g1h2AA9yZXBseUAxMDc5ODE1ODgAAAKwAAAAAGsCYYY=",
        PREFIX + "g1h2AA9yZXBseUAxMDc5ODE1ODgAAAKwAAAAAGsCYYY=.",
        PREFIX + "g1h2AA9yZXBseUAxMDc5ODE1ODgAAAKwAAAAAGsCYYY.key",
        PREFIX + "g1h2AA9yZXBseUAxMDc5ODE1ODgAAAKwAAAAAGsC.key",
        PREFIX + " g1h2AA9yZXBseUAxMDc5ODE1ODgAAAKwAAAAAGsCYYY=.key",
        PREFIX + "g1h2AA9yZXBseUAxMDc5ODE1ODgAAAKwAAAAAGsCYYY=\n.key",
        PREFIX + "ä.key",
        "amq.rabbitmq.reply-toX.g1h2AA9yZXBseUAxMDc5ODE1ODgAAAKwAAAAAGsCYYY=.key",
        token(b""),
        token(b"\x83"),
        token(b"\x83\x58\x76"),
        token(term(version=130)),
        token(term(pid=104)),
        token(term(atom=109)),
        token(term()[:-1]),
        token(term() + b"\x00"),
        token(b"\x83h\x02" + term()[1:]),
        token(b"\x83X\x76\xff\xff" + b"n" * 20),
    ],
)
def test_a_truncated_or_foreign_token_is_not(name: str) -> None:
    assert not direct_reply_token_is_whole(name)


@PROPERTY
@given(st.text(max_size=60) | st.binary(max_size=40).map(token))
def test_any_token_is_whole_or_not_and_none_crashes(name: str) -> None:
    assert direct_reply_token_is_whole(name) in (True, False)
    assert direct_reply_token_is_whole(PREFIX + name) in (True, False)


@PROPERTY
@given(st.sampled_from(REAL), st.data())
def test_a_real_token_with_one_character_changed_never_crashes(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(len(PREFIX), len(name) - 1))
    changed = name[:place] + data.draw(st.characters()) + name[place + 1 :]
    assert direct_reply_token_is_whole(changed) in (True, False)


@PROPERTY
@given(st.sampled_from(REAL), st.integers(0, 60))
def test_a_real_token_cut_anywhere_within_its_term_is_refused(name: str, length: int) -> None:
    encoded = name.removeprefix(PREFIX).partition(".")[0]
    if length < len(encoded):
        assert not direct_reply_token_is_whole(PREFIX + encoded[:length] + ".key")


# Who may be answered ------------------------------------------------------------------------------


OWN = frozenset({"orders", "orders.archive", "orders.retry.200", "amq.gen-own"})


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("amq.gen-JzTY20BRgKO-HjmUJj0wLg", ()),
        ("amq_0a1b", ()),
        (REAL[0], ()),
        ("replies.web1", ("replies.*",)),
        ("replies", ("replies",)),
        ("anything at all", ("*",)),
        ("r1", ("r?",)),
    ],
)
def test_a_reply_may_go_where_it_cannot_do_harm(name: str, allowed: tuple[str, ...]) -> None:
    Replies(allowed=allowed, own_queues=OWN).check(name)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("", ()),
        ("payments", ()),
        ("amq.topic", ()),
        ("amq.gen", ()),
        ("AMQ.GEN-x", ()),
        ("xamq.gen-x", ()),
        ("amq.rabbitmq.reply-to", ()),
        ("amq.rabbitmq.reply-to", ("*",)),
        (PREFIX + "AAAA.bbb", ()),
        (PREFIX + "AAAA.bbb", ("*",)),
        ("orders", ("*",)),
        ("orders.archive", ("*",)),
        ("orders.retry.200", ("orders.*",)),
        ("amq.gen-own", ()),
        ("replies.web1", ("replies",)),
        ("Replies.web1", ("replies.*",)),
        ("xreplies.web1", ("replies.*",)),
        ("replies\nx", ("replies",)),
        (b"\xff", ("*",)),
        (b"amq.gen-x", ()),
    ],
)
def test_a_reply_may_go_nowhere_else(name: Any, allowed: tuple[str, ...]) -> None:
    replies = Replies(allowed=allowed, own_queues=OWN)
    for _ in range(2):  # a refusal is not remembered as a permission
        with pytest.raises(ReplyRefused, match="reply_to is not allowed here: "):
            replies.check(name)


@pytest.mark.parametrize(
    ("reply_to", "allowed"), [("amq.gen-x", True), ("payments", False), ("orders", False), (None, False)]
)
def test_whether_a_message_may_be_answered_can_be_asked(reply_to: Any, allowed: bool) -> None:
    assert Replies(own_queues=OWN).allows(asked(reply_to)) is allowed


@pytest.mark.parametrize(
    ("reply_to", "via", "why"),
    [
        ("payments", "default", "name its queue in reply_to_allowed"),
        (b"\xff", "default", "name its queue in reply_to_allowed"),
        ("orders", "default", "it is a queue of rpcd's own"),
        ("amq.rabbitmq.reply-to.AAAA.bbb", "default", "it is no direct reply-to that a broker has made"),
        (
            "amq.rabbitmq.reply-to.x",
            "request-exchange",
            "direct reply-to can't be reached with reply_via = 'request-exchange'",
        ),
    ],
)
def test_a_refusal_says_the_way_out_that_there_is(reply_to: Any, via: str, why: str) -> None:
    with pytest.raises(ReplyRefused) as refused:
        Replies(via=via, own_queues=OWN).check(reply_to)
    assert str(refused.value) == f"reply_to is not allowed here: {why}"


def test_a_queue_that_the_broker_has_just_named_is_never_answered_to() -> None:
    replies = Replies(own_queues=OWN)
    replies.check("amq.gen-ours")
    replies.never_to("amq.gen-ours")
    for name in ("amq.gen-ours", *OWN):
        with pytest.raises(ReplyRefused):
            replies.check(name)
    replies.check("amq.gen-theirs")
    replies.never_to("amq.gen-later")  # a new connection, a new name: the old ones do not pile up
    replies.check("amq.gen-ours")
    with pytest.raises(ReplyRefused):
        replies.check("amq.gen-later")
    assert replies.own_queues == OWN


def test_direct_reply_to_works_through_the_default_exchange_only() -> None:
    with pytest.raises(ReplyRefused):
        Replies(via="request-exchange").check(REAL[0])


def test_a_refusal_never_repeats_what_the_client_wrote() -> None:
    with pytest.raises(ReplyRefused) as caught:
        Replies().check("evil\nqueue")
    assert "evil" not in str(caught.value)


def test_names_are_remembered_but_not_without_end() -> None:
    replies = Replies()
    for number in range(5000):
        replies.check(f"amq.gen-{number}")
    assert len(replies._checked) <= 1024


@pytest.mark.parametrize(
    ("form", "reply_to", "wanted"),
    [
        ("envelope", "r", True),
        ("plain", "r", True),
        ("none", "r", False),
        ("envelope", None, False),
        ("plain", None, False),
        ("envelope", "", True),
    ],
)
def test_a_reply_is_wanted_if_asked_for_and_not_switched_off(form: str, reply_to: Any, wanted: bool) -> None:
    assert Replies(form).wanted(asked(reply_to)) is wanted


# The document -------------------------------------------------------------------------------------


@attrs.define
class Placed:
    number: int


@pytest.mark.parametrize(
    ("value", "data", "message"),
    [
        (None, {}, None),
        ({}, {}, None),
        ({"number": 7}, {"number": 7}, None),
        (Placed(7), {"number": 7}, None),
        (7, {"result": 7}, None),
        (0, {"result": 0}, None),
        (False, {"result": False}, None),
        ("text", {"result": "text"}, None),
        ("{", {"result": "{"}, None),
        ([], {"result": []}, None),
        ([{}], {"result": [{}]}, None),
        (b"\xff", {"result": "/w=="}, None),
        (rpcd.Reply(), {}, None),
        (rpcd.Reply({"number": 7}, "done"), {"number": 7}, "done"),
        (rpcd.Reply(None, message=""), {}, ""),
        (rpcd.Reply([1], message='"\n'), {"result": [1]}, '"\n'),  # type: ignore[arg-type]
    ],
)
def test_a_success_is_a_document_with_exactly_three_keys(value: Any, data: Any, message: str | None) -> None:
    assert document(Replies().success(asked(), value)) == {"success": True, "data": data, "message": message}


@pytest.mark.parametrize(
    ("text", "data", "expected"),
    [
        (None, None, {}),
        ("blocked", None, {}),
        ("blocked", {"customer": 7}, {"customer": 7}),
        ("blocked", [1], {"result": [1]}),
        (5, None, {}),
    ],
)
@pytest.mark.parametrize("form", ["envelope", "plain"])
def test_a_failure_is_the_same_document_in_every_form(form: str, text: Any, data: Any, expected: Any) -> None:
    said = None if text is None else str(text)
    assert document(Replies(form).failure(asked(), text, data)) == {"success": False, "data": expected, "message": said}


@pytest.mark.parametrize(
    ("value", "body", "content_type"),
    [
        ({"a": 1}, b'{"a":1}', "application/json"),
        (7, b"7", "application/json"),
        (None, b"null", "application/json"),
        ("text", b'"text"', "application/json"),
        (b"\xff", b"\xff", "application/octet-stream"),
        (rpcd.Reply({"a": 1}, "done"), b'{"a":1}', "application/json"),
    ],
)
def test_a_plain_success_is_the_bare_value(value: Any, body: bytes, content_type: str) -> None:
    sent = Replies("plain").success(asked(), value)
    assert (sent.body, read_properties(sent.properties).content_type) == (body, content_type)


@pytest.mark.parametrize("correlation_id", [None, "c1", b"\xff\x00", "x" * 255])
def test_a_reply_has_the_requests_correlation_id_and_nothing_more(correlation_id: Any) -> None:
    sent = Replies().success(asked(correlation_id=correlation_id), 1)
    expected = {"content_type": "application/json", "correlation_id": correlation_id}
    assert vars(read_properties(sent.properties)) == {name: value for name, value in expected.items() if value is not None}


@pytest.mark.parametrize(
    ("via", "exchange", "expected"),
    [("default", "", ""), ("default", "shop", ""), ("request-exchange", "shop", "shop"), ("request-exchange", "", "")],
)
def test_a_reply_goes_through_the_exchange_that_the_config_names(via: str, exchange: str, expected: str) -> None:
    sent = Replies(via=via).success(asked(exchange=exchange), 1)
    assert (sent.exchange, sent.routing_key) == (expected, "amq.gen-caller")


@pytest.mark.parametrize(("reply_to", "mandatory"), [("amq.gen-x", True), ("replies", True), (REAL[0], False)])
def test_a_reply_is_mandatory_except_to_direct_reply_to(reply_to: str, mandatory: bool) -> None:
    assert Replies().success(asked(reply_to), 1).mandatory is mandatory
    assert Replies().failure(asked(reply_to), "no").mandatory is mandatory


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value",
    [object(), {"a": object()}, CYCLE, "\ud800", {"\ud800": 1}, {("a",): 1}, rpcd.Reply({}, "\ud800"), ValueError("x")],
    ids=["object", "nested", "cycle", "surrogate", "surrogate key", "tuple key", "surrogate message", "exception"],
)
@pytest.mark.parametrize("form", ["envelope", "plain"])
def test_what_no_json_can_hold_is_an_error_that_names_no_value(form: str, value: Any) -> None:
    if form == "plain" and isinstance(value, rpcd.Reply):
        return
    with pytest.raises(ReplyUnencodable, match="the reply can't be encoded: "):
        Replies(form).success(asked(), value)


@pytest.mark.parametrize(("text", "data"), [("\ud800", None), ("no", {"a": object()}), ("no", {"a": CYCLE})])
def test_a_failure_that_no_json_can_hold_is_an_error_too(text: str, data: Any) -> None:
    with pytest.raises(ReplyUnencodable):
        Replies().failure(asked(), text, data)


@pytest.mark.parametrize("form", ["envelope", "plain"])
def test_a_reply_that_is_too_long_says_how_long(form: str) -> None:
    with pytest.raises(ReplyUnencodable, match=re.escape("bytes; max_reply allows 1024")):
        Replies(form, max_reply=1024).success(asked(), "x" * 1024)


@pytest.mark.parametrize("exchange", ["x" * 256, 7, None, {}])
def test_an_exchange_that_cannot_be_one_is_an_error_here_and_not_on_the_reactor(exchange: Any) -> None:
    with pytest.raises(ReplyUnencodable):
        Replies(via="request-exchange").success(asked(exchange=exchange), 1)


def test_a_reply_of_exactly_the_limit_is_sent() -> None:
    length = len(Replies().success(asked(), "").body)
    sent = Replies(max_reply=1024).success(asked(), "x" * (1024 - length))
    assert len(sent.body) == 1024


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=8,
)


@PROPERTY
@given(VALUES, st.none() | st.text(st.characters(exclude_categories=["Cs"])))
def test_any_value_gives_an_object_for_data_and_a_string_or_null_for_message(value: Any, text: str | None) -> None:
    found = document(Replies().success(asked(), rpcd.Reply(value, text)))
    assert list(found) == ["success", "data", "message"]
    assert (found["success"], found["message"]) == (True, text)
    assert found["data"] == (value if isinstance(value, dict) else {} if value is None else {"result": value})
