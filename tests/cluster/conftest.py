"""One cluster for all tests of this folder; each test gets it whole and leaves it to `whole` to be mended."""

import secrets
from collections.abc import Iterator

import pytest
from cluster import Cluster

from rpcd.ops.rabbitmq import free_ports


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def cluster(_cluster: Cluster) -> Iterator[Cluster]:
    """Three nodes that see each other; what a test ends or freezes is brought back."""
    yield _cluster
    _cluster.mend()


@pytest.fixture
def virtual_host(cluster: Cluster) -> str:
    """A virtual host that nobody has used."""
    name = f"test{secrets.token_hex(4)}"
    cluster.members[0].add_virtual_hosts([name])
    return name


@pytest.fixture
def port() -> int:
    """A port for /ready."""
    return free_ports(1)[0]
