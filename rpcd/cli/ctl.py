"""`rpcd ctl`: ask and steer a running daemon over its control socket."""

import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from rpcd.cli.broker import CONFIG_FILE, UNAVAILABLE, virtual_host_option
from rpcd.cli.completion import names
from rpcd.cli.compose import USAGE
from rpcd.cli.show import end, json_line, printable, say, table, tell
from rpcd.config import CONFIG, read
from rpcd.core.errors import ExitCode, SettingsError

SECONDS = 95.0
"""How long an answer may take; the look ahead of a reload takes 80 s at most."""

COMMANDS = ("status", "pause", "resume", "level", "reload")

DONE = {"pause": "paused", "resume": "resumed"}


class NoAnswer(Exception):
    """A daemon could not be asked; `code` is what a command ends with."""

    def __init__(self, text: str, code: int) -> None:
        """Say why."""
        super().__init__(text)
        self.code = code


@click.command()
@click.option(
    "-c",
    "--config",
    type=CONFIG_FILE,
    metavar="FILE",
    envvar=CONFIG,
    help=f"The daemon's config file; {CONFIG} if not given.",
)
@virtual_host_option
@click.option("--socket", "path", metavar="PATH", help="The control socket, instead of the one that the config names.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.001), default=SECONDS, show_default=True, help="Seconds to wait for the answer."
)
@click.argument("command", metavar="COMMAND", type=click.Choice(COMMANDS))
@click.argument("words", metavar="[WORD]...", nargs=-1, shell_complete=names("consumers"))
def ctl(
    config: str | None,
    virtual_host: str | None,
    path: str | None,
    as_json: bool,
    timeout: float,
    command: str,
    words: tuple[str, ...],
) -> None:
    """Ask and steer a running daemon.

    Its config must name a control socket: [service] control.

    \b
    rpcd ctl status                  show what each consumer does
    rpcd ctl pause [CONSUMER]...     start no further message, of all consumers if none is named
    rpcd ctl resume [CONSUMER]...    go on
    rpcd ctl level LEVEL [LOGGER]    log from this level on (debug, info, warning, error, critical), until the next start
    rpcd ctl reload                  check config and code anew; if all is well, drain and start anew

    Exit code: 0 done, 1 the daemon said no, 69 nobody listens, 75 no answer in time, 77 no permission, 78 no control socket
    in the config.

    Example: rpcd ctl --config /etc/rpcd/shop.toml pause orders
    """  # noqa: D301  # click's mark for lines that stay as they are
    request = _request(command, words)
    if any(not _is_unicode(word) for word in words):
        end("an argument is not UTF-8", USAGE)
    try:
        answer = ask(path or _path(config, virtual_host), request, timeout)
    except NoAnswer as error:
        end(str(error), error.code)
    if as_json:
        say(json_line(answer))
    elif answer["ok"]:
        _show(command, answer["result"])
    else:
        tell(answer["error"])
    sys.exit(0 if answer["ok"] else 1)


def _request(command: str, words: Sequence[str]) -> dict[str, Any]:
    request: dict[str, Any] = {"do": command}
    if command in DONE and words:
        request["consumers"] = list(words)
    elif command == "level":
        if len(words) not in (1, 2):
            raise click.UsageError("level takes a LEVEL and perhaps a LOGGER: rpcd ctl level debug shop.orders")
        request |= dict(zip(("level", "logger"), words, strict=False))
    elif words and command not in DONE:
        raise click.UsageError(f"{command} takes no further words; got {' '.join(words)}")
    return request


def _is_unicode(word: str) -> bool:
    """Tell whether a word from the command line was UTF-8."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _path(config: str | None, virtual_host: str | None) -> str:
    """Return the path of the control socket from a config file; handlers are not imported."""
    if config is None:
        end(f"which daemon? give --config FILE or --socket PATH, or set {CONFIG}", ExitCode.CONFIG)
    try:
        settings, problems = read(config, os.environ, virtual_host)
    except SettingsError as error:
        end(str(error), ExitCode.CONFIG)
    if settings.service.control is None:
        for problem in problems:
            tell(f"{config}: {problem}")
        end(f'{config}: service.control is not set; write control = "PATH" there and restart the daemon', ExitCode.CONFIG)
    return settings.service.control


def ask(path: str, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Send one request to a control socket and return the answer; raise NoAnswer."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(path)
            connection.sendall(msgspec.json.encode(request) + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
        found = msgspec.json.decode(line)
        if isinstance(found, dict) and "ok" in found:
            return found
    except TimeoutError:
        raise NoAnswer(f"{path}: no answer within {seconds:g} s", ExitCode.TEMPFAIL) from None
    except PermissionError:
        said = f"{path}: no permission; only the user who runs the daemon, and root, may use its control socket"
        raise NoAnswer(said, ExitCode.NOPERM) from None
    except OSError as error:
        raise NoAnswer(f"{path}: nobody listens there: {error.strerror or error}; is it running?", UNAVAILABLE) from None
    except msgspec.DecodeError:
        pass  # it ended in the middle of its answer, or is something else
    raise NoAnswer(f"{path}: the answer is not that of rpcd", UNAVAILABLE)


def _show(command: str, result: Any) -> None:
    if command == "status":
        show_report(result)
    elif command in DONE:
        say("\n".join(f"{DONE[command]}: {name}" for name in result))
    elif command == "level":
        say("\n".join(f"{name}: {level}" for name, level in result.items()))
    else:
        say(str(result["reload"]))


def show_report(report: dict[str, Any]) -> None:
    """Print a report as a table."""
    columns = ("name", "queue", "state", "running", "workers", "prefetch", "received", "acked", "retried", "archived", "why")
    say(printable(f"rpcd {report['version']}, pid {report['pid']}, {report['broker']}: {report['state']}"))
    if report.get("refused"):
        say(printable(f"the last reload was refused: {report['refused']}"))
    publisher = report.get("publisher")
    if publisher and publisher["why"]:
        say(printable(f"{'publishing' if publisher['connected'] else 'not publishing'}: {publisher['why']}"))
    rows = [["" if each[name] is None else str(each[name]) for name in columns] for each in report["consumers"]]
    table(["consumer", *columns[1:]], rows)
