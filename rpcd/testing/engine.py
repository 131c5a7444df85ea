"""What a harness does, as steps that a plain test and an async one carry out each in its own way."""

import difflib
import itertools
from collections.abc import Mapping
from typing import Any

import attrs

from rpcd.core.errors import PASSED, CallTimeout, DeadlinePassed, PublishTimeout, Unroutable
from rpcd.core.outgoing import Outgoing
from rpcd.core.question import Question
from rpcd.core.settings import Settings
from rpcd.core.topology import DeclareQueue, plan_rest
from rpcd.testing.broker import Broker, Queue
from rpcd.testing.clock import Clock
from rpcd.testing.consumer import Consumer
from rpcd.testing.delivery import Delivery, Reply
from rpcd.testing.errors import HarnessError, NoReply
from rpcd.testing.loop import Loop, Steps, carry_out_here
from rpcd.testing.posted import Posted
from rpcd.testing.reading import Sources
from rpcd.testing.record import Record
from rpcd.testing.request import request

MOST = 10_000
"""How many deliveries may follow one another while no time passes."""


@attrs.frozen
class Sending:
    """A message that a test sends, before it is encoded."""

    routing_key: str
    body: Any
    exchange: str
    headers: Mapping[str, Any] | None
    properties: Mapping[str, Any]

    def encoded(self, **more: Any) -> Outgoing:
        """Encode it, with properties that the test does not say itself."""
        return request(self.exchange, self.routing_key, self.body, self.headers, {**more, **self.properties})


