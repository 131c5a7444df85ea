"""What all faces of a client have in common: which broker, how a question and a publication reach the engine."""

import math
import os
import time
import uuid
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import attrs

from rpcd import __version__
from rpcd.amqp.caller import Answer
from rpcd.amqp.dial import Broker
from rpcd.amqp.plan import connection_name
from rpcd.amqp.tls import check_files
from rpcd.client.engine import Engine
from rpcd.client.link import Link
from rpcd.config import read
from rpcd.core import settings
from rpcd.core.address import Address, AddressError, address
from rpcd.core.errors import SettingsError
from rpcd.core.load import heartbeat
from rpcd.core.outgoing import outgoing
from rpcd.core.question import DEFAULT_TIMEOUT, Question
from rpcd.core.topology import DeclareExchange

if TYPE_CHECKING:
    from typing_extensions import Self  # a dependency of type checkers alone

LOGIN_PATIENCE = 2.0
"""Seconds over which a refused login is tried three times, before calls fail by it at once."""

CONFIRM_TIMEOUT = 30.0
"""Seconds after which a connection that confirms nothing is made anew."""


class Face:
    """A client, however it is used; safe to share among threads."""

    def __init__(
        self,
        url: str | None = None,
        *,
        username: str | None = None,
        password: str | None = None,
        virtual_host: str | None = None,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        server_name: str | None = None,
        heartbeat: int = 15,
        connect_timeout: float = 10.0,
        name: str = "client",
    ) -> None:
        """Name the broker; nothing is connected before the first call. Raises ValueError for what can't be used.

        `url` is that of the config's `[broker]`, several hosts included; without it RABBITMQ_URL, or the broker on this
        machine. `ca`, `certificate` and `key` are files (PEM) for amqps://. Times are in seconds. `name` is what RabbitMQ's
        own pages show. Like a daemon it heeds RABBITMQ_HEARTBEAT.
        """
        tls = settings.Tls(ca=ca, certificate=certificate, key=key, server_name=server_name)
        found = settings.Broker(
            url=url if url is not None else os.environ.get("RABBITMQ_URL", settings.Broker().url),
            username=username,
            password=password,
            virtual_host=virtual_host,
            heartbeat=heartbeat,
            connect_timeout=settings.Seconds(connect_timeout),
            tls=tls,
        )
        if (certificate is None) is not (key is None):
            raise ValueError("certificate and key go together")
        wrong = [f"{setting}: {what}" for setting, what in check_files(tls)]
        if wrong:
            raise ValueError("; ".join(wrong))
        self._connect(found, name)

    @classmethod
    def from_config(cls, path: str, *, virtual_host: str | None = None, name: str = "client") -> "Self":
        """Take `[broker]` of a config file, the overlay of a virtual host laid over it; raise SettingsError if it is wrong.

        RABBITMQ_URL wins over the file, as it does for a daemon.
        """
        found, problems = read(path, os.environ, virtual_host)
        overlay = f"virtual_hosts.{virtual_host}"
        places = ("broker", "mode", "RABBITMQ", f"{overlay}.broker")
        wrong = [each for each in problems if each.path.startswith(places) or each.path == overlay]
        if wrong:
            raise SettingsError([attrs.evolve(each, path=f"{path}: {each.path}") for each in wrong])
        made = cls.__new__(cls)
        made._connect(found.broker, name)  # noqa: SLF001  # its second constructor
        return made

    def _connect(self, broker: settings.Broker, name: str) -> None:
        try:
            where = address(broker, heartbeat(os.environ))
        except AddressError as error:
            raise ValueError(f"the broker's URL, or RABBITMQ_HEARTBEAT: {error}") from None
        self._address = where
        self._engine = Engine(lambda reactor: _link(where, name, reactor))
        self._inputs: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        weakref.finalize(self, self._engine.close).atexit = False

    declares = True
    """Whether `publish` takes `declare`, an exchange that is to be there first; for rpcd.Output."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._address.safe_url}>"

    def _ask(self, question: Question, then: Callable[[Answer], Any] = lambda answer: answer) -> "Future[Any]":
        """Send a question on its way, which this thread encodes; `then` is called with the answer on the engine's own."""
        correlation_id, seconds = str(uuid.uuid4()), question.timeout
        request = question.outgoing(correlation_id, seconds, time.time())
        return self._engine.run(lambda link: link.calls.call(request, correlation_id, seconds).addCallback(then))

    def _publish(
        self, exchange: str, routing_key: str, body: Any, timeout: float | None, options: dict[str, Any]
    ) -> "Future[None]":
        seconds = DEFAULT_TIMEOUT if timeout is None else timeout
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError("a timeout is a number of seconds above 0")
        options.setdefault("message_id", str(uuid.uuid4()))
        made: DeclareExchange | None = options.pop("declare", None)
        message = outgoing(exchange, routing_key, body, **options)
        if made is not None:
            return self._engine.run(lambda link: link.publish_to(made, message, seconds))
        return self._engine.run(lambda link: link.publishing.publish(message, seconds))


def _link(where: Address, name: str, reactor: Any) -> Link:
    return Link(Broker(where, reactor, __version__, LOGIN_PATIENCE), connection_name(name), CONFIRM_TIMEOUT)
