"""The Debian recipe agrees with the code and with itself; `script/package --try` builds and installs it."""

import pathlib
import re
import subprocess

import pytest

import rpcd

ROOT = pathlib.Path(__file__).parent.parent.parent
DEBIAN = ROOT / "debian"
SCRIPTS = [DEBIAN / f"rpcd.{name}" for name in ("postinst", "prerm", "postrm")]
PREFIX = "/usr/lib/rpcd"


def paragraphs(path: pathlib.Path) -> list[dict[str, str]]:
    return [
        dict(re.findall(r"^([\w-]+):\s*((?:.*)(?:\n .*)*)", paragraph, re.MULTILINE))
        for paragraph in path.read_text().split("\n\n")
    ]


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    first = (DEBIAN / "changelog").read_text().splitlines()[0]
    assert re.fullmatch(rf"rpcd \({re.escape(rpcd.__version__)}\) \S+; urgency=\w+", first)
    assert (DEBIAN / "source" / "format").read_text() == "3.0 (native)\n"


def test_the_package_installs_the_units_of_the_tree() -> None:
    units = {unit.name for unit in (ROOT / "systemd").iterdir()}
    assert units == {"rpcd@.service", "rpcd.target"}
    for name in units:
        assert (DEBIAN / name).is_symlink()
        assert (DEBIAN / name).resolve() == ROOT / "systemd" / name


def test_the_unit_runs_the_twistd_of_the_package() -> None:
    assert f"RPCD_TWISTD={PREFIX}/bin/twistd " in (ROOT / "systemd" / "rpcd@.service").read_text()
    assert (DEBIAN / "rpcd.links").read_text() == f"{PREFIX}/bin/rpcd /usr/bin/rpcd\n"
    assert f"#!{PREFIX}/bin/python|" in (DEBIAN / "environment").read_text()
    assert f"{PREFIX}/lib/python3.@MINOR@/site-packages/twisted/plugins" in (DEBIAN / "triggers.in").read_text()


def test_the_package_depends_on_what_its_build_computes() -> None:
    source, package = paragraphs(DEBIAN / "control")
    assert source["Source"] == package["Package"] == "rpcd"
    assert source["Rules-Requires-Root"] == "no"
    assert {"debhelper-compat", "python3", "python3-venv"} <= set(re.findall(r"[\w-]+", source["Build-Depends"]))
    assert package["Architecture"] == "any"  # msgspec and cryptography are compiled
    assert "${python3:Depends}" in package["Depends"]
    assert "python3:Depends=" in (DEBIAN / "environment").read_text()


def test_the_named_trigger_is_one_that_the_package_answers_and_documents() -> None:
    assert "\ninterest-noawait rpcd-restart\n" in (DEBIAN / "triggers.in").read_text()
    assert "        rpcd-restart) restart_instances ;;\n" in (DEBIAN / "rpcd.postinst").read_text()
    assert "  activate-noawait rpcd-restart\n" in (DEBIAN / "rpcd.README.Debian").read_text()


def test_files_that_the_package_takes_from_the_tree_are_there() -> None:
    for name in ("rpcd.docs", "rpcd.examples"):
        for line in (DEBIAN / name).read_text().split():
            assert (ROOT / line).exists(), line


@pytest.mark.parametrize("script", [*SCRIPTS, DEBIAN / "environment"], ids=lambda path: path.name)
def test_shell_scripts_are_right_for_a_plain_shell(script: pathlib.Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert re.search(r"^set -eu?$", text, re.MULTILINE)
    done = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("[[", "function ", "local ", "&>", "<<<", "source "):
        assert not re.search(rf"^\s*{re.escape(word)}|\s{re.escape(word)}\s", text, re.MULTILINE), f"{word} is not for sh"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_maintainer_scripts_take_what_debhelper_adds_and_need_no_systemd(script: pathlib.Path) -> None:
    text = script.read_text()
    assert text.count("\n#DEBHELPER#\n") == 1
    assert text.endswith("\nexit 0\n")
    blocks = re.split(r"\n(?=case|if|\w+\(\))", text)
    for block in blocks:
        if "systemctl" in block:
            assert "[ -d /run/systemd/system ]" in block


def run_postinst(tmp_path: pathlib.Path, *arguments: str, systemd: bool) -> list[str]:
    """Run the postinst with programs that only write down how they were called."""
    calls = tmp_path / "calls"
    calls.write_text("")
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("systemctl", "py3compile"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{calls}\n')
        (programs / name).chmod(0o755)
    running = tmp_path / "systemd"
    if systemd:
        running.mkdir(exist_ok=True)
    text = (DEBIAN / "rpcd.postinst").read_text()
    text = text.replace("/run/systemd/system", str(running)).replace(f"{PREFIX}/bin/python", f"echo python >>{calls}; :")
    script = tmp_path / "postinst"
    script.write_text(text)
    done = subprocess.run(
        ["sh", str(script), *arguments], env={"PATH": f"{programs}:/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return calls.read_text().splitlines()


RESTARTED = "systemctl --no-block try-restart rpcd@*.service"


def test_installing_starts_nothing_and_upgrading_restarts_what_runs(tmp_path: pathlib.Path) -> None:
    prepared = [f"py3compile -p rpcd {PREFIX}", "python"]
    assert run_postinst(tmp_path, "configure", "", systemd=True) == prepared
    assert run_postinst(tmp_path, "configure", "0.0.9", systemd=True) == [*prepared, RESTARTED]


def test_triggers_restart_instances_or_make_the_cache(tmp_path: pathlib.Path) -> None:
    plugins = f"{PREFIX}/lib/python3.11/site-packages/twisted/plugins"
    assert run_postinst(tmp_path, "triggered", "rpcd-restart", systemd=True) == [RESTARTED]
    assert run_postinst(tmp_path, "triggered", plugins, systemd=True) == ["python"]
    assert run_postinst(tmp_path, "triggered", f"{plugins} rpcd-restart", systemd=True) == ["python", RESTARTED]


def test_without_systemd_nothing_is_restarted(tmp_path: pathlib.Path) -> None:
    assert run_postinst(tmp_path, "triggered", "rpcd-restart", systemd=False) == []
    assert RESTARTED not in run_postinst(tmp_path, "configure", "0.0.9", systemd=False)
