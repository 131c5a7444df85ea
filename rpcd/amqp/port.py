"""The only import of pika: one AMQP connection, its channels, and the real cause of its end.

pika keeps what it is good at: the handshake, heartbeats, the state of channels. Its own Deferreds are not used beyond
`ready`, for cancelling one of the others can hang a connection for good; channels are wrapped by callbacks instead. rpcd
reaches into pika at the places that `PRIVATE` lists; they are checked at start, not found missing in the night.
"""

import logging
import struct
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pika
import pika.credentials
import pika.exceptions
import pika.frame
import pika.spec
from OpenSSL import SSL
from pika.adapters.twisted_connection import TwistedProtocolConnection
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionClosed
from twisted.python.failure import Failure

from rpcd.amqp.channel import Channel, Ended
from rpcd.amqp.reader import Reader
from rpcd.amqp.tls import explain
from rpcd.core.address import Address
from rpcd.core.errors import ChannelClosed, ConnectionLost, ExitCode, LoginRefused, ReplyCode
from rpcd.core.wire import read_properties

PRIVATE = ("_terminate_stream", "_process_frame", "bytes_received", "params", "server_properties")
"""Attributes of pika's connection that are not its public interface and that rpcd needs."""

ABORT_AFTER = 2.0
"""Seconds after which a connection that should have ended is cut: a dead peer never answers a polite close."""

BLOCKED_TIMEOUT = 300.0
"""Seconds that the broker may keep a connection blocked (an alarm) before it is made anew."""

TLS_ALERT = 7
"""Bytes that a port of TLS answers to plain AMQP before it hangs up (RFC 5246, 6.2.1 and 7.2); no frame is as short."""

_HEADER = struct.Struct(">BHIHHQ")
"""A content header frame up to its property list: type, channel, size; class, weight, size of the body."""


log = logging.getLogger("rpcd.connection")


