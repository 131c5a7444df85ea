"""The documentation: it is built without warnings, and every example on every page does what it says."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from daemon import RPCD, StartDaemon
from pages import Block, Reader, blocks
from peer import Peer

import rpcd
from rpcd.core.load import load
from rpcd.ops.rabbitmq import PrivateNode

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if not {"_build", "generated"} & set(page.parts))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The documentation as HTML, built as a reader of CONTRIBUTING would; a warning is an error."""
    place = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", place / "trees", DOCS, place]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_the_documentation_is_built_without_a_warning(built: pathlib.Path) -> None:
    assert "rpcd" in (built / "index.html").read_text()
    for page in PAGES:
        assert (built / page.relative_to(DOCS).with_suffix(".html")).exists()


def test_the_reference_is_generated_from_the_program(built: pathlib.Path) -> None:
    settings = (built / "reference/generated/settings.html").read_text()
    assert "What only one message at a time may have in common" in settings
    assert "HaltConsumer(exit_code=0" in (built / "reference/generated/outcomes.html").read_text()
    assert "--unroutable-is-fine" in (built / "reference/generated/commands.html").read_text()


def test_the_reference_has_every_python_name() -> None:
    text = (DOCS / "reference/api.md").read_text()
    told = set(re.findall(r"^\.\. auto\w+:: rpcd\.(\w+)$", text, re.MULTILINE))
    assert told == set(rpcd.__all__) - {"__version__"}
    attributes = set(re.findall(r"py:attribute:: (\w+)", text)) | set(
        re.findall(r"\w+", text.partition(":members:")[2].partition("\n")[0])
    )
    public = {name for name in dir(rpcd.Message) if not name.startswith("_")} - {"source"}
    assert public <= attributes


@pytest.fixture
def reader(tmp_path: pathlib.Path, url: str) -> Iterator[Reader]:
    """Somebody with rpcd on the PATH and a broker that the environment names."""
    environment = {
        **os.environ,
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RABBITMQ_URL": url,
        "RPCD": str(ROOT),
        "HOME": str(tmp_path),
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(pathlib.Path.home() / ".cache/pip")),
    }
    directory = tmp_path / "page"
    directory.mkdir()
    found = Reader(directory, environment)
    yield found
    found.leave()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_example_of_a_page_does_what_it_says(page: pathlib.Path, reader: Reader, tmp_path: pathlib.Path) -> None:
    for block in blocks(page):
        if block.order(r"not run: .+"):
            continue
        try:
            reader.follow(block)
            if block.language == "toml" and block.file is None:
                part_of_a_config(block)
            if block.language == "ini":
                part_of_a_unit(block, tmp_path / f"units-{block.line}")
        except Exception as error:
            raise AssertionError(f"{page}:{block.line}: {error}") from error


def part_of_a_config(block: Block) -> None:
    """Check a piece of a config: it is TOML, and each of its settings is known and takes such a value."""
    parsed = tomllib.loads(block.text)
    whole = {"queues": {}, "consumers": {"orders": {"queue": "orders"}}, **parsed}
    for consumer in whole["consumers"].values():
        if not {"handler", "namespace"} & set(consumer):
            consumer["handler"] = "shop:handle"
        whole["queues"].setdefault(consumer.setdefault("queue", "orders"), {})
    environment = dict.fromkeys(re.findall(r"\$\{([A-Z_]+)\}", block.text), "x") | {"CREDENTIALS_DIRECTORY": "/run"}
    _, problems = load(whole, environment, lambda _name: "A" * 43 + "=")  # a key, if one is wanted
    assert problems == [], block.text


def part_of_a_unit(block: Block, place: pathlib.Path) -> None:
    """Check a drop-in for one instance, and the unit with it: systemd finds nothing wrong with them."""
    (place / "rpcd@shop.service.d").mkdir(parents=True)
    (place / "rpcd@shop.service.d" / "override.conf").write_text(block.text)
    for unit in (ROOT / "systemd").iterdir():
        shutil.copy(unit, place)
    command = ["systemd-analyze", "verify", "--man=no", "rpcd@shop.service"]
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{place}:"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout + done.stderr) == (0, ""), block.text


def test_a_wrong_part_of_a_unit_would_be_found(tmp_path: pathlib.Path) -> None:
    with pytest.raises(AssertionError, match="DynamcUser"):
        part_of_a_unit(Block("ini", "[Service]\nDynamcUser=yes\n", (), 1), tmp_path / "units")


@pytest.mark.parametrize("column", [3, 4])
def test_the_permissions_on_the_page_are_enough(
    column: int, start: StartDaemon, url: str, node: PrivateNode, virtual_host: str, tmp_path: pathlib.Path, peer: Peer
) -> None:
    table = (DOCS / "guide/tls.md").read_text().partition("<!-- permissions -->\n")[2].partition("\n\n")[0]
    rows = [re.split(r" (?<!\\)\| ", row.strip("| ")) for row in table.splitlines()[2:]]
    patterns = [row[column - 1].strip("`").replace("\\|", "|") for row in rows]
    config = f"""
        [service]
        declare = {"true" if column == 3 else "false"}
        [exchanges.shop]
        [queues.orders]
        bindings = [{{ exchange = "shop", routing_keys = ["order.#"] }}]
        [consumers.orders]
        queue = "orders"
        handler = "handlers_of_test:handle"
        retry = {{ delays = [0.1] }}
        """
    if column == 4:
        (tmp_path / "declare.toml").write_text(config.replace("[service]", '[service]\npath = ["."]'))
        command = [str(RPCD), "declare", "--config", str(tmp_path / "declare.toml"), "--url", url]
        subprocess.run(command, capture_output=True, check=True)
    user = f"least-{virtual_host}"
    node.ctl("add_user", user, "pw")
    node.ctl("set_permissions", "--vhost", virtual_host, user, *patterns)
    handlers = """
        def handle(message):
            if message.attempt == 1 and message.reply_to is None:
                raise ConnectionError
            message.publish("shop", "shipped", {})
            print("run", message.attempt)
            return {}
        """
    daemon = start(config, handlers, at=node.url(virtual_host, user, "pw"))
    peer.publish("order.placed", {}, "shop")
    daemon.wait_for("run 2")
    assert peer.call("orders", {}).json["success"] is True
    assert daemon.stop() == 0
    assert "refused" not in daemon.output
