"""One channel: every call ends, every end is told once, and what is written is what pika would have written."""

from collections.abc import Callable
from typing import Any

import pika.frame
import pytest
from amqp_rig import connected
from amqp_wire import Broker, Letter, Link, Reactor, encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import spec
from twisted.internet.defer import Deferred

from rpcd.amqp.channel import Channel
from rpcd.amqp.port import AmqpProtocol
from rpcd.core.errors import ChannelClosed, ConnectionLost, ConsumerCancelled
from rpcd.core.outgoing import Outgoing
from rpcd.core.wire import Properties, ack_frame, nack_frame, publish_frames, write_properties

Results = Callable[[Deferred[Any]], list[Any]]

STEADY = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def consume(channel: Channel, link: Link, results: Results, name: str = "q") -> tuple[list[Any], list[Any]]:
    """Start a consumer; return what its start ended with and what it was delivered."""
    got: list[Any] = []
    link.broker.queue(name)
    started = results(channel.consume(name, "tag", lambda *parts: got.append(parts), False, {}))
    return started, got


# Calls --------------------------------------------------------------------------------------------


def test_a_call_returns_the_brokers_answer(channel: Channel, reactor: Reactor, results: Results) -> None:
    declared = results(channel.call("queue_declare", queue="", exclusive=True))
    bound = results(channel.call("queue_bind", queue="q", exchange="x", routing_key="k"))
    reactor.run()
    assert declared[0].queue.startswith("amq.gen-")
    assert bound[0].NAME == "Queue.BindOk"


def test_calls_fail_with_the_brokers_code_and_text(
    channel: Channel, link: Link, broker: Broker, reactor: Reactor, results: Results
) -> None:
    closed: list[Exception] = []
    channel.when_closed(closed.append)
    first = results(channel.call("queue_declare", queue="none", passive=True))
    second = results(channel.call("basic_qos", prefetch_count=1))
    reactor.run()
    for ends in (first, second, closed):
        assert len(ends) == 1
        assert isinstance(ends[0], ChannelClosed)
        assert (ends[0].code, ends[0].text) == (404, "NOT_FOUND - no queue 'none' in vhost '/'")
    assert not channel.is_open
    assert broker.live == [link]


def test_a_call_on_a_closed_channel_fails_with_the_reason_of_its_end(
    channel: Channel, link: Link, reactor: Reactor, results: Results
) -> None:
    link.chan.close(406, "PRECONDITION_FAILED - it was")
    reactor.run()
    for name, arguments in (("queue_declare", {"queue": "q"}), ("basic_qos", {"prefetch_count": 1})):
        (error,) = results(channel.call(name, **arguments))
        assert isinstance(error, ChannelClosed)
        assert error.text == "PRECONDITION_FAILED - it was"
    late: list[Exception] = []
    channel.when_closed(late.append)
    assert len(late) == 1


def test_what_pika_refuses_fails_and_does_not_raise(channel: Channel, link: Link, results: Results) -> None:
    (error,) = results(channel.call("queue_declare", queue=17))
    assert isinstance(error, Exception)
    link.rst()


def test_calls_on_a_lost_connection_fail(channel: Channel, link: Link, results: Results) -> None:
    pending = results(channel.call("queue_declare", queue="q"))
    link.rst()
    after = results(channel.call("queue_declare", queue="q"))
    assert isinstance(pending[0], ConnectionLost)
    assert isinstance(after[0], ConnectionLost)


# Consuming ----------------------------------------------------------------------------------------


def test_a_consumer_says_what_was_asked(channel: Channel, link: Link, reactor: Reactor, results: Results) -> None:
    link.broker.queue("q")
    started = results(channel.consume("q", "my tag", lambda *_parts: None, True, {"x-priority": 5}))
    reactor.run()
    assert started[0].consumer_tag == "my tag"
    (asked,) = [method for _, method in link.methods if isinstance(method, spec.Basic.Consume)]
    assert (asked.queue, asked.exclusive, asked.no_ack, asked.arguments) == ("q", True, False, {"x-priority": 5})
    assert channel.consumer_tags == ["my tag"]


def test_a_delivery_in_the_same_chunk_as_consume_ok(
    channel: Channel, link: Link, reactor: Reactor, results: Results
) -> None:
    link.broker.queue("q").put(b"waiting", message_id="m")
    chunks: list[bytes] = []
    link.broker.pieces = lambda data: [chunks.append(data) or data]  # type: ignore[func-returns-value]
    started, got = consume(channel, link, results)
    reactor.run()
    assert len(chunks) == 1
    assert len(started) == 1
    ((tag, again, exchange, key, properties, body),) = got
    assert (tag, again, exchange, key, properties.message_id, body) == (1, False, "", "q", "m", b"waiting")


def test_a_delivery_in_the_same_chunk_as_the_channels_end(
    channel: Channel, link: Link, reactor: Reactor, results: Results
) -> None:
    _, got = consume(channel, link, results)
    reactor.run()
    closed: list[Exception] = []
    channel.when_closed(lambda reason: closed.append((len(got), reason)))  # type: ignore[arg-type]
    chan = link.chan
    chan.deliver(Letter(1, b"last", encoded(), "", "q"))
    chan.close(406, "PRECONDITION_FAILED - delivery acknowledgement timed out")
    reactor.run()
    assert [parts[5] for parts in got] == [b"last"]
    assert closed[0][0] == 1  # type: ignore[index]


