"""A value that is not shown: what a handler gets where its body was encrypted."""

import copy
import typing
from collections.abc import Iterable
from typing import Any, Generic, NoReturn, TypeVar

SecretT = TypeVar("SecretT")

MASK = "****"
"""What stands for a secret wherever it is shown."""


class Secret(Generic[SecretT]):
    """A decrypted value: `reveal()` returns it, and everything that shows it shows `****` instead.

    In the type of a body, `rpcd.Secret[str]` is a field that arrives as a Fernet token; plain text in it is refused. It can
    be made by hand, which is all that a test needs: `rpcd.Secret("correct-horse")`. Two secrets are equal if their values
    are. It can't be pickled, and no reply or publication can hold it.
    """

    __slots__ = ("_token", "_value")

    __rpcd_opens__ = True
    """Read by `bodies`: its values are made by the hook that has the keys."""

    def __init__(self, value: SecretT, token: str | None = None) -> None:
        """Take the value, and the token that it came as."""
        self._value = value
        self._token = token

    def reveal(self) -> SecretT:
        """Return the value itself; from here on, it is the caller's to keep out of logs and replies."""
        return self._value

    @property
    def token(self) -> str | None:
        """The Fernet token that it came as, to be passed on to whoever has the keys; None if it was made by hand."""
        return self._token

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, _specification: str) -> str:
        return MASK  # whatever was asked for: a width would be no harm, an error would be one

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        """Compare values; text and bytes in a time that does not tell how much of them is equal."""
        if not isinstance(other, Secret):
            return NotImplemented
        import hmac  # noqa: PLC0415  # with all that it loads, it costs as much as the rest of `import rpcd`

        mine, theirs = _as_bytes(self._value), _as_bytes(other._value)
        if mine is not None and theirs is not None:
            return type(self._value) is type(other._value) and hmac.compare_digest(mine, theirs)
        return bool(self._value == other._value)

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __copy__(self) -> "Secret[SecretT]":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Secret[SecretT]":
        return Secret(copy.deepcopy(self._value, memo), self._token)

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise TypeError("a Secret can't be pickled; pass its token on, or what reveal() returns")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, _handler: Any) -> dict[str, Any]:
        """Tell pydantic, which calls it, how a field of this type is validated; its schemas are plain tables."""

        def validate(value: Any, info: Any) -> Any:
            if isinstance(value, cls):
                return value
            opener = (info.context or {}).get("rpcd")
            if opener is None:
                raise ValueError("expected rpcd.Secret(...)")
            return opener(source, value)

        return {"type": "function-plain", "function": {"type": "with-info", "function": validate}}

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, _handler: Any) -> dict[str, Any]:
        return {"type": "string", "format": "password", "writeOnly": True, "description": "A Fernet token."}


def _as_bytes(value: Any) -> bytes | None:
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    return value if isinstance(value, bytes) else None


def holds_secret(kind: Any, seen: dict[int, Any] | None = None) -> bool:
    """Tell whether a type has a `Secret` in it, however deep: in its arguments, its fields, what it stands for."""
    seen = {} if seen is None else seen
    origin = typing.get_origin(kind) or kind
    if origin is Secret:
        return True
    if id(kind) in seen:
        return False
    seen[id(kind)] = kind  # kept, for hints are made anew, and another one might get its id
    return any(holds_secret(each, seen) for each in [*typing.get_args(kind), *_fields(origin)])


def _fields(kind: Any) -> Iterable[Any]:
    """Return the types of a class's fields, or what an alias stands for."""
    for name in ("__supertype__", "__value__"):  # NewType, and `type X = ...`
        if hasattr(kind, name):
            return [getattr(kind, name)]
    if not isinstance(kind, type):
        return []
    if isinstance(models := getattr(kind, "__pydantic_fields__", None), dict):
        return [each.annotation for each in models.values()]
    try:
        return typing.get_type_hints(kind, include_extras=True).values()
    except Exception:  # noqa: BLE001  # annotations are the user's code; whoever decodes to the type says what is wrong
        return []
