"""Rules that the whole program keeps: no loose deserialiser, every limit told as it is, no password on the way unsaid."""

import ast
import pathlib
import re
import socket
import sys

import attrs
import pytest
from daemon import StartDaemon

from rpcd.amqp import consumer, outbox
from rpcd.core import copies, redelivery, settings, tables
from rpcd.ops import control, log_queue, logs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).parent.parent.parent
SOURCES = sorted((ROOT / "rpcd").rglob("*.py")) + sorted((ROOT / "twisted").rglob("*.py"))
PAGE = (ROOT / "docs/guide/security.md").read_text()

LOOSE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle", "xmlrpc", "code", "codeop"}
LOOSE_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
}

CONFIG = """
    [broker]
    connect_timeout = 1
    [queues.work]
    [consumers.work]
    queue = "work"
    handler = "handlers_of_test:handle"
"""


def looseness(source: str) -> list[str]:
    """Return what could make code of data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names if each.name.partition(".")[0] in LOOSE_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LOOSE_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in LOOSE_CALLS:
            found.append(ast.unparse(node.func))
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_security_14_nothing_makes_code_of_data(file: pathlib.Path) -> None:
    assert looseness(file.read_text()) == []


@pytest.mark.parametrize("source", ["import pickle", "from marshal import loads", "yaml.load(x)", "def f():\n    eval('1')"])
def test_security_14_what_does_would_be_found(source: str) -> None:
    assert looseness(source) != []


def test_security_13_modules_are_imported_in_one_place() -> None:
    own = (
        'import_module(f"rpcd.features.',
        'import_module(f"{__name__}.',
    )  # what is rpcd's own, whatever the rest of the name is
    lines = [(file.name, line) for file in SOURCES for line in file.read_text().splitlines() if "import_module(" in line]
    assert {name for name, line in lines if not any(each in line for each in own)} == {"importing.py"}


LIMITS = {
    "max_body": settings.Consumer,
    "max_reply": settings.Consumer,
    "prefetch": settings.Consumer,
    "workers": settings.Consumer,
    "time_limit": settings.Consumer,
    "retry.attempts": settings.Retry,
    "delivery_limit": settings.Queue,
    "archive.max_length": settings.Archive,
}


@pytest.mark.parametrize("name", LIMITS)
def test_security_16_every_limit_on_the_page_is_a_setting(name: str) -> None:
    assert f"| `{name}` |\n" in PAGE
    assert name.rpartition(".")[2] in {field.name for field in attrs.fields(LIMITS[name])}


DEFAULT = settings.Consumer(queue=settings.Name("q"), handler=settings.Name("a.b"))

NUMBERS = [
    ("a body that is opened", f"{DEFAULT.max_body // 1024**2} MiB"),
    ("a reply", f"{DEFAULT.max_reply // 1024**2} MiB"),
    ("handlers at a time", f"{DEFAULT.workers}"),
    ("a handler's time", f"{DEFAULT.time_limit:g} s"),
    ("runs of a message", f"{DEFAULT.steps.attempts}"),
    ("returns to a quorum queue", f"{settings.Queue().delivery_limit}"),
    ("nesting of headers", f"{tables.MAX_DEPTH}"),
    ("headers of a copy", f"{copies.MAX_HEADERS:,} bytes"),
    ("bytes published and not confirmed", f"{outbox.MAX_IN_FLIGHT_BYTES // 1024**2} MiB"),
    ("outcomes remembered for redeliveries", f"{redelivery.KEPT:,}, for {redelivery.KEPT_SECONDS:g} s"),
    ("outcomes remembered for redeliveries", f"up to {redelivery.LARGEST // 1024} KiB"),
    ("outcomes remembered for redeliveries", f"up to {redelivery.LARGEST_KEPT // 1024**2} MiB still to publish"),
    ("a field of a log line", f"{logs.LONGEST_FIELD} characters"),
    ("log lines that wait to be written", f"{log_queue.MOST_WAITING:,} characters"),
    ("a traceback in the log", f"{logs.LONGEST_TRACE:,} characters"),
    ("threads lost to handlers that never end", f"{consumer.MOST_LOST}, or"),
    ("a line to the control socket", f"{control.LONGEST_LINE // 1024} KiB"),
]


@pytest.mark.parametrize(("what", "number"), NUMBERS)
def test_security_16_every_number_on_the_page_is_the_programs(what: str, number: str) -> None:
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| {what} |"))
    assert re.search(rf"(?<![\d,]){re.escape(number)}", row), row


def test_security_06_plain_tcp_to_another_machine_is_warned_of_once(start: StartDaemon) -> None:
    with socket.socket() as nobody:  # bound and not listening: a port that refuses
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        daemon = start(CONFIG, "handle = print", at=f"amqp://shop:pw@rabbit.invalid,127.0.0.1:{port}/", wait=False)
        (line,) = daemon.wait_for("WARNING rpcd: plain TCP to")
        assert "plain TCP to rabbit.invalid: whoever is on the way" in line
        assert daemon.stop() == 0
        daemon = start(CONFIG, "handle = print", at=f"amqp://shop:pw@localhost:{port}/", wait=False)
        daemon.wait_for("connection=work")
        assert daemon.stop() == 0
        assert "plain TCP" not in daemon.output


def test_security_15_nobody_is_listened_to_unless_the_config_says_so(start: StartDaemon) -> None:
    daemon = start(CONFIG, "handle = print")
    inodes = {str(each.readlink()) for each in pathlib.Path(f"/proc/{daemon.process.pid}/fd").iterdir()}
    listening = [
        words
        for table in ("tcp", "tcp6", "unix")
        for words in map(str.split, pathlib.Path(f"/proc/{daemon.process.pid}/net/{table}").read_text().splitlines()[1:])
        if (table == "unix" and words[3] == "00010000" and f"socket:[{words[6]}]" in inodes)
        or (table != "unix" and words[3] == "0A" and f"socket:[{words[9]}]" in inodes)
    ]
    assert listening == []
    assert daemon.stop() == 0


def lower_bounds() -> dict[str, str]:
    """Return what rpcd and its extras need, by name, each with the lowest version that it may have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [each for name, extra in project["optional-dependencies"].items() if name != "dev" for each in extra]
    found = {}
    for each in (*project["dependencies"], *extras):
        needed = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:,<\d+)?(?:;.*)?", each.replace(" ", ""))
        assert needed, f"{each} has no lower bound"
        found[needed[1].lower()] = needed[2]
    return found


def test_security_20_every_dependency_has_a_lower_bound_that_is_tested() -> None:
    listed = re.findall(r"^([\w-]+)(?:\[\w+\])?==([\d.]+)$", (ROOT / "tests/oldest.txt").read_text(), re.MULTILINE)
    tested = {name.lower(): version for name, version in listed}
    for name, bound in lower_bounds().items():
        assert (tested[name] + ".0").startswith(bound), f"{name}: {bound} is allowed, {tested[name]} is tested"
    assert "-r tests/oldest.txt" in (ROOT / "tox.ini").read_text()


def test_security_20_pika_stays_below_the_version_that_drops_its_twisted_adapter() -> None:
    assert '"pika>=1.4.1,<2"' in (ROOT / "pyproject.toml").read_text()
