"""`rpcd`: the command for people. Each command is a file of its own; `main` knows them all."""

import inspect

import click

from rpcd import __version__
from rpcd.cli.archive import archive
from rpcd.cli.call import call
from rpcd.cli.check import check
from rpcd.cli.completion import completion
from rpcd.cli.ctl import ctl
from rpcd.cli.declare import declare
from rpcd.cli.dev import dev
from rpcd.cli.keys import keys
from rpcd.cli.new import new
from rpcd.cli.publish import publish
from rpcd.cli.run import run
from rpcd.cli.status import status
from rpcd.cli.tail import tail


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rpcd")
def main() -> None:
    """Turn Python callables into RabbitMQ consumers and RPC services.

    The daemon itself is `twistd -n rpcd --config FILE`, or `rpcd run`.

    Exit code: 0 done, 1 the answer was no, 2 wrong usage, 69 the broker or a queue can't be reached, 74 done, but the result
    could not be written (a full disk), 75 no answer in time, 77 refused by the broker, 78 wrong config, 130 and 143 ended by
    a signal.
    """


def _as_typed(command: click.Command) -> click.Command:
    """Keep the examples of a command on lines of their own, as they are to be typed."""
    command.help = inspect.cleandoc(command.help or "").replace("\n\nExample:", "\n\n\b\nExample:")
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        _as_typed(inner)
    return command


for command in (archive, call, check, completion, ctl, declare, dev, keys, new, publish, run, status, tail):
    main.add_command(_as_typed(command))
