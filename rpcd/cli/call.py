"""`rpcd call`: ask a service and show its reply."""

import sys
from typing import Any

import click
import msgspec

from rpcd.amqp.caller import Answer, Caller
from rpcd.cli.broker import Asked, Connect, broker_options, choose, talk
from rpcd.cli.completion import names
from rpcd.cli.compose import composed, given_body, message_options
from rpcd.cli.show import json_printable, printable_lines, say
from rpcd.core.codec import JSON


@click.command()
@click.argument("queue", shell_complete=names("queues"))
@click.argument("body", metavar="JSON")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.001, max=86_400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the reply; the request expires with it.",
)
@click.option("--exchange", default="", help="Send through this exchange, with QUEUE as the routing key.")
@message_options("correlation_id", "expiration")
@click.option("--json", "as_json", is_flag=True, help="Print the reply exactly as it came.")
@broker_options
def call(
    queue: str, body: str, timeout: float, exchange: str, properties: dict[str, Any], as_json: bool, asked: Asked
) -> None:
    """Send a request to QUEUE and show the reply.

    Its body is JSON, or - to read that from standard input.

    Exit code: 0 if the reply says success, 1 if it says failure, 2 if the body is no JSON, 69 if there is no such queue or
    the broker can't be reached, 75 if no reply came in time, 77 if a permission is missing, 78 if the config is wrong.

    Example: rpcd call orders '{"customer": "ada", "items": ["tea"]}'

    Example: rpcd call orders - --header tenant=north --timeout 5 <order.json
    """
    request = given_body(body)
    options = {"content_type": JSON, **properties}
    composed(exchange, queue, request, **options)  # what can't be sent is told before anything is connected

    async def work(connect: Connect) -> Answer:
        caller = Caller(await (await connect()).open_channel())
        await caller.open(timeout)
        return await caller.call(exchange, queue, request, timeout, **options)

    answer = talk(choose(asked), work)
    show(answer, as_json)
    sys.exit(0 if succeeded(answer) else 1)


def show(answer: Answer, as_json: bool) -> None:
    """Print a reply: for people on a terminal, else as it came."""
    text = answer.body.decode("utf-8", "backslashreplace")
    if sys.stdout is None or not sys.stdout.isatty():
        say(text)
    elif answer.properties.content_type == JSON and valid(answer.body):
        say(json_printable(text if as_json else msgspec.json.format(text, indent=2)))
    else:
        say(printable_lines(text))


def valid(body: bytes) -> bool:
    """Tell whether a body is JSON."""
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def succeeded(answer: Answer) -> bool:
    """Tell whether a reply says success; one without an envelope does."""
    try:
        reply = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True
    return not isinstance(reply, dict) or reply.get("success", True) is not False