class Engine:
    """The consumers of a harness, its broker and its clock."""

    def __init__(self, sources: Sources, now: float) -> None:
        """Build what there is by now."""
        self.sources = sources
        self.clock = Clock(now)
        self.broker = Broker(self.clock)
        self.record = Record(self.broker)
        self.loop = Loop()
        self.consumers: dict[str, Consumer] = {}
        self._replies = self.queue(self.broker.carry_out([DeclareQueue("", "", False, True, True, False, {})]))
        self._numbers = itertools.count(1)
        self.settings = Settings()
        self.build()

    def build(self) -> None:
        """Read the settings, and build the consumers that are not built yet; raise SettingsError for what is wrong."""
        found = self.sources.read()
        self.settings = found.settings
        for name in found.settings.consumers:
            if name not in self.consumers:
                self.consumers[name] = Consumer(
                    found.settings, name, found.handlers[name], self.broker, self.clock, self.record, self._ask
                )
        self.broker.carry_out(plan_rest(found.settings))

    # Sending --------------------------------------------------------------------------------------

    def send(self, outgoing: Outgoing) -> Posted:
        """Put a message where it belongs; raise HarnessError if no queue takes it."""
        try:
            return self.broker.publish(outgoing)
        except Unroutable:
            key = str(outgoing.routing_key)
            named = [each for each in self.consumers.values() if each.name == key]
            if named:
                hint = f"; the queue of the consumer {key!r} is {named[0].queue.name!r}"
            else:
                close = difflib.get_close_matches(key, self.broker.names, 1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; queues: {', '.join(self.broker.names)}"
            raise HarnessError(f"no queue takes exchange {outgoing.exchange!r}, key {key!r}{hint}") from None
        except PublishTimeout as error:
            raise HarnessError(str(error)) from None

    # Steps ----------------------------------------------------------------------------------------

    def pumping(self) -> Steps[None]:
        """Have every consumer take what waits for it until nothing does."""
        for _ in range(MOST):
            consumer = next((each for each in self.consumers.values() if each.can_take), None)
            if consumer is None:
                return
            yield from consumer.take()
        raise HarnessError(
            f"{MOST} deliveries, and messages still wait: one comes back again and again,"
            " by `Nack(delay=0)` say, or handlers publish for one another without an end"
        )

    def advancing(self, seconds: float) -> Steps[None]:
        """Let time pass, and everything happen that is due meanwhile, each at its time."""
        until = self.clock.now + seconds
        yield from self.pumping()
        while self.clock.step(until):
            yield from self.pumping()

    def delivering(self, sending: Sending) -> Steps[Delivery]:
        """Send a message and have everything happen that follows; return its first delivery."""
        before = len(self.record.deliveries)
        sent = self.send(sending.encoded())
        yield from self.pumping()
        found = [each for each in self.record.deliveries[before:] if each.posted.first is sent]
        if not found:
            raise HarnessError(f"nobody has taken it: {self._idle(sent)}")
        return found[0]

    def calling(self, sending: Sending, timeout: float) -> Steps[Reply]:
        """Send a request and return its reply; raise NoReply if none comes in so many seconds."""
        before, until = len(self.record.deliveries), self.clock.now + timeout
        correlation_id = sending.properties.get("correlation_id", f"call-{next(self._numbers)}")
        if self.broker.exchanges.get(sending.exchange) in ("direct", "topic"):  # for reply_via = "request-exchange"
            self.broker.bind(self._replies.name, sending.exchange, self._replies.name, {})
        sent = self.send(sending.encoded(correlation_id=correlation_id, reply_to=self._replies.name))
        reply = yield from self._waiting(self._replies, correlation_id, until)
        if reply is not None:
            return Reply(reply)
        told = "; ".join(each.tell() for each in self.record.deliveries[before:]) or self._idle(sent)
        due = self.clock.next
        hint = "" if due is None else f" (something happens in {due - self.clock.now:g} s: pass timeout=, or `advance`)"
        raise NoReply(f"there is no reply; {told}{hint}")

    def _waiting(self, queue: Queue, correlation_id: Any, until: float) -> Steps[Posted | None]:
        """Have everything happen until a reply is in a queue, or a time has come; return the reply."""
        while True:
            yield from self.pumping()
            found = next((each for each in queue.messages if each.properties.correlation_id == correlation_id), None)
            if found is not None:
                queue.messages.remove(found)
                return found
            if not self.clock.step(until):
                return None

    def _ask(self, question: Question, left: float | None, is_async: bool) -> Any:
        steps = self.asking(question, left)
        return carry_out_here(steps) if is_async else self.loop.carry_out(steps)

    def asking(self, question: Question, left: float | None) -> Steps[Any]:
        """Ask another consumer for a handler, and return what the reply says; time passes if none comes."""
        seconds, late = question.timeout, None
        if left is not None and left < seconds:
            seconds, late = left, DeadlinePassed(PASSED)
        correlation_id = f"question-{next(self._numbers)}"
        until = self.clock.now + seconds
        try:
            self.broker.publish(question.outgoing(correlation_id, seconds, self.clock.now))
        except Unroutable as error:
            raise Unroutable(f"{error}; `answer` stands in for another service") from None
        except PublishTimeout as error:
            raise CallTimeout(str(error)) from None
        reply = yield from self._waiting(self.broker.direct, correlation_id, until)
        if reply is None:
            raise late or CallTimeout(f"no reply within {seconds:g} s")
        return question.read(reply.payload, reply.properties)

    def _idle(self, sent: Posted) -> str:
        """Say why nobody has taken a message."""
        waits = next(
            (queue for queue in self.broker.queues.values() if any(each.first is sent for each in queue.messages)), None
        )
        if waits is None:
            return "it has expired"
        halted = [each.name for each in self.consumers.values() if each.queue is waits and each.halted]
        return f"it waits in {waits.name}, " + (
            f"whose consumer {halted[0]} is halted" if halted else "which has no consumer"
        )

    def redelivering(self, delivery: Delivery, *, crashed: bool) -> Steps[Delivery]:
        """Deliver a message again, as the broker does when its ack was lost; return the new delivery."""
        consumer, before = self.consumers[delivery.consumer], len(self.record.deliveries)
        consumer.lose_connection(crashed=crashed)
        again = delivery.posted.of_queue(consumer.queue.name)
        again.returns = delivery.posted.returns
        self.broker.requeue(consumer.queue, again)
        yield from self.pumping()
        return next(each for each in self.record.deliveries[before:] if each.posted is again)

    def closing(self) -> Steps[None]:
        """Shut every handler down."""
        for consumer in self.consumers.values():
            yield from consumer.close()

    # Looking --------------------------------------------------------------------------------------

    def queue(self, name: str) -> Queue:
        """Return a queue; raise HarnessError naming those that there are."""
        found = self.broker.queues.get(name)
        if found is None:
            close = difflib.get_close_matches(name, self.broker.names, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(self.broker.names)}"
            raise HarnessError(f"there is no queue {name!r}; {hint}")
        return found
