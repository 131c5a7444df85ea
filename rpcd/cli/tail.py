"""`rpcd tail`: show copies of messages as they pass an exchange, and take nothing from anybody."""

import itertools
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import click
from twisted.application.internet import backoffPolicy
from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from rpcd.amqp.channel import Channel
from rpcd.amqp.declare import ask, carry_out, open_channel
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import Once, WaitTooLong
from rpcd.cli.broker import Asked, Connect, broker_options, choose, environment_of, talk
from rpcd.cli.completion import names
from rpcd.cli.compose import USAGE
from rpcd.cli.copies import Copy, as_json, readable
from rpcd.cli.show import NOT_WRITTEN, end, tell, unwritten
from rpcd.config import read
from rpcd.core.errors import ChannelClosed, ConnectionLost, ConsumerCancelled, ExitCode, ObjectMissing, SettingsError
from rpcd.core.tables import short
from rpcd.core.topology import Bind, Declaration, DeclareQueue
from rpcd.core.wire import Properties

KEPT = 10_000
"""Copies that wait in the broker for a slow terminal; older ones are dropped."""

KEPT_BYTES = 64 * 1024 * 1024
"""Bytes of copies that wait in the broker."""

PREFETCH = 100
LONGEST_PAUSE = 30.0
"""The longest time in seconds between two attempts to connect."""

DEFAULT = (
    "messages of the default exchange go straight to the queue that they name and can't be copied; have the broker copy "
    "them: rabbitmqctl trace_on -p VIRTUAL-HOST, then: rpcd tail amq.rabbitmq.trace 'deliver.QUEUE', and trace_off"
)

TROUBLE = (ConnectionLost, ConsumerCancelled, WaitTooLong)
"""What ends by itself, or with a new connection."""

Show = Callable[[Copy], None]


@attrs.frozen
class Bound:
    """One exchange and the key and arguments to bind to it with."""

    exchange: str
    key: str
    arguments: dict[str, Any] = attrs.field(factory=dict)


class Enough(Exception):  # no error: as many messages as were wanted are shown
    """Everything that was wanted is shown, or nobody looks any more."""


class Tail:
    """Copies from a queue of our own; reactor only."""

    def __init__(self, bounds: Iterable[Bound], show: Show) -> None:
        """Prepare to bind to all of these."""
        self._bounds = list(bounds)
        self._show = show
        self._ended = Once()
        self._channel: Channel | None = None

    async def run(self, connect: Connect) -> None:
        """Show what passes until there is enough, or a signal comes; only the first attempt to connect may fail."""
        protocol = await connect()
        clock = protocol.clock
        while True:
            try:
                await self._serve(protocol)
            except TROUBLE as error:
                protocol.abort(ConnectionLost("given up"))
                tell(f"{error}; connecting again (what passes meanwhile is not shown)")
            protocol = await self._again(connect, clock)

    async def _again(self, connect: Connect, clock: Any) -> AmqpProtocol:
        """Connect once more, however long it takes."""
        backoff = backoffPolicy(1.0, LONGEST_PAUSE, 2.0, random.random)
        for failures in itertools.count():
            await deferLater(clock, backoff(failures))
            try:
                return await connect()
            except TROUBLE as error:
                tell(str(error))
        raise AssertionError("counting has no end")

    async def _serve(self, protocol: AmqpProtocol) -> None:
        self._ended = Once()
        await self._check(protocol)
        queue = await carry_out(protocol, self._plan())
        channel = self._channel = await open_channel(protocol)
        channel.when_closed(self._ended.fail)
        await ask(channel, "basic_qos", prefetch_count=PREFETCH)
        tag = f"rpcd.tail.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(3)}"
        await channel.consume(queue, tag[-250:], self._on_delivery, True, {})
        tell("copying " + ", ".join(f"exchange {each.exchange!r} with key {each.key!r}" for each in self._bounds))
        await self._ended.wait()

    async def _check(self, protocol: AmqpProtocol) -> None:
        """Look whether the exchanges are there: a binding would say it less clearly."""
        for name in dict.fromkeys(each.exchange for each in self._bounds):
            channel = await open_channel(protocol)
            await ask(channel, "exchange_declare", exchange=name, passive=True)
            channel.close()

    def _plan(self) -> list[Declaration]:
        limits = {"x-max-length": KEPT, "x-max-length-bytes": KEPT_BYTES, "x-overflow": "drop-head"}
        return [
            DeclareQueue("rpcd tail", "", False, True, True, False, limits),
            *(Bind("rpcd tail", "", each.exchange, each.key, each.arguments) for each in self._bounds),
        ]

    def _on_delivery(
        self, tag: int, _redelivered: bool, exchange: Any, routing_key: Any, properties: Properties, body: bytes
    ) -> None:
        if self._ended.happened or self._channel is None:
            return
        try:
            self._show(Copy(time.time(), exchange, routing_key, properties, body))
        except Enough as enough:
            self._ended.fail(enough)
            return
        if self._channel.is_open:
            self._channel.ack([(tag, False)])


