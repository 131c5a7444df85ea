"""JSON -> models of pydantic: the only module that imports pydantic, and imported only for types that are its own."""

from collections.abc import Callable
from typing import Any

import pydantic

from rpcd.core.errors import BadMessage
from rpcd.core.faults import Shape

_TOO_MANY = 10_000
"""Faults that are not looked at one by one: pydantic makes them all at once, and needs a gigabyte for a million."""


def model_decoder(kind: Any, hook: Any, strict: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Build a decoder for a type with something of pydantic's in it; raise TypeError if pydantic can't.

    `strict` refuses what is no JSON: pydantic takes NaN, and numbers that no float can hold. What a validator raises besides
    ValueError and AssertionError comes through: it is the user's code that failed, as a handler may.
    """
    adapter = _adapter(kind)
    shape = Shape(adapter.core_schema)
    validate = adapter.validator.validate_json

    def opened(payload: bytes) -> Any:
        strict(payload)
        try:
            return validate(payload, context={"rpcd": hook})  # its own: validators may put into it what they like
        except pydantic.ValidationError as error:
            raise _bad_message(error, shape) from None
        except RecursionError:
            raise BadMessage("body", "JSON is nested too deeply") from None

    return opened


def _adapter(kind: Any) -> "pydantic.TypeAdapter[Any]":
    if not hasattr(getattr(pydantic, "TypeAdapter", None), "rebuild"):
        raise TypeError(f'pydantic {pydantic.VERSION} is too old for rpcd; pip install "rpcd[pydantic]"')
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(kind)
        adapter.rebuild(raise_errors=True)
    except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation) as error:
        raise TypeError(str(error).partition("\n")[0]) from None
    return adapter


def _bad_message(error: pydantic.ValidationError, shape: Shape) -> BadMessage:
    if (count := error.error_count()) > _TOO_MANY:
        return BadMessage("body", f"not valid in {count} places")
    errors = error.errors(include_url=False, include_input=False)
    if not errors[0]["loc"] and errors[0]["type"] == "json_invalid":  # `strict` has passed: only its depth is left
        return BadMessage("body", "JSON is nested too deeply")
    return shape.bad_message(errors)
