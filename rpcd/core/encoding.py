"""Objects -> JSON: msgspec encodes all that it knows, and models of pydantic encode themselves.

Nothing is imported for that: a model brings its own serializer with it.
"""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

_SERIALIZER = "__pydantic_serializer__"

_DATACLASSES = "pydantic.dataclasses"
"""The module that makes dataclasses of pydantic's: msgspec takes them for plain ones, and would not know their aliases."""


def encode_json(value: Any) -> bytes:
    """Encode a value as JSON; raise TypeError or ValueError when JSON has no form for it.

    A model of pydantic is encoded in its JSON mode, by alias.
    """
    try:
        encoded = _encode(value if _DATACLASSES not in sys.modules else _by_alias(value))
        if b"null" in encoded:
            _check_finite(msgspec.to_builtins(value, enc_hook=_finite))
    except RecursionError as error:
        raise ValueError("the value is nested too deeply, or contains itself") from error
    return encoded


def _other(value: Any) -> Any:
    """Encode what msgspec does not know."""
    return msgspec.Raw(_serialized(value)) if hasattr(type(value), _SERIALIZER) else _plain(value)


def _plain(value: Any) -> Any:
    """Return what an object is besides its own class: text, a number, a mapping; raise TypeError if it is nothing of it."""
    for kind, plain in _PLAIN.items():
        if isinstance(value, kind):
            return plain(value)
    raise TypeError(f"Encoding objects of type {type(value).__qualname__} is unsupported")


_PLAIN: dict[type, Callable[[Any], Any]] = {str: str.__str__, int: int.__int__, float: float.__float__, Mapping: dict}


_encode = msgspec.json.Encoder(enc_hook=_other).encode


def _serialized(value: Any) -> bytes:
    """Let a model encode itself; warnings would show values, and so may the words of what its serializers raise."""
    unknown: list[TypeError] = []

    def inside(item: Any) -> Any:  # what pydantic does not know: an attrs class where a model allows anything, say
        try:
            return msgspec.to_builtins(item, enc_hook=_other_inside)
        except TypeError as error:
            unknown.append(error)
            raise

    try:
        encoded: bytes = getattr(type(value), _SERIALIZER).to_json(value, by_alias=True, warnings=False, fallback=inside)
    except Exception as error:  # pydantic and the user's serializers
        if unknown:
            raise unknown[0] from None
        raise ValueError(f"pydantic can't encode objects of type {type(value).__qualname__}") from error
    if b"NaN" in encoded or b"Infinity" in encoded:
        try:
            msgspec.json.decode(encoded)
        except msgspec.DecodeError:
            raise ValueError("JSON has no form for nan and inf") from None
    return encoded


def _other_inside(value: Any) -> Any:
    return msgspec.json.decode(_serialized(value)) if hasattr(type(value), _SERIALIZER) else _plain(value)


def _by_alias(value: Any) -> Any:
    """Replace pydantic's dataclasses, in what may hold them, by their JSON."""
    kind = type(value)
    if kind is dict:
        return {key: _by_alias(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_by_alias(item) for item in value]
    return _other(value) if _SERIALIZER in vars(kind) else value


# What would arrive as null ------------------------------------------------------------------------


def _check_finite(value: Any) -> None:
    """Raise ValueError for NaN and infinity, which JSON has no form for: they would arrive as null."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"JSON has no form for {value}")
    if isinstance(value, dict):
        for item in value.values():
            _check_finite(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            _check_finite(item)


def _finite(value: Any) -> Any:
    """Check what msgspec does not know: a model by its values, before they are made JSON."""
    serializer = getattr(type(value), _SERIALIZER, None)
    if serializer is None:
        return _plain(value)
    _check_finite(serializer.to_python(value, warnings=False))
    return None
