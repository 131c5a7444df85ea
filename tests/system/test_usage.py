"""No mistake of a user ends in a stack trace: every command, with what a tired person may type."""

import itertools
import pathlib
import subprocess

import pytest
from command import on_terminal, rpcd, surroundings
from daemon import RPCD, StartDaemon
from peer import Peer

from rpcd.cli import main
from rpcd.ops.rabbitmq import free_ports

USUAL = {
    "call": ["q", "{}"],
    "publish": ["shop", "key", "{}"],
    "tail": ["shop"],
    "check": ["--broker"],
    "declare": [],
    "run": [],
    "dev": [],
    "completion": ["bash"],
    "ctl": ["status"],
    "status": [],
}
"""What each command needs at least."""

WITH_BROKER = ("call", "publish", "tail", "declare")

URLS = [
    "",
    "foo",
    "amqp://",
    "amqp://h:0/",
    "amqp://h:99999/",
    "amqp://[::1/",
    "http://localhost",
    "amqps://127.0.0.1:{port}/",
    "amqp://127.0.0.1:{port}/",
    "amqp://u:p@a@b/",
    "amqp://h/%ff",
    "amqp://nowhere.invalid/",
    "amqp://h/?heartbeat=x",
    "amqp://\udcff/",
    "amqp://" + "h" * 300 + "/",
    "amqp://127.0.0.1:{port}/" + "v" * 300,
]

CONFIGS = {
    "missing": None,
    "empty": b"",
    "binary": b"\x00\xff\xfe",
    "list": b"consumers = []\n",
    "deep": b"a = " + b"[" * 5000,
    "broker": b"broker = 5\n",
    "url": b"[broker]\nurl = 5\n",
    "tls": b'[broker]\nurl = "amqps://h/"\n[broker.tls]\nca = "/nowhere.pem"\n',
    "bracket": b"[\x1b]0;owned\x07\n",
}


def well_told(code: int, text: str) -> None:
    assert "Traceback" not in text
    assert "Exception" not in text
    assert code in (1, 2, 69, 75, 77, 78), text
    assert text.strip()
    assert "\x1b" not in text


SOME_URLS = ("foo", "amqp://127.0.0.1:{port}/")
"""What the commands have in common is tried with one of them, and the rest only for where they might differ."""


@pytest.mark.parametrize(
    ("command", "url"), [*(("tail", url) for url in URLS), *itertools.product(("call", "publish", "declare"), SOME_URLS)]
)
def test_a_wrong_url_is_told(command: str, url: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "rpcd.toml"
    file.write_text('[queues.q]\n[consumers.q]\nqueue = "q"\nhandler = "shop:handle"\n')
    given = [*USUAL[command], *(["--config", str(file)] if command == "declare" else [])]
    (port,) = free_ports(1)
    done = rpcd(command, *given, "--url", url.format(port=port))
    well_told(done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("declare", name) for name in [*CONFIGS, "directory", "surrogate", "long"]),
        *itertools.product(("call", "publish", "tail", "check", "run", "dev"), ("missing", "broker")),
    ],
)
def test_a_wrong_config_is_told(command: str, name: str, tmp_path: pathlib.Path) -> None:
    file = {"directory": str(tmp_path), "surrogate": "\udcff", "long": "x" * 5000}.get(name, str(tmp_path / name))
    if CONFIGS.get(name) is not None:
        (tmp_path / name).write_bytes(CONFIGS[name] or b"")
    done = rpcd(command, *USUAL[command], "--config", file)
    well_told(done.returncode, done.stderr)
    assert done.returncode == 78


def typed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command within this process; for what ends before it does anything."""
    with pytest.raises(SystemExit) as ended:
        main.main(arguments, "rpcd")
    code = ended.value.code
    assert isinstance(code, int)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("command", sorted(main.commands))
def test_wrong_options_are_told(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--nowhere"], ["--config"], ["a", "b", "c", "d", "--json=x"], ["--timeout", "x"]):
        code, _, said = typed(capsys, command, *wrong)
        well_told(code, said)
        assert code == 2


@pytest.mark.parametrize("command", ["", *sorted(main.commands)])
def test_help_has_examples_and_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = typed(capsys, *filter(None, [command]), "--help")
    assert code == 0
    assert "Exit code: " in shown
    assert f"Usage: rpcd{' ' if command else ''}{command}" in shown
    if not command:
        return
    assert "Example: rpcd " in shown
    examples = [line for line in shown.splitlines() if line.strip().startswith("Example:")]
    for example in main.commands[command].help.replace("\b", "").split("Example: ")[1:]:  # type: ignore[union-attr]
        assert any(example.strip() in line for line in examples), "an example is on one line, as it is to be typed"
    _, short, _ = typed(capsys, "--help")
    assert main.commands[command].get_short_help_str(200).rstrip(".") in short


def test_a_table_on_a_narrow_terminal_is_readable(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "rpcd.toml"
    file.write_text('[queues."[bold]q"]\n[consumers.q]\nqueue = "[bold]q"\nhandler = "shop:handle"\n')
    code, said = on_terminal("declare", "--dry-run", "--config", str(file))
    assert code == 0
    assert b"[bold]q" in said


@pytest.mark.parametrize("command", ["call", "publish", "tail", "check", "declare", "completion", "ctl", "status"])
def test_a_full_disk_is_told_and_a_closed_output_is_none(
    command: str, start: StartDaemon, url: str, peer: Peer, tmp_path: pathlib.Path
) -> None:
    control = str(tmp_path / "control")
    text = f"[service]\ncontrol = {control!r}\n[queues.q]\n[consumers.q]\nqueue = 'q'\nhandler = 'handlers_of_test:handle'\n"
    start(text, "def handle(message): pass\n")
    config = str(tmp_path / "rpcd.toml")
    arguments = {
        "publish": ["", "q", "{}"],
        "tail": ["amq.topic", "--count", "1"],
        "check": ["--config", config],
        "declare": ["--dry-run", "--config", config],
        "ctl": ["--socket", control, "status"],
        "status": ["--socket", control],
    }.get(command, USUAL[command])
    for code, redirected in ((74, ">/dev/full"), (0, ">&-")):
        line = ["sh", "-c", f'exec "$@" {redirected}', "sh", str(RPCD), command, *arguments]
        with subprocess.Popen(line, env=surroundings(url), stderr=subprocess.PIPE, text=True) as process:
            if command == "tail":
                _publish_until_it_ends(peer, process)
            said = process.communicate(timeout=60)[1]
        assert process.returncode == code, said
        assert "Traceback" not in said
        assert ("the result can't be written: No space left on device" in said) == (code == 74)


def _publish_until_it_ends(peer: Peer, process: "subprocess.Popen[str]") -> None:
    def ended() -> bool:
        peer.channel.basic_publish("amq.topic", "k", b"{}")
        return process.poll() is not None

    peer.until(ended)


def test_where_nothing_can_be_said_the_exit_code_says_it(url: str) -> None:
    line = ["sh", "-c", '"$@" 2>/dev/full', "sh", str(RPCD), "publish", "", "nobody", "{}"]
    assert subprocess.run(line, env=surroundings(url), timeout=60, check=False).returncode == 69


def test_a_consumer_that_is_not_utf_8_is_told(tmp_path: pathlib.Path) -> None:
    done = rpcd("ctl", "--socket", str(tmp_path / "nobody"), "pause", "\udcff")
    assert (done.returncode, done.stderr) == (2, "an argument is not UTF-8\n")
