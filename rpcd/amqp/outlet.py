"""How a handler reaches the publisher and waits for the confirm: a thread blocks, a coroutine awaits."""

import asyncio
import concurrent.futures
import threading
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.python.threadable import isInIOThread

from rpcd.amqp.publisher import Publisher
from rpcd.amqp.running import Publication
from rpcd.amqp.tasks import Tasks
from rpcd.amqp.workers import Workers
from rpcd.core.errors import PublishTimeout, TimeLimitPassed
from rpcd.core.outgoing import Outgoing

MARGIN = 5.0
"""Seconds that a handler waits beyond the publisher's own limit, which should always come first."""


class ThreadOutlet:
    """Publishes for the handlers of one consumer; called in worker threads."""

    def __init__(self, reactor: Any, publisher: Publisher, workers: Workers | Tasks, seconds: float) -> None:
        """Take the publisher and its time limit."""
        self._reactor = reactor
        self._publisher = publisher
        self._workers = workers
        self._seconds = seconds

    def publish_now(self, outgoing: Outgoing) -> Any:
        """Publish and return when confirmed; raise PublishRefused, Unroutable, PublishTimeout or TimeLimitPassed."""
        if isInIOThread():
            raise RuntimeError("publish_now blocks, so it can't be called on the reactor's thread")
        self._check_in_time()
        result: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._reactor.callFromThread(self._publish, outgoing, result)
        try:
            result.result(self._seconds + MARGIN)
        except concurrent.futures.TimeoutError:
            raise self._timeout() from None

    def _check_in_time(self) -> None:
        worker = self._workers.of_this_thread()
        if worker is not None and worker.job is worker.overdue is not None:
            raise TimeLimitPassed("the time limit of this message has passed; nothing more is published for it")

    def _timeout(self) -> PublishTimeout:
        return PublishTimeout(f"not confirmed within {self._seconds:g} s")

    def _publish(self, outgoing: Outgoing, result: "concurrent.futures.Future[None]") -> None:
        published: Deferred[None] = self._publisher.publish(outgoing)

        def failed(failure: Failure) -> None:
            result.set_exception(failure.value)

        published.addCallbacks(result.set_result, failed)


class LoopOutlet(ThreadOutlet):
    """Publishes for async handlers; called on their loop, or in a thread that one of them has started."""

    def __init__(self, reactor: Any, publisher: Publisher, tasks: Tasks, seconds: float) -> None:
        """Take the publisher and its time limit."""
        super().__init__(reactor, publisher, tasks, seconds)
        self._thread = tasks.thread

    def publish_now(self, outgoing: Outgoing) -> Any:
        """Publish and return what ends when confirmed or raises as a thread's does; in another thread, block."""
        if threading.get_ident() != self._thread.thread:
            return super().publish_now(outgoing)
        self._check_in_time()
        loop = self._thread.loop
        future: asyncio.Future[None] = loop.create_future()
        late = loop.call_later(self._seconds + MARGIN, _end, future, self._timeout())
        future.add_done_callback(lambda _future: late.cancel())
        self._reactor.callFromThread(self._publish_for_loop, outgoing, future)
        return Publication(future, self._workers.of_this_thread())  # type: ignore[arg-type]  # tasks have no other

    def _publish_for_loop(self, outgoing: Outgoing, future: "asyncio.Future[None]") -> None:
        call = self._thread.call
        published: Deferred[None] = self._publisher.publish(outgoing)
        published.addCallbacks(lambda _none: call(_end, future, None), lambda failure: call(_end, future, failure.value))


def _end(future: "asyncio.Future[None]", error: BaseException | None) -> None:
    if future.done():  # given up by the handler
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
