"""What arrived, and what a handler answers: values only."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import attrs

from rpcd.core.done import done
from rpcd.core.errors import PASSED, DeadlinePassed
from rpcd.core.outgoing import Outgoing, outgoing
from rpcd.core.question import Question, question
from rpcd.core.tables import Headers, ShortString, table
from rpcd.core.wire import Properties

BodyT = TypeVar("BodyT")

EXCHANGE_HEADER = "x-rpcd-exchange"
ROUTING_KEY_HEADER = "x-rpcd-routing-key"
"""Where a copy keeps the exchange and the key that the message was first published with."""


class Outlet(Protocol):
    """How a message's handler reaches the broker at once; rpcd gives one to every message it delivers."""

    def publish_now(self, outgoing: Outgoing) -> Any:
        """Publish and return when the broker has confirmed; called on a loop, return at once what is to be awaited."""

    def call(self, question: Question, left: float | None) -> Any:
        """Ask and return what the reply says; on a loop, return a coroutine. `left` is the seconds to the deadline."""


@attrs.frozen
class Source:
    """Where messages come from: what all messages of one consumer share."""

    consumer: str = ""
    queue: str = ""
    outlet: Outlet | None = None
    new_id: Callable[[], str] | None = None
    """Makes the ids of what handlers publish; None leaves them out."""
    clock: Callable[[], float] | None = None
    """Seconds since the epoch, by which deadlines are kept; without one it is always the moment of arrival."""
    stamp: Callable[[str, str], Mapping[str, Any]] | None = None
    """Makes headers for what handlers publish, of its exchange and key; called where they publish. A layer may set it."""


class Reply:
    """A reply whose `data` and `message` are both set by the handler: `return rpcd.Reply(data, message="done")`."""

    __slots__ = ("data", "message")

    def __init__(self, data: Any = None, message: str | None = None) -> None:
        """Take the object for `data` (None is `{}`), by whatever type it has, and the text for `message`."""
        self.data = data
        self.message = message


class Ended(list[Outgoing]):
    """What a message publishes when its handler has returned: nothing more."""

    def append(self, _outgoing: Outgoing) -> None:
        """Raise RuntimeError: it would be sent by nobody."""
        raise RuntimeError("the handler has returned, so nothing is held back for it any more; use publish_now")


ENDED = Ended()


