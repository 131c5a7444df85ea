import functools
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rpcd
from rpcd.core.codec import Codec
from rpcd.core.copies import retry_copy
from rpcd.core.errors import BadMessage, Expired, ReplyRefused
from rpcd.core.handler import target
from rpcd.core.locks import lane_key
from rpcd.core.message import Message
from rpcd.core.policy import Policy
from rpcd.core.reply import Replies
from rpcd.core.retry import Steps
from rpcd.core.routes import Route, Stray, by_exchange, origin
from rpcd.core.tables import Headers
from rpcd.core.verdict import ACKED, Verdict
from rpcd.core.wire import Properties, read_properties

PROPERTY = settings(max_examples=40, deadline=None)

NOW = 1_700_000_000.0


class Order(msgspec.Struct):
    customer: str


class Counting:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def __call__(self, message: Message[Any]) -> Any:
        return self.config


def ignore(message: Message[Any]) -> Any:
    return None


def route(value: Any = ignore, **others: Any) -> Route:
    wanted: dict[str, Any] = {
        "consumer": "shop-orders",
        "queue": "orders",
        "target": target("shop.orders:it", value),
        "codec": Codec(["application/json"]),
        "policy": Policy(Replies(own_queues=frozenset({"orders"})), "auto", Steps((1.0, 2.0, 3.0, 4.0), 5)),
        "clock": lambda: NOW,
        **others,
    }
    return Route(**wanted)


def message(headers: dict[str, Any] | None = None, body: bytes = b"{}", **others: Any) -> Message[Any]:
    where = {name: others.pop(name) for name in ("exchange", "routing_key", "attempt") if name in others}
    return Message(payload=body, headers=headers, properties=Properties(**others), queue="orders", received=NOW, **where)


# The attempt --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "attempt"),
    [(0, 1), (1, 2), (4, 5), (5, 5), (10**9, 5), (2**63 - 1, 5), (-7, 1), ("4", 1), (2.5, 1), (None, 1), ([4], 1), ({}, 1)],
)
def test_the_attempt_is_clamped_whatever_a_client_wrote(count: Any, attempt: int) -> None:
    came = message({"x-retry-count": count})
    route().open(came)
    assert came.attempt == attempt


def test_an_attempt_in_the_process_is_never_counted_back_by_a_header() -> None:
    came = message({"x-retry-count": 1}, attempt=4)
    route().open(came)
    assert came.attempt == 4


@pytest.mark.parametrize(("written", "nacks"), [(3, 3), (-1, 0), ("3", 0), (10**12, 1_000_000)])
def test_how_often_a_message_was_put_off_is_clamped(written: Any, nacks: int) -> None:
    came = message({"x-rpcd-nacks": written})
    route().open(came)
    assert came.nacks == nacks


# The deadline -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "properties", "deadline"),
    [
        (None, {}, None),
        (None, {"expiration": "5000"}, NOW + 5),
        ({}, {"expiration": "5000"}, NOW + 5),
        ({"x-deadline": NOW + 3.5}, {}, NOW + 3.5),
        ({"x-deadline": NOW + 3.5}, {"expiration": "5000"}, NOW + 3.5),
        ({"other": 1}, {"expiration": "soon"}, None),
    ],
)
def test_the_deadline_is_read_from_expiration_or_from_what_a_copy_carries(
    headers: Any, properties: Any, deadline: float | None
) -> None:
    came = message(headers, **properties)
    route().open(came)
    assert came.deadline == deadline


@pytest.mark.parametrize("late", [0.0, 0.1, 10**6])
def test_a_message_whose_deadline_has_passed_is_not_opened(late: float) -> None:
    with pytest.raises(Expired):
        route().open(message({"x-deadline": NOW - late}, body=b"not json"))


def test_a_message_in_time_passes_the_second_check_until_its_deadline() -> None:
    now = [NOW]
    timed = route(clock=lambda: now[0])
    came = message(expiration="5000")
    timed.open(came)
    timed.check_deadline(came)
    now[0] += 5
    with pytest.raises(Expired):
        timed.check_deadline(came)


# Where it came from first -------------------------------------------------------------------------

COPY = {"x-rpcd-exchange": "shop", "x-rpcd-routing-key": "order.placed"}


def test_a_copy_that_came_back_has_its_first_exchange_and_key_again() -> None:
    came = message(COPY, exchange="", routing_key="orders")
    route().open(came)
    assert (came.exchange, came.routing_key) == ("shop", "order.placed")


