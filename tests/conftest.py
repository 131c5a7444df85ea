"""A private RabbitMQ node for the whole run, a virtual host for each test, and daemons that end with their test."""

import itertools
import logging
import os
import pathlib
import shutil
import tempfile
import textwrap
from collections.abc import Iterator

import pytest
from daemon import Daemon, StartDaemon
from peer import Peer
from proxy import Proxy

from rpcd.ops.rabbitmq import PrivateNode

logging.getLogger("pika").setLevel(logging.CRITICAL + 1)  # pages for each refused connection; a failed test shows the error

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
        daemon.kill()


@pytest.fixture
def own_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    """A broker that a test may kill, stop and start."""
    yield from make_node(tmp_path_factory, "own-node")
