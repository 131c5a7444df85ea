"""One connection from its handshake to its end, whatever that end is; the cause is kept and everyone is told once."""

import struct
from collections.abc import Callable
from typing import Any

import attrs
import pika.exceptions
import pytest
from amqp_rig import ADDRESS, connected
from amqp_wire import Broker, Letter, Link, Reactor, encoded, in_pieces
from OpenSSL import SSL
from pika import spec
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost as SocketLost

from rpcd.amqp import port
from rpcd.amqp.channel import Channel
from rpcd.amqp.declare import carry_out
from rpcd.amqp.port import ABORT_AFTER, BLOCKED_TIMEOUT, PRIVATE, AmqpProtocol, make_protocol, translate
from rpcd.amqp.waiting import WaitTooLong, bounded
from rpcd.core.errors import BrokerRefused, ChannelClosed, ConnectionLost, ExitCode, LoginRefused
from rpcd.core.outgoing import Outgoing
from rpcd.core.settings import Tls
from rpcd.core.topology import DeclareQueue

Results = Callable[[Deferred[Any]], list[Any]]


class Witness:
    """Everything that waits on a connection: each is to be told of its end exactly once."""

    def __init__(self, protocol: AmqpProtocol, channel: Channel, results: Results) -> None:
        self.lost: list[Exception] = []
        self.closed: list[Exception] = []
        protocol.when_lost(self.lost.append)
        channel.when_closed(self.closed.append)
        self.call = results(channel.call("queue_declare", queue="q"))
        self.second = results(channel.call("basic_qos", prefetch_count=1))
        self.opening = results(protocol.open_channel())

    def has_seen_the_end(self) -> Exception:
        """Assert that everyone was told once, and return the connection's cause."""
        assert len(self.lost) == 1
        assert len(self.closed) == 1
        for ends in (self.call, self.second, self.opening):
            assert len(ends) == 1
            assert isinstance(ends[0], ConnectionLost | LoginRefused)
        return self.lost[0]


@pytest.fixture
def witness(protocol: AmqpProtocol, channel: Channel, broker: Broker, results: Results) -> Witness:
    """A connection that is in the middle of three things."""
    broker.silent |= {"Queue.Declare", "Basic.Qos", "Channel.Open"}
    made = Witness(protocol, channel, results)
    assert made.call == made.second == made.opening == []
    return made


# The handshake ------------------------------------------------------------------------------------


def test_the_handshake(protocol: AmqpProtocol, link: Link) -> None:
    assert link.start_ok.mechanism == "PLAIN"
    assert link.start_ok.response == b"\0shop\0secret"
    said = link.start_ok.client_properties
    assert said["product"] == "rpcd"
    assert said["connection_name"] == "rpcd test"
    assert said["version"] == "0.1"
    assert link.virtual_host == "/shop"
    assert (link.tune_ok.frame_max, link.tune_ok.heartbeat) == (131072, 0)
    assert protocol.is_lost is False
    assert protocol.reason is None


def test_a_client_certificate_logs_in_by_external(broker: Broker) -> None:
    tls = Tls(certificate="c.pem", key="k.pem")
    connected(broker, attrs.evolve(ADDRESS, tls=tls))
    assert broker.links[0].start_ok.mechanism == "EXTERNAL"


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("4.0.5", (4, 0, 5)), ("3.13.0-rc.1", (3, 13)), ("4.1.0+12.gabc", (4, 1)), (None, ()), ("unknown", ())],
)
def test_the_brokers_version(reactor: Reactor, version: str | None, numbers: tuple[int, ...]) -> None:
    assert connected(Broker(reactor, version=version)).broker_version == numbers


@pytest.mark.parametrize("size", [*range(1, 8), 64])
def test_a_whole_life_in_small_pieces(reactor: Reactor, size: int, results: Results) -> None:
    broker = Broker(reactor)
    broker.pieces = in_pieces([size])
    protocol = connected(broker)
    opened = results(protocol.open_channel())
    reactor.run()
    declared = results(opened[0].call("queue_declare", queue="q"))
    reactor.run()
    assert declared[0].queue == "q"
    left = results(protocol.leave())
    reactor.run()
    assert left == [None]
    assert broker.links[0].fault is None


