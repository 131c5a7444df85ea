"""What a store of results must do, and how its connections are shared by threads.

Theory. A message is *claimed* before it runs: one row, unique by its key, with an owner and a lease. Whoever finds a row
whose lease has not ended may not run the message. When the handler has succeeded the row is *finished*: it holds the
result, until that is old. When the handler has failed the row is *released*. A process that vanishes leaves a lease behind,
which ends by itself; one that lives renews its leases. Every step may be done twice by the same owner.
"""

import contextlib
from collections.abc import Callable, Collection
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

ConnectionT = TypeVar("ConnectionT")
ValueT = TypeVar("ValueT")

Held = tuple[bytes, str]
"""The key of a message, and who has claimed it."""


class Claim(NamedTuple):
    """What a store says of a message that is about to run."""

    kept: bytes | None = None
    """Its result, if it has run already."""
    left: float = 0.0
    """Seconds that it must not run yet, for it runs elsewhere; 0.0: it may run."""


class Store(Protocol):
    """Where results are kept; methods may be called in any thread, block, and raise what the database raises."""

    def open(self) -> None:
        """Make what is missing: the file, the table."""

    def claim(self, held: Held, lease: float) -> Claim:
        """Claim a message for so many seconds, or say why it can't be."""

    def finish(self, held: Held, kept: bytes, keep: float) -> bool:
        """Keep the result of a claimed message for so many seconds; return False if the claim is another's by now."""

    def release(self, held: Held) -> None:
        """Give up a claim: the message may run again."""

    def renew(self, held: Collection[Held], lease: float) -> None:
        """Let claims last for so many seconds from now."""

    def clean(self) -> None:
        """Forget some of what is too old; little at a time."""


class Pool(Generic[ConnectionT]):
    """Connections that no thread uses right now; there are as many in all as there were threads at a time."""

    def __init__(
        self, connect: Callable[[], ConnectionT], close: Callable[[ConnectionT], Any], broken: type[Exception]
    ) -> None:
        """Take how a connection is made and ended, and what it raises when it is no longer one."""
        self._connect = connect
        self._close = close
        self._broken = broken
        self._idle: list[ConnectionT] = []

    def use(self, work: Callable[[ConnectionT], ValueT]) -> ValueT:
        """Do something with a connection; with a new one if one that was there turns out to be broken."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._work(self._connect(), work)
        try:
            return self._work(connection, work)
        except self._broken:
            while self._idle:  # what broke one has broken the others
                with contextlib.suppress(IndexError):
                    self._end(self._idle.pop())
            return self._work(self._connect(), work)

    def _work(self, connection: ConnectionT, work: Callable[[ConnectionT], ValueT]) -> ValueT:
        try:
            value = work(connection)
        except BaseException:
            self._end(connection)
            raise
        self._idle.append(connection)
        return value

    def __del__(self) -> None:
        while self._idle:
            self._end(self._idle.pop())

    def _end(self, connection: ConnectionT) -> None:
        with contextlib.suppress(self._broken):
            self._close(connection)
