"""Archives as the daemon would have filled them, quickly; and what `rpcd archive` is run with."""

import collections
import json
from typing import Any

import pika
from peer import Peer, Received

from rpcd.core.copies import Circumstances, archive_copy
from rpcd.core.message import Message
from rpcd.core.wire import Properties, read_properties

WHO = Circumstances("orders", "shop.orders:PlaceOrder", "host1")

NOW = 1_700_000_000.0


def archived(number: int, queue: str = "orders", error: str = "ValueError", **more: Any) -> tuple[Any, bytes]:
    """Return properties and body of what the daemon archives when a message has spent its attempts."""
    message: Message[Any] = Message(
        payload=json.dumps({"n": number}).encode(),
        properties=Properties(message_id=f"id{number}", content_type="application/json", correlation_id=f"c{number}"),
        headers={"tenant": "secret-tenant", **more.pop("headers", {})},
        exchange="shop",
        routing_key="order.placed",
        queue=queue,
        attempt=5,
    )
    vars(message.properties).update(more)
    reason = f"attempts are spent: {error}"
    copy = archive_copy(message, f"{queue}.archive", WHO, reason, error, NOW + number, f"copy{number}")
    found = read_properties(copy.properties)
    values = {name: value for name, value in vars(found).items() if name != "headers"}
    return pika.BasicProperties(**values, headers=dict(found.headers)), copy.body  # type: ignore[arg-type]


def declare(peer: Peer, *queues: str, kind: str = "quorum", **arguments: Any) -> None:
    for queue in queues:
        peer.channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind, **arguments})


def fill(peer: Peer, count: int, queue: str = "orders", errors: tuple[str, ...] = ("ValueError",), first: int = 0) -> None:
    """Put messages into an archive, as fast as one connection can."""
    archive = f"{queue}.archive"
    before = waiting(peer, archive)
    channel = peer.connection.channel()
    for number in range(first, first + count):
        properties, body = archived(number, queue, errors[number % len(errors)])
        channel.basic_publish("", archive, body, properties)
    channel.close()
    peer.until(lambda: waiting(peer, archive) == before + count, what=lambda: f"{waiting(peer, archive)} messages")


def waiting(peer: Peer, queue: str) -> int:
    return int(peer.channel.queue_declare(queue, passive=True).method.message_count)


def taken(peer: Peer, queue: str) -> list[Received]:
    """Take everything that is ready in a queue, in its order; quicker than one at a time."""
    count = waiting(peer, queue)
    channel = peer.connection.channel()
    channel.basic_qos(prefetch_count=1000)
    found: list[Received] = []
    for method, properties, body in channel.consume(queue, inactivity_timeout=20.0) if count else ():
        assert method is not None, f"{len(found)} of {count} messages came from {queue}"
        channel.basic_ack(method.delivery_tag)
        found.append(Received(method, properties, body))
        if len(found) == count:
            break
    channel.close()
    return found


def numbers(peer: Peer, queue: str) -> list[int]:
    """Take everything from a queue; return the messages' numbers in their order."""
    return [message.json["n"] for message in taken(peer, queue)]


def twice(found: list[int], count: int) -> int:
    """Insist that each of `count` messages is there; return how many came more than once."""
    times = collections.Counter(found)
    assert set(times) == set(range(count)), f"lost: {sorted(set(range(count)) - set(times))[:20]}"
    return len(found) - count
