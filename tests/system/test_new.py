"""`rpcd new`: what it makes works at once, for somebody who has nothing but rpcd and pytest."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from command import rpcd, running, surroundings
from daemon import RPCD

ROOT = pathlib.Path(__file__).parent.parent.parent

BIN = str(pathlib.Path(sys.executable).parent)


def typed(command: str, directory: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Type a command in a directory, as somebody whose environment is the one that runs the tests."""
    env = surroundings(None, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}", PYTEST_ADDOPTS="-p no:cacheprovider")
    return subprocess.run(
        ["bash", "-c", command],
        cwd=directory,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


def commands(page: pathlib.Path) -> list[str]:
    return re.findall(r"^    (.+)$", page.read_text(), re.MULTILINE)


def test_a_new_project_passes_its_tests_and_runs_as_its_own_readme_says(tmp_path: pathlib.Path) -> None:
    made = typed("rpcd new shop", tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("shop is made. Go on with:\n\ncd shop\npytest\nrpcd dev --config shop.toml\n")
    shop = tmp_path / "shop"
    pytest_line, dev_line, call_line, publish_line, list_line, *_ = commands(shop / "README.md")
    assert pytest_line == "pytest"
    tested = typed(pytest_line, shop)
    assert tested.returncode == 0, tested.stdout
    assert re.search(r"\d passed", tested.stdout)
    assert "all is well" in typed("rpcd check --config shop.toml", shop).stdout
    assert dev_line == "rpcd dev --config shop.toml"
    with running("dev", "--config", str(shop / "shop.toml"), url="") as dev:
        dev.wait_for("ready, consuming: orders, mails", dev.out)
        assert json.loads(typed(call_line, shop).stdout)["data"] == {"total": 10.5}
        dev.wait_for("shop@example.org thanks ada for tea, cup", dev.out)
        assert typed(publish_line, shop).returncode == 0
        dev.wait_for("shop@example.org thanks ada for tea", dev.out, 2)
        (handlers,) = shop.glob("shop/handlers.py")
        handlers.write_text(handlers.read_text().replace('"cup": 6.5', '"cup": 7.5'))
        dev.wait_for("ready, consuming: orders, mails", dev.out, 2)
        assert json.loads(typed(call_line, shop).stdout)["data"] == {"total": 11.5}
        listed = typed(list_line, shop)
        assert listed.returncode == 0, listed.stderr
        dev.process.terminate()
        assert dev.wait() == 0


def test_every_name_of_the_project_is_its_own(tmp_path: pathlib.Path) -> None:
    assert rpcd("new", str(tmp_path / "some where"), "--name", "bakery").returncode == 0
    for path in (tmp_path / "some where").rglob("*"):
        if path.is_file():
            assert "shop" not in path.read_text()
            assert not re.search(r"@\w+@", path.read_text().replace("@bakery@", ""))
    assert (tmp_path / "some where/bakery.toml").exists()


def test_a_new_project_is_tidy(tmp_path: pathlib.Path) -> None:
    rpcd("new", str(tmp_path / "shop"))
    for command in ("ruff check", "ruff format --check"):
        done = typed(f"{command} --isolated --line-length 125 .", tmp_path / "shop")
        assert done.returncode == 0, done.stdout


def test_its_unit_is_one_that_systemd_understands(tmp_path: pathlib.Path) -> None:
    rpcd("new", str(tmp_path / "shop"))
    units = tmp_path / "units"
    (units / "rpcd@shop.service.d").mkdir(parents=True)
    shutil.copy(tmp_path / "shop/systemd/unit.conf", units / "rpcd@shop.service.d/shop.conf")
    for unit in (ROOT / "systemd").iterdir():
        shutil.copy(unit, units)
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "rpcd@shop.service"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("my-shop", "identifier"),
        ("1shop", "identifier"),
        ("class", "identifier"),
        ("bäckerei", "identifier"),
        ("a" * 27, "27 characters"),
        ("json", "a package of that name"),
        ("pika", "a package of that name"),
        ("rpcd", "a package of that name"),
    ],
)
def test_a_name_that_can_not_be_one_is_told_with_the_way_out(name: str, reason: str, tmp_path: pathlib.Path) -> None:
    done = rpcd("new", str(tmp_path / name))
    assert done.returncode == 2
    assert reason in done.stderr
    assert not (tmp_path / name).exists()
    advised = shlex.split(done.stderr.rpartition(": ")[2])
    assert advised[:2] == ["rpcd", "new"]
    assert rpcd(*advised[1:]).returncode == 0


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "shop").mkdir()
    for name in ("notes.txt", ".gitignore"):
        (tmp_path / "shop" / name).write_text("mine")
        done = rpcd("new", str(tmp_path / "shop"))
        assert done.returncode == 1
        assert f"{name} is there" in done.stderr
        assert [each.name for each in (tmp_path / "shop").iterdir()] == [name]
        (tmp_path / "shop" / name).unlink()
    (tmp_path / "file").write_text("")
    done = rpcd("new", str(tmp_path / "file"))
    assert (done.returncode, done.stderr) == (1, f"{tmp_path / 'file'}: Not a directory\n")


def test_a_directory_with_a_repository_and_a_virtual_environment_counts_as_empty(tmp_path: pathlib.Path) -> None:
    shop = tmp_path / "shop"
    (shop / ".git").mkdir(parents=True)
    (shop / "venv").mkdir()
    (shop / "venv/pyvenv.cfg").write_text("")
    done = subprocess.run([str(RPCD), "new", "."], cwd=shop, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Go on with:\n\npytest\n" in done.stdout
    assert (shop / "shop/handlers.py").exists()
