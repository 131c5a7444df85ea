"""What may be a layer, and what it must do when it is folded around a handler, once for each worker.

A layer takes the handler and returns what is called in its place; a second argument, if it takes one, is its own table of
the config. What can be seen of it is checked when the config is read, the rest when it is folded.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from rpcd.core.handler import Handler, HandlerError, awaits
from rpcd.core.message import Message

OWN = "layers"
"""The attribute by which a handler names layers of its own: a list of dotted paths, names or layers."""

PATH = "layer"
"""The key of a `[layers.NAME]` section that is the dotted path; all others are the layer's own."""


@attrs.frozen
class NamedLayer:
    """A checked layer, and what it is called in the config."""

    path: str
    value: Callable[..., Any]
    arguments: tuple[Any, ...] = attrs.field(default=(), repr=False)
    """What it takes besides the handler: nothing, or its config."""

    def __call__(self, handler: Handler) -> Handler:
        """Fold it around a handler; raise HandlerError for what can't take the handler's place."""
        made = self.value(handler, *self.arguments)
        if not callable(made):
            raise HandlerError(
                f"the layer {self.path} returned what is of type {type(made).__name__}; "
                "it takes the handler and returns what is called in its place"
            )
        if not awaits(handler):
            if awaits(made):
                raise HandlerError(f"the layer {self.path} is async, and the handler in it is not: nobody would await it")
            return made  # type: ignore[no-any-return]
        return made if awaits(made) else self._awaiting(made)

    def _awaiting(self, made: Handler) -> Handler:
        """Let a plain function pass on what an async handler returns; what it waits for itself is a mistake."""

        async def call(message: Message[Any]) -> Any:
            value = made(message)
            if not hasattr(type(value), "__await__"):
                raise TypeError(
                    f"the layer {self.path} returned what is of type {type(value).__name__} in the place of an async "
                    "handler, whose result is to be awaited: the layer must be async, too"
                )
            return await value

        return call


def layer(path: str, value: Any, table: Mapping[str, Any] | None = None) -> NamedLayer:
    """Check what a dotted path names and return it as a layer; `table` is its config, if the file has one.

    Raises HandlerError saying what is wrong with it.
    """
    if not callable(value):
        raise HandlerError(f"{path} is of type {type(value).__name__}, which can't be called: a layer takes the handler")
    _check_kind(path, value)
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return NamedLayer(path, value, () if table is None else (table,))  # a builtin without a signature
    if table is not None:
        if not _takes(signature, 2):
            raise HandlerError(f"{path}{signature} takes no config, but there is one for it; a second argument would get it")
        return NamedLayer(path, value, (table,))
    if _takes(signature, 1):
        return NamedLayer(path, value)
    if _takes(signature, 2):
        return NamedLayer(path, value, ({},))
    raise HandlerError(f"{path}{signature} can't be called with the handler, and its config if it wants one")


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _check_kind(path: str, value: Any) -> None:
    if inspect.isclass(value):
        if "__call__" not in {name for base in value.__mro__[:-1] for name in vars(base)}:
            raise HandlerError(f"{path} is a class without a __call__(self, message) method, which would be called")
        return
    bare = value
    while isinstance(bare, functools.partial):
        bare = bare.func
    bare = bare if inspect.isroutine(bare) or inspect.isclass(bare) else type(bare).__call__
    if inspect.iscoroutinefunction(bare):
        raise HandlerError(f"{path} is async; a layer is a plain function that returns what may be async")
    if inspect.isgeneratorfunction(bare) or inspect.isasyncgenfunction(bare):
        raise HandlerError(f"{path} is a generator; a layer is a function that takes the handler and returns one")


def own_layers(path: str, value: Any) -> Sequence[Any]:
    """Return the layers that a handler asks for itself; raise HandlerError if that is no list of what may be one."""
    try:
        found = getattr(value, OWN, ())
    except Exception as error:
        raise HandlerError(f"{path}.{OWN} can't be read: {type(error).__name__}") from error
    if not isinstance(found, list | tuple):
        raise HandlerError(
            f"{path}.{OWN} is of type {type(found).__name__}; expected a list of layers (give it another name if it is none)"
        )
    for each in found:
        if not isinstance(each, str) and not callable(each):
            raise HandlerError(f"{path}.{OWN} holds what is of type {type(each).__name__}; expected dotted paths or layers")
    return found
