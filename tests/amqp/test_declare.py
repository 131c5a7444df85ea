"""Declarations: each in its turn, a bounded wait for each, and a sentence with the way out for whatever is refused."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from amqp_rig import ADDRESS, connected
from amqp_wire import Broker, Chan, Link, Reactor
from pika import spec
from twisted.internet.defer import Deferred

from rpcd.amqp.declare import STEP_SECONDS, carry_out, consume_refusal, login_refusal, probe_default_exchange
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.rehearsal import Finding, Rehearsal
from rpcd.amqp.waiting import WaitTooLong
from rpcd.core.errors import BrokerRefused, ChannelClosed, ConnectionLost, ExitCode, LoginRefused, ObjectMissing
from rpcd.core.settings import Tls
from rpcd.core.topology import NO_DELIVERY_LIMIT, Bind, Declaration, DeclareExchange, DeclareQueue

Results = Callable[[Deferred[Any]], list[Any]]

EXCHANGE = DeclareExchange("exchanges.shop", "shop", "topic", True, False, False, False, {})
QUEUE = DeclareQueue("queues.orders", "orders", True, False, False, False, {"x-queue-type": "quorum"})
NAMELESS = DeclareQueue("queues.answers", "", False, True, False, False, {})
BINDING = Bind("queues.orders.bindings[0]", "orders", "shop", "order.#", {"x": 1})
PLAN: list[Declaration] = [EXCHANGE, QUEUE, BINDING]


def refuse(code: int, text: str) -> Callable[[Chan, Any], None]:
    return lambda chan, _method: chan.close(code, text)


@pytest.fixture
def carried(protocol: AmqpProtocol, reactor: Reactor, results: Results) -> Callable[..., Any]:
    """Carry out a plan and return what came of it."""

    def carry(*plan: Declaration) -> Any:
        ends = results(Deferred.fromCoroutine(carry_out(protocol, list(plan))))
        reactor.run()
        (end,) = ends
        return end

    return carry


def test_a_plan_is_carried_out_in_its_order(carried: Callable[..., Any], broker: Broker, link: Link) -> None:
    assert carried(*PLAN) == ""
    said = broker.story[broker.story.index("Exchange.Declare") :]
    assert said == ["Exchange.Declare", "Queue.Declare", "Queue.Bind", "Channel.Close"]
    bind = next(method for _, method in link.methods if isinstance(method, spec.Queue.Bind))
    assert (bind.queue, bind.exchange, bind.routing_key, bind.arguments) == ("orders", "shop", "order.#", {"x": 1})


def test_the_queue_that_the_broker_named_is_bound_and_returned(carried: Callable[..., Any], link: Link) -> None:
    chosen = carried(EXCHANGE, NAMELESS, attrs.evolve(BINDING, queue=""))
    bind = next(method for _, method in link.methods if isinstance(method, spec.Queue.Bind))
    assert chosen.startswith("amq.gen-")
    assert bind.queue == chosen


@pytest.mark.parametrize(
    ("item", "code", "text", "kind", "says"),
    [
        (QUEUE, 406, "PRECONDITION_FAILED - inequivalent arg", BrokerRefused, "set passive = true to take it as it is"),
        (QUEUE, 406, "PRECONDITION_FAILED - inequivalent arg", BrokerRefused, "delete it (its messages go with it)"),
        (EXCHANGE, 406, "PRECONDITION_FAILED - inequivalent arg", BrokerRefused, "delete it (its bindings go with it)"),
        (QUEUE, 406, "PRECONDITION_FAILED - invalid arg 'x'", BrokerRefused, "'x'; correct the arguments in the config"),
        (QUEUE, 406, "PRECONDITION_FAILED - queue limit (1) is reached", BrokerRefused, "raise the limit"),
        (BINDING, 406, "PRECONDITION_FAILED - Invalid x-match", BrokerRefused, "correct the arguments in the config"),
        (QUEUE, 403, "ACCESS_REFUSED", BrokerRefused, "grant the permission `configure` on 'orders'"),
        (EXCHANGE, 403, "ACCESS_REFUSED", BrokerRefused, "grant the permission `configure` on 'shop'"),
        (BINDING, 403, "ACCESS_REFUSED", BrokerRefused, "`write` on the queue and `read` on the exchange"),
        (QUEUE, 404, "NOT_FOUND", ObjectMissing, "waiting for it"),
        (QUEUE, 405, "RESOURCE_LOCKED", ObjectMissing, "waiting for it"),
        (BINDING, 404, "NOT_FOUND - no exchange", ObjectMissing, "with key 'order.#'"),
        (QUEUE, 541, "INTERNAL_ERROR", ChannelClosed, "541"),
    ],
)
def test_a_refusal_says_where_what_and_the_way_out(
    carried: Callable[..., Any],
    broker: Broker,
    protocol: AmqpProtocol,
    item: Declaration,
    code: int,
    text: str,
    kind: type[Exception],
    says: str,
) -> None:
    for name in ("Exchange.Declare", "Queue.Declare", "Queue.Bind"):
        broker.answers[name] = refuse(code, text)
    error = carried(item)
    assert type(error) is kind
    assert says in str(error)
    assert text in str(error)
    assert kind is ChannelClosed or str(error).startswith(f"{item.path}: the broker refused")
    assert not protocol.is_lost


def test_a_queue_that_dead_letters_needs_one_more_permission(carried: Callable[..., Any], broker: Broker) -> None:
    broker.answers["Queue.Declare"] = refuse(403, "ACCESS_REFUSED")
    error = carried(attrs.evolve(QUEUE, arguments={"x-dead-letter-exchange": ""}))
    assert "`write` on `^amq\\.default$`" in str(error)
    assert error.exit_code == ExitCode.NOPERM


def test_what_costs_the_connection_is_to_be_corrected(carried: Callable[..., Any], broker: Broker) -> None:
    broker.answers["Exchange.Declare"] = lambda chan, _method: chan.link.close(503, "COMMAND_INVALID - type 'foo'")
    error = carried(EXCHANGE)
    assert isinstance(error, BrokerRefused)
    assert str(error).endswith("503 COMMAND_INVALID - type 'foo'; correct the arguments in the config")
    assert error.exit_code == ExitCode.CONFIG


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        (
            "403 ACCESS_REFUSED - Login was refused. See the log.",
            "See the log; correct user 'shop' or the password for virtual host '/shop' in HERE",
        ),
        (
            "530 NOT_ALLOWED - vhost /shop not found",
            "there is no virtual host '/shop': make it, or correct the name in HERE",
        ),
        (
            "530 NOT_ALLOWED - access to vhost '/shop' refused for user 'shop'",
            "let user 'shop' into virtual host '/shop' (rabbitmqctl set_permissions), or correct the names in HERE",
        ),
        (
            "530 NOT_ALLOWED - access to vhost '/shop' refused for user 'shop': connection limit (1) is reached",
            "it was user 'shop' for virtual host '/shop', from HERE",
        ),
    ],
)
def test_a_refused_login_says_whose_it_was_and_the_way_out(said: str, advice: str) -> None:
    error = login_refusal(LoginRefused(f"the broker refused the login: {said}", ExitCode.NOPERM), ADDRESS, "HERE")
    assert type(error) is LoginRefused
    assert error.exit_code == ExitCode.NOPERM
    assert str(error).startswith(f"the broker refused the login: {said.rstrip('.')}")
    assert str(error).endswith(advice)
    assert ADDRESS.password not in str(error)


def test_a_certificate_that_is_refused_has_no_password() -> None:
    external = attrs.evolve(ADDRESS, tls=Tls(certificate="a", key="b"))
    error = login_refusal(LoginRefused("the broker refused the login: 403 NO", ExitCode.NOPERM), external)
    assert "password" not in str(error)
    assert "correct the client's certificate for virtual host '/shop' in broker.url, or RABBITMQ_URL" in str(error)


def test_a_loss_is_a_loss_and_no_refusal(carried: Callable[..., Any], broker: Broker) -> None:
    broker.answers["Queue.Declare"] = lambda chan, _method: chan.link.rst()
    assert type(carried(QUEUE)) is ConnectionLost


@pytest.mark.parametrize("unanswered", ["Channel.Open", "Exchange.Declare", "Queue.Declare", "Queue.Bind", "Channel.Close"])
def test_every_step_has_an_end(
    protocol: AmqpProtocol, broker: Broker, reactor: Reactor, results: Results, unanswered: str
) -> None:
    """A quorum queue without a leader never answers."""
    broker.silent.add(unanswered)
    ends = results(Deferred.fromCoroutine(carry_out(protocol, PLAN)))
    reactor.pass_time(STEP_SECONDS - 0.5)
    assert ends == []
    reactor.pass_time(1.0)
    assert [type(end) for end in ends] == [WaitTooLong]


# Delivery limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "said"), [("3.13.7", {}), ("4.0.5", NO_DELIVERY_LIMIT), (None, {})])
def test_no_limit_is_said_in_the_words_of_the_brokers_version(
    reactor: Reactor, results: Results, version: str | None, said: dict[str, Any]
) -> None:
    broker = Broker(reactor, version=version)
    unlimited = attrs.evolve(QUEUE, unlimited=True, arguments={})
    ends = results(Deferred.fromCoroutine(carry_out(connected(broker), [unlimited])))
    reactor.run()
    assert ends == [""]
    (declared,) = [method for _, method in broker.links[0].methods if isinstance(method, spec.Queue.Declare)]
    assert declared.arguments == said


def test_a_queue_from_before_an_upgrade_is_taken_as_it_is(carried: Callable[..., Any], broker: Broker) -> None:
    asked: list[Any] = []

    def answer(chan: Chan, method: Any) -> None:
        asked.append(method.arguments)
        if method.arguments:
            chan.close(406, "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'orders'")
        else:
            broker.queue("orders")
            chan.reply(spec.Queue.DeclareOk("orders", 0, 0))

    broker.answers["Queue.Declare"] = answer
    assert carried(attrs.evolve(QUEUE, unlimited=True, arguments={}), BINDING) == ""
    assert asked == [NO_DELIVERY_LIMIT, {}]
    assert broker.story.count("Queue.Bind") == 1


def test_another_difference_is_no_matter_of_upgrades(carried: Callable[..., Any], broker: Broker) -> None:
    broker.answers["Queue.Declare"] = refuse(406, "PRECONDITION_FAILED - inequivalent arg 'x-queue-type'")
    error = carried(attrs.evolve(QUEUE, unlimited=True))
    assert isinstance(error, BrokerRefused)
    assert "x-queue-type" in str(error)


# Consuming and probing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (403, "ACCESS_REFUSED - read access", BrokerRefused),
        (403, "ACCESS_REFUSED - queue 'orders' in exclusive use", ObjectMissing),
        (404, "NOT_FOUND", ObjectMissing),
        (405, "RESOURCE_LOCKED", ObjectMissing),
        (406, "PRECONDITION_FAILED - invalid arg", BrokerRefused),
    ],
)
def test_a_refused_consumer_is_mended_or_waited_for(code: int, text: str, kind: type[Exception]) -> None:
    error = consume_refusal("consumers.shop", "orders", ChannelClosed(code, text))
    assert type(error) is kind
    assert str(error).startswith(f"consumers.shop: the broker refused to deliver from queue 'orders': {code} {text}; ")


@pytest.mark.parametrize(("code", "kind"), [(403, BrokerRefused), (404, ChannelClosed)])
def test_a_probe_tells_whether_one_may_publish(
    protocol: AmqpProtocol, broker: Broker, reactor: Reactor, results: Results, code: int, kind: type[Exception]
) -> None:
    def closes(chan: Chan, _method: Any) -> None:
        chan._route = lambda _published: chan.close(code, "TEXT")  # type: ignore[method-assign]
        chan.reply(spec.Confirm.SelectOk())

    good = results(Deferred.fromCoroutine(probe_default_exchange(protocol, "send replies")))
    reactor.run()
    broker.answers["Confirm.Select"] = closes
    bad = results(Deferred.fromCoroutine(probe_default_exchange(protocol, "send replies")))
    reactor.run()
    assert good == [None]
    assert [type(end) for end in bad] == [kind]
    assert kind is ChannelClosed or "let rpcd send replies: 403 TEXT; grant the permission `write`" in str(bad[0])


def test_a_probe_that_is_never_confirmed_has_an_end(
    protocol: AmqpProtocol, broker: Broker, reactor: Reactor, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Chan, "_route", lambda _chan, _published: None)
    ends = results(Deferred.fromCoroutine(probe_default_exchange(protocol, "send replies")))
    reactor.pass_time(STEP_SECONDS + 0.5)
    assert [type(end) for end in ends] == [WaitTooLong]


# Rehearsing ---------------------------------------------------------------------------------------


@pytest.fixture
def rehearsed(protocol: AmqpProtocol, reactor: Reactor, results: Results) -> Callable[..., list[Finding]]:
    def rehearse(rehearsal: Rehearsal, *plan: Declaration) -> list[Finding]:
        ends = results(Deferred.fromCoroutine(rehearsal.run(protocol, plan, {}, True)))
        reactor.run()
        (end,) = ends
        assert isinstance(end, list), end
        return end

    return rehearse


def passively(broker: Broker, exchanges: set[str]) -> None:
    """Let the broker know which exchanges exist; queues it knows anyway."""

    def answer(chan: Chan, method: Any) -> None:
        if method.passive and method.exchange not in exchanges:
            chan.close(404, f"NOT_FOUND - no exchange '{method.exchange}'")
        else:
            exchanges.add(method.exchange)
            chan.reply(spec.Exchange.DeclareOk())

    broker.answers["Exchange.Declare"] = answer


def test_a_rehearsal_removes_what_it_made_and_nothing_else(
    rehearsed: Callable[..., list[Finding]], protocol: AmqpProtocol, broker: Broker, reactor: Reactor, results: Results
) -> None:
    passively(broker, {"shop"})
    rehearsal = Rehearsal()
    found = rehearsed(rehearsal, *PLAN, NAMELESS)
    assert [finding.result for finding in found] == [
        "is there",
        "will be made",
        "allowed",
        "not tried: the broker chooses its name",
        "allowed",
    ]
    assert broker.story.count("Queue.Unbind") == 1
    removed = results(Deferred.fromCoroutine(rehearsal.remove(protocol)))
    reactor.run()
    assert removed == [[]]
    assert [line for line in broker.story if line.endswith("Delete")] == ["Queue.Delete"]


def test_what_is_missing_or_refused_spares_what_hangs_on_it(rehearsed: Callable[..., list[Finding]], broker: Broker) -> None:
    broker.answers["Queue.Declare"] = refuse(403, "ACCESS_REFUSED")
    found = rehearsed(Rehearsal(), EXCHANGE, QUEUE, BINDING)
    assert [finding.result for finding in found] == ["is there", "refused", "not tried: one end is missing", "allowed"]
    assert isinstance(found[1].error, BrokerRefused)


def test_what_costs_the_connection_ends_the_rehearsal(rehearsed: Callable[..., list[Finding]], broker: Broker) -> None:
    broker.answers["Queue.Declare"] = lambda chan, _method: chan.link.close(540, "NOT_IMPLEMENTED")
    found = rehearsed(Rehearsal(), QUEUE, EXCHANGE)
    assert [finding.result for finding in found] == [
        "refused",
        "not tried: the broker has closed the connection",
        "not tried: the broker has closed the connection",
    ]


def test_what_somebody_uses_by_now_is_left(
    rehearsed: Callable[..., list[Finding]], protocol: AmqpProtocol, broker: Broker, reactor: Reactor, results: Results
) -> None:
    rehearsal = Rehearsal()
    rehearsed(rehearsal, QUEUE)
    broker.answers["Queue.Declare"] = lambda chan, _method: chan.reply(spec.Queue.DeclareOk("orders", 0, 1))
    removed = results(Deferred.fromCoroutine(rehearsal.remove(protocol)))
    reactor.run()
    assert removed == [["orders"]]
    assert "Queue.Delete" not in broker.story
