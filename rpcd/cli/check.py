"""`rpcd check`: find every mistake of a config without running it."""

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import attrs
import click
from twisted.internet.defer import CancelledError, Deferred

from rpcd.amqp.plan import Plan
from rpcd.amqp.rehearsal import Finding, Rehearsal
from rpcd.amqp.waiting import Once, unless
from rpcd.cli.broker import CONFIG_FILE, Asked, Connect, Where, environment_of, source_of, talk, virtual_host_option
from rpcd.cli.show import end, json_line, say, table, tell
from rpcd.config import CONFIG, assemble
from rpcd.core import overlay
from rpcd.core.address import address
from rpcd.core.caution import cautions
from rpcd.core.errors import BrokerRefused, ExitCode, Problem, SettingsError
from rpcd.core.load import heartbeat
from rpcd.core.settings import Settings
from rpcd.core.topology import Declaration, plan_rest
from rpcd.core.versions import Advice, Version, advise
from rpcd.files import parse
from rpcd.ops import health


@click.command()
@click.option(
    "-c", "--config", type=CONFIG_FILE, metavar="FILE", envvar=CONFIG, help=f"The config file; {CONFIG} if not given."
)
@virtual_host_option
@click.option(
    "--broker",
    is_flag=True,
    help="Also try every declaration, binding and permission on the broker; nothing is left behind.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(config: str | None, virtual_host: str | None, broker: bool, as_json: bool) -> None:
    """Check a config file and the handlers that it names.

    Nothing is run but their imports. Every mistake is shown at once, with its place and the way out.

    What another version of RabbitMQ does differently with it is told as advice; with --broker, what this broker's does.

    Exit code: 0 if all is well, 69 if the broker can't be reached, 77 if a permission is missing, 78 if the config or an
    existing queue is wrong.

    A file with [virtual_hosts] is checked as it stands, if it has consumers, and with each of them in turn; --virtual-host
    picks one. The broker is asked about the file as it stands, or about that one.

    Example: rpcd check --config /etc/rpcd/shop.toml --broker
    """
    if config is None:
        _wrong([Problem("--config", "no config file", f"give --config FILE, or set {CONFIG}")], ExitCode.CONFIG, as_json)
    try:
        assembled = _assembled(config, virtual_host)
    except SettingsError as error:
        _wrong(error.problems, ExitCode.CONFIG, as_json)
    if broker and virtual_host not in assembled:
        what, known = "the file has no consumers of its own", ", ".join(map(str, assembled))
        _wrong([Problem("--broker", what, f"pick one with --virtual-host: {known}")], ExitCode.CONFIG, as_json)
    version, findings = _rehearse(config, *assembled[virtual_host], as_json) if broker else ((), None)
    told = [assembled[virtual_host]] if broker else assembled.values()
    advice = list(
        dict.fromkeys(each for settings, plans in told for each in [*advise(settings, version), *_other(settings, plans)])
    )
    by_way = {way: plans for way, (_, plans) in assembled.items()}
    if as_json:
        _print_json(by_way, findings, advice)
    else:
        _print(config, by_way, findings or [], advice)
    sys.exit(_code(findings or [], advice))


def _other(settings: Settings, plans: list[Plan]) -> list[Advice]:
    said = [Problem("service.http", said) for said in health.warnings(settings.service.http)]
    return list(map(Advice, [*cautions({plan.name: plan.section for plan in plans}), *said]))


def _assembled(config: str, virtual_host: str | None) -> dict[str | None, tuple[Settings, list[Plan]]]:
    """Assemble what may be run: with the overlay that is asked for, else the file as it stands and with each overlay.

    Raises SettingsError; a problem that only some of them have names these.
    """
    environment = environment_of(Asked(config, None, virtual_host))
    ways = [virtual_host] if virtual_host is not None else _ways(parse(config, environment))
    made = {}
    told: dict[Problem, list[str | None]] = {}
    for way in ways:
        try:
            made[way] = assemble(config, environment, way)
        except SettingsError as error:
            for problem in error.problems:
                told.setdefault(problem, []).append(way)
    if told:
        raise SettingsError([_qualified(config, each, where, ways) for each, where in told.items()])
    return made


def _ways(raw: Mapping[str, Any]) -> list[str | None]:
    service = raw.get("service")
    works = raw.get("consumers") or (isinstance(service, dict) and service.get("modules"))
    overlays = overlay.names(raw)
    return [None, *overlays] if works or not overlays else [*overlays]


def _qualified(config: str, problem: Problem, where: Sequence[str | None], ways: Sequence[str | None]) -> Problem:
    """Name the overlays that a problem arises with, unless its path does, or it does not depend on them."""
    if None in where or len(where) == len(ways) or problem.path.startswith(f"{config}: {overlay.OVERLAYS}."):
        return problem
    return attrs.evolve(problem, path=f"{problem.path} (with {', '.join(f'{overlay.OVERLAYS}.{way}' for way in where)})")


def _wrong(problems: Sequence[Problem], code: int, as_json: bool) -> NoReturn:
    """Show the problems in the form that was asked for, and end."""
    if not as_json:
        end("\n".join(map(str, problems)), code)
    say(json_line({"ok": False, "problems": [_told(problem) for problem in problems]}))
    sys.exit(int(code))


def _told(problem: Problem) -> dict[str, str]:
    return {"path": problem.path, "what": problem.what, "remedy": problem.remedy}


def _rehearse(config: str, settings: Settings, plans: list[Plan], as_json: bool) -> tuple[Version, list[Finding]]:
    """Try everything on the broker; return its version and what came of each step."""
    steps: list[Declaration] = []
    for item in [item for plan in plans for item in plan.declarations] + plan_rest(settings):
        if item not in steps:
            steps.append(item)
    replies = any(plan.section.reply != "none" for plan in plans)
    consumed = {plan.name: plan.queue for plan in plans}

    rehearsal = Rehearsal()
    left: list[str] = []
    versions: list[Version] = []

    interrupted = Once()

    async def work(connect: Connect) -> list[Finding]:
        going_on = itertools.takewhile(lambda _step: not interrupted.happened, steps)
        protocol = await connect()
        versions.append(protocol.broker_version)
        running = Deferred.fromCoroutine(rehearsal.run(protocol, going_on, consumed, replies))
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

    where = Where(address(settings.broker, heartbeat(os.environ)), source_of(Asked(config, None, None)))
    findings = talk(where, work, failed)
    for name in left:
        tell(f"left behind, because it is in use by now: {name}")
    return versions[0], findings


def _handlers(plan: Plan) -> str:
    """Name a consumer's handler; those of a namespace each with its exchange."""
    paths = [route.target.path for route in plan.routes]
    if not plan.exchanges:
        return paths[0]
    return "\n".join(f"{exchange} -> {path}" for exchange, path in zip(plan.exchanges, paths, strict=True))


def _code(findings: list[Finding], advice: list[Advice]) -> int:
    codes = [
        finding.error.exit_code if isinstance(finding.error, BrokerRefused) else ExitCode.CONFIG
        for finding in findings
        if finding.error
    ]
    return int(max([*codes, *(ExitCode.CONFIG for each in advice if each.grave)], default=0))


def _print_json(
    assembled: Mapping[str | None, list[Plan]], findings: list[Finding] | None, advice: Sequence[Advice]
) -> None:
    """Print everything that the tables show; `broker` is null if nobody has asked it."""
    keys = ("name", "queue", "handler", "workers", "prefetch", "on_error")
    consumers = [
        {**dict(zip(keys, _row(plan), strict=True)), "workers": plan.section.workers, "prefetch": plan.section.window}
        | {"virtual_host": way}
        for way, plans in assembled.items()
        for plan in plans
    ]
    rows: list[dict[str, Any]] = [
        {"path": each.path, "what": each.what, "result": each.result, "error": str(each.error) if each.error else None}
        for each in findings or ()
    ]
    ok = not (any(row["error"] for row in rows) or any(each.grave for each in advice))
    notes = [{**_told(each.problem), "grave": each.grave} for each in advice]
    say(json_line({"ok": ok, "consumers": consumers, "broker": None if findings is None else rows, "advice": notes}))


def _print(
    config: str, assembled: Mapping[str | None, list[Plan]], findings: list[Finding], advice: Sequence[Advice]
) -> None:
    several = ("virtual host",) if len(assembled) > 1 else ()
    columns = ("consumer", "queue", "handler", "workers", "prefetch", "on_error", *several)
    table(columns, [(*_row(plan), *([way or ""] if several else [])) for way, plans in assembled.items() for plan in plans])
    if findings:
        say("")
        table(("broker", "result"), [(finding.what, finding.result) for finding in findings])
    errors = [finding for finding in findings if finding.error]
    for finding in errors:
        tell(str(finding.error))
    for each in advice:
        tell(f"{'error' if each.grave else 'advice'}: {each}")
    if not (errors or any(each.grave for each in advice)):
        say(f"\n{config}: all is well")


def _row(plan: Plan) -> tuple[str, ...]:
    section = plan.section
    return (
        plan.name,
        plan.queue or "(named by the broker)",
        _handlers(plan),
        str(section.workers),
        str(section.window),
        section.on_error,
    )
