"""Real publishers, consumers and workers over the fake wire, with handlers that a test steers."""

import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from amqp_wire import LONGEST, Broker, Link, Reactor, Waited
from twisted.internet.defer import Deferred

from rpcd.amqp import consumer, full, outbox, outcomes, settlement, tasks, workers
from rpcd.amqp.consumer import Consumer
from rpcd.amqp.dial import Broker as Dialled
from rpcd.amqp.plan import Overseer, Plan
from rpcd.amqp.port import AmqpProtocol, make_protocol
from rpcd.amqp.publisher import Publisher
from rpcd.amqp.worker import DaemonPool
from rpcd.config import plan
from rpcd.core import settings
from rpcd.core.address import Address
from rpcd.core.handler import target
from rpcd.core.verdict import Halt

ADDRESS = Address((("broker.test", 5672),), "shop", "secret", "/shop", 0, 10.0, None)


def connected(broker: Broker, address: Address = ADDRESS) -> AmqpProtocol:
    """Make a protocol and carry it through the handshake."""
    protocol = make_protocol(address, "rpcd test", "0.1", broker.reactor)
    broker.accept(protocol)
    broker.reactor.run()
    assert protocol.ready is None
    return protocol


def spread_time(reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every module of rpcd read the time from the reactor's clock."""
    stand_in = types.SimpleNamespace(monotonic=reactor.seconds, time=time.time)
    for module in (full, outbox, outcomes, settlement, workers, tasks, consumer):
        monkeypatch.setattr(module, "time", stand_in)


class Gate:
    """A handler that stops in the middle until the test lets it go on; what it does then is the test's word.

    A message's body names it: `{"name": "a"}`. Without a word a handler returns None as soon as it is let go.
    """

    def __init__(self, *, shut: bool = True) -> None:
        self.order: list[Any] = []
        """Names in the order in which their handlers began."""
        self.done: list[Any] = []
        self.at_once: list[int] = []
        """How many ran at the same time, noted at each beginning."""
        self._shut = shut
        self._words: dict[Any, Any] = {}
        self._open: set[Any] = set()
        self._running: dict[Any, int] = {}
        self._changed = threading.Condition()

    def __call__(self, message: Any) -> Any:
        name = message.body["name"]
        with self._changed:
            self.order.append(name)
            self._running[name] = self._running.get(name, 0) + 1
            self.at_once.append(sum(self._running.values()))
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._shut or name in self._open, LONGEST):
                raise Waited(f"{name} was never let go")
            self._open.discard(name)
            self._running[name] -= 1
            self.done.append(name)
            word = self._words.get(name)
        if isinstance(word, BaseException):
            raise word
        return word(message) if callable(word) else word

    def says(self, name: Any, word: Any) -> None:
        """Give the word for a message: a value to return, an exception to raise, or a function of the message."""
        self._words[name] = word

    def entered(self, *names: Any) -> None:
        """Wait until the handlers of these messages have begun."""
        with self._changed:
            if not self._changed.wait_for(lambda: all(name in self.order for name in names), LONGEST):
                raise Waited(f"of {names} only {self.order} have begun")

    def has_entered(self, name: Any, seconds: float) -> bool:
        """Wait for a short time only; return whether the handler of this message has begun."""
        with self._changed:
            return self._changed.wait_for(lambda: name in self.order, seconds)

    def let(self, *names: Any) -> None:
        """Let the handlers of these messages go on."""
        with self._changed:
            self._open.update(names)
            self._changed.notify_all()

    def let_all(self) -> None:
        with self._changed:
            self._shut = False
            self._changed.notify_all()