@pytest.mark.parametrize(
    ("asked", "code", "text"),
    [
        ("Connection.StartOk", 403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN"),
        ("Connection.Open", 530, "NOT_ALLOWED - vhost /shop not found"),
        ("Connection.Open", 530, "NOT_ALLOWED - access to vhost '/shop' refused for user 'shop'"),
    ],
)
def test_a_refused_login_keeps_the_brokers_words(
    reactor: Reactor, results: Results, asked: str, code: int, text: str
) -> None:
    broker = Broker(reactor)
    broker.answers[asked] = lambda link, _answer: link.close(code, text)
    protocol = make_protocol(ADDRESS, "test", "0.1", reactor)
    lost: list[Exception] = []
    protocol.when_lost(lost.append)
    assert protocol.ready is not None
    ready = results(protocol.ready)
    broker.accept(protocol)
    reactor.run()
    assert len(ready) == 1
    assert isinstance(ready[0], Exception)
    assert isinstance(lost[0], LoginRefused)
    assert lost[0].exit_code == ExitCode.NOPERM
    assert f"{code} {text}" in str(lost[0])
    assert protocol.cause() is not None


def test_a_broker_that_speaks_another_version(reactor: Reactor, results: Results) -> None:
    broker = Broker(reactor)
    protocol = make_protocol(ADDRESS, "test", "0.1", reactor)
    assert protocol.ready is not None
    ready = results(protocol.ready)
    link = Link(broker, protocol)
    link.deaf = True
    protocol.makeConnection(link)
    link.send(b"AMQP\x00\x01\x00\x00")
    reactor.run()
    link.fin()
    assert len(ready) == 1
    assert isinstance(protocol.cause(), ConnectionLost)


def test_bytes_that_are_no_amqp_end_the_connection(protocol: AmqpProtocol, link: Link, witness: Witness) -> None:
    link.send(struct.pack(">BHI", 7, 0, 4) + b"junk\xce")
    protocol.clock.run()
    assert link.is_lost
    assert "frame type" in str(witness.has_seen_the_end())


def test_every_private_name_of_pika_is_there(protocol: AmqpProtocol) -> None:
    for name in PRIVATE:
        assert hasattr(protocol._impl, name), name


def test_a_pika_without_a_private_name_is_refused_at_once(reactor: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "PRIVATE", (*PRIVATE, "_gone_in_the_next_release"))
    with pytest.raises(RuntimeError, match="_gone_in_the_next_release"):
        make_protocol(ADDRESS, "test", "0.1", reactor)


# Every way to end ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", ConnectionLost),
        (403, "ACCESS_REFUSED - user 'shop' was deleted", LoginRefused),
        (501, "FRAME_ERROR - too big", ConnectionLost),
        (530, "NOT_ALLOWED - vhost '/shop' is gone", LoginRefused),
        (541, "INTERNAL_ERROR", ConnectionLost),
    ],
)
def test_a_close_by_the_broker_keeps_code_and_words(
    protocol: AmqpProtocol, link: Link, witness: Witness, code: int, text: str, kind: type[Exception]
) -> None:
    link.close(code, text)
    protocol.clock.run()
    cause = witness.has_seen_the_end()
    assert type(cause) is kind
    assert f"{code} {text}" in str(cause)
    assert not isinstance(cause, ConnectionLost) or cause.code == code


@pytest.mark.parametrize("code", [320, 541])
def test_channels_and_calls_learn_the_code_too(link: Link, witness: Witness, reactor: Reactor, code: int) -> None:
    link.close(code, "TEXT")
    reactor.run()
    witness.has_seen_the_end()
    told = (witness.closed[0], witness.call[0], witness.second[0], witness.opening[0])
    assert [getattr(reason, "code", None) for reason in told] == [code] * 4


