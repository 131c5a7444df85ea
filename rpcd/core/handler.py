"""What a dotted path may name, and how it becomes something that takes one message.

A function or a callable object is shared by all workers of its consumer. A class is instantiated once per worker, so an
instance is never used by two threads at once; its constructor may take the consumer's own config.

With `async def` (a function, or `__call__`) it is an async handler: it runs on an asyncio loop, and a class is instantiated
once, on that loop, by a plain constructor; its `shutdown` may be async or plain.
"""

import concurrent.futures
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import attrs

from rpcd.core import bodies
from rpcd.core.locks import own_lock
from rpcd.core.message import Message

Handler: TypeAlias = Callable[[Message[Any]], Any]
"""The user's callable: one message in, a value or an exception out; an async one returns what is to be awaited."""

Layer: TypeAlias = Callable[[Handler], Handler]
"""A decorator around a handler, folded once when a worker gets its handler."""


class HandlerError(TypeError):
    """What a dotted path names can't be a handler; the text says why."""


@attrs.frozen
class Target:
    """A checked handler and what is known of it before any message arrives."""

    path: str
    value: Any
    per_worker: bool
    """Whether each worker, or loop, gets an instance of its own."""
    takes_config: bool
    shutdown: Callable[[Any, BaseException | None], Any] | None
    """How an instance is shut down, with what it failed by; None when it has no `shutdown`, and is never replaced.

    An async handler's may return what is to be awaited.
    """
    body: Any
    """The type that the handler's annotation wants the body to be; `Any` without one."""
    is_async: bool = False
    """Whether it returns what is to be awaited, on a loop."""
    lock: str | None = None
    """The lock that it names itself, for when the config names none."""
    layers: tuple[Layer, ...] = ()
    """What is folded around it, the outermost first."""

    def make(self, config: Mapping[str, Any], inner: tuple[Layer, ...] = ()) -> tuple[Handler, Any]:
        """Make the handler of one worker and return it folded into its layers, with the bare object.

        `inner` are layers of rpcd's own, between the others and the handler. Called in the worker's own thread, or on the
        loop; what the constructor or a layer raises comes through.
        """
        made = self.value
        if self.per_worker:
            made = self.value(config) if self.takes_config else self.value()
        handler: Handler = made
        for layer in reversed((*self.layers, *inner)):
            handler = layer(handler)
        return handler, made


def target(path: str, value: Any) -> Target:
    """Check what a dotted path names and return it as a target; raise HandlerError saying what is wrong with it."""
    if not callable(value):
        raise HandlerError(f"{path} is {_kind(value)}, which can't be called")
    if not inspect.isclass(value):
        called = value if inspect.isroutine(value) or isinstance(value, functools.partial) else value.__call__
        _check_call(path, called, 0)
        return Target(path, value, False, False, None, body_type(called), awaits(called), _lock(path, value))
    if inspect.isabstract(value) or getattr(value, "_is_protocol", False):
        raise HandlerError(f"{path} is an abstract class, of which no instance can be made")
    called = getattr(value, "__call__", None)  # noqa: B004  # the method itself is wanted, to read its signature
    if "__call__" not in {name for base in value.__mro__[:-1] for name in vars(base)} or called is None:
        raise HandlerError(f"{path} is a class without a __call__(self, message) method")
    _check_call(path, called, 1)
    is_async = awaits(called)
    shutdown = _shutdown(path, value, is_async)
    return Target(path, value, True, _takes_config(path, value), shutdown, body_type(called), is_async, _lock(path, value))


def _lock(path: str, value: Any) -> str | None:
    try:
        return own_lock(value)
    except (TypeError, ValueError) as error:
        raise HandlerError(f"{path}.lock: {error}") from None


def all_async(targets: Iterable[Target]) -> bool:
    """Tell whether the handlers of one consumer are async; raise HandlerError if some are and some are not."""
    kinds: dict[bool, Target] = {}
    for each in targets:
        kinds.setdefault(each.is_async, each)
    if len(kinds) > 1:
        raise HandlerError(
            f"{kinds[True].path} is async and {kinds[False].path} is not: "
            "the handlers of one consumer are all async, or none is; give one of them a consumer of its own"
        )
    return True in kinds


def _bare(called: Any) -> Any:
    """Return what a partial calls in the end: a routine."""
    while isinstance(called, functools.partial):
        called = called.func
    return called if inspect.isroutine(called) or inspect.isclass(called) else type(called).__call__


def awaits(called: Any) -> bool:
    """Tell whether calling it returns what is to be awaited, as far as that can be seen from outside."""
    return inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(_bare(called))


def _kind(value: Any) -> str:
    return "a module" if inspect.ismodule(value) else f"of type {type(value).__name__}"


