"""`rpcd`: the command for people. Each command is a file of its own; `main` knows them all."""

import click

from rpcd import __version__
from rpcd.cli.call import call
from rpcd.cli.check import check
from rpcd.cli.ctl import ctl
from rpcd.cli.publish import publish
from rpcd.cli.run import run
from rpcd.cli.status import status


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rpcd")
def main() -> None:
    """Turn Python callables into RabbitMQ consumers and RPC services.

    The daemon itself is `twistd -n rpcd --config FILE`, or `rpcd run`. Exit codes: 0 done, 1 the answer was no, 2 wrong
    usage, 69 the broker or a queue can't be reached, 75 no answer in time, 77 refused by the broker, 78 wrong config, 130
    and 143 ended by a signal.
    """


for command in (call, check, ctl, publish, run, status):
    main.add_command(command)