class AmqpProtocol(TwistedProtocolConnection):
    """One connection; reactor only. Await `ready` under a time limit, then use `open_channel`."""

    def __init__(self, parameters: Any, reactor: Any) -> None:
        """Make a protocol for one connection; it is never used twice."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pika 2 drops the adapter; our lower and upper bounds know
            super().__init__(parameters, custom_reactor=reactor)
        self.clock: Any = reactor
        self.reason: Exception | None = None
        self.is_lost = False
        self.blocked: str | None = None
        self.where = ""
        """Host and port, for the log."""
        self.reader = Reader(self._to_pika)
        self._ended: list[Ended] = []
        impl: Any = self._impl
        missing = [name for name in PRIVATE if not hasattr(impl, name)]
        if missing:
            raise RuntimeError(f"pika {pika.__version__} lacks {', '.join(missing)}: use a version that rpcd is tested with")
        self._end_stream: Callable[[Exception | None], None] = impl._terminate_stream  # noqa: SLF001
        impl._terminate_stream = self._terminate_stream  # noqa: SLF001
        impl.add_on_connection_blocked_callback(self._on_blocked)
        impl.add_on_connection_unblocked_callback(self._on_unblocked)

    @property
    def broker_version(self) -> tuple[int, ...]:
        """The broker's version as numbers; empty when it does not say."""
        properties = self._impl.server_properties or {}
        parts = str(properties.get("version", "")).split(".")
        return tuple(int(part) for part in parts[:3] if part.isdigit())

    def open_channel(self) -> Deferred[Channel]:
        """Open a channel; fails with the connection's end."""
        opened: Deferred[Channel] = Deferred()
        impl: Any = self._impl

        def wrap(inner: Any) -> None:
            transport: Any = self.transport
            if not opened.called:
                opened.callback(
                    Channel(inner, transport.write, impl.params.frame_max, self._ended_by, self.clock, self.reader)
                )

        try:
            inner = impl.channel(on_open_callback=wrap)
        except Exception as error:  # noqa: BLE001  # closed or closing: the caller learns why
            opened.errback(self._ended_by(error))
            return opened
        inner.add_on_close_callback(lambda _inner, reason: None if opened.called else opened.errback(self._ended_by(reason)))
        return opened

    def when_lost(self, ended: Ended) -> None:
        """Call `ended` with the real cause when the connection is gone; at once if it is."""
        if self.is_lost:
            ended(self.cause())
        else:
            self._ended.append(ended)

    def cause(self) -> Exception:
        """Return why the connection ended, or could not be made."""
        return translate(self.reason) if self.reason is not None else ConnectionLost("the connection was closed")

    def _ended_by(self, reason: Exception) -> Exception:
        """Return why a channel ended: for its own sake, or with the connection, whose cause pika has forgotten by then."""
        found = translate(reason)
        return found if isinstance(found, ChannelClosed) or self.reason is None else self.cause()

    def abort(self, reason: Exception) -> None:
        """Cut the connection now, without asking the broker; unsettled deliveries go back to their queues."""
        if self.reason is None:
            self.reason = reason
        transport: Any = self.transport
        if transport is not None and not self.is_lost:
            transport.abortConnection()

    def leave(self) -> Deferred[None]:
        """Close the connection politely and cut it when that takes longer than `ABORT_AFTER`; never fails."""
        done: Deferred[None] = Deferred()
        self.when_lost(lambda _reason: None if done.called else done.callback(None))
        if not self.is_lost:
            late = self.clock.callLater(ABORT_AFTER, self.abort, ConnectionLost("closing took too long"))
            self.when_lost(lambda _reason: late.cancel() if late.active() else None)
            impl: Any = self._impl
            if impl.is_open:
                impl.close()
            elif not impl.is_closing:
                self.abort(ConnectionLost("given up before it was ready"))
        return done

    # What pika calls ------------------------------------------------------------------------------

    def connectionMade(self) -> None:  # noqa: N802  # Twisted's name
        """Have small frames leave at once: an ack that waited for the broker's delayed TCP ack would idle all workers."""
        self.transport.setTcpNoDelay(True)
        super().connectionMade()

    def connectionLost(self, reason: Failure = Failure(ConnectionLost("closed"))) -> None:  # noqa: B008, N802
        """Note the cause, let pika end its channels, then tell everyone who asked."""
        if self.reason is None and isinstance(reason.value, Exception):
            impl: Any = self._impl
            self.reason = _in_tls() if impl.bytes_received == TLS_ALERT else reason.value
        self.is_lost = True  # whoever hears of the end of a channel next may ask
        super().connectionLost(reason)
        ended, self._ended = self._ended, []
        for each in ended:
            each(self.cause())

    def _terminate_stream(self, error: Exception | None) -> None:
        """Keep the reason why pika ends the stream, and cut what does not end by itself."""
        if error is not None and self.reason is None:
            self.reason = error
        self._end_stream(error)
        self.clock.callLater(ABORT_AFTER, self._cut)

    def _cut(self) -> None:
        transport: Any = self.transport
        if not self.is_lost and transport is not None:
            log.warning("the connection to %s does not end by itself: cut off", self.where or "the broker")
            transport.abortConnection()

    def _on_connection_failed(self, connection: Any, error: Exception | None = None) -> None:
        self.reason = self.reason or error
        super()._on_connection_failed(connection, error)

    def _on_blocked(self, _connection: Any, frame: Any) -> None:
        self.blocked = str(frame.method.reason)
        self.on_blocked(self.blocked)

    def _on_unblocked(self, _connection: Any, _frame: Any) -> None:
        self.blocked = None
        self.on_blocked(None)

    def on_blocked(self, reason: str | None) -> None:
        """Be told that the broker blocks this connection (an alarm) or, with None, that it goes on; to be replaced."""

    def dataReceived(self, data: bytes) -> None:  # noqa: N802  # Twisted's name
        """Read what has come; deliveries go to their consumers, everything else to pika."""
        self._impl.bytes_received += len(data)  # by this pika sees that the broker is alive
        self.reader.feed(data)

    def _to_pika(self, frame: bytes) -> None:
        """Hand a frame to pika; property lists are read here, as those of deliveries are: a stranger's may hold anything."""
        impl: Any = self._impl
        if frame[0] == pika.spec.FRAME_HEADER:
            _, channel, _, _, _, body_size = _HEADER.unpack_from(frame)
            decoded: Any = pika.frame.Header(channel, body_size, read_properties(frame, _HEADER.size))
        else:
            _, decoded = pika.frame.decode_frame(frame)
        if decoded is None:
            raise ConnectionLost("the broker sent what is no AMQP frame")
        impl._process_frame(decoded)  # noqa: SLF001


