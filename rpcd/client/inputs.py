"""Inputs for asyncio programs: `async for message in client.pull("cows")`.

A message is acked when the loop goes on to the next one. It goes back to its queue when the loop is left over it, by an
exception, by `break`, or because the task is cancelled: what nobody has finished is somebody else's. To leave the loop over
a message that is done, ack it first.
"""

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from twisted.internet.defer import Deferred, succeed

from rpcd.client.engine import Engine, Work
from rpcd.client.inbox import Delivery, Inbox, answer, settle
from rpcd.client.link import Link
from rpcd.core.codec import JSON, RAW, TEXT, Codec
from rpcd.core.errors import BadMessage, ReplyRefused
from rpcd.core.message import Message
from rpcd.core.outgoing import Outgoing
from rpcd.core.patterns import FANOUT, PUBLISH_SUBSCRIBE
from rpcd.core.reply import Replies
from rpcd.core.settings import Binding, Exchange, Name, Queue, Settings
from rpcd.core.topology import Declaration, plan_queue

if TYPE_CHECKING:
    from typing_extensions import Self  # a dependency of type checkers alone

BodyT = TypeVar("BodyT")

_ELSEWHERE = "this message came to an input: publish and call by the client, which confirms at once"

log = logging.getLogger("rpcd.client")


class Received(Message[BodyT]):
    """A message that came to an input; on the loop that iterates it."""

    __slots__ = ("_delivery", "_engine", "_replies", "answered", "settled")

    def __init__(self, body: BodyT, delivery: Delivery, engine: Engine, replies: Replies | None) -> None:
        """Take an opened message; `replies` says how it is answered, if it may be."""
        super().__init__(
            body,
            payload=delivery.body,
            properties=delivery.properties,
            exchange=delivery.exchange,
            routing_key=delivery.routing_key,
            queue=delivery.queue,
            redelivered=delivery.redelivered,
            received=time.time(),
        )
        self._delivery = delivery
        self._engine = engine
        self._replies = replies
        self.answered = False
        """Whether a reply was sent."""
        self.settled = False
        """Whether it was acked, or has gone back."""

    async def reply(self, value: Any = None) -> None:
        """Answer a request by success: an object is its `data`, anything else `{"result": value}`.

        Does nothing if no reply is wanted. Raises ReplyUnencodable for what can't be sent, RuntimeError for a second one.
        """
        await self._answer(lambda replies: replies.success(self, value))

    async def fail(self, text: str, data: Any = None) -> None:
        """Answer a request by failure: `success` is false, and these are its `message` and `data`; as `reply`."""
        await self._answer(lambda replies: replies.failure(self, text, data))

    async def _answer(self, encode: Callable[[Replies], Outgoing]) -> None:
        if self.answered or self.settled:
            raise RuntimeError("it was answered already" if self.answered else "it was settled already")
        if self._replies is not None and self._replies.wanted(self):
            reply = encode(self._replies)
            self.answered = True
            written = self._engine.run_if_open(_doing(lambda _link: answer(self._delivery, reply)))
            if written is not None:  # else it is in its queue again
                await asyncio.shield(asyncio.wrap_future(written))  # who waits no longer has answered all the same

    def ack(self) -> None:
        """Say that it is done, so that it does not come again."""
        self._settle(ack=True)

    def requeue(self) -> None:
        """Give it back to its queue, for somebody else, or for later."""
        self._settle(ack=False, requeue=True)

    def drop(self) -> None:
        """Give it up: the queue's dead-letter rule decides, which for queues of rpcd's own is their archive."""
        self._settle(ack=False)

    def _settle(self, *, ack: bool, requeue: bool = False) -> None:
        if not self.settled:
            self.settled = True
            self._engine.run_if_open(_doing(lambda _link: settle(self._delivery, ack=ack, requeue=requeue)))

    def publish(self, *_arguments: Any, **_options: Any) -> NoReturn:
        """Raise RuntimeError: nothing is held back here."""
        raise RuntimeError(_ELSEWHERE)

    publish_now = call = publish


