"""Asking another service: each call ends once, with its own reply, its return, its time limit or the channel's end."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from amqp_rig import connected
from amqp_wire import Broker, Chan, Letter, Link, Reactor, encoded, in_pieces
from pika import spec
from twisted.internet.defer import Deferred

from rpcd.amqp.caller import Caller
from rpcd.amqp.channel import Channel
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import WaitTooLong
from rpcd.core.errors import ChannelClosed, ConnectionLost, Unroutable
from rpcd.core.outgoing import DIRECT_REPLY_TO

Results = Callable[[Deferred[Any]], list[Any]]


class Service:
    """The other service: it sees requests and answers them."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.broker = link.broker
        self.broker.queue(DIRECT_REPLY_TO)

    @property
    def chan(self) -> Chan:
        return self.link.chans[1]

    def asked(self) -> list[str]:
        return [each.properties.correlation_id for each in self.broker.published]

    def answer(self, correlation_id: str, body: bytes, properties: bytes | None = None) -> None:
        raw = properties if properties is not None else encoded(correlation_id=correlation_id)
        (tag,) = self.chan.consumers
        self.chan.deliver(Letter(None, body, raw, "", "reply"), None, tag)


@pytest.fixture
def service(link: Link) -> Service:
    return Service(link)


@pytest.fixture
def caller(service: Service, channel: Channel, reactor: Reactor, results: Results) -> Caller:
    made = Caller(channel)
    opened = results(Deferred.fromCoroutine(made.open(5.0)))
    reactor.run()
    assert opened == [None]
    return made


def test_a_request_says_where_and_how_long_its_reply_is_waited_for(caller: Caller, broker: Broker, link: Link) -> None:
    caller.call("", "orders", {"a": 1}, 2.5).addErrback(lambda _failure: None)
    (request,) = broker.published
    assert (request.key, request.body, request.mandatory) == ("orders", b'{"a":1}', True)
    assert (request.properties.reply_to, request.properties.expiration) == (DIRECT_REPLY_TO, "2500")
    (consume,) = [method for _, method in link.methods if isinstance(method, spec.Basic.Consume)]
    assert consume.no_ack


def test_replies_find_their_calls_in_any_order(caller: Caller, service: Service, reactor: Reactor, results: Results) -> None:
    calls = [results(caller.call("", "orders", {}, 5.0)) for _ in range(3)]
    for index in (2, 0, 1):
        service.answer(service.asked()[index], b"%d" % index)
    reactor.run()
    assert [[answer.body for answer in ends] for ends in calls] == [[b"0"], [b"1"], [b"2"]]
    assert not [call for call in reactor.getDelayedCalls() if call.active()]


def test_a_reply_that_nobody_waits_for_is_dropped(
    caller: Caller, service: Service, reactor: Reactor, results: Results
) -> None:
    ends = results(caller.call("", "orders", {}, 5.0))
    reactor.pass_time(6.0)
    assert [type(end) for end in ends] == [WaitTooLong]
    service.answer(service.asked()[0], b"late")
    service.answer("never asked", b"?")
    reactor.run()
    assert len(ends) == 1


def test_a_second_reply_is_dropped(caller: Caller, service: Service, reactor: Reactor, results: Results) -> None:
    ends = results(caller.call("", "orders", {}, 5.0))
    service.answer(service.asked()[0], b"one")
    service.answer(service.asked()[0], b"two")
    reactor.run()
    assert [answer.body for answer in ends] == [b"one"]


def test_a_request_that_no_queue_takes_fails_at_once(
    caller: Caller, broker: Broker, reactor: Reactor, results: Results
) -> None:
    broker.missing.add("nowhere")
    gone, there = results(caller.call("", "nowhere", {}, 5.0)), results(caller.call("", "orders", {}, 5.0))
    reactor.run()
    assert [type(end) for end in gone] == [Unroutable]
    assert there == []


@pytest.mark.parametrize(("end", "kind"), [("channel", ChannelClosed), ("rst", ConnectionLost)])
def test_calls_end_with_the_channel(
    caller: Caller, link: Link, reactor: Reactor, results: Results, end: str, kind: type[Exception]
) -> None:
    calls = [results(caller.call("", "orders", {}, 5.0)) for _ in range(2)]
    link.chan.close(404, "NOT_FOUND - no exchange") if end == "channel" else link.rst()
    reactor.run()
    after = results(caller.call("", "orders", {}, 5.0))
    assert [[type(error) for error in ends] for ends in [*calls, after]] == [[kind]] * 3
    reactor.pass_time(10.0)
    assert [len(ends) for ends in calls] == [1, 1]


