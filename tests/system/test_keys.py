"""`rpcd keys` as an operator and a client use it."""

import contextlib
import json
import os
import pathlib
import pty
import stat
import subprocess

import pytest
from command import rpcd, surroundings
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from daemon import RPCD, StartDaemon
from fernet import keep, new_key, seal

VALUE = "correct-horse"

OLD, NEW = new_key(), new_key()


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    keep(tmp_path / "fernet.key", NEW, OLD)
    return tmp_path / "fernet.key"


def keys(*arguments: str, stdin: str = "", code: int = 0, **environment: str) -> str:
    """Run `rpcd keys`; nothing secret may be in what it says besides its result."""
    done = rpcd("keys", *arguments, stdin=stdin, **environment)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for secret in (VALUE, OLD, NEW):
        assert secret not in done.stderr
    return done.stdout if code == 0 else done.stderr


# Making keys --------------------------------------------------------------------------------------


def test_a_key_is_printed_that_fernet_takes() -> None:
    first, second = keys("generate"), keys("generate")
    assert first != second
    assert Fernet(first.strip()).decrypt(Fernet(first.strip()).encrypt(b"x")) == b"x"
    found = json.loads(keys("generate", "--json"))
    assert found["ok"] is True
    Fernet(found["key"])


def test_a_key_file_is_for_its_owner_alone_and_never_written_over(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "fernet.key"
    line = ["sh", "-c", f'umask 0; exec "{RPCD}" keys generate --output "{file}"']
    done = subprocess.run(line, env=surroundings(None), capture_output=True, text=True, check=True)
    assert done.stdout == f"{file} holds 1 key\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_text()
    Fernet(before.strip())
    said = keys("generate", "--output", str(file), code=1)
    assert said == f"{file}: is there already, and is not written over; --append {file} adds a key to it\n"
    assert file.read_text() == before
    assert json.loads(keys("generate", "--append", str(file), "--json")) == {"ok": True, "file": str(file), "keys": 2}
    assert file.read_text().startswith(before)
    assert [each.name for each in tmp_path.iterdir()] == ["fernet.key"]


def test_what_can_not_be_written_is_told(tmp_path: pathlib.Path, file: pathlib.Path) -> None:
    assert "can't be written: No such file or directory" in keys("generate", "--output", str(tmp_path / "no/k"), code=73)
    done = subprocess.run(
        ["sh", "-c", f'"{RPCD}" keys generate >/dev/full'],
        env=surroundings(None),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (74, "the result can't be written: No space left on device\n")
    assert "Give either --output or --append" in keys("generate", "--output", "a", "--append", "b", code=2)


# Encrypting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "options", "sealed"),
    [
        (VALUE, (), VALUE),
        (VALUE + "\n", (), VALUE),
        (VALUE + "\r\n", (), VALUE),
        (VALUE + "\n\n", (), VALUE + "\n"),
        (VALUE + "\n", ("--exact",), VALUE + "\n"),
        ("", (), ""),
        ("é", (), "é"),
        ('{"a": 1}\n', (), '{"a": 1}'),
    ],
)
def test_a_value_from_standard_input_is_encrypted_with_the_first_key(
    file: pathlib.Path, typed: str, options: tuple[str, ...], sealed: str
) -> None:
    token = keys("encrypt", "--key-file", str(file), *options, stdin=typed)
    assert Fernet(NEW).decrypt(token.strip()).decode() == sealed


def test_a_value_is_asked_for_on_a_terminal_and_never_shown(file: pathlib.Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(str(RPCD), [str(RPCD), "keys", "encrypt", "--key-file", str(file)], surroundings(None))
    shown = b""
    for question in (b"Value: ", b"Repeat for confirmation: "):
        while not shown.endswith(question):  # what is typed ahead is thrown away
            shown += os.read(terminal, 4096)
        os.write(terminal, f"{VALUE}\n".encode())
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(terminal, 4096):
            shown += chunk
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert VALUE.encode() not in shown
    assert Fernet(NEW).decrypt(shown.split()[-1]) == VALUE.encode()


def test_the_fields_of_a_json_object_are_encrypted_and_the_rest_stays_as_it_is_written(file: pathlib.Path) -> None:
    text = f'{{"b": 1.10, "password": "{VALUE}", "big": 123456789012345678901, "n": {{"pin": 1234, "x": [1]}}, "a": null}}'
    shown = keys("encrypt", "--key-file", str(file), "--fields", "password,n.pin", stdin=text)
    found = json.loads(shown)
    assert list(found) == ["b", "password", "big", "n", "a"]
    assert '"b":1.10,' in shown
    assert '"big":123456789012345678901,' in shown
    assert Fernet(NEW).decrypt(found["password"]).decode() == VALUE
    assert Fernet(NEW).decrypt(found["n"]["pin"]) == b"1234"
    assert found["n"]["x"] == [1]


@pytest.mark.parametrize(
    ("text", "fields", "said"),
    [
        ("{}", "a", "a: no such field"),
        ('{"a": {}}', "a.b", "a.b: no such field"),
        ('{"a": 1}', "a.b", "a.b: no such field"),
        ("[]", "a", "a: standard input is no JSON object"),
        (VALUE, "a", "a: standard input is no JSON object"),
        ("", "a", "a: standard input is no JSON object"),
    ],
)
def test_a_field_that_is_not_there_is_told(file: pathlib.Path, text: str, fields: str, said: str) -> None:
    assert keys("encrypt", "--key-file", str(file), "--fields", fields, stdin=text, code=2) == f"{said}\n"


def test_the_keys_of_a_config_and_its_virtual_hosts_are_used(tmp_path: pathlib.Path, file: pathlib.Path) -> None:
    keep(tmp_path / "own.key", OLD)
    config = tmp_path / "rpcd.toml"
    config.write_text(
        '[broker]\nfernet_keys = ["${file:fernet.key}"]\n[queues.q]\n[consumers.q]\nqueue = "q"\nhandler = "none:handle"\n'
        '[virtual_hosts.own]\nfernet_keys = ["${file:own.key}"]\n'
    )
    for options, environment, key in (
        (("--config", str(config)), {}, NEW),
        ((), {"RPCD_CONFIG": str(config)}, NEW),
        (("--config", str(config), "--virtual-host", "own"), {}, OLD),
    ):
        token = keys("encrypt", *options, stdin=VALUE, **environment)
        assert Fernet(key).decrypt(token.strip()).decode() == VALUE
    said = keys("encrypt", "--config", str(config), "--virtual-host", "nobody", stdin=VALUE, code=78)
    assert "virtual_hosts.nobody: there is no such section" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[broker]\nfernet_keys = ["x"]\n', "broker.fernet_keys[0]: is no Fernet key"),
        ('[broker]\nfernet_keys = ["${file:none}"]\n', "broker.fernet_keys[0]: ${file:none} can't be read"),
        ("[broker]\n", "broker.fernet_keys: there is no key; `rpcd keys generate` makes one"),
        ("[broker", "is not valid TOML"),
    ],
)
def test_a_config_without_a_right_key_is_told(tmp_path: pathlib.Path, text: str, said: str) -> None:
    (tmp_path / "rpcd.toml").write_text(text)
    (tmp_path / "rpcd.toml").chmod(0o600)
    shown = keys("encrypt", "--config", str(tmp_path / "rpcd.toml"), stdin=VALUE, code=78)
    assert f"{tmp_path}/rpcd.toml" in shown
    assert said in shown


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (None, 0, "can't be read: No such file or directory"),
        ("", 0o600, "holds no key; `rpcd keys generate` makes one"),
        (f"{NEW}\nx\n", 0o600, "line 2 is no Fernet key"),
        (NEW, 0o644, "is open to everybody; chmod o-r "),
        (NEW, 0o622, "is open to everybody; chmod o-w "),
    ],
    ids=["missing", "empty", "no key", "readable", "writable"],
)
def test_a_wrong_key_file_is_told(tmp_path: pathlib.Path, text: str | None, mode: int, said: str) -> None:
    if text is not None:
        (tmp_path / "k").write_text(text)
        (tmp_path / "k").chmod(mode)
    for command in (("encrypt",), ("rotate",), ("rotate", "--promote")):
        assert said in keys(*command, "--key-file", str(tmp_path / "k"), stdin=VALUE, code=78)


