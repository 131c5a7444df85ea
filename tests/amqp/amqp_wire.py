"""The other end of the wire: a reactor that the test turns by hand, and a broker made of bytes that answers real pika.

Nothing here sleeps. The reactor's clock moves only when a test moves it; what other threads hand to it waits in a queue
that the test thread empties, with an upper bound where it has to wait. The broker acts like RabbitMQ where that matters to
rpcd: it counts confirms and delivery tags, keeps what is not settled and delivers it again, closes a channel over an ack
that names an unknown or settled tag (406), and a connection over a frame that is too big (501) or a closed channel (504).
"""

import itertools
import queue
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs
import pika
import pika.frame
from pika import spec
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

LONGEST = 10.0
"""Seconds that a test waits for something that should happen at once; never how long it takes."""

HEADER = struct.Struct(">BHI")
CONTENT = struct.Struct(">HHQ")

CAPABILITIES = {
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
    "authentication_failure_close": True,
}


class Waited(AssertionError):
    """What a test waited for did not happen."""


# The reactor --------------------------------------------------------------------------------------


@implementer(IReactorPluggableNameResolver)
class Reactor(Clock):
    """Twisted's clock, calls from other threads, and connections to a fake broker; the test's own thread turns it."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = self
        self.listener: Broker | None = None
        """Who accepts connections; None refuses them."""
        self.silent = False
        """Whether connecting leads nowhere: no answer at all."""
        self.dialled: list[tuple[str, int]] = []
        self.stops = 0
        self._calls: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]] = queue.SimpleQueue()

    def callFromThread(self, call: Callable[..., object], *arguments: Any, **named: Any) -> None:
        self._calls.put((call, arguments, named))

    def callWhenRunning(self, call: Callable[..., object], *arguments: Any, **named: Any) -> None:
        call(*arguments, **named)

    def stop(self) -> None:
        self.stops += 1

    def run(self) -> None:
        """Do everything that is due, until nothing is."""
        while self._one_call() or self._due():
            pass

    def _one_call(self, seconds: float | None = None) -> bool:
        try:
            call, arguments, named = self._calls.get_nowait() if seconds is None else self._calls.get(timeout=seconds)
        except queue.Empty:
            return False
        call(*arguments, **named)
        return True

    def _due(self) -> bool:
        if not self.calls or self.calls[0].getTime() > self.seconds():
            return False
        self.advance(0)
        return True

    def until(self, condition: Callable[[], object], what: str = "", seconds: float = LONGEST) -> None:
        """Run until a condition holds; other threads may have to do their part first."""
        limit = time.monotonic() + seconds
        self.run()
        while not condition():
            if not self._one_call(max(0.0, limit - time.monotonic())):
                raise Waited(what or "what the test waits for did not happen")
            self.run()

    def pass_time(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass in steps; everything that becomes due is done in its turn."""
        self.run()
        while seconds > 0:
            self.advance(min(step, seconds))
            self.run()
            seconds -= step

    # Connecting, as Twisted's endpoints ask for it

    def resolveHostName(self, receiver: Any, name: str, portNumber: int = 0, **_named: Any) -> object:
        receiver.resolutionBegan(self)
        receiver.addressResolved(IPv4Address("TCP", name, portNumber))
        receiver.resolutionComplete()
        return self

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None) -> Any:
        self.dialled.append((host, port))
        connector = Connector(self, factory)
        factory.doStart()
        factory.startedConnecting(connector)
        if not self.silent:
            self.callLater(0, connector.connect)
        return connector


class Connector:
    """One attempt to connect."""

    def __init__(self, reactor: Reactor, factory: Any) -> None:
        self.reactor = reactor
        self.factory = factory
        self.stopped = False

    def stopConnecting(self) -> None:
        self.stopped = True

    def getDestination(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 5672)

    def connect(self) -> None:
        if self.stopped:
            return
        if self.reactor.listener is None:
            self.factory.clientConnectionFailed(self, Failure(error.ConnectionRefusedError()))
        else:
            self.reactor.listener.accept(self.factory.buildProtocol(self.getDestination()))


