from typing import Any

import attrs
import pytest
from sections import built

from rpcd.core.settings import Settings
from rpcd.core.topology import (
    NO_DELIVERY_LIMIT,
    Bind,
    Declaration,
    DeclareExchange,
    DeclareQueue,
    declare_exchange,
    ephemeral,
    plan_consumer,
    plan_queue,
    plan_rest,
)


def settings(
    queue: dict[str, Any] | None = None,
    consumer: dict[str, Any] | None = None,
    exchanges: dict[str, Any] | None = None,
    service: dict[str, Any] | None = None,
    **queues: dict[str, Any],
) -> Settings:
    return built(
        {
            "service": service or {},
            "exchanges": exchanges or {},
            "queues": {"orders": queue or {}, **queues},
            "consumers": {"shop": {"queue": "orders", "handler": "shop.orders:it", **(consumer or {})}},
        }
    )


def by_name(plan: list[Declaration]) -> dict[str, DeclareQueue]:
    return {each.name: each for each in plan if isinstance(each, DeclareQueue)}


def names(plan: list[Declaration]) -> list[str]:
    """Say in one word a declaration what a plan does, in its order."""
    said = []
    for each in plan:
        if isinstance(each, Bind):
            said.append(f"{each.exchange} -> {each.queue} ({each.routing_key})")
        else:
            said.append(each.name + (" (passive)" if each.passive else ""))
    return said


TO_ARCHIVE = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "orders.archive"}


# Arguments ----------------------------------------------------------------------------------------


