"""`rpcd call`: ask a service and show its reply."""

import sys
from typing import Any

import click
import msgspec

from rpcd.amqp.caller import Answer, Caller
from rpcd.cli.broker import Connect, broker_options, choose, end, say, talk
from rpcd.core.message import Outgoing, outgoing


@click.command()
@click.argument("queue")
@click.argument("body", metavar="JSON")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.001),
    default=30.0,
    show_default=True,
    help="Seconds to wait for the reply.",
)
@click.option("--exchange", default="", help="Send through this exchange, with QUEUE as the routing key.")
@click.option("--json", "as_json", is_flag=True, help="Show the reply on one line, exactly as it came.")
@broker_options
def call(queue: str, body: str, timeout: float, exchange: str, as_json: bool, config: str | None, url: str | None) -> None:
    """Send a request with a JSON body to QUEUE and show the reply.

    JSON may be - to read it from standard input. Exit code: 0 if the reply says success, 1 if it says failure, 69 if there
    is no such queue, 75 if no reply came in time, 77 if a permission is missing.

    Example: rpcd call orders '{"customer": "ada", "items": ["tea"]}'
    """
    request = parse(body)
    composed(exchange, queue, request)  # what can't be sent is told before anything is connected

    async def work(connect: Connect) -> Answer:
        caller = Caller(await (await connect()).open_channel())
        await caller.open(timeout)
        return await caller.call(exchange, queue, request, timeout)

    answer = talk(choose(config, url), work)
    show(answer, as_json)
    sys.exit(0 if succeeded(answer) else 1)


def parse(text: str) -> Any:
    """Read the JSON argument, or standard input for `-`; end with 2 if it is no JSON."""
    raw = sys.stdin.read() if text == "-" else text
    try:
        return msgspec.json.decode(raw.encode())
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        end(f"the body is not JSON: {error}", 2)


def composed(exchange: str, key: str, body: Any, **options: Any) -> Outgoing:
    """Encode a message; end with 2 if AMQP has no form for it."""
    try:
        return outgoing(exchange, key, body, **options)
    except (TypeError, ValueError) as error:
        end(str(error), 2)


def show(answer: Answer, as_json: bool) -> None:
    """Print a reply: for people on a terminal, else as it came."""
    text = answer.body.decode("utf-8", "backslashreplace")
    if not as_json and sys.stdout.isatty() and answer.properties.content_type == "application/json":
        from rich.console import Console

        Console().print_json(text)
    else:
        say(text)


def succeeded(answer: Answer) -> bool:
    """Tell whether a reply says success; one without an envelope does."""
    try:
        reply = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return True
    return not isinstance(reply, dict) or reply.get("success", True) is not False
