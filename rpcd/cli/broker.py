"""What the commands that talk to a broker have in common: which broker, a reactor for one piece of work, how it ends."""

import contextlib
import functools
import os
import signal
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, Generic, NoReturn, TypeVar

import attrs
import click
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import react
from twisted.python.failure import Failure

from rpcd import __version__
from rpcd.amqp.declare import SOURCE, login_refusal
from rpcd.amqp.dial import Broker, Dial
from rpcd.amqp.plan import connection_name
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.waiting import WaitTooLong
from rpcd.cli.show import end
from rpcd.config import CONFIG, VIRTUAL_HOST, read
from rpcd.core import settings
from rpcd.core.address import Address, AddressError, address
from rpcd.core.errors import (
    BrokerRefused,
    ChannelClosed,
    ConnectionLost,
    ExitCode,
    LoginRefused,
    ObjectMissing,
    PublishRefused,
    PublishTimeout,
    ReplyCode,
    RpcdError,
    SettingsError,
    Unroutable,
)
from rpcd.core.load import heartbeat
from rpcd.ops.announced import announced
from rpcd.ops.logs import quieten_pika

UNAVAILABLE = 69
"""The broker, or a queue of it, can't be reached; the word of sysexits(3)."""

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""What ends a command early, and what it then says; its exit code is 128 and the signal's number, as a shell's would be."""

DEV = "`rpcd dev`"
"""Where a URL comes from that nobody wrote."""

_CODES = (
    (WaitTooLong, ExitCode.TEMPFAIL),
    (PublishTimeout, ExitCode.TEMPFAIL),
    (Unroutable, UNAVAILABLE),
    (PublishRefused, 1),
)
"""How a command ends over what says everything by itself."""

ResultT = TypeVar("ResultT")

Connect = Callable[[], Awaitable[AmqpProtocol]]


@attrs.frozen
class Where:
    """The broker to talk to, and where that is written."""

    address: Address
    source: str = SOURCE


@attrs.frozen
class Asked:
    """What a command was told about the broker; `broker_options` gives it to the command as `asked`."""

    config: str | None
    url: str | None
    virtual_host: str | None


CONFIG_FILE = click.Path()  # not checked here: what is wrong with a config is told in one way by all
"""The type of --config: a shell completes it as the name of a file."""


def virtual_host_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --virtual-host to a command that reads a config."""
    said = f"Lay the config's [virtual_hosts.NAME] over its other sections; {VIRTUAL_HOST} if not given."
    return click.option("--virtual-host", metavar="NAME", envvar=VIRTUAL_HOST, help=said)(command)


def broker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config, --url and --virtual-host to a command, and hand it all as one argument, `asked`."""

    @click.option(
        "-c",
        "--config",
        type=CONFIG_FILE,
        metavar="FILE",
        envvar=CONFIG,
        help=f"Take [broker] from this config; {CONFIG} if not given.",
    )
    @click.option("--url", metavar="URL", help="The broker (amqp://...); wins over RABBITMQ_URL and the config.")
    @virtual_host_option
    @functools.wraps(command)
    def with_options(*arguments: Any, config: str | None, url: str | None, virtual_host: str | None, **options: Any) -> Any:
        return command(*arguments, asked=Asked(config, url, virtual_host), **options)

    return with_options


def environment_of(asked: Asked) -> dict[str, str]:
    """Return the environment to read a config in: --url stands for RABBITMQ_URL, and so does the broker of `rpcd dev`."""
    url = asked.url if asked.url is not None else _of_dev(asked)
    return {**os.environ, **({"RABBITMQ_URL": url} if url is not None else {})}


def _of_dev(asked: Asked) -> str | None:
    """Return the URL of the private broker that `rpcd dev` runs for the config, if nothing else names one."""
    return announced(asked.config) if asked.config and "RABBITMQ_URL" not in os.environ else None


def _variable(asked: Asked) -> str:
    """Return what the user knows the environment's RABBITMQ_URL by."""
    return "--url" if asked.url is not None else DEV if _of_dev(asked) is not None else "RABBITMQ_URL"


def source_of(asked: Asked) -> str:
    """Say where it is written which broker to talk to."""
    if "RABBITMQ_URL" in environment_of(asked):
        return _variable(asked)
    return f"[broker] of {asked.config}" if asked.config else "--url, or RABBITMQ_URL"


def choose(asked: Asked) -> Where:
    """Return the broker to talk to: --url, RABBITMQ_URL, the config's, or the one on this machine; end with 78 if wrong.

    --virtual-host lays its overlay over the config; it wins over the virtual host in the URL.
    """
    config, virtual_host, environment = asked.config, asked.virtual_host, environment_of(asked)
    variable, source = _variable(asked), source_of(asked)
    try:
        beat = heartbeat(environment)
    except AddressError as error:
        end(f"RABBITMQ_HEARTBEAT: {error}", ExitCode.CONFIG)
    try:
        if config is not None:
            return Where(address(_section(config, environment, variable, virtual_host), beat), source)
        usual = settings.Broker(virtual_host=virtual_host)
        return Where(address(attrs.evolve(usual, url=environment.get("RABBITMQ_URL", usual.url)), beat), source)
    except SettingsError as error:
        end(str(error), ExitCode.CONFIG)
    except AddressError as error:
        end(f"{source}: {error}", ExitCode.CONFIG)