def make_protocol(address: Address, name: str, version: str, reactor: Any) -> AmqpProtocol:
    """Make the protocol for one connection; `name` is what RabbitMQ's own pages show."""
    credentials: Any
    if address.external:
        credentials = pika.credentials.ExternalCredentials()
    else:
        credentials = pika.PlainCredentials(address.username, address.password)
    parameters = pika.ConnectionParameters(
        virtual_host=address.virtual_host,
        credentials=credentials,
        heartbeat=address.heartbeat,
        blocked_connection_timeout=BLOCKED_TIMEOUT,
        client_properties={
            "product": "rpcd",
            "version": version,
            "platform": f"Python {sys.version.split()[0]}",
            "connection_name": name,
        },
    )
    return AmqpProtocol(parameters, reactor)


def translate(error: BaseException) -> Exception:
    """Turn a reason of pika, Twisted or TLS into one of rpcd's errors, keeping the broker's own words."""
    if isinstance(error, ChannelClosed | ConnectionLost | LoginRefused):
        return error
    for kind, turn in _TRANSLATIONS:
        if isinstance(error, kind):
            return turn(error)
    return ConnectionLost(_words(error))


def _in_tls() -> Exception:
    return ConnectionLost(
        "the port answers in TLS; write amqps:// (usually port 5671), or use the plain port (usually 5672)"
    )


def _closed_by_broker(error: Any) -> Exception:
    if error.reply_code in (ReplyCode.ACCESS_REFUSED, ReplyCode.NOT_ALLOWED):
        return LoginRefused(f"the broker refused the login: {error.reply_code} {error.reply_text}", ExitCode.NOPERM)
    return ConnectionLost(f"the broker closed the connection: {error.reply_code} {error.reply_text}", error.reply_code)


def _login(error: BaseException) -> Exception:
    return LoginRefused(f"the broker refused the login: {_words(error)}", ExitCode.NOPERM)


_TRANSLATIONS: tuple[tuple[Any, Callable[[Any], Exception]], ...] = (
    (pika.exceptions.ChannelClosedByBroker, lambda error: ChannelClosed(error.reply_code, error.reply_text)),
    (pika.exceptions.ConnectionClosedByBroker, _closed_by_broker),
    (pika.exceptions.ChannelClosed, lambda _error: ConnectionLost("closed by rpcd")),
    (pika.exceptions.ConnectionClosed, lambda _error: ConnectionLost("closed by rpcd")),
    (pika.exceptions.AuthenticationError, _login),
    (pika.exceptions.ProbableAuthenticationError, _login),
    ((ConnectionClosed, SSL.Error), lambda error: ConnectionLost(explain(error))),
    (pika.exceptions.AMQPHeartbeatTimeout, lambda _error: ConnectionLost("the broker's heartbeats stopped")),
    (
        pika.exceptions.ConnectionBlockedTimeout,
        lambda _error: ConnectionLost(f"the broker blocked the connection for {BLOCKED_TIMEOUT:.0f} s"),
    ),
)
"""The first that fits; subclasses before their bases."""


def _words(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