def test_a_reply_with_hostile_headers_is_a_reply(
    caller: Caller, service: Service, link: Link, reactor: Reactor, results: Results
) -> None:
    ends = results(caller.call("", "orders", {}, 5.0))
    table = b"\x01tT" + struct.pack(">Q", 2**63)
    correlation_id = service.asked()[0].encode()
    raw = struct.pack(">HI", 1 << 13 | 1 << 10, len(table)) + table + bytes((len(correlation_id),)) + correlation_id
    service.answer("", b"answer", raw)
    reactor.run()
    assert link.fault is None
    assert [answer.body for answer in ends] == [b"answer"]


def test_listening_that_is_not_answered_has_an_end(
    service: Service, channel: Channel, broker: Broker, reactor: Reactor, results: Results
) -> None:
    broker.silent.add("Basic.Consume")
    opened = results(Deferred.fromCoroutine(Caller(channel).open(5.0)))
    reactor.pass_time(6.0)
    assert [type(end) for end in opened] == [WaitTooLong]


def test_a_reply_in_many_frames_is_whole(
    caller: Caller, service: Service, link: Link, reactor: Reactor, results: Results
) -> None:
    ends = results(caller.call("", "orders", {}, 5.0))
    service.answer(service.asked()[0], b"x" * 300_000)
    link.broker.pieces = in_pieces([1000, 1, 70_000])
    reactor.run()
    assert [len(answer.body) for answer in ends] == [300_000]


@pytest.mark.parametrize("raw", [b"\x04\x00\x02\xff\xfe", b"\x00\x00"])
def test_a_reply_that_names_no_call_is_dropped(
    caller: Caller, service: Service, link: Link, reactor: Reactor, results: Results, raw: bytes
) -> None:
    ends = results(caller.call("", "orders", {}, 5.0))
    service.answer("", b"whose?", raw)
    reactor.run()
    assert ends == []
    assert link.fault is None
    service.answer(service.asked()[0], b"ours")
    reactor.run()
    assert [answer.body for answer in ends] == [b"ours"]


def test_what_the_one_who_asks_says_wins(caller: Caller, broker: Broker) -> None:
    caller.call("x", "orders", {}, 2.5, headers={"tenant": "acme"}, expiration=None, type="ask").addErrback(
        lambda _failure: None
    )
    (request,) = broker.published
    assert request.exchange == "x"
    assert request.properties.headers == {"tenant": "acme"}
    assert request.properties.type == "ask"
    assert request.properties.expiration is None


def test_a_request_that_fits_into_no_frame_is_refused_and_disturbs_no_other(reactor: Reactor, results: Results) -> None:
    broker = Broker(reactor, frame_max=4096)
    opened = results(connected(broker).open_channel())
    service = Service(broker.links[0])
    reactor.run()
    caller = Caller(opened[0])
    results(Deferred.fromCoroutine(caller.open(5.0)))
    reactor.run()
    ends = results(caller.call("", "orders", {}, 5.0))
    with pytest.raises(ValueError, match="properties of"):
        caller.call("", "orders", {}, 5.0, headers={"huge": "x" * 5_000})
    service.answer(service.asked()[0], b"answer")
    reactor.run()
    assert [answer.body for answer in ends] == [b"answer"]
    assert not service.link.is_lost
    assert not [call for call in reactor.getDelayedCalls() if call.active()]


def test_callers_on_one_connection_do_not_hear_each_other(
    protocol: AmqpProtocol, link: Link, service: Service, reactor: Reactor, results: Results
) -> None:
    callers = []
    for _ in range(2):
        opened = results(protocol.open_channel())
        reactor.run()
        callers.append(Caller(opened[0]))
        results(Deferred.fromCoroutine(callers[-1].open(5.0)))
        reactor.run()
    first, second = (results(each.call("", "orders", {}, 5.0)) for each in callers)
    link.chans[1].close(404, "NOT_FOUND")
    reactor.run()
    chan = link.chans[2]
    (tag,) = chan.consumers
    chan.deliver(Letter(None, b"second", encoded(correlation_id=service.asked()[1]), "", "reply"), None, tag)
    reactor.run()
    assert [type(end) for end in first] == [ChannelClosed]
    assert [answer.body for answer in second] == [b"second"]