def test_keys_must_be_named() -> None:
    for command in ("encrypt", "rotate"):
        assert "Name the keys: --config FILE (or RPCD_CONFIG), or --key-file FILE." in keys(command, stdin=VALUE, code=2)


def test_an_encrypted_order_is_called_for_in_one_line(start: StartDaemon, url: str, tmp_path: pathlib.Path) -> None:
    keep(tmp_path / "fernet.key", NEW)
    (tmp_path / "order.json").write_text(json.dumps({"password": VALUE}))
    start(
        '[broker]\nfernet_keys = ["${file:fernet.key}"]\n[queues.orders]\n[consumers.orders]\nqueue = "orders"\n'
        'handler = "handlers_of_test:handle"\n',
        'def handle(message):\n    return {"length": len(message.body["password"].reveal())}\n',
    )
    line = f'"{RPCD}" keys encrypt --fields password -c rpcd.toml <order.json | "{RPCD}" call orders - --json'
    done = subprocess.run(
        ["sh", "-c", line], env=surroundings(url), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["data"] == {"length": len(VALUE)}


# Rotating -----------------------------------------------------------------------------------------


def test_tokens_are_encrypted_anew_under_the_first_key_and_stay_as_old_as_they_were(file: pathlib.Path) -> None:
    old = [seal(OLD, VALUE, 10_000), seal(NEW, "x")]
    fresh = keys("rotate", "--key-file", str(file), stdin="\n".join(old) + "\n\n").split()
    assert [Fernet(NEW).decrypt(each).decode() for each in fresh] == [VALUE, "x"]
    ring = MultiFernet([Fernet(NEW), Fernet(OLD)])
    assert [Fernet(NEW).extract_timestamp(each) for each in fresh] == [
        Fernet(key).extract_timestamp(each) for key, each in zip((OLD, NEW), old, strict=True)
    ]
    assert [ring.decrypt(each) for each in old] == [ring.decrypt(each) for each in fresh]
    body = json.dumps({"a": 1, "card": old[0]})
    found = json.loads(keys("rotate", "--key-file", str(file), "--fields", "card", stdin=body))
    assert Fernet(NEW).decrypt(found["card"]).decode() == VALUE


def test_what_is_no_token_ends_it_with_its_line(file: pathlib.Path) -> None:
    assert keys("rotate", "--key-file", str(file), stdin=f"{seal(NEW, 'x')}\n{VALUE}\n", code=1) == (
        "line 2: cannot be decrypted\n"
    )
    body = json.dumps({"card": VALUE})
    assert keys("rotate", "--key-file", str(file), "--fields", "card", stdin=body, code=1) == "card: cannot be decrypted\n"


def test_a_key_is_replaced_in_three_steps_and_everything_sealed_meanwhile_opens(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "fernet.key"
    keys("generate", "--output", str(file))
    file.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(file)
    (first,) = file.read_text().split()
    before = keys("encrypt", "--key-file", str(link), stdin=VALUE).strip()
    keys("generate", "--append", str(link))
    second = file.read_text().split()[1]
    assert keys("rotate", "--key-file", str(link), "--promote") == f"{link} holds 2 keys\n"
    assert file.read_text().split() == [second, first]
    assert link.is_symlink()
    after = keys("encrypt", "--key-file", str(link), stdin=VALUE).strip()
    fresh = keys("rotate", "--key-file", str(link), stdin=before).strip()
    found = json.loads(keys("rotate", "--key-file", str(link), "--keep", "1", "--json"))
    assert found == {"ok": True, "file": str(link), "keys": 1}
    assert file.read_text().split() == [second]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert (file.stat().st_uid, file.stat().st_gid) == (os.geteuid(), os.getegid())
    for token in (after, fresh):
        assert Fernet(second).decrypt(token).decode() == VALUE
    with pytest.raises(InvalidToken):
        Fernet(second).decrypt(before)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["fernet.key", "link"]


def test_the_order_of_a_config_is_changed_where_its_keys_are_written(file: pathlib.Path) -> None:
    for options in (("--promote",), ("--keep", "1"), ("--promote", "--key-file", str(file), "--fields", "a")):
        assert "--promote and --keep need a --key-file" in keys("rotate", *options, code=2)