class Arrivals:
    """The way from the engine's thread to the loop."""

    def __init__(self) -> None:
        """Nothing has come yet."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.waiting: asyncio.Queue[Delivery | Exception | None] = asyncio.Queue()

    def put(self, arrived: Delivery | Exception | None) -> None:
        """Hand on what has come; on the reactor. A loop that is closed needs nothing any more."""
        if self.loop is not None:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.waiting.put_nowait, arrived)


class Input(Generic[BodyT]):
    """Messages of one queue, one after the other; on one asyncio loop.

    It consumes from the first `async for` on, and until the loop is left, an `async with` block around it ends, or the
    client is closed. Its queue is consumed again after every lost connection.
    """

    def __init__(  # its client alone makes it
        self, client: object, engine: Engine, pattern: str, name: str, prefetch: int, body_type: Any, replies: Replies | None
    ) -> None:
        """Prepare; nothing is connected yet. A client that nobody has any more ends, but not while it has this."""
        self.name = name
        self._client = client
        self.closed = False
        self._engine = engine
        self._replies = replies
        self._codec = Codec([JSON, TEXT, RAW], body_type)
        self._arrivals = Arrivals()
        queue = "" if pattern == PUBLISH_SUBSCRIBE else name
        self._inbox = Inbox(queue, _plan(pattern, name), prefetch, self._arrivals.put)
        self._current: Received[BodyT] | None = None
        self._finalizer = weakref.finalize(self, _end, engine, self._inbox)
        self._finalizer.atexit = False

    def __aiter__(self) -> "Self":
        """Begin a loop; a message that another loop was left over goes back, and comes again."""
        message, self._current = self._current, None
        if message is not None:
            message.requeue()
        return self

    async def __anext__(self) -> Received[BodyT]:
        """Ack the message before, and wait for the next one; raise what a person has to mend (BrokerRefused)."""
        await self._done()
        if self.closed:
            raise StopAsyncIteration
        if self._arrivals.loop is None:
            await self._open()
        while True:
            arrived = await self._arrivals.waiting.get()
            if arrived is None:
                self.closed = True
                raise StopAsyncIteration
            if isinstance(arrived, Exception):
                self.close()
                raise arrived
            if arrived.is_alive and (message := await self._opened(arrived)) is not None:
                self._current = message
                return message

    async def _open(self) -> None:
        self._arrivals.loop, inbox = asyncio.get_running_loop(), self._inbox
        try:
            await asyncio.wrap_future(self._engine.run(_doing(inbox.open)))
        except BaseException:
            self.close()
            raise

    async def _done(self) -> None:
        """Finish the message before; a request without an answer is answered now, as by a handler without a result."""
        message = self._current
        if message is not None and not message.settled:
            if not message.answered:
                with contextlib.suppress(RuntimeError):  # the client was closed in this moment: it goes back
                    await message.reply()
            message.ack()
        self._current = None  # not before: a wait that is cancelled here may be begun again

    async def _opened(self, delivery: Delivery) -> Received[BodyT] | None:
        """Open a message; a bad one is answered, given up, and left out."""
        message: Received[Any] = Received(None, delivery, self._engine, self._replies)
        try:
            if self._replies is not None and self._replies.wanted(message):
                self._replies.check(message.reply_to or "")
            decode = self._codec.decoder(delivery.properties.content_type, delivery.properties.content_encoding)
            message.body = decode(delivery.body)
        except ReplyRefused as error:
            log.warning("%s: %s", self.name, error)
        except BadMessage as error:
            log.warning("%s: bad message: %s", self.name, error)
            try:
                await message.fail(f"Bad message: {error}", {"place": error.place, "reason": error.reason})
            finally:
                message.drop()  # although nobody may wait any longer
        else:
            return message
        message.drop()  # does nothing twice
        return None

    def close(self) -> None:
        """Consume no longer; a message that is in hand, and not settled, goes back to its queue. Does nothing twice."""
        self.closed = True
        self._finalizer()

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _end(engine: Engine, inbox: Inbox) -> None:
    engine.run_if_open(_doing(lambda _link: inbox.end()))


def _doing(step: Callable[[Link], object]) -> Work[None]:
    """Make a step on the reactor into work for an engine."""

    def work(link: Link) -> Deferred[None]:
        step(link)
        return succeed(None)

    return work


def _plan(pattern: str, name: str) -> list[Declaration]:
    if pattern == PUBLISH_SUBSCRIBE:
        exchange = Exchange(**FANOUT)
        queue = Queue(name="", bindings=[Binding(exchange=Name(name), routing_keys=[""])])
        return plan_queue(Settings(exchanges={name: exchange}, queues={name: queue}), name)
    return plan_queue(Settings(queues={name: Queue()}), name)
