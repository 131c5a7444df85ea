"""How a handler's thread reaches the publisher and waits for the confirm."""

import concurrent.futures
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.python.threadable import isInIOThread

from rpcd.amqp.publisher import Publisher
from rpcd.amqp.workers import Workers
from rpcd.core.errors import PublishTimeout, TimeLimitPassed
from rpcd.core.message import Outgoing

MARGIN = 5.0
"""Seconds that a thread waits beyond the publisher's own limit, which should always come first."""


class ThreadOutlet:
    """Publishes for the handlers of one consumer; called in worker threads."""

    def __init__(self, reactor: Any, publisher: Publisher, workers: Workers, seconds: float) -> None:
        """Take the publisher and its time limit."""
        self._reactor = reactor
        self._publisher = publisher
        self._workers = workers
        self._seconds = seconds

    def publish_now(self, outgoing: Outgoing) -> None:
        """Publish and return when confirmed; raise PublishRefused, Unroutable, PublishTimeout or TimeLimitPassed."""
        if isInIOThread():
            raise RuntimeError("publish_now blocks, so it can't be called on the reactor's thread")
        worker = self._workers.of_this_thread()
        if worker is not None and worker.job is worker.overdue is not None:
            raise TimeLimitPassed("the time limit of this message has passed; nothing more is published for it")
        result: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._reactor.callFromThread(self._publish, outgoing, result)
        try:
            result.result(self._seconds + MARGIN)
        except concurrent.futures.TimeoutError:
            raise PublishTimeout(f"not confirmed within {self._seconds:g} s") from None

    def _publish(self, outgoing: Outgoing, result: "concurrent.futures.Future[None]") -> None:
        published: Deferred[None] = self._publisher.publish(outgoing)

        def failed(failure: Failure) -> None:
            result.set_exception(failure.value)

        published.addCallbacks(result.set_result, failed)
