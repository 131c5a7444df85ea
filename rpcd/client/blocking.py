"""The face of a client that blocks, or returns futures."""

import concurrent.futures
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from rpcd.amqp.caller import Answer
from rpcd.client.engine import CLOSE_SECONDS
from rpcd.client.face import Face
from rpcd.core.errors import CallTimeout
from rpcd.core.question import DEFAULT_TIMEOUT, question

if TYPE_CHECKING:
    from typing_extensions import Self  # a dependency of type checkers alone

MARGIN = 5.0
"""Seconds that a call waits beyond its own time, which the engine keeps and which should always end first."""

ResultT = TypeVar("ResultT")


class Client(Face):
    """Asks services and publishes; any thread, also many at a time.

    One connection serves all of them. It is made by the first call, made again whenever it is lost, and closed by `close`,
    the end of a `with` block, or the end of the program. A forked child gets one of its own.
    """

    @overload
    def call(
        self,
        exchange: str,
        routing_key: str,
        body: Any = None,
        *,
        timeout: float | None = None,
        reply_type: type[ResultT],
        plain: bool = False,
        **options: Any,
    ) -> ResultT: ...

    @overload
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
    ) -> Any: ...

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
        """Ask a service and return the `data` of its reply; blocks for `timeout` seconds at most, 30 by default.

        `reply_type` is what `data` is to be: any type that the body of a message may have; without one, what the JSON says.
        `plain=True` takes replies without an envelope. Options are those of `Message.publish` without `correlation_id`,
        `reply_to`, `expiration` and `mandatory`; the request expires when nobody waits for its reply any more.

        Raises CallFailed (the service says so; it has its message and data), Unroutable and PublishRefused (at once),
        CallTimeout, BadReply, CallInterrupted (the connection ended before the reply came, or the client was closed), and
        another RpcdError if the broker refuses the login. Nothing is asked twice by itself.
        """
        asked = question(exchange, routing_key, body, timeout=timeout, reply_type=reply_type, plain=plain, **options)
        answer: Answer = self._wait(self._ask(asked), asked.timeout)
        return asked.read(answer.body, answer.properties)

    @overload
    def submit(
        self,
        exchange: str,
        routing_key: str,
        body: Any = None,
        *,
        timeout: float | None = None,
        reply_type: type[ResultT],
        plain: bool = False,
        **options: Any,
    ) -> "concurrent.futures.Future[ResultT]": ...

    @overload
    def submit(
        self,
        exchange: str,
        routing_key: str,
        body: Any = None,
        *,
        timeout: float | None = None,
        reply_type: Any = Any,
        plain: bool = False,
        **options: Any,
    ) -> "concurrent.futures.Future[Any]": ...

    def submit(
        self,
        exchange: str,
        routing_key: str,
        body: Any = None,
        *,
        timeout: float | None = None,
        reply_type: Any = Any,
        plain: bool = False,
        **options: Any,
    ) -> "concurrent.futures.Future[Any]":
        """Ask as `call` does, but return a future at once; cancel it to wait no longer.

        The reply is read, and callbacks of the future are called, on the client's own thread, which serves all others: what
        takes long belongs elsewhere.
        """
        asked = question(exchange, routing_key, body, timeout=timeout, reply_type=reply_type, plain=plain, **options)
        return self._ask(asked, lambda answer: asked.read(answer.body, answer.properties))

    def publish(
        self, exchange: str, routing_key: str, body: Any = None, *, timeout: float | None = None, **options: Any
    ) -> None:
        """Publish a message and return when the broker has confirmed it; blocks for `timeout` seconds at most, or 30.

        Takes the options of `Message.publish`. Raises PublishRefused, Unroutable (only if `mandatory`), PublishTimeout, and
        another RpcdError if the broker refuses the login.
        """
        self._wait(
            self._publish(exchange, routing_key, body, timeout, options), DEFAULT_TIMEOUT if timeout is None else timeout
        )

    def submit_publish(
        self, exchange: str, routing_key: str, body: Any = None, *, timeout: float | None = None, **options: Any
    ) -> "concurrent.futures.Future[None]":
        """Publish as `publish` does, but return a future of the confirm at once."""
        return self._publish(exchange, routing_key, body, timeout, options)

    def _wait(self, future: "concurrent.futures.Future[ResultT]", seconds: float) -> ResultT:
        if self._engine.is_current:
            future.cancel()
            raise RuntimeError("this blocks, so it can't be called on the client's own thread, as callbacks of futures are")
        try:
            return future.result(seconds + MARGIN)
        except concurrent.futures.TimeoutError:
            if not future.done():  # else it is the call's own
                future.cancel()
                raise CallTimeout("no answer of any kind: something holds up the client's own thread") from None
            raise
        except BaseException:
            future.cancel()  # Ctrl-C ended the wait
            raise

    def close(self) -> None:
        """Close the connection; calls that are outstanding fail. Any thread; does nothing the second time."""
        ended = self._engine.close()
        if not self._engine.is_current:
            concurrent.futures.wait([ended], CLOSE_SECONDS)

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
