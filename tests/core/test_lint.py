from typing import Any

import pytest
from sections import built

from rpcd.core.lint import dotted, lint, own_queues
from rpcd.core.settings import Settings


def settings(**sections: Any) -> Settings:
    consumers = {"shop": {"queue": "orders", "handler": "shop.orders:it"}}
    return built({"queues": {"orders": {}}, "consumers": consumers, **sections})


def said(**sections: Any) -> list[str]:
    return [str(problem) for problem in lint(settings(**sections))]


def of_consumer(**settings: Any) -> list[str]:
    return said(consumers={"shop": {"queue": "orders", "handler": "shop.orders:it", **settings}})


def of_queue(**settings: Any) -> list[str]:
    return said(queues={"orders": settings})


def test_a_good_config_has_no_problems() -> None:
    assert said() == []


@pytest.mark.parametrize(
    ("broker", "problem"),
    [
        ({"heartbeat": -1}, "broker.heartbeat: expected 0 to 65535 seconds, got -1"),
        ({"heartbeat": 65536}, "broker.heartbeat: expected 0 to 65535 seconds, got 65536"),
        ({"connect_timeout": 0}, "broker.connect_timeout: no connection is made in 0 seconds"),
        (
            {"url": "amqps://h", "tls": {"certificate": "c"}},
            "broker.tls: a certificate needs its key, and a key its certificate; set both or none",
        ),
        (
            {"url": "amqps://h", "tls": {"key": "k"}},
            "broker.tls: a certificate needs its key, and a key its certificate; set both or none",
        ),
        (
            {"tls": {"ca": "c"}},
            "broker.tls: the URL says amqp://, which is plain TCP; write amqps:// to use TLS",
        ),
    ],
)
def test_a_mistake_about_the_broker(broker: Any, problem: str) -> None:
    assert said(broker=broker) == [problem]


@pytest.mark.parametrize(
    "broker",
    [
        {"heartbeat": 0},
        {"heartbeat": 65535},
        {"url": "amqps://h", "tls": {"ca": "c"}},
        {"url": "amqps://h", "tls": {"certificate": "c", "key": "k"}},
        {"tls": {}},
    ],
)
def test_what_is_right_about_the_broker(broker: Any) -> None:
    assert said(broker=broker) == []


@pytest.mark.parametrize(
    ("service", "problem"),
    [
        ({"on_start": "setup"}, "service.on_start: 'setup' is no dotted path; expected package.module:function"),
        ({"confirm_timeout": 0}, "service.confirm_timeout: expected more than 0 seconds"),
        ({"publish_timeout": 0}, "service.publish_timeout: expected more than 0 seconds"),
    ],
)
def test_a_mistake_about_the_service(service: Any, problem: str) -> None:
    assert said(service=service) == [problem]


def test_a_config_without_consumers_has_nothing_to_do() -> None:
    assert said(consumers={}) == ["consumers: there is no [consumers.NAME] section, so there is nothing to do"]


