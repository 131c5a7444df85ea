"""Carrying out a topology plan; what the broker refuses becomes a sentence with the way out."""

import re
import uuid
from typing import Any

from twisted.internet.defer import Deferred

from rpcd.amqp.channel import Channel
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import Once, WaitTooLong, bounded
from rpcd.core.address import Address
from rpcd.core.errors import (
    HARD_ERRORS,
    BrokerRefused,
    ChannelClosed,
    ConnectionLost,
    ExitCode,
    LoginRefused,
    ObjectMissing,
    ReplyCode,
)
from rpcd.core.outgoing import Outgoing
from rpcd.core.topology import NO_DELIVERY_LIMIT, Bind, Declaration, DeclareExchange, DeclareQueue
from rpcd.core.wire import Properties, write_properties

STEP_SECONDS = 30.0
"""How long the broker may take for one declaration; a quorum queue without a leader never answers."""


SOURCE = "broker.url, or RABBITMQ_URL"
"""Where an operator has written which broker, and as whom."""

_CORRECT = "correct the arguments in the config"


async def carry_out(protocol: AmqpProtocol, plan: list[Declaration]) -> str:
    """Carry out a plan in its order and return the name that the broker chose last, or "".

    Raises BrokerRefused for what a person must mend (403, 406) and ObjectMissing for what is not there yet (404).
    """
    channel = await open_channel(protocol)
    chosen = ""
    for item in plan:
        try:
            if isinstance(item, DeclareQueue):
                channel, name = await _declare_queue(protocol, channel, item)
                chosen = name if not item.name else chosen
            else:
                await _one(channel, item, chosen)
        except ChannelClosed as error:
            raise refusal(item, error) from error
        except ConnectionLost as error:
            if error.code in HARD_ERRORS:
                raise BrokerRefused(f"{_said(item, error)}; {_CORRECT}", ExitCode.CONFIG) from error
            raise
    await close(channel)
    return chosen


async def open_channel(protocol: AmqpProtocol) -> Channel:
    """Open a channel; fails with WaitTooLong if the broker does not answer."""
    return await bounded(protocol.open_channel(), STEP_SECONDS, protocol.clock, "opening a channel")


async def close(channel: Channel) -> None:
    """Close a channel; fails with WaitTooLong if the broker does not answer."""
    await bounded(channel.close(), STEP_SECONDS, channel.clock, "closing a channel")


def ask(channel: Channel, name: str, **arguments: Any) -> Deferred[Any]:
    """Call a method of AMQP's by pika's name for it; fails with WaitTooLong if the broker does not answer."""
    return bounded(channel.call(name, **arguments), STEP_SECONDS, channel.clock, f"the broker's answer to {name}")


async def _one(channel: Channel, item: DeclareExchange | Bind, chosen: str) -> None:
    if isinstance(item, Bind):
        queue = item.queue or chosen
        await ask(
            channel,
            "queue_bind",
            queue=queue,
            exchange=item.exchange,
            routing_key=item.routing_key,
            arguments=dict(item.arguments),
        )
        return
    await ask(
        channel,
        "exchange_declare",
        exchange=item.name,
        exchange_type=item.type,
        passive=item.passive,
        durable=item.durable,
        auto_delete=item.auto_delete,
        internal=item.internal,
        arguments=dict(item.arguments),
    )


async def _declare_queue(protocol: AmqpProtocol, channel: Channel, item: DeclareQueue) -> tuple[Channel, str]:
    """Declare one queue; return the channel to go on with and the queue's name."""
    arguments = dict(item.arguments)
    if item.unlimited and protocol.broker_version >= (4,) and not item.passive:
        try:
            return channel, await _queue(channel, item, arguments | NO_DELIVERY_LIMIT)
        except ChannelClosed as error:
            if "x-delivery-limit" not in error.text:
                raise
            channel = await open_channel(
                protocol
            )  # made before the broker was upgraded: its limit can only be lifted by a policy
    return channel, await _queue(channel, item, arguments)


async def _queue(channel: Channel, item: DeclareQueue, arguments: dict[str, Any]) -> str:
    method = await ask(
        channel,
        "queue_declare",
        queue=item.name,
        passive=item.passive,
        durable=item.durable,
        exclusive=item.exclusive,
        auto_delete=item.auto_delete,
        arguments=arguments,
    )
    return str(method.queue)


def refusal(item: Declaration, error: ChannelClosed) -> Exception:
    """Turn the broker's refusal of a declaration into the error to raise: where, its own words, the way out."""
    said = _said(item, error)
    if error.code == ReplyCode.ACCESS_REFUSED:
        return BrokerRefused(f"{said}; {_permission(item)}", ExitCode.NOPERM)
    if error.code == ReplyCode.PRECONDITION_FAILED:
        return BrokerRefused(f"{said}; {_difference(item, error.text)}", ExitCode.CONFIG)
    if error.code in (ReplyCode.NOT_FOUND, ReplyCode.RESOURCE_LOCKED):
        return ObjectMissing(f"{said}; waiting for it")
    return error


