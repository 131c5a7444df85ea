import builtins
import os
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rpcd.config import read
from rpcd.core.errors import SettingsError
from rpcd.files import located, parse, stale

NOBODY = 65534


def said(path: pathlib.Path, **environment: str) -> list[str]:
    """Return what is wrong with a file, without its name."""
    with pytest.raises(SettingsError) as caught:
        parse(str(path), environment)
    return [str(problem).removeprefix(f"{path}: ") for problem in caught.value.problems]


# Languages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "[service]\npath = ['x']"),
        ("a.TOML", "[service]\npath = ['x']"),
        ("a", "[service]\npath = ['x']"),
        ("a.conf", "[service]\npath = ['x']"),
        ("yaml", "[service]\npath = ['x']"),
        ("a.yaml", "service:\n  path: [x]\n"),
        ("a.yml", "service: {path: [x]}\n"),
        ("a.YML", '{"service": {"path": ["x"]}}'),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_the_language_is_known_by_the_ending_of_the_name(tmp_path: pathlib.Path, name: str, text: str, mark: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(mark + text.encode())
    assert parse(str(path), {}) == {"service": {"path": ["x"]}}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.toml", b"\xff", "is not UTF-8 text"),
        ("a.yaml", b"\xff", "is not UTF-8 text"),
        ("a.toml", b"a: 1", "is not valid TOML: Expected '=' after a key"),
        ("a.conf", b"a: 1", "YAML is read from files whose names end with .yaml or .yml"),
        ("a.yaml", b"[a]\nb = 1", "is not valid YAML: "),
        ("a.yaml", b"- a", "line 1: expected a table of sections"),
    ],
)
def test_a_file_in_no_language_is_said_to_be_so(tmp_path: pathlib.Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    (found,) = said(path)
    assert problem in found


def test_every_mistake_in_yaml_is_told_with_file_path_and_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("service:\n  declare: on\nbroker:\n  heartbeat: 010\n")
    with pytest.raises(SettingsError) as caught:
        parse(str(path), {})
    assert [problem.path for problem in caught.value.problems] == [
        f"{path}: service.declare (line 2)",
        f"{path}: broker.heartbeat (line 4)",
    ]


def test_the_schema_is_that_of_toml(tmp_path: pathlib.Path) -> None:
    toml, yaml = tmp_path / "a.toml", tmp_path / "a.yaml"
    toml.write_text(
        """
        [broker]
        url = "amqp://${HOST}"
        [queues.orders]
        bindings = [{ exchange = "shop", routing_keys = ["a", "b"] }]
        arguments = { x-max-length = 10 }
        [consumers.orders]
        queue = "orders"
        handler = "shop:handle"
        lock = "*"
        retry = { delays = [0.2, 1] }
        [virtual_hosts.staging]
        consumers.orders.workers = 2
        """
    )
    yaml.write_text(
        """
broker:
  url: amqp://${HOST}
queues:
  orders:
    bindings:
      - exchange: shop
        routing_keys: [a, b]
    arguments: {x-max-length: 10}
consumers:
  orders:
    queue: orders
    handler: shop:handle
    lock: "*"
    retry: {delays: [0.2, 1]}
virtual_hosts:
  staging:
    consumers: {orders: {workers: 2}}
        """
    )
    environment = {"HOST": "rabbit"}
    assert parse(str(toml), {}) == parse(str(yaml), {})
    assert read(str(toml), environment, "staging") == read(str(yaml), environment, "staging")
    assert read(str(yaml), environment, "staging")[1] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("broker:\n", "broker: expected a table, got nothing (an empty one is {})"),
        ("queues:\n  orders:\n", "queues.orders: expected a table, got nothing (an empty one is {})"),
        ("service:\n  path:\n", "service.path: expected an array, got nothing"),
    ],
)
def test_a_section_that_is_left_empty_is_said_with_the_way_out(tmp_path: pathlib.Path, text: str, problem: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert problem in [str(each) for each in read(str(path), {})[1]]


@pytest.fixture
def without_pyyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python as it is where PyYAML is not installed."""
    usual = builtins.__import__

    def refusing(name: str, *others: Any) -> Any:
        if name.partition(".")[0] == "yaml":
            raise ModuleNotFoundError("No module named 'yaml'", name="yaml")
        return usual(name, *others)

    monkeypatch.delitem(sys.modules, "rpcd.yaml", raising=False)
    monkeypatch.delattr("rpcd.yaml", raising=False)
    monkeypatch.setattr(builtins, "__import__", refusing)


def test_without_pyyaml_the_extra_is_named_and_toml_works(tmp_path: pathlib.Path, without_pyyaml: None) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\n")
    assert said(path) == [
        (
            'is YAML, and PyYAML is not installed; pip install "rpcd[yaml]" (Debian: apt-get install python3-yaml), '
            "or write it in TOML"
        )
    ]
    (tmp_path / "a.toml").write_text("a = 1\n")
    assert parse(str(tmp_path / "a.toml"), {}) == {"a": 1}


# systemd's copy -----------------------------------------------------------------------------------


@pytest.fixture
def unit() -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """A config that this user may not read, and the directory of its unit's credentials; we are nobody, as DynamicUser=."""
    place = pathlib.Path(tempfile.mkdtemp())
    (place / "etc").mkdir()
    (place / "credentials").mkdir()
    config = place / "etc/shop.toml"
    config.write_text("[service]\npath = ['handlers']\n[broker]\npassword = 'theirs'\n")
    config.chmod(0o600 if os.geteuid() == 0 else 0)
    place.chmod(0o755)
    before = os.geteuid()
    if before == 0:
        for each in place.rglob("*"):
            os.chown(each, NOBODY, NOBODY) if each.name == "credentials" else None
        os.seteuid(NOBODY)
    yield config, place / "credentials"
    if before == 0:
        os.seteuid(0)
    shutil.rmtree(place)


def hand_over(config: pathlib.Path, credentials: pathlib.Path, text: str = "[broker]\npassword = 'ours'\n") -> None:
    copy = credentials / config.name
    copy.write_text(text)
    copy.chmod(0o444)


Unit = tuple[pathlib.Path, pathlib.Path]


def test_systemds_copy_is_read_where_the_file_is_forbidden(unit: Unit) -> None:
    config, credentials = unit
    hand_over(config, credentials, "[service]\npath = ['handlers']\n[broker]\npassword = 'ours'\n")
    found, problems = read(str(config), {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert found.broker.password == "ours"
    assert found.service.path == [str(config.parent / "handlers")]  # relative paths begin beside the file itself
    assert [problem for problem in problems if problem.path == "mode"] == []  # the copy's mode is systemd's business


def test_a_mistake_in_systemds_copy_names_the_file_itself(unit: Unit) -> None:
    config, credentials = unit
    hand_over(config, credentials, "[broker\n")
    (problem,) = said(config, CREDENTIALS_DIRECTORY=str(credentials))
    assert problem.startswith("is not valid TOML: ")


@pytest.mark.parametrize("environment", [{}, {"CREDENTIALS_DIRECTORY": "."}, {"CREDENTIALS_DIRECTORY": ""}], ids=str)
def test_a_forbidden_file_without_a_copy_is_said_with_the_way_out(unit: Unit, environment: dict[str, str]) -> None:
    config, credentials = unit
    if environment.get("CREDENTIALS_DIRECTORY"):
        environment = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert said(config, **environment) == [
        (
            f"can't be read: Permission denied; let this user read it, or have systemd hand over a copy: "
            f"LoadCredential=shop.toml:{config}"
        )
    ]
    assert stale(str(config), environment) is None


def test_a_file_in_a_forbidden_directory_is_forbidden_too(unit: Unit, as_owner: Callable[[Callable[[], Any]], Any]) -> None:
    config, credentials = unit
    hand_over(config, credentials)
    as_owner(lambda: config.parent.chmod(0o700 if os.getuid() == 0 else 0))
    environment = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert located(str(config), environment) == credentials / "shop.toml"
    as_owner(lambda: config.parent.chmod(0o755))


@pytest.fixture
def as_owner() -> Callable[[Callable[[], Any]], Any]:
    def do(what: Callable[[], Any]) -> Any:
        before = os.geteuid()
        os.seteuid(os.getuid())
        try:
            return what()
        finally:
            os.seteuid(before)

    return do


def test_a_file_that_may_be_read_is_read_even_if_there_is_a_copy(tmp_path: pathlib.Path) -> None:
    config = tmp_path / "shop.toml"
    config.write_text("a = 1")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/shop.toml").write_text("a = 2")
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    assert parse(str(config), environment) == {"a": 1}
    assert stale(str(config), environment) is None
    config.unlink()  # one that is gone is a mistake that nothing is to hide
    assert said(config, **environment) == ["can't be read: No such file or directory"]
    assert stale(str(config), environment) is None


def test_a_copy_is_as_old_as_the_process_and_the_way_out_is_said(unit: Unit) -> None:
    config, credentials = unit
    hand_over(config, credentials)
    problem = stale(str(config), {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert str(problem) == (
        f"{config}: can't be read by this user, and systemd's copy of it is as old as this process; restart the unit "
        "(systemctl restart), or keep secrets out of the file (${credential:...}) and let everybody read it"
    )


def test_a_credential_that_is_no_config_is_no_copy(unit: Unit) -> None:
    config, credentials = unit
    (credentials / "rabbitmq").write_text("x")
    assert located(str(config), {"CREDENTIALS_DIRECTORY": str(credentials)}) == config
    assert re.search("Permission denied", said(config, CREDENTIALS_DIRECTORY=str(credentials))[0])