@pytest.mark.parametrize(
    ("exchange", "key"), [("shop", "orders"), ("", "order.placed"), ("shop", "order.placed"), ("", "orders2"), ("", "")]
)
def test_the_same_headers_on_any_other_way_are_a_claim_that_nobody_believes(exchange: str, key: str) -> None:
    came = message({"x-rpcd-exchange": "forged", "x-rpcd-routing-key": "forged"}, exchange=exchange, routing_key=key)
    route().open(came)
    assert (came.exchange, came.routing_key) == (exchange, key)


@pytest.mark.parametrize("name", ["x-rpcd-exchange", "x-rpcd-routing-key"])
def test_one_of_the_two_alone_is_no_copy_of_ours(name: str) -> None:
    came = message({name: "forged"}, exchange="", routing_key="orders")
    route().open(came)
    assert (came.exchange, came.routing_key) == ("", "orders")


@pytest.mark.parametrize(
    ("exchange", "key"), [("shop", "order.placed"), ("", ""), ("shop", ""), ("", "x" * 255), ("shop", b"\xff")]
)
def test_what_a_retry_wrote_down_is_what_the_next_attempt_reads(exchange: str, key: Any) -> None:
    first = message(exchange=exchange, routing_key=key)
    copy = retry_copy(first, "orders", 1000, 2, 3, "token")
    again = Message[Any](
        payload=copy.body, properties=read_properties(copy.properties), routing_key="orders", queue="orders"
    )
    route().open(again)
    assert (again.exchange, again.routing_key, again.attempt, again.nacks) == (exchange, key, 3, 3)


@pytest.mark.parametrize("forged", [7, True, 1.5, None, ["shop"], {"shop": 1}], ids=repr)
@pytest.mark.parametrize("name", ["x-rpcd-exchange", "x-rpcd-routing-key"])
def test_exchange_and_key_are_text_whatever_a_client_wrote(name: str, forged: Any) -> None:
    """Anybody who may publish to the queue by its name can write these headers."""
    came = message({**COPY, name: forged}, exchange="", routing_key="orders")
    route().open(came)
    assert isinstance(came.exchange, str | bytes)
    assert isinstance(came.routing_key, str | bytes)


@pytest.mark.parametrize("name", ["x-rpcd-exchange", "x-rpcd-routing-key"])
def test_what_no_frame_could_have_carried_was_never_written_down_by_rpcd(name: str) -> None:
    came = message({**COPY, name: "x" * 256}, exchange="", routing_key="orders", reply_to="amq.gen-x")
    route().open(came)
    assert (came.exchange, came.routing_key) == ("", "orders")


# Who is answered ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reply_to", ["payments", "orders", "", b"\xff", "amq.rabbitmq.reply-to.AAAA.bbb"])
def test_a_reply_to_that_is_not_allowed_stops_the_message(reply_to: Any) -> None:
    with pytest.raises(ReplyRefused):
        route().open(message(reply_to=reply_to))


def test_a_reply_to_that_is_not_allowed_stops_it_even_if_everything_else_is_wrong_too() -> None:
    with pytest.raises(ReplyRefused):
        route(max_body=1).open(message({"x-deadline": 1}, b"not json", reply_to="payments", content_type="x/y"))


def test_a_consumer_that_never_answers_does_not_mind_where_it_should() -> None:
    silent = route(policy=Policy(Replies("none")))
    came = message(body=b'{"a": 1}', reply_to="payments")
    silent.open(came)
    assert silent.run(came, lambda it: it.body).reply is None
    assert silent.judge(rpcd.RequestFailed("no"), came).reply is None


# The body -----------------------------------------------------------------------------------------


def test_the_body_is_decoded() -> None:
    came = message(body=b'{"a": 1}')
    route().open(came)
    assert came.body == {"a": 1}


def test_a_body_over_the_limit_is_not_decoded() -> None:
    small = route(max_body=4)
    small.open(message(body=b"1234"))
    with pytest.raises(BadMessage, match="body: 5 bytes; max_body allows 4"):
        small.open(message(body=b"12345"))


@pytest.mark.parametrize(
    ("properties", "place"),
    [({"content_type": "image/png"}, "content_type"), ({"content_encoding": "gzip"}, "content_encoding")],
)
def test_a_body_of_another_kind_is_a_bad_message(properties: Any, place: str) -> None:
    with pytest.raises(BadMessage) as caught:
        route().open(message(**properties))
    assert caught.value.place == place


def test_headers_that_cannot_be_read_are_a_bad_message() -> None:
    came = message()
    came.properties.headers = Headers(b"\x01kZ", "field type 'Z' is unknown")
    with pytest.raises(BadMessage, match="headers: field type 'Z' is unknown"):
        route().open(came)


