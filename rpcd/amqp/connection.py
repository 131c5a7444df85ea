"""The life of one connection as one coroutine: connect, ready, serve, back off.

A `Connection` goes on until it is told to stop. Its pauses grow with failures and are reset only when the one who uses it
says that it serves again. Trouble of any kind has one remedy: drop the connection, back off, begin again.
"""

import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.application.internet import backoffPolicy
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from rpcd.amqp.declare import login_refusal
from rpcd.amqp.dial import Broker, Dial
from rpcd.amqp.port import AmqpProtocol, translate
from rpcd.amqp.tls import explain
from rpcd.amqp.waiting import Once, WaitTooLong, exc_info
from rpcd.core.errors import BrokerRefused, ConnectionLost, LoginRefused, ObjectMissing

LONGEST_PAUSE = 30.0
"""The longest time in seconds between two attempts."""

LOGIN_TRIES = 3
"""How often a login is tried at first start before its refusal is believed."""

_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)
"""What no trouble with a network or a broker raises: a person needs to see where it came from."""

log = logging.getLogger("rpcd.connection")

Serve = Callable[[AmqpProtocol], Awaitable[None]]
"""Use a connection until it ends; return or raise when it did."""


class Connection:
    """One connection, made again for ever; reactor only."""

    def __init__(
        self, name: str, title: str, broker: Broker, serve: Serve, refused: Callable[[BrokerRefused], None]
    ) -> None:
        """Prepare a connection; `refused` is told what a person has to mend, if that is found before it ever served.

        `name` is for the log, `title` is what RabbitMQ's own pages show.
        """
        self.name = name
        self.title = title
        self.protocol: AmqpProtocol | None = None
        self.broker_version: tuple[int, ...] = ()
        """Of the broker that it was connected to last; empty if that is not known."""
        self.served = False
        self.trouble: str | None = "not connected yet"
        self._broker = broker
        self._serve = serve
        self._refused = refused
        self._told: BrokerRefused | None = None
        self._wanted = True
        self._started = False
        self._failures = 0
        self._logins = 0
        self._waiting: Deferred[Any] | None = None
        self._dial: Dial | None = None
        self._ended = Once()
        self._backoff = backoffPolicy(1.0, LONGEST_PAUSE, 2.0, random.random)

    def start(self) -> None:
        """Begin to connect; returns at once and never raises."""
        self._started = True
        Deferred.fromCoroutine(self._live()).addCallbacks(lambda _done: self._ended.fire(), self._broken)

    def last(self, *, used: bool = False) -> None:
        """Make no further connection: the present one, if it serves or is `used`, goes on until it ends or is stopped."""
        self._wanted = False
        if self.trouble is not None and not used:
            self.stop()

    def stop(self) -> Deferred[None]:
        """Stop for good: close what is open and fire when it is; never fails."""
        self._wanted = False
        if self._waiting is not None:
            self._waiting.cancel()
        if self._dial is not None:
            self._dial.cancel()
        if self.protocol is not None:
            self.protocol.leave()
        if not self._started:
            self._ended.fire()
        return self._ended.wait()

    def serving(self) -> None:
        """Be told that the connection does again what it is for."""
        if self.protocol is not None:
            self.broker_version = self.protocol.broker_version
            version = ".".join(map(str, self.broker_version)) or "of unknown version"
            log.info("connected to %s, RabbitMQ %s", self.protocol.where, version, extra={"connection": self.name})
        self.served = True
        self._failures = 0
        self.trouble = None
        for wake in list(self._broker.patient):  # the broker is there again: nobody needs to wait for his turn
            wake()

    def again(self, reason: str) -> None:
        """Drop the connection, because it does not do what it is for; it is made anew."""
        if self.protocol is not None:
            self.protocol.abort(ConnectionLost(reason))

    def refuse(self, error: BrokerRefused) -> None:
        """Tell what a person has to mend; whoever serves calls this itself when it finds that late, and then raises it."""
        self._told = error
        self._refused(error)

    async def _live(self) -> None:
        while self._wanted:
            error = await self._once()
            if self._wanted:
                await self._wait(error)
            del error  # its traceback keeps what has ended

    async def _once(self) -> Exception:
        """Connect and serve once; return why it ended."""
        error: Exception = ConnectionLost("the connection ended")
        try:
            self._dial = Dial(self._broker, self.title)
            self.protocol = await self._dial.connect()
            await self._serve(self.protocol)
        except _FAULTS as fault:
            log.exception("a fault of rpcd on the connection %s", self.name, extra={"connection": self.name})
            error = fault
        except Exception as failed:  # noqa: BLE001  # whatever it was, the remedy is the same
            error = failed
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            await protocol.leave()
        return error

    async def _wait(self, error: Exception) -> None:
        """Judge the trouble, say it once, and back off."""
        error = error if isinstance(error, BrokerRefused | ObjectMissing | WaitTooLong) else translate(error)
        seconds = self._backoff(self._failures)
        if isinstance(error, LoginRefused) and not self.served:
            self._logins += 1
            seconds = self._broker.login_patience / (LOGIN_TRIES - 1)
        else:
            self._logins = 0  # other trouble in between: what was refused then says nothing of now
            seconds = LONGEST_PAUSE if isinstance(error, BrokerRefused) and not self.served else seconds
        self._failures += 1
        if isinstance(error, LoginRefused):
            error = login_refusal(error, self._broker.address)
        text = explain(error)
        known, self.trouble = self.trouble, text
        if isinstance(error, BrokerRefused) and self._is_final(error):
            self.refuse(error)
        if not self._wanted:
            return
        # what was just told as the end of the process is not to be followed by the promise of another try
        level = logging.ERROR if isinstance(error, BrokerRefused) and self.served else logging.WARNING
        level = logging.DEBUG if text == known or error is self._told else level
        log.log(level, "%s; trying again in %.1f s", text, seconds, extra={"connection": self.name})
        self._waiting = deferLater(self._broker.reactor, seconds)
        # After its first failure nobody is woken: connections that serve for a moment only would drive each other round.
        if self._failures > 1 and not isinstance(error, BrokerRefused | ObjectMissing):
            self._broker.patient.add(self._waiting.cancel)
        with contextlib.suppress(CancelledError):  # told to stop, or not to wait any longer
            await self._waiting
        self._broker.patient.discard(self._waiting.cancel)
        self._waiting = None

    def _is_final(self, error: BrokerRefused) -> bool:
        """Tell whether a refusal is to be believed: not after it has worked, and a login only after some tries."""
        return not self.served and (not isinstance(error, LoginRefused) or self._logins >= LOGIN_TRIES)

    def _broken(self, failure: Failure) -> None:
        """Begin anew after a while when this life itself was ended by a fault of rpcd."""
        log.critical("a fault of rpcd ended the connection %s", self.name, exc_info=exc_info(failure))
        self.trouble = "a fault of rpcd"
        self._broker.reactor.callLater(LONGEST_PAUSE, self.start)