def test_the_brokers_cancel_counts_as_the_end(
    channel: Channel, link: Link, broker: Broker, reactor: Reactor, results: Results
) -> None:
    consume(channel, link, results, "orders")
    reactor.run()
    broker.silent.add("Queue.Declare")
    pending = results(channel.call("queue_declare", queue="x"))
    closed: list[Exception] = []
    channel.when_closed(closed.append)
    link.chan.cancel()
    reactor.run()
    assert [type(reason) for reason in closed] == [ConsumerCancelled]
    assert "'orders'" in str(closed[0])
    assert [type(reason) for reason in pending] == [ConsumerCancelled]
    link.chans[1].reply(spec.Queue.DeclareOk("x", 0, 0))
    reactor.run()
    link.rst()
    assert (len(closed), len(pending)) == (1, 1)
    assert channel.reason is closed[0]


def test_a_call_made_after_the_brokers_cancel_ends_as_well(
    channel: Channel, link: Link, broker: Broker, reactor: Reactor, results: Results
) -> None:
    consume(channel, link, results)
    reactor.run()
    link.chan.cancel()
    reactor.run()
    broker.silent.add("Queue.Declare")
    late = results(channel.call("queue_declare", queue="x"))
    link.rst()
    assert len(late) == 1


def test_a_cancel_that_the_broker_has_been_quicker_with_ends(
    channel: Channel, link: Link, broker: Broker, reactor: Reactor, results: Results
) -> None:
    consume(channel, link, results)
    reactor.run()
    link.chan.cancel()
    broker.silent.add("Basic.Cancel")
    cancelled = results(channel.call("basic_cancel", consumer_tag="tag"))
    reactor.run()
    link.rst()
    assert len(cancelled) == 1


# Closing ------------------------------------------------------------------------------------------


def test_a_close_that_is_answered_proves_that_the_acks_were_read(
    channel: Channel, link: Link, broker: Broker, reactor: Reactor, results: Results
) -> None:
    for name in ("a", "b"):
        broker.queue("q").put(name=name)
    consume(channel, link, results)
    reactor.run()
    channel.ack([(1, False), (2, False)])
    broker.answers["Channel.Close"] = lambda _chan, _method: None
    closed = results(channel.close())
    reactor.run()
    assert closed == []
    assert broker.story[-4:] == ["ack 1", "ack 2", "Basic.Cancel", "Channel.Close"]
    assert broker.queues["q"].acked == ["a", "b"]
    link.chans[1].reply(spec.Channel.CloseOk())
    reactor.run()
    assert closed == [None]


def test_closing_twice_and_after_the_end(channel: Channel, link: Link, reactor: Reactor, results: Results) -> None:
    first, second = results(channel.close()), results(channel.close())
    assert first == second == []
    reactor.run()
    assert first == second == [None]
    assert results(channel.close()) == [None]
    link.rst()
    assert results(channel.close()) == [None]


def test_both_sides_close_at_once(channel: Channel, link: Link, reactor: Reactor, results: Results) -> None:
    reasons: list[Exception] = []
    channel.when_closed(reasons.append)
    link.chan.close(406, "PRECONDITION_FAILED - crossing")
    closed = results(channel.close())
    reactor.run()
    assert closed == [None]
    assert len(reasons) == 1
    assert not link.is_lost


def test_a_close_behind_a_call_that_is_never_answered_ends_with_the_connection(
    channel: Channel, link: Link, broker: Broker, reactor: Reactor, results: Results
) -> None:
    broker.silent.add("Queue.Declare")
    pending = results(channel.call("queue_declare", queue="q"))
    closed = results(channel.close())
    reactor.run()
    assert closed == pending == []
    link.fin()
    assert closed == [None]
    assert isinstance(pending[0], ConnectionLost)


def test_a_close_on_a_lost_connection_is_done(channel: Channel, link: Link, results: Results) -> None:
    closed = results(channel.close())
    link.rst()
    assert closed == [None]


# What is written ----------------------------------------------------------------------------------


def outgoing(key: Any = "k", body: bytes = b"", exchange: str = "", *, mandatory: bool = False, **named: Any) -> Outgoing:
    return Outgoing(exchange, key, body, write_properties(Properties(**named)), mandatory=mandatory)


SHORT = st.text(max_size=60)