def _said(item: Declaration, error: Exception) -> str:
    return f"{item.path}: the broker refused {_shown(item)}: {error}"


def _difference(item: Declaration, text: str) -> str:
    """Tell what exists and differs, which can be deleted, from what can't exist at all."""
    if "is reached" in text:  # a limit of queues is told by the same code
        return "raise the limit of the virtual host, or delete what nobody needs"
    if "inequivalent arg" not in text:
        return _CORRECT
    lost = "bindings" if isinstance(item, DeclareExchange) else "messages"
    return (
        "write the arguments that it has into the config, or set passive = true to take it as it is, "
        f"or delete it (its {lost} go with it)"
    )


def _permission(item: Declaration) -> str:
    if isinstance(item, Bind):
        return "a binding needs the permissions `write` on the queue and `read` on the exchange"
    if "x-dead-letter-exchange" in item.arguments:
        return (
            f"grant the permissions `configure` and `read` on {item.name!r} and, because it dead-letters, `write` on "
            "`^amq\\.default$`; or set passive = true and have it made by somebody who may"
        )
    return f"grant the permission `configure` on {item.name!r}, or set passive = true and have it made by somebody who may"


def _shown(item: Declaration) -> str:
    if isinstance(item, Bind):
        return f"the binding of queue {item.queue!r} to exchange {item.exchange!r} with key {item.routing_key!r}"
    return f"{'exchange' if isinstance(item, DeclareExchange) else 'queue'} {item.name!r}"


def consume_refusal(whose: str, queue: str, error: ChannelClosed) -> Exception:
    """Turn the broker's refusal of basic.consume into the error to raise."""
    said = f"{whose}: the broker refused to deliver from queue {queue!r}: {error}"
    if error.code == ReplyCode.ACCESS_REFUSED and "exclusive" not in error.text:
        return BrokerRefused(f"{said}; grant the permission `read` on {queue!r}", ExitCode.NOPERM)
    if error.code in (ReplyCode.ACCESS_REFUSED, ReplyCode.NOT_FOUND, ReplyCode.RESOURCE_LOCKED):
        return ObjectMissing(f"{said}; waiting for it")
    return BrokerRefused(f"{said}; look at the consumer's arguments", ExitCode.CONFIG)


def login_refusal(error: LoginRefused, address: Address, source: str = SOURCE) -> LoginRefused:
    """Add to a refused login whose it was, for which virtual host, and the way out; `source` is where that is written."""
    said, place = str(error).rstrip("."), f"virtual host {address.virtual_host!r}"
    who = "the client's certificate" if address.external else f"user {address.username!r}"
    if re.search(r"vhost .+ not found$", said):
        remedy = f"there is no {place}: make it, or correct the name in {source}"
    elif re.search(r"access to vhost '.+' refused for user '.+'$", said):
        remedy = f"let {who} into {place} (rabbitmqctl set_permissions), or correct the names in {source}"
    elif f"{ReplyCode.ACCESS_REFUSED:d} " in said:
        remedy = f"correct {who}{'' if address.external else ' or the password'} for {place} in {source}"
    else:
        remedy = f"it was {who} for {place}, from {source}"
    return LoginRefused(f"{said}; {remedy}", error.exit_code)


async def probe_default_exchange(protocol: AmqpProtocol, purpose: str) -> None:
    """Make sure that this user may publish to the default exchange; raise BrokerRefused with `purpose` if not.

    Publishes a message that no queue takes, with a confirm, on a channel of its own: permission is only ever checked then.
    """
    channel = await open_channel(protocol)
    confirmed = Once()
    await bounded(
        channel.confirm(lambda *_confirm: confirmed.fire(), lambda *_returned: None),
        STEP_SECONDS,
        protocol.clock,
        "switching confirms on",
    )
    channel.when_closed(confirmed.fail)
    channel.publish(Outgoing("", f"rpcd.probe.{uuid.uuid4()}", b"", write_properties(Properties())))
    try:
        await _unless_blocked(protocol, confirmed)
    except ChannelClosed as error:
        if error.code != ReplyCode.ACCESS_REFUSED:
            raise
        remedy = "grant the permission `write` on `^amq\\.default$`"
        raise BrokerRefused(f"the broker refused to let rpcd {purpose}: {error}; {remedy}", ExitCode.NOPERM) from error
    await close(channel)


async def _unless_blocked(protocol: AmqpProtocol, confirmed: Once) -> None:
    """Wait for the confirm of a probe; an alarm, which stops the broker from reading, may last longer than that."""
    while True:
        try:
            await bounded(confirmed.wait(), STEP_SECONDS, protocol.clock, "the confirm of a probe")
        except WaitTooLong:
            if protocol.blocked is None:
                raise
        else:
            return