@pytest.mark.parametrize(
    ("exchanges", "problem"),
    [
        ({"x" * 256: {}}, f"exchanges.{'x' * 256}: its name has more than 255 bytes"),
        ({"e": {"name": "ä" * 128}}, "exchanges.e: its name has more than 255 bytes"),
        (
            {"amq.own": {}},
            "exchanges.amq.own: names that start with `amq.` belong to the broker; set passive = true to use one that",
        ),
        ({"e": {"name": ""}}, "exchanges.e: the default exchange can't be declared; remove the section; it always exists"),
        ({"e": {"type": ""}}, "exchanges.e.type: empty; expected direct, fanout, topic or headers"),
        ({"e": {"arguments": {"x": 2**63}}}, "exchanges.e.arguments: header 'x': the integer needs more than 64 bits"),
        ({"e": {"type": "x" * 256}}, "exchanges.e.type: "),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_mistake_about_an_exchange(exchanges: Any, problem: str) -> None:
    (found,) = said(exchanges=exchanges)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "exchanges", [{"amq.topic": {"passive": True}}, {"e": {"name": "x" * 255}}, {"e": {"type": "x-random"}}]
)
def test_what_is_right_about_an_exchange(exchanges: Any) -> None:
    assert said(exchanges=exchanges) == []


QUORUM = (
    "queues.orders.type: a quorum queue is always durable, has a name, and outlives its connection; "
    'write type = "classic", or drop exclusive, auto_delete, durable and the empty name'
)


@pytest.mark.parametrize(
    ("queue", "problem"),
    [
        ({"type": "quorum", "exclusive": True}, QUORUM),
        ({"type": "quorum", "auto_delete": True}, QUORUM),
        ({"type": "quorum", "durable": False}, QUORUM),
        ({"type": "quorum", "name": ""}, QUORUM),
        (
            {"name": "", "passive": True},
            "queues.orders: a queue that the broker names can't be passive; give its name, or drop passive",
        ),
        (
            {"name": "amq.mine"},
            "queues.orders: names that start with `amq.` belong to the broker; set passive = true to use one that exists",
        ),
        ({"arguments": {"x": {"y": [2**63]}}}, "queues.orders.arguments: header 'y': the integer needs more than 64 bits"),
        (
            {"bindings": [{"exchange": "e"}, {"exchange": "e", "arguments": {"x": 2**63}}]},
            "queues.orders.bindings[1].arguments: header 'x': the integer needs more than 64 bits",
        ),
        ({"bindings": [{"exchange": "e", "routing_keys": ["a", "x" * 256]}]}, "queues.orders.bindings[0].routing_keys[1]: "),
        (
            {"name": "x" * 242},
            f"queues.orders: the name leaves no room for its retry queue '{'x' * 242}.retry.1800000' in 255 bytes",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_about_a_queue(queue: Any, problem: str) -> None:
    (found,) = of_queue(**queue)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "queue",
    [
        {"type": "classic", "exclusive": True},
        {"type": "classic", "name": ""},
        {"name": ""},
        {"exclusive": True, "auto_delete": True},
        {"durable": False},
        {"name": "amq.mine", "passive": True},
        {"name": "x" * 241},
        {"arguments": {"x-max-length": 5, "x-list": [1, "a"], "x-float": 1.5}},
    ],
)
def test_what_is_right_about_a_queue(queue: Any) -> None:
    assert of_queue(**queue) == []


@pytest.mark.parametrize(
    ("consumer", "problem"),
    [
        ({"queue": "order"}, "consumers.shop.queue: there is no [queues.order]; did you mean 'orders'?"),
        (
            {"queue": "payments"},
            (
                "consumers.shop.queue: there is no [queues.payments]; "
                "add the section (with passive = true if the queue is made elsewhere)"
            ),
        ),
        ({"handler": "orders"}, "consumers.shop.handler: 'orders' is no dotted path; expected package.module:Name"),
        ({"workers": 4, "prefetch": 3}, "consumers.shop.prefetch: expected from 4 (the workers) to 65535, got 3"),
        ({"prefetch": 65536}, "consumers.shop.prefetch: expected from 1 (the workers) to 65535, got 65536"),
        ({"workers": 40_000}, "consumers.shop.prefetch: expected from 40000 (the workers) to 65535, got 80000"),
        ({"time_limit": 0}, "consumers.shop.time_limit: no handler can run in 0 seconds"),
        ({"max_reply": 1023}, "consumers.shop.max_reply: expected at least 1024 bytes, so that a failure can be told"),
        (
            {"accept": []},
            (
                "consumers.shop.accept: empty, so no message could ever be opened; "
                'expected content types, such as ["application/json"]'
            ),
        ),
        (
            {"accept": ["application/json", "json"]},
            "consumers.shop.accept[1]: 'json' is no content type; expected type/subtype, in lower case, without parameters",
        ),
        ({"accept": ["Text/plain"]}, "consumers.shop.accept[0]: 'Text/plain' is no content type"),
        ({"accept": ["text/plain; charset=utf-8"]}, "consumers.shop.accept[0]: 'text/plain; charset=utf-8' is no content"),
        ({"accept": [" text/plain"]}, "consumers.shop.accept[0]: ' text/plain' is no content type"),
        (
            {"lock": "customer"},
            "consumers.shop.lock: expected `routing_key`, `headers.NAME`, `body.NAME` or `*`",
        ),
        (
            {"retry": {"delays": [], "attempts": 2}},
            (
                "consumers.shop.retry.attempts: there are no delays, so there is only one attempt; "
                "add delays, or write attempts = 1"
            ),
        ),
        (
            {"retry": {"delays": [1, 0]}},
            "consumers.shop.retry.delays[1]: expected more than 0 and at most 4294967 seconds, got 0",
        ),
        (
            {"retry": {"delays": [4294968]}},
            "consumers.shop.retry.delays[0]: expected more than 0 and at most 4294967 seconds, got 4.29497e+06",
        ),
        ({"arguments": {"x-priority": 2**63}}, "consumers.shop.arguments: header 'x-priority': the integer needs more"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_about_a_consumer(consumer: Any, problem: str) -> None:
    (found,) = of_consumer(**consumer)
    assert found.startswith(problem)


def test_an_archive_without_a_limit_never_overflows() -> None:
    found = of_consumer(archive={"overflow": "drop-head"})
    assert found == ["consumers.shop.archive.overflow: the archive has no limit, so it never overflows; set max_length, too"]
    assert of_consumer(archive={"overflow": "drop-head", "max_length": 5}) == []


@pytest.mark.parametrize(
    "consumer",
    [
        {"workers": 4, "prefetch": 4},
        {"prefetch": 65535},
        {"accept": ["*/*", "text/plain", "application/vnd.shop+json"]},
        {"lock": ""},
        {"lock": "*"},
        {"lock": "*", "workers": 8},
        {"lock": "body.customer.name"},
        {"retry": {"delays": []}},
        {"retry": {"delays": [], "attempts": 1}},
        {"retry": {"delays": [0.001, 4294967]}},
        {"handler": "shop.orders.it"},
        {"max_reply": 1024},
    ],
)
def test_what_is_right_about_a_consumer(consumer: Any) -> None:
    assert of_consumer(**consumer) == []


# What several have in common ----------------------------------------------------------------------


def two(queue: Any = None, first: Any = None, second: Any = None) -> list[str]:
    consumer = {"queue": "orders", "handler": "shop.orders:it"}
    return said(
        queues={"orders": queue or {}}, consumers={"a": {**consumer, **(first or {})}, "b": {**consumer, **(second or {})}}
    )


def test_two_consumers_may_share_a_queue() -> None:
    assert two(first={"retry": {"delays": [1]}}, second={"retry": {"delays": [2]}, "on_error": "drop"}) == []


@pytest.mark.parametrize("queue", [{"exclusive": True}, {"name": ""}])
def test_two_consumers_cannot_share_a_queue_of_one_connection(queue: Any) -> None:
    assert two(queue) == ["consumers.b.queue: the queue is exclusive and consumers.a has it already"]


def test_two_consumers_of_one_queue_must_agree_on_its_archive() -> None:
    assert two(first={"archive": {"max_length": 5}}) == [
        "consumers.b.archive: differs from consumers.a.archive, but their queue has one archive"
    ]


@pytest.mark.parametrize("name", ["orders.archive", "orders.retry.200", "orders.retry.1800000"])
def test_a_queue_that_we_declare_ourselves_can_only_be_used_passively(name: str) -> None:
    assert said(queues={"orders": {}, "x": {"name": name}}) == [
        "queues.x: rpcd declares this queue itself, beside queues.orders; set passive = true to use it"
    ]
    assert said(queues={"orders": {}, "x": {"name": name, "passive": True}}) == []


def test_two_sections_cannot_name_the_same_queue_or_exchange() -> None:
    """The broker would refuse the second declaration (406), or both would set up the same archive, each in its own way."""
    assert said(queues={"orders": {}, "again": {"name": "orders", "type": "classic"}}) != []
    assert said(exchanges={"shop": {}, "again": {"name": "shop", "type": "direct"}}) != []


@pytest.mark.parametrize(
    ("queue", "own"),
    [
        ({}, {"orders", "orders.archive", "orders.retry.200", "orders.retry.2000"}),
        ({"name": "o"}, {"o", "o.archive", "o.retry.200", "o.retry.2000"}),
        ({"name": ""}, {"orders", "orders.archive"}),
    ],
)
def test_a_queue_and_all_that_belongs_to_it_are_our_own(queue: Any, own: set[str]) -> None:
    consumer = {"queue": "orders", "handler": "shop.orders:it"}
    found = settings(
        queues={"orders": queue},
        consumers={"a": {**consumer, "retry": {"delays": [0.2]}}, "b": {**consumer, "retry": {"delays": [0.2, 2]}}},
    )
    assert own_queues(found, "orders") == own


# Dotted paths -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["a.b", "a:b", "shop.orders:PlaceOrder", "shop.orders.PlaceOrder", "a.b:C.d", "_a:_b", "größe.x:y"]
)
def test_a_dotted_path(path: str) -> None:
    assert dotted(path)


@pytest.mark.parametrize(
    "path",
    ["", "a", "a:", ":b", "a.", ".a", "a..b", "a:b:c", "a.b:", "1a:b", "a:1b", "a b:c", "a:b()", "a-b:c", "a:b\n", "a/b:c"],
)
def test_no_dotted_path(path: str) -> None:
    assert not dotted(path)
