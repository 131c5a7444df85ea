"""The wheel in an empty environment: twistd knows rpcd, and uninstalling leaves Twisted whole."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


def run(*command: object, cwd: pathlib.Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A virtual environment with nothing in it but rpcd, from its wheel."""
    directory = tmp_path_factory.mktemp("package")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, ROOT)
    (wheel,) = directory.glob("rpcd-*.whl")
    run(sys.executable, "-m", "venv", directory / "venv")
    run(directory / "venv/bin/python", "-m", "pip", "install", "--quiet", wheel)
    return directory / "venv/bin"


def test_the_wheel_brings_the_plugin_and_the_command_and_leaves_twisted_whole(environment: pathlib.Path) -> None:
    assert "rpcd " in run(environment / "twistd", "--help")
    assert "--config" in run(environment / "twistd", "rpcd", "--help")
    assert run(environment / "rpcd", "--version").startswith("rpcd, version ")
    names = run(environment / "python", "-m", "pip", "show", "--files", "rpcd")
    assert "twisted/plugins/rpcd_plugin.py" in names
    assert "twisted/__init__.py" not in names
    run(environment / "rpcd", "new", environment / "shop")
    assert "all is well" in run(environment / "rpcd", "check", "--config", environment / "shop/shop.toml")
    run(environment / "python", "-m", "pip", "uninstall", "--quiet", "--yes", "rpcd")
    assert "rpcd " not in run(environment / "twistd", "--help")
    assert run(environment / "python", "-c", "import twisted.plugins, twisted.internet; print('whole')") == "whole\n"


def test_this_editable_install_exposes_the_plugin() -> None:
    assert "rpcd " in run(pathlib.Path(sys.executable).parent / "twistd", "--help")
