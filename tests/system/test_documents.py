"""README, sample and examples do what they say."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import attrs
import pytest
from daemon import RPCD, Daemon
from peer import Peer

from rpcd.config import read
from rpcd.core import settings
from rpcd.core.outcome import TABLE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
SAMPLE = ROOT / "etc/rpcd.toml"


def block(language: str, first_line: str) -> str:
    """Return the code block of the README that starts with a line."""
    (found,) = re.findall(rf"```{language}\n({re.escape(first_line)}\n.*?)```", README, re.DOTALL)
    return str(found)


def test_the_readme_shows_the_outcome_table_as_it_is() -> None:
    shown = README.partition("<!-- outcomes -->")[2].partition("<!-- /outcomes -->")[0].splitlines()[3:]
    assert shown == [f"| {rule.what} | {rule.delivery} | {rule.reply} |" for rule in TABLE]


@pytest.fixture
def shop(tmp_path: pathlib.Path) -> pathlib.Path:
    """The README's handler and config, in an empty directory."""
    (tmp_path / "shop.py").write_text(block("python", "# shop.py"))
    (tmp_path / "shop.toml").write_text(block("toml", "# shop.toml"))
    return tmp_path / "shop.toml"


def test_the_readmes_shop_works_as_it_says(shop: pathlib.Path, url: str, peer: Peer) -> None:
    environment = {**os.environ, "RABBITMQ_URL": url}
    command = [str(RPCD), "check", "--config", "shop.toml", "--broker"]
    done = subprocess.run(command, cwd=shop.parent, env=environment, capture_output=True, text=True, check=True)
    assert "shop.toml: all is well" in done.stdout
    assert not peer.exists("orders")  # nothing is left behind
    daemon = Daemon(shop, url).ready()
    (line,) = re.findall(r"\$ (rpcd call orders .*)\n(.*)", README)
    done = subprocess.run(
        [str(RPCD), "call", "orders", re.findall(r"'(.*)'", line[0])[0]],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == line[1]
    daemon.wait_for("packing .'tea'. on attempt 1")
    assert daemon.stop() == 0
    assert "closing what the constructor opened" in daemon.output
    daemon.kill()


@pytest.fixture
def start_at(url: str) -> Iterator[Callable[[pathlib.Path], Daemon]]:
    """Start a daemon from a config file, and end it with the test."""
    running: list[Daemon] = []

    def begin(config: pathlib.Path) -> Daemon:
        running.append(Daemon(config, url))
        return running[-1].ready()

    yield begin
    for daemon in running:
        daemon.kill()


def test_the_readmes_decorator_works_as_it_says(
    tmp_path: pathlib.Path, start_at: Callable[[pathlib.Path], Daemon], peer: Peer
) -> None:
    (tmp_path / "events.py").write_text(block("python", "# events.py"))
    (said,) = re.findall(r"`\[service\] (modules = .*?)`", README)
    config = tmp_path / "events.toml"
    config.write_text(f'[service]\npath = ["."]\n{said}\n[exchanges.shop]\n[consumers."events.changed"]\nworkers = 3\n')
    daemon = start_at(config)
    assert "consuming, workers: 3" in daemon.output
    for key in ("order.placed", "stock.tea.green"):
        peer.publish(key, {}, "shop")
        daemon.wait_for(f"changed: {key}")
    assert peer.exists("events.changed.retry.60000")
    assert daemon.stop() == 0


def test_the_readmes_namespace_works_as_it_says(
    tmp_path: pathlib.Path, start_at: Callable[[pathlib.Path], Daemon], peer: Peer
) -> None:
    handlers = tmp_path / "acme/handlers"
    handlers.mkdir(parents=True)
    source = block("python", "# acme/handlers/server_create.py")
    (handlers / "server_create.py").write_text(source)
    (handlers / "server_delete.py").write_text(source.replace("created", "deleted"))
    (tmp_path / "cluster.toml").write_text(block("toml", "# cluster.toml"))
    daemon = start_at(tmp_path / "cluster.toml")
    assert peer.call("node1", {"name": "a"}, "server-create").json["data"] == {"created": "a"}
    assert peer.call("node1", {"name": "b"}, "server-delete").json["data"] == {"deleted": "b"}
    assert peer.call("node1", {"name": "c"}).json["data"]["place"] == "exchange"
    assert daemon.stop() == 0


def test_the_readmes_test_of_a_handler_works(shop: pathlib.Path) -> None:
    (line,) = re.findall(r"In a test: `(.*)`", README)
    code = f"import rpcd\nfrom shop import PlaceOrder\nprint({line})"
    done = subprocess.run([sys.executable, "-c", code], cwd=shop.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "{'accepted': 0}\n"


def uncommented() -> str:
    """Return the sample with every commented-out setting switched on."""
    lines = SAMPLE.read_text().splitlines()
    return "\n".join(re.sub(r"^# (\[[\w.]+\]|[\w.]+ = )", r"\1", line) for line in lines)


def test_the_sample_is_right_as_it_stands() -> None:
    found, problems = read(str(SAMPLE), {})
    assert problems == []
    assert list(found.consumers) == ["orders"]


def test_the_sample_in_yaml_means_the_same() -> None:
    in_yaml, problems = read(str(SAMPLE.with_suffix(".yaml")), {})
    assert problems == []
    assert in_yaml == read(str(SAMPLE), {})[0]


@pytest.mark.parametrize(
    "config",
    [
        "asking/shop.toml",
        "async/rates.toml",
        "decorator/events.toml",
        "django/shop.toml",
        "inbox/shop.toml",
        "lanes/bank.toml",
        "layers/shop.toml",
        "namespace/cluster.toml",
        "patterns/farm.toml",
        "tracing/shop.toml",
        "types/orders.toml",
        "yaml/shop.yaml",
    ],
    ids=lambda name: name,
)
def test_an_example_answers_the_call_that_its_first_line_names(
    config: str, start_at: Callable[[pathlib.Path], Daemon], tmp_path: pathlib.Path, url: str
) -> None:
    shutil.copytree(ROOT / "examples" / config.partition("/")[0], tmp_path / "example")
    file = tmp_path / "example" / pathlib.Path(config).name
    first = file.read_text().partition("\n")[0]
    daemon = start_at(file)
    call = shlex.split(first.partition("; then: ")[2].partition("; or: ")[0])
    assert call[:2] == ["rpcd", "call"]
    done = subprocess.run([str(RPCD), *call[1:]], env={**os.environ, "RABBITMQ_URL": url}, capture_output=True, text=True)
    assert json.loads(done.stdout)["success"] is True, done.stderr
    assert daemon.stop() == 0


def test_the_example_of_encrypted_values_does_what_its_first_line_says(
    start_at: Callable[[pathlib.Path], Daemon], tmp_path: pathlib.Path, url: str
) -> None:
    place = tmp_path / "example"
    shutil.copytree(ROOT / "examples/secrets", place)
    first = (place / "shop.toml").read_text().partition("\n")[0]
    generate, serve, ask = (each.strip() for each in first.removeprefix("# ").replace("then: ", "").split("; "))
    assert serve == "rpcd run --config shop.toml"
    path = f"{RPCD.parent}{os.pathsep}{os.environ['PATH']}"
    how = {"cwd": place, "env": {**os.environ, "PATH": path, "RABBITMQ_URL": url}, "text": True, "timeout": 60}
    subprocess.run(["sh", "-c", generate], **how, check=True)
    daemon = start_at(place / "shop.toml")
    done = subprocess.run(["sh", "-c", ask], **how, capture_output=True, check=False)
    assert done.stdout == '{"success":true,"data":{"customer":"ada","card":"1234"},"message":null}\n', done.stderr
    assert daemon.stop() == 0
    assert "charging Order(customer='ada', card=Secret('****'))" in daemon.output


def test_every_example_is_listed() -> None:
    listed = re.findall(r"\]\((\w+)\)", (ROOT / "examples/README.md").read_text())
    assert sorted(listed) == sorted(each.name for each in (ROOT / "examples").iterdir() if each.is_dir())


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "examples/README.md"])
def test_what_a_page_links_to_is_there(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", path.read_text()):
        assert (path.parent / target).exists(), target


def defaults_told(text: str, section: type[attrs.AttrsInstance]) -> list[str]:
    """Return the settings whose commented-out line tells another value than what is taken without it."""
    wrong = []
    for name, value in re.findall(r"^# (\w+) = ([^#\n]+)", text, re.MULTILINE):
        default = getattr(attrs.fields(section), name).default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory()
        if default not in (None, [], attrs.NOTHING) and tomllib.loads(f"{name} = {value}")[name] != default:
            wrong.append(name)
    return wrong


def test_the_sample_names_every_setting_and_every_default(tmp_path: pathlib.Path) -> None:
    whole = tmp_path / "whole.toml"
    whole.write_text(uncommented().replace("amqp://guest:guest@localhost:5672/", "amqps://guest:guest@localhost:5671/"))
    (tmp_path / "cred").mkdir()
    (tmp_path / "cred/rabbitmq").write_text("secret")
    (tmp_path / "cred/fernet").write_text("A" * 43 + "=")
    elsewhere = ("broker.tls", "service.path", "consumers.orders.handler")  # not here; instead of a namespace
    found, problems = read(str(whole), {"CREDENTIALS_DIRECTORY": str(tmp_path / "cred")})
    assert [problem for problem in problems if not problem.path.startswith(elsewhere)] == []
    for section, pattern in (
        (settings.Broker, r"\[broker\]\n(.*?)\n# \[broker.tls"),
        (settings.Tls, r"\[broker.tls\][^\n]*\n(.*?)\n\[service"),
        (settings.Service, r"\[service\]\n(.*?)\n\[logging"),
        (settings.Logging, r"\[logging\]\n(.*?)\n\[exchanges"),
        (settings.Exchange, r"\[exchanges.shop\]\n(.*?)\n\[queues"),
        (settings.Queue, r"\[queues.orders\]\n(.*?)\n\[consumers"),
        (settings.Consumer, r"\[consumers.orders\]\n(.*?)\n\[consumers.orders.retry"),
        (settings.Retry, r"\[consumers.orders.retry\]\n(.*?)\n\[consumers"),
        (settings.Archive, r"\[consumers.orders.archive\]\n(.*?)\n\[consumers"),
        (settings.KillSwitch, r"\[consumers.orders.kill_switch\]\n(.*?)\n\[consumers"),
    ):
        (text,) = re.findall(pattern, SAMPLE.read_text(), re.DOTALL)
        inner = {"tls", "retry", "archive", "kill_switch", "config"}
        named = set(re.findall(r"^(?:# )?(\w+) = ", text, re.MULTILINE)) | inner
        assert set(settings.sentences(section)) <= named, section
        assert defaults_told(text, section) == []
    assert found.consumers["orders"].window == 2
    for section in settings.sentences(settings.Settings):
        assert re.search(rf"^(?:# )?\[{section}[.\]]", SAMPLE.read_text(), re.MULTILINE), section


def test_the_samples_overlay_is_right(tmp_path: pathlib.Path) -> None:
    whole = tmp_path / "whole.toml"
    whole.write_text(SAMPLE.read_text() + overlay_of_sample())
    (tmp_path / "rabbitmq-staging").write_text("secret")
    found, problems = read(str(whole), {"CREDENTIALS_DIRECTORY": str(tmp_path)}, "staging")
    assert problems == []
    assert (found.broker.username, found.broker.password, found.broker.virtual_host) == ("staging", "secret", "staging")
    assert found.consumers["orders"].workers == 2


def overlay_of_sample() -> str:
    """Return the sample's [virtual_hosts.staging], switched on."""
    return uncommented()[uncommented().index("[virtual_hosts.staging]") :]


def test_the_demonstration_plays_its_five_scenes_and_leaves_nothing_running(tmp_path: pathlib.Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RABBITMQ_URL"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/demo/play.py")],
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        '{"success":true,"data":{"number":1,"total":16.5},"message":null}',
        "warehouse: packing tea, cup for order 1",
        "mailer: thank you for order 1",
        "payment: charged 16.5 on attempt 3",
        '"message":"we do not deliver to the Moon"}',
        "rpcd-demo.orders.archive holds b'{this is no JSON'",
        "x-rpcd-reason: bad message: body",
    ):
        assert words in done.stdout
    assert list(tmp_path.iterdir()) == []
    left = [path for path in pathlib.Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in _text(path)]
    assert left == []


def test_the_demonstration_cleans_up_on_somebodys_own_broker(url: str, peer: Peer) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/demo/play.py")],
        env={**os.environ, "RABBITMQ_URL": url},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not peer.exists("rpcd-demo.orders")
    assert not peer.exists("rpcd-demo.orders.archive")


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def test_json_of_check_is_json(shop: pathlib.Path) -> None:
    shop.write_text(shop.read_text().replace("workers = 4", "workers = 0"))
    done = subprocess.run([str(RPCD), "check", "-c", str(shop), "--json"], capture_output=True, text=True, cwd=shop.parent)
    assert done.returncode == 78
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["path"].endswith("consumers.orders.workers")


def test_json_of_check_tells_what_its_table_tells(shop: pathlib.Path) -> None:
    done = subprocess.run([str(RPCD), "check", "-c", str(shop), "--json"], capture_output=True, text=True, cwd=shop.parent)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["broker"]) == (0, True, None)
    assert found["consumers"][0] == {
        "name": "orders",
        "queue": "orders",
        "handler": "shop:PlaceOrder",
        "workers": 4,
        "prefetch": 8,
        "on_error": "auto",
        "virtual_host": None,
    }
