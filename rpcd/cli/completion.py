"""`rpcd completion`: what makes a shell complete rpcd's commands, options, and names from the config."""

import os
from collections.abc import Callable

import click
from click.shell_completion import CompletionItem, get_completion_class

from rpcd.cli.show import say
from rpcd.config import CONFIG, read
from rpcd.core.errors import SettingsError

SHELLS = ("bash", "zsh", "fish")

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def names(section: str) -> Complete:
    """Make a completer for the names in `exchanges`, `queues` or `consumers` of the config that is named already.

    Queues and exchanges are completed by the names that the broker knows. Without a config that can be read there are none.
    """

    def complete(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        config = context.params.get("config") or os.environ.get(CONFIG)
        if not config:
            return []
        try:
            found, _problems = read(config, os.environ, context.params.get("virtual_host"))
        except (SettingsError, OSError, ValueError):
            return []
        known = {"exchanges": found.exchange_name, "queues": found.queue_name}.get(section, str)
        return [CompletionItem(name) for key in getattr(found, section) if (name := known(key)).startswith(begun)]

    return complete


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete rpcd's commands.

    It completes options and the names of files as well, and names from the config that is named already.

    Exit code: 0.

    Example: rpcd completion bash >~/.local/share/bash-completion/completions/rpcd

    Example: rpcd completion zsh >~/.zfunc/_rpcd

    Example: rpcd completion fish >~/.config/fish/completions/rpcd.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click knows no completion for {shell}.")
    say(kind(context.find_root().command, {}, "rpcd", "_RPCD_COMPLETE").source())
