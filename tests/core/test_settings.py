from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcd.core.load import load
from rpcd.core.retry import Steps
from rpcd.core.settings import (
    Archive,
    Binding,
    Broker,
    Consumer,
    Exchange,
    Logging,
    Queue,
    Retry,
    Service,
    Settings,
    Tls,
    sentences,
)

PROPERTY = settings(max_examples=15, deadline=None)  # each example builds a converter, which takes ten milliseconds

SECTIONS: list[Any] = [Settings, Broker, Tls, Service, Logging, Exchange, Queue, Binding, Consumer, Retry, Archive]


def consumer(**others: Any) -> Consumer:
    return Consumer(queue="orders", handler="shop.orders:it", **others)


# Defaults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "name", "default"),
    [
        (Broker(), "url", "amqp://guest:guest@localhost:5672/"),
        (Broker(), "heartbeat", 15),
        (Service(), "drain_timeout", 30),
        (Service(), "declare", True),
        (Service(), "confirm_timeout", 30),
        (Service(), "publish_timeout", 60),
        (Logging(), "format", "text"),
        (Logging(), "level", "info"),
        (Exchange(), "durable", True),
        (Queue(), "type", None),
        (Queue(), "delivery_limit", 20),
        (Binding(exchange="e"), "routing_keys", [""]),
        (consumer(), "workers", 1),
        (consumer(), "time_limit", 600),
        (consumer(), "on_error", "auto"),
        (consumer(), "reply", "envelope"),
        (consumer(), "reply_via", "default"),
        (consumer(), "reply_confirm", False),
        (consumer(), "reply_to_allowed", []),
        (consumer(), "accept", ["application/json"]),
        (consumer(), "max_body", 16 * 1024 * 1024),
        (consumer(), "max_reply", 8 * 1024 * 1024),
        (consumer().retry, "delays", [0.2, 1, 60, 1800]),
        (consumer().archive, "max_length", None),
        (consumer().archive, "overflow", "reject-publish"),
    ],
    ids=str,
)
def test_defaults_are_those_of_the_design(section: Any, name: str, default: Any) -> None:
    assert getattr(section, name) == default


@pytest.mark.parametrize(
    ("section", "window"),
    [
        ({}, 2),
        ({"workers": 8}, 16),
        ({"workers": 8, "prefetch": 9}, 9),
        ({"lock": "body.a"}, 64),
        ({"lock": "body.a", "workers": 20}, 160),
        ({"lock": "*"}, 2),
        ({"lock": "*", "prefetch": 9}, 9),
    ],
)
def test_the_prefetch_fits_workers_and_lock(section: dict[str, Any], window: int) -> None:
    assert consumer(**section).window == window


@pytest.mark.parametrize(
    ("retry", "steps"),
    [
        ({}, Steps((0.2, 1.0, 60.0, 1800.0), 5)),
        ({"delays": [1.0]}, Steps((1.0,), 2)),
        ({"delays": []}, Steps((), 1)),
        ({"attempts": 3}, Steps((0.2, 1.0, 60.0, 1800.0), 3)),
        ({"delays": [1.0], "attempts": 9}, Steps((1.0,), 9)),
    ],
)
def test_there_is_one_attempt_more_than_there_are_delays_unless_said_otherwise(retry: dict[str, Any], steps: Steps) -> None:
    assert consumer(retry=Retry(**retry)).steps == steps


# The tree -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_has_one_sentence_for_operators(section: Any) -> None:
    found = sentences(section)
    assert set(found) == {field.name for field in attrs.fields(section)}
    assert all(sentence[0].isalnum() and sentence.endswith(".") for sentence in found.values())


@pytest.mark.parametrize("section", SECTIONS)
def test_settings_are_frozen(section: Any) -> None:
    required = {"exchange": "e", "queue": "q", "handler": "a:b"}
    made = section(**{field.name: required[field.name] for field in attrs.fields(section) if field.default is attrs.NOTHING})
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(made, attrs.fields(section)[0].name, None)


def test_two_sections_share_no_default_that_could_be_changed() -> None:
    assert consumer().accept is not consumer().accept
    assert consumer().config is not consumer().config
    assert Queue().arguments is not Queue().arguments


def test_url_and_password_are_in_no_repr() -> None:
    shown = repr(Settings(broker=Broker(url="amqp://u:correct-horse@h", password="correct-horse")))
    assert "correct-horse" not in shown