# Messages on the broker's side --------------------------------------------------------------------


def encoded(properties: Any = None, **named: Any) -> bytes:
    """Encode properties by pika; what is bytes already stays as it is."""
    if isinstance(properties, bytes):
        return properties
    return b"".join((properties or pika.BasicProperties(**named)).encode())


@attrs.define(eq=False)
class Letter:
    """One message in a queue."""

    name: Any
    body: bytes
    properties: bytes
    exchange: str
    key: Any
    redelivered: bool = False
    place: int = 0
    """Where it was in its queue, and is again when it comes back."""


@attrs.define(eq=False)
class Published:
    """One message that the client has published."""

    chan: "Chan"
    number: int
    """Its number for confirms; 0 on a channel without."""
    exchange: str
    key: Any
    mandatory: bool
    raw: bytes
    body: bytes

    @property
    def properties(self) -> Any:
        return spec.BasicProperties().decode(self.raw)


class Queue:
    """A queue: what is ready, what was acked, what was rejected; it delivers as far as its consumers' prefetch goes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: deque[Letter] = deque()
        self.acked: list[Any] = []
        self.rejected: list[Any] = []
        self.consumers: list[tuple[Chan, str]] = []
        self._names = itertools.count(1)

    def put(
        self,
        body: bytes = b"{}",
        properties: Any = None,
        *,
        exchange: str = "",
        key: Any = None,
        name: Any = None,
        **named: Any,
    ) -> Letter:
        """Put in one message; `named` are its properties, `name` is what tests know it by."""
        letter = Letter(name, body, encoded(properties, **named), exchange, self.name if key is None else key)
        letter.place = next(self._names)
        letter.name = letter.place if name is None else name
        self.ready.append(letter)
        self.dispatch()
        return letter

    def dispatch(self) -> None:
        for chan, tag in self.consumers:
            while self.ready and chan.is_open and (not chan.prefetch or len(chan.unsettled) < chan.prefetch):
                chan.deliver(self.ready.popleft(), self, tag)

    def requeue(self, letters: Iterable[Letter]) -> None:
        for letter in letters:
            letter.redelivered = True
            self.ready.append(letter)
        self.ready = deque(sorted(self.ready, key=lambda letter: letter.place))


# The broker ---------------------------------------------------------------------------------------


class Broker:
    """What listens for connections; all its links share its queues and its story."""

    def __init__(self, reactor: Reactor, *, version: str | None = "4.0.5", frame_max: int = 131072) -> None:
        self.reactor = reactor
        self.frame_max = frame_max
        self.properties: dict[str, Any] = {"product": "RabbitMQ", "capabilities": dict(CAPABILITIES)}
        if version is not None:
            self.properties["version"] = version
        self.links: list[Link] = []
        self.queues: dict[str, Queue] = {}
        self.exchanges: set[str] = set()
        self.published: list[Published] = []
        self.story: list[str] = []
        """What clients sent and what was confirmed, in one line each, in order over all links."""
        self.silent: set[str] = set()
        """Methods that get no answer."""
        self.answers: dict[str, Callable[[Chan, Any], None]] = {}
        """Methods that a test answers itself."""
        self.confirms = True
        """Whether publications are confirmed at once; else the test does it."""
        self.probes = True
        """The same for rpcd's probes."""
        self.missing: set[Any] = set()
        """Routing keys that lead nowhere: what is mandatory comes back."""
        self.full: set[Any] = set()
        """Routing keys whose queue refuses: nacked."""
        self.pieces: Callable[[bytes], Iterable[bytes]] = lambda data: (data,)
        """How what is sent is cut."""

    def queue(self, name: str) -> Queue:
        return self.queues.setdefault(name, Queue(name))

    def accept(self, protocol: Any) -> "Link":
        link = Link(self, protocol)
        self.links.append(link)
        protocol.makeConnection(link)
        return link

    @property
    def live(self) -> list["Link"]:
        return [link for link in self.links if not link.is_lost]

    def routing_keys(self) -> list[Any]:
        """The routing keys of all publications but rpcd's probes, in order."""
        return [each.key for each in self.published if not str(each.key).startswith("rpcd.probe.")]

    def since(self, mark: int) -> list[str]:
        return self.story[mark:]


