"""What a setting is: its type, its default, its one sentence for operators."""

from collections.abc import Mapping
from typing import Any, NewType

import attrs

Seconds = NewType("Seconds", float)
"""A number of seconds, 0 or more."""

Positive = NewType("Positive", int)
"""A whole number, 1 or more."""

Name = NewType("Name", str)
"""A short string that is not empty: 255 bytes at most."""


def setting(sentence: str, default: Any = attrs.NOTHING, *, secret: bool = False) -> Any:
    """Define one setting: what it decides, its default, and whether it must never be shown."""
    metadata = {"sentence": sentence, "secret": secret}
    if isinstance(default, list | dict):
        kind = type(default)
        return attrs.field(factory=lambda: kind(default), metadata=metadata, repr=not secret, kw_only=True)
    return attrs.field(default=default, metadata=metadata, repr=not secret, kw_only=True)


def sentences(kind: type[attrs.AttrsInstance]) -> Mapping[str, str]:
    """Return the sentence of every setting of a section."""
    return {field.name: field.metadata["sentence"] for field in attrs.fields(kind)}
