"""One attempt to reach the broker: every host once, each within its time, and a sentence for each way that it fails."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from amqp_rig import ADDRESS
from amqp_wire import Broker, Link, Reactor
from certificates import Authority
from twisted.internet import error
from twisted.internet.defer import Deferred

from rpcd.amqp.dial import Broker as Dialled
from rpcd.amqp.dial import Dial
from rpcd.amqp.port import ABORT_AFTER, AmqpProtocol
from rpcd.core.errors import ConnectionLost, LoginRefused
from rpcd.core.settings import Tls

Results = Callable[[Deferred[Any]], list[Any]]

HOSTS = (("one", 1), ("two", 2), ("three", 3))
LIMIT = 10.0


def dial(reactor: Reactor, **address: Any) -> Dial:
    address = {"hosts": HOSTS, "connect_timeout": LIMIT, **address}
    return Dial(Dialled(attrs.evolve(ADDRESS, **address), reactor, "0.1"), "title")


def connect(made: Dial, results: Results) -> list[Any]:
    return results(Deferred.fromCoroutine(made.connect()))


def test_the_first_host_that_lets_us_in_is_taken(broker: Broker, reactor: Reactor, results: Results) -> None:
    ends = connect(dial(reactor), results)
    reactor.run()
    (protocol,) = ends
    assert isinstance(protocol, AmqpProtocol)
    assert protocol.where in {"one:1", "two:2", "three:3"}
    assert len(reactor.dialled) == 1
    assert broker.links[0].start_ok.client_properties["connection_name"] == "title"


def test_no_host_is_tried_twice_and_each_says_why(reactor: Reactor, results: Results) -> None:
    ends = connect(dial(reactor), results)
    reactor.pass_time(2.0, 0.1)
    assert sorted(reactor.dialled) == sorted(HOSTS)
    assert [type(end) for end in ends] == [ConnectionLost]
    said = "; ".join(f"{host}:{port}: refused by other side" for host, port in HOSTS)
    assert str(ends[0]) == said  # in this order, in whatever order they were tried: the same trouble has the same words


@pytest.mark.parametrize("silence", ["the name", "the network", "Connection.StartOk", "Connection.Open"])
def test_every_host_has_its_time_and_no_more(
    broker: Broker, reactor: Reactor, results: Results, monkeypatch: pytest.MonkeyPatch, silence: str
) -> None:
    """T7: pika and the resolver would wait for as long as they like."""
    if silence == "the name":
        monkeypatch.setattr(reactor, "resolveHostName", lambda receiver, *_name, **_named: receiver.resolutionBegan(reactor))
    elif silence == "the network":
        reactor.silent = True
    else:
        broker.silent.add(silence)
    ends = connect(dial(reactor), results)
    reactor.pass_time(len(HOSTS) * LIMIT - 0.5)
    assert ends == []
    reactor.pass_time(2.0)
    assert [type(end) for end in ends] == [ConnectionLost]
    assert str(ends[0]).count(";") == len(HOSTS) - 1
    reactor.pass_time(ABORT_AFTER)
    assert broker.live == []
    assert reactor.getDelayedCalls() == []


def test_a_name_that_is_found_too_late_leads_nowhere(
    broker: Broker, reactor: Reactor, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Callable[[], object]] = []
    resolve = reactor.resolveHostName
    monkeypatch.setattr(reactor, "resolveHostName", lambda *which, **named: found.append(lambda: resolve(*which, **named)))
    ends = connect(dial(reactor, hosts=HOSTS[:1]), results)
    reactor.pass_time(LIMIT + 0.5)
    assert len(ends) == 1
    assert "took longer than 10 s" in str(ends[0])
    found[0]()
    reactor.pass_time(5.0)
    assert broker.live == []


def test_an_unknown_name_is_said(reactor: Reactor, results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(receiver: Any, *_name: Any, **_named: Any) -> object:
        receiver.resolutionBegan(reactor)
        receiver.resolutionComplete()
        return reactor

    monkeypatch.setattr(reactor, "resolveHostName", unknown)
    ends = connect(dial(reactor, hosts=HOSTS[:1]), results)
    reactor.run()
    assert [str(end) for end in ends] == ["one:1: the name is unknown"]


@pytest.mark.parametrize("end", ["fin", "rst", "garbage", "320"])
def test_an_end_in_the_middle_of_the_handshake_leads_to_the_next_host(
    broker: Broker, reactor: Reactor, results: Results, end: str
) -> None:
    def ends_once(link: Link, answer: Any) -> None:
        del broker.answers["Connection.Open"]
        if end == "garbage":
            link.send(b"\x63garbage!" * 3)
        elif end == "320":
            link.close(320, "CONNECTION_FORCED - shutting down")
        else:
            getattr(link, end)()

    broker.answers["Connection.Open"] = ends_once  # type: ignore[assignment]
    ends = connect(dial(reactor), results)
    reactor.pass_time(ABORT_AFTER + 1.0)
    assert [type(each) for each in ends] == [AmqpProtocol]
    assert len(reactor.dialled) == 2


def test_each_handshake_that_failed_says_why(broker: Broker, reactor: Reactor, results: Results) -> None:
    broker.answers["Connection.Open"] = lambda link, _answer: link.close(541, "INTERNAL_ERROR")  # type: ignore[attr-defined]
    ends = connect(dial(reactor, hosts=HOSTS[:1]), results)
    reactor.pass_time(ABORT_AFTER + 1.0)
    assert [str(end) for end in ends] == ["one:1: the broker closed the connection: 541 INTERNAL_ERROR"]


@pytest.mark.parametrize(("code", "at"), [(403, "Connection.StartOk"), (530, "Connection.Open")])
def test_a_refused_login_is_no_matter_of_hosts(
    broker: Broker, reactor: Reactor, results: Results, code: int, at: str
) -> None:
    broker.answers[at] = lambda link, _answer: link.close(code, "NO")  # type: ignore[attr-defined]
    ends = connect(dial(reactor), results)
    reactor.pass_time(ABORT_AFTER + 1.0)
    assert [type(end) for end in ends] == [LoginRefused]
    assert f"{code} NO" in str(ends[0])
    assert len(reactor.dialled) == 1


# Giving up ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["the network", "Connection.StartOk", "Connection.Open"])
def test_giving_up_ends_the_attempt_and_tries_no_other_host(
    broker: Broker, reactor: Reactor, results: Results, at: str
) -> None:
    if at == "the network":
        reactor.silent = True
    else:
        broker.silent.add(at)
    made = dial(reactor)
    ends = connect(made, results)
    reactor.run()
    made.cancel()
    made.cancel()
    reactor.run()
    assert [type(end) for end in ends] == [ConnectionLost]
    assert len(reactor.dialled) == 1
    assert broker.live == []
    assert reactor.getDelayedCalls() == []


def test_giving_up_a_connection_that_is_made_does_not_touch_it(broker: Broker, reactor: Reactor, results: Results) -> None:
    made = dial(reactor)
    ends = connect(made, results)
    reactor.run()
    made.cancel()
    reactor.run()
    assert len(broker.live) == 1
    assert not ends[0].is_lost


def test_an_attempt_that_was_given_up_before_it_began(reactor: Reactor, results: Results) -> None:
    made = dial(reactor)
    made.cancel()
    ends = connect(made, results)
    assert [str(end) for end in ends] == ["given up"]
    assert reactor.dialled == []


# TLS ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.mark.parametrize("wrong", ["there is none", "no PEM", "another key", "a directory"])
def test_files_that_can_not_be_used_are_trouble_like_any_other(
    authority: Authority, broker: Broker, reactor: Reactor, results: Results, tmp_path: pathlib.Path, wrong: str
) -> None:
    """They are checked at start; a certificate may be replaced by a bad one while the daemon runs."""
    certificate, key = authority.issue("shop")
    other = authority.issue("other")[1]
    file = tmp_path / "file.pem"
    if wrong == "no PEM":
        file.write_bytes(b"\xff no certificate")
    tls = {
        "there is none": Tls(ca=str(file)),
        "no PEM": Tls(certificate=str(file), key=str(key)),
        "another key": Tls(certificate=str(certificate), key=str(other)),
        "a directory": Tls(ca=str(tmp_path)),
    }[wrong]
    ends = connect(dial(reactor, tls=tls, hosts=HOSTS[:2]), results)
    reactor.pass_time(3.0)
    assert [type(end) for end in ends] == [ConnectionLost]
    assert str(ends[0]).count(";") == 1
    assert broker.live == []


def test_a_broker_that_speaks_no_tls(authority: Authority, broker: Broker, reactor: Reactor, results: Results) -> None:
    """The plain broker reads a TLS hello, which it answers as RabbitMQ does: by its own protocol's name."""
    links: list[Any] = []

    def accept(protocol: Any) -> Any:
        link = Link(broker, protocol)
        link.write = lambda _data: link.send(b"AMQP\x00\x00\x09\x01")  # type: ignore[method-assign]
        broker.links.append(link)
        links.append(link)
        protocol.makeConnection(link)
        return link

    broker.accept = accept  # type: ignore[method-assign]
    ends = connect(dial(reactor, tls=Tls(ca=str(authority.file)), hosts=HOSTS[:1]), results)
    reactor.pass_time(LIMIT + ABORT_AFTER + 1.0)
    assert [type(end) for end in ends] == [ConnectionLost]
    assert len(links) == 1
    said = "the port probably doesn't speak TLS (amqps:// is usually 5671)"
    assert re.fullmatch(rf"one:1: TLS failed: .+; {re.escape(said)}", str(ends[0]))
    assert links[0].is_lost


def test_a_connection_that_is_reset_in_the_tls_handshake(
    authority: Authority, broker: Broker, reactor: Reactor, results: Results
) -> None:
    def accept(protocol: Any) -> Any:
        link = Link(broker, protocol)
        link.deaf = True
        broker.links.append(link)
        protocol.makeConnection(link)
        reactor.callLater(1.0, link.lose, error.ConnectionLost())
        return link

    broker.accept = accept  # type: ignore[method-assign]
    ends = connect(dial(reactor, tls=Tls(ca=str(authority.file)), hosts=HOSTS[:1]), results)
    reactor.pass_time(2.0)
    assert [type(end) for end in ends] == [ConnectionLost]
