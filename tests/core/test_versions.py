"""What other versions of the broker do differently is told ahead."""

from typing import Any

import pytest
from sections import built

from rpcd.core.lint import lint
from rpcd.core.settings import Settings
from rpcd.core.versions import LARGEST, Version, advise

OLD, LAST_OF_3, NEW = (3, 10, 8), (3, 13, 7), (4, 0, 5)
UNKNOWN = ()


def settings(queue: Any = None, consumer: Any = None, service: Any = None) -> Settings:
    consumers = {"shop": {"queue": "orders", "handler": "shop.orders:it", **(consumer or {})}}
    return built({"queues": {"orders": queue or {}}, "consumers": consumers, "service": service or {}})


def told(version: Version, **sections: Any) -> list[str]:
    return [str(each) for each in advise(settings(**sections), version)]


@pytest.mark.parametrize("version", [UNKNOWN, OLD, LAST_OF_3, NEW])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"queue": {"type": "classic"}},
        {"queue": {"delivery_limit": 100}},
        {"queue": {"exclusive": True, "durable": False}},
        {"queue": {"name": ""}},
        {"queue": {"auto_delete": True, "durable": False}},
        {"queue": {"passive": True, "type": "classic"}},
        {"queue": {"arguments": {"x-delivery-limit": 5, "x-single-active-consumer": True}}},
        {"consumer": {"max_body": LARGEST, "max_reply": LARGEST}},
    ],
)
def test_most_configs_mean_the_same_everywhere(version: Version, sections: Any) -> None:
    assert told(version, **sections) == []


@pytest.mark.parametrize(
    ("sections", "versions", "advice"),
    [
        (
            {"queue": {"durable": False}},
            {UNKNOWN, OLD, LAST_OF_3, NEW},
            (
                "queues.orders.durable: neither durable nor exclusive: deprecated from RabbitMQ 4.0 on, and refused by "
                "a later version; drop durable = false, or write exclusive = true"
            ),
        ),
        (
            {"queue": {"type": "classic", "arguments": {"x-queue-mode": "lazy"}}},
            {UNKNOWN, LAST_OF_3, NEW},
            (
                "queues.orders.arguments.x-queue-mode: does nothing from RabbitMQ 3.12 on, where every classic queue is "
                "lazy; remove it"
            ),
        ),
        (
            {"queue": {"type": "classic", "arguments": {"x-queue-master-locator": "min-masters"}}},
            {UNKNOWN, NEW},
            (
                "queues.orders.arguments.x-queue-master-locator: is deprecated from RabbitMQ 4.0 on; "
                "write x-queue-leader-locator"
            ),
        ),
        (
            {"queue": {"type": "classic", "arguments": {"x-ha-policy": "all"}}},
            {UNKNOWN, OLD, LAST_OF_3, NEW},
            (
                "queues.orders.arguments.x-ha-policy: mirrors nothing: that took a policy, and from RabbitMQ 4.0 on there "
                'are no mirrored queues; remove it; a queue of type = "quorum" is replicated'
            ),
        ),
        (
            {"queue": {"arguments": {"x-delivery-limit": -1}}},
            {UNKNOWN, OLD, LAST_OF_3},
            (
                "queues.orders.arguments.x-delivery-limit: means no limit from RabbitMQ 4.0 on; before, the broker gives a "
                "message up when it first comes back; write delivery_limit with a large number"
            ),
        ),
        (
            {"queue": {"passive": True}},
            {UNKNOWN, NEW},
            (
                "queues.orders: made elsewhere: from RabbitMQ 4.0 on, a quorum queue drops what has come back more than 20 "
                "times; let it dead-letter or give it an x-delivery-limit, unless that is done"
            ),
        ),
        (
            {"consumer": {"max_body": LARGEST + 1}},
            {UNKNOWN, NEW},
            (
                "consumers.shop.max_body: RabbitMQ takes no message of more than 16777216 bytes from 4.0 on; "
                "raise the broker's max_message_size, or lower this"
            ),
        ),
        (
            {"consumer": {"max_reply": LARGEST + 1}},
            {UNKNOWN, NEW},
            (
                "consumers.shop.max_reply: RabbitMQ takes no message of more than 16777216 bytes from 4.0 on; "
                "raise the broker's max_message_size, or lower this"
            ),
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_differs_is_told_where_it_may_matter(sections: Any, versions: set[Version], advice: str) -> None:
    assert {version for version in (UNKNOWN, OLD, LAST_OF_3, NEW) if told(version, **sections)} == versions
    assert {each for version in versions for each in told(version, **sections)} == {advice}


def test_queues_that_only_an_administrator_declares_are_made_elsewhere() -> None:
    assert len(told(NEW, service={"declare": False})) == 1


@pytest.mark.parametrize(("version", "grave"), [(UNKNOWN, False), (OLD, True)])
def test_only_what_loses_messages_on_this_very_broker_is_grave(version: Version, grave: bool) -> None:
    (advice,) = advise(settings(queue={"arguments": {"x-delivery-limit": -1}}), version)
    assert advice.grave is grave
    assert not any(each.grave for each in advise(settings(queue={"durable": False}), version))


@pytest.mark.parametrize(
    ("queue", "argument", "kind"),
    [
        ({}, "x-max-priority", "quorum"),
        ({}, "x-queue-mode", "quorum"),
        ({}, "x-queue-version", "quorum"),
        ({}, "x-queue-master-locator", "quorum"),
        ({"type": "classic"}, "x-delivery-limit", "classic"),
        ({"durable": False}, "x-delivery-limit", "classic"),
        ({"name": ""}, "x-max-in-memory-length", "classic"),
        ({"type": "classic"}, "x-quorum-initial-group-size", "classic"),
    ],
)
def test_what_every_version_refuses_is_a_mistake(queue: Any, argument: str, kind: str) -> None:
    said = [str(problem) for problem in lint(settings(queue={**queue, "arguments": {argument: 1}}))]
    assert said == [
        f"queues.orders.arguments.{argument}: the broker refuses it for a {kind} queue; remove it, or choose another type"
    ]
    passive = {**queue, "name": "orders", "passive": True, "arguments": {argument: 1}}
    assert not [problem for problem in lint(settings(queue=passive)) if "arguments" in problem.path]


@pytest.mark.parametrize("queue", [{"type": "classic"}, {"durable": False}, {"arguments": {"x-queue-type": "classic"}}])
def test_a_classic_queue_may_have_priorities(queue: Any) -> None:
    arguments = {**queue.get("arguments", {}), "x-max-priority": 9}
    assert lint(settings(queue={**queue, "arguments": arguments})) == []
