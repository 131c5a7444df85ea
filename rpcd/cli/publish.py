"""`rpcd publish`: publish one message, or a file of them, and wait until the broker has it."""

import os
import signal
import stat
import sys
import uuid
from typing import Any, NoReturn

import click

from rpcd.amqp.outbox import Outbox
from rpcd.amqp.waiting import bounded
from rpcd.cli.broker import SIGNALS, Asked, Connect, Where, broker_options, choose, explain, talk
from rpcd.cli.completion import names
from rpcd.cli.compose import USAGE, Composer, composed, given_body, message_options
from rpcd.cli.progress import Bar, size_of
from rpcd.cli.show import end, json_line, say
from rpcd.cli.stream import BadLine, Pace, Report, Stream
from rpcd.core.errors import ChannelClosed, PublishRefused, ReplyCode
from rpcd.core.outgoing import Outgoing


@click.command()
@click.argument("exchange", shell_complete=names("exchanges"))
@click.argument("key")
@click.argument("body", metavar="[JSON]", required=False)
@click.option("--file", type=click.Path(), metavar="FILE", help="Publish each line of this file; - is standard input.")
@click.option("--messages", is_flag=True, help="Each line of the file is an object with a body, properties and headers.")
@click.option("--from-line", type=click.IntRange(min=1), default=1, metavar="N", help="Begin at this line of the file.")
@click.option(
    "--window",
    type=click.IntRange(min=1, max=100_000),
    default=100,
    show_default=True,
    metavar="N",
    help="Messages of the file that may be on their way at a time.",
)
@click.option("--rate", type=click.FloatRange(min=0.001), metavar="N", help="Messages of the file a second, at most.")
@message_options()
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.001, max=86_400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a confirm.",
)
@click.option("--unroutable-is-fine", is_flag=True, help="Succeed even if no queue takes the message.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@broker_options
def publish(
    exchange: str,
    key: str,
    body: str | None,
    file: str | None,
    properties: dict[str, Any],
    unroutable_is_fine: bool,
    as_json: bool,
    asked: Asked,
    **how: Any,
) -> None:
    """Publish messages to EXCHANGE with routing key KEY.

    They are persistent, and confirmed by the broker when the command ends. EXCHANGE may be "" for the default exchange;
    the body is JSON, or - to read that from standard input.

    With --file, each line that is not blank is the body of a message. With --messages as well, it is an object that may have
    exchange, routing_key, body (or body_base64), headers, message_id, correlation_id, type, priority, expiration (seconds),
    reply_to and content_type; what it says wins over the command line. The first line that goes wrong ends it: it is told
    which one, how many messages are safely published, and from which line to go on. Those that came through behind that line
    are then sent a second time.

    Exit code: 0 if the broker has it, 1 if the broker refused it, 2 if a line is no message, 69 if no queue takes it or the
    connection was lost, 75 if the broker did not confirm in time, 77 if a permission is missing, 78 if the config is wrong.

    Example: rpcd publish shop order.placed '{"number": 17}'

    Example: rpcd publish shop order.placed --file orders.jsonl --rate 500
    """
    options = {**properties, "mandatory": not unroutable_is_fine}
    if (body is None) == (file is None):
        raise click.UsageError("Give either JSON or --file FILE.")
    if file is not None:
        _many(exchange, key, file, options, as_json, asked, **how)
        return
    if how["messages"]:
        raise click.UsageError("--messages is about the lines of a --file.")
    message = composed(exchange, key, given_body(str(body)), **{"message_id": str(uuid.uuid4()), **options})
    _single(choose(asked), message, how["timeout"], as_json)


def _single(where: Where, message: Outgoing, timeout: float, as_json: bool) -> None:
    async def work(connect: Connect) -> None:
        protocol = await connect()
        outbox = Outbox(protocol.clock, timeout, timeout)
        channel = await bounded(protocol.open_channel(), timeout, protocol.clock, "opening a channel")
        await outbox.attach(channel, lambda _reason: None)
        try:
            await bounded(outbox.publish(message), timeout, protocol.clock, "the confirm")
        except PublishRefused as error:
            if isinstance(channel.reason, ChannelClosed) and channel.reason.code == ReplyCode.ACCESS_REFUSED:
                raise channel.reason from error  # its code tells a missing permission from a missing exchange
            raise

    def failed(text: str, code: int) -> NoReturn:
        _fail(text, code, Report(), as_json)

    talk(where, work, failed)
    if as_json:
        say(json_line({"ok": True, "published": 1, "message_id": message.token}))
    else:
        say(f"published to exchange {message.exchange!r} with key {message.routing_key!r}")


def _opened(file: str) -> int:
    """Open a file for reading and return its descriptor, which lasts as long as the process; end with 2 if that fails."""
    if file == "-":
        return 0
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        end(f"--file {file}: can't be read: {getattr(error, 'strerror', None) or error}", USAGE)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        end(f"--file {file}: is a directory", USAGE)
    return descriptor


def _many(
    exchange: str,
    key: str,
    file: str,
    options: dict[str, Any],
    as_json: bool,
    asked: Asked,
    messages: bool,
    from_line: int,
    **pace: Any,
) -> None:
    composed(exchange, key, b"{}", **options)  # what can't be sent is told before anything is connected
    composer = Composer(exchange, key, messages, **options)
    where, descriptor = choose(asked), _opened(file)
    bar = Bar("published", size_of(descriptor))

    async def work(connect: Connect) -> Report:
        stream = Stream(await connect(), composer, Pace(**pace), from_line)
        stream.blocked, stream.progress = bar.blocked, bar.show
        bar.start()
        return await stream.run(descriptor)

    def failed(text: str, code: int) -> NoReturn:
        bar.stop()
        _fail(text, code, Report(go_on_from=from_line), as_json)

    signals: list[int] = []
    report = talk(where, work, failed, signals.append)
    bar.stop()
    if report.error is not None:
        wrong = isinstance(report.error, BadLine)
        text, code = (str(report.error), USAGE) if wrong else explain(where, report.error)
        _fail(f"line {report.line}: {text}" if report.line is not None else text, code, report, as_json)
    if report.interrupted and report.go_on_from is not None:
        number = signal.Signals(signals[0])
        _fail(SIGNALS[number], 128 + number, report, as_json)
    if as_json:
        say(json_line({"ok": True, "published": report.published}))
    else:
        say(f"{report.published} messages are published")


def _fail(text: str, code: int, report: Report, as_json: bool) -> NoReturn:
    """Say what went wrong and where to go on, in the form that was asked for, and end."""
    if as_json:
        found = {"ok": False, "error": text, "published": report.published, "line": report.line}
        say(json_line({**found, "from_line": report.go_on_from}))
        sys.exit(code)
    if report.go_on_from is not None:
        safe = "1 message is" if report.published == 1 else f"{report.published} messages are"
        text += f"\n{safe} safely published; go on with --from-line {report.go_on_from}"
        ahead = " (some behind that line may have arrived already, and are then sent a second time)"
        text += ahead if report.published else ""
    end(text, code)