@STEADY
@given(
    number=st.integers(1, 65535),
    exchange=SHORT,
    key=SHORT,
    mandatory=st.booleans(),
    body=st.binary(max_size=40),
    times=st.sampled_from([0, 1, 101, 102, 103, 204, 205, 500]),
    correlation=st.none() | SHORT,
    mode=st.none() | st.integers(1, 2),
)
def test_publications_are_what_pika_reads(
    number: int, exchange: str, key: str, mandatory: bool, body: bytes, times: int, correlation: str | None, mode: int | None
) -> None:
    reactor = Reactor()
    broker = Broker(reactor, frame_max=4096)
    broker.exchanges.add(exchange)
    link = Link(broker, None)
    link.method = lambda *_parts: None  # type: ignore[method-assign]
    properties = write_properties(Properties(correlation_id=correlation, delivery_mode=mode, content_type="text/x"))
    link.write(b"\x01" + number.to_bytes(2, "big") + b"\x00\x00\x00\x05\x00\x14\x00\x0a\x00\xce")  # channel.open
    link.write(publish_frames(number, exchange, key, mandatory, properties, body * times, 4096))
    (published,) = broker.published
    assert (published.chan.number, published.exchange, published.key) == (number, exchange, key)
    assert (published.mandatory, published.body) == (mandatory, body * times)
    seen = published.properties
    assert (seen.correlation_id, seen.delivery_mode, seen.content_type) == (correlation, mode, "text/x")


@pytest.mark.parametrize("length", [0, 1, 4088, 4089, 8176, 8177, 20000])
def test_no_frame_is_longer_than_agreed(reactor: Reactor, results: Results, length: int) -> None:
    broker = Broker(reactor, frame_max=4096)
    opened = results(connected(broker).open_channel())
    reactor.run()
    opened[0].publish(outgoing(body=b"x" * length))
    reactor.run()
    assert [len(each.body) for each in broker.published] == [length]
    assert not broker.links[0].closing


@STEADY
@given(st.integers(1, 65535), st.integers(1, 2**63), st.booleans())
def test_acks_and_nacks_are_what_pika_writes(number: int, tag: int, flag: bool) -> None:
    assert ack_frame(number, tag, flag) == _marshalled(number, spec.Basic.Ack(tag, flag))
    assert nack_frame(number, tag, flag) == _marshalled(number, spec.Basic.Nack(tag, False, flag))


def _marshalled(number: int, method: Any) -> bytes:
    return bytes(pika.frame.Method(number, method).marshal())


def test_acks_go_out_in_order_and_name_their_own_tags(
    channel: Channel, link: Link, broker: Broker, reactor: Reactor, results: Results
) -> None:
    for name in range(1, 7):
        broker.queue("q").put(name=name)
    consume(channel, link, results)
    reactor.run()
    channel.ack([(3, True), (5, False)])
    channel.nack(4, True)
    channel.nack(6, False)
    reactor.run()
    source = broker.queues["q"]
    assert [line for line in broker.story if line[0] in "ar"] == ["ack 3+", "ack 5", "requeue 4", "reject 6"]
    assert (source.acked, source.rejected) == ([1, 2, 3, 5], [6])
    assert link.chan.is_open


def test_the_fake_broker_closes_a_channel_over_a_second_ack(
    channel: Channel, link: Link, broker: Broker, reactor: Reactor, results: Results
) -> None:
    """The tests of merged acks lean on this."""
    for name in range(3):
        broker.queue("q").put(name=name)
    consume(channel, link, results)
    reactor.run()
    channel.ack([(2, False), (2, True)])
    reactor.run()
    assert isinstance(channel.reason, ChannelClosed)
    assert channel.reason.text == "PRECONDITION_FAILED - unknown delivery tag 2"
    assert [letter.name for letter in broker.queues["q"].ready] == [0, 2]


# Confirms and returns -----------------------------------------------------------------------------


def test_confirms_come_with_number_range_and_verdict(
    channel: Channel, link: Link, broker: Broker, reactor: Reactor, results: Results
) -> None:
    broker.confirms = False
    confirmed: list[tuple[int, bool, bool]] = []
    ready = results(channel.confirm(lambda *parts: confirmed.append(parts), lambda *_parts: None))
    reactor.run()
    assert len(ready) == 1
    for _ in range(4):
        channel.publish(outgoing())
    chan = link.chan
    chan.confirm(2, multiple=True)
    chan.confirm(4, taken=False)
    chan.confirm(3)
    reactor.run()
    assert confirmed == [(2, True, True), (4, False, False), (3, False, True)]


def test_returns_come_with_everything_that_names_them(
    channel: Channel, broker: Broker, reactor: Reactor, results: Results
) -> None:
    broker.missing.add("nowhere")
    returned: list[Any] = []
    results(channel.confirm(lambda *_parts: None, lambda *parts: returned.append(parts)))
    reactor.run()
    channel.publish(outgoing("nowhere", b"x" * 10, mandatory=True, message_id="m", correlation_id=b"\xff"))
    channel.publish(outgoing("nowhere", mandatory=False))
    reactor.run()
    ((code, text, exchange, key, properties),) = returned
    assert (code, text, exchange, key) == (312, "NO_ROUTE", "", "nowhere")
    assert (properties.message_id, properties.correlation_id) == ("m", b"\xff")


def test_an_ending_connection_tells_a_channel_once(protocol: AmqpProtocol, channel: Channel, link: Link) -> None:
    reasons: list[Exception] = []
    channel.when_closed(reasons.append)
    link.close(320, "CONNECTION_FORCED")
    protocol.clock.run()
    assert len(reasons) == 1
    assert channel.reason is reasons[0]
    assert channel.consumer_tags == []
