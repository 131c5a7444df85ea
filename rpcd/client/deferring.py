"""The face of a client for Twisted programs."""

import concurrent.futures
from typing import Any, TypeVar, overload

from twisted.internet.defer import Deferred

from rpcd.client.face import Face
from rpcd.core.question import question

ResultT = TypeVar("ResultT")


class TwistedClient(Face):
    """Asks services and publishes; on the reactor's thread.

    As `rpcd.Client`, but every method returns a Deferred, which fires on the reactor's thread. Cancelling it ends the wait.
    """

    reactor: Any = None
    """The reactor that Deferreds fire on; the global one if it is None."""

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
    ) -> Deferred[ResultT]: ...

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
    ) -> Deferred[Any]: ...

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
    ) -> Deferred[Any]:
        """Ask a service and return the `data` of its reply; takes and fails with what `rpcd.Client.call` does."""
        asked = question(exchange, routing_key, body, timeout=timeout, reply_type=reply_type, plain=plain, **options)
        answered = self._deferred(self._ask(asked))
        return answered.addCallback(lambda answer: asked.read(answer.body, answer.properties))

    def publish(
        self, exchange: str, routing_key: str, body: Any = None, *, timeout: float | None = None, **options: Any
    ) -> Deferred[None]:
        """Publish a message; fires when the broker has confirmed it. As `rpcd.Client.publish`."""
        return self._deferred(self._publish(exchange, routing_key, body, timeout, options))

    def close(self) -> Deferred[None]:
        """Close the connection; calls that are outstanding fail. Fires when it is closed."""
        return self._deferred(self._engine.close(), cancels=False)

    def _deferred(self, future: "concurrent.futures.Future[ResultT]", *, cancels: bool = True) -> Deferred[ResultT]:
        """Return a Deferred that fires as a future ends, on the reactor."""
        reactor = self.reactor if self.reactor is not None else _global_reactor()

        def cancel(_deferred: object) -> None:
            if cancels:
                future.cancel()

        deferred: Deferred[ResultT] = Deferred(cancel)
        future.add_done_callback(lambda _future: reactor.callFromThread(_fire, deferred, future))
        return deferred


def _fire(deferred: Deferred[ResultT], future: "concurrent.futures.Future[ResultT]") -> None:
    if deferred.called:  # cancelled
        return
    error = future.exception()
    if error is None:
        deferred.callback(future.result())
    else:
        deferred.errback(error)


def _global_reactor() -> Any:
    from twisted.internet import reactor  # noqa: PLC0415  # the program installs it, and may do so after it imported us

    return reactor
