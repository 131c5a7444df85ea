import abc
import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import pathlib
import re
import typing
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Annotated, Any, TypeVar

import attrs
import msgspec
import pytest
from labels import label

import rpcd
from rpcd.core.handler import HandlerError, Target, all_async, body_type, check_body_type, check_finished, target

T = TypeVar("T")


class Order(msgspec.Struct):
    customer: str


@dataclasses.dataclass
class Parcel:
    order: Order


class NotDecodable:
    pass


@dataclasses.dataclass
class Wraps:
    inner: NotDecodable


def function(message: rpcd.Message[Order]) -> Any:
    return message


class Plain:
    def __call__(self, message: rpcd.Message[Order]) -> Any:
        return ("plain", message)


class Configured:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def __call__(self, message: Any) -> Any:
        return (self.config, message)


@attrs.define
class AttrsHandler:
    config: dict[str, Any]

    def __call__(self, message: Any) -> Any:
        return (self.config, message)


class Optional:
    def __init__(self, config: Any = None) -> None:
        self.config = config

    def __call__(self, message: Any) -> Any:
        return (self.config, message)


class Inherits(Plain):
    pass


class Nested:
    class Inner:
        def __call__(self, message: Any) -> Any: ...

    def method(self, message: Any) -> Any: ...


def check(value: Any) -> Target:
    return target("shop.orders:it", value)


# What is a handler --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        function,
        lambda message: message,
        lambda *arguments: arguments,
        lambda message, more=1: (message, more),
        lambda message, *, named=1: (message, named),
        Nested().method,
        Plain(),
        functools.partial(lambda config, message: (config, message), {}),
        len,
        print,
        max,
        math.hypot,
    ],
    ids=label,
)
def test_a_function_or_callable_object_is_shared_by_all_workers(value: Any) -> None:
    found = check(value)
    assert (found.value, found.per_worker, found.takes_config, found.shutdown) == (value, False, False, None)
    assert found.make({"dsn": 1}) == (value, value)


@pytest.mark.parametrize("kind", [Plain, Configured, AttrsHandler, Optional, Inherits, Nested.Inner])
def test_a_class_is_made_anew_for_each_worker(kind: Any) -> None:
    found = check(kind)
    first, second = found.make({})[1], found.make({})[1]
    assert found.per_worker
    assert (type(first), type(second)) == (kind, kind)
    assert first is not second


@pytest.mark.parametrize("kind", [Configured, AttrsHandler, Optional])
def test_a_constructor_that_can_take_the_config_gets_it(kind: Any) -> None:
    handler, _ = check(kind).make({"dsn": "x"})
    assert handler(rpcd.Message(1))[0] == {"dsn": "x"}


@pytest.mark.parametrize("kind", [Plain, Inherits])
def test_a_constructor_without_arguments_gets_none(kind: Any) -> None:
    message = rpcd.Message[Any](1)
    assert check(kind).make({"dsn": "x"})[0](message) == ("plain", message)


def test_checking_a_class_makes_no_instance_of_it() -> None:
    class Explodes:
        def __init__(self, config: Any) -> None:
            raise AssertionError("made")

        def __call__(self, message: Any) -> Any: ...

    found = check(Explodes)
    with pytest.raises(AssertionError, match="made"):
        found.make({})


def two(message: Any, more: Any) -> Any: ...
def none() -> Any: ...
def named(*, message: Any) -> Any: ...
def named_too(message: Any, *, config: Any) -> Any: ...


class NoCall:
    pass


class CallsWithTwo:
    def __call__(self, message: Any, more: Any) -> Any: ...


class CallsWithNone:
    def __call__(self) -> Any: ...


class NeedsTwo:
    def __init__(self, config: Any, more: Any) -> None: ...
    def __call__(self, message: Any) -> Any: ...


class NeedsNamed:
    def __init__(self, *, config: Any) -> None: ...
    def __call__(self, message: Any) -> Any: ...


async def coroutine(message: Any) -> Any: ...


async def async_generator(message: Any) -> AsyncIterator[Any]:
    yield message


def generator(message: Any) -> Iterator[Any]:
    yield message


class AsyncCall:
    async def __call__(self, message: Any) -> Any: ...


