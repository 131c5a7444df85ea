"""`rpcd archive`: look at what was given up, send it back to work, write it down, or throw it away."""

import time
from typing import Any

import attrs
import click

from rpcd.cli.archive_file import File, Printer
from rpcd.cli.archive_replay import Replays
from rpcd.cli.archive_run import Run, agreed, aim_at, counted, exported
from rpcd.cli.archive_show import COLUMNS, as_json, details, details_json, row
from rpcd.cli.archive_where import Chosen, archives_argument, choosing
from rpcd.cli.archive_work import Drops, Reads
from rpcd.cli.compose import USAGE
from rpcd.cli.show import end, table, tell
from rpcd.cli.stream import Pace
from rpcd.core.archived import Archived

ROWS = 1000
"""Rows of a table, if nobody says how many."""

JSON = click.option("--json", "in_json", is_flag=True, help="Print JSON.")
YES = click.option("--yes", is_flag=True, help="Do not ask.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Show which messages are meant, and do nothing.")
TO = click.option(
    "--to", metavar="QUEUE", help="Another queue to send them to; EXCHANGE/KEY publishes them to an exchange instead."
)


@click.group()
def archive() -> None:
    """Look at archived messages, replay, drop or export them.

    An archive keeps what was given up: {queue}.archive. Named are queues or consumers of the config; all of its archives are
    meant if none is. `--queue NAME.archive` names one without a config. Reading leaves every message where it is, in its
    order; only `replay` and `drop` take messages away, each when that is safe. While a command runs, others don't see the
    messages that it holds.

    Exit code: 0 done, 1 there is no such message, or some can't be replayed, 2 wrong usage, 69 an archive or the broker
    can't be reached, 74 the result can't be written, 75 no answer in time, 77 refused by the broker, 78 wrong config, 130
    and 143 ended by a signal.

    Example: rpcd archive list orders --config /etc/rpcd/shop.toml

    Example: rpcd archive replay --queue orders.archive --exception TimeoutError --newer 2h
    """


@archive.command("list")
@archives_argument
@JSON
@choosing
def list_(in_json: bool, chosen: Chosen) -> None:
    """List archived messages, without their bodies and headers.

    The first 1000 are shown if --limit does not say otherwise; with --json all of them, one object a line.

    Exit code: 0 done, 2 wrong usage, 69 an archive or the broker can't be reached, 74 the list can't be written, 77 a
    permission is missing, 78 wrong config.

    Example: rpcd archive list orders --older 1d --config /etc/rpcd/shop.toml
    """
    _list(chosen, in_json)


def _list(chosen: Chosen, in_json: bool) -> None:
    now, several, rows = time.time(), len(chosen.places) > 1, list[tuple[str, ...]]()
    printer = Printer()

    def show(message: Archived) -> None:
        if in_json:
            printer(as_json(message))
        else:
            rows.append((*((message.archive,) if several else ()), *row(message, now)))

    run = Run(chosen, Reads(show), "listed", silent=True)
    report = run.sweep(None if in_json else ROWS)
    if rows:
        table((*(("archive",) if several else ()), *COLUMNS), rows)
    if not in_json and chosen.limit is None and report.done == ROWS < report.waiting:
        tell(f"these are the first {ROWS} of about {report.waiting}; say --limit N for more")
    elif not in_json and not report.done and report.error is None and not report.missing:
        tell(f"no such message; {counted(report.waiting)} there" if report.waiting else "nothing is archived")
    printer.end()
    run.finish()


@archive.command()
@click.argument("message_id", metavar="ID")
@click.option("--headers", is_flag=True, help="Show the values of the application's headers: they may be secret.")
@click.option("--body", is_flag=True, help="Show the body: it may be secret.")
@JSON
@choosing
def show(message_id: str, headers: bool, body: bool, in_json: bool, chosen: Chosen) -> None:
    """Show everything about the archived message ID.

    ID is what `rpcd archive list` shows, or the id of the archived copy. Several may have the same message id: all are
    shown.

    Exit code: 0 done, 1 there is no such message, 69 an archive or the broker can't be reached, 74 it can't be written, 77 a
    permission is missing, 78 wrong config.

    Example: rpcd archive show 6f1d2c --queue orders.archive --body
    """
    wanted = attrs.evolve(chosen.wanted, ids=chosen.wanted.ids | {message_id})
    now, printer = time.time(), Printer()

    def one(message: Archived) -> None:
        lines = [details_json(message, headers, body)] if in_json else details(message, headers, body, now)
        printer("\n".join(lines))

    run = Run(attrs.evolve(chosen, wanted=wanted), Reads(one), "shown", silent=True)
    report = run.sweep()
    printer.end()
    run.finish()
    if not report.done:
        end(f"there is no message {message_id!r} in {', '.join(place.archive for place in chosen.places)}", 1)


