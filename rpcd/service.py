"""The service: everything that runs, the order in which it starts, the order in which it stops."""

import functools
import logging
import os
import signal
import socket
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ReactorNotRunning
from twisted.python.failure import Failure

from rpcd import __version__
from rpcd.amqp.consumer import Consumer
from rpcd.amqp.dial import Broker
from rpcd.amqp.plan import Overseer, Plan
from rpcd.amqp.publisher import Publisher
from rpcd.amqp.waiting import Once, WaitTooLong, bounded, exc_info, repeating
from rpcd.amqp.worker import DaemonPool
from rpcd.core.address import address
from rpcd.core.errors import BrokerRefused, ExitCode
from rpcd.core.load import heartbeat
from rpcd.core.settings import Settings
from rpcd.core.topology import plan_rest
from rpcd.core.verdict import Halt
from rpcd.importing import resolve
from rpcd.ops import ending, memory

SUPERVISE_SECONDS = 10.0
"""How often wanted and live consumers are compared."""

CLOSE_SECONDS = 3.0
"""How long the last connections may take to close."""

GUARD_SECONDS = 2.0
"""How much longer than `drain_timeout` a stop may take before the process is ended from outside the reactor."""

log = logging.getLogger("rpcd")


class Daemon(Service):
    """All consumers of one config file and the publisher that they share; reactor only, but for the signal handler."""

    name = "rpcd"

    def __init__(
        self,
        settings: Settings,
        plans: list[Plan],
        reactor: Any,
        pidfile: str | None = None,
        environment: Any = os.environ,
    ) -> None:
        """Build the tree; nothing is started and no thread made, for twistd may fork after this."""
        self.settings = settings
        self.pool = DaemonPool(0, 0, "rpcd")
        self.broker = Broker(
            address(settings.broker, heartbeat(environment)), reactor, __version__, settings.broker.login_patience
        )
        title = f"rpcd publisher on {socket.gethostname()} (pid {os.getpid()})"
        service = settings.service
        self.publisher = Publisher(
            self.broker, plan_rest(settings), service.confirm_timeout, service.publish_timeout, self._refused, title
        )
        overseer = Overseer(self._refused, self._consuming, self._halted, self._exhausted)
        self.consumers = [Consumer(plan, self.broker, self.publisher, self.pool, overseer) for plan in plans]
        self._reactor = reactor
        self._pidfile = pidfile
        self._hurry = Once()
        self._stopped = Once()
        self._stopping = False
        self._signals = 0
        self._ready = False
        self._supervisor = repeating(self._supervise, reactor)

    # Start ----------------------------------------------------------------------------------------

    def startService(self) -> None:  # noqa: N802  # Twisted's name
        """Start once the reactor runs; never raises, because twistd could not tell anybody."""
        super().startService()  # type: ignore[no-untyped-call]
        self._reactor.callWhenRunning(self._start)

    def _start(self) -> None:
        _leave_signals_to_children()
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        ending.exit_with(ExitCode.OK)
        log.info("rpcd %s starting: %s consumers, broker %s", __version__, len(self.consumers), self.broker.address.safe_url)
        if not self._run_on_start():
            return
        memory.settle_in(sum(consumer.plan.section.window for consumer in self.consumers))
        self.pool.start()
        self.publisher.start()
        for consumer in self.consumers:
            consumer.start()
        self._supervisor.start(SUPERVISE_SECONDS, now=False)

    def _run_on_start(self) -> bool:
        """Call the operator's own start function; what it raises ends the process."""
        path = self.settings.service.on_start
        if path is None:
            return True
        try:
            resolve(path)()
        except BaseException:  # the user's code; SystemExit included
            log.critical("service.on_start: %s failed", path, exc_info=True)
            self.stop(ExitCode.SOFTWARE)
            return False
        return True

    # While it runs --------------------------------------------------------------------------------

    def _consuming(self, _consumer: Consumer) -> None:
        """Say once that everything that should consume does."""
        if not self._ready and all(consumer.connection.trouble is None for consumer in self.consumers):
            self._ready = True
            log.info("ready: %s consumers are consuming", len(self.consumers))

    def _supervise(self) -> None:
        """Compare wanted and live consumers: a connection that looks up and consumes nothing is made anew."""
        for consumer in self.consumers:
            consumer.workers.nudge()
            if consumer.wanted and consumer.connection.trouble is None and not consumer.consuming:
                log.error("connected, but not consuming: connecting anew", extra={"consumer": consumer.name})
                consumer.connection.again("it was connected, but consumed nothing")

    def _refused(self, error: BrokerRefused) -> None:
        """End the process over a mistake that a person has to mend."""
        if not self._stopping:
            log.critical("%s", error)
            self.stop(error.exit_code)

    def _exhausted(self, consumer: Consumer) -> None:
        """End the process when a consumer has lost too many threads: a restart frees them."""
        if not self._stopping:
            log.critical("%s", consumer.workers.condition, extra={"consumer": consumer.name})
            self.stop(ExitCode.SOFTWARE)

    def _halted(self, consumer: Consumer, halt: Halt) -> None:
        """Carry out a handler's order to halt: this consumer, or with a non-zero code the whole service."""
        level = logging.ERROR if halt.exit_code else logging.WARNING
        log.log(level, "halted: %s", halt.reason or "no reason given", extra={"consumer": consumer.name})
        ending.exit_with(halt.exit_code)
        if halt.exit_code:
            self.stop(halt.exit_code)
            return
        _forget(consumer.drain())
        if all(each.draining for each in self.consumers):  # the last one: from now on the stop's time limit holds
            self.stop()

    # Stop -----------------------------------------------------------------------------------------

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Stop at the first signal and hurry at the second; runs between any two instructions of the main thread."""
        self._signals += 1
        if self._signals == 1:
            ending.guard(self.settings.service.drain_timeout + CLOSE_SECONDS + GUARD_SECONDS, self._pidfile)
            self._reactor.callFromThread(log.info, "%s: stopping", signal.Signals(number).name)
            self._reactor.callFromThread(self.stop)
        else:
            self._reactor.callFromThread(self._hurry.fire)

    def stopService(self) -> Deferred[None]:  # noqa: N802  # Twisted's name
        """Drain before the reactor shuts down, whoever told it to."""
        super().stopService()  # type: ignore[no-untyped-call]
        return self.stop()

    def stop(self, code: int = ExitCode.OK) -> Deferred[None]:
        """Stop everything, then the reactor; fires when all is closed. Only the first call does more than set the code."""
        ending.exit_with(code)
        if not self._stopping:
            self._stopping = True
            stopped = Deferred.fromCoroutine(self._stop())
            stopped.addErrback(self._stopping_failed)
            stopped.addBoth(lambda _done: self._stopped.fire())
            stopped.addBoth(lambda _done: self._stop_reactor())
        return self._stopped.wait()

    def _stopping_failed(self, failure: Failure) -> None:
        log.critical("stopping failed", exc_info=exc_info(failure))
        ending.exit_with(ExitCode.SOFTWARE)

    def _stop_reactor(self) -> None:
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            log.debug("the reactor is stopping already")

    async def _stop(self) -> None:
        """Consumers drain, then the publisher closes, then the threads end."""
        telling = repeating(self._tell, self._reactor)
        telling.start(5.0, now=False)
        if self._supervisor.running:
            self._supervisor.stop()
        for consumer in self.consumers:
            _forget(consumer.drain())
        drained = DeferredList([consumer.drained.wait() for consumer in self.consumers])
        hurried: Deferred[Any] = DeferredList([drained, self._hurry.wait()], fireOnOneCallback=True)
        try:
            await bounded(hurried, self.settings.service.drain_timeout, self._reactor, "draining")
        except WaitTooLong as late:
            log.error("%s", late)  # noqa: TRY400  # its traceback would tell nobody anything
        unfinished = [consumer for consumer in self.consumers if not consumer.drained.happened]
        given_back = sum(consumer.abandon() for consumer in unfinished)
        given_back += sum(consumer.went_back for consumer in self.consumers)
        if unfinished or given_back:
            log.error("stopped with unfinished handlers: %s messages go back to the broker", given_back)
            ending.exit_with(ExitCode.TEMPFAIL)
        closing = DeferredList([self.publisher.stop(), *(consumer.connection.stop() for consumer in unfinished)])
        try:
            await bounded(closing, CLOSE_SECONDS, self._reactor, "closing the connections")
        except WaitTooLong as late:
            log.warning("%s", late)
        telling.stop()
        if self.pool.started and not unfinished and not any(consumer.workers.lost for consumer in self.consumers):
            self.pool.stop()
        log.info("stopped, exit code %s", ending.exit_code())

    def _tell(self) -> None:
        running = sum(len(consumer.workers.running) for consumer in self.consumers)
        log.info("draining: %s handlers are still running", running)


@functools.cache
def _leave_signals_to_children() -> None:
    """Let processes that a handler forks die of SIGTERM and SIGINT, which only the daemon itself drains at."""

    def after() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    os.register_at_fork(after_in_child=after)


def _forget(coroutine: Any) -> None:
    """Let a coroutine run by itself; what goes wrong in it is logged."""
    done = Deferred.fromCoroutine(coroutine)
    done.addErrback(lambda failure: log.critical("a fault of rpcd", exc_info=exc_info(failure)))