class AsyncGeneratorCall:
    async def __call__(self, message: Any) -> AsyncIterator[Any]:
        yield message


class AsyncBoth(AsyncCall):
    async def shutdown(self, exception: Any = None) -> Any:
        return exception


class AsyncWithPlainShutdown(AsyncCall):
    def shutdown(self) -> None: ...


class GeneratorCall:
    def __call__(self, message: Any) -> Generator[Any, None, None]:
        yield message


class AwkwardShutdown(Plain):
    def shutdown(self, error: Any, more: Any) -> None: ...


class AsyncShutdown(Plain):
    async def shutdown(self) -> None: ...


@contextlib.contextmanager
def manager(message: Any) -> Iterator[None]:
    yield


@contextlib.asynccontextmanager
async def async_manager(message: Any) -> AsyncIterator[None]:
    yield


@manager(1)
async def under_manager(message: Any) -> None: ...


@manager(1)
def runs_under_manager(message: Any) -> None: ...


@async_manager(1)
async def runs_under_async_manager(message: Any) -> None: ...


def circular(message: Any) -> None: ...


circular.__wrapped__ = circular  # type: ignore[attr-defined]


class Abstract(abc.ABC):
    @abc.abstractmethod
    def __call__(self, message: Any) -> None: ...


class Protocol(typing.Protocol):
    def __call__(self, message: Any) -> None: ...


class Implements(Protocol):
    def __call__(self, message: Any) -> None: ...


def test_a_function_under_a_context_manager_runs() -> None:
    assert not check(runs_under_manager).is_async
    assert check(runs_under_async_manager).is_async
    assert check(Implements).per_worker


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (manager, "makes a context manager: calling it would run nothing"),
        (async_manager, "makes a context manager: calling it would run nothing"),
        (under_manager, "is async, and the context manager that decorates it is not"),
        (circular, "is wrapped by itself"),
        (Abstract, "is an abstract class"),
        (Protocol, "is an abstract class"),
    ],
)
def test_what_would_run_nothing_or_can_never_be_made_is_refused(value: Any, complaint: str) -> None:
    with pytest.raises(HandlerError, match=f"^shop.orders:it {re.escape(complaint)}"):
        check(value)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (5, "shop.orders:it is of type int, which can't be called"),
        (None, "shop.orders:it is of type NoneType, which can't be called"),
        (asyncio, "shop.orders:it is a module, which can't be called"),
        (two, "can't be called with one positional argument, the message"),
        (none, "can't be called with one positional argument, the message"),
        (named, "can't be called with one positional argument, the message"),
        (named_too, "can't be called with one positional argument, the message"),
        (Nested.method, "can't be called with one positional argument, the message"),
        (functools.partial(two), "can't be called with one positional argument, the message"),
        (functools.partial(two, more=1, message=2), "can't be called with one positional argument, the message"),
        (NoCall, "is a class without a __call__(self, message) method"),
        (CallsWithTwo, "can't be called with one positional argument, the message"),
        (CallsWithTwo(), "can't be called with one positional argument, the message"),
        (CallsWithNone, "can't be called with one positional argument, the message"),
        (NeedsTwo, "can't be made: a constructor takes nothing, or one argument, the consumer's config"),
        (NeedsNamed, "can't be made: a constructor takes nothing, or one argument, the consumer's config"),
        (async_generator, "is an async generator"),
        (AsyncGeneratorCall, "is an async generator"),
        (functools.partial(AsyncGeneratorCall()), "is an async generator"),
        (generator, "is a generator"),
        (GeneratorCall, "is a generator"),
        (GeneratorCall(), "is a generator"),
        (functools.partial(generator), "is a generator"),
        (AwkwardShutdown, "can't be called: it takes nothing, or the exception"),
        (AsyncShutdown, "shutdown is async, but its __call__ is not"),
    ],
    ids=[
        "number", "None", "module", "two arguments", "no argument", "named only", "named required", "unbound method",
        "partial of two", "partial with all", "no call", "call with two", "object with two", "call with none",
        "constructor with two", "constructor with named", "async generator", "async generator call",
        "partial of async generator object", "generator", "generator call", "generator object", "generator partial",
        "shutdown with two", "async shutdown",
    ],
)  # fmt: skip
def test_what_cannot_be_a_handler_is_refused_with_its_path_and_a_reason(value: Any, complaint: str) -> None:
    with pytest.raises(HandlerError, match=re.escape(complaint)) as caught:
        check(value)
    assert str(caught.value).startswith("shop.orders:it")