class Link:
    """One connection: the broker's side, and the transport of the client's protocol."""

    disconnecting = False

    def __init__(self, broker: Broker, protocol: Any) -> None:
        self.broker = broker
        self.protocol = protocol
        self.chans: dict[int, Chan] = {}
        self.is_lost = False
        self.no_delay = False
        self.closing = False
        """Whether this side has sent connection.close: everything but the answer is ignored."""
        self.stuck = False
        """A dead peer: the client's polite close leads nowhere, because its last bytes never leave."""
        self.deaf = False
        """What the client writes never arrives; once it is so, it stays so, for bytes are not lost in between."""
        self.fault: Exception | None = None
        """What the client's dataReceived raised."""
        self.start_ok: Any = None
        self.tune_ok: Any = None
        self.virtual_host: str | None = None
        self.heartbeats = 0
        self.written = b""
        """Everything that the client wrote."""
        self.methods: list[tuple[int, Any]] = []
        self.aborted = False
        self._in = b""
        self._out: list[bytes] = []
        self._flushing = False

    # As the client's transport

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        if self.is_lost or self.deaf:
            return
        self.written += data
        self._in += data
        self._read()

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def writeSequence(self, parts: Iterable[bytes]) -> None:
        self.write(b"".join(parts))

    def loseConnection(self) -> None:
        if not self.disconnecting:
            self.disconnecting = True
            if not self.stuck:
                self.broker.reactor.callLater(0, self.lose, error.ConnectionDone())

    def abortConnection(self) -> None:
        self.disconnecting = self.aborted = True
        self.broker.reactor.callLater(0, self.lose, error.ConnectionAborted())

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 5672)

    getHost = getPeer

    # Reading

    def _read(self) -> None:
        while self._in and not self.is_lost:
            if self._in.startswith(b"AMQP"):
                self._in = self._in[8:]
                self._answer(0, spec.Connection.Start(0, 9, self.broker.properties, "PLAIN EXTERNAL", "en_US"))
                continue
            if len(self._in) < HEADER.size:
                return
            kind, number, size = HEADER.unpack_from(self._in)
            if len(self._in) < HEADER.size + size + 1:
                return
            raw, self._in = self._in[: HEADER.size + size + 1], self._in[HEADER.size + size + 1 :]
            assert raw[-1:] == b"\xce", "the client wrote a frame without its end"
            if len(raw) > self.broker.frame_max:
                self.close(501, f"FRAME_ERROR - type {kind}, frame of {len(raw)} bytes exceeds the maximum")
            self._frame(kind, number, raw)

    def _frame(self, kind: int, number: int, raw: bytes) -> None:
        if kind == spec.FRAME_HEARTBEAT:
            self.heartbeats += 1
            return
        method = pika.frame.decode_frame(raw)[1].method if kind == spec.FRAME_METHOD else None
        if self.closing:
            if isinstance(method, spec.Connection.CloseOk):
                self.fin()
        elif number == 0:
            self.methods.append((0, method))
            self._connection_method(method)
        elif number not in self.chans and not isinstance(method, spec.Channel.Open):
            self.close(504, "CHANNEL_ERROR - expected 'channel.open'")
        else:
            if method is not None:
                self.methods.append((number, method))
            self.chans.setdefault(number, Chan(self, number)).frame(kind, method, raw)

    def _connection_method(self, method: Any) -> None:
        self.tell(method.NAME)
        if isinstance(method, spec.Connection.StartOk):
            self.start_ok = method
            self._answer(0, spec.Connection.Tune(2047, self.broker.frame_max, 60), method.NAME)
        elif isinstance(method, spec.Connection.TuneOk):
            self.tune_ok = method
        elif isinstance(method, spec.Connection.Open):
            self.virtual_host = method.virtual_host
            self._answer(0, spec.Connection.OpenOk(""), method.NAME)
        elif isinstance(method, spec.Connection.Close):
            self.give_back()
            self._answer(0, spec.Connection.CloseOk(), method.NAME)

    def _answer(self, number: int, method: Any, asked: str = "") -> None:
        if asked in self.broker.answers:
            self.broker.answers[asked](self, method)  # type: ignore[arg-type]
        elif asked not in self.broker.silent:
            self.method(number, method)

    def tell(self, line: str) -> None:
        self.broker.story.append(line)

    # Writing

    def method(self, number: int, method: Any) -> None:
        self.send(pika.frame.Method(number, method).marshal())

    def send(self, data: bytes) -> None:
        """Send in the reactor's next turn, with whatever else is sent in this one."""
        self._out.append(data)
        if not self._flushing:
            self._flushing = True
            self.broker.reactor.callLater(0, self.flush)

    def flush(self) -> None:
        self._flushing = False
        data, self._out = b"".join(self._out), []
        for piece in self.broker.pieces(data):
            if self.is_lost:
                return
            try:
                self.protocol.dataReceived(piece)
            except Exception as fault:  # noqa: BLE001  # Twisted drops such a connection, and says so
                self.fault = fault
                self.lose(fault)

    def heartbeat(self) -> None:
        self.send(pika.frame.Heartbeat().marshal())

    def blocked(self, reason: str = "low on memory") -> None:
        self.method(0, spec.Connection.Blocked(reason))

    def unblocked(self) -> None:
        self.method(0, spec.Connection.Unblocked())

    def close(self, code: int, text: str) -> None:
        """Close the connection, as the broker does it."""
        if not self.closing:
            self.closing = True
            self.give_back()
            self.method(0, spec.Connection.Close(code, text, 0, 0))

    # The end

    def fin(self) -> None:
        self.lose(error.ConnectionDone())

    def rst(self) -> None:
        self.lose(error.ConnectionLost())

    def lose(self, reason: Exception) -> None:
        """End the connection; what was not settled goes back to its queue."""
        if self.is_lost:
            return
        self.is_lost = True
        self.give_back()
        self.protocol.connectionLost(Failure(reason))

    def give_back(self) -> None:
        for chan in list(self.chans.values()):
            chan.end()
        self.chans.clear()

    @property
    def chan(self) -> "Chan":
        """The only open channel."""
        (found,) = [chan for chan in self.chans.values() if chan.is_open]
        return found

    @property
    def consuming(self) -> "Chan":
        """The channel that consumes."""
        (found,) = [chan for chan in self.chans.values() if chan.is_open and chan.consumers]
        return found


