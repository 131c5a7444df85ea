"""Writes the page of what rpcd survives: each row of faults.toml beside the tests that show it, found by their names."""

import ast
import collections
import pathlib
import re
import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = pathlib.Path(__file__).parent
TESTS = HERE.parent.parent / "tests"

TITLES = {"fault": "Faults", "input": "Bad input", "security": "Security"}

NAME = re.compile(r"test_(fault|input|security)((?:_\d\d)+)_\w+")

HEAD = """\
# What rpcd survives

Each row is something that goes wrong, what rpcd makes of it, and the tests that bring it about for real: against a RabbitMQ
of their own, by a proxy that cuts, resets and swallows, by signals, alarms and hostile bytes. After each fault every message
that was published is accounted for.
"""


def rows():
    """Return all rows: kind -> list of tables."""
    return tomllib.loads((HERE / "faults.toml").read_text())


def tests():
    """Find the tests: (kind, number) -> sorted list of file and name."""
    found = collections.defaultdict(set)
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (match := NAME.fullmatch(node.name)):
                for number in match[2][1:].split("_"):
                    found[match[1], int(number)].add((str(path.relative_to(TESTS.parent)), node.name))
    return {key: sorted(value) for key, value in found.items()}


def page():
    """Return the page."""
    found, text = tests(), [HEAD]
    for kind, table in rows().items():
        text += [f"## {TITLES[kind]}", "", "| | what happens | what rpcd does | shown by |", "|---|---|---|---|"]
        for row in table:
            shown = [f"`{path}::{name}`" for path, name in found.get((kind, row["number"]), [])]
            cells = (row["what"], row["answer"], "<br>".join([*shown, *([row["instead"]] if "instead" in row else [])]))
            text.append(f"| {row['number']} | {' | '.join(each.replace('|', chr(92) + '|') for each in cells)} |")
        text.append("")
    return "\n".join(text)
