"""The harness: consumers without a broker, a reactor or a thread, in a time that passes only when a test says so."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rpcd.core.codec import encode_json
from rpcd.core.keys import keys_in
from rpcd.core.topology import DeclareExchange, DeclareQueue
from rpcd.importing import resolve
from rpcd.testing import reading
from rpcd.testing.delivery import Delivery, Reply
from rpcd.testing.engine import Engine, Sending
from rpcd.testing.errors import HarnessError, NoReply
from rpcd.testing.loop import Steps, carry_out_here
from rpcd.testing.record import failure
from rpcd.testing.seen import Seen

ResultT = TypeVar("ResultT")


class Harness(Seen):
    """The consumers of a config, or handlers, in a test: all that the daemon does but for broker, network and threads.

    It takes the name of a config file, the tables of one, or handlers by the names of their queues; whatever is wrong with
    them raises `rpcd.core.errors.SettingsError`. What a config says of connecting to a broker is not looked at, and Fernet
    keys that it takes from elsewhere (`${...}`) are replaced by one of the harness's own; see `encrypt`. Handlers run in the
    test's own thread, one after the other, async ones on a loop of the harness's own. In an async test `await` the twins of
    the methods, `acall` and so on.

    An exception about which the consumer's `on_error` decides goes through to the test, when everything that follows from it
    has happened; with `reraise=False` the test sees only what a caller would. `errors` has them all in any case.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        virtual_host: str | None = None,
        reraise: bool = True,
        now: float | None = None,
    ) -> None:
        """Build everything and call the config's `on_start`; `now` is where time begins, in seconds since the epoch.

        `environment` is what `${NAME}` is expanded from, and `virtual_host` names the overlay, as on the command line.
        """
        if config is None or isinstance(config, Mapping):
            sources = reading.from_tables(config or {}, environment, virtual_host)
        else:
            sources = reading.from_file(config, environment, virtual_host)
        self.reraise = reraise
        """Whether unexpected exceptions of handlers go through to the test."""
        self._path = list(sys.path)
        super().__init__(Engine(sources, time.time() if now is None else now))
        if self._engine.settings.service.on_start is not None:
            resolve(self._engine.settings.service.on_start)()

    @classmethod
    def from_config(cls, path: str | os.PathLike[str], **options: Any) -> "Harness":
        """Make a harness from a config file, TOML or YAML; options are those of the constructor."""
        return cls(path, **options)

    # More of everything ---------------------------------------------------------------------------

    def consumer(
        self,
        name: str,
        handler: Any,
        *,
        queue: str | None = None,
        exchange: str | None = None,
        routing_keys: str | Sequence[str] = "#",
        **settings: Any,
    ) -> None:
        """Add a consumer: a handler, or its dotted path, and any setting of `[consumers.NAME]`.

        Its queue is called as it is, unless `queue` names a `[queues]` section or another one; `exchange` is what that is
        bound to.
        """
        keys = [routing_keys] if isinstance(routing_keys, str) else list(routing_keys)
        bindings = [] if exchange is None else [{"exchange": exchange, "routing_keys": keys}]
        self._engine.sources.add(name, handler, queue or name, bindings, settings)
        self._engine.build()

    def answer(self, routing_key: str, answer: Any, *, exchange: str = "") -> None:
        """Stand in for another service that handlers ask: answer by a function of the message, or by a fixed value.

        It answers what comes to a queue, or to an exchange by a routing key. What it raises is answered as a handler's is.
        """
        handler = answer if callable(answer) else lambda _message: answer
        if exchange:
            self.consumer(
                f"{exchange}.{routing_key}", handler, exchange=exchange, routing_keys=routing_key, on_error="reply"
            )
        else:
            self.consumer(routing_key, handler, on_error="reply")

    def declare_exchange(self, name: str, type: str = "topic") -> None:  # noqa: A002  # AMQP's own name for it
        """Declare an exchange that the config does not: publishing to one that is not there is refused."""
        self._engine.broker.carry_out([DeclareExchange("", name, type, True, False, False, False, {})])

    def declare_queue(
        self, name: str, exchange: str | None = None, routing_key: str = "#", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Declare a queue that nobody here consumes, and bind it: `queue` then shows what others would have got."""
        self._engine.broker.carry_out([DeclareQueue("", name, True, False, False, False, arguments or {})])
        if exchange is not None:
            self._engine.broker.bind(name, exchange, routing_key, arguments or {})

    def fail_publishing(self, error: type[Exception] | Exception, times: int = 1, *, copies: bool = False) -> None:
        """Let the next publications of handlers fail by PublishRefused, Unroutable or PublishTimeout.

        With `copies` it is the copies for retry steps and archives instead, which the daemon publishes itself.
        """
        publish = self._engine.record.publish
        (publish.copy_failures if copies else publish.failures).extend([failure(error)] * times)

    def encrypt(self, value: Any) -> str:
        """Make a Fernet token of a value, as `rpcd keys encrypt` does: of text and bytes as they are, of all else as JSON.

        The key is the config's newest, or one of the harness's own if that is elsewhere. Raises HarnessError if it has none.
        """
        keys = keys_in(self._engine.settings.broker)
        if not keys:
            raise HarnessError("the config has no `fernet_keys`, so nothing can be encrypted for it")
        from rpcd.core.crypto import Keyring  # noqa: PLC0415  # who has no keys does not pay for loading cryptography

        data = value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else encode_json(value)
        return Keyring(keys).seal(data, self.now)

    # What a test does -----------------------------------------------------------------------------

    def call(
        self,
        routing_key: str,
        body: Any = None,
        *,
        exchange: str = "",
        headers: Mapping[str, Any] | None = None,
        timeout: float = 0.0,
        reraise: bool | None = None,
        **properties: Any,
    ) -> Reply:
        """Send a request to a queue, or to an exchange by a routing key, and return its reply as its caller sees it.

        Bytes are sent as they are, anything else as JSON; properties have AMQP's names, and `expiration` is in seconds.
        Raises NoReply if none comes; so many seconds as `timeout` says pass meanwhile, which a retry may need.
        """
        sending = Sending(routing_key, body, exchange, headers, properties)
        return self._now(self._engine.calling(sending, timeout), reraise)

    async def acall(
        self,
        routing_key: str,
        body: Any = None,
        *,
        exchange: str = "",
        headers: Mapping[str, Any] | None = None,
        timeout: float = 0.0,
        reraise: bool | None = None,
        **properties: Any,
    ) -> Reply:
        """Do what `call` does, in an async test."""
        sending = Sending(routing_key, body, exchange, headers, properties)
        return await self._here(self._engine.calling(sending, timeout), reraise)

    def deliver(
        self,
        routing_key: str,
        body: Any = None,
        *,
        exchange: str = "",
        headers: Mapping[str, Any] | None = None,
        reraise: bool | None = None,
        **properties: Any,
    ) -> Delivery:
        """Send a message to a queue, or to an exchange by a routing key, and return what became of it.

        Everything that needs no time has happened then: what its handler has published was delivered to other consumers.
        Of several queues it is the first one's delivery; `deliveries` has all.
        """
        return self._now(self._engine.delivering(Sending(routing_key, body, exchange, headers, properties)), reraise)

    async def adeliver(
        self,
        routing_key: str,
        body: Any = None,
        *,
        exchange: str = "",
        headers: Mapping[str, Any] | None = None,
        reraise: bool | None = None,
        **properties: Any,
    ) -> Delivery:
        """Do what `deliver` does, in an async test."""
        sending = Sending(routing_key, body, exchange, headers, properties)
        return await self._here(self._engine.delivering(sending), reraise)

    def redeliver(self, delivery: Delivery, *, crashed: bool = False, reraise: bool | None = None) -> Delivery:
        """Deliver a message again, as the broker does when the connection was lost before the ack; return that delivery.

        The consumer remembers outcomes of messages that have an id, and does not run those again. With `crashed` the
        process has gone as well, and with it all that it remembered.
        """
        return self._now(self._engine.redelivering(delivery, crashed=crashed), reraise)

    async def aredeliver(self, delivery: Delivery, *, crashed: bool = False, reraise: bool | None = None) -> Delivery:
        """Do what `redeliver` does, in an async test."""
        return await self._here(self._engine.redelivering(delivery, crashed=crashed), reraise)

    def advance(self, seconds: float, *, reraise: bool | None = None) -> None:
        """Let time pass: what waits in retry steps comes back, each message when it is due; deadlines pass."""
        self._now(self._engine.advancing(seconds), reraise)

    async def aadvance(self, seconds: float, *, reraise: bool | None = None) -> None:
        """Do what `advance` does, in an async test."""
        await self._here(self._engine.advancing(seconds), reraise)

    def _now(self, steps: Steps[ResultT], reraise: bool | None) -> ResultT:
        with self._told(reraise):
            return self._engine.loop.carry_out(steps)

    async def _here(self, steps: Steps[ResultT], reraise: bool | None) -> ResultT:
        with self._told(reraise):
            return await carry_out_here(steps)

    @contextlib.contextmanager
    def _told(self, reraise: bool | None) -> Iterator[None]:
        """Raise what a handler has raised, if the test wants to be told, in place of what came of it."""
        wanted = self.reraise if reraise is None else reraise
        try:
            yield
        except NoReply:
            fresh = self._engine.record.fresh()
            if fresh is None or not wanted:
                raise
            raise fresh from None
        fresh = self._engine.record.fresh()
        if fresh is not None and wanted:
            raise fresh

    # The end --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Shut every handler down, as the daemon does when it stops; doing it twice is doing it once."""
        try:
            self._now(self._engine.closing(), None)
        finally:
            self._engine.loop.close()
            self._leave_path()

    async def aclose(self) -> None:
        """Do what `close` does, in an async test."""
        try:
            await self._here(self._engine.closing(), None)
        finally:
            self._leave_path()

    def _leave_path(self) -> None:
        for directory in self._engine.settings.service.path:
            if directory not in self._path and directory in sys.path:
                sys.path.remove(directory)

    def __enter__(self) -> "Harness":  # noqa: PYI034  # typing.Self came with Python 3.11
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    async def __aenter__(self) -> "Harness":  # noqa: PYI034  # the same
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()
