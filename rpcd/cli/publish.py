"""`rpcd publish`: publish one message and wait until the broker has it."""

import uuid

import click

from rpcd.amqp.outbox import Outbox
from rpcd.amqp.waiting import bounded
from rpcd.cli.broker import Connect, broker_options, choose, talk
from rpcd.cli.call import composed, parse


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
    it, 1 if the broker refused it, 69 if no queue takes it, 75 if the broker did not confirm in time.

    Example: rpcd publish shop order.placed '{"number": 17}'
    """
    message = composed(exchange, key, parse(body), mandatory=not unroutable_is_fine, message_id=str(uuid.uuid4()))

    async def work(connect: Connect) -> None:
        protocol = await connect()
        outbox = Outbox(protocol.clock, timeout, timeout)
        await outbox.attach(await protocol.open_channel(), lambda _reason: None)
        await bounded(outbox.publish(message), timeout, protocol.clock, "the confirm")

    talk(choose(config, url), work)
    click.echo(f"published to exchange {exchange!r} with key {key!r}")
