"""How `rpcd archive` runs a sweep over archives, and what it says at the end of it."""

import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import attrs
import click

from rpcd.cli.archive_file import CantWrite, File
from rpcd.cli.archive_read import Place, Worn
from rpcd.cli.archive_replay import NOWHERE, Aim, Replays, Target, copy_of
from rpcd.cli.archive_show import export_line
from rpcd.cli.archive_where import Chosen
from rpcd.cli.archive_work import Deed, Report, Sweep
from rpcd.cli.broker import SIGNALS, Where, choose, explain, talk
from rpcd.cli.compose import USAGE
from rpcd.cli.progress import Bar
from rpcd.cli.show import NOT_WRITTEN, end, json_line, say, tell
from rpcd.core.archived import Archived
from rpcd.core.tables import short


@attrs.define
class Run:
    """One command's sweep, and how it is told; `word` says what was done with a message."""

    chosen: Chosen
    deed: Deed
    word: str
    in_json: bool = False
    silent: bool = False
    """Whether the result is told by other means."""
    file: File | None = None
    _signals: list[int] = attrs.field(factory=list)

    def sweep(self, limit: int | None = None) -> Report:
        """Do it; end the command if it could not even begin."""
        chosen = self.chosen
        sweep = Sweep(chosen.places, chosen.wanted, chosen.limit or limit, self.deed, chosen.wear)
        bar = Bar(self.word)
        sweep.counted, sweep.progress = bar.reach, bar.show
        if isinstance(self.deed, Replays):
            self.deed.blocked, self.deed.moved = bar.blocked, bar.show

        async def work(connect: Any) -> Report:
            return await sweep.run(connect)

        def failed(text: str, code: int) -> NoReturn:
            bar.stop()
            self._end([text], code)

        if not self.silent:
            bar.start()
        report = talk(choose(chosen.asked), work, failed, self._signals.append)
        bar.stop()
        if self.file is not None:
            self._close(report)
        return report

    def finish(self) -> None:
        """Say how it ended; end the command with its exit code, but for 0."""
        report, where = self.deed.report, choose(self.chosen.asked)
        problems = [explain(where, error) for error in report.missing]
        if report.error is not None:
            problems.append(self._explained(where, report.error))
        stays = [f"{counted(number)} left in the archive: {why}" for why, number in report.hindered.items()]
        problems += [(text, 1) for text in stays]
        if report.interrupted and self._signals:
            number = signal.Signals(self._signals[0])
            problems.append((SIGNALS[number], 128 + number))
        if problems:
            self._end([text for text, _code in problems], max(code for _text, code in problems))
        self._tell()

    def _close(self, report: Report) -> None:
        try:
            if self.file is not None:
                self.file.close()
        except CantWrite as error:
            report.error = report.error or error

    @staticmethod
    def _explained(where: Where, error: BaseException) -> tuple[str, int]:
        if isinstance(error, Worn):
            return str(error), 1
        if isinstance(error, CantWrite):
            return str(error), NOT_WRITTEN
        return explain(where, error)

    def _tell(self) -> None:
        if self.silent:
            return
        report = self.deed.report
        if self.in_json:
            say(json_line({"ok": True, self.word: report.done, "seen": report.seen}))
        else:
            say(f"{counted(report.done)} {self.word}" + ("" if report.done else f" (of {report.seen} that are there)"))

    def _end(self, problems: list[str], code: int) -> NoReturn:
        """Say what went wrong and how far it came, in the form that was asked for, and end."""
        done = self.deed.report.done
        if self.in_json and not self.silent:
            say(json_line({"ok": False, "errors": problems, self.word: done, "seen": self.deed.report.seen}))
            sys.exit(code)
        if not self.silent and self.deed.report.waiting:
            problems = [*problems, f"{counted(done)} {self.word}; the others are where they were, so it can be run again"]
        end("\n".join(problems), code)


def agreed(yes: bool, question: str) -> None:
    """Ask on a terminal; end with 2 if nobody can be asked, with 1 if the answer is no."""
    if yes:
        return
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        end("there is nobody to ask: say --yes, or --dry-run to look first", USAGE)
    if not click.confirm(question, err=True):
        tell("nothing was done")
        sys.exit(1)


def aim_at(to: str | None, places: Sequence[Place]) -> Aim:
    """Return what says where a message is replayed to: `to`, else the queue of its archive, else what it says itself."""
    if to is not None:
        exchange, slash, key = to.partition("/")
        target = Target(exchange, key, keeps_first=not exchange) if slash else Target("", to, keeps_first=True)
        try:
            short(target.exchange, "the exchange")
            short(target.routing_key, "the routing key")
        except UnicodeEncodeError:
            end("--to is not UTF-8", USAGE)
        except ValueError as error:
            end(f"--to: {error}", USAGE)
        return lambda _message: target
    homes = {place.archive: place.queue for place in places}

    def home(message: Archived) -> Target | None:
        queue = homes.get(message.archive) or message.queue
        return Target("", queue, keeps_first=True) if queue else None

    return home


def exported(message: Archived, aim: Aim) -> str:
    """Write a message as a line that publishes it again, if one can."""
    target = aim(message)
    why = message.hindrance or (NOWHERE if target is None else None)
    return export_line(message, None if target is None or why else copy_of(message, target, time.time()), why)


def counted(number: int) -> str:
    """Say how many messages something is about, with the verb."""
    return "1 message is" if number == 1 else f"{number} messages are"
