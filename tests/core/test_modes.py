import grp
import os
import pathlib
import pwd
import stat
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest

from rpcd.config import read
from rpcd.modes import faults

Make = Callable[..., pathlib.Path]


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Make:
    """Write a file with a mode."""

    def written(name: str, text: str, mode: int) -> pathlib.Path:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(mode)
        return path

    return written


def said(path: pathlib.Path, virtual_host: str | None = None, **environment: str) -> list[str]:
    """Return what is wrong with modes."""
    found = read(str(path), environment, virtual_host)[1]
    return [str(each) for each in found if each.path == "mode" or "open to" in each.what]


LITERAL = '[broker]\npassword = "correct-horse"\n'
OVERLAY = '[virtual_hosts.staging.broker]\nurl = "amqp://u:correct-horse@h"\n'
NONE = '[broker]\nurl = "amqp://guest:guest@localhost/"\npassword = "${PASSWORD:}"\n'


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o440])
@pytest.mark.parametrize("text", [LITERAL, OVERLAY, NONE])
def test_security_07_a_file_that_not_everybody_may_read_may_hold_secrets(make: Make, text: str, mode: int) -> None:
    assert said(make("a.toml", text, mode)) == []


@pytest.mark.parametrize("mode", [0o444, 0o644, 0o604])
def test_security_07_a_file_that_everybody_may_read_may_hold_none(make: Make, mode: int) -> None:
    assert said(make("a.toml", NONE, mode)) == []
    path = make("b.toml", LITERAL + OVERLAY, mode)
    assert said(path) == [
        (
            f"mode: {mode:04o} lets everybody read what is secret: broker.password, virtual_hosts.staging.broker.url; "
            f"chmod o-r {path}, or keep it elsewhere: ${{credential:NAME}} or ${{file:PATH}}"
        )
    ]
    assert said(path, "staging") == said(path)


def test_no_problem_shows_the_secret(make: Make) -> None:
    assert "correct-horse" not in str(said(make("a.toml", LITERAL + OVERLAY, 0o666)))


def test_security_07_a_file_that_everybody_may_change_is_refused_whatever_it_holds(make: Make) -> None:
    path = make("a b.toml", NONE, 0o646)
    assert said(path) == [f"mode: 0646 lets everybody change it, and so choose the code that rpcd runs; chmod o-w '{path}'"]


SHOP, STAFF, ROOT = 1000, 50, 0
"""A user and the group that bears its name; a group of several users; root and its group."""