@PROPERTY
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "x-retry-count",
                "x-rpcd-nacks",
                "x-deadline",
                "x-rpcd-exchange",
                "x-rpcd-routing-key",
                "x-rpcd-copy",
                "x-death",
            ]
        ),
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=3) | st.just([1]),
        max_size=5,
    ),
    st.none() | st.text(max_size=5) | st.integers(0, 10**15).map(str),
    st.sampled_from(["", "shop"]),
)
def test_forged_headers_never_do_more_than_stop_their_own_message(headers: Any, expiration: Any, exchange: str) -> None:
    try:
        came = message(headers, expiration=expiration, exchange=exchange, routing_key="orders")
    except ValueError:  # a text that no client could send
        return
    try:
        route().open(came)
    except (BadMessage, Expired):
        return
    assert 1 <= came.attempt <= 5
    assert came.nacks >= 0


# Running ------------------------------------------------------------------------------------------


def test_a_handler_is_made_with_the_consumers_own_config() -> None:
    handler, made = route(Counting, config={"dsn": "x"}).make_handler()
    assert handler(message()) == {"dsn": "x"}
    assert isinstance(made, Counting)


def test_a_handler_is_folded_into_its_layers_and_those_within_them() -> None:
    def twice(handler: Any) -> Any:
        return lambda message: [handler(message)] * 2

    def within(handler: Any) -> Any:
        return lambda message: ("within", handler(message))

    its = route(Counting, config={"n": 1})
    its.target = attrs.evolve(its.target, layers=(twice,))
    handler, made = its.make_handler(within)
    assert handler(message()) == [("within", {"n": 1})] * 2
    assert isinstance(made, Counting)


def test_run_turns_a_return_into_an_outcome_and_lets_exceptions_through() -> None:
    assert route().run(message(), ignore) is ACKED

    def fails(message: Message[Any]) -> Any:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        route().run(message(), fails)


def test_judge_uses_the_routes_policy_and_clock() -> None:
    came = message()
    came.deadline = NOW + 0.5
    assert route().judge(rpcd.Retry(), came).verdict is Verdict.ARCHIVE
    came.deadline = NOW + 1.5
    assert route().judge(rpcd.Retry(), came).verdict is Verdict.RETRY


# Lanes' keys --------------------------------------------------------------------------------------


@attrs.define
class Customer:
    name: str


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        ("*", {}, "*"),
        ("routing_key", {}, "order.placed"),
        ("headers.tenant", {}, "acme"),
        ("headers.x-forwarded.for", {}, "me"),
        ("body.customer", {"customer": "ann"}, "ann"),
        ("body.customer", {"customer": None}, None),
        ("body.customer", {"customer": 7}, 7),
        ("body.customer.name", {"customer": {"name": "ann"}}, "ann"),
        ("body.customer.name", {"customer": Customer("ann")}, "ann"),
        ("body.customer", Order("ann"), "ann"),
        ("body.name", Customer("ann"), "ann"),
    ],
)
def test_a_lock_reads_its_key_from_the_message(path: str, body: Any, key: Any) -> None:
    came = message({"tenant": "acme", "x-forwarded": {"for": "me"}}, routing_key="order.placed")
    came.body = body
    assert lane_key(path)(came) == key


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("headers.tenant", {}),
        ("body.customer", {}),
        ("body.customer", None),
        ("body.customer", [1]),
        ("body.customer", "text"),
        ("body.title", "text"),
        ("body.count", [1]),
        ("body.real", True),
        ("body.customer.index", {"customer": "text"}),
        ("body.customer.name", {"customer": {}}),
        ("body.customer.name", {"customer": None}),
        ("body.name", Order("ann")),
    ],
)
def test_a_message_that_lacks_the_key_is_a_bad_message(path: str, body: Any) -> None:
    came = message()
    came.body = body
    with pytest.raises(BadMessage, match=f"{path}: missing; the lock of this consumer needs it"):
        lane_key(path)(came)


@pytest.mark.parametrize("value", [{}, {"a": 1}, [], [1]])
def test_a_value_that_cannot_be_a_key_is_a_bad_message_that_names_its_type(value: Any) -> None:
    came = message()
    came.body = {"customer": value}
    with pytest.raises(BadMessage, match=f"body.customer: {type(value).__name__} can't be a lock's key"):
        lane_key("body.customer")(came)


@attrs.define(unsafe_hash=True)
class Customer:
    name: str