class Printer:
    """Shows copies on standard output until there are enough."""

    def __init__(self, in_json: bool, bodies: bool, count: int | None) -> None:
        """Take the form; `count` is how many are enough, None for no end."""
        self._form = as_json if in_json else readable
        self._bodies = bodies
        self._left = count
        self.trouble: str | None = None
        """Why nothing more can be written."""

    def __call__(self, copy: Copy) -> None:
        """Print one copy; raise Enough with the last one, or if no more can be written."""
        try:
            click.echo(self._form(copy, self._bodies))
        except OSError as error:
            self.trouble = unwritten(error)
            raise Enough from None
        if self._left is not None:
            self._left -= 1
            if not self._left:
                raise Enough


@click.command()
@click.argument("exchange", required=False, shell_complete=names("exchanges"))
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option(
    "--queue", metavar="NAME", shell_complete=names("queues"), help="Copy what this queue of the config is bound to."
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many messages.")
@click.option("--bodies/--no-bodies", default=True, help="Whether bodies are shown.")
@click.option("--json", "in_json", is_flag=True, help="Print one JSON object a line.")
@broker_options
def tail(
    exchange: str | None,
    keys: tuple[str, ...],
    queue: str | None,
    count: int | None,
    bodies: bool,
    in_json: bool,
    asked: Asked,
) -> None:
    """Show copies of messages as they pass EXCHANGE.

    Those with one of the routing keys KEY are shown; # is taken if none is given, which a topic exchange takes for all. rpcd
    binds a queue of its own to the exchange, which goes away with the command; consumers get what they always get. With
    --queue the bindings are those of a queue in the config. Messages that are published to a queue by its name, through the
    default exchange, can't be copied. The broker keeps the newest 10000 copies (64 MiB) for a slow terminal. If the
    connection is lost it is made again; what passes meanwhile is not shown. Ctrl-C ends it.

    Exit code: 0 when it was ended by Ctrl-C or --count, 2 for the default exchange, 69 if there is no such exchange or the
    broker can't be reached at first, 77 if a permission is missing, 78 if the config is wrong.

    Example: rpcd tail shop 'order.*'

    Example: rpcd tail --queue orders --config /etc/rpcd/shop.toml --json --count 10
    """
    if (exchange is None) == (queue is None):
        raise click.UsageError("Give either EXCHANGE or --queue NAME.")
    bounds = _of_queue(queue, asked) if queue is not None else _of_exchange(str(exchange), keys)
    following = Tail(bounds, printer := Printer(in_json, bodies, count))

    async def work(connect: Connect) -> None:
        try:
            await following.run(connect)
        except (Enough, CancelledError):
            return
        except ChannelClosed as error:
            raise ObjectMissing(f"tail: the broker refused to copy: {error}") from error

    talk(choose(asked), work)
    if printer.trouble is not None:
        end(printer.trouble, NOT_WRITTEN)


def _of_exchange(exchange: str, keys: tuple[str, ...]) -> list[Bound]:
    if not exchange:
        end(DEFAULT, USAGE)
    try:
        short(exchange, "the exchange")
        for key in keys:
            short(key, "the routing key")
    except UnicodeEncodeError:
        end("an argument is not UTF-8", USAGE)
    except ValueError as error:
        end(str(error), USAGE)
    return [Bound(exchange, key) for key in keys or ("#",)]


def _of_queue(name: str, asked: Asked) -> list[Bound]:
    """Return what a queue of the config is bound to; end with 78 if that can't be told, with 2 if it is nothing."""
    if asked.config is None:
        raise click.UsageError("--queue is a queue of a config: give --config FILE.")
    try:
        settings, problems = read(asked.config, environment_of(asked), asked.virtual_host)
    except SettingsError as error:
        end(str(error), ExitCode.CONFIG)
    wrong = [problem for problem in problems if problem.path.startswith(("queues", "exchanges"))]
    if wrong:
        end("\n".join(map(str, wrong)), ExitCode.CONFIG)
    found = next((key for key in settings.queues if name in (key, settings.queue_name(key))), None)
    if found is None:
        known = ", ".join(settings.queues) or "none"
        end(f"{asked.config}: there is no queue {name!r}; there are: {known}", ExitCode.CONFIG)
    bounds = [
        Bound(settings.exchange_name(binding.exchange), key, dict(binding.arguments))
        for binding in settings.queues[found].bindings
        for key in binding.routing_keys
    ]
    if not bounds:
        end(f"queue {name!r} has no bindings in {asked.config}: {DEFAULT}", USAGE)
    return bounds
