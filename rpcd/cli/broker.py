"""What the commands that talk to a broker have in common: which broker, a reactor for one piece of work, how it ends."""

import contextlib
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import click
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.python.failure import Failure

from rpcd import __version__
from rpcd.amqp.dial import Broker, Dial
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import WaitTooLong
from rpcd.config import CONFIG, read
from rpcd.core import settings
from rpcd.core.address import Address, AddressError, address
from rpcd.core.errors import BrokerRefused, ExitCode, PublishRefused, RpcdError, SettingsError, Unroutable
from rpcd.core.load import heartbeat
from rpcd.ops.logs import quieten_pika

UNAVAILABLE = 69
"""The broker, or a queue of it, can't be reached; the word of sysexits(3)."""

ResultT = TypeVar("ResultT")

Connect = Callable[[], Awaitable[AmqpProtocol]]


def broker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config and --url to a command."""
    command = click.option("--url", metavar="URL", help="The broker (amqp://...); wins over RABBITMQ_URL and the config.")(
        command
    )
    return click.option(
        "-c", "--config", metavar="FILE", envvar=CONFIG, help=f"Take [broker] from this config; {CONFIG} if not given."
    )(command)


def choose(config: str | None, url: str | None) -> Address:
    """Return the broker to talk to: --url, RABBITMQ_URL, the config's, or the one on this machine; end with 78 if wrong."""
    environment = {**os.environ, **({"RABBITMQ_URL": url} if url else {})}
    try:
        if config is None:
            section = (
                settings.Broker(url=environment["RABBITMQ_URL"]) if "RABBITMQ_URL" in environment else settings.Broker()
            )
        else:
            found, problems = read(config, environment)
            wrong = [problem for problem in problems if problem.path.startswith(("broker", "RABBITMQ"))]
            if wrong:
                raise SettingsError(wrong)
            section = found.broker
        return address(section, heartbeat(environment))
    except (SettingsError, AddressError) as error:
        end(str(error), ExitCode.CONFIG)


def end(text: str, code: int) -> NoReturn:
    """Say on standard error why a command ends, and end it."""
    click.echo(text, err=True)
    sys.exit(int(code))


def talk(where: Address, work: Callable[[Connect], Awaitable[ResultT]]) -> ResultT:
    """Do one piece of work and return its result; end the process with a sentence if that fails.

    The work connects as often as it needs to; whatever it has opened is closed afterwards. A process can do this once.
    """
    quieten_pika()
    results: list[ResultT | Failure] = []
    opened: list[AmqpProtocol] = []

    async def whole(reactor: Any) -> None:
        async def connect() -> AmqpProtocol:
            opened.append(await Dial(Broker(where, reactor, __version__), f"rpcd command (pid {os.getpid()})").connect())
            return opened[-1]

        try:
            results.append(await work(connect))
        finally:
            for protocol in opened:
                await protocol.leave()

    def main(reactor: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(whole(reactor)).addErrback(results.append)

    with contextlib.suppress(SystemExit):  # react ends the process; here its result is wanted
        react(main)
    if not results or isinstance(results[-1], Failure):
        _explain(where, results[-1] if results else None)
    return results[-1]


def _explain(where: Address, failure: Any) -> NoReturn:
    error = failure.value if failure is not None else KeyboardInterrupt()
    if isinstance(error, BrokerRefused):
        end(str(error), error.exit_code)
    if isinstance(error, WaitTooLong):
        end(str(error), ExitCode.TEMPFAIL)
    if isinstance(error, Unroutable):
        end(str(error), UNAVAILABLE)
    if isinstance(error, PublishRefused):
        end(str(error), 1)
    if isinstance(error, RpcdError):
        end(f"{where.safe_url}: {error}", UNAVAILABLE)
    if isinstance(error, KeyboardInterrupt):
        end("interrupted", 130)
    raise error