class Message(Generic[BodyT]):
    """What arrived: body, headers, where from, who wants a reply, which attempt.

    A handler gets one and may keep it as long as it runs. It can be made by hand, which is all that a test of a handler
    needs: `handler(rpcd.Message({"a": 1}))`, or `asyncio.run(handler(rpcd.Message({"a": 1})))` of an async one; what the
    handler publishes is then found in `published`.
    """

    __slots__ = (
        "_cancelled",
        "_payload",
        "_properties",
        "attempt",
        "body",
        "deadline",
        "exchange",
        "nacks",
        "published",
        "received",
        "redelivered",
        "routing_key",
        "source",
    )

    def __init__(
        self,
        body: BodyT = None,  # type: ignore[assignment]  # None until the message is opened
        *,
        payload: bytes = b"",
        properties: Properties | None = None,
        headers: Mapping[str, Any] | None = None,
        exchange: str = "",
        routing_key: str = "",
        queue: str = "",
        consumer: str = "",
        redelivered: bool = False,
        attempt: int = 1,
        received: float = 0.0,
        deadline: float | None = None,
    ) -> None:
        """Make a message by hand; `received` and `deadline` are in seconds since the epoch."""
        self.body = body
        self._payload = payload
        self._properties = properties if properties is not None else Properties()
        if headers is not None:
            self._properties.headers = Headers(table(headers))
            self._properties.headers.update(headers)
        self.exchange = exchange
        self.routing_key = routing_key
        self.source = Source(consumer, queue)
        self.redelivered = redelivered
        self.attempt = attempt
        self.received = received
        self.nacks = 0
        self.deadline = deadline
        """When the sender stops waiting, in seconds since the epoch; None if it set no limit."""
        self.published: list[Outgoing] = []
        self._cancelled = False

    @property
    def payload(self) -> bytes:
        """The bytes that came; nobody can change them, for a retry carries them on."""
        return self._payload

    @property
    def properties(self) -> Properties:
        """AMQP's properties of the message."""
        return self._properties

    @property
    def queue(self) -> str:
        """The name of the queue that the message was taken from."""
        return self.source.queue

    @property
    def consumer(self) -> str:
        """The name of the consumer in the config."""
        return self.source.consumer

    @property
    def headers(self) -> Mapping[str, Any]:
        """The application's headers, decoded; empty when there are none."""
        found = self._properties.headers
        return found if isinstance(found, Headers) else {}

    @property
    def reply_to(self) -> ShortString | None:
        """Where the sender wants the reply; None when it wants none."""
        return self.properties.reply_to

    @property
    def correlation_id(self) -> ShortString | None:
        """What the sender tells replies apart by; bytes if it is no UTF-8."""
        return self.properties.correlation_id

    @property
    def message_id(self) -> ShortString | None:
        """The sender's id of the message."""
        return self.properties.message_id

    @property
    def content_type(self) -> ShortString | None:
        """The media type that the sender gave."""
        return self.properties.content_type

    @property
    def remaining(self) -> float | None:
        """How many seconds are left until the deadline, 0.0 if it has passed; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - self._now())

    @property
    def cancelled(self) -> bool:
        """Whether to give up: nobody waits for the result any more, or what comes from now on counts for nothing.

        True once the deadline has passed, the time limit has passed, or the process stops and waits no longer; never false
        again. Reading it costs next to nothing, in any thread and on a loop: look between two steps of long work. A thread
        can't be interrupted, so it is only told so; its deadline and its time limit cancel an async handler as well.
        """
        return self._cancelled or (self.deadline is not None and self._now() >= self.deadline)

    def cancel(self) -> None:
        """Let `cancelled` be true from now on. rpcd does it; so may the test of a handler. Any thread."""
        self._cancelled = True

    def _now(self) -> float:
        return self.received if self.source.clock is None else self.source.clock()

    def publish(self, exchange: str, routing_key: str, body: Any = None, **options: Any) -> None:
        """Publish a message when, and only when, this handler succeeds; it is confirmed before the message is acked.

        Bytes are sent as they are, anything else as JSON. Options: `headers`, `mandatory` (default False: a message that
        no queue takes is no error), `content_type`, `correlation_id`, `message_id`, `reply_to`, `type`, `expiration`
        (seconds), `priority`, `persistent` (default True). What can't be encoded raises TypeError or ValueError here.
        Several publications are not atomic: when the handler runs again, what was already confirmed is sent again.
        """
        self.published.append(self._outgoing(exchange, routing_key, body, options))

    def publish_now(self, exchange: str, routing_key: str, body: Any = None, **options: Any) -> Any:
        """Publish a message and return when the broker has confirmed it; it stays published if the handler fails.

        Takes what `publish` takes. Blocks the worker thread for `publish_timeout` seconds at most. Raises PublishRefused
        (no such exchange, no permission, too big), Unroutable (only if `mandatory`), PublishTimeout, or DeadlinePassed:
        nothing more is begun once the sender of this message has stopped waiting.

        In an async handler it blocks nothing: write `await message.publish_now(...)`, which waits and raises. What is never
        awaited is waited for when the handler has returned, and fails it as an exception would.
        """
        if self.deadline is not None and self._now() >= self.deadline:
            raise DeadlinePassed(PASSED)
        message = self._outgoing(exchange, routing_key, body, options)
        if self.source.outlet is not None:
            return self.source.outlet.publish_now(message)
        self.published.append(message)
        return done()

    def call(
        self,
        exchange: str,
        routing_key: str,
        body: Any = None,
        *,
        timeout: float | None = None,
        reply_type: Any = Any,
        plain: bool = False,
        **options: Any,
    ) -> Any:
        """Ask another service and return the `data` of its reply; in an async handler, `await message.call(...)`.

        `timeout` is in seconds, 30 by default; this message's deadline and its handler's time limit shorten it. The request
        carries what is left, so that the other side's own calls end in time, too. `reply_type` is what `data` is to be: any
        type that a body may have; without one, what the JSON says. `plain=True` takes replies without an envelope.
        Options are those of `publish` without `correlation_id`, `reply_to`, `expiration`, `mandatory`.

        Raises CallFailed (the service says so; it has its message and data), Unroutable and PublishRefused (at once),
        CallTimeout, BadReply, CallInterrupted (the connection ended before the reply came), DeadlinePassed, TimeLimitPassed.
        Nothing is asked twice by itself: whether it may be is known to you alone.
        """
        self._stamp(exchange, routing_key, options)
        asked = question(exchange, routing_key, body, timeout=timeout, reply_type=reply_type, plain=plain, **options)
        left = self.remaining
        if left is not None and left <= 0:
            raise DeadlinePassed(PASSED)
        if self.source.outlet is None:
            raise RuntimeError("this message was made by hand: nobody answers its calls but the harness of rpcd.testing")
        return self.source.outlet.call(asked, left)

    def _outgoing(self, exchange: str, routing_key: str, body: Any, options: dict[str, Any]) -> Outgoing:
        self._stamp(exchange, routing_key, options)
        if self.source.new_id is not None:
            options.setdefault("message_id", self.source.new_id())
        return outgoing(exchange, routing_key, body, **options)

    def _stamp(self, exchange: str, routing_key: str, options: dict[str, Any]) -> None:
        """Put in the headers that a layer wants on everything that is published; what the handler says itself wins."""
        if self.source.stamp is not None:
            options["headers"] = {**self.source.stamp(exchange, routing_key), **(options.get("headers") or {})}

    def __repr__(self) -> str:
        return f"<Message {self.message_id!r} from queue {self.queue!r}, key {self.routing_key!r}, attempt {self.attempt}>"


def delivered(
    source: Source,
    payload: bytes,
    properties: Properties,
    exchange: str,
    routing_key: str,
    redelivered: bool,
    received: float,
) -> Message[Any]:
    """Make the message of a delivery; the same as the constructor, at a third of its cost."""
    message: Message[Any] = Message.__new__(Message)
    message.body = None
    message._payload = payload  # noqa: SLF001  # its second constructor
    message._properties = properties  # noqa: SLF001
    message.exchange = exchange
    message.routing_key = routing_key
    message.source = source
    message.redelivered = redelivered
    message.attempt = 1
    message.received = received
    message.nacks = 0
    message.deadline = None
    message.published = []
    message._cancelled = False  # noqa: SLF001  # its second constructor
    return message
