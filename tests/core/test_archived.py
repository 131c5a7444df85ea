"""What an archived message tells, which of them are meant, and the copy that goes back to work."""

import datetime as dt
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcd.core.archived import Archived, Wanted, describe, fingerprint, read_age, shown_age
from rpcd.core.copies import MAX_HEADERS, Circumstances, archive_copy, replay_copy, retry_copy
from rpcd.core.message import Message
from rpcd.core.outgoing import Outgoing
from rpcd.core.tables import header, read_headers, table
from rpcd.core.wire import Properties, read_properties

NOW = 1_700_000_000.0
WHO = Circumstances("shop-orders", "shop.orders:PlaceOrder", "host1")
DIED = {
    "queue": "orders",
    "reason": "delivery_limit",
    "count": 1,
    "exchange": "shop",
    "routing-keys": ["order.placed"],
    "time": dt.datetime.fromtimestamp(NOW, dt.timezone.utc),
}


def properties(raw: bytes = b"", **values: Any) -> Properties:
    """Make properties whose headers came over the wire."""
    headers, _ = read_headers(struct.pack(">I", len(raw)) + raw, 0)
    return Properties(headers=headers, **values)


def archived(raw: bytes = b"", body: bytes = b"{}", **values: Any) -> Archived:
    return describe("orders.archive", "", "orders.archive", properties(raw, **values), body)


def given_up(raw: bytes = b"", attempt: int = 5, token: str = "token1", **values: Any) -> Archived:
    """Return what the daemon has archived, as it is read."""
    message: Message[Any] = Message(
        payload=b"{}",
        properties=properties(raw, **values),
        exchange="shop",
        routing_key="order.placed",
        queue="orders",
        attempt=attempt,
    )
    copy = archive_copy(message, "orders.archive", WHO, "attempts are spent: ValueError", "ValueError", NOW, token)
    return describe("orders.archive", "", "orders.archive", read_properties(copy.properties), copy.body)


def replayed(message: Archived, now: float = NOW, first: Any = ("shop", "order.placed")) -> Outgoing:
    token = fingerprint(message.properties, message.body)
    return replay_copy(message.properties, message.body, "", "orders", first, token, now)


def headers_of(copy: Outgoing) -> dict[str, Any]:
    headers = read_properties(copy.properties).headers
    assert isinstance(headers, dict)
    assert headers.fault is None  # type: ignore[attr-defined]
    return dict(headers)


def test_what_the_daemon_archived_tells_everything() -> None:
    found = given_up(message_id="m-1")
    assert (found.reason, found.exception, found.attempts) == ("attempts are spent: ValueError", "ValueError", 5)
    assert (found.handler, found.consumer, found.host) == ("shop.orders:PlaceOrder", "shop-orders", "host1")
    assert (found.queue, found.exchange, found.routing_key) == ("orders", "shop", "order.placed")
    assert (found.names, found.id, found.by_broker, found.replayed) == (("m-1", "token1"), "m-1", False, 0)
    assert (found.time, found.age(NOW + 60), found.age(NOW - 60)) == (NOW, 60.0, 0.0)


def test_what_the_broker_dead_lettered_tells_what_the_broker_says() -> None:
    found = archived(table({"x-death": [DIED], "x-retry-count": 2, "x-rpcd-reason": "forged"}))
    assert (found.by_broker, found.reason, found.exception) == (True, "dead-lettered: delivery_limit", None)
    assert (found.queue, found.exchange, found.routing_key) == ("orders", "shop", "order.placed")
    assert (found.attempts, found.time) == (3, NOW)


def test_a_retry_that_the_broker_dead_lettered_remembers_its_first_publication() -> None:
    died = {**DIED, "exchange": "", "routing-keys": ["orders"]}
    found = archived(table({"x-death": [died], "x-rpcd-exchange": "shop", "x-rpcd-routing-key": "order.placed"}))
    assert (found.exchange, found.routing_key) == ("shop", "order.placed")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"x-death": "x"},
        {"x-death": []},
        {"x-death": [5]},
        {"x-death": [{}]},
        {"x-death": [{"routing-keys": [], "time": 5, "queue": 7}]},
        {"x-rpcd-time": "yesterday", "x-retry-count": "x", "x-rpcd-reason": 5, "x-rpcd-copy": 7},
        {"x-rpcd-time": "2026-01-01T00:00:00", "x-rpcd-exchange": 5, "x-rpcd-replayed": -5},
    ],
)
def test_whatever_the_headers_hold_a_message_is_described(values: dict[str, Any]) -> None:
    found = archived(table(values))
    assert found.time is None
    assert found.attempts == 1
    assert (found.routing_key, found.replayed) == ("orders.archive", 0)
    assert len(found.id) == 16


@given(st.binary(max_size=60))
def test_no_header_table_is_too_broken_to_be_described(raw: bytes) -> None:
    found = archived(raw)
    assert found.id
    assert not Wanted(reason="no such reason").matches(found)


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        (Wanted(), True),
        (Wanted(ids=frozenset({"m-1", "other"})), True),
        (Wanted(ids=frozenset({"token1"})), True),
        (Wanted(ids=frozenset({"other"})), False),
        (Wanted(reason="ATTEMPTS are"), True),
        (Wanted(reason="limit"), False),
        (Wanted(exception="ValueError"), True),
        (Wanted(exception="Value"), False),
        (Wanted(handler="shop.orders:PlaceOrder"), True),
        (Wanted(handler="shop"), False),
        (Wanted(correlation_id="c\\xff"), True),
        (Wanted(correlation_id="c"), False),
        (Wanted(before=NOW + 1), True),
        (Wanted(before=NOW), False),
        (Wanted(after=NOW - 1), True),
        (Wanted(after=NOW), False),
        (Wanted(reason="spent", exception="KeyError"), False),
    ],
)
def test_everything_that_is_said_must_hold(wanted: Wanted, meant: bool) -> None:
    assert wanted.matches(given_up(message_id="m-1", correlation_id=b"c\xff")) is meant