def _check_call(path: str, called: Callable[..., Any], bound: int) -> None:
    """Check that a callable takes one positional argument, the message, besides `bound` ones (self)."""
    _check_wrapped(path, _bare(called))
    if inspect.isasyncgenfunction(_bare(called)):
        raise HandlerError(f"{path} is an async generator: it has a yield, so awaiting it would run nothing")
    if inspect.isgeneratorfunction(_bare(called)):
        raise HandlerError(f"{path} is a generator: it has a yield, so calling it would run nothing")
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return  # a builtin without a signature: its first message will tell
    try:
        signature.bind(*[None] * (bound + 1))
    except TypeError as error:
        raise HandlerError(f"{path}{signature} can't be called with one positional argument, the message: {error}") from None


def _check_wrapped(path: str, called: Any) -> None:
    """Check what decorators have made of a function: of those of contextlib it is known that they run nothing here."""
    try:
        inside = inspect.unwrap(called)
    except ValueError:
        raise HandlerError(f"{path} is wrapped by itself: following its `__wrapped__` never ends") from None
    if getattr(called, "__globals__", {}).get("__name__") != "contextlib" or inspect.iscoroutinefunction(called):
        return
    if inspect.isgeneratorfunction(inside) or inspect.isasyncgenfunction(inside):
        raise HandlerError(f"{path} makes a context manager: calling it would run nothing")
    if inspect.iscoroutinefunction(inside):
        raise HandlerError(f"{path} is async, and the context manager that decorates it is not: use `with` inside of it")


def _takes_config(path: str, value: type) -> bool:
    """Tell whether a class wants the consumer's config: by its constructor's signature, never by trying."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return False
    for arguments in ((None,), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return bool(arguments)
    raise HandlerError(
        f"{path}{signature} can't be made: a constructor takes nothing, or one argument, the consumer's config"
    )


def check_finished(value: Any) -> None:
    """Raise TypeError for a value that is work still to be done: to take it for a success would be to lose the message."""
    kind = type(value)
    if (
        hasattr(kind, "__await__")
        or hasattr(kind, "__anext__")
        or isinstance(value, types.GeneratorType | concurrent.futures.Future)
        or _is_unentered(value)
    ):
        close = getattr(value, "close", None)
        if callable(close):
            close()
        hint = " (a decorator of an async handler is to be async, too)" if inspect.iscoroutine(value) else ""
        raise TypeError(f"the handler returned a {kind.__name__}, which nobody runs; return its result{hint}")


def _is_unentered(value: Any) -> bool:
    """Tell whether a value is what a function under `contextlib.contextmanager` returns: nothing of it has run."""
    kind = type(value)
    return kind.__module__ == "contextlib" and isinstance(
        getattr(value, "gen", None), types.GeneratorType | types.AsyncGeneratorType
    )


def _shutdown(path: str, value: type, is_async: bool) -> Callable[[Any, BaseException | None], Any] | None:
    method = getattr(value, "shutdown", None)
    if not callable(method):
        return None
    if inspect.iscoroutinefunction(method) and not is_async:
        raise HandlerError(f"{path}.shutdown is async, but its __call__ is not: nobody would await it; make both async")
    bound = 0 if isinstance(inspect.getattr_static(value, "shutdown"), classmethod | staticmethod) else 1
    for extra in (1, 0):
        try:
            inspect.signature(method).bind(*[None] * (bound + extra))
        except (TypeError, ValueError):
            continue
        return (lambda made, error: made.shutdown(error)) if extra else (lambda made, _error: made.shutdown())
    raise HandlerError(f"{path}.shutdown{inspect.signature(method)} can't be called: it takes nothing, or the exception")


def body_type(called: Callable[..., Any]) -> Any:
    """Return T of the annotation `Message[T]` on the first argument that has one, or `Any`.

    Raises HandlerError for one that can't be resolved.
    """
    bare = called.func if isinstance(called, functools.partial) else called
    try:
        hints = typing.get_type_hints(bare, include_extras=True)
    except Exception as error:  # noqa: BLE001  # annotations are the user's code: names for type checkers only, say
        for said in getattr(bare, "__annotations__", {}).values():
            if "Message[" in str(said):  # else what it asks for would silently not be checked
                raise HandlerError(f"the annotation {said!r} can't be resolved at run time: {error}") from None
        return Any
    hints.pop("return", None)
    for hint in hints.values():
        for each in (hint, *typing.get_args(hint)):  # it may stand in a union, or in Annotated
            if typing.get_origin(each) is Message:
                (body,) = typing.get_args(each)
                return Any if isinstance(body, typing.TypeVar) else body
    return Any


def check_body_type(path: str, kind: Any) -> None:
    """Raise HandlerError for a body type that messages can't be decoded to."""
    try:
        bodies.check(kind)
    except Exception as error:  # noqa: BLE001  # the type is the user's, and looking at it may run his code
        raise HandlerError(f"{path}: a body can't be decoded to {kind!r}: {error}") from None