def test_a_declaration_that_costs_the_connection_is_a_mistake_to_mend(
    protocol: AmqpProtocol, broker: Broker, reactor: Reactor, results: Results
) -> None:
    broker.answers["Queue.Declare"] = lambda chan, _method: chan.link.close(540, "NOT_IMPLEMENTED - no such argument")
    queue = DeclareQueue("queues.q", "q", True, False, False, False, {})
    ends = results(Deferred.fromCoroutine(carry_out(protocol, [queue])))
    reactor.run()
    assert isinstance(ends[0], BrokerRefused)
    assert ends[0].exit_code == ExitCode.CONFIG
    assert "540 NOT_IMPLEMENTED" in str(ends[0])


def test_fin(link: Link, witness: Witness) -> None:
    link.fin()
    said = "the connection was lost (the other side closed it without goodbye)"
    assert str(witness.has_seen_the_end()) == said


def test_rst(link: Link, witness: Witness) -> None:
    link.rst()
    assert str(witness.has_seen_the_end()) == "the connection was lost (the other side cut it off)"


@pytest.mark.parametrize(
    ("first", "tls"),
    [(b"\x15\x03\x01\x00\x02\x02\x0a", True), (b"", False), (b"\x01\x00\x00", False)],
)
@pytest.mark.parametrize("end", ["fin", "rst"])
def test_a_port_that_answers_in_tls(reactor: Reactor, results: Results, first: bytes, tls: bool, end: str) -> None:
    protocol = make_protocol(ADDRESS, "test", "0.1", reactor)
    assert protocol.ready is not None
    ready = results(protocol.ready)
    link = Link(Broker(reactor), protocol)
    link.deaf = True
    protocol.makeConnection(link)
    link.send(first)
    reactor.run()
    getattr(link, end)()
    assert len(ready) == 1
    said = "the port answers in TLS; write amqps:// (usually port 5671), or use the plain port (usually 5672)"
    assert (str(protocol.cause()) == said) is tls


def test_small_frames_leave_at_once(protocol: AmqpProtocol, link: Link) -> None:
    assert not protocol.is_lost
    assert link.no_delay is True


def test_a_cut_in_the_middle_of_a_frame(protocol: AmqpProtocol, link: Link, witness: Witness) -> None:
    protocol.dataReceived(b"\x01\x00\x01\x00\x00\x00\x20half")
    link.rst()
    witness.has_seen_the_end()


def test_silence_beyond_the_heartbeat(reactor: Reactor, results: Results) -> None:
    broker = Broker(reactor)
    protocol = connected(broker, attrs.evolve(ADDRESS, heartbeat=4))
    lost: list[Exception] = []
    protocol.when_lost(lost.append)
    reactor.pass_time(17.5)  # T16: the first interval counts what came with the handshake
    assert lost == []
    assert broker.links[0].heartbeats == 8
    reactor.pass_time(1.0)
    assert [str(reason) for reason in lost] == ["the broker's heartbeats stopped"]


def test_a_dead_peer_that_can_not_be_closed_politely_is_cut(reactor: Reactor) -> None:
    broker = Broker(reactor)
    protocol = connected(broker, attrs.evolve(ADDRESS, heartbeat=4))
    broker.links[0].stuck = True
    lost: list[Exception] = []
    protocol.when_lost(lost.append)
    reactor.pass_time(18.0)
    assert lost == []
    reactor.pass_time(ABORT_AFTER - 0.5)
    assert lost == []
    reactor.pass_time(1.0)
    assert broker.links[0].aborted
    assert [str(reason) for reason in lost] == ["the broker's heartbeats stopped"]


def test_heartbeats_keep_a_quiet_connection(reactor: Reactor) -> None:
    broker = Broker(reactor)
    protocol = connected(broker, attrs.evolve(ADDRESS, heartbeat=4))
    for _ in range(20):
        broker.links[0].heartbeat()
        reactor.pass_time(2.0)
    assert not protocol.is_lost


def test_deliveries_alone_keep_a_connection(reactor: Reactor, results: Results) -> None:
    broker = Broker(reactor)
    protocol = connected(broker, attrs.evolve(ADDRESS, heartbeat=4))
    opened = results(protocol.open_channel())
    reactor.run()
    opened[0].consume(broker.queue("q").name, "tag", lambda *_parts: None, False, {})
    reactor.run()
    for _ in range(20):
        broker.queues["q"].put(b"x")
        reactor.pass_time(2.0)
    assert not protocol.is_lost