def test_without_a_time_a_message_is_neither_older_nor_newer() -> None:
    assert not Wanted(before=NOW).matches(archived())
    assert not Wanted(after=0.0).matches(archived())
    assert Wanted().everything
    assert not Wanted(reason="").everything


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("2h", 7200), ("3d", 259_200), ("1w", 604_800), ("1d12h", 129_600)]
)
def test_an_age_is_read(text: str, seconds: float) -> None:
    assert read_age(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "5 m", "5m!", "5y", "1e3s"])
def test_a_wrong_age_is_told_with_the_way_out(text: str) -> None:
    with pytest.raises(ValueError, match="write a number and s, m, h, d or w"):
        read_age(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.4, "0s"), (59, "59s"), (3600, "1h"), (3661, "1h1m"), (86_400 * 3 + 60, "3d"), (90_061, "1d1h")],
)
def test_an_age_is_shown_in_two_units(seconds: float | None, text: str) -> None:
    assert shown_age(seconds) == text


# The copy that goes back to work ------------------------------------------------------------------


def test_a_replay_begins_anew_and_keeps_the_request() -> None:
    raw = header("tenant", "north") + b"\x01fd" + struct.pack(">d", 1.5)
    kept = {"reply_to": "amq.gen-x", "correlation_id": b"\xff", "message_id": "m", "type": "t", "app_id": "a"}
    message = given_up(raw, content_type="application/json", expiration="5", **kept)
    copy = replayed(message)
    made = read_properties(copy.properties)
    assert (copy.exchange, copy.routing_key, copy.mandatory, copy.body) == ("", "orders", True, message.body)
    assert {name: getattr(made, name) for name in kept} == kept
    assert (made.content_type, made.delivery_mode, made.expiration) == ("application/json", 2, None)
    assert made.headers.raw.startswith(raw)  # type: ignore[union-attr]
    found = headers_of(copy)
    assert set(found) == {
        *("tenant", "f", "x-rpcd-copy", "x-rpcd-exchange", "x-rpcd-routing-key"),
        *("x-rpcd-replayed", "x-rpcd-replayed-time"),
    }
    assert (found["x-rpcd-exchange"], found["x-rpcd-routing-key"], found["x-rpcd-replayed"]) == ("shop", "order.placed", 1)
    assert copy.token == found["x-rpcd-copy"] != "token1"


def test_nothing_of_a_death_is_replayed() -> None:
    values = {
        "x-death": [DIED],
        "x-first-death-queue": "orders",
        "x-last-death-queue": "orders",
        "x-delivery-count": 21,
        "x-retry-count": 4,
        "x-rpcd-nacks": 3,
        "CC": ["other"],
    }
    assert not set(values) & set(headers_of(replayed(archived(table(values)))))


@pytest.mark.parametrize(("limit", "kept"), [(NOW + 1, True), (NOW, False), (NOW - 1, False), ("x", False), (True, False)])
def test_a_deadline_that_has_passed_is_left_behind(limit: Any, kept: bool) -> None:
    found = headers_of(replayed(archived(table({"x-deadline": limit}))))
    assert found.get("x-deadline") == (limit if kept else None)


def test_a_copy_has_the_same_id_however_often_it_is_read_and_replayed() -> None:
    first = archived(table({"b": 1, "a": 1}), message_id="m")
    again = archived(table({"a": 1, "b": 1, "x-delivery-count": 7}), message_id="m")
    assert replayed(first).token == replayed(again, NOW + 5).token
    others = [
        archived(table({"b": 1, "a": 2}), message_id="m"),
        archived(table({"b": 1, "a": 1}), message_id="n"),
        archived(table({"b": 1, "a": 1}), b"[]", message_id="m"),
        archived(b"\x05cut"),
    ]
    assert len({replayed(first).token, *(replayed(each).token for each in others)}) == 5


def test_that_it_was_replayed_is_counted_and_stays_on_later_copies() -> None:
    once = Message[Any](payload=b"", properties=read_properties(replayed(given_up()).properties), queue="orders")
    retried = read_properties(retry_copy(once, "orders", 1000, 1, 0, "token2").properties)
    assert retried.headers["x-rpcd-replayed"] == 1  # type: ignore[index]
    copy = archive_copy(Message(payload=b"", properties=retried), "orders.archive", WHO, "no", None, NOW, "token3")
    found = describe("orders.archive", "", "", read_properties(copy.properties), b"")
    assert found.replayed == 1
    again = headers_of(replayed(found, NOW + 5))
    assert (again["x-rpcd-replayed"], again["x-rpcd-replayed-time"]) == (2, "2023-11-14T22:13:25.000+00:00")


def test_published_anew_it_does_not_say_where_it_was_first_published() -> None:
    assert "x-rpcd-exchange" not in headers_of(replayed(given_up(), first=None))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", None),
        (b"\x01aT" + struct.pack(">Q", 2**63), "its headers can't be read"),
        (header("x-rpcd-headers", b"\xff"), "its headers can't be read"),
        (header("x-rpcd-headers-dropped", 200_000), "its headers were too big to be kept"),
        (header("big", "x" * MAX_HEADERS), "its headers are too big"),
    ],
)
def test_what_no_copy_can_carry_on_unchanged_is_told(raw: bytes, why: str | None) -> None:
    assert archived(raw).hindrance == why