def _section(config: str, environment: dict[str, str], variable: str, virtual_host: str | None) -> settings.Broker:
    """Read [broker] of a config; `variable` is what the user knows RABBITMQ_URL by."""
    found, problems = read(config, environment, virtual_host)
    overlay = f"virtual_hosts.{virtual_host}"
    wrong = [each for each in problems if each.path.startswith(("broker", "mode", "RABBITMQ", f"{overlay}.broker"))]
    wrong += [each for each in problems if each.path == overlay]
    if wrong:
        places = {each: variable if each.path == "RABBITMQ_URL" else f"{config}: {each.path}" for each in wrong}
        raise SettingsError([attrs.evolve(each, path=place) for each, place in places.items()])
    return found.broker


class Talk(Generic[ResultT]):
    """One piece of work with a broker, on a reactor that serves it alone; a signal ends it early, but in good order."""

    def __init__(self, where: Address, work: Callable[[Connect], Awaitable[ResultT]]) -> None:
        """Prepare it; `result` and `failure` tell later what came of it, `signal` what ended it early.

        A signal cancels what the work awaits. Work that has something to say or to do even then catches CancelledError.
        """
        self.result: list[ResultT] = []
        self.failure: BaseException | None = None
        self.signal: int | None = None
        self._where = where
        self._work = work
        self._opened: list[AmqpProtocol] = []
        self._dial: Dial | None = None
        self._whole: Deferred[None] | None = None
        self._reactor: Any = None

    def begin(self, reactor: Any) -> Deferred[None]:
        """Do the work and close what it has opened; never fails."""
        self._reactor = reactor
        reactor.callWhenRunning(self._heed)
        self._whole = Deferred.fromCoroutine(self._do())
        return self._whole.addErrback(self._failed)

    async def _do(self) -> None:
        try:
            self.result.append(await self._work(self._connect))
        finally:
            for protocol in self._opened:
                await protocol.leave()

    async def _connect(self) -> AmqpProtocol:
        self._dial = Dial(Broker(self._where, self._reactor, __version__), title())
        try:
            self._opened.append(await self._dial.connect())
        except ConnectionLost:
            if self.signal is not None:
                raise CancelledError from None
            raise
        finally:
            self._dial = None
        return self._opened[-1]

    def _failed(self, failure: Failure) -> None:
        self.failure = failure.value

    def _heed(self) -> None:
        """Take the signals over from the reactor, which would cut the connections and say so."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Give up at the first signal; the second ends the process at once."""
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        self.signal = number
        self._reactor.callFromThread(self._give_up)

    def _give_up(self) -> None:
        if self._dial is not None:
            self._dial.cancel()  # it would go on to the next host if it was only interrupted
        elif self._whole is not None and not self.result:
            self._whole.cancel()


def title() -> str:
    """Return what RabbitMQ's own pages show for the connections of this command."""
    context, words = click.get_current_context(silent=True), list[str]()
    while context is not None and context.parent is not None:
        words.insert(0, str(context.info_name))
        context = context.parent
    return connection_name(" ".join(words) or "command")


def talk(
    where: Where,
    work: Callable[[Connect], Awaitable[ResultT]],
    failed: Callable[[str, int], NoReturn] = end,
    stopped: Callable[[int], object] = lambda _number: None,
) -> ResultT:
    """Do one piece of work and return its result; tell `failed` why and with which exit code if there is none.

    `stopped` is told the number of a signal that came, if there is a result all the same. The work connects as often as it
    needs to; whatever it has opened is closed afterwards. A process can do this once.
    """
    quieten_pika()
    talking = Talk(where.address, work)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with contextlib.suppress(SystemExit):  # react ends the process; here its result is wanted
        react(talking.begin)
    for number, handler in before.items():
        signal.signal(number, handler)
    if talking.result and talking.signal is not None:
        stopped(talking.signal)
    if talking.result:  # what is done is done, even if a signal came while the connections were closed
        return talking.result[0]
    if talking.signal is not None:
        return failed(SIGNALS[signal.Signals(talking.signal)], 128 + talking.signal)
    return failed(*explain(where, talking.failure))


def explain(where: Where, error: BaseException | None) -> tuple[str, int]:
    """Return why a piece of work failed, as a sentence and an exit code; raise what is a fault of rpcd."""
    if isinstance(error, LoginRefused):
        error = login_refusal(error, where.address, where.source)
    if isinstance(error, ChannelClosed) and error.code == ReplyCode.ACCESS_REFUSED:
        said = f"{where.address.safe_url}: {error}; grant the permission `write` on that exchange"
        error = BrokerRefused(said, ExitCode.NOPERM)
    if isinstance(error, BrokerRefused):
        return str(error), error.exit_code
    if isinstance(error, ObjectMissing):
        return str(error).removesuffix("; waiting for it"), UNAVAILABLE  # which is what a daemon would do
    for kind, code in _CODES:
        if isinstance(error, kind):
            return str(error), code
    if isinstance(error, RpcdError):
        return f"{where.address.safe_url}: {error}", UNAVAILABLE
    raise error or RuntimeError("the reactor ended before the work was done")
