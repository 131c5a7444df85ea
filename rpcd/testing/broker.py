"""A broker in memory: exchanges, bindings, queues with their time to live, limits and dead letters, as RabbitMQ has them.

It takes the same declarations that the daemon carries out, and refuses what RabbitMQ would refuse, in its words.
"""

import base64
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rpcd.core.errors import PublishRefused, PublishTimeout, Unroutable
from rpcd.core.outgoing import DIRECT_REPLY_TO, Outgoing
from rpcd.core.tables import Headers, ShortString, header, join_headers, split_headers
from rpcd.core.topology import Bind, Declaration, DeclareExchange, DeclareQueue
from rpcd.core.wire import Properties, write_properties
from rpcd.testing.clock import Clock
from rpcd.testing.errors import HarnessError
from rpcd.testing.matching import MATCHES
from rpcd.testing.posted import Posted, posted

OWN = {
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.topic": "topic",
    "amq.headers": "headers",
    "amq.match": "headers",
}
"""The exchanges that every broker has, and their types."""


class Queue:
    """One queue; what is in hand of a consumer is not in it."""

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Make an empty queue."""
        self.name = name
        self.arguments = arguments
        self.messages: deque[Posted] = deque()

    @property
    def is_full(self) -> bool:
        """Whether it holds as many messages as it may."""
        most = self.arguments.get("x-max-length")
        return most is not None and len(self.messages) >= most

    @property
    def refuses(self) -> bool:
        """Whether it refuses what is published to it; else one that is full loses its oldest."""
        return self.is_full and str(self.arguments.get("x-overflow")).startswith("reject-publish")


class Broker:
    """Everything that one virtual host has."""

    def __init__(self, clock: Clock) -> None:
        """Start with what every broker has; `clock` is what messages expire by."""
        self.exchanges = dict(OWN)
        self.queues: dict[str, Queue] = {}
        self._clock = clock
        self._bindings: list[Bind] = []
        self._names = itertools.count(1)
        self.direct = Queue(direct_reply_to(), {})
        """Where replies by direct reply-to arrive; all who ask share it."""

    @property
    def names(self) -> list[str]:
        """The names of queues that somebody has chosen."""
        return [name for name in self.queues if not name.startswith("amq.")]

    # Declaring ------------------------------------------------------------------------------------

    def carry_out(self, declarations: Iterable[Declaration]) -> str:
        """Declare; what is only to be checked for is taken as there. Return the last name that was chosen for a queue."""
        named = ""
        for item in declarations:
            if isinstance(item, DeclareExchange):
                self.exchanges.setdefault(item.name, item.type)
            elif isinstance(item, DeclareQueue):
                name = item.name or self.new_name()
                named = named if item.name else name
                self.queues.setdefault(name, Queue(name, item.arguments))
            else:
                self.bind(item.queue or named, item.exchange, item.routing_key, item.arguments)
        return named

    def new_name(self) -> str:
        """Choose the name of a queue as a broker does."""
        return f"amq.gen-harness-{next(self._names)}"

    def bind(self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any]) -> None:
        """Bind a queue; an exchange that nobody has declared is taken as one that is there, of the type topic."""
        self.exchanges.setdefault(exchange, "topic")
        binding = Bind("", queue, exchange, routing_key, arguments)
        if binding not in self._bindings:
            self._bindings.append(binding)

    # Publishing -----------------------------------------------------------------------------------

    def publish(self, outgoing: Outgoing) -> Posted:
        """Route a message; raise PublishRefused, Unroutable or, if a queue that is full refuses it, PublishTimeout."""
        message = self._readdressed(posted(outgoing))
        found = list(self.route(message))
        if not found and outgoing.mandatory:
            raise Unroutable(
                f"no queue takes exchange {outgoing.exchange!r}, key {outgoing.routing_key!r}: 312 NO_ROUTE"
                f" (the queues of this test: {', '.join(self.names) or 'none'})"
            )
        full = next((queue for queue in found if queue.refuses), None)
        if full is not None:
            raise PublishTimeout(f"the broker refused to take it (is the queue full?): {full.name}")
        for queue in found:
            self.put(queue, message.of_queue(queue.name))
        return message

    def _readdressed(self, message: Posted) -> Posted:
        """Put the name of somebody who waits for a reply where direct reply-to is asked for, as RabbitMQ does."""
        properties = message.properties
        if properties.reply_to != DIRECT_REPLY_TO:
            return message
        properties.reply_to = self.direct.name
        encoded = write_properties(properties)
        return Posted(message.exchange, message.routing_key, message.payload, encoded, mandatory=message.mandatory)

    def route(self, message: Posted) -> Iterator[Queue]:
        """Find the queues that get a message; raise PublishRefused if its exchange does not exist."""
        key = _text(message.routing_key)
        if message.exchange == "":
            if key == self.direct.name:
                yield self.direct
            elif key in self.queues:
                yield self.queues[key]
            return
        kind = self.exchanges.get(message.exchange)
        if kind is None:
            raise PublishRefused(
                f"the broker refused it: 404 NOT_FOUND - no exchange {message.exchange!r}"
                f" (the harness knows those of its config; `declare_exchange` adds one)"
            )
        if kind not in MATCHES:
            raise HarnessError(f"the harness knows no exchanges of type {kind!r}, which {message.exchange!r} has")
        fitting = {
            binding.queue: None
            for binding in self._bindings
            if binding.exchange == message.exchange
            and MATCHES[kind](binding.routing_key, binding.arguments, key, message.headers)
        }
        yield from (self.queues[name] for name in fitting)

    def put(self, queue: Queue, message: Posted) -> None:
        """Put a message behind all others of a queue, and let it expire when it must."""
        if queue.is_full and not queue.refuses:  # what is dead is never refused
            queue.messages.popleft()
        queue.messages.append(message)
        seconds = _lifetime(queue, message)
        if seconds is not None:
            self._clock.later(seconds, lambda: self._expire(queue, message))

    def _expire(self, queue: Queue, message: Posted) -> None:
        if message in queue.messages:
            queue.messages.remove(message)
            self.dead_letter(queue, message, "expired")

    # What comes back ------------------------------------------------------------------------------

    def requeue(self, queue: Queue, message: Posted) -> None:
        """Put a message back to the head of its queue; a quorum queue gives it up if it has come back too often."""
        message.redelivered = True
        message.returns += 1
        limit = queue.arguments.get("x-delivery-limit")
        if isinstance(limit, int) and 0 <= limit < message.returns:
            self.dead_letter(queue, message, "delivery_limit")
        else:
            queue.messages.appendleft(message)

    def dead_letter(self, queue: Queue, message: Posted, reason: str) -> None:
        """Send a message where the queue's dead letters go; without such a rule it is gone."""
        exchange = queue.arguments.get("x-dead-letter-exchange")
        if exchange is None:
            return
        key = queue.arguments.get("x-dead-letter-routing-key", message.routing_key)
        properties = message.properties
        properties.headers = _with_death(message, queue.name, reason, self._clock())
        properties.expiration = None
        dead = Posted(exchange, key, message.payload, write_properties(properties))
        for each in self.route(dead):
            self.put(each, dead.of_queue(each.name))


