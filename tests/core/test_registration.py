"""`@rpcd.message_handler`: what it marks, what becomes of it, and how wrong ones are told."""

import functools
import re
import threading
import types
from typing import Any

import attrs
import pytest
from sections import built

import rpcd
from rpcd.core.errors import Problem
from rpcd.core.registered import placed, sections, traced
from rpcd.core.registration import Registered, Registration, marks, registered


def module(**members: Any) -> types.ModuleType:
    """A module with these names, as if it was imported."""
    made = types.ModuleType("shop_events")
    vars(made).update(members)
    return made


def handler(message: Any) -> Any:
    return message


# Marking ------------------------------------------------------------------------------------------


def test_a_decorated_function_is_the_same_function() -> None:
    def function(message: Any) -> Any:
        return [message]

    decorated = rpcd.message_handler("order.*", exchange="shop")(function)
    assert decorated is function
    assert decorated(1) == [1]
    assert marks(function) == (Registration(("order.*",), "shop", None, None, {}),)


def test_classes_async_functions_and_callable_objects_can_be_marked() -> None:
    class Handler:
        def __call__(self, message: Any) -> None:
            """Handle a message."""

    async def coroutine(message: Any) -> None:
        """Handle a message."""

    for value in (Handler, coroutine, Handler()):
        assert rpcd.message_handler(["a", "b"], exchange="shop", workers=2)(value) is value
        assert marks(value)[-1] == Registration(("a", "b"), "shop", None, None, {"workers": 2})


def test_several_decorators_add_up() -> None:
    def function(message: Any) -> None:
        """Handle a message."""

    rpcd.message_handler("a", exchange="one", queue="first")(function)
    rpcd.message_handler("b", exchange="two", queue="second")(function)
    assert [(each.exchange, each.queue) for each in marks(function)] == [("one", "first"), ("two", "second")]


def test_a_subclass_is_not_marked_by_its_base() -> None:
    class Base:
        def __call__(self, message: Any) -> None:
            """Handle a message."""

    class Special(Base):
        pass

    rpcd.message_handler("a", exchange="shop", queue="base")(Base)
    assert marks(Special) == ()
    rpcd.message_handler("a", exchange="shop", queue="special")(Special)
    assert [each.queue for each in marks(Special)] == ["special"]


def test_a_wrapper_around_a_marked_function_has_its_mark() -> None:
    marked = rpcd.message_handler("a", exchange="shop")(lambda _message: None)

    @functools.wraps(marked)
    def wrapper(message: Any) -> None:
        """Handle a message."""

    (found,) = registered([module(wrapper=wrapper)])
    assert found.path == "shop_events:wrapper"


CIRCLE: dict[str, Any] = {}
CIRCLE["config"] = [CIRCLE]


