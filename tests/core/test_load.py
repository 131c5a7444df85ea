import copy
import math
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpcd.core import settings as sections
from rpcd.core.address import AddressError
from rpcd.core.load import heartbeat, load
from rpcd.core.settings import Broker, Queue, Settings

PROPERTY = settings(max_examples=15, deadline=None)  # each example builds a converter, which takes ten milliseconds

GOOD: dict[str, Any] = {
    "queues": {"orders": {"bindings": [{"exchange": "shop"}]}},
    "consumers": {"shop": {"queue": "orders", "handler": "shop.orders:PlaceOrder"}},
}
SECRET = "correct-horse"


def read(_path: str) -> str:
    return f"{SECRET}\n"


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """Return the good config with one place of it changed."""
    tree = copy.deepcopy(GOOD)
    holder: Any = tree
    for part in path[:-1]:
        holder = holder.setdefault(part, {}) if isinstance(holder, dict) else holder[part]
    holder[path[-1]] = to
    return tree


def loaded(parsed: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> tuple[Settings, list[str]]:
    found, problems = load(parsed, environment or {}, read)
    return found, [str(problem) for problem in problems]


def said(parsed: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> list[str]:
    return loaded(parsed, environment)[1]


def test_a_good_config_has_no_problems() -> None:
    found, problems = loaded(GOOD)
    assert problems == []
    assert found.consumers["shop"].handler == "shop.orders:PlaceOrder"


def test_loading_changes_nothing_of_what_was_parsed() -> None:
    before = changed("queues", "orders", "bindings", to=[{"exchange": 5}, {"routing_keys": [1]}])
    given_tree = copy.deepcopy(before)
    loaded(given_tree)
    assert given_tree == before


CONSUMER = ("consumers", "shop")


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("broker",), 5, "broker: expected a table, got 5"),
        (("broker",), [], "broker: expected a table, got an array"),
        (("broker",), "x", "broker: expected a table, got a string"),
        (("broker", "heartbeat"), "15", "broker.heartbeat: expected a whole number, got a string"),
        (("broker", "heartbeat"), 1.0, "broker.heartbeat: expected a whole number, got 1.0"),
        (("broker", "heartbeat"), True, "broker.heartbeat: expected a whole number, got true"),
        (("broker", "tls"), "x", "broker.tls: expected a table, got a string"),
        (("broker", "tls", "ca"), [], "broker.tls.ca: expected a string, got an array"),
        (("broker", "connect_timeout"), "10", "broker.connect_timeout: expected a number of seconds, got a string"),
        (("broker", "connect_timeout"), -1, "broker.connect_timeout: expected a number of seconds, got -1"),
        (("broker", "connect_timeout"), True, "broker.connect_timeout: expected a number of seconds, got true"),
        (("broker", "connect_timeout"), math.nan, "broker.connect_timeout: expected a number of seconds, got nan"),
        (("broker", "connect_timeout"), math.inf, "broker.connect_timeout: expected a number of seconds, got inf"),
        (("broker", "connect_timeout"), 10**9, "broker.connect_timeout: expected a number of seconds, got 1000000000"),
        (("broker", "hearbeat"), 5, "broker.hearbeat: unknown key; did you mean 'heartbeat'?"),
        (
            ("brokers",), {}, "brokers: unknown key; did you mean 'broker'?",
        ),
        (
            ("zzz",), {},
            "zzz: unknown key; known here: broker, service, logging, exchanges, queues, consumers, layers, virtual_hosts",
        ),
        (("service", "path"), "x", "service.path: expected an array, got a string"),
        (("service", "path"), [True], "service.path[0]: expected a string, got true"),
        (("service", "declare"), "yes", "service.declare: expected true or false, got a string"),
        (("service", "declare"), 1, "service.declare: expected true or false, got 1"),
        (("logging", "format"), "xml", "logging.format: expected 'text' or 'json', got 'xml'"),
        (("logging", "format"), 5, "logging.format: expected 'text' or 'json', got 5"),
        (
            ("logging", "level"), "INFO",
            "logging.level: expected 'debug' or 'info' or 'warning' or 'error' or 'critical', got 'INFO'",
        ),
        (("exchanges", "shop"), "topic", "exchanges.shop: expected a table, got a string"),
        (("exchanges", "shop", "durable"), 0, "exchanges.shop.durable: expected true or false, got 0"),
        (("queues", "orders", "type"), "stream", "queues.orders.type: expected 'quorum' or 'classic', got 'stream'"),
        (("queues", "orders", "typ"), 1, "queues.orders.typ: unknown key; did you mean 'type'?"),
        (
            ("queues", "orders", "orders"), 1,
            ("queues.orders.orders: unknown key; known here: name, type, durable, exclusive, auto_delete, passive, "
            "delivery_limit, arguments, bindings"),
        ),
        (("exchanges", "shop", "typ"), 1, "exchanges.shop.typ: unknown key; did you mean 'type'?"),
        (("queues", "orders", "delivery_limit"), 0, "queues.orders.delivery_limit: expected a whole number from 1, got 0"),
        (("queues", "orders", "arguments"), [], "queues.orders.arguments: expected a table, got an array"),
        (("queues", "orders", "bindings"), {}, "queues.orders.bindings: expected an array, got a table"),
        (("queues", "orders", "bindings"), ["x"], "queues.orders.bindings[0]: expected a table, got a string"),
        (
            ("queues", "orders", "bindings"), [{}],
            ("queues.orders.bindings[0].exchange: missing; "
            "The exchange: the name of an [exchanges] section, or of an exchange that exists."),
        ),
        (
            ("queues", "orders", "bindings", 0, "routing_keys"), "a",
            "queues.orders.bindings[0].routing_keys: expected an array, got a string",
        ),
        (
            ("queues", "orders", "bindings", 0, "routing_keys"), ["a", {}],
            "queues.orders.bindings[0].routing_keys[1]: expected a string, got a table",
        ),
        ((*CONSUMER, "workers"), 0, "consumers.shop.workers: expected a whole number from 1, got 0"),
        ((*CONSUMER, "workers"), 2.0, "consumers.shop.workers: expected a whole number from 1, got 2.0"),
        ((*CONSUMER, "workers"), 2**63, f"consumers.shop.workers: expected a whole number from 1, got {2**63}"),
        ((*CONSUMER, "prefetch"), "many", "consumers.shop.prefetch: expected a whole number from 1, got a string"),
        ((*CONSUMER, "time_limit"), -0.5, "consumers.shop.time_limit: expected a number of seconds, got -0.5"),
        (
            (*CONSUMER, "on_error"), "ignore",
            ("consumers.shop.on_error: expected 'auto' or 'reply' or 'retry' or 'archive' or 'requeue' or 'drop' or 'halt', "
            "got 'ignore'"),
        ),
        ((*CONSUMER, "retry", "delays"), 5, "consumers.shop.retry.delays: expected an array, got 5"),
        (
            (*CONSUMER, "retry", "delays"), [1, "x"],
            "consumers.shop.retry.delays[1]: expected a number of seconds, got a string",
        ),
        ((*CONSUMER, "retry", "attempts"), 0, "consumers.shop.retry.attempts: expected a whole number from 1, got 0"),
        ((*CONSUMER, "retry", "delay"), [1], "consumers.shop.retry.delay: unknown key; did you mean 'delays'?"),
        ((*CONSUMER, "archive", "overflow"), "drop",
            "consumers.shop.archive.overflow: expected 'reject-publish' or 'drop-head', got 'drop'"),
        ((*CONSUMER, "config"), [], "consumers.shop.config: expected a table, got an array"),
        ((*CONSUMER, "workerz"), 1, "consumers.shop.workerz: unknown key; did you mean 'workers'?"),
        (("broker", "url"), "http://h",
            "broker.url: expected amqp://USER:PASSWORD@HOST[:PORT][,HOST...]/VIRTUAL-HOST, or amqps://"),
        (("broker", "password"), "${NOWHERE}",
            "broker.password: the environment has no NOWHERE; set it, or give a default: ${NOWHERE:default}"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_a_bad_setting_is_one_problem_with_its_exact_path(path: tuple[str | int, ...], value: Any, problem: str) -> None:
    assert said(changed(*path, to=value)) == [problem]


@pytest.mark.parametrize(
    ("path", "value"), [((*CONSUMER, "queue"), ""), ((*CONSUMER, "handler"), 5), ((*CONSUMER, "queue"), 5)]
)
def test_a_required_setting_that_is_wrong_is_not_said_to_be_missing_as_well(path: tuple[str, ...], value: Any) -> None:
    (problem,) = said(changed(*path, to=value))
    assert problem.startswith(".".join(path) + ": expected a name of 1 to 255 bytes, got ")


@pytest.mark.parametrize("missing", ["queue", "handler"])
def test_a_required_setting_that_is_missing_is_said_with_what_it_means(missing: str) -> None:
    parsed = copy.deepcopy(GOOD)
    del parsed["consumers"]["shop"][missing]
    (problem,) = said(parsed)
    assert problem.startswith(f"consumers.shop.{missing}: missing; ")


def test_all_mistakes_are_found_at_once() -> None:
    problems = said(
        {
            "broker": {"heartbeat": "x", "usrname": "me"},
            "queues": {
                "orders": {"type": "x", "bindings": [{"exchange": "a", "keys": []}, {"exchange": "b", "routing_keys": 5}]},
                "q": 5,
            },
            "consumers": {"shop": {"queue": "orders", "handler": "a.b:c", "workers": 0, "retry": {"delays": [-1, "x"]}}},
            "zzz": 1,
        }
    )
    assert sorted(problem.partition(":")[0] for problem in problems) == [
        "broker.heartbeat",
        "broker.usrname",
        "consumers.shop.retry.delays[0]",
        "consumers.shop.retry.delays[1]",
        "consumers.shop.workers",
        "queues.orders.bindings[0].keys",
        "queues.orders.bindings[1].routing_keys",
        "queues.orders.type",
        "queues.q",
        "zzz",
    ]


def test_what_is_right_is_kept_for_further_checks() -> None:
    found, _ = loaded(
        {
            "queues": {"orders": {"type": "x", "delivery_limit": 7}, "broken": 5},
            "consumers": {
                "shop": {"queue": "orders", "handler": "a.b:c", "workers": "x", "accept": [5, "text/plain"]},
                "other": {"queue": "nowhere"},
            },
        }
    )
    assert (found.queues["orders"].delivery_limit, found.queues["broken"]) == (7, Queue())
    assert (found.consumers["shop"].workers, found.consumers["shop"].accept) == (1, ["text/plain"])


def test_a_consumer_of_a_broken_queue_is_no_second_problem() -> None:
    assert said(changed("queues", "orders", to=5)) == ["queues.orders: expected a table, got 5"]


# The environment ----------------------------------------------------------------------------------


def test_the_environments_url_wins_over_the_file() -> None:
    found, problems = loaded(changed("broker", "url", to="amqp://file"), {"RABBITMQ_URL": "amqp://environment"})
    assert (found.broker.url, problems) == ("amqp://environment", [])


def test_the_environments_url_brings_its_own_user_and_virtual_host() -> None:
    """Else the file's password would be shown to another broker."""
    own = {"username": "shop", "password": "secret", "virtual_host": "shop", "heartbeat": 7}
    found, problems = loaded({**GOOD, "broker": own}, {"RABBITMQ_URL": "amqp://environment"})
    assert problems == []
    assert found.broker == Broker(url="amqp://environment", heartbeat=7)


def test_a_mistake_beside_the_url_hides_none_within_it() -> None:
    assert len(said({**GOOD, "broker": {"url": "amqp://h:0", "heartbeat": "often"}})) == 2


def test_the_environments_url_needs_no_broker_section_and_is_not_expanded() -> None:
    found, problems = loaded(GOOD, {"RABBITMQ_URL": "amqp://u:$$@h"})
    assert (found.broker.url, problems) == ("amqp://u:$$@h", [])


def test_a_mistake_in_the_environments_url_is_named_after_it() -> None:
    assert said(GOOD, {"RABBITMQ_URL": "http://h"})[0].startswith("RABBITMQ_URL: expected amqp://")


def test_a_broken_broker_section_is_said_even_with_a_url_from_the_environment() -> None:
    assert said({**GOOD, "broker": 5}, {"RABBITMQ_URL": "amqp://h"}) == ["broker: expected a table, got 5"]


@pytest.mark.parametrize("text", ["", "x", "-1", "65536", "1.5"])
def test_a_mistake_in_the_environments_heartbeat_is_named_after_it(text: str) -> None:
    assert said(GOOD, {"RABBITMQ_HEARTBEAT": text}) == [
        f"RABBITMQ_HEARTBEAT: the heartbeat {text!r} is not a whole number of seconds from 0 to 65535"
    ]
    with pytest.raises(AddressError):
        heartbeat({"RABBITMQ_HEARTBEAT": text})


@pytest.mark.parametrize(
    ("environment", "seconds"), [({}, None), ({"RABBITMQ_HEARTBEAT": "0"}, 0), ({"RABBITMQ_HEARTBEAT": "7"}, 7)]
)
def test_the_environments_heartbeat_is_a_number_or_not_set(environment: dict[str, str], seconds: int | None) -> None:
    assert heartbeat(environment) == seconds


def test_strings_are_expanded_before_they_are_checked() -> None:
    parsed = changed("broker", to={"password": "${file:/etc/key}", "url": "amqp://u:${PASSWORD}@${HOST:rabbit}"})
    found, problems = loaded(parsed, {"PASSWORD": "a/b"})
    assert (problems, found.broker.password, found.broker.url) == ([], SECRET, "amqp://u:a%2Fb@rabbit")


# Secrets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broker",
    [
        {"url": f"http://u:{SECRET}@h"},
        {"url": f"amqp://u:{SECRET}@h:port"},
        {"url": f"amqp://u:{SECRET}/x@h"},
        {"url": "amqp://u:${file:/etc/key}@h:port"},
        {"heartbeat": SECRET},
        {"tls": SECRET},
        {"tls": {"ca": [SECRET]}},
        {"connect_timeout": SECRET},
        {"password": [SECRET]},
        {"password": {"value": SECRET}},
        SECRET,
    ],
)
def test_no_problem_shows_a_secret_of_the_broker(broker: Any) -> None:
    problems = said({**GOOD, "broker": broker})
    assert problems
    assert SECRET not in "\n".join(problems)


@pytest.mark.parametrize("value", [4111111111, 4111111111.5])
@pytest.mark.parametrize("name", ["password", "url"])
def test_a_password_of_digits_without_quotes_is_not_shown_either(name: str, value: float) -> None:
    (problem,) = said(changed("broker", name, to=value))
    assert problem.startswith(f"broker.{name}: expected a string, got ")
    assert "4111111111" not in problem


SCALARS = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | st.text(max_size=5)
SECTIONS: list[Any] = [
    sections.Settings,
    sections.Broker,
    sections.Service,
    sections.Queue,
    sections.Binding,
    sections.Consumer,
    sections.Retry,
]
KEYS = sorted({field.name for each in SECTIONS for field in attrs.fields(each)} | {"shop", "unknown"})
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=12,
)


@PROPERTY
@given(
    st.dictionaries(
        st.sampled_from(["broker", "service", "logging", "exchanges", "queues", "consumers", "layers", "zzz"]),
        TREES,
        max_size=4,
    )
)
@example({"exchanges": {"shop": {"shop": None}}})
def test_any_tree_gives_settings_and_problems_and_never_crashes(parsed: dict[str, Any]) -> None:
    found, problems = load(parsed, {"RABBITMQ_URL": "amqp://h"}, read)
    assert isinstance(found, Settings)
    assert all(problem.path and problem.what for problem in problems)


def test_a_mistyped_and_a_missing_key_of_one_entry_are_two_problems_and_no_crash() -> None:
    queues = {"orders": {"bindings": [{"exchnage": "x", "routing_key": "a"}, {"exchange": 7, "other": 1}]}}
    found = said({**GOOD, "queues": queues})
    assert sorted(problem.partition(":")[0].removeprefix("queues.orders.") for problem in found) == [
        "bindings[0].exchange",
        "bindings[0].exchnage",
        "bindings[0].routing_key",
        "bindings[1].exchange",
        "bindings[1].other",
    ]
