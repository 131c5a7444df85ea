"""The service: everything that runs, the order in which it starts, the order in which it stops."""

import logging
import os
import signal
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.python.failure import Failure

from rpcd import __version__
from rpcd.amqp.consumer import Consumer
from rpcd.amqp.dial import Broker
from rpcd.amqp.plan import Overseer, Plan, connection_name
from rpcd.amqp.publisher import Publisher
from rpcd.amqp.waiting import Once, WaitTooLong, bounded, exc_info, repeating
from rpcd.amqp.worker import DaemonPool
from rpcd.core.address import address
from rpcd.core.errors import BrokerRefused, ExitCode
from rpcd.core.load import heartbeat
from rpcd.core.settings import Settings
from rpcd.core.topology import plan_rest
from rpcd.core.verdict import Halt
from rpcd.doors import CannotOpen, Doors
from rpcd.importing import resolve
from rpcd.ops import ending, memory, signals
from rpcd.ops.log_queue import LOG_QUEUE
from rpcd.ops.reload import NOWHERE, Origin, Reloading
from rpcd.ops.systemd import START_SECONDS, Systemd

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
        origin: Origin = NOWHERE,
        systemd: Systemd | None = None,
    ) -> None:
        """Build the tree; nothing is started and no thread made, for twistd may fork after this."""
        self.settings = settings
        self.pool = DaemonPool(0, 0, "rpcd")
        self.broker = Broker(
            address(settings.broker, heartbeat(environment)), reactor, __version__, settings.broker.login_patience
        )
        title = connection_name("publisher", plans[0].config if plans else "")
        service = settings.service
        self.publisher = Publisher(
            self.broker, plan_rest(settings), service.confirm_timeout, service.publish_timeout, self._refused, title
        )
        overseer = Overseer(self._refused, self._consuming, self._halted, self._exhausted, self._changed)
        self.consumers = [Consumer(plan, self.broker, self.publisher, self.pool, overseer) for plan in plans]
        safe_url = self.broker.address.safe_url
        self.doors = Doors(settings, self.consumers, self.publisher, safe_url, reactor, systemd or Systemd({}), origin)
        self.reloading = Reloading(self.doors, origin, reactor, self._start_anew, self._why_it_ends)
        self._reactor = reactor
        self._pidfile = pidfile
        self._hurry = Once()
        self._stopped = Once()
        self._stopping = self._anew = self._guarded = False
        self._signals = 0
        self._supervisor = repeating(self._supervise, reactor)

    # Start ----------------------------------------------------------------------------------------

    def startService(self) -> None:  # noqa: N802  # Twisted's name
        """Start once the reactor runs; never raises, because twistd could not tell anybody."""
        super().startService()  # type: ignore[no-untyped-call]
        self._reactor.callWhenRunning(self._start)

    def _start(self) -> None:
        signals.take(self._on_signal, lambda _number: self._reactor.callFromThread(self.reloading.begin))
        ending.exit_with(ExitCode.OK)
        LOG_QUEUE.start()
        log.info("rpcd %s starting, broker %s", __version__, self.broker.address.safe_url)
        if self.broker.address.exposed:
            hosts = ", ".join(self.broker.address.exposed)
            log.warning("plain TCP to %s: whoever is on the way reads the password and all messages; write amqps://", hosts)
        if not self._open_doors() or not self._run_on_start():
            return
        self.doors.begin_feeding()
        memory.settle_in(sum(consumer.plan.section.window for consumer in self.consumers))
        self.pool.start()
        self.publisher.start()
        for consumer in self.consumers:
            consumer.start()
        self._supervisor.start(SUPERVISE_SECONDS, now=False)

    def _open_doors(self) -> bool:
        """Open the control socket and the rest; what fails ends the process."""

        def failed(failure: Failure) -> None:
            failure.trap(CannotOpen)
            self._mistake(str(failure.value), ExitCode.CONFIG)

        _forget(maybeDeferred(self.doors.open, self.reloading.begin).addErrback(failed))
        return not self._stopping

    def _run_on_start(self) -> bool:
        """Call the operator's own start function; what it raises ends the process."""
        path = self.settings.service.on_start
        if path is None:
            return True
        self.doors.systemd.extend(START_SECONDS)
        try:
            resolve(path)()
        except BaseException:  # noqa: BLE001  # the user's code; SystemExit included
            self._mistake(f"service.on_start: {path} failed", ExitCode.SOFTWARE, trace=True)
            return False
        return True

    # While it runs --------------------------------------------------------------------------------

    def _consuming(self, _consumer: Consumer) -> None:
        """Say once that everything that should consume does."""
        wanted = [consumer for consumer in self.consumers if not consumer.draining]
        if self.doors.phase.told_ready or any(consumer.connection.trouble is not None for consumer in wanted):
            self.doors.tell()
        elif not self._stopping:
            log.info("ready, consuming: %s", ", ".join(each.name for each in wanted))
            self.doors.ready()

    def _changed(self) -> None:
        """Say how it goes, once that was said before."""
        if self.doors.phase.told_ready:
            self.doors.tell()

    def _mistake(self, text: str, code: int, *, trace: bool = False) -> None:
        """End the process over something that a person has to mend."""
        if not self._stopping:
            log.critical("%s", text, exc_info=trace)
            self.doors.wrong(text, code)
            self.stop(code)

    def _supervise(self) -> None:
        """Compare wanted and live consumers: a connection that looks up and consumes nothing is made anew."""
        for consumer in self.consumers:
            consumer.workers.nudge()
            if consumer.wanted and consumer.connection.trouble is None and not consumer.consuming:
                log.error("connected, but not consuming: connecting anew", extra={"consumer": consumer.name})
                consumer.connection.again("it was connected, but consumed nothing")

    def _refused(self, error: BrokerRefused) -> None:
        """End the process over what the broker does not let us do."""
        self._mistake(str(error), error.exit_code)

    def _exhausted(self, consumer: Consumer) -> None:
        """End the process when a consumer has lost too many threads: a restart frees them."""
        if not self._stopping:
            log.critical("%s", consumer.workers.condition, extra={"consumer": consumer.name})
            self.stop(ExitCode.SOFTWARE)

    def _halted(self, consumer: Consumer, halt: Halt) -> None:
        """Carry out a handler's order to halt: this consumer, or with a non-zero code the whole service."""
        level = logging.ERROR if halt.exit_code else logging.WARNING
        consumer.halted = halt.reason or "no reason given"
        log.log(level, "halted: %s", consumer.halted, extra={"consumer": consumer.name})
        ending.exit_with(halt.exit_code)
        if halt.exit_code:
            self.stop(halt.exit_code)
            return
        _forget(Deferred.fromCoroutine(consumer.drain()))
        if all(each.halted is not None for each in self.consumers):
            self._terminate()  # the last one: from now on the stop's time limit holds; it is not to start anew

    # Stop -----------------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        """Stop at the first signal and hurry at the second; runs between any two instructions of the main thread."""
        self._signals += 1
        if self._signals == 1:
            ending.start_anew(False)  # at once: the process may be at the last step of a reload
            self._guard()
            self._reactor.callFromThread(log.info, "%s: stopping", signal.Signals(number).name)
            self._reactor.callFromThread(self._terminate)
        else:
            self._reactor.callFromThread(self._hurry.fire)

    def _guard(self) -> None:
        """See to it that the process ends, whatever it is that ends it, and whatever hangs."""
        if not self._guarded:
            self._guarded = True
            ending.guard(self.settings.service.drain_timeout + CLOSE_SECONDS + GUARD_SECONDS, self._pidfile)

    def _why_it_ends(self) -> str | None:
        """Tell why nothing is to be started anew any more; None if nothing speaks against it."""
        halting = [each.name for each in self.consumers if each.draining and not each.drained.happened]
        if self._stopping:
            return "the process is stopping"
        return f"consumer {', '.join(halting)} is halting; try again when it has" if halting else None

    def _start_anew(self) -> None:
        """Stop, and begin again where the process would end."""
        if paused := [consumer.name for consumer in self.consumers if consumer.paused]:
            log.warning("paused consumers will consume again: %s", ", ".join(paused))
        ending.start_anew()
        self._anew = True
        self._guard()
        self.stop()

    def _terminate(self) -> None:
        """Stop, and end even if it was to start anew."""
        ending.start_anew(False)
        if self._anew:
            self._anew = False
            self.doors.stopping()
        self.reloading.cancel()
        self.stop()

    def stopService(self) -> Deferred[None]:  # noqa: N802  # Twisted's name
        """Drain before the reactor shuts down, whoever told it to."""
        super().stopService()  # type: ignore[no-untyped-call]
        return self.stop()

    def stop(self, code: int = ExitCode.OK) -> Deferred[None]:
        """Stop everything, then the reactor; fires when all is closed. Only the first call does more than set the code."""
        ending.exit_with(code)
        if not self._stopping:
            self._stopping = True
            self._guard()
            if not self._anew:
                self.doors.stopping()
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
            _forget(Deferred.fromCoroutine(consumer.drain()))
        drained = DeferredList([consumer.drained.wait() for consumer in self.consumers])
        hurried: Deferred[Any] = DeferredList([drained, self._hurry.wait()], fireOnOneCallback=True)
        overdue = False
        try:
            await bounded(hurried, self.settings.service.drain_timeout, self._reactor, "draining")
        except WaitTooLong as late:
            overdue = True  # a `shutdown` that hangs, if no message is left
            log.error("%s", late)  # noqa: TRY400  # its traceback would tell nobody anything
        unfinished = [consumer for consumer in self.consumers if not consumer.drained.happened]
        given_back = sum(consumer.abandon() for consumer in unfinished)
        given_back += sum(consumer.went_back for consumer in self.consumers)
        if given_back or overdue or any(consumer.workers.running for consumer in unfinished):
            log.error("stopped with unfinished handlers; messages that go back to the broker: %s", given_back)
            ending.exit_with(ExitCode.TEMPFAIL)
        last_words = [Deferred.fromCoroutine(consumer.workers.last_words()) for consumer in unfinished]
        closing = DeferredList([self.publisher.stop(), *(each.connection.stop() for each in unfinished), *last_words])
        try:
            await bounded(closing, CLOSE_SECONDS, self._reactor, "closing the connections")
        except WaitTooLong as late:
            log.warning("%s", late)
        telling.stop()
        await self.doors.close()
        busy = any(consumer.workers.lost or consumer.workers.stuck for consumer in self.consumers)
        if self.pool.started and not unfinished and not busy:  # it waits for every thread
            self.pool.stop()
        log.info("stopped, %s", "starting anew" if self._anew else f"exit code {ending.exit_code()}")

    def _tell(self) -> None:
        log.info("draining; handlers that still run: %s", sum(len(each.workers.running) for each in self.consumers))


def _forget(done: Deferred[Any]) -> None:
    """Let something run by itself; what goes wrong in it is logged."""
    done.addErrback(lambda failure: log.critical("a fault of rpcd", exc_info=exc_info(failure)))
