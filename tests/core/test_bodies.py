"""What a body becomes by the type that its handler's annotation names."""

import dataclasses
import typing
from typing import Any

import attrs
import msgspec
import pydantic
import pytest
from pydantic_core import core_schema

from rpcd.core.bodies import check, decode_json
from rpcd.core.codec import JSON, Codec
from rpcd.core.errors import BadMessage, BadValue

T = typing.TypeVar("T")


class Sealed(typing.Generic[T]):
    """A type of rpcd's own kind: a hook makes its values."""

    __rpcd_opens__ = True

    def __init__(self, kind: Any, value: Any) -> None:
        self.kind = kind
        self.value = value

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, _handler: Any) -> Any:
        return core_schema.with_info_plain_validator_function(lambda value, info: info.context["rpcd"](source, value))


def hook(kind: Any, value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith("sealed:"):
        raise BadValue("not sealed")
    return Sealed(kind, value.removeprefix("sealed:"))


class StructCard(msgspec.Struct):
    number: Sealed[str]


@attrs.define
class AttrsCard:
    number: Sealed[str]


@dataclasses.dataclass
class DataclassCard:
    number: Sealed[str]


class ModelCard(pydantic.BaseModel):
    number: Sealed[str]


CARDS: list[Any] = [StructCard, AttrsCard, DataclassCard, ModelCard]


def bad(decode: Any, payload: bytes) -> BadMessage:
    with pytest.raises(BadMessage) as caught:
        decode(payload)
    return caught.value


# Types of rpcd's own ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CARDS)
def test_a_hook_makes_the_values_of_types_that_are_rpcds_own(kind: Any) -> None:
    check(list[kind])
    (card,) = decode_json(list[kind], hook)(b'[{"number": "sealed:4111"}]')
    assert (type(card), card.number.kind, card.number.value) == (kind, Sealed[str], "4111")


@pytest.mark.parametrize("kind", CARDS)
def test_a_codec_hands_its_hook_on(kind: Any) -> None:
    codec = Codec([JSON], kind, hook)
    assert codec.decoder(None, None)(b'{"number": "sealed:1"}').number.value == "1"
