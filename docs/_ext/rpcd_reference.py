"""Writes the pages that are generated from the code: every setting, the outcome table, exit codes, commands, metrics.

They go to docs/reference/generated, anew at every build, so they can't disagree with the program.
"""

import enum
import inspect
import pathlib
import typing

import attrs
import click
import rpcd_faults

from rpcd.cli import main
from rpcd.core import settings
from rpcd.core.errors import ExitCode
from rpcd.core.outcome import TABLE
from rpcd.features.django import Django
from rpcd.features.inbox.settings import Inbox
from rpcd.ops.metrics import FAMILIES

SECTIONS = (
    ("[broker]", settings.Broker),
    ("[broker.tls]", settings.Tls),
    ("[service]", settings.Service),
    ("[logging]", settings.Logging),
    ("[exchanges.NAME]", settings.Exchange),
    ("[queues.NAME]", settings.Queue),
    ("an entry of [queues.NAME] bindings", settings.Binding),
    ("[consumers.NAME]", settings.Consumer),
    ("[consumers.NAME.retry]", settings.Retry),
    ("[consumers.NAME.archive]", settings.Archive),
    ("[consumers.NAME.kill_switch]", settings.KillSwitch),
    ("[layers.django]", Django),
    ("[layers.inbox]", Inbox),
)

WORDS = {str: "a string", int: "a whole number", bool: "true or false", float: "a number"}


def kind(hint):
    """Say in a few words what a setting takes."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(f'`"{word}"`' for word in arguments)
    if origin is list:
        return f"an array, each {kind(arguments[0])}"
    if origin is dict:
        return "a table"
    if arguments:  # X | None
        return kind(next(each for each in arguments if each is not type(None)))
    if attrs.has(hint):
        return "a table"
    return {settings.Seconds: "seconds", settings.Positive: "a whole number from 1", settings.Name: "a name"}.get(
        hint, WORDS.get(hint, "anything")
    )


def shown(value):
    """Write a default as TOML does."""
    if isinstance(value, attrs.Factory):
        value = value.factory()
    if value is attrs.NOTHING:
        return "*required*"
    if value is None or attrs.has(type(value)):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, list):
        return f"`[{', '.join(shown(each).strip('`') for each in value)}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def settings_page():
    """Return the page of all settings."""
    text = ["# Settings", "", "Times are seconds. Unknown keys are errors. `arguments` are AMQP's own words and units.", ""]
    for title, section in SECTIONS:
        text += [f"## `{title}`" if title.startswith("[") else f"## {title}", ""]
        text += [" ".join(inspect.getdoc(section).split()).partition(": ")[2].capitalize(), ""]
        text += ["| setting | takes | default | what it decides |", "|---|---|---|---|"]
        hints = typing.get_type_hints(section)
        text += [
            f"| `{each.name}` | {kind(hints[each.name])} | {shown(each.default)} | {cell(each.metadata['sentence'])} |"
            for each in attrs.fields(section)
        ]
        text.append("")
    see = "See [layers](../../guide/layers.md)."
    text += ["## `[layers.NAME]`", "", settings.sentences(settings.Settings)["layers"], see, ""]
    sentence = settings.sentences(settings.Settings)["virtual_hosts"]
    see = "See [several virtual hosts, one file](../../guide/config.md#several-virtual-hosts-one-file)."
    text += ["## `[virtual_hosts.NAME]`", "", sentence, see, ""]
    return "\n".join(text)


def cell(text):
    """Keep a text inside its table cell."""
    return text.replace("|", "\\|")


def outcomes_page():
    """Return the page of the outcome table."""
    rows = [f"| {rule.what} | {rule.delivery} | {rule.reply} |" for rule in TABLE]
    head = ["# What becomes of a message", "", "| what happened | delivery | reply, if one is wanted |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def exit_codes_page():
    """Return the page of the daemon's exit codes; the sentences are the docstrings beside them in the source."""
    source = inspect.getsource(ExitCode)
    rows = []
    for code in ExitCode:
        assert isinstance(code, enum.IntEnum)
        after = source.partition(f"    {code.name} = {code.value}\n")[2]
        sentence = after.partition('"""')[2].partition('"""')[0]
        rows.append(f"| {code.value} | {' '.join(sentence.split())} |")
    head = ["# Exit codes of the daemon", "", "| code | meaning |", "|---|---|"]
    return "\n".join([*head, *rows, "| other | What a handler's `HaltConsumer(exit_code=...)` said. |", ""])


def commands_page():
    """Return the page of all commands, from the same text as their --help and their man pages."""
    text = ["# Commands", ""]

    def one(command, names):
        context = click.Context(
            command, info_name=" ".join(names), terminal_width=100, max_content_width=100, **main.context_settings
        )
        text.extend([f"## `{' '.join(names)}`", "", "```text", command.get_help(context), "```", ""])
        for name in sorted(getattr(command, "commands", {})):
            one(command.commands[name], [*names, name])

    one(main, ["rpcd"])
    return "\n".join(text)


def metrics_page():
    """Return the page of all metrics, from the table that they are read by."""
    rows = [
        f"| `{each.shown}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {cell(each.sentence)} |"
        for each in FAMILIES
    ]
    see = "What to do with them: [metrics](../../guide/metrics.md)."
    return "\n".join(["# Metrics", "", see, "", "| metric | type | labels | what it says |", "|---|---|---|---|", *rows, ""])


PAGES = {
    "settings": settings_page,
    "outcomes": outcomes_page,
    "exit-codes": exit_codes_page,
    "commands": commands_page,
    "metrics": metrics_page,
    "faults": rpcd_faults.page,
}


def write(app):
    """Write all generated pages, where they changed."""
    place = pathlib.Path(app.srcdir) / "reference" / "generated"
    place.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        path, text = place / f"{name}.md", make()
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app):
    """Have the pages written before Sphinx looks for pages."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
