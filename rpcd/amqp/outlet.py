"""How a handler reaches the publisher and waits for the confirm or the reply: a thread blocks, a coroutine awaits."""

import asyncio
import concurrent.futures
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.python.threadable import isInIOThread

from rpcd.amqp.caller import Answer
from rpcd.amqp.publisher import Publisher
from rpcd.amqp.running import Publication, Running
from rpcd.amqp.tasks import Tasks
from rpcd.amqp.worker import Worker
from rpcd.amqp.workers import Workers
from rpcd.core.errors import PASSED, CallTimeout, DeadlinePassed, PublishTimeout, RpcdError, TimeLimitPassed
from rpcd.core.outgoing import Outgoing
from rpcd.core.question import Question

ResultT = TypeVar("ResultT")

MARGIN = 5.0
"""Seconds that a handler waits beyond the publisher's own limit, which should always come first."""

_OVER = "the time limit of this message has passed; nothing more is published for it, and nobody asked"


@attrs.frozen
class Limits:
    """How long handlers of one consumer may wait, in seconds."""

    publish: float
    """For a confirm: `publish_timeout`."""
    handler: float
    """For everything: `time_limit`."""


@attrs.frozen
class Asked:
    """A request that is made, and the time that it has."""

    request: Outgoing
    correlation_id: str
    seconds: float
    late: RpcdError | None
    """What has passed when this time is over, if it is not the call's own timeout."""


class ThreadOutlet:
    """Publishes and asks for the handlers of one consumer; called in worker threads."""

    def __init__(self, reactor: Any, publisher: Publisher, workers: Workers | Tasks, limits: Limits) -> None:
        """Take the publisher and the time limits."""
        self._reactor = reactor
        self._publisher = publisher
        self._workers = workers
        self._limits = limits

    def publish_now(self, outgoing: Outgoing) -> Any:
        """Publish and return when confirmed; raise PublishRefused, Unroutable, PublishTimeout or TimeLimitPassed."""
        self._check_in_time("publish_now")
        self._wait(lambda: self._publisher.publish(outgoing), self._limits.publish, self._timeout)

    def call(self, question: Question, left: float | None) -> Any:
        """Ask and return what the reply says; see `Message.call`."""
        asked = self._ask(question, left, self._check_in_time("call"))
        try:
            answer: Answer = self._wait(lambda: self._begin(asked), asked.seconds, _no_reply)
        except CallTimeout as error:
            raise asked.late or error from None
        return question.read(answer.body, answer.properties)

    def _wait(self, begin: Callable[[], Deferred[ResultT]], seconds: float, late: Callable[[], Exception]) -> ResultT:
        """Begin something on the reactor and wait for its end."""
        result: concurrent.futures.Future[ResultT] = concurrent.futures.Future()

        def begin_there() -> None:
            begin().addCallbacks(result.set_result, lambda failure: result.set_exception(failure.value))

        self._reactor.callFromThread(begin_there)
        try:
            return result.result(seconds + MARGIN)
        except concurrent.futures.TimeoutError:
            if result.done():  # it is the error of a call, which is a TimeoutError, too
                raise
            raise late() from None

    def _check_in_time(self, what: str) -> Worker | Running | None:
        """Return who calls, as far as that is known; raise if he may not wait here, or for nothing."""
        if isInIOThread():
            raise RuntimeError(f"{what} blocks, so it can't be called on the reactor's thread")
        return self._worker()

    def _worker(self) -> Worker | Running | None:
        worker = self._workers.of_this_thread()
        if worker is not None and worker.job is worker.overdue is not None:
            raise TimeLimitPassed(_OVER)
        return worker

    def _timeout(self) -> PublishTimeout:
        return PublishTimeout(f"not confirmed within {self._limits.publish:g} s")

    def _ask(self, question: Question, left: float | None, worker: Worker | Running | None) -> Asked:
        """Make the request, and see what limits its time: its timeout, the message's deadline or the handler's limit."""
        seconds = question.timeout
        late: RpcdError | None = None
        if left is not None and left < seconds:
            seconds, late = left, DeadlinePassed(PASSED)
        if worker is not None:
            run = self._limits.handler - (time.monotonic() - worker.since)
            if run < seconds:
                seconds, late = max(0.0, run), TimeLimitPassed(_OVER)
        correlation_id = str(uuid.uuid4())
        return Asked(question.outgoing(correlation_id, seconds, time.time()), correlation_id, seconds, late)

    def _begin(self, asked: Asked) -> Deferred[Answer]:
        return self._publisher.calls.call(asked.request, asked.correlation_id, asked.seconds)


class LoopOutlet(ThreadOutlet):
    """Publishes and asks for async handlers; called on their loop, or in a thread that one of them has started."""

    def __init__(self, reactor: Any, publisher: Publisher, tasks: Tasks, limits: Limits) -> None:
        """Take the publisher and the time limits."""
        super().__init__(reactor, publisher, tasks, limits)
        self._thread = tasks.thread

    def publish_now(self, outgoing: Outgoing) -> Any:
        """Publish and return what ends when confirmed or raises as a thread's does; in another thread, block."""
        if threading.get_ident() != self._thread.thread:
            return super().publish_now(outgoing)
        running = self._worker()
        future = self._future(lambda: self._publisher.publish(outgoing), self._limits.publish, self._timeout)
        return Publication(future, running)  # type: ignore[arg-type]  # tasks have no other

    def call(self, question: Question, left: float | None) -> Any:
        """Return a coroutine that asks and returns what the reply says; in another thread, block."""
        if threading.get_ident() != self._thread.thread:
            return super().call(question, left)
        return self._call(question, left)

    async def _call(self, question: Question, left: float | None) -> Any:
        asked = self._ask(question, left, self._worker())
        try:
            answer: Answer = await self._future(lambda: self._begin(asked), asked.seconds, _no_reply, cancels=True)
        except CallTimeout as error:
            raise asked.late or error from None
        return question.read(answer.body, answer.properties)

    def _future(
        self, begin: Callable[[], Deferred[ResultT]], seconds: float, late: Callable[[], Exception], *, cancels: bool = False
    ) -> "asyncio.Future[ResultT]":
        """Begin something on the reactor and return a future of the loop for its end, which may be cancelled with it."""
        loop, call = self._thread.loop, self._thread.call
        future: asyncio.Future[ResultT] = loop.create_future()
        begun: list[Deferred[ResultT]] = []

        def begin_there() -> None:
            begun.append(begin())
            begun[0].addCallbacks(
                lambda value: call(_end, future, value, None), lambda failure: call(_end, future, None, failure.value)
            )

        def cancel() -> None:
            for each in begun:
                each.cancel()

        def done(_future: object) -> None:
            timer.cancel()
            if cancels and future.cancelled():
                self._reactor.callFromThread(cancel)

        timer = loop.call_later(seconds + MARGIN, _end, future, None, late())
        future.add_done_callback(done)
        self._reactor.callFromThread(begin_there)
        return future


def _no_reply() -> CallTimeout:
    return CallTimeout("no reply, and nothing else: the reactor is blocked")


def _end(future: "asyncio.Future[Any]", value: Any, error: BaseException | None) -> None:
    if future.done():  # given up by the handler
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
