"""JSON -> models of pydantic: the only module that imports pydantic, and imported only for types that are its own."""

from collections.abc import Callable
from typing import Any

import pydantic

from rpcd.core.errors import BadMessage


def model_decoder(kind: Any, hook: Any, strict: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Build a decoder for a type with something of pydantic's in it; raise TypeError if pydantic can't.

    `strict` refuses what is no JSON: pydantic takes NaN, and numbers that no float can hold.
    """
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(kind)
        adapter.rebuild(raise_errors=True)
    except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation) as error:
        raise TypeError(str(error).partition("\n")[0]) from None
    validate = adapter.validator.validate_json
    context = {"rpcd": hook}

    def opened(payload: bytes) -> Any:
        strict(payload)
        try:
            return validate(payload, context=context)
        except pydantic.ValidationError:
            raise BadMessage("body", "not valid") from None
        except RecursionError:
            raise BadMessage("body", "JSON is nested too deeply") from None

    return opened
