"""Manual pages and shell completion, made from the same words as --help."""

import pathlib
import re
import shutil
import subprocess
import sys

import attrs
import click
import pytest
from command import rpcd, surroundings
from daemon import RPCD

from rpcd.cli import main, man
from rpcd.core import settings

INNER = {
    f"{name}-{each}": command
    for name, group in main.commands.items()
    if isinstance(group, click.Group)
    for each, command in group.commands.items()
}
EVERY = {**main.commands, **INNER}
COMMANDS = sorted(EVERY)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("man")
    done = subprocess.run(
        [sys.executable, "-m", "rpcd.cli.man", str(directory)], capture_output=True, text=True, check=True, timeout=60
    )
    assert sorted(done.stdout.split()) == sorted(str(each) for each in directory.iterdir())
    return {each.name: each.read_text() for each in directory.iterdir()}


def plain(page: str) -> str:
    """Undo the escapes of roff, roughly: enough to look for words."""
    text = re.sub(r"\\f[BPIR]|\\&", "", page).replace("\\-", "-").replace("\\(aq", "'").replace("\\(ha", "^")
    return re.sub(r"\s+", " ", text.replace("\\(ti", "~").replace("\\e", "\\"))


def test_there_is_a_page_for_each_command_and_for_the_config(pages: dict[str, str]) -> None:
    assert sorted(pages) == sorted(["rpcd.1", "rpcd.toml.5", *(f"rpcd-{name}.1" for name in COMMANDS)])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_says_what_help_says(pages: dict[str, str], name: str) -> None:
    page, command = plain(pages[f"rpcd-{name}.1"]), EVERY[name]
    for option in (each for each in command.params if each.param_type_name == "option"):
        assert option.opts[-1] in page
        assert option.help.replace("`", "") in page  # type: ignore[attr-defined]
    assert ".SH EXIT STATUS" in page
    assert ".SH EXAMPLES" in page


def test_every_setting_is_in_the_page_of_the_config(pages: dict[str, str]) -> None:
    page = plain(pages["rpcd.toml.5"])
    sections = [each for each in vars(settings).values() if attrs.has(each) and each.__module__.startswith("rpcd.core.")]
    assert len(sections) > 8
    inner = {field.name for field in attrs.fields(settings.Settings)} | {"tls", "retry", "archive", "kill_switch"}
    for section in sections:
        for name, sentence in settings.sentences(section).items():
            assert name in inner or sentence.replace("`", "") in page, name


def test_roff_has_nothing_to_complain_about(pages: dict[str, str]) -> None:
    """Every page is checked by rules that groff's own warnings are about, and by groff itself wherever it is installed."""
    requests = {".TH", ".SH", ".PP", ".TP", ".B", ".BR", ".nf", ".fi", ".RS", ".RE"}
    for page in pages.values():
        assert page.isascii()
        assert page.startswith('.TH "')
        for line in page.splitlines():
            assert line
            assert not line.startswith("'")
            assert not line.startswith(".") or line.split()[0] in requests
        assert all(found[0] in "-e&f(" for found in re.findall(r"\\(\(?..?)", page))
        if groff := shutil.which("groff"):
            done = subprocess.run([groff, "-man", "-ww", "-Tutf8", "-z"], input=page, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, "")


def test_pages_are_the_same_whenever_they_are_made(pages: dict[str, str]) -> None:
    assert dict(man.commands())["rpcd-tail.1"] == pages["rpcd-tail.1"]


def test_pages_need_a_directory() -> None:
    done = subprocess.run([sys.executable, "-m", "rpcd.cli.man"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "usage: python -m rpcd.cli.man DIRECTORY\n")


# Completion ---------------------------------------------------------------------------------------

COMPLETE = """
source "$1"
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_rpcd_completion rpcd
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "rpcd.toml"
    file.write_text('[exchanges.shop]\n[exchanges.stock]\n[queues.orders]\nname = "shop-orders"\n[queues.returns]\n')
    with file.open("a") as more:
        more.write('[consumers.sales]\nqueue = "orders"\nhandler = "shop:sell"\n')
    return file


def completed(tmp_path: pathlib.Path, *words: str, **environment: str) -> list[str]:
    script = tmp_path / "completion"
    script.write_text(rpcd("completion", "bash").stdout)
    quoted = " ".join(f"'{word}'" for word in ("rpcd", *words))
    done = subprocess.run(
        ["bash", "-c", COMPLETE.format(words=quoted), "bash", str(script)],
        env={**surroundings(None, **environment), "PATH": f"{RPCD.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_bash_completes_commands_options_and_names(tmp_path: pathlib.Path, config: pathlib.Path) -> None:
    assert completed(tmp_path, "c") == ["call", "check", "completion", "ctl"]
    assert completed(tmp_path, "publish", "--fr") == ["--from-line"]
    assert completed(tmp_path, "completion", "") == ["bash", "zsh", "fish"]
    assert completed(tmp_path, "tail", "--config", str(config), "--queue", "") == ["shop-orders", "returns"]
    assert completed(tmp_path, "tail", "s", RPCD_CONFIG=str(config)) == ["shop", "stock"]
    assert completed(tmp_path, "call", "r", RPCD_CONFIG=str(config)) == ["returns"]
    assert completed(tmp_path, "ctl", "--config", str(config), "pause", "") == ["sales"]


@pytest.mark.parametrize("text", ["", "[", "\0", None])
def test_a_config_that_can_not_be_read_completes_nothing_and_says_nothing(tmp_path: pathlib.Path, text: str | None) -> None:
    file = tmp_path / "broken.toml"
    if text is not None:
        file.write_text(text)
    assert completed(tmp_path, "tail", "--queue", "", RPCD_CONFIG=str(file)) == []


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o nosort -F"), ("zsh", "#compdef rpcd"), ("fish", "complete ")]
)
def test_every_shell_gets_its_script(shell: str, word: str) -> None:
    done = rpcd("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert word in done.stdout
    assert "_RPCD_COMPLETE" in done.stdout


def test_an_unknown_shell_is_wrong_usage() -> None:
    done = rpcd("completion", "csh")
    assert done.returncode == 2
    assert "'csh' is not one of 'bash', 'zsh', 'fish'" in done.stderr


def test_lines_that_help_keeps_are_kept_in_its_page(tmp_path: pathlib.Path) -> None:
    (page,) = (path for path in man.write(tmp_path) if path.name == "rpcd-ctl.1")
    shown = page.read_text().splitlines()
    assert [line for line in shown if line.startswith("rpcd ctl pause [CONSUMER]")] != []
    assert shown.count(".nf") == 2
    assert ".B RPCD_VIRTUAL_HOST" in shown
