"""Which messages must not be handled at the same time: a lock's path, and the key that it reads from a message.

The config names a lock for all handlers of a consumer; or else each handler may name its own, by an attribute `lock`.
"""

import copy
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rpcd.core.errors import BadMessage
from rpcd.core.message import Message

ALONE = "*"
"""The lock that serialises a whole consumer."""

Key = Callable[[Message[Any]], Any]
"""Reads the key of an opened message; raises BadMessage if it has none."""

_PLAIN = (str, int, float, bytes, type(None))

_WITHOUT_MEMBERS = (*_PLAIN, bool, list, tuple, set, frozenset)
"""What JSON makes that has no members: the methods of Python's types (`count`, `title`, ...) are none."""


def own_lock(value: Any) -> str | None:
    """Return the lock that a handler names by its attribute, or None; raise TypeError or ValueError for a wrong one."""
    while isinstance(value, functools.partial) and "lock" not in vars(value):
        value = value.func
    lock = getattr(value, "lock", None)
    if lock is None or lock == "":
        return None
    if not isinstance(lock, str):
        said = "it names what only one message at a time may have in common, such as 'body.customer'"
        raise TypeError(f"of type {type(lock).__name__}, but {said}; call any other attribute otherwise")
    try:
        lane_key(lock)
    except ValueError as error:
        raise ValueError(f"{error}, not {lock!r}") from None
    return lock


def locks(configured: str | None, own: Iterable[str | None]) -> tuple[str | None, ...]:
    """Return the lock of each handler of a consumer: what the config says (nothing, if it is empty), or else its own."""
    return tuple(each if configured is None else configured or None for each in own)


def told(found: Iterable[str | None]) -> str | None:
    """Return the locks of a consumer's handlers as one text; None if none has any."""
    return " / ".join(dict.fromkeys(each for each in found if each is not None)) or None


def lane_keys(found: Sequence[str | None]) -> tuple[Key | None, ...]:
    """Build what reads the key for each handler of one consumer: for all of them, or for none.

    Where the locks differ, equal values of different ones are different keys, and a handler without a lock waits for none.
    """
    different = set(found)
    if len(different) > 1:
        return tuple(_free if lock is None else _apart(lock) for lock in found)
    lock = different.pop()
    return (None if lock is None else lane_key(lock),) * len(found)


def _free(_message: Message[Any]) -> object:
    """Make a key that no other message has."""
    return object()


def _apart(lock: str) -> Key:
    key = lane_key(lock)
    return lambda message: (lock, key(message))


def lane_key(path: str) -> Key:
    """Build the function that reads a lane's key from an opened message.

    A path is `routing_key`, `headers.NAME`, `body.NAME[.NAME...]` or `*`. A message that lacks it is a bad message: run
    without its lock it could meet another of the same key. Raises ValueError for any other path.
    """
    if path == ALONE:
        return lambda _message: ALONE
    if path == "routing_key":
        return operator.attrgetter("routing_key")
    root, *names = path.split(".")
    if root not in ("body", "headers") or not names or not all(names):
        raise ValueError("expected `routing_key`, `headers.NAME`, `body.NAME` or `*`")

    def key(message: Message[Any]) -> Any:
        value: Any = message.body if root == "body" else message.headers
        for name in names:
            value = _member(value, name, path)
        try:
            hash(value)
        except TypeError:
            raise BadMessage(path, f"{type(value).__name__} can't be a lock's key") from None
        return value if isinstance(value, _PLAIN) else copy.deepcopy(value)  # the handler may change what it was sent

    return key


def _member(value: Any, name: str, path: str) -> Any:
    if isinstance(value, Mapping):
        if name in value:
            return value[name]
    elif type(value) not in _WITHOUT_MEMBERS and hasattr(value, name):
        return getattr(value, name)
    raise BadMessage(path, "missing; the lock of this consumer needs it")