def direct_reply_to() -> str:
    """Make the name that RabbitMQ puts in the place of direct reply-to: a process of Erlang's, and a key."""
    node = b"rabbit@harness"
    pid = b"\x83X" + b"w" + bytes((len(node),)) + node + bytes(12)
    return f"{DIRECT_REPLY_TO}.{base64.b64encode(pid).decode()}.key"


def _text(key: ShortString) -> str:
    return key if isinstance(key, str) else key.decode(errors="replace")


def _lifetime(queue: Queue, message: Posted) -> float | None:
    """Return after how many seconds a message expires in a queue: by the queue's time to live, or its own."""
    found = [queue.arguments.get("x-message-ttl"), _expiration(message.properties)]
    limits = [each for each in found if isinstance(each, int)]
    return min(limits) / 1000 if limits else None


def _expiration(properties: Properties) -> int | None:
    try:
        return int(properties.expiration)  # type: ignore[arg-type]  # None is a TypeError
    except (TypeError, ValueError):
        return None


def _with_death(message: Posted, queue: str, reason: str, now: float) -> Headers:
    """Return the headers of a message with the broker's note of its death: the newest first, one for queue and reason."""
    found = message.properties.headers
    came = found if isinstance(found, Headers) else Headers()
    notes = [note for note in came.get("x-death", []) if isinstance(note, Mapping)]
    same = next((note for note in notes if (note.get("queue"), note.get("reason")) == (queue, reason)), None)
    note = {
        "count": 1 + (same or {}).get("count", 0),
        "reason": reason,
        "queue": queue,
        "time": int(now),
        "exchange": message.exchange,
        "routing-keys": [_text(message.routing_key)],
    }
    said: dict[str, Any] = {"x-death": [note, *(each for each in notes if each is not same)]}
    said |= {f"x-last-death-{name}": note[name] for name in ("exchange", "queue", "reason")}
    if "x-first-death-queue" not in came:
        said |= {f"x-first-death-{name}": note[name] for name in ("exchange", "queue", "reason")}
    kept = [entry for name, entry in split_headers(came.raw) if name.decode(errors="replace") not in said]
    return Headers(join_headers([*kept, *(header(name, value) for name, value in said.items())]))
