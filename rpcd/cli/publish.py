"""`rpcd publish`: publish one message and wait until the broker has it."""

import uuid

import click

from rpcd.amqp.outbox import Outbox
from rpcd.amqp.waiting import bounded
from rpcd.cli.broker import Connect, broker_options, choose, say, talk
from rpcd.cli.call import composed, parse
from rpcd.core.errors import ChannelClosed, PublishRefused, ReplyCode


@click.command()
@click.argument("exchange")
@click.argument("key")
@click.argument("body", metavar="JSON")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.001),
    default=30.0,
    show_default=True,
    help="Seconds to wait for the confirm.",
)
@click.option("--unroutable-is-fine", is_flag=True, help="Succeed even if no queue takes the message.")
@broker_options
def publish(
    exchange: str, key: str, body: str, timeout: float, unroutable_is_fine: bool, config: str | None, url: str | None
) -> None:
    """Publish a message with a JSON body to EXCHANGE with routing key KEY; it is persistent and confirmed by the broker.

    EXCHANGE may be "" for the default exchange; JSON may be - to read it from standard input. Exit code: 0 if the broker has
    it, 1 if the broker refused it, 69 if no queue takes it, 75 if the broker did not confirm in time, 77 if a permission is
    missing.

    Example: rpcd publish shop order.placed '{"number": 17}'
    """
    message = composed(exchange, key, parse(body), mandatory=not unroutable_is_fine, message_id=str(uuid.uuid4()))

    async def work(connect: Connect) -> None:
        protocol = await connect()
        outbox = Outbox(protocol.clock, timeout, timeout)
        channel = await protocol.open_channel()
        await outbox.attach(channel, lambda _reason: None)
        try:
            await bounded(outbox.publish(message), timeout, protocol.clock, "the confirm")
        except PublishRefused as error:
            if isinstance(channel.reason, ChannelClosed) and channel.reason.code == ReplyCode.ACCESS_REFUSED:
                raise channel.reason from error  # its code tells a missing permission from a missing exchange
            raise

    talk(choose(config, url), work)
    say(f"published to exchange {exchange!r} with key {key!r}")