@pytest.fixture
def _users(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system with the users root, shop, ann and bob; bob has no private group, ann has let shop into hers."""
    users = {ROOT: ("root", ROOT), SHOP: ("shop", SHOP), 1001: ("ann", 1001), 1002: ("bob", STAFF), 1003: ("eve", STAFF)}
    groups = {ROOT: ("root", []), SHOP: ("shop", []), STAFF: ("staff", []), 1001: ("ann", ["shop"]), 1003: ("eve", ["eve"])}

    def user(number: int) -> Any:
        name, group = users[number]
        return types.SimpleNamespace(pw_name=name, pw_gid=group)

    def group(number: int) -> Any:
        name, members = groups[number]
        return types.SimpleNamespace(gr_name=name, gr_gid=number, gr_mem=members)

    monkeypatch.setattr(pwd, "getpwuid", user)
    monkeypatch.setattr(grp, "getgrgid", group)


@pytest.mark.usefixtures("_users")
@pytest.mark.parametrize(
    ("mode", "owner", "group", "found"),
    [
        (0o600, SHOP, SHOP, {}),
        (0o640, SHOP, STAFF, {}),
        (0o660, SHOP, SHOP, {}),
        (0o660, ROOT, ROOT, {}),
        (0o660, SHOP, ROOT, {}),
        (0o660, SHOP, STAFF, {"g-w": "its group"}),
        (0o660, ROOT, SHOP, {"g-w": "its group"}),
        (0o660, 1002, STAFF, {"g-w": "its group"}),
        (0o660, 1001, 1001, {"g-w": "its group"}),
        (0o660, 1003, 1003, {"g-w": "its group"}),
        (0o660, 4242, SHOP, {"g-w": "its group"}),
        (0o660, SHOP, 4242, {"g-w": "its group"}),
        (0o644, SHOP, SHOP, {"o-r": "everybody"}),
        (0o666, SHOP, STAFF, {"o-r": "everybody", "o-w": "everybody", "g-w": "its group"}),
        (0o602, SHOP, SHOP, {"o-w": "everybody"}),
        (0o777, SHOP, SHOP, {"o-r": "everybody", "o-w": "everybody"}),
    ],
)
def test_who_may_do_what_to_a_file(mode: int, owner: int, group: int, found: dict[str, str]) -> None:
    status = os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, group, 0, 0, 0, 0))
    assert faults(status, secret=True) == found
    assert faults(status, secret=False) == {change: who for change, who in found.items() if change != "o-r"}


def test_a_secret_that_is_read_from_a_file_that_is_open_is_a_problem(make: Make, tmp_path: pathlib.Path) -> None:
    secret = make("pw", "correct-horse\n", 0o644)
    config = make("a.toml", '[broker]\npassword = "${file:pw}"\nusername = "${file:pw}"\n', 0o644)
    assert said(config) == [f"broker.password: {secret} is open to everybody (mode 0644); chmod o-r {secret}"]
    secret.chmod(0o666)
    (found,) = said(config)
    assert found.endswith((f"chmod o-r,o-w {secret}", f"chmod o-r,o-w,g-w {secret}"))
    secret.chmod(0o640)
    assert said(config) == []


def test_what_is_read_for_anything_but_a_secret_may_be_open(make: Make) -> None:
    make("dsn", "x", 0o644)
    text = (
        '[broker]\nusername = "${file:dsn}"\n[consumers.a]\nqueue = "a"\nhandler = "a:b"\nconfig = { x = "${file:dsn}" }\n'
    )
    assert said(make("a.toml", text, 0o644)) == []


def test_only_the_files_of_the_overlay_that_is_used_are_looked_at(make: Make) -> None:
    secret = make("pw", "x", 0o644)
    config = make("a.toml", '[broker]\n[virtual_hosts.staging.broker]\npassword = "${file:pw}"\n', 0o644)
    assert said(config) == []
    (found,) = said(config, "staging")
    assert found.startswith(f"virtual_hosts.staging.broker.password: {secret} is open to everybody")


def test_security_05_the_private_key_of_a_certificate_is_a_secret(make: Make) -> None:
    key = make("shop.key", "no key", 0o644)
    make("shop.pem", "no certificate", 0o666)
    text = '[broker]\nurl = "amqps://h"\ntls = { key = "shop.key", certificate = "shop.pem" }\n'
    assert said(make("a.toml", text, 0o600)) == [f"broker.tls.key: {key} is open to everybody (mode 0644); chmod o-r {key}"]


def test_what_systemd_hands_over_is_its_own_business(make: Make, tmp_path: pathlib.Path) -> None:
    make("pw", "x", 0o644)
    config = make("a.toml", LITERAL.replace("correct-horse", "${credential:pw}") + OVERLAY, 0o666)
    assert said(config, CREDENTIALS_DIRECTORY=str(tmp_path)) == []
    config = make("b.toml", '[broker]\npassword = "${file:pw}"\n', 0o600)
    assert said(config, CREDENTIALS_DIRECTORY=str(tmp_path)) == []


def test_what_is_no_plain_file_has_no_mode_that_means_anything(tmp_path: pathlib.Path) -> None:
    """A device; a pipe, as a shell's <(...) is."""
    assert said(pathlib.Path("/dev/null")) == []
    pipe = tmp_path / "pipe.toml"
    os.mkfifo(pipe)
    pipe.chmod(0o666)
    writer = threading.Thread(target=pipe.write_text, args=(LITERAL,))
    writer.start()
    found, problems = read(str(pipe), {})
    writer.join()
    assert found.broker.password == "correct-horse"
    assert [each for each in problems if each.path == "mode"] == []
