"""`rpcd declare`: make what a config needs on the broker, as an administrator does before a daemon that may not."""

import signal
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import attrs
import click
from twisted.internet.defer import CancelledError, Deferred

from rpcd.amqp.declare import carry_out
from rpcd.amqp.port import AmqpProtocol
from rpcd.amqp.rehearsal import shown
from rpcd.amqp.waiting import Once, WaitTooLong, unless
from rpcd.cli.broker import SIGNALS, UNAVAILABLE, Asked, Connect, broker_options, choose, environment_of, talk
from rpcd.cli.permissions import show_permissions
from rpcd.cli.show import end, json_line, say, table, tell
from rpcd.config import CONFIG, assemble, read
from rpcd.core.errors import BrokerRefused, ConnectionLost, ExitCode, ObjectMissing, Problem, SettingsError
from rpcd.core.settings import Settings
from rpcd.core.topology import Bind, Declaration, DeclareExchange, DeclareQueue, plan_consumer, plan_rest


@attrs.frozen
class Step:
    """What came of one declaration."""

    item: Declaration
    result: str
    error: str | None = None
    code: int = 0


class Declaring:
    """One run over a plan; goes on after whatever fails, and tells all of it."""

    def __init__(self, connect: Connect) -> None:
        """Take what makes a connection: a wrong declaration may cost the one that it was sent on."""
        self.steps: list[Step] = []
        self.interrupted = False
        self._connect = connect
        self._protocol: AmqpProtocol | None = None
        self._missing: set[str] = set()
        self._skipped: set[str] = set()

    async def run(self, plan: Iterable[Declaration]) -> list[Step]:
        """Carry out a plan in its order."""
        self._protocol = await self._connect()
        lost = False
        for item in plan:
            why = "interrupted" if self.interrupted else "the connection was lost" if lost else self._hindrance(item)
            if why is not None:
                self.steps.append(Step(item, f"skipped: {why}"))
                continue
            step = await self._one(item)
            self.steps.append(step)
            lost = step.code == UNAVAILABLE and self._protocol.is_lost
            if step.error is not None and not isinstance(item, Bind):
                self._missing.add(_end(item))
        return self.steps

    def _hindrance(self, item: Declaration) -> str | None:
        """Say why a step is not for an administrator to do, or can't be done."""
        if isinstance(item, DeclareQueue) and (reason := not_ours(item)) is not None:
            self._skipped.add(_end(item))
            return reason
        if isinstance(item, Bind):
            ends = {f"queue {item.queue}", f"exchange {item.exchange}"}
            if not item.queue or ends & self._skipped:
                return "its queue belongs to the daemon's own connection"
            if ends & self._missing:
                return "one end of it is missing"
        return None

    async def _one(self, item: Declaration) -> Step:
        if self._protocol is None or self._protocol.is_lost:
            self._protocol = await self._connect()
        try:
            return Step(item, await self._carry_out(self._protocol, item))
        except BrokerRefused as error:
            return Step(item, "failed", str(error), error.exit_code)
        except ObjectMissing as error:
            return Step(item, "missing" if _passive(item) else "failed", _missing(item, error), UNAVAILABLE)
        except WaitTooLong as error:
            self._protocol.abort(ConnectionLost(str(error)))
            return Step(item, "failed", f"{item.path}: {shown(item)}: {error}", ExitCode.TEMPFAIL)
        except ConnectionLost as error:
            return Step(item, "failed", f"{item.path}: {shown(item)}: {error}", UNAVAILABLE)

    async def _carry_out(self, protocol: AmqpProtocol, item: Declaration) -> str:
        if isinstance(item, Bind):
            await carry_out(protocol, [item])
            return "bound"
        there = True
        try:
            await carry_out(protocol, [attrs.evolve(item, passive=True)])
        except ObjectMissing:
            if item.passive:
                raise
            there = False
        if item.passive:
            return "is there (passive)"
        await carry_out(protocol, [item])
        return "was there" if there else "made"


def not_ours(item: DeclareQueue) -> str | None:
    """Say why a queue can't be made for somebody else; None if it can."""
    if not item.name:
        return "the broker names it, for the daemon's own connection"
    return "it is exclusive to the daemon's own connection" if item.exclusive else None


def _end(item: DeclareExchange | DeclareQueue) -> str:
    return f"{'exchange' if isinstance(item, DeclareExchange) else 'queue'} {item.name}"


def _passive(item: Declaration) -> bool:
    return not isinstance(item, Bind) and item.passive