def test_a_block_that_lasts_too_long(protocol: AmqpProtocol, link: Link, witness: Witness, reactor: Reactor) -> None:
    link.blocked()
    reactor.pass_time(BLOCKED_TIMEOUT - 1, 10.0)
    assert not protocol.is_lost
    reactor.pass_time(2.0)
    assert "blocked the connection for 300 s" in str(witness.has_seen_the_end())


def test_a_block_that_ends_in_time(protocol: AmqpProtocol, link: Link, reactor: Reactor) -> None:
    said: list[str | None] = []
    protocol.on_blocked = said.append  # type: ignore[method-assign]
    link.blocked("low on disk")
    reactor.run()
    assert protocol.blocked == "low on disk"
    link.unblocked()
    reactor.run()
    assert protocol.blocked is None
    assert said == ["low on disk", None]
    reactor.pass_time(2 * BLOCKED_TIMEOUT, 10.0)
    assert not protocol.is_lost


def test_a_close_by_the_broker_whose_end_never_comes_is_cut(link: Link, witness: Witness, reactor: Reactor) -> None:
    link.stuck = True
    link.close(320, "CONNECTION_FORCED")
    reactor.pass_time(ABORT_AFTER - 0.5)
    assert witness.lost == []
    reactor.pass_time(1.0)
    assert link.aborted
    assert "320 CONNECTION_FORCED" in str(witness.has_seen_the_end())


# Leaving and aborting -----------------------------------------------------------------------------


def test_leaving_closes_channels_then_the_connection(
    protocol: AmqpProtocol, channel: Channel, link: Link, broker: Broker, reactor: Reactor, results: Results
) -> None:
    closed: list[Exception] = []
    channel.when_closed(closed.append)
    left = results(protocol.leave())
    assert left == []
    reactor.run()
    assert broker.story[-2:] == ["Channel.Close", "Connection.Close"]
    assert left == [None]
    assert len(closed) == 1
    assert not link.aborted
    assert isinstance(protocol.cause(), ConnectionLost)


@pytest.mark.parametrize("unanswered", ["Channel.Close", "Connection.Close"])
def test_a_close_that_is_not_answered_is_cut(
    protocol: AmqpProtocol,
    channel: Channel,
    link: Link,
    broker: Broker,
    reactor: Reactor,
    results: Results,
    unanswered: str,
) -> None:
    broker.silent.add(unanswered)
    closed: list[Exception] = []
    channel.when_closed(closed.append)
    left = results(protocol.leave())
    reactor.pass_time(ABORT_AFTER - 0.5)
    assert left == []
    reactor.pass_time(1.0)
    assert left == [None]
    assert link.aborted
    assert len(closed) == 1
    assert str(protocol.cause()) == "closing took too long"


def test_leaving_twice_and_aborting_twice_is_harmless(
    protocol: AmqpProtocol, link: Link, broker: Broker, reactor: Reactor, results: Results
) -> None:
    lost: list[Exception] = []
    protocol.when_lost(lost.append)
    first, second = results(protocol.leave()), results(protocol.leave())
    protocol.abort(ConnectionLost("first"))
    protocol.abort(ConnectionLost("second"))
    reactor.run()
    assert first == second == [None]
    assert [str(reason) for reason in lost] == ["first"]
    protocol.abort(ConnectionLost("third"))
    third = results(protocol.leave())
    assert third == [None]
    reactor.pass_time(10.0)
    assert len(lost) == 1
    assert reactor.getDelayedCalls() == []


def test_leaving_before_the_handshake_is_done(reactor: Reactor, results: Results) -> None:
    broker = Broker(reactor)
    broker.silent.add("Connection.StartOk")
    protocol = make_protocol(ADDRESS, "test", "0.1", reactor)
    assert protocol.ready is not None
    ready = results(protocol.ready)
    broker.accept(protocol)
    reactor.run()
    left = results(protocol.leave())
    reactor.run()
    assert left == [None]
    assert len(ready) == 1
    assert isinstance(ready[0], Exception)


