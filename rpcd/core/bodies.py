"""JSON -> T of `Message[T]`: msgspec decodes every type but those that are pydantic's.

All is decided at start by looking at T and at what it is made of. An error names place and reason, never a value.
"""

import functools
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import msgspec

from rpcd.core.errors import BadMessage, BadValue

Decode: TypeAlias = Callable[[bytes], Any]

Hook: TypeAlias = Callable[[Any, Any], Any]
"""Makes a value of one of rpcd's own types: `hook(type, value)`, with the value as JSON has it; it raises BadValue.

msgspec calls it; to a type that stands in a pydantic model it comes as `info.context["rpcd"]`.
"""

OWN = "__rpcd_opens__"
"""The attribute of a class that says: the hook makes its values, whatever its parameters are."""

_PYDANTIC = frozenset(("pydantic", "pydantic_core", "pydantic_extra_types", "pydantic_settings", "annotated_types"))


def decode_json(kind: Any, hook: Hook | None = None) -> Decode:
    """Build a strict JSON decoder for a type; `Any` takes every JSON value.

    The decoder raises BadMessage with place and reason, never with a value. Raises TypeError for a type that neither
    msgspec nor pydantic knows.
    """
    if is_pydantic(kind):
        from rpcd.core.models import model_decoder  # noqa: PLC0415  # it loads pydantic

        return model_decoder(kind, hook, decode_json(Any))
    decode = msgspec.json.Decoder(kind, dec_hook=hook).decode
    declared = functools.cache(lambda: _names(kind))

    def opened(payload: bytes) -> Any:
        try:
            return decode(payload)
        except msgspec.ValidationError as error:
            raise _bad_message(error, declared) from None
        except msgspec.DecodeError as error:
            raise BadMessage("body", "empty" if not payload else str(error)) from None
        except UnicodeDecodeError:
            raise BadMessage("body", "not UTF-8") from None
        except RecursionError:
            raise BadMessage("body", "JSON is nested too deeply") from None

    return opened


_PLACE = re.compile(r" - at `(?:key` in `)?\$([^`]*)`$")
_SAFE = re.compile(
    r"Expected `[^`]*`(?:, got `[^`]*`| matching regex .*| [<>=]+ [-0-9.e]+| of length .*|.* multiple of .*)?"
    r"|Object missing required field `[^`]*`"
    r"|Integer value out of range|Number out of range"
    r"|Invalid (?:RFC3339 encoded \w+|UUID|base64 encoded string|decimal string|epoch timestamp|ISO8601 duration)"
    r"|(Invalid enum value|Invalid value|Object contains unknown field) .*",
    re.DOTALL,
)


_STEP = re.compile(r"\.([^.\[\]]+)|\[(?:\d+|\.\.\.)\]")


def _bad_message(error: msgspec.ValidationError, declared: Callable[[], set[str]]) -> BadMessage:
    """Split msgspec's words into place and reason; what could be a value of the body, or a user's own words, is left out."""
    text = str(error)
    found = _PLACE.search(text)
    reason, place = (text[: found.start()], found[1]) if found else (text, "")
    if isinstance(error.__cause__, BadValue):
        return BadMessage("body" + place, str(error.__cause__))
    safe = None if error.__cause__ is not None else _SAFE.fullmatch(reason)
    if text.startswith("Object contains unknown field") and not _is_place(place, declared()):
        place = ""
    return BadMessage("body" + place, "not valid" if safe is None else safe[1] or reason)


def _is_place(text: str, declared: set[str]) -> bool:
    """Tell whether a text leads through fields of the type: a key that nobody knows may look like msgspec's own words."""
    return not _STEP.sub("", text) and all(name in declared for name in _STEP.findall(text) if name)


def _names(kind: Any) -> set[str]:
    """Return how the fields of a type are written, and of all that it is made of."""
    known = _known(msgspec.inspect.type_info(kind), set())
    return {each.encode_name for each in known if isinstance(each, msgspec.inspect.Field)}


# What a type is made of ---------------------------------------------------------------------------


def check(kind: Any) -> None:
    """Raise TypeError, or what else msgspec and pydantic raise, for a type that no body can be decoded to."""
    if kind is Any or kind is bytes:
        return
    if is_pydantic(kind):
        if any(isinstance(each, msgspec.Meta) for each in _inside(kind, {})):
            raise TypeError("pydantic decodes it, and knows nothing of msgspec.Meta; write pydantic.Field")
        decode_json(kind)
        return
    decode_json(kind)
    known = _known(msgspec.inspect.type_info(kind), set())
    if any(isinstance(each, msgspec.inspect.CustomType) and not hasattr(each.cls, OWN) for each in known):
        raise TypeError("use a dataclass, attrs class, TypedDict, NamedTuple, Struct, pydantic model or builtin type")


def is_pydantic(kind: Any) -> bool:
    """Tell whether pydantic is to decode a type: anything in it is a model, a type or an annotation of pydantic's."""
    return any(map(_of_pydantic, _inside(kind, {})))


def _of_pydantic(part: Any) -> bool:
    """Look at one part of a type: a class, or what stands beside it in `Annotated`."""
    kind = part if isinstance(part, type) else type(part)
    return (
        any(base.__module__.partition(".")[0] in _PYDANTIC for base in kind.__mro__)
        or hasattr(kind, "__pydantic_validator__")
        or (hasattr(kind, "__get_pydantic_core_schema__") and not hasattr(kind, OWN))
    )


def _inside(kind: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """Go through a type and all that it is made of: arguments, fields, what an alias stands for."""
    if id(kind) in seen:
        return
    seen[id(kind)] = kind  # kept, for hints are made anew, and another one might get its id
    yield kind
    if hasattr(typing.get_origin(kind) or kind, OWN):  # what is inside is the hook's affair
        return
    parts = [*typing.get_args(kind), *getattr(kind, "__metadata__", ())]
    parts += [
        meant for name in ("__origin__", "__value__", "__supertype__", "__bound__") if (meant := getattr(kind, name, None))
    ]
    if isinstance(kind, type) and not _of_pydantic(kind):
        parts += _fields(kind)
    for each in parts:
        yield from _inside(each, seen)


def _fields(kind: type) -> list[Any]:
    try:
        return list(typing.get_type_hints(kind, include_extras=True).values())
    except Exception:  # noqa: BLE001  # annotations are the user's code; who decodes the type says what is wrong with them
        return []


def _known(info: Any, seen: set[int]) -> Iterator[Any]:
    """Go through what msgspec knows of a type and of all that it is made of."""
    if id(info) in seen:
        return
    seen.add(id(info))
    yield info
    if isinstance(info, tuple | list):
        for each in info:
            yield from _known(each, seen)
    elif isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field):
        for name in info.__struct_fields__:
            if name not in ("cls", "default", "default_factory"):
                yield from _known(getattr(info, name), seen)