class Rig:
    """One consumer and its publisher, over one fake broker."""

    def __init__(
        self,
        broker: Broker,
        reactor: Reactor,
        pool: DaemonPool,
        handler: Any,
        *,
        queue: dict[str, Any] | None = None,
        confirm_timeout: float = 30.0,
        publish_timeout: float = 60.0,
        **section: Any,
    ) -> None:
        self.broker = broker
        self.reactor = reactor
        self.handler = handler
        self.refused: list[Any] = []
        self.halts: list[Halt] = []
        self.exhausted = 0
        self.drain_on_halt = True
        self.drains: list[Deferred[None]] = []
        dialled = Dialled(ADDRESS, reactor, "0.1")
        self.publisher = Publisher(dialled, [], confirm_timeout, publish_timeout, self.refused.append, "publisher")
        overseer = Overseer(self.refused.append, lambda _consumer: None, self._halted, self._exhausted)
        self.plan = make_plan(handler, queue or {}, section, publish_timeout)
        self.consumer = Consumer(self.plan, dialled, self.publisher, pool, overseer)
        self.queue = broker.queue(self.plan.queue) if self.plan.queue else None

    def _halted(self, _consumer: Consumer, halt: Halt) -> None:
        self.halts.append(halt)
        if self.drain_on_halt:
            self.drain()

    def _exhausted(self, _consumer: Consumer) -> None:
        self.exhausted += 1

    def start(self) -> "Rig":
        self.publisher.start()
        self.consumer.start()
        self.reactor.until(lambda: self.consumer.consuming, "the consumer does not consume")
        return self

    def put(self, *names: Any, **properties: Any) -> None:
        """Put messages into the queue, known by their names."""
        source = self.source
        for name in names:
            source.put(f'{{"name": "{name}"}}'.encode(), name=name, **properties)
        self.reactor.run()

    @property
    def source(self) -> Any:
        """The queue that is consumed, whoever named it."""
        return self.queue if self.queue is not None else self.link.consuming.consumers[self.link.consuming.tag]

    @property
    def link(self) -> Link:
        """The live connection that consumes."""
        (found,) = [link for link in self.broker.live if any(chan.consumers for chan in link.chans.values())]
        return found

    def again(self) -> None:
        """Let time pass until the consumer consumes again; threads do their part meanwhile."""
        for _ in range(200):
            if self.consumer.consuming:
                return
            self.reactor.pass_time(0.5)
        raise Waited("the consumer does not come back")

    def drain(self) -> None:
        self.drains.append(Deferred.fromCoroutine(self.consumer.drain()))

    def drained(self) -> None:
        """Wait until the consumer has drained."""
        self.reactor.until(lambda: self.consumer.drained.happened, "the consumer does not drain")

    def until(self, condition: Callable[[], object], what: str = "", seconds: float = LONGEST) -> None:
        self.reactor.until(condition, what, seconds)

    def end(self) -> None:
        """End whatever still runs, whatever state a failed test has left it in."""
        if isinstance(self.handler, Gate):
            self.handler.let_all()
        if not self.consumer.drained.happened:
            self.consumer.abandon()
            self.consumer.workers.stop()
            self.reactor.until(lambda: self.consumer.workers.ended.happened, "workers do not end")
        if self.consumer._watch.running:
            self.consumer._watch.stop()
        self.publisher.stop()
        self.reactor.pass_time(5.0)


def make_plan(handler: Any, queue: dict[str, Any], section: dict[str, Any], publish_timeout: float) -> Plan:
    tree = settings.Settings(
        service=settings.Service(publish_timeout=publish_timeout),
        queues={"orders": settings.Queue(**queue)},
        consumers={"orders": settings.Consumer(queue="orders", handler="test:handler", **section)},
    )
    if isinstance(handler, dict):  # of a namespace: each is for one exchange
        return plan(tree, "orders", {name: target(f"test.{name}:handle", each) for name, each in handler.items()})
    return plan(tree, "orders", target("test:handler", handler))


def events(story: list[str], *kinds: str) -> Iterator[str]:
    """Pick lines of a broker's story by their first words."""
    return (line for line in story if line.split(" ")[0] in kinds)