@pytest.mark.parametrize(
    ("key", "name"), [("shop", "shop"), ("renamed", "company-shop"), ("amq.topic", "amq.topic"), ("nameless", "")]
)
def test_an_exchange_is_named_by_its_section_or_by_itself(key: str, name: str) -> None:
    exchanges = {"shop": Exchange(), "renamed": Exchange(name="company-shop"), "nameless": Exchange(name="")}
    assert Settings(exchanges=exchanges).exchange_name(key) == name


@pytest.mark.parametrize(("key", "name"), [("orders", "orders"), ("renamed", "company-orders"), ("nameless", "")])
def test_a_queue_is_named_by_its_section_or_its_name_or_by_the_broker(key: str, name: str) -> None:
    queues = {"orders": Queue(), "renamed": Queue(name="company-orders"), "nameless": Queue(name="")}
    assert Settings(queues=queues).queue_name(key) == name


# What the file says is what the settings say ------------------------------------------------------

NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="$"), max_size=8)
SECONDS = st.integers(0, 10**6) | st.floats(0.001, 10**6)
ARGUMENTS = st.dictionaries(
    NAMES, st.integers(-(2**63), 2**63 - 1) | st.booleans() | TEXT | st.lists(TEXT, max_size=2), max_size=2
)


def section(**optional: Any) -> Any:
    return st.fixed_dictionaries({}, optional=optional)


PARSED = st.fixed_dictionaries(
    {},
    optional={
        "broker": section(
            username=TEXT,
            password=TEXT,
            virtual_host=TEXT,
            heartbeat=st.integers(0, 65535),
            login_patience=SECONDS,
            connect_timeout=st.integers(1, 60),
        ),
        "service": section(drain_timeout=SECONDS, declare=st.booleans(), path=st.lists(TEXT, max_size=2)),
        "logging": section(format=st.sampled_from(["text", "json"]), level=st.sampled_from(["debug", "critical"])),
        "exchanges": st.dictionaries(
            NAMES, section(type=st.sampled_from(["topic", "fanout"]), durable=st.booleans(), arguments=ARGUMENTS), max_size=2
        ),
        "queues": st.dictionaries(
            NAMES,
            section(
                name=NAMES,
                type=st.sampled_from(["quorum", "classic"]),
                delivery_limit=st.integers(1, 2**63 - 1),
                arguments=ARGUMENTS,
                bindings=st.lists(
                    st.fixed_dictionaries(
                        {"exchange": NAMES}, optional={"routing_keys": st.lists(TEXT, max_size=2), "arguments": ARGUMENTS}
                    ),
                    max_size=2,
                ),
            ),
            max_size=2,
        ),
        "consumers": st.dictionaries(
            NAMES,
            st.fixed_dictionaries(
                {"queue": NAMES, "handler": NAMES},
                optional={
                    "workers": st.integers(1, 100),
                    "lock": TEXT,
                    "on_error": st.sampled_from(["auto", "halt"]),
                    "reply_confirm": st.booleans(),
                    "accept": st.lists(TEXT, max_size=2),
                    "retry": section(delays=st.lists(SECONDS, max_size=3), attempts=st.integers(1, 9)),
                    "config": ARGUMENTS,
                },
            ),
            max_size=2,
        ),
    },
)


def assert_says(found: Any, said: Any) -> None:
    """Compare settings with what was parsed: everything that was said, and nothing of it changed."""
    if attrs.has(type(found)):
        for name, value in said.items():
            assert_says(getattr(found, name), value)
    elif isinstance(said, dict) and said and all(attrs.has(type(each)) for each in found.values()):
        assert found.keys() == said.keys()
        for name, value in said.items():
            assert_says(found[name], value)
    elif isinstance(said, list) and said and attrs.has(type(found[0])):
        assert len(found) == len(said)
        for each, value in zip(found, said, strict=True):
            assert_says(each, value)
    else:
        assert found == said


@PROPERTY
@given(PARSED)
def test_what_the_file_says_is_what_the_settings_say(parsed: dict[str, Any]) -> None:
    found, _ = load(parsed, {}, lambda _path: "")
    assert_says(found, parsed)
    unsaid = {field.name for field in attrs.fields(Settings)} - set(parsed)
    assert {name: getattr(found, name) for name in unsaid} == {name: getattr(Settings(), name) for name in unsaid}
