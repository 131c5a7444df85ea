"""Loopback ports for what is started privately: brokers, proxies and the listeners of tests."""

import contextlib
import random
import socket

_PORTS = range(20_000, 32_000)
"""Below the 32,768 and more that systems give to clients by themselves; see ip(7), ip_local_port_range."""

_candidates = list(_PORTS)
_given: set[int] = set()


def keep_to(share: int, shares: int) -> None:
    """Take ports from one of several equal shares only, from 0 on: processes with a share each never meet."""
    _candidates[:] = _PORTS[share::shares]


def free_ports(count: int) -> list[int]:
    """Return loopback ports that nobody uses right now, all different, and none that this process was given before.

    They lie below those that Linux gives to clients: a broker that restarts must find its port free, and a client that
    tries to reach a port of its own range while nobody listens there may end up connected to itself.
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            if len(_given) > len(_candidates) // 2:
                _given.clear()
            port = random.choice(_candidates)  # noqa: S311  # any will do
            if port not in _given:
                with contextlib.suppress(OSError):  # in use: the next one
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                    found.append(port)
                _given.add(port)
    return found


def listens(port: int) -> bool:
    """Tell whether anybody listens on a loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def answers(port: int, seconds: float = 1.0) -> bool:
    """Tell whether an AMQP server speaks on a loopback port; an open port alone does not mean a ready broker."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
            connection.settimeout(seconds)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(connection.recv(1))
    except OSError:
        return False
