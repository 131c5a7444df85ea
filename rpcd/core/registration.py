"""`@rpcd.message_handler`: a handler that says itself what it wants to be sent.

The decorator only marks its object. What an operator names in `[service] modules` is imported, and marks on its top-level
names become sections of the config, under those of the file: whatever the file says of the same queue or consumer wins.
"""

import difflib
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from rpcd.core.settings import Consumer

MARK = "__rpcd_registrations__"

SAID = "__rpcd_said__"
"""Where a module keeps what its decorators have said, whatever has become of the objects."""

_OWN = frozenset({"queue", "handler", "namespace", "exchanges"})
"""What the decorator itself says of its consumer."""

ObjectT = TypeVar("ObjectT")


@attrs.frozen
class Registration:
    """What one decorator said."""

    routing_keys: tuple[str, ...]
    exchange: str
    queue: str | None
    name: str | None
    settings: Mapping[str, Any]
    by: str = "message_handler"
    """The decorator's name."""

    def tables(self, section: str) -> dict[str, Any]:
        """Return the sections of what it needs on the broker; its queue is that of [queues.SECTION]."""
        binding = {"exchange": self.exchange, "routing_keys": self.routing_keys}
        return {"queues": {section: {"bindings": [binding]}}}


@attrs.frozen
class Registered:
    """A registration, and the object that it was found on."""

    registration: Registration
    path: str
    """Where the object is: package.module:Name."""
    section: str = ""
    """The [queues] section of its queue, once the file has been looked into."""

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self.registration.queue or self.path.replace(":", ".")

    @property
    def name(self) -> str:
        """The consumer's name."""
        return self.registration.name or self.queue


def message_handler(
    routing_keys: str | Sequence[str], *, exchange: str, queue: str | None = None, name: str | None = None, **settings: Any
) -> Callable[[ObjectT], ObjectT]:
    """Register a function or class as the handler of what an exchange is sent with one of some routing keys.

    `exchange` is the name of an [exchanges] section or of an exchange that exists; with a topic exchange the keys may have
    wildcards. `queue` is the queue's name, `module.function` if not given, and `name` the consumer's, the queue's if not
    given. Everything else is a setting of [consumers.NAME]: workers, lock, retry={"delays": [1, 60]}, config={...}. The
    config file wins over it, setting by setting. The object comes back as it was, and is called in a test like any other.
    It is run only if `[service] modules` names its module. Raises TypeError or ValueError for wrong arguments.
    """
    keys = (routing_keys,) if isinstance(routing_keys, str) else routing_keys
    _check_keys(keys)
    _check_name("exchange", exchange)
    for what, value in (("queue", queue), ("name", name)):
        if value is not None:
            _check_name(what, value)
    check_settings("message_handler", settings)
    check_text("message_handler", *keys, exchange, queue or "", name or "")
    return marking(Registration(tuple(keys), exchange, queue, name, settings))


def marking(registration: Registration) -> Callable[[ObjectT], ObjectT]:
    """Return the decorator that says this of an object, which comes back as it was."""
    by = f"@{registration.by}"

    def mark(decorated: ObjectT) -> ObjectT:
        if not callable(decorated):
            raise TypeError(f"{by}: a handler is a function or a class, not of type {type(decorated).__name__}")
        known_as = str(getattr(decorated, "__qualname__", ""))
        within, dot, _ = known_as.rpartition(".")
        if dot and not within.endswith("<locals>"):  # nobody would find it there, and a method wants a `self`
            raise TypeError(f"{by}: {known_as} is inside a class; decorate the class, or a function")
        try:
            setattr(decorated, MARK, (*marks(decorated), registration))
        except (AttributeError, TypeError):
            said = f"{by}: an object of type {type(decorated).__name__} can't be marked; decorate a function"
            raise TypeError(said) from None
        _note(decorated, known_as, registration)
        return decorated

    return mark


def _note(decorated: Any, known_as: str, registration: Registration) -> None:
    """Note in the object's module that it was decorated: whether it can be found there is seen when all is imported."""
    module = sys.modules.get(getattr(decorated, "__module__", None) or "")
    if module is not None:
        vars(module).setdefault(SAID, []).append((known_as, registration))


def check_text(by: str, *texts: str) -> None:
    """Raise ValueError unless names can be sent."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"@{by}: {half!r} is half a character, which can't be sent") from None


def _check_keys(keys: Any) -> None:
    if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
        raise TypeError("@message_handler: routing_keys is a string, or a list of strings")
    if not keys or not all(keys):
        raise ValueError('@message_handler: a routing key is empty, or there is none; for a fanout exchange write "#"')


def _check_name(what: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"@message_handler: {what} is a string, not of type {type(value).__name__}")
    if not value:
        said = "; a queue needs no binding to the default exchange: write [consumers.NAME]" if what == "exchange" else ""
        raise ValueError(f"@message_handler: {what} is empty{said}")


def check_settings(by: str, settings: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError unless these are a consumer's settings, and none that the decorator says itself."""
    known = [field.name for field in attrs.fields(Consumer) if field.name not in _OWN]
    for unknown in settings:
        if unknown in _OWN:
            raise TypeError(f"@{by}: {unknown!r} is said by the decorator itself; leave it out")
        if unknown not in known:
            close = difflib.get_close_matches(unknown, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise TypeError(f"@{by}: there is no setting {unknown!r}; {hint}")
    try:
        copied(settings)
    except RecursionError:
        raise ValueError(f"@{by}: a setting contains itself") from None


def marks(value: Any) -> tuple[Registration, ...]:
    """Return what the decorators on an object said; what a class has inherited is not its own."""
    try:
        found = vars(value).get(MARK, ())
    except Exception:  # noqa: BLE001  # no __dict__, or a module's lazy object, which may raise whatever it likes
        return ()
    return found if isinstance(found, tuple) and all(isinstance(each, Registration) for each in found) else ()


def registered(modules: Iterable[types.ModuleType]) -> list[Registered]:
    """Return what is registered by the top-level names of modules, each object once, wherever it is imported to."""
    found: list[Registered] = []
    seen: set[int] = set()
    for module in modules:
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if (said := marks(value)) and id(value) not in seen:
                seen.add(id(value))
                found += [Registered(each, _home(value) or f"{module.__name__}:{name}") for each in said]
    return found


def unreachable(modules: Iterable[types.ModuleType], found: Iterable[Registered]) -> Iterator[tuple[str, str]]:
    """Yield decorator and path of whatever is decorated in one of the modules, and not found by any top-level name."""
    known = {id(each.registration) for each in found}
    for module in modules:
        for name, registration in getattr(module, "__dict__", {}).get(SAID, ()):
            if id(registration) not in known:
                yield registration.by, f"{module.__name__}:{name}"


def _home(value: Any) -> str | None:
    """Return the path of an object where it was defined; None if it is not, or no longer, what is found there."""
    module, name = sys.modules.get(getattr(value, "__module__", "")), getattr(value, "__qualname__", "")
    return f"{module.__name__}:{name}" if module is not None and vars(module).get(name) is value else None


def copied(value: Any) -> Any:
    """Copy tables and arrays, as a file has them; what a config holds besides may be anything, and stays itself."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list | tuple) else value
