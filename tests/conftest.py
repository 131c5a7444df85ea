"""A private RabbitMQ node for the whole run, a virtual host for each test, and daemons that end with their test."""

import itertools
import logging
import os
import pathlib
import secrets
import shutil
import tempfile
import textwrap
from collections.abc import Iterator

import pytest
from daemon import Daemon, StartDaemon
from databases import Postgresql, Redis
from peer import Peer
from privilege import NODES
from proxy import Proxy

from rpcd.ops import ports
from rpcd.ops.rabbitmq import PrivateNode, answers

pytest.register_assert_rewrite("conformance")  # else its promises would not say why they are broken

logging.getLogger("pika").setLevel(logging.CRITICAL + 1)  # pages for each refused connection; a failed test shows the error

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes that share the tests: gw0, gw1, ...
    ports.keep_to(int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))

TOGETHER = {"core", "amqp"}
"""Folders whose files stay whole when processes share the tests: their tests are too short to be handed out one by one."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a fixture of their module in one process, so that it is set up once; see `script/test`."""
    for item in items:
        assert isinstance(item, pytest.Function)
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(
                f"{item.nodeid} has another name in every process; write ids=label (tests/support/named.py)"
            )
        shared = (each for known in item._fixtureinfo.name2fixturedefs.values() for each in known if each.scope == "module")
        if item.path.parent.name in TOGETHER or any(shared):
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(item.config.rootpath))))


BATCH = 25
"""Virtual hosts made by one call of rabbitmqctl, which takes half a second however many there are."""


def make_node(factory: pytest.TempPathFactory, name: str) -> Iterator[PrivateNode]:
    """Run a broker; RPCD_TEST_RABBITMQ_ROOT names the root of another system (debootstrap) whose RabbitMQ is to be used."""
    other = os.environ.get("RPCD_TEST_RABBITMQ_ROOT")
    if other is None:
        private = PrivateNode(factory.mktemp(name))
    else:
        root = pathlib.Path(other)
        private = PrivateNode(pathlib.Path(tempfile.mkdtemp(dir=root / "tmp")), root=root)
    private.start()
    NODES[private.port] = private
    yield private
    private.stop()
    if other is not None:
        shutil.rmtree(private.directory)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    """One broker for all tests that leave it alone."""
    yield from make_node(tmp_path_factory, "node")


@pytest.fixture(scope="session")
def _virtual_hosts(node: PrivateNode) -> Iterator[str]:
    def names() -> Iterator[str]:
        numbers = itertools.count()
        while True:
            batch = [f"test{next(numbers)}" for _ in range(BATCH)]
            node.add_virtual_hosts(batch)
            yield from batch

    return names()


@pytest.fixture
def virtual_host(_virtual_hosts: Iterator[str]) -> str:
    """A virtual host that nobody has used."""
    return next(_virtual_hosts)


@pytest.fixture
def url(node: PrivateNode, virtual_host: str) -> str:
    """The URL of a fresh virtual host."""
    return node.url(virtual_host)


@pytest.fixture
def peer(url: str) -> Iterator[Peer]:
    """A plain client in the test's virtual host."""
    client = Peer(url)
    yield client
    client.close()


@pytest.fixture
def proxy(node: PrivateNode) -> Iterator[Proxy]:
    """A proxy to the broker: give a daemon `proxy.url(url)`."""
    between = Proxy(node.port)
    yield between
    between.close()


@pytest.fixture
def start(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[StartDaemon]:
    """Start daemons from config text; handlers are given as Python text or found in the test's own folder."""
    running: list[Daemon] = []

    def begin(config: str, handlers: str = "", *, at: str | None = None, wait: bool = True, **options: str) -> Daemon:
        broker = at if at is not None else request.getfixturevalue("url")
        (tmp_path / "handlers_of_test.py").write_text(textwrap.dedent(handlers))
        file = tmp_path / "rpcd.toml"
        text = textwrap.dedent(config)
        if "[service]" not in text:
            text = "[service]\n" + text
        file.write_text(text.replace("[service]\n", f"[service]\npath = [{str(tmp_path)!r}]\n", 1))
        daemon = Daemon(file, broker, **options)
        running.append(daemon)
        return daemon.ready() if wait else daemon

    yield begin
    for daemon in running:
        daemon.end()
    for daemon in running:
        daemon.said_nothing()


@pytest.fixture(scope="module")
def sick_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    """A broker that all tests of one module may hurt; each leaves it running."""
    yield from make_node(tmp_path_factory, "sick-node")


@pytest.fixture
def sick_url(sick_node: PrivateNode) -> str:
    """The URL of a fresh virtual host on the sick node."""
    if not answers(sick_node.port):  # the test before has failed half-way
        sick_node.stop()
        sick_node.start()
    name = f"sick{secrets.token_hex(4)}"
    sick_node.add_virtual_hosts([name])
    return sick_node.url(name)


@pytest.fixture
def own_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    """A broker that a test may kill, stop and start."""
    yield from make_node(tmp_path_factory, "own-node")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgresql]:
    """A PostgreSQL server for all tests that leave it alone, or leave it running."""
    server = Postgresql()
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis server for all tests that leave it alone, or leave it running."""
    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()
