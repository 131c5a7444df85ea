"""`rpcd check`: find every mistake of a config without running it."""

import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click
import msgspec
from twisted.internet.defer import CancelledError, Deferred

from rpcd.amqp.plan import Plan
from rpcd.amqp.rehearsal import Finding, Rehearsal
from rpcd.amqp.waiting import Once, unless
from rpcd.cli.broker import Connect, Where, end, say, talk
from rpcd.config import CONFIG, assemble
from rpcd.core.address import address
from rpcd.core.errors import BrokerRefused, ExitCode, Problem, SettingsError
from rpcd.core.load import heartbeat
from rpcd.core.settings import Settings
from rpcd.core.topology import Declaration, plan_rest

WIDE = 250
"""Columns of a table that goes to a file or a pipe, where nothing needs to be folded."""


@click.command()
@click.option("-c", "--config", metavar="FILE", envvar=CONFIG, help=f"The config file; {CONFIG} if not given.")
@click.option(
    "--broker",
    is_flag=True,
    help="Also try every declaration, binding and permission on the broker; nothing is left behind.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(config: str | None, broker: bool, as_json: bool) -> None:
    """Check a config file and the handlers that it names, without running anything but their imports.

    Every mistake is shown at once, with its place and the way out. Exit code: 0 if all is well, 78 if the config or an
    existing queue is wrong, 77 if a permission is missing, 69 if the broker can't be reached.

    Example: rpcd check --config /etc/rpcd/shop.toml --broker
    """
    if config is None:
        _wrong([Problem("--config", "no config file", f"give --config FILE, or set {CONFIG}")], ExitCode.CONFIG, as_json)
    try:
        settings, plans = assemble(config, os.environ)
    except SettingsError as error:
        _wrong(error.problems, ExitCode.CONFIG, as_json)
    findings = _rehearse(config, settings, plans, as_json) if broker else []
    if as_json:
        _print_json(findings)
    else:
        _print(config, plans, findings)
    sys.exit(_code(findings))


def _wrong(problems: Sequence[Problem], code: int, as_json: bool) -> NoReturn:
    """Show the problems in the form that was asked for, and end."""
    if not as_json:
        end("\n".join(map(str, problems)), code)
    found = [{"path": problem.path, "what": problem.what, "remedy": problem.remedy} for problem in problems]
    say(msgspec.json.encode({"ok": False, "problems": found}))
    sys.exit(int(code))


def _rehearse(config: str, settings: Settings, plans: list[Plan], as_json: bool) -> list[Finding]:
    steps: list[Declaration] = []
    for item in [item for plan in plans for item in plan.declarations] + plan_rest(settings):
        if item not in steps:
            steps.append(item)
    replies = any(plan.section.reply != "none" for plan in plans)

    rehearsal = Rehearsal()
    left: list[str] = []

    interrupted = Once()

    async def work(connect: Connect) -> list[Finding]:
        going_on = itertools.takewhile(lambda _step: not interrupted.happened, steps)
        running = Deferred.fromCoroutine(rehearsal.run(await connect(), going_on, replies))
        try:
            return await unless(Once(), running)
        except CancelledError:
            interrupted.fire()
            await running  # to the end of the step that is under way: only then it is known what is to be removed
            raise
        finally:
            if rehearsal.made:  # over a connection of its own: a wrong declaration may have cost the first one
                left.extend(await rehearsal.remove(await connect()))

    def failed(text: str, code: int) -> NoReturn:
        if not as_json:
            end(text, code)
        _wrong([Problem("broker", text)], code, as_json)

    source = "RABBITMQ_URL" if "RABBITMQ_URL" in os.environ else f"[broker] of {config}"
    findings = talk(Where(address(settings.broker, heartbeat(os.environ)), source), work, failed)
    for name in left:
        click.echo(f"left behind, because it is in use by now: {name}", err=True)
    return findings


def _handlers(plan: Plan) -> str:
    """Name a consumer's handler; those of a namespace each with its exchange."""
    paths = [route.target.path for route in plan.routes]
    if not plan.exchanges:
        return paths[0]
    return "\n".join(f"{exchange} -> {path}" for exchange, path in zip(plan.exchanges, paths, strict=True))


def _code(findings: list[Finding]) -> int:
    codes = [
        finding.error.exit_code if isinstance(finding.error, BrokerRefused) else ExitCode.CONFIG
        for finding in findings
        if finding.error
    ]
    return int(max(codes, default=0))


def _print_json(findings: list[Finding]) -> None:
    rows: list[dict[str, Any]] = [
        {"path": each.path, "what": each.what, "result": each.result, "error": str(each.error) if each.error else None}
        for each in findings
    ]
    say(msgspec.json.encode({"ok": not any(each.error for each in findings), "broker": rows}))


def _print(config: str, plans: list[Plan], findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    table = Table("consumer", "queue", "handler", "workers", "prefetch", "on_error", box=None, pad_edge=False)
    for plan in plans:
        section = plan.section
        table.add_row(
            plan.name,
            plan.queue or "(named by the broker)",
            _handlers(plan),
            str(section.workers),
            str(section.window),
            section.on_error,
        )
    console.print(table)
    if findings:
        console.print()
        steps = Table("broker", "result", box=None, pad_edge=False)
        for finding in findings:
            steps.add_row(finding.what, finding.result)
        console.print(steps)
    errors = [finding for finding in findings if finding.error]
    for finding in errors:
        click.echo(str(finding.error), err=True)
    if not errors:
        click.echo(f"\n{config}: all is well")