def test_a_work_queue_is_quorum_with_a_limit_and_dead_letters_at_least_once_to_its_archive() -> None:
    assert by_name(plan_consumer(settings(), "shop"))["orders"] == DeclareQueue(
        path="queues.orders",
        name="orders",
        durable=True,
        exclusive=False,
        auto_delete=False,
        passive=False,
        arguments={
            **TO_ARCHIVE,
            "x-queue-type": "quorum",
            "x-delivery-limit": 20,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
        unlimited=False,
    )


def test_the_archive_is_quorum_without_a_delivery_limit_or_any_other() -> None:
    assert by_name(plan_consumer(settings(), "shop"))["orders.archive"] == DeclareQueue(
        "queues.orders", "orders.archive", True, False, False, False, {"x-queue-type": "quorum"}, unlimited=True
    )


def test_a_retry_step_gives_back_at_least_once_after_its_time() -> None:
    assert by_name(plan_consumer(settings(), "shop"))["orders.retry.200"] == DeclareQueue(
        "queues.orders",
        "orders.retry.200",
        True,
        False,
        False,
        False,
        {
            "x-queue-type": "quorum",
            "x-message-ttl": 200,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "orders",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
        unlimited=True,
    )


def test_no_queue_says_itself_that_it_has_no_delivery_limit() -> None:
    """On 3.10 a limit of -1 drops a message on its first return: the version decides, when it is known."""
    plan = plan_consumer(settings(), "shop")
    assert all(NO_DELIVERY_LIMIT.items().isdisjoint(each.arguments.items()) for each in plan)
    assert [name for name, each in by_name(plan).items() if not each.unlimited] == ["orders"]


def test_an_archive_with_a_length_refuses_when_full_unless_told_to_lose_the_oldest() -> None:
    assert [
        by_name(plan_consumer(settings(consumer={"archive": archive}), "shop"))["orders.archive"].arguments
        for archive in ({"max_length": 5}, {"max_length": 5, "overflow": "drop-head"}, {"overflow": "drop-head"})
    ] == [
        {"x-queue-type": "quorum", "x-max-length": 5, "x-overflow": "reject-publish"},
        {"x-queue-type": "quorum", "x-max-length": 5, "x-overflow": "drop-head"},
        {"x-queue-type": "quorum"},
    ]


@pytest.mark.parametrize(
    ("section", "arguments"),
    [
        ({"delivery_limit": 7}, {"x-delivery-limit": 7}),
        ({"type": "quorum"}, {"x-queue-type": "quorum"}),
        ({"arguments": {"x-max-length": 5}}, {"x-max-length": 5, "x-overflow": "reject-publish"}),
        ({"arguments": {"x-overflow": "drop-head"}}, {"x-overflow": "drop-head"}),
        ({"arguments": {"x-dead-letter-routing-key": "other"}}, {"x-dead-letter-routing-key": "other"}),
    ],
)
def test_settings_of_a_work_queue_win_over_what_we_would_choose(section: Any, arguments: dict[str, Any]) -> None:
    found = by_name(plan_consumer(settings(section), "shop"))["orders"].arguments
    assert {name: found[name] for name in arguments} == arguments


@pytest.mark.parametrize(
    ("section", "durable", "exclusive", "auto_delete"),
    [
        ({"type": "classic"}, True, False, False),
        ({"durable": False}, False, False, False),
        ({"exclusive": True}, False, True, False),
        ({"auto_delete": True}, True, False, True),
        ({"exclusive": True, "durable": True}, True, True, False),
        ({"type": "classic", "auto_delete": True, "durable": False}, False, False, True),
    ],
)
def test_a_classic_queue_gets_nothing_that_only_a_quorum_queue_knows(
    section: Any, durable: bool, exclusive: bool, auto_delete: bool
) -> None:
    found = by_name(plan_consumer(settings(section), "shop"))["orders"]
    assert (found.durable, found.exclusive, found.auto_delete) == (durable, exclusive, auto_delete)
    assert TO_ARCHIVE.items() <= found.arguments.items()
    assert {"x-delivery-limit", "x-dead-letter-strategy", "x-overflow"}.isdisjoint(found.arguments)
    assert found.arguments.get("x-queue-type") in (None, "classic")


def test_a_queue_that_is_classic_says_so_where_another_type_may_be_the_virtual_hosts_default() -> None:
    found = by_name(plan_consumer(settings({"type": "classic"}), "shop"))["orders"]
    assert found.arguments.get("x-queue-type") == "classic"


@pytest.mark.parametrize(
    ("section", "exclusive", "auto_delete", "durable"),
    [
        ({}, True, True, False),
        ({"exclusive": False}, False, True, True),
        ({"auto_delete": False}, True, False, False),
        ({"exclusive": False, "auto_delete": False}, False, False, True),
    ],
)
def test_a_queue_that_the_broker_names_dies_with_its_connection_unless_told_otherwise(
    section: Any, exclusive: bool, auto_delete: bool, durable: bool
) -> None:
    plan = plan_consumer(settings({"name": "", **section}), "shop")
    found = by_name(plan)[""]
    assert (found.exclusive, found.auto_delete, found.durable) == (exclusive, auto_delete, durable)
    assert found.arguments == TO_ARCHIVE
    assert names(plan) == ["orders.archive", ""]


# Which queues die with their connection -----------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "dies"),
    [
        ({}, False),
        ({"type": "classic"}, False),
        ({"durable": False}, False),
        ({"exclusive": True}, True),
        ({"auto_delete": True}, True),
        ({"name": ""}, True),
        ({"name": "", "exclusive": False, "auto_delete": False}, True),
        ({"name": "named"}, False),
    ],
)
def test_a_queue_that_dies_with_its_connection_gets_no_retry_queues(section: Any, dies: bool) -> None:
    found = settings(section)
    assert ephemeral(found, "orders") is dies
    assert any(".retry." in name for name in by_name(plan_consumer(found, "shop"))) is not dies


# Plans --------------------------------------------------------------------------------------------

BOUND = {
    "bindings": [
        {"exchange": "shop", "routing_keys": ["order.#", "refund.#"], "arguments": {"x": 1}},
        {"exchange": "amq.topic"},
        {"exchange": "events", "routing_keys": ["a"]},
    ]
}
EXCHANGES: dict[str, Any] = {"events": {"name": "company-events"}, "unused": {}, "shop": {"type": "direct"}}


def test_a_consumers_plan_is_in_the_order_in_which_it_can_be_carried_out() -> None:
    plan = plan_consumer(settings(BOUND, exchanges=EXCHANGES), "shop")
    assert names(plan) == [
        "company-events",
        "shop",
        "orders.archive",
        "orders.retry.200",
        "orders.retry.1000",
        "orders.retry.60000",
        "orders.retry.1800000",
        "orders",
        "shop -> orders (order.#)",
        "shop -> orders (refund.#)",
        "amq.topic -> orders ()",
        "company-events -> orders (a)",
    ]


def test_every_declaration_says_where_the_config_asks_for_it() -> None:
    plan = plan_consumer(settings(BOUND, exchanges=EXCHANGES), "shop")
    assert [each.path for each in plan if not isinstance(each, DeclareQueue)] == [
        "exchanges.events",
        "exchanges.shop",
        "queues.orders.bindings[0]",
        "queues.orders.bindings[0]",
        "queues.orders.bindings[1]",
        "queues.orders.bindings[2]",
    ]
    assert {each.path for each in plan if isinstance(each, DeclareQueue)} == {"queues.orders"}


def test_a_binding_has_its_arguments() -> None:
    binds = [each for each in plan_queue(settings(BOUND, exchanges=EXCHANGES), "orders") if isinstance(each, Bind)]
    assert [each.arguments for each in binds] == [{"x": 1}, {"x": 1}, {}, {}]


def test_an_exchange_is_what_its_section_says() -> None:
    section = {
        "name": "company-events",
        "type": "x-consistent-hash",
        "durable": False,
        "auto_delete": True,
        "internal": True,
        "arguments": {"hash-header": "k"},
    }
    assert declare_exchange(settings(exchanges={"events": section}), "events") == DeclareExchange(
        "exchanges.events", "company-events", "x-consistent-hash", False, True, True, False, {"hash-header": "k"}
    )


def test_a_passive_object_is_only_checked_for_and_its_neighbours_are_declared() -> None:
    plan = plan_consumer(settings({"passive": True, **BOUND}, exchanges={"shop": {"passive": True}}), "shop")
    assert names(plan)[:2] == ["shop (passive)", "orders.archive"]
    assert "orders (passive)" in names(plan)
    assert [name for name in names(plan) if "passive" in name] == ["shop (passive)", "orders (passive)"]


def test_without_declare_everything_is_only_checked_for_and_nothing_bound() -> None:
    plan = plan_consumer(settings(BOUND, exchanges=EXCHANGES, service={"declare": False}), "shop")
    assert plan
    assert all(isinstance(each, DeclareExchange | DeclareQueue) and each.passive for each in plan)


@pytest.mark.parametrize("section", [{"name": ""}, {"exclusive": True}])
def test_without_declare_a_queue_that_is_the_connections_own_is_declared_and_bound_all_the_same(section: Any) -> None:
    plan = plan_consumer(settings({**section, **BOUND}, service={"declare": False}), "shop")
    queue = next(each for each in plan if isinstance(each, DeclareQueue) and not each.name.endswith(".archive"))
    assert not queue.passive
    assert len([each for each in plan if isinstance(each, Bind)]) == 4


def test_consumers_of_one_queue_have_one_archive_and_all_their_steps() -> None:
    first = {"queue": "orders", "handler": "x:y", "retry": {"delays": [3.0, 1.0]}, "archive": {"max_length": 5}}
    found = built({"queues": {"orders": {}}, "consumers": {"a": first, "b": {**first, "retry": {"delays": [1.0, 2.0]}}}})
    assert names(plan_consumer(found, "a")) == [
        "orders.archive",
        "orders.retry.1000",
        "orders.retry.2000",
        "orders.retry.3000",
        "orders",
    ]
    assert plan_consumer(found, "a") == plan_consumer(found, "b")


def test_a_queue_is_named_by_its_section_unless_it_has_a_name() -> None:
    assert names(plan_consumer(settings({"name": "company-orders"}, {"retry": {"delays": [1]}}), "shop")) == [
        "company-orders.archive",
        "company-orders.retry.1000",
        "company-orders",
    ]


# The rest -----------------------------------------------------------------------------------------


def test_the_rest_is_what_no_consumer_declares_and_nothing_twice() -> None:
    found = settings(BOUND, exchanges=EXCHANGES, other={"bindings": [{"exchange": "shop"}, {"exchange": "unused"}]})
    assert names(plan_rest(found)) == ["unused", "other.archive", "other", "shop -> other ()", "unused -> other ()"]


def test_there_is_no_rest_if_consumers_declare_everything() -> None:
    assert plan_rest(settings(BOUND, exchanges={"shop": {}, "events": {}})) == []


def test_a_queue_that_nobody_here_consumes_has_an_archive_and_no_steps() -> None:
    assert names(plan_rest(settings(other={}))) == ["other.archive", "other"]


def test_what_may_be_missing_comes_behind_all_that_can_be_declared() -> None:
    bound = {"bindings": [{"exchange": "theirs"}, {"exchange": "ours"}]}
    found = settings(exchanges={"theirs": {"passive": True}, "ours": {}}, other=bound)
    assert names(plan_rest(found)) == [
        "ours",
        "other.archive",
        "other",
        "ours -> other ()",
        "theirs (passive)",
        "theirs -> other ()",
    ]


def test_plans_and_rest_together_are_everything_once() -> None:
    found = settings(BOUND, exchanges=EXCHANGES, other={"bindings": [{"exchange": "unused"}]}, third={"name": "3"})
    everything = plan_consumer(found, "shop") + plan_rest(found)
    declared = [each.name for each in everything if not isinstance(each, Bind)]
    assert len(declared) == len(set(declared))
    assert {"company-events", "unused", "shop", "orders", "other", "3"} <= set(declared)
    assert [each for each in everything if isinstance(each, Bind)] == [
        bind for key in found.queues for bind in plan_queue(found, key) if isinstance(bind, Bind)
    ]


def test_a_plan_does_not_change_what_it_was_made_from() -> None:
    found = settings({"arguments": {"x-max-length": 5}})
    before = attrs.asdict(found)
    plan_consumer(found, "shop")
    plan_rest(found)
    assert attrs.asdict(found) == before
