"""`rpcd run`: the daemon in the foreground."""

import sys
from pathlib import Path

import click

from rpcd.cli.broker import virtual_host_option
from rpcd.config import CONFIG


@click.command()
@click.option("-c", "--config", metavar="FILE", envvar=CONFIG, help=f"The config file; {CONFIG} if not given.")
@virtual_host_option
@click.option("--logfile", metavar="FILE", help="Log there instead of to standard output.")
def run(config: str | None, virtual_host: str | None, logfile: str | None) -> None:
    """Run the consumers of one config file in the foreground.

    It is the same as `twistd -n --pidfile= rpcd --config FILE`.

    Example: rpcd run --config /etc/rpcd/shop.toml
    """
    from twisted.scripts.twistd import run as twistd

    arguments = ["-n", "--pidfile="]
    arguments += ["--logfile", str(Path(logfile).resolve())] if logfile else []
    options = ["--config", config] if config else []
    options += ["--virtual-host", virtual_host] if virtual_host else []
    sys.argv = ["twistd", *arguments, "rpcd", *options]
    twistd()