def test_an_abort_keeps_the_first_reason(protocol: AmqpProtocol, witness: Witness, reactor: Reactor) -> None:
    protocol.abort(ConnectionLost("it consumed nothing"))
    protocol.abort(ConnectionLost("something else"))
    assert witness.lost == []
    reactor.run()
    assert str(witness.has_seen_the_end()) == "it consumed nothing"


def test_who_asks_after_the_end_is_told_at_once(protocol: AmqpProtocol, link: Link) -> None:
    link.close(320, "CONNECTION_FORCED")
    protocol.clock.run()
    late: list[Exception] = []
    protocol.when_lost(late.append)
    assert [getattr(reason, "code", None) for reason in late] == [320]


def test_channels_are_told_before_the_connections_own(protocol: AmqpProtocol, channel: Channel, link: Link) -> None:
    order: list[str] = []
    protocol.when_lost(lambda _reason: order.append("connection"))
    channel.when_closed(lambda _reason: order.append("channel"))
    link.rst()
    assert order == ["channel", "connection"]


# Opening channels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["fin", "rst", "close"])
def test_opening_a_channel_after_the_end_fails_with_its_cause(
    protocol: AmqpProtocol, link: Link, reactor: Reactor, results: Results, end: str
) -> None:
    link.close(320, "CONNECTION_FORCED") if end == "close" else getattr(link, end)()
    reactor.run()
    (error,) = results(protocol.open_channel())
    assert isinstance(error, ConnectionLost), repr(error)
    assert str(error) == str(protocol.cause())


def test_opening_a_channel_while_leaving_fails(protocol: AmqpProtocol, reactor: Reactor, results: Results) -> None:
    left = results(protocol.leave())
    ends = results(protocol.open_channel())
    reactor.run()
    assert left == [None]
    assert len(ends) == 1
    assert isinstance(ends[0], ConnectionLost)


def test_a_channel_that_opens_too_late_is_nobodys(
    protocol: AmqpProtocol, link: Link, broker: Broker, reactor: Reactor, results: Results
) -> None:
    broker.silent.add("Channel.Open")
    ends = results(bounded(protocol.open_channel(), 5.0, reactor, "opening a channel"))
    reactor.pass_time(6.0)
    assert isinstance(ends[0], WaitTooLong)
    link.method(1, spec.Channel.OpenOk())
    reactor.run()
    link.rst()
    assert protocol.is_lost


def test_channel_numbers_are_used_again(protocol: AmqpProtocol, reactor: Reactor, results: Results) -> None:
    numbers = []
    for _ in range(3):
        opened = results(protocol.open_channel())
        reactor.run()
        numbers.append(opened[0].number)
        opened[0].close()
        reactor.run()
    assert numbers == [1, 1, 1]


# pika's traps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["timed out", "cancelled"])
def test_t1_a_late_answer_is_ignored_and_everything_still_ends(
    protocol: AmqpProtocol, channel: Channel, link: Link, broker: Broker, reactor: Reactor, results: Results, end: str
) -> None:
    broker.silent.add("Queue.Declare")
    call = channel.call("queue_declare", queue="slow")
    if end == "timed out":
        first = results(bounded(call, 5.0, reactor, "declaring"))
        reactor.pass_time(6.0)
        assert isinstance(first[0], WaitTooLong)
    else:
        first = results(call)
        call.cancel()
        assert len(first) == 1
    waiting = results(channel.call("basic_qos", prefetch_count=3))
    link.chans[1].reply(spec.Queue.DeclareOk("slow", 0, 0))
    reactor.run()
    assert len(waiting) == 1
    assert waiting[0].NAME == "Basic.QosOk"
    assert len(first) == 1
    broker.silent.add("Basic.Qos")
    last = results(channel.call("basic_qos", prefetch_count=4))
    closed: list[Exception] = []
    lost: list[Exception] = []
    channel.when_closed(closed.append)
    protocol.when_lost(lost.append)
    link.rst()
    assert (len(last), len(closed), len(lost)) == (1, 1, 1)


