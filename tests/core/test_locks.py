import functools
import threading
from typing import Any

import pytest
from sections import built

import rpcd
from rpcd.core.building import Built, build
from rpcd.core.handler import HandlerError, target
from rpcd.core.locks import lane_keys, locks, own_lock, told
from rpcd.core.message import Message

# A handler's own ----------------------------------------------------------------------------------


class Ordered:
    lock = "body.customer"

    def __call__(self, message: Any) -> None:
        """Handle a message."""


class Inherited(Ordered):
    pass


class Without(Ordered):
    lock = ""


class Late(Ordered):
    async def __call__(self, message: Any) -> None:  # type: ignore[override]  # an async one
        """Handle a message."""


def function(message: Any) -> None:
    """Handle a message."""


function.lock = "headers.tenant"  # type: ignore[attr-defined]


def plain(message: Any) -> None:
    """Handle a message."""


@rpcd.message_handler("order.*", exchange="shop")
class Decorated(Ordered):
    pass


@functools.wraps(function)
def wrapped(message: Any) -> None:
    function(message)


@pytest.mark.parametrize(
    ("handler", "lock"),
    [
        (Ordered, "body.customer"),
        (Inherited, "body.customer"),
        (Without, None),
        (Late, "body.customer"),
        (Decorated, "body.customer"),
        (Ordered(), "body.customer"),
        (function, "headers.tenant"),
        (wrapped, "headers.tenant"),
        (functools.partial(function), "headers.tenant"),
        (plain, None),
        (functools.partial(plain), None),
    ],
)
def test_a_handler_may_name_its_lock_by_an_attribute(handler: Any, lock: str | None) -> None:
    assert own_lock(handler) == target("shop.orders:Handler", handler).lock == lock


def test_a_partial_may_have_a_lock_of_its_own() -> None:
    special: Any = functools.partial(function)
    special.lock = "*"
    assert own_lock(special) == "*"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (threading.Lock(), "of type lock, but it names what only one message at a time may have in common"),
        (property(lambda _self: "body.a"), "of type property, but it names"),
        (True, "of type bool, but it names"),
        (["body.a"], "of type list, but it names"),
        ("customer", "expected `routing_key`, `headers.NAME`, `body.NAME` or `*`, not 'customer'"),
        ("body.", "expected `routing_key`, `headers.NAME`, `body.NAME` or `*`, not 'body.'"),
    ],
)
def test_a_wrong_attribute_is_told_with_the_name_of_its_handler(wrong: Any, said: str) -> None:
    class Handler(Ordered):
        lock = wrong

    with pytest.raises(HandlerError) as error:
        target("shop.orders:Handler", Handler)
    assert str(error.value).startswith(f"shop.orders:Handler.lock: {said}")


# The config and the handlers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "own", "found"),
    [
        (None, ["body.a", None], ("body.a", None)),
        ("body.b", ["body.a", None], ("body.b", "body.b")),
        ("*", ["body.a"], ("*",)),
        ("", ["body.a", None], (None, None)),
        (None, [None], (None,)),
    ],
)
def test_the_config_wins_over_what_handlers_say(configured: str | None, own: list[Any], found: tuple[Any, ...]) -> None:
    assert locks(configured, own) == found


@pytest.mark.parametrize(
    ("found", "text"),
    [((None, None), None), (("*",), "*"), (("body.a", "body.a"), "body.a"), (("body.a", None, "body.b"), "body.a / body.b")],
)
def test_the_locks_of_a_consumer_are_told_each_once(found: tuple[Any, ...], text: str | None) -> None:
    assert told(found) == text


def of(body: Any) -> Message[Any]:
    return Message(body, routing_key="k")


def test_handlers_with_the_same_lock_share_their_keys() -> None:
    first, second = lane_keys(("body.a", "body.a"))
    assert first is not None
    assert first is second
    assert first(of({"a": 7})) == 7


def test_without_any_lock_there_is_nothing_to_read() -> None:
    assert lane_keys((None, None)) == (None, None)


def test_equal_values_of_different_locks_are_different_keys() -> None:
    a, b, again = lane_keys(("body.a", "body.b", "body.a"))
    assert a is not None
    assert b is not None
    assert again is not None
    both = of({"a": 7, "b": 7})
    assert a(both) != b(both)
    assert a(both) == again(both)
    assert len({a(both), b(both), again(both)}) == 2


def test_a_handler_without_a_lock_beside_one_that_has_it_waits_for_nobody() -> None:
    _a, free = lane_keys(("body.a", None))
    assert free is not None
    assert free(of({})) != free(of({}))


def test_a_missing_key_is_a_bad_message_where_locks_differ_too() -> None:
    a, _b = lane_keys(("body.a", "*"))
    assert a is not None
    with pytest.raises(rpcd.BadMessage, match=r"body.a: missing"):
        a(of({}))


# Routes -------------------------------------------------------------------------------------------


def routes(handlers: Any, **section: Any) -> Built:
    if isinstance(handlers, dict):
        made: Any = {name: target(f"acme.{name}:handle", each) for name, each in handlers.items()}
    else:
        made = target("shop:handle", handlers)
    exchanges = {name: {} for name in handlers} if isinstance(handlers, dict) else {}
    consumer = {"queue": "work", "handler": "shop:handle", **section}
    tree = {"queues": {"work": {}}, "exchanges": exchanges, "consumers": {"work": consumer}}
    return build(built(tree), "work", made, lambda: 0.0)


@pytest.mark.parametrize(
    ("handler", "section", "lock", "window"),
    [
        (Ordered, {}, "body.customer", 64),
        (Ordered, {"workers": 16}, "body.customer", 128),
        (Ordered, {"prefetch": 5}, "body.customer", 5),
        (Ordered, {"lock": "*"}, "*", 2),
        (Ordered, {"lock": ""}, None, 2),
        (plain, {"workers": 3}, None, 6),
        (plain, {"lock": ""}, None, 2),
        ({"one": Ordered, "two": Ordered}, {}, "body.customer", 64),
        ({"one": Ordered, "two": plain}, {}, "body.customer", 64),
        ({"one": Ordered, "two": function}, {}, "body.customer / headers.tenant", 64),
        ({"one": Ordered, "two": function}, {"lock": "routing_key"}, "routing_key", 64),
    ],
)
def test_a_lock_is_in_force_with_a_prefetch_that_fits_whoever_named_it(
    handler: Any, section: dict[str, Any], lock: str | None, window: int
) -> None:
    found = routes(handler, **section)
    assert (found.section.lock, found.section.window) == (lock, window)
    assert {route.key is not None for route in found.routes} == {lock is not None}


def test_each_handler_of_a_namespace_has_its_own_lock() -> None:
    one, two, three = routes({"one": Ordered, "two": function, "three": plain}).routes
    assert one.key is not None
    assert two.key is not None
    assert three.key is not None
    came = Message[Any]({"customer": "ann"}, headers={"tenant": "acme"})
    assert (one.key(came), two.key(came)) == (("body.customer", "ann"), ("headers.tenant", "acme"))
    assert three.key(came) != three.key(came)
