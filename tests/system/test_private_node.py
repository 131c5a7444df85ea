"""The private broker of tests, demonstration and development."""

import contextlib
import pathlib
import socket
from collections.abc import Iterator

import pytest

from rpcd.ops import ports
from rpcd.ops.ports import answers, free_ports
from rpcd.ops.rabbitmq import NodeError, PrivateNode


def client_ports() -> range:
    """The ports that Linux gives to connecting sockets by itself."""
    first, last = map(int, pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return range(first, last + 1)


def test_a_port_for_a_broker_is_free_and_never_taken_by_a_client_while_the_broker_restarts() -> None:
    found = free_ports(20)
    assert len(set(found)) == 20
    assert not set(found) & set(client_ports())
    for port in found:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


@pytest.fixture
def _share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves this process's own share as it was."""
    monkeypatch.setattr(ports, "_candidates", list(ports._candidates))
    monkeypatch.setattr(ports, "_given", set())


@pytest.mark.usefixtures("_share")
def test_processes_with_a_share_each_never_get_the_same_port() -> None:
    ports.keep_to(1, 4)
    found = {port for _ in range(50) for port in free_ports(10)}
    assert len(found) == 500  # none twice
    assert {port % 4 for port in found} == {1}


@pytest.mark.usefixtures("_share")
def test_a_process_that_has_had_them_all_gets_ports_all_the_same() -> None:
    ports.keep_to(0, 3000)
    assert len({port for _ in range(20) for port in free_ports(1)}) <= 4


@pytest.fixture
def fresh(tmp_path: pathlib.Path) -> Iterator[PrivateNode]:
    private = PrivateNode(tmp_path)
    yield private
    private.stop()


@pytest.mark.parametrize("which", ["port", "dist_port", "epmd_port"])
def test_a_new_broker_takes_other_ports_if_somebody_was_quicker(fresh: PrivateNode, which: str) -> None:
    with socket.create_server(("127.0.0.1", getattr(fresh, which))) as quicker:
        fresh.start()
        assert answers(fresh.port)
        assert getattr(fresh, which) != quicker.getsockname()[1]


def test_a_broker_that_has_run_keeps_its_ports_and_says_if_it_cannot(fresh: PrivateNode) -> None:
    fresh.start()
    before = fresh.port
    fresh.kill()
    with listener(before), pytest.raises(NodeError, match="eaddrinuse"):
        fresh.start()
    assert fresh.port == before


def listener(port: int) -> socket.socket:
    """Listen on the port of a broker that was killed, as soon as the last of its children has let go of it."""
    while True:
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", port))