def test_a_key_stays_what_it_is_whatever_the_handler_does_to_its_message() -> None:
    """Else its lane would never be left, and every further message of that key wait for ever."""
    came = message()
    came.body = {"customer": Customer("ann")}
    key = lane_key("body.customer")(came)
    came.body["customer"].name = "bob"
    assert key == Customer("ann")
    assert lane_key("body.customer")(came) == Customer("bob")


@pytest.mark.parametrize(
    "path", ["", "body", "headers", "body.", "headers.", "body..a", "body.a.", ".a", "properties.type", "Routing_key", "**"]
)
def test_any_other_path_is_a_value_error(path: str) -> None:
    with pytest.raises(ValueError, match=r"expected `routing_key`, `headers.NAME`, `body.NAME` or `\*`"):
        lane_key(path)


def test_a_deep_path_is_followed_to_its_end() -> None:
    came = message()
    came.body = functools.reduce(lambda inner, _: {"a": inner}, range(50), "leaf")
    assert lane_key("body" + ".a" * 50)(came) == "leaf"


# What the handler publishes -----------------------------------------------------------------------


def test_what_is_published_after_the_handler_has_returned_is_refused_aloud() -> None:
    came = message()
    outcome = route().run(came, lambda it: it.publish("shop", "k", 1))
    with pytest.raises(RuntimeError, match="the handler has returned"):
        came.publish("shop", "k", 2)
    assert outcome.publications is not None
    assert len(outcome.publications) == 1


def test_what_nobody_published_is_the_handlers_mistake() -> None:
    came = message()

    def spoil(it: Message[Any]) -> None:
        it.published = [1, 2]  # type: ignore[list-item]

    with pytest.raises(TypeError, match=r"message.published holds what message.publish\(\) has not put there"):
        route().run(came, spoil)


# Several handlers ---------------------------------------------------------------------------------


def stray(**others: Any) -> Stray:
    return Stray(**{**attrs.asdict(route(**others), recurse=False), "known": ("create", "delete")})


CREATE, DELETE = route(consumer="create"), route(consumer="delete", number=1)
CHOOSE = by_exchange({"create": CREATE, "delete": DELETE}, stray())


@pytest.mark.parametrize(("exchange", "chosen"), [("create", CREATE), ("delete", DELETE)])
def test_the_exchange_of_a_message_chooses_its_route(exchange: str, chosen: Route) -> None:
    assert CHOOSE(message(exchange=exchange, routing_key="orders")) is chosen


@pytest.mark.parametrize("exchange", ["", "other", b"\xff"])
def test_a_message_from_any_other_exchange_is_a_stray(exchange: Any) -> None:
    assert isinstance(CHOOSE(message(exchange=exchange, routing_key="orders")), Stray)


def test_a_copy_that_came_back_has_the_route_of_its_first_attempt() -> None:
    came = message({"x-rpcd-exchange": "delete", "x-rpcd-routing-key": "k"}, exchange="", routing_key="orders")
    assert CHOOSE(came) is DELETE
    DELETE.open(came)
    assert CHOOSE(came) is DELETE


@pytest.mark.parametrize(("exchange", "key"), [("create", "orders"), ("", "other")])
def test_a_clients_claim_to_come_from_elsewhere_chooses_nothing(exchange: str, key: str) -> None:
    came = message({"x-rpcd-exchange": "delete", "x-rpcd-routing-key": "k"}, exchange=exchange, routing_key=key)
    assert CHOOSE(came) is not DELETE
    assert origin(came, "orders") == (exchange, key)


def test_headers_that_cannot_be_read_choose_nothing() -> None:
    came = message(exchange="", routing_key="orders")
    came.properties.headers = Headers(b"x", fault="cut")
    assert isinstance(CHOOSE(came), Stray)


def test_a_stray_is_a_bad_message_whatever_its_body_is() -> None:
    came = message({"x-retry-count": 2}, body=b"no json", exchange="other", reply_to="amq.gen-x")
    lost = stray()
    with pytest.raises(
        BadMessage, match="exchange: no handler here is for it; there are handlers for create, delete"
    ) as bad:
        lost.open(came)
    assert came.attempt == 3
    outcome = lost.judge(bad.value, came)
    assert outcome.verdict is Verdict.ARCHIVE
    assert outcome.reply is not None
    assert b'"place":"exchange"' in outcome.reply.body


def test_a_stray_is_answered_nowhere_where_no_message_may_be_answered() -> None:
    with pytest.raises(ReplyRefused):
        stray().open(message(exchange="other", reply_to="orders"))


def test_a_stray_whose_sender_has_stopped_waiting_is_late_first() -> None:
    with pytest.raises(Expired):
        stray().open(message({"x-deadline": NOW - 1}, exchange="other"))
