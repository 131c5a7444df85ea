"""The private broker of tests, demonstration and development."""

import pathlib
import socket

from rpcd.ops.rabbitmq import free_ports


def client_ports() -> range:
    """The ports that Linux gives to connecting sockets by itself."""
    first, last = map(int, pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return range(first, last + 1)


def test_a_port_for_a_broker_is_free_and_never_taken_by_a_client_while_the_broker_restarts() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert not set(ports) & set(client_ports())
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