@archive.command()
@click.argument("file", type=click.Path(), metavar="FILE")
@archives_argument
@TO
@JSON
@choosing
def export(file: str, to: str | None, in_json: bool, chosen: Chosen) -> None:
    """Write archived messages to FILE, one JSON object a line; they stay in the archive.

    Each line holds the whole message, body and headers included, so FILE is made for its owner's eyes only. It must not
    exist; - is standard output. `rpcd publish "" "" --file FILE --messages` publishes them to the queues that they belong
    to, as replay does.

    Exit code: 0 done, 2 FILE exists or can't be made, 69 an archive or the broker can't be reached, 74 FILE can't be
    written, 77 a permission is missing, 78 wrong config.

    Example: rpcd archive export orders.jsonl orders --config /etc/rpcd/shop.toml
    """
    aim = aim_at(to, chosen.places)
    written = File(file)
    deed = Reads(lambda message: written.write(exported(message, aim)))
    run = Run(chosen, deed, "exported", in_json, silent=file == "-", file=written)
    run.sweep()
    run.finish()


@archive.command()
@archives_argument
@click.option("--export", "file", type=click.Path(), metavar="FILE", help="Write them to this file first, as export does.")
@DRY_RUN
@YES
@JSON
@choosing
def drop(file: str | None, dry_run: bool, yes: bool, in_json: bool, chosen: Chosen) -> None:
    """Throw archived messages away.

    With --export, a message is dropped only when it is written and safe on the disk.

    Exit code: 0 done, 2 wrong usage, or nobody who could say yes, 69 an archive or the broker can't be reached, 74 the file
    can't be written, 77 a permission is missing, 78 wrong config, 130 ended by Ctrl-C.

    Example: rpcd archive drop orders --older 30d --export old.jsonl --config /etc/rpcd/shop.toml
    """
    if dry_run:
        _list(chosen, in_json)
        return
    if file == "-":
        end("--export: what is only in a pipe is not safe; name a file", USAGE)
    agreed(yes, f"Drop {chosen} for good?")
    aim = aim_at(None, chosen.places)
    written = File(file) if file is not None else None

    def keep(message: Archived) -> None:
        if written is not None:
            written.write(exported(message, aim))

    deed = Drops(keep, lambda: None if written is None else written.sync())
    run = Run(chosen, deed, "dropped", in_json, file=written)
    run.sweep()
    run.finish()


@archive.command()
@archives_argument
@TO
@click.option("--rate", type=click.FloatRange(min=0.001), metavar="N", help="Messages a second, at most.")
@click.option(
    "--window",
    type=click.IntRange(min=1, max=10_000),
    default=100,
    show_default=True,
    metavar="N",
    help="Messages on their way at a time: as many may come twice if this is killed.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.001, max=86_400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a confirm.",
)
@DRY_RUN
@YES
@JSON
@choosing
def replay(to: str | None, dry_run: bool, yes: bool, in_json: bool, chosen: Chosen, **pace: Any) -> None:
    """Send archived messages back to their queues, to be handled once more.

    Each begins anew, with all of its attempts. It leaves the archive when the broker has confirmed that it is back in its
    queue, so nothing is lost whenever this ends; run it again to go on. If it is killed, up to --window messages that went
    out already are sent a second time by the next run. What is archived again meanwhile is left for the next run.

    Exit code: 0 done, 1 some can't be replayed and stay, 2 wrong usage, or nobody who could say yes, 69 no queue takes it,
    an archive or the broker can't be reached, 75 the broker did not confirm in time, 77 a permission is missing, 78 wrong
    config, 130 ended by Ctrl-C.

    Example: rpcd archive replay orders --exception TimeoutError --newer 2h --rate 50 --config /etc/rpcd/shop.toml

    Example: rpcd archive replay orders --id 6f1d2c --to orders.debug --yes --config /etc/rpcd/shop.toml
    """
    aim = aim_at(to, chosen.places)
    if dry_run:
        _list(chosen, in_json)
        return
    agreed(yes, f"Replay {chosen}{f' to {to}' if to is not None else ''}?")
    run = Run(chosen, Replays(aim, Pace(**pace)), "replayed", in_json)
    run.sweep()
    run.finish()
