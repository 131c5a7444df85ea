"""`rpcd dev`: the daemon while one works on its handlers: a broker of its own, a new beginning at each change."""

import contextlib
import os
import queue
import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import click

from rpcd.cli import readable
from rpcd.cli.broker import CONFIG_FILE, UNAVAILABLE, virtual_host_option
from rpcd.cli.dev_parts import Broker, Daemon, public
from rpcd.cli.dev_project import Project
from rpcd.cli.show import end
from rpcd.config import CONFIG
from rpcd.core.address import AddressError
from rpcd.core.errors import ExitCode, SettingsError
from rpcd.ops.announced import AlreadyAnnounced, Announcement
from rpcd.ops.keeper import Event
from rpcd.ops.watch import Watch

LOOK_SECONDS = 0.3
"""How often files are looked at; what is written in one go is taken as one change."""

READY = "ready, consuming: "

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option(
    "-c", "--config", type=CONFIG_FILE, metavar="FILE", envvar=CONFIG, help=f"The config file; {CONFIG} if not given."
)
@virtual_host_option
def dev(config: str | None, virtual_host: str | None) -> None:
    """Run the daemon of one config file while you work on it.

    If neither the config's [broker] url nor RABBITMQ_URL names a broker, it starts a private RabbitMQ, which is thrown away
    at the end. Until then the other commands find it by the same --config.

    Whenever the config or the code of a handler changes, both are checked anew; if all is well, the daemon drains and begins
    again, and if not, it says what is wrong and carries on as it was. Ctrl-C drains and ends it, a second one hurries.

    Exit code: 0 if it was stopped, 1 if it runs for this config already, 69 if the private broker can't be started, 75 if it
    was stopped with unfinished handlers, 78 if the config can't be read.

    Example: rpcd dev --config shop.toml
    """
    if config is None:
        end(f"no config file: give --config FILE, or set {CONFIG}", ExitCode.CONFIG)
    try:
        project = Project(config, virtual_host)
    except SettingsError as error:
        end(str(error), ExitCode.CONFIG)
    sys.exit(Development(project).run())


@attrs.frozen
class _Ended:
    code: int


@attrs.frozen
class _Ready:
    consumers: list[str]


