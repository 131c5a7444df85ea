"""Three patterns of messaging, as decorators for handlers, and one output for all of them.

Services that have never heard of each other meet by a name that both know: publish_subscribe.NAME, push_pull.NAME and
request_response.NAME, with a prefix of the application's in front if it has one.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import attrs

from rpcd.core.registration import Registration, check_settings, check_text, marking
from rpcd.core.topology import DeclareExchange

PUBLISH_SUBSCRIBE = "publish_subscribe"
PUSH_PULL = "push_pull"
REQUEST_RESPONSE = "request_response"

FANOUT: dict[str, Any] = {"type": "fanout", "durable": False}
"""The exchange of publish-subscribe: what nobody hears is nobody's, so nothing of it need survive the broker."""

_PLAIN: dict[str, Any] = {"auto_delete": False, "internal": False, "passive": False, "arguments": {}}

ObjectT = TypeVar("ObjectT")


def full_name(pattern: str, name: str, prefix: str = "") -> str:
    """Return the name of a pattern's queue or exchange; raise TypeError or ValueError for what can't be part of it."""
    for what, part in (("the name", name), ("the prefix", prefix)):
        if not isinstance(part, str):
            raise TypeError(f"{what} is a string, not of type {type(part).__name__}")
    if not name:
        raise ValueError("the name is empty")
    return f"{prefix}.{pattern}.{name}" if prefix else f"{pattern}.{name}"


@attrs.frozen
class Pattern(Registration):
    """What the decorator of a pattern said."""

    def tables(self, section: str) -> dict[str, Any]:
        """Return the sections of what it needs on the broker."""
        if not self.exchange:
            return {"queues": {section: {}}}
        queue = {"name": "", "bindings": [{"exchange": self.exchange, "routing_keys": [""]}]}
        return {"exchanges": {self.exchange: FANOUT}, "queues": {section: queue}}


def subscribe(name: str, *, prefix: str = "", consumer: str | None = None, **settings: Any) -> Callable[[ObjectT], ObjectT]:
    """Register a handler of everything that is published by a name: each service that subscribes gets every message.

    It has a queue of its own, which the broker names, and which is gone with its connection: what is published meanwhile is
    not heard. `consumer` is the consumer's name, the exchange's if not given. Everything else is as in `message_handler`.
    """
    exchange = _full_name("subscribe", PUBLISH_SUBSCRIBE, name, prefix, settings)
    return marking(Pattern(("",), exchange, consumer or exchange, consumer, settings, "subscribe"))


def pull(name: str, *, prefix: str = "", consumer: str | None = None, **settings: Any) -> Callable[[ObjectT], ObjectT]:
    """Register a handler of what is pushed by a name: each message is handled by one of the services that pull.

    Its queue is durable, and keeps messages while nobody pulls. Everything else is as in `subscribe`.
    """
    queue = _full_name("pull", PUSH_PULL, name, prefix, settings)
    return marking(Pattern((), "", queue, consumer, settings, "pull"))


def respond(name: str, *, prefix: str = "", consumer: str | None = None, **settings: Any) -> Callable[[ObjectT], ObjectT]:
    """Register a handler of requests by a name: each is answered by one of the services that respond.

    None of them is sent more requests than it works on (`prefetch` is `workers`), so that an idle one gets the next. The
    queue is durable, for RabbitMQ 4 gives up transient queues that many share. Everything else is as in `subscribe`.
    """
    queue = _full_name("respond", REQUEST_RESPONSE, name, prefix, settings)
    settings.setdefault("prefetch", settings.get("workers", 1))
    return marking(Pattern((), "", queue, consumer, settings, "respond"))


def _full_name(by: str, pattern: str, name: str, prefix: str, settings: Mapping[str, Any]) -> str:
    check_settings(by, settings)
    try:
        found = full_name(pattern, name, prefix)
    except (TypeError, ValueError) as error:
        raise type(error)(f"@{by}: {error}") from None
    check_text(by, found)
    return found


class Sender(Protocol):
    """What an output sends by: a message in its handler, or a client of any kind."""

    def publish(self, exchange: str, routing_key: str, body: Any = None, **options: Any) -> Any:
        """Publish a message."""

    def call(self, exchange: str, routing_key: str, body: Any = None, **options: Any) -> Any:
        """Ask a service."""


class Output:
    """Sends by one name in all three patterns; what each method returns is what its sender returns.

    The sender is a handler's message (publications leave when the handler succeeds), a Client (which blocks), an AsyncClient
    (to be awaited) or a TwistedClient (Deferreds).
    """

    def __init__(self, sender: Sender, name: str, *, prefix: str = "") -> None:
        """Take what sends; raises TypeError or ValueError for a wrong name."""
        self._sender = sender
        self._exchange = full_name(PUBLISH_SUBSCRIBE, name, prefix)
        self._pushed = full_name(PUSH_PULL, name, prefix)
        self._asked = full_name(REQUEST_RESPONSE, name, prefix)

    def publish(self, body: Any = None, **options: Any) -> Any:
        """Publish to everybody who has subscribed by now; options are those of the sender's `publish`.

        It is confirmed, but not kept on disk. That nobody has subscribed is no error. A client makes the exchange if it is
        not there; a handler's message does not, so let the config do it: [exchanges."publish_subscribe.NAME"].
        """
        options = {"persistent": False, **options}
        if getattr(self._sender, "declares", False):
            options["declare"] = DeclareExchange("", self._exchange, **FANOUT, **_PLAIN)
        return self._sender.publish(self._exchange, "", body, **options)

    def push(self, body: Any = None, **options: Any) -> Any:
        """Push to one of those who pull, now or later; options are those of the sender's `publish`.

        It is confirmed and kept on disk. Fails with Unroutable if nobody has ever pulled, for there is no queue yet.
        """
        return self._sender.publish("", self._pushed, body, **{"mandatory": True, **options})

    def request(self, body: Any = None, **options: Any) -> Any:
        """Ask one of those who respond, and return what it answers; options are those of the sender's `call`."""
        return self._sender.call("", self._asked, body, **options)