class Chan:
    """One channel on the broker's side."""

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.broker = link.broker
        self.number = number
        self.is_open = False
        self.confirming = False
        self.count = 0
        self.prefetch = 0
        self.unsettled: dict[int, tuple[Queue | None, Letter]] = {}
        self.consumers: dict[str, Queue] = {}
        self.last_tag = 0
        self.ignored = 0
        """Frames that came after this side had closed the channel."""
        self._publishing: list[Any] = []

    # Frames from the client

    def frame(self, kind: int, method: Any, raw: bytes) -> None:
        if isinstance(method, spec.Channel.Open):
            self.is_open = True
            self._answer(method, spec.Channel.OpenOk())
        elif not self.is_open:
            self._closed_frame(method)
        elif kind == spec.FRAME_METHOD:
            self._method(method)
        else:
            self._content(kind, raw)

    def _closed_frame(self, method: Any) -> None:
        if isinstance(method, spec.Channel.CloseOk):
            self.link.chans.pop(self.number, None)
        elif isinstance(method, spec.Channel.Close):
            self.reply(spec.Channel.CloseOk())
        else:
            self.ignored += 1

    def _method(self, method: Any) -> None:
        if isinstance(method, spec.Basic.Publish):
            self._publishing = [method]
        elif isinstance(method, spec.Basic.Ack):
            self._settle(method.delivery_tag, method.multiple, "ack")
        elif isinstance(method, spec.Basic.Nack):
            self._settle(method.delivery_tag, method.multiple, "requeue" if method.requeue else "reject")
        elif isinstance(method, spec.Basic.Reject):
            self._settle(method.delivery_tag, False, "requeue" if method.requeue else "reject")
        else:
            self.link.tell(method.NAME)
            self._ask(method)

    def _ask(self, method: Any) -> None:
        name = method.NAME
        if name in self.broker.answers:
            self.broker.answers[name](self, method)
        elif isinstance(method, spec.Basic.Consume):
            self.consume(method)
        elif isinstance(method, spec.Basic.Cancel):
            self._forget(method.consumer_tag)
            self._answer(method, spec.Basic.CancelOk(method.consumer_tag))
        elif isinstance(method, spec.Channel.Close):
            self._answer(method, spec.Channel.CloseOk())
            self.end()
            self.link.chans.pop(self.number, None)
        else:
            self._declare(method)

    def _declare(self, method: Any) -> None:
        if isinstance(method, spec.Basic.Qos):
            self.prefetch = method.prefetch_count
            self._answer(method, spec.Basic.QosOk())
        elif isinstance(method, spec.Queue.Declare):
            name = method.queue or f"amq.gen-{len(self.broker.queues)}"
            if method.passive and name not in self.broker.queues:
                self.close(404, f"NOT_FOUND - no queue '{name}' in vhost '/'")
            else:
                self.broker.queue(name)
                self._answer(method, spec.Queue.DeclareOk(name, 0, 0))
        elif isinstance(method, spec.Exchange.Declare):
            self.broker.exchanges.add(method.exchange)
            self._answer(method, spec.Exchange.DeclareOk())
        elif isinstance(method, spec.Confirm.Select):
            self.confirming = True
            self._answer(method, spec.Confirm.SelectOk())
        else:
            answer = {
                "Queue.Bind": spec.Queue.BindOk,
                "Queue.Unbind": spec.Queue.UnbindOk,
                "Queue.Delete": lambda: spec.Queue.DeleteOk(0),
                "Exchange.Delete": spec.Exchange.DeleteOk,
            }[method.NAME]
            self._answer(method, answer())

    def consume(self, method: Any) -> None:
        """Answer basic.consume and begin to deliver."""
        found = self.broker.queues.get(method.queue)
        if found is None:
            self.close(404, f"NOT_FOUND - no queue '{method.queue}' in vhost '/'")
            return
        self.consumers[method.consumer_tag] = found
        found.consumers.append((self, method.consumer_tag))
        self._answer(method, spec.Basic.ConsumeOk(method.consumer_tag))
        found.dispatch()

    def _forget(self, tag: str) -> None:
        found = self.consumers.pop(tag, None)
        if found is not None:
            found.consumers.remove((self, tag))

    def _answer(self, method: Any, answer: Any) -> None:
        if method.NAME not in self.broker.silent and not getattr(method, "nowait", False):
            self.reply(answer)

    def reply(self, method: Any) -> None:
        self.link.method(self.number, method)

    # Settling

    def _settle(self, tag: int, multiple: bool, fate: str) -> None:
        self.link.tell(f"{fate} {tag}{'+' if multiple else ''}")
        if tag not in self.unsettled:
            self.close(406, f"PRECONDITION_FAILED - unknown delivery tag {tag}")
            return
        touched: dict[Queue, list[Letter]] = {}
        for each in [other for other in self.unsettled if other <= tag] if multiple else [tag]:
            source, letter = self.unsettled.pop(each)
            if source is None:
                continue
            touched.setdefault(source, [])
            if fate == "requeue":
                touched[source].append(letter)
            else:
                (source.acked if fate == "ack" else source.rejected).append(letter.name)
        for source, letters in touched.items():
            source.requeue(letters)
            source.dispatch()

    def end(self) -> None:
        """Take back what is not settled."""
        self.is_open = False
        for tag in list(self.consumers):
            self._forget(tag)
        unsettled, self.unsettled = self.unsettled, {}
        for source in {source for source, _ in unsettled.values() if source is not None}:
            source.requeue([letter for owner, letter in unsettled.values() if owner is source])
            source.dispatch()

    # Content from the client

    def _content(self, kind: int, raw: bytes) -> None:
        inside = raw[HEADER.size : -1]
        self._publishing.append(inside)
        if kind == spec.FRAME_HEADER:
            assert len(self._publishing) == 2, "a content header without its method"
        _, _, size = CONTENT.unpack_from(self._publishing[1])
        if sum(map(len, self._publishing[2:])) < size:
            return
        method, header, *chunks = self._publishing
        self._publishing = []
        body = b"".join(chunks)
        assert len(body) == size, "a body longer than its header says"
        self.count += self.confirming
        published = Published(
            self,
            self.count if self.confirming else 0,
            method.exchange,
            method.routing_key,
            bool(method.mandatory),
            header[CONTENT.size :],
            body,
        )
        self.broker.published.append(published)
        self.link.tell(f"publish {'probe' if str(published.key).startswith('rpcd.probe.') else published.key}")
        self._route(published)

    def _route(self, published: Published) -> None:
        broker = self.broker
        if published.exchange and published.exchange not in broker.exchanges:
            self.close(404, f"NOT_FOUND - no exchange '{published.exchange}' in vhost '/'")
            return
        if published.key in broker.missing and published.mandatory:
            self.give_back(published)
        if published.key in broker.queues and not published.exchange and published.key not in broker.missing:
            broker.queues[published.key].put(published.body, published.raw, key=published.key)
        if self.confirming and (broker.probes if str(published.key).startswith("rpcd.probe.") else broker.confirms):
            self.confirm(published.number, taken=published.key not in broker.full)

    # To the client

    def deliver(self, letter: Letter, source: Queue | None = None, consumer_tag: str = "test") -> int:
        """Deliver one message and return its tag."""
        self.last_tag += 1
        self.unsettled[self.last_tag] = (source, letter)
        method = spec.Basic.Deliver(consumer_tag, self.last_tag, letter.redelivered, letter.exchange, letter.key)
        self.link.send(content(self.number, method, letter.properties, letter.body, self.broker.frame_max))
        return self.last_tag

    def give_back(self, published: Published, code: int = 312, text: str = "NO_ROUTE") -> None:
        """Return a publication."""
        method = spec.Basic.Return(code, text, published.exchange, published.key)
        self.link.send(content(self.number, method, published.raw, published.body, self.broker.frame_max))

    def confirm(self, number: int, *, multiple: bool = False, taken: bool = True) -> None:
        self.link.tell(f"{'confirm' if taken else 'refuse'} {number}{'+' if multiple else ''}")
        self.reply((spec.Basic.Ack if taken else spec.Basic.Nack)(number, multiple))

    def close(self, code: int, text: str) -> None:
        """Close the channel, as the broker does it."""
        if self.is_open:
            self.end()
            self.reply(spec.Channel.Close(code, text, 0, 0))

    def cancel(self) -> None:
        """Cancel the consumer, as the broker does when its queue is deleted."""
        (tag,) = self.consumers
        self._forget(tag)
        self.reply(spec.Basic.Cancel(tag, True))


def content(number: int, method: Any, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """Encode a method with its content, the body in as many frames as it needs."""
    return b"".join(content_frames(number, method, properties, body, frame_max))


def content_frames(number: int, method: Any, properties: bytes, body: bytes, frame_max: int) -> Iterator[bytes]:
    yield pika.frame.Method(number, method).marshal()
    yield raw_frame(spec.FRAME_HEADER, number, CONTENT.pack(60, 0, len(body)) + properties)
    room = frame_max - 8
    for start in range(0, len(body), room):
        yield raw_frame(spec.FRAME_BODY, number, body[start : start + room])


def raw_frame(kind: int, number: int, inside: bytes) -> bytes:
    return HEADER.pack(kind, number, len(inside)) + inside + b"\xce"


def in_pieces(sizes: Iterable[int]) -> Callable[[bytes], Iterator[bytes]]:
    """Cut what is sent into pieces of these sizes, over and over."""
    endless = itertools.cycle(sizes)

    def cut(data: bytes) -> Iterator[bytes]:
        offset = 0
        while offset < len(data):
            size = next(endless)
            yield data[offset : offset + size]
            offset += size

    return cut