def _missing(item: Declaration, error: ObjectMissing) -> str:
    said = str(error).removesuffix("; waiting for it")
    return f"{said}; it is passive, so somebody else has to make it" if _passive(item) else said


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be declared, without a broker.")
@click.option("--permissions", "rights", is_flag=True, help="Show the least that the daemon's user needs, without a broker.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@broker_options
def declare(dry_run: bool, rights: bool, as_json: bool, asked: Asked) -> None:
    """Make the exchanges, queues and bindings of a config.

    Retry and archive queues are included. This is for an administrator: daemons with `declare = false` in [service] may then
    run as a user who may not configure anything. What is there already and agrees stays as it is, so it can be run again.
    What fails does not keep the rest from being made; all failures are told.

    Queues that are exclusive or named by the broker are left to the daemon, and what is `passive` in the config is only
    checked for. Handlers are imported only if the config has `modules` or a `namespace`.

    Exit code: 0 if everything is there now, 69 if something passive is missing or the broker can't be reached, 75 if the
    broker does not answer, 77 if a permission is missing, 78 if the config is wrong or what exists differs from it.

    Example: rpcd declare --config /etc/rpcd/shop.toml --url amqp://admin:PASSWORD@rabbit/shop
    """
    try:
        settings = planning(asked.config, environment_of(asked), asked.virtual_host)
    except SettingsError as error:
        _end_wrong([(str(each), int(ExitCode.CONFIG)) for each in error.problems], as_json)
    plan = whole(settings)
    if rights or dry_run:
        show_permissions(settings, as_json) if rights else _print([Step(each, _intended(each)) for each in plan], as_json)
        return

    async def work(connect: Connect) -> list[Step]:
        declaring = Declaring(connect)
        running = Deferred.fromCoroutine(declaring.run(plan))
        try:
            return await unless(Once(), running)
        except CancelledError:
            declaring.interrupted = True
            await running  # to the end of the step that is under way: only then is it known what is there
            return declaring.steps

    signals: list[int] = []
    steps = talk(choose(asked), work, lambda text, code: _end_wrong([(text, code)], as_json), signals.append)
    _print(steps, as_json)
    if signals and any(step.result == "skipped: interrupted" for step in steps):
        end(SIGNALS[signal.Signals(signals[0])], 128 + signals[0])
    sys.exit(max((step.code for step in steps), default=0))


def whole(settings: Settings) -> list[Declaration]:
    """Return all that a config declares, whatever it says about `declare`."""
    return declarations(attrs.evolve(settings, service=attrs.evolve(settings.service, declare=True)))


def planning(config: str | None, environment: dict[str, str], virtual_host: str | None = None) -> Settings:
    """Read a config, and what its modules and namespaces add to it; raise SettingsError with every problem."""
    if config is None:
        raise SettingsError([Problem("--config", "no config file", f"give --config FILE, or set {CONFIG}")])
    settings, problems = read(config, environment, virtual_host)
    if problems:
        raise SettingsError([Problem(f"{config}: {each.path}", each.what, each.remedy) for each in problems])
    if settings.service.modules or any(each.namespace for each in settings.consumers.values()):
        settings, _plans = assemble(config, environment, virtual_host)  # only imports tell what these need
    return settings


def declarations(settings: Settings) -> list[Declaration]:
    """Return what all consumers need, and what none of them does, each once."""
    wanted = [item for name in settings.consumers for item in plan_consumer(settings, name)] + plan_rest(settings)
    once: list[Declaration] = []
    for item in wanted:
        if item not in once:
            once.append(item)
    return once


def _intended(item: Declaration) -> str:
    if isinstance(item, Bind):
        return "bind" if item.queue else "skip: its queue belongs to the daemon's own connection"
    if isinstance(item, DeclareQueue) and (reason := not_ours(item)) is not None:
        return f"skip: {reason}"
    return "check (passive)" if item.passive else "declare"


def _details(item: Declaration) -> str:
    """Show what a declaration says besides its name."""
    words = [] if isinstance(item, Bind) else [word for word in ("durable", "auto_delete") if getattr(item, word)]
    if isinstance(item, DeclareExchange):
        words.insert(0, item.type)
    return ", ".join([*words, *(f"{name}={value}" for name, value in item.arguments.items())])


def _print(steps: list[Step], as_json: bool) -> None:
    if as_json:
        rows: list[dict[str, Any]] = [
            {"path": step.item.path, "what": shown(step.item), "result": step.result, "error": step.error} for step in steps
        ]
        say(json_line({"ok": not any(step.error for step in steps), "steps": rows}))
        return
    table(("what", "result", "how"), [(shown(step.item), step.result, _details(step.item)) for step in steps])
    for step in steps:
        if step.error is not None:
            tell(step.error)


def _end_wrong(problems: list[tuple[str, int]], as_json: bool) -> NoReturn:
    """Say what keeps anything from being declared, in the form that was asked for, and end."""
    code = max(code for _text, code in problems)
    if not as_json:
        end("\n".join(text for text, _code in problems), code)
    say(json_line({"ok": False, "steps": [], "problems": [text for text, _code in problems]}))
    sys.exit(code)
