"""Which broker, as whom: from the URL and the settings that win over it.

The form of the URL is RabbitMQ's (rabbitmq.com/docs/uri-spec) with several hosts separated by commas; a port behind the
last host holds for those that have none.
"""

import ipaddress
import re
from urllib.parse import parse_qsl, unquote

import attrs

from rpcd.core.settings import Broker, Tls

PORTS = {"amqp": 5672, "amqps": 5671}

_TOLERATED = frozenset(
    {"connection_attempts", "retry_delay", "socket_timeout", "blocked_connection_timeout", "connection_timeout"}
)
"""Query keys of other clients that mean nothing here: rpcd has its own ways for all of them."""

MAX_HEARTBEAT = 65535
"""Seconds: AMQP has 16 bits for it."""

_DIGITS = 5

_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\[\]:@/]+))(?::(?P<port>\d{1,5}))?")


class AddressError(ValueError):
    """The broker's URL can't be used; the text says why and never shows a password."""


@attrs.frozen
class Address:
    """The broker as the connections use it."""

    hosts: tuple[tuple[str, int], ...]
    username: str
    password: str = attrs.field(repr=False)
    virtual_host: str
    heartbeat: int
    connect_timeout: float
    tls: Tls | None
    """None: plain TCP."""

    @property
    def external(self) -> bool:
        """Whether the login is the client certificate's (SASL EXTERNAL)."""
        return self.tls is not None and self.tls.certificate is not None

    @property
    def exposed(self) -> tuple[str, ...]:
        """The hosts to which password and messages travel for everybody on the way to read."""
        return () if self.tls is not None else tuple(host for host, _port in self.hosts if not _is_loopback(host))

    @property
    def safe_url(self) -> str:
        """The URL as it may be shown: without user name and password."""
        scheme = "amqps" if self.tls is not None else "amqp"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{scheme}://{hosts}/{'' if self.virtual_host == '/' else self.virtual_host}"


def address(broker: Broker, heartbeat: int | None = None) -> Address:
    """Read the broker's settings; `heartbeat` is RABBITMQ_HEARTBEAT, which wins. Raises AddressError."""
    scheme, separator, rest = broker.url.partition("://")
    if not separator or scheme not in PORTS:
        raise AddressError("expected amqp://USER:PASSWORD@HOST[:PORT][,HOST...]/VIRTUAL-HOST, or amqps://")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    userinfo, _, hosts = authority.rpartition("@")
    if "@" in path or "@" in query:
        raise AddressError("user name, password and virtual host must be percent-encoded: there is an @ behind a / or ?")
    username, _, password = userinfo.partition(":")
    return Address(
        hosts=_hosts(hosts, PORTS[scheme]),
        username=broker.username if broker.username is not None else unquote(username) or "guest",
        password=broker.password if broker.password is not None else unquote(password) or "guest",
        virtual_host=broker.virtual_host if broker.virtual_host is not None else unquote(path) or "/",
        heartbeat=heartbeat if heartbeat is not None else _heartbeat(query, broker.heartbeat),
        connect_timeout=broker.connect_timeout,
        tls=broker.tls if scheme == "amqps" else None,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def virtual_host_of(url: str) -> str:
    """Return the virtual host that a URL names, or an empty string if it names none; the URL may be wrong."""
    return unquote(url.partition("://")[2].partition("?")[0].partition("/")[2])


def _hosts(text: str, default_port: int) -> tuple[tuple[str, int], ...]:
    found = []
    for number, part in enumerate(text.split(","), 1):
        match = _HOST.fullmatch(part.strip())
        if match is None or int(match["port"] or 1) not in range(1, 65536):
            raise AddressError(f"number {number} of its hosts is not a host or HOST:PORT")  # it may be a password
        found.append((match["v6"] or unquote(match["name"]), match["port"]))
    last = found[-1][1]
    return tuple((host, int(port or last or default_port)) for host, port in found)


def _heartbeat(query: str, default: int) -> int:
    value = default
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key == "heartbeat":
            value = default if text.lower() == "none" else whole(text)
        elif key not in _TOLERATED:
            raise AddressError(f"the query key {key!r} is unknown; `heartbeat` is the one that is used")
    return value


def whole(text: str) -> int:
    """Read a heartbeat; raise AddressError unless it is a whole number of seconds from 0 to 65535."""
    if not text.isascii() or not text.isdigit() or len(text) > _DIGITS or int(text) > MAX_HEARTBEAT:
        raise AddressError(f"the heartbeat {text[:20]!r} is not a whole number of seconds from 0 to {MAX_HEARTBEAT}")
    return int(text)