@pytest.mark.parametrize(
    ("arguments", "named", "said"),
    [
        ((), {"exchange": "shop"}, "missing 1 required positional argument: 'routing_keys'"),
        (("a",), {}, "missing 1 required keyword-only argument: 'exchange'"),
        ((handler,), {"exchange": "shop"}, "routing_keys is a string, or a list of strings"),
        ((["a", 1],), {"exchange": "shop"}, "routing_keys is a string, or a list of strings"),
        ((b"a",), {"exchange": "shop"}, "routing_keys is a string, or a list of strings"),
        (([],), {"exchange": "shop"}, 'a routing key is empty, or there is none; for a fanout exchange write "#"'),
        (("",), {"exchange": "shop"}, "a routing key is empty, or there is none"),
        ((["a", ""],), {"exchange": "shop"}, "a routing key is empty, or there is none"),
        (("a",), {"exchange": ""}, "exchange is empty; a queue needs no binding to the default exchange"),
        (("a",), {"exchange": None}, "exchange is a string, not of type NoneType"),
        (("a",), {"exchange": "shop", "queue": ""}, "queue is empty"),
        (("a",), {"exchange": "sh\ud800p"}, "'\\ud800' is half a character, which can't be sent"),
        (("a",), {"exchange": "shop", "config": CIRCLE}, "a setting contains itself"),
        (("a",), {"exchange": "shop", "name": 5}, "name is a string, not of type int"),
        (("a",), {"exchange": "shop", "worker": 5}, "there is no setting 'worker'; did you mean 'workers'?"),
        (("a",), {"exchange": "shop", "zzz": 5}, "there is no setting 'zzz'; known are workers, prefetch, lock"),
        (("a",), {"exchange": "shop", "handler": "x:y"}, "'handler' is said by the decorator itself; leave it out"),
        (("a",), {"exchange": "shop", "namespace": "x"}, "'namespace' is said by the decorator itself; leave it out"),
    ],
)
def test_wrong_arguments_are_told_where_they_are_written(arguments: Any, named: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        rpcd.message_handler(*arguments, **named)


@pytest.mark.parametrize(
    ("value", "said"), [(5, "a handler is a function or a class, not of type int"), (len, "can't be marked")]
)
def test_what_cannot_be_a_handler_cannot_be_marked(value: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        rpcd.message_handler("a", exchange="shop")(value)


def test_nothing_inside_a_class_can_be_marked_for_nobody_would_find_it() -> None:
    with pytest.raises(TypeError, match=r"Outer\.method is inside a class; decorate the class, or a function"):

        class Outer:
            @rpcd.message_handler("a", exchange="shop")
            def method(self, message: Any) -> None:
                """Handle a message."""


# Finding ------------------------------------------------------------------------------------------


def test_an_object_counts_once_wherever_it_is_imported_to() -> None:
    marked = rpcd.message_handler("a", exchange="shop")(lambda _message: None)
    first, second = module(one=marked, alias=marked), module(one=marked)
    assert [each.path for each in registered([first, second])] == ["shop_events:one"]
    assert len(registered([second])) == 1


def test_an_object_is_named_by_the_place_where_it_was_defined() -> None:
    assert registered([module(other=MARKED)]) == [Registered(marks(MARKED)[0], f"{__name__}:MARKED")]
    assert registered([module(other=MARKED)])[0].queue == f"{__name__}.MARKED"


@rpcd.message_handler("a", exchange="shop")
class MARKED:
    def __call__(self, message: Any) -> None:
        """Handle a message."""


def test_names_that_are_no_objects_of_ours_are_passed_over() -> None:
    class Lazy:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError("not configured yet")

    assert registered([module(lazy=Lazy(), number=5, text="x", mock=types.SimpleNamespace(__rpcd_registrations__=5))]) == []


def test_queue_and_consumer_are_named_after_module_and_function_or_as_it_is_said() -> None:
    def named(**said: Any) -> tuple[str, str]:
        each = Registered(Registration(("a",), "shop", said.get("queue"), said.get("name"), {}), "shop.events:changed")
        return each.queue, each.name

    assert named() == ("shop.events.changed", "shop.events.changed")
    assert named(queue="orders") == ("orders", "orders")
    assert named(name="orders") == ("shop.events.changed", "orders")
    assert named(queue="q", name="n") == ("q", "n")


# Sections -----------------------------------------------------------------------------------------


def found(queue: str | None = None, path: str = "shop:changed", **settings: Any) -> Registered:
    each = Registered(Registration(("order.*", "stock"), "shop", queue, None, settings), path)
    return attrs.evolve(each, section=each.queue)


def test_a_registration_becomes_a_queue_with_its_bindings_and_a_consumer() -> None:
    assert sections({}, [found(workers=2)]) == {
        "queues": {"shop.changed": {"bindings": [{"exchange": "shop", "routing_keys": ["order.*", "stock"]}]}},
        "consumers": {"shop.changed": {"queue": "shop.changed", "handler": "shop:changed", "workers": 2}},
    }


def test_the_file_wins_setting_by_setting() -> None:
    raw: dict[str, Any] = {
        "queues": {"shop.changed": {"type": "classic", "bindings": []}},
        "consumers": {"shop.changed": {"workers": 8, "retry": {"attempts": 3}, "config": {"dsn": "file"}}},
    }
    before = repr(raw)
    said = found(workers=2, prefetch=9, retry={"attempts": 9, "delays": [1]}, config={"dsn": "code", "more": 1})
    merged = sections(raw, [said])
    assert merged["queues"] == {"shop.changed": {"type": "classic", "bindings": []}}
    assert merged["consumers"]["shop.changed"] == {
        "queue": "shop.changed",
        "handler": "shop:changed",
        "workers": 8,
        "prefetch": 9,
        "retry": {"attempts": 3, "delays": [1]},
        "config": {"dsn": "file", "more": 1},
    }
    assert repr(raw) == before


def test_what_the_code_gave_is_not_changed_by_the_file() -> None:
    said = found(config={"hosts": ["a"]})
    sections({}, [said])["consumers"]["shop.changed"]["config"]["hosts"].append("b")
    assert said.registration.settings == {"config": {"hosts": ["a"]}}


@pytest.mark.parametrize(
    ("file", "section"),
    [
        ({}, "orders"),
        ({"queues": {"mine": {"name": "orders"}}}, "mine"),
        ({"queues": {"mine": {"name": "orders"}, "orders": {"name": "other"}}}, "orders"),
        ({"queues": {"mine": {}}, "consumers": {"orders": {"queue": "mine"}}}, "mine"),
    ],
)
def test_the_file_may_have_another_section_for_the_queue(file: dict[str, Any], section: str) -> None:
    each = placed(found("orders"), built(file))
    assert each.section == section
    merged = sections({}, [each])
    assert list(merged["queues"]) == [section]  # and no other one, which would be bound, and consumed by nobody
    assert merged["consumers"]["orders"]["queue"] == section


def test_a_config_may_hold_what_no_file_can_say() -> None:
    lock = threading.Lock()
    merged = sections({}, [found(config={"lock": lock}, retry={"delays": (1, 2)})])["consumers"]["shop.changed"]
    assert merged["config"]["lock"] is lock
    assert merged["retry"] == {"delays": [1, 2]}


def test_what_is_no_table_is_left_for_the_loader_to_complain_of() -> None:
    assert sections({"queues": 5, "consumers": {"shop.changed": "x"}}, [found()]) == {
        "queues": 5,
        "consumers": {"shop.changed": "x"},
    }


# The place of a mistake ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "path", "place"),
    [
        ({}, "consumers.shop.changed.workers", "@message_handler shop:changed, workers"),
        ({}, "consumers.shop.changed.handler", "@message_handler shop:changed"),
        ({}, "consumers.shop.changed.retry.delays[1]", "@message_handler shop:changed, retry.delays[1]"),
        (
            {},
            "queues.shop.changed.bindings[0].routing_keys[1]",
            "@message_handler shop:changed, bindings[0].routing_keys[1]",
        ),
        ({}, "queues.shop.changed", "@message_handler shop:changed"),
        ({}, "consumers.shop.changed.prefetch", "@message_handler shop:changed, prefetch"),
        ({}, "consumers.shop.file.workers", "consumers.shop.file.workers"),
        ({}, "consumers.others.workers", "consumers.others.workers"),
        ({}, "service.path[0]", "service.path[0]"),
        ({"workers": 0}, "consumers.shop.changed.workers", "consumers.shop.changed.workers"),
        ({"workers": 0}, "consumers.shop.changed.retry.delays[1]", "@message_handler shop:changed, retry.delays[1]"),
        ({"workers": 9}, "consumers.shop.changed.prefetch", "consumers.shop.changed.prefetch"),
        ({"retry": {"delays": [1, 0]}}, "consumers.shop.changed.retry.delays[1]", "consumers.shop.changed.retry.delays[1]"),
        (
            {"retry": {"attempts": 2}},
            "consumers.shop.changed.retry.delays[1]",
            "@message_handler shop:changed, retry.delays[1]",
        ),
        ({"retry": 5}, "consumers.shop.changed.retry", "consumers.shop.changed.retry"),
    ],
)
def test_a_mistake_is_told_where_it_was_made(raw: dict[str, Any], path: str, place: str) -> None:
    file = {"consumers": {"shop.file": {"workers": 0}, **({"shop.changed": raw} if raw else {})}}
    given = [found(workers=2, retry={"delays": [1, -1]}), found("shop", "shop:other")]
    assert traced(Problem(path, "wrong", "mend it"), file, given) == Problem(place, "wrong", "mend it")