@pytest.mark.parametrize(
    "value",
    [
        coroutine,
        AsyncCall,
        AsyncCall(),
        AsyncCall().__call__,
        AsyncBoth,
        AsyncWithPlainShutdown,
        functools.partial(coroutine),
        functools.partial(functools.partial(AsyncCall())),
    ],
    ids=label,
)
def test_what_is_async_is_known_as_such_before_any_message(value: Any) -> None:
    assert check(value).is_async


def plain_around_async(message: Any) -> Any:
    return coroutine(message)


@pytest.mark.parametrize("value", [Plain, Plain(), functools.partial(Plain()), print, plain_around_async], ids=label)
def test_what_is_plain_stays_plain(value: Any) -> None:
    assert not check(value).is_async


def test_a_shutdown_of_an_async_handler_is_async_or_plain() -> None:
    both, plain = check(AsyncBoth).shutdown, check(AsyncWithPlainShutdown).shutdown
    assert both is not None
    assert plain is not None
    assert asyncio.run(both(AsyncBoth(), KeyError())).__class__ is KeyError
    assert plain(AsyncWithPlainShutdown(), None) is None


def test_the_handlers_of_one_consumer_are_all_async_or_none_is() -> None:
    a, b = check(coroutine), check(Plain)
    assert [all_async([a, a]), all_async([b, b]), all_async([])] == [True, False, False]
    with pytest.raises(
        HandlerError, match=r"is async and .* is not: the handlers of one consumer are all async, or none is"
    ):
        all_async([b, a])


async def wait(message: Any) -> Any: ...


class Awaitable:
    def __await__(self) -> Iterator[Any]:
        yield


@pytest.mark.parametrize(
    "make",
    [
        lambda: wait(1),
        lambda: generator(1),
        lambda: async_generator(1),
        Awaitable,
        concurrent.futures.Future,
        lambda: manager(1),
        lambda: async_manager(1),
    ],
    ids=[
        "coroutine",
        "generator",
        "async generator",
        "awaitable",
        "future of a pool",
        "context manager",
        "async context manager",
    ],
)
def test_work_that_is_still_to_be_done_is_not_a_result(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"the handler returned an? \w+, which nobody runs; return its result"):
        check_finished(make())


@pytest.mark.parametrize("value", [0, "", [], {}, (), rpcd.Reply(), range(3), iter([]), object(), Plain(), Plain], ids=label)
def test_any_other_value_is_a_result(value: Any) -> None:
    check_finished(value)


# Shutting down ------------------------------------------------------------------------------------


class Recorder:
    calls: typing.ClassVar[list[Any]] = []

    def __call__(self, message: Any) -> Any: ...


class ShutsDown(Recorder):
    def shutdown(self) -> None:
        self.calls.append((self, ()))


class ShutsDownAfter(Recorder):
    def shutdown(self, exception: BaseException | None = None) -> None:
        self.calls.append((self, (exception,)))


class MustBeTold(Recorder):
    def shutdown(self, exception: BaseException | None) -> None:
        self.calls.append((self, (exception,)))


class ClassmethodShutdown(Recorder):
    @classmethod
    def shutdown(cls) -> None:
        cls.calls.append(("class", ()))


class StaticShutdown(Recorder):
    @staticmethod
    def shutdown(exception: BaseException | None) -> None:
        Recorder.calls.append(("static", (exception,)))


@pytest.mark.parametrize(
    ("kind", "whose", "told"),
    [
        (ShutsDown, None, False),
        (ShutsDownAfter, None, True),
        (MustBeTold, None, True),
        (ClassmethodShutdown, "class", False),
        (StaticShutdown, "static", True),
    ],
)
def test_shutdown_is_told_the_exception_if_it_takes_one(kind: Any, whose: str | None, told: bool) -> None:
    Recorder.calls.clear()
    found = check(kind)
    _, made = found.make({})
    error = ValueError("why")
    assert found.shutdown is not None
    found.shutdown(made, error)
    assert Recorder.calls == [(whose or made, (error,) if told else ())]


