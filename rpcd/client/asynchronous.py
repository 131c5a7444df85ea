"""The face of a client for asyncio."""

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from rpcd.client.face import Face
from rpcd.client.inputs import Input
from rpcd.core.patterns import PUBLISH_SUBSCRIBE, PUSH_PULL, REQUEST_RESPONSE, full_name
from rpcd.core.question import question
from rpcd.core.reply import Replies

if TYPE_CHECKING:
    from typing_extensions import Self  # a dependency of type checkers alone

BodyT = TypeVar("BodyT")

ResultT = TypeVar("ResultT")


class AsyncClient(Face):
    """Asks services and publishes; any loop and any task, also many at a time.

    As `rpcd.Client`, but every method is awaited and blocks nothing. Cancelling the task ends the wait.
    """

    @overload
    async def call(
        self,
        exchange: str,
        routing_key: str,
        body: Any = None,
        *,
        timeout: float | None = None,  # it travels with the request
        reply_type: type[ResultT],
        plain: bool = False,
        **options: Any,
    ) -> ResultT: ...

    @overload
    async def call(
        self,
        exchange: str,
        routing_key: str,
        body: Any = None,
        *,
        timeout: float | None = None,  # it travels with the request
        reply_type: Any = Any,
        plain: bool = False,
        **options: Any,
    ) -> Any: ...

    async def call(
        self,
        exchange: str,
        routing_key: str,
        body: Any = None,
        *,
        timeout: float | None = None,  # it travels with the request
        reply_type: Any = Any,
        plain: bool = False,
        **options: Any,
    ) -> Any:
        """Ask a service and return the `data` of its reply; takes and raises what `rpcd.Client.call` does."""
        asked = question(exchange, routing_key, body, timeout=timeout, reply_type=reply_type, plain=plain, **options)
        answer = await asyncio.wrap_future(self._ask(asked))
        return asked.read(answer.body, answer.properties)

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        body: Any = None,
        *,
        timeout: float | None = None,  # the engine keeps it
        **options: Any,
    ) -> None:
        """Publish a message and return when the broker has confirmed it; as `rpcd.Client.publish`."""
        await asyncio.wrap_future(self._publish(exchange, routing_key, body, timeout, options))

    def subscribe(
        self, name: str, *, prefix: str = "", body_type: type[BodyT] | Any = Any, prefetch: int = 100
    ) -> Input[BodyT]:
        """Return what yields every message that is published by a name, as `@rpcd.subscribe` hands them to a handler.

        `async for message in client.subscribe("cows")` acks each when it goes on to the next one; one that the loop is left
        over goes back. `body_type` is what `message.body` is to be; a message that is not goes to the archive, and is not
        seen here. `prefetch` is how many the broker sends ahead. Raises ValueError if the client has such an input already.
        """
        return self._input(full_name(PUBLISH_SUBSCRIBE, name, prefix), PUBLISH_SUBSCRIBE, prefetch, body_type)

    def pull(self, name: str, *, prefix: str = "", body_type: type[BodyT] | Any = Any, prefetch: int = 2) -> Input[BodyT]:
        """Return what yields messages that are pushed by a name, each to one of all who pull; as `subscribe`."""
        return self._input(full_name(PUSH_PULL, name, prefix), PUSH_PULL, prefetch, body_type)

    def respond(self, name: str, *, prefix: str = "", body_type: type[BodyT] | Any = Any, prefetch: int = 1) -> Input[BodyT]:
        """Return what yields requests by a name, each to one of all who respond: `await message.reply(...)`; as `subscribe`.

        Replies go to direct reply-to and to queues that the broker has named. A request that is not answered when the loop
        goes on is answered by an empty success.
        """
        return self._input(full_name(REQUEST_RESPONSE, name, prefix), REQUEST_RESPONSE, prefetch, body_type)

    def _input(self, name: str, pattern: str, prefetch: int, body_type: Any) -> Input[Any]:
        before = self._inputs.get(name)
        if before is not None and not before.closed:
            raise ValueError(f"this client has an input {name!r} already")
        replies = Replies(own_queues={name}) if pattern == REQUEST_RESPONSE else None
        made: Input[Any] = Input(self, self._engine, pattern, name, prefetch, body_type, replies)
        self._inputs[name] = made
        return made

    async def close(self) -> None:
        """Close the connection; calls that are outstanding fail. Does nothing the second time."""
        await asyncio.shield(asyncio.wrap_future(self._engine.close()))

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