class Development:
    """The loop: everything that happens comes through one queue."""

    def __init__(self, project: Project) -> None:
        """Prepare it."""
        self._project = project
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._watch = Watch()
        self._daemon: Daemon | None = None
        self._broker: Broker | None = None
        self._announcement: Announcement | None = None
        self._environment = {**os.environ, "RPCD_LOG_FORMAT": "json"}
        self._changed: list[Path] = []
        self._stops = 0
        self._code: int | None = None
        self._failure = 0
        self._hinted = self._deaf = False
        self._named = project.named
        self._writing = threading.Lock()

    def run(self) -> int:
        """Run until it is stopped; return the exit code."""
        for number in _STOP:
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1)
                signal.signal(number, self._on_signal)
        try:
            self._begin()
            while self._code is None:
                try:
                    event = self._events.get(timeout=LOOK_SECONDS)
                except queue.Empty:
                    self._look()
                else:
                    self._take(event)
        finally:
            if self._broker is not None:
                self._broker.stop()
            self._withdraw()
        return self._code

    def _withdraw(self) -> None:
        """Let other commands find the private broker no longer."""
        announcement, self._announcement = self._announcement, None
        if announcement is not None:
            announcement.close()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._events.put(signal.Signals(number))

    # What it says ---------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self._print(readable.own(text))

    def _print(self, line: str) -> None:
        try:
            with self._writing:
                click.echo(line, color=readable.colours())
        except OSError:  # nobody reads it any more
            if not self._deaf:
                self._events.put(signal.SIGTERM)
            self._deaf = True

    def _line(self, raw: str) -> None:
        self._print(readable.line_of(raw))
        said = readable.message_of(raw)
        if self._broker is not None and said.startswith("reload refused: ") and "inequivalent" in said:
            self._say("the private broker has it as it was before: stop `rpcd dev` and start it again for an empty one")
        if READY in said:
            self._events.put(_Ready(said.partition(READY)[2].split(", ")))

    # Beginning ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._look_at_files()
        if self._named:
            self._start()
            return
        if self._project.wrong:
            end("\n".join(self._project.wrong), ExitCode.CONFIG)
        try:
            self._announcement = Announcement(self._project.config)
        except AlreadyAnnounced:
            end(f"{self._project.config}: `rpcd dev` runs for it already", 1)
        except OSError:  # a directory that can't be written: the URL is told
            pass
        try:
            wanted = self._project.wanted()
        except AddressError as error:
            end(f"{self._project.config}: broker: {error}", ExitCode.CONFIG)
        self._say("no broker is named ([broker] url, or RABBITMQ_URL): starting a private RabbitMQ")
        self._broker = Broker(wanted, self._events.put)

    def _start(self) -> None:
        project = self._project
        words = ["--config", project.config, *(["--virtual-host", project.virtual_host] if project.virtual_host else [])]
        self._daemon = Daemon(words, self._environment, self._line, lambda code: self._events.put(_Ended(code)))

    def _look_at_files(self) -> None:
        self._watch.look_at(self._project.places())

    # What happens ---------------------------------------------------------------------------------

    def _take(self, event: Any) -> None:
        if isinstance(event, signal.Signals):
            self._stop()
        elif isinstance(event, Event):
            self._of_broker(event)
        elif isinstance(event, _Ended):
            self._ended(event.code)
        elif isinstance(event, _Ready):
            self._ready(event.consumers)

    def _of_broker(self, event: Event) -> None:
        if self._stops:
            return
        if event.kind == "gone":
            self._say("the private broker has ended by itself; starting it again, with what its durable queues held")
        elif event.kind == "failed":
            self._say(f"the private broker: {event.text}\nor name a broker: [broker] url, or RABBITMQ_URL")
            self._failure = UNAVAILABLE
            self._stop()
        elif self._daemon is None:
            self._say(f"the private broker is {public(event.text)}; it is thrown away at the end")
            self._environment["RABBITMQ_URL"] = event.text
            if self._announcement is not None:
                self._announcement.say(event.text)
            self._start()
        else:
            self._say("the private broker is there again")

    def _ready(self, consumers: list[str]) -> None:
        if self._hinted:
            return
        self._hinted = True
        self._say(f"watching {self._watch.count} files; Ctrl-C ends it. In another terminal:")
        if self._broker is not None and self._announcement is None:
            self._say(f"  export RABBITMQ_URL={shlex.quote(public(self._environment['RABBITMQ_URL']))}")
        for hint in self._project.hints(consumers):
            self._say(f"  {hint}")

    def _ended(self, code: int) -> None:
        self._daemon = None
        if self._stops:
            before_it_heeds = code == -signal.SIGTERM  # it was only starting, and had nothing to drain
            self._code = self._failure or (0 if before_it_heeds else code if code >= 0 else 128 - code)
            return
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        self._say(f"the daemon has ended ({how}); it is started again at the next change")

    def _look(self) -> None:
        """Look at the files; a change counts as soon as nothing more is written."""
        if self._stops:
            return
        changed = self._watch.changed()
        if changed:
            self._changed += [path for path in changed if path not in self._changed]
        elif self._changed:
            names, self._changed = self._changed, []
            self._reload(names)

    def _reload(self, changed: list[Path]) -> None:
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        self._say(f"changed: {_relative(changed[0])}{more}")
        with contextlib.suppress(SettingsError):  # the daemon says what is wrong with it
            self._project.read()
            self._look_at_files()
        if self._project.named and not self._named:
            self._say("the config names a broker now: stop and start `rpcd dev` to use it")
            self._withdraw()
        if self._daemon is not None:
            self._daemon.signal(signal.SIGHUP)
        elif "RABBITMQ_URL" in self._environment or self._named:
            self._start()

    def _stop(self) -> None:
        self._stops += 1
        if self._daemon is None:
            self._code = self._failure
        elif self._stops == 1:
            self._say("stopping: handlers that run are finished; Ctrl-C again hurries")
            self._daemon.signal(signal.SIGTERM)
        else:
            self._daemon.signal(signal.SIGTERM if self._stops == 2 else signal.SIGKILL)  # noqa: PLR2004  # the third


def _relative(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
