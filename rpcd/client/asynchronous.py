"""The face of a client for asyncio."""

import asyncio
from types import TracebackType
from typing import Any, TypeVar

from typing_extensions import Self

from rpcd.client.face import Face
from rpcd.core.question import question

SelfT = TypeVar("SelfT", bound="AsyncClient")


class AsyncClient(Face):
    """Asks services and publishes; any loop and any task, also many at a time.

    As `rpcd.Client`, but every method is awaited and blocks nothing. Cancelling the task ends the wait.
    """

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

    async def close(self) -> None:
        """Close the connection; calls that are outstanding fail. Does nothing the second time."""
        await asyncio.shield(asyncio.wrap_future(self._engine.close()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