def test_t1_a_timed_out_call_whose_answer_never_comes(
    protocol: AmqpProtocol, channel: Channel, link: Link, broker: Broker, reactor: Reactor, results: Results
) -> None:
    broker.silent.add("Queue.Declare")
    results(bounded(channel.call("queue_declare", queue="slow"), 5.0, reactor, "declaring"))
    behind = results(channel.call("basic_qos", prefetch_count=3))
    reactor.pass_time(6.0)
    closed: list[Exception] = []
    channel.when_closed(closed.append)
    link.chans[1].close(406, "PRECONDITION_FAILED - other arguments")
    reactor.run()
    assert len(closed) == 1
    assert isinstance(behind[0], ChannelClosed)
    assert not protocol.is_lost


def test_t9_hostile_headers_of_a_return_do_not_end_the_connection(
    protocol: AmqpProtocol, channel: Channel, link: Link, reactor: Reactor
) -> None:
    """A copy carries an application's headers as they came; when it comes back, they pass through pika."""
    returned: list[Any] = []
    channel.when_returned(lambda *parts: returned.append(parts))
    for table in (b"\x01nd" + struct.pack(">d", float("nan")), b"\x01tT" + struct.pack(">Q", 2**63)):
        raw = struct.pack(">H", 1 << 13 | 1 << 7) + struct.pack(">I", len(table)) + table + b"\x02id"
        channel.publish(Outgoing("", "gone", b"body", raw, mandatory=True))
        link.chans[1].give_back(link.broker.published[-1])
    reactor.run()
    assert link.fault is None
    assert [parts[4].message_id for parts in returned] == ["id", "id"]


def test_t9_hostile_headers_of_a_delivery_through_pika_do_not_end_the_connection(
    channel: Channel, link: Link, reactor: Reactor
) -> None:
    """The channel of a caller reads replies through pika; whoever answers may write any headers."""
    got: list[Any] = []
    channel.call("basic_consume", queue=link.broker.queue("q").name, on_message_callback=lambda *parts: got.append(parts))
    reactor.run()
    raw = struct.pack(">HI", 1 << 13, 11) + b"\x01tT" + struct.pack(">Q", 2**63)
    link.chans[1].deliver(Letter("a", b"x", raw, "", "q"), None, next(iter(link.chans[1].consumers)))
    link.chans[1].deliver(Letter("b", b"y", encoded(), "", "q"), None, next(iter(link.chans[1].consumers)))
    reactor.run()
    assert link.fault is None
    assert [parts[3] for parts in got] == [b"x", b"y"]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (pika.exceptions.ChannelClosedByBroker(404, "NOT_FOUND"), ChannelClosed, "404 NOT_FOUND"),
        (pika.exceptions.ConnectionClosedByBroker(320, "FORCED"), ConnectionLost, "320 FORCED"),
        (pika.exceptions.ConnectionClosedByBroker(403, "NO"), LoginRefused, "403 NO"),
        (pika.exceptions.ChannelClosedByClient(200, "x"), ConnectionLost, "closed by rpcd"),
        (pika.exceptions.ConnectionClosedByClient(200, "x"), ConnectionLost, "closed by rpcd"),
        (pika.exceptions.AuthenticationError("PLAIN"), LoginRefused, "PLAIN"),
        (pika.exceptions.ProbableAuthenticationError("x"), LoginRefused, "refused the login"),
        (pika.exceptions.AMQPHeartbeatTimeout("x"), ConnectionLost, "heartbeats"),
        (pika.exceptions.ConnectionBlockedTimeout("x"), ConnectionLost, "blocked"),
        (SocketLost("reset"), ConnectionLost, "the connection was lost (the other side cut it off: reset)"),
        (SSL.Error([("SSL routines", "", "wrong version number")]), ConnectionLost, "probably doesn't speak TLS"),
        (SSL.Error([("SSL routines", "", "record layer failure")]), ConnectionLost, "probably doesn't speak TLS"),
        (SSL.Error([("SSL routines", "", "no suites")]), ConnectionLost, "TLS failed: no suites"),
        (SSL.SysCallError(-1, "Unexpected EOF"), ConnectionLost, "TLS failed: Unexpected EOF"),
        (ValueError(), ConnectionLost, "ValueError"),
    ],
)
def test_every_reason_becomes_one_of_ours(error: Exception, kind: type[Exception], said: str) -> None:
    translated = translate(error)
    assert type(translated) is kind
    assert said in str(translated)
    assert translate(translated) is translated