def test_a_class_without_shutdown_is_not_shut_down() -> None:
    assert check(Plain).shutdown is None


def test_an_attribute_that_is_called_shutdown_is_no_method() -> None:
    class Odd(Plain):
        shutdown = True

    assert check(Odd).shutdown is None


# Layers -------------------------------------------------------------------------------------------


def test_layers_are_folded_once_the_first_one_outermost() -> None:
    order: list[str] = []

    def layer(name: str) -> Callable[[Any], Any]:
        def fold(handler: Any) -> Any:
            def around(message: Any) -> Any:
                order.append(name)
                return handler(message)

            return around

        return fold

    handler, bare = check(Plain).make({}, (layer("outer"), layer("inner")))
    message = rpcd.Message[Any](1)
    assert (handler(message), order) == (("plain", message), ["outer", "inner"])
    assert isinstance(bare, Plain)


# The type of the body -----------------------------------------------------------------------------


def untyped(message): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
def bare(message: rpcd.Message) -> None: ...  # type: ignore[type-arg]
def any_body(message: rpcd.Message[Any]) -> None: ...
def text_annotation(message: "rpcd.Message[Order]") -> None: ...
def unknown_name(message: "rpcd.Message[NowhereToBeFound]") -> None: ...  # type: ignore[name-defined]  # noqa: F821
def type_variable(message: rpcd.Message[T]) -> T: ...  # type: ignore[empty-body]
def other_first(message: int) -> None: ...
def returns_message(message: Any) -> rpcd.Message[Order]: ...  # type: ignore[empty-body]
def listed(message: rpcd.Message[list[Order]]) -> None: ...
def annotated(message: Annotated[rpcd.Message[Order], "the one"]) -> None: ...
def optional(message: rpcd.Message[Order] | None = None) -> None: ...
def limited(message: rpcd.Message[Annotated[int, msgspec.Meta(gt=0)]]) -> None: ...


@pytest.mark.parametrize(
    ("called", "kind"),
    [
        (function, Order),
        (text_annotation, Order),
        (listed, list[Order]),
        (annotated, Order),
        (optional, Order),
        (limited, Annotated[int, msgspec.Meta(gt=0)]),
        (Plain.__call__, Order),
        (untyped, Any),
        (bare, Any),
        (any_body, Any),
        (type_variable, Any),
        (other_first, Any),
        (returns_message, Any),
        (len, Any),
    ],
)
def test_the_body_type_is_what_the_messages_annotation_says(called: Any, kind: Any) -> None:
    assert body_type(called) == kind


@pytest.mark.parametrize("called", [unknown_name, functools.partial(unknown_name)])
def test_a_type_that_cannot_be_found_is_no_reason_to_check_nothing(called: Any) -> None:
    with pytest.raises(HandlerError, match=r"'rpcd.Message\[NowhereToBeFound\]' can't be resolved at run time"):
        body_type(called)


@pytest.mark.parametrize("value", [function, Plain, Inherits, Plain(), functools.partial(function)], ids=label)
def test_a_target_knows_the_body_type_of_every_kind_of_handler(value: Any) -> None:
    assert check(value).body is Order


@pytest.mark.parametrize(
    "kind",
    [Any, bytes, Order, Parcel, dict, list[Order], dict[str, int], int | None, str, msgspec.Raw],
    ids=label,
)
def test_a_type_that_messages_can_be_decoded_to_is_accepted(kind: Any) -> None:
    check_body_type("shop:it", kind)


@pytest.mark.parametrize(
    "kind",
    [NotDecodable, Order | Parcel, 5, type, list[NotDecodable], Wraps, dict[str, pathlib.Path], NotDecodable | None],
    ids=label,
)
def test_a_type_that_no_message_can_be_decoded_to_is_refused_at_start(kind: Any) -> None:
    with pytest.raises(HandlerError, match="shop:it: a body can't be decoded to"):
        check_body_type("shop:it", kind)
