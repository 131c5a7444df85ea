"""Which archives a command means, and what every `rpcd archive` command is told about the messages in them."""

import functools
import time
from collections.abc import Callable
from typing import Any, NoReturn

import attrs
import click

from rpcd.cli.archive_read import Place
from rpcd.cli.broker import Asked, broker_options, environment_of
from rpcd.cli.completion import names
from rpcd.cli.show import end
from rpcd.config import CONFIG, read
from rpcd.core.archived import Wanted, read_age
from rpcd.core.copies import archive_queue
from rpcd.core.errors import ExitCode, SettingsError
from rpcd.core.settings import Settings
from rpcd.core.topology import DeclareQueue, plan_queue


@attrs.frozen
class Chosen:
    """Which messages of which archives somebody means; `choosing` gives it to a command as `chosen`."""

    asked: Asked
    places: list[Place]
    wanted: Wanted
    limit: int | None
    wear: bool

    def __str__(self) -> str:
        archives = ", ".join(place.archive for place in self.places)
        return f"{'all' if self.wanted.everything and self.limit is None else 'what was chosen'} of {archives}"


class Age(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in some versions of click
    """An age, in seconds: 5m, 2h, 3d."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it; a wrong one is wrong usage."""
        try:
            return value if isinstance(value, float) else read_age(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


_FILTERS = (
    click.option(
        "--queue", "queues", multiple=True, metavar="ARCHIVE", help="An archive by its name on the broker; needs no config."
    ),
    click.option("--id", "ids", multiple=True, metavar="ID", help="Only this message: its message id, or what list says."),
    click.option("--reason", metavar="TEXT", help="Only those with this text in their reason."),
    click.option("--exception", metavar="TYPE", help="Only those given up over this type of exception."),
    click.option("--handler", metavar="PATH", help="Only those that this handler was to have."),
    click.option("--correlation-id", metavar="TEXT", help="Only those with this correlation id."),
    click.option("--older", type=Age(), metavar="AGE", help="Only those given up longer ago than this: 90s, 5m, 2h, 3d."),
    click.option("--newer", type=Age(), metavar="AGE", help="Only those given up since then."),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="No more than so many messages."),
    click.option("--wear", is_flag=True, help="Read even an archive with a delivery limit, which each reading counts for."),
)


def choosing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add which broker, which archives and which messages to a command, and hand it all as one argument, `chosen`."""

    @functools.wraps(command)
    def with_options(
        *arguments: Any,
        asked: Asked,
        archives: tuple[str, ...] = (),
        queues: tuple[str, ...],
        limit: int | None,
        wear: bool,
        **options: Any,
    ) -> Any:
        wanted = _wanted(**{name: options.pop(name) for name in _WANTED})
        return command(*arguments, chosen=Chosen(asked, places(asked, archives, queues), wanted, limit, wear), **options)

    decorated: Callable[..., Any] = broker_options(with_options)
    for option in reversed(_FILTERS):
        decorated = option(decorated)
    return decorated


def archives_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add [NAME]... to a command: queues or consumers of the config."""
    return click.argument("archives", nargs=-1, metavar="[NAME]...", shell_complete=names("queues"))(command)


_WANTED = ("ids", "reason", "exception", "handler", "correlation_id", "older", "newer")


def _wanted(
    ids: tuple[str, ...],
    reason: str | None,
    exception: str | None,
    handler: str | None,
    correlation_id: str | None,
    older: float | None,
    newer: float | None,
) -> Wanted:
    now = time.time()
    before = None if older is None else now - older
    after = None if newer is None else now - newer
    return Wanted(frozenset(ids), reason, exception, handler, correlation_id, before, after)


def places(asked: Asked, archives: tuple[str, ...], queues: tuple[str, ...]) -> list[Place]:
    """Return the archives that are meant: those named, else all of the config; end with 78 if that can't be told."""
    for name in (*archives, *queues):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise click.UsageError("an archive's name is not UTF-8") from None
    named = [Place(name, name.removesuffix(".archive") if name.endswith(".archive") else None, {}) for name in queues]
    if queues and not archives:
        return named
    if asked.config is None:
        end(f"which archives? give --config FILE (or set {CONFIG}), or --queue NAME.archive", ExitCode.CONFIG)
    try:
        settings, problems = read(asked.config, environment_of(asked), asked.virtual_host)
    except SettingsError as error:
        end(str(error), ExitCode.CONFIG)
    wrong = [problem for problem in problems if problem.path.startswith(("queues", "consumers", "mode", "virtual_hosts"))]
    if wrong:
        end("\n".join(f"{asked.config}: {problem}" for problem in wrong), ExitCode.CONFIG)
    keys = [_found(settings, name) or _unknown(asked.config, settings, name) for name in archives] or list(settings.queues)
    if not keys:
        end(f"{asked.config}: there are no queues, so there are no archives", ExitCode.CONFIG)
    return [*named, *(_place(settings, key) for key in dict.fromkeys(keys))]


def _found(settings: Settings, name: str) -> str | None:
    """Return the [queues] section that a name means: its own, its queue's, its archive's, or one of its consumers'."""
    for key in settings.queues:
        queue = settings.queue_name(key)
        if name in (key, queue, archive_queue(queue or key)):
            return key
    return settings.consumers[name].queue if name in settings.consumers else None


def _unknown(config: str, settings: Settings, name: str) -> NoReturn:
    known = ", ".join(dict.fromkeys((*settings.queues, *settings.consumers))) or "none"
    end(f"{config}: there is no queue or consumer {name!r}; there are: {known}", ExitCode.CONFIG)


def _place(settings: Settings, key: str) -> Place:
    name = settings.queue_name(key)
    archive = archive_queue(name or key)
    declared = next(
        (item for item in plan_queue(settings, key) if isinstance(item, DeclareQueue) and item.name == archive), None
    )
    return Place(archive, name or None, dict(declared.arguments) if declared is not None else {})
