"""The independent client: plain pika, straight to the broker, with a ledger of its own that trusts nobody."""

import collections
import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import attrs
import pika
from peer import Peer
from stage import QUEUES

ARCHIVES = tuple(queue for queue in QUEUES if queue.endswith(".archive"))
REPLIES, NEWS = "soak.replies", "soak.news"

LOST = (pika.exceptions.AMQPError, OSError)
"""What a client meets while a broker goes away, or has no such queue."""


@attrs.define
class Books:
    """What the client knows; one writer for each field."""

    confirmed: list[tuple[str, str]] = attrs.field(factory=list)
    """Each id that the broker took over, and where it must end: done, archive or failed."""
    again: collections.Counter[str] = attrs.field(factory=collections.Counter)
    """How often an id was published again, because nobody knows what became of it."""
    replies: collections.Counter[str] = attrs.field(factory=collections.Counter)
    news: collections.Counter[str] = attrs.field(factory=collections.Counter)
    newsworthy: set[str] = attrs.field(factory=set)
    """Confirmed ids whose handlers publish."""
    archived: dict[str, set[str]] = attrs.field(factory=dict)
    """Each archived id with the copies of it, by their own ids."""


class Publisher(threading.Thread):
    """Publishes orders to one queue, each until it is confirmed and routed; when it lags behind its rate it catches up."""

    def __init__(self, url: str, queue: str, seed: str, rate: float, books: Books) -> None:
        """Publish nothing yet; `rate` is messages a second."""
        super().__init__(name=f"to {queue}")
        self.queue, self.rate, self.count = queue, rate, 0
        self.may = threading.Event()
        self.may.set()
        self.idle = threading.Event()
        """Set while it waits to be allowed again."""
        self._url, self._books, self._random = url, books, random.Random(seed)
        self._ended = threading.Event()
        self._orders = self._endless()
        self._order = next(self._orders)
        self._tries = 0
        self._began = time.monotonic()

    def stop(self) -> None:
        """Publish what is under way to its end, and nothing more."""
        self._ended.set()
        self.may.set()

    def run(self) -> None:
        """Go on until told to stop, over any number of connections."""
        self._began = time.monotonic()
        while not (self._ended.is_set() and not self._tries):
            with contextlib.suppress(*LOST):
                peer = Peer(self._url)
                try:
                    self._publish(peer)
                finally:
                    peer.close()
            time.sleep(0.1)

    def _publish(self, peer: Peer) -> None:
        while self._tries or not self._ended.is_set():
            if not self.may.is_set() and not self._tries:
                self.idle.set()
                while not self.may.wait(0.05):
                    peer.connection.process_data_events(0)
                self.idle.clear()
                continue
            name, place, body, properties = self._order
            self._tries += 1
            peer.publish(self.queue, body, message_id=name, correlation_id=name, **properties)
            if self._tries > 1:
                self._books.again[name] += self._tries - 1
            if b'"publish"' in body and place == "done":
                self._books.newsworthy.add(name)
            self._books.confirmed.append((name, place))
            self.count, self._tries, self._order = self.count + 1, 0, next(self._orders)
            ahead = self.count / self.rate - (time.monotonic() - self._began)
            if ahead > 0:
                time.sleep(ahead)

    def _endless(self) -> Iterator[tuple[str, str, bytes, dict[str, Any]]]:
        number = 0
        while True:
            number += 1
            yield (f"{self.queue}{number}", *self._one())

    def _one(self) -> tuple[str, bytes, dict[str, Any]]:
        request = {"reply_to": REPLIES} if self.queue == "ask" else {}
        failed = "failed" if request else "done"  # a request is answered, anything else is tried again
        given_up = "failed" if request else "archive"
        order: dict[str, object] = {}
        place = "done"
        match self._random.random():
            case chance if chance < 0.06:
                order, place = {"fail": 1}, failed
            case chance if chance < 0.08:
                order, place = {"fail": 2}, failed
            case chance if chance < 0.09:
                order, place = {"fail": 9}, given_up
            case chance if chance < 0.10:
                order, place = {"hopeless": True}, "archive"
            case chance if chance < 0.105:
                return "archive", b"{poison", request
            case chance if chance < 0.11:
                return "archive", b"{}", request | {"content_encoding": "x-poison"}
            case chance if chance < 0.14:
                order = {"seconds": self._random.uniform(0.05, 1.0)}
            case chance if chance < 0.17:
                order = {"publish": True}
        return place, json.dumps(order).encode(), request


class Reader(threading.Thread):
    """Takes replies, handlers' own publications and archived messages, and writes them down before it acks them."""

    def __init__(self, url: str, books: Books) -> None:
        """Make the queues that are the client's own."""
        super().__init__(name="reader")
        self._url, self._books = url, books
        self._ended = threading.Event()
        peer = Peer(url)
        for queue in (REPLIES, NEWS):
            peer.channel.queue_declare(queue, durable=True)
        peer.close()

    def stop(self) -> None:
        """End soon."""
        self._ended.set()

    def run(self) -> None:
        """Go on until told to stop, over any number of connections."""
        while not self._ended.is_set():
            with contextlib.suppress(*LOST):
                peer = Peer(self._url)
                try:
                    self._read(peer)
                finally:
                    peer.close()
            time.sleep(0.1)

    def _read(self, peer: Peer) -> None:
        cancelled = threading.Event()
        peer.channel.add_on_cancel_callback(lambda _frame: cancelled.set())
        peer.channel.basic_qos(prefetch_count=200)
        for queue in (REPLIES, NEWS, *ARCHIVES):
            peer.channel.basic_consume(queue, lambda *got, queue=queue: self._take(queue, *got))
        while not (self._ended.is_set() or cancelled.is_set()):
            peer.connection.process_data_events(0.1)

    def _take(self, queue: str, channel: Any, method: Any, properties: pika.BasicProperties, _body: bytes) -> None:
        if queue == REPLIES:
            self._books.replies[properties.correlation_id] += 1
        elif queue == NEWS:
            self._books.news[properties.message_id] += 1
        else:
            copy = (properties.headers or {}).get("x-rpcd-copy", "dead-lettered by the broker")
            self._books.archived.setdefault(properties.message_id, set()).add(copy)
        channel.basic_ack(method.delivery_tag)


def leftovers(url: str) -> collections.Counter[str]:
    """Empty all queues of the daemons and count the ids that were in them; to be called when the daemons have ended."""
    found: collections.Counter[str] = collections.Counter()
    peer = Peer(url)
    for queue in QUEUES:
        if peer.exists(queue):
            found.update(message.properties.message_id for message in peer.left(queue))
    peer.close()
    return found
