"""A TCP proxy between rpcd and its broker that can fail in every way that a network can.

It runs on an event loop of its own in a thread of the test process. `up` is from rpcd to the broker, `down` is the way
back. Each connection is a `Link`; it knows whose it is, because rpcd tells the broker a name for each of its connections.
"""

import asyncio
import collections
import contextlib
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from privilege import NODES

from rpcd.ops.rabbitmq import free_ports

UP, DOWN = "up", "down"
WAYS = (UP, DOWN)
CHUNK = 65536

_NAME = re.compile(rb"rpcd (\S+) of ")

Tamper = Callable[["Link", str, bytes], bytes]
"""Gets each piece before it is passed on and returns what is passed on instead; called on the proxy's thread."""


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: "Proxy", near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.name = ""
        """The consumer's name, or what rpcd calls its connection for publications; empty until the login."""
        self.passed = dict.fromkeys(WAYS, 0)
        self.open = {way: asyncio.Event() for way in WAYS}
        for event in self.open.values():
            event.set()
        self.ended = False
        self.cut_short = False
        """Whether it came to its limit."""
        self.limit = proxy.limits.popleft() if proxy.limits else proxy.limit
        self._near, self._far = near, far

    async def pump(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(self.proxy.dribble or CHUNK):
                if way == UP and not self.name and (found := _NAME.search(piece)):
                    self.name = found[1].decode()
                await self.open[way].wait()
                piece = piece if self.proxy.tamper is None else self.proxy.tamper(self, way, piece)
                limit = self.limit.get(way)
                if limit is not None and self.passed[way] + len(piece) > limit:
                    writer.write(piece[: max(0, limit - self.passed[way])])
                    self.cut_short = True
                    self.reset()
                    return
                self.passed[way] += len(piece)
                writer.write(piece)
                await writer.drain()
                if self.proxy.dribble:
                    await asyncio.sleep(0)
            await self.open[way].wait()  # a black hole takes the end of a connection as well
        except OSError:
            await self.open[way].wait()
            self.reset()
        finally:
            self.close()

    def close(self) -> None:
        """End both sides by FIN; on the proxy's thread."""
        self.ended = True
        for writer in (self._near, self._far):
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()

    def reset(self) -> None:
        """End both sides by RST; on the proxy's thread."""
        self.ended = True
        for writer in (self._near, self._far):
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError):  # it has no socket any more
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxy:
    """A proxy to a port on loopback; its methods may be called from the test's thread."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        """Listen at once; with a server context the near side speaks TLS, the far side stays plain."""
        self.target = target
        self.port = port or free_ports(1)[0]  # none of those that the system hands out while this one refuses
        if target in NODES:
            NODES[self.port] = NODES[target]
        self.tls = tls
        self.tamper: Tamper | None = None
        self.dribble = 0
        """If not 0: bytes that are passed on at a time."""
        self.limit: dict[str, int] = {}
        """After how many bytes of a way a connection is reset; for connections old and new."""
        self.limits: collections.deque[dict[str, int]] = collections.deque()
        """The same, for the next connection each."""
        self.links: list[Link] = []
        self._paused: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.accept()

    def url(self, url: str) -> str:
        """Return the URL with this proxy's port instead of the broker's."""
        parts = urlsplit(url)
        tls = self.tls is not None or parts.scheme == "amqps"
        host = f"{parts.netloc.rpartition('@')[0]}@{'localhost' if tls else '127.0.0.1'}:{self.port}"
        return urlunsplit(parts._replace(scheme="amqps" if tls else "amqp", netloc=host))

    def accept(self) -> None:
        """Listen (again); where the port is kept."""
        self._run(self._listen())

    def refuse(self) -> None:
        """Refuse new connections as if nobody listened; those that are open stay."""
        self._run(self._unlisten())

    def cut(self, name: str | None = None) -> int:
        """End connections by FIN; return how many."""
        return self._each(Link.close, name)

    def reset(self, name: str | None = None) -> int:
        """End connections by RST; return how many."""
        return self._each(Link.reset, name)

    def pause(self, *ways: str, name: str | None = None) -> None:
        """Pass nothing on, not even an end: a black hole; without a name it holds new connections as well."""
        if name is None:
            self._paused |= set(ways or WAYS)
        self._each(lambda link: [link.open[way].clear() for way in ways or WAYS], name)

    def resume(self) -> None:
        """Pass everything on again, first what has been held."""
        self._paused.clear()
        self._each(lambda link: [event.set() for event in link.open.values()], None)

    def wait_for(self, count: int, name: str | None = None, seconds: float = 30.0) -> None:
        """Wait until so many connections are open (of that name)."""
        deadline = time.monotonic() + seconds
        while len(self.named(name)) < count:
            assert time.monotonic() < deadline, f"{len(self.named(name))} of {count} connections in {seconds} s"
            time.sleep(0.01)

    def named(self, name: str | None = None) -> list[Link]:
        """Return the open connections (of that name)."""
        return [link for link in list(self.links) if not link.ended and (name is None or link.name == name)]

    def close(self) -> None:
        """End everything and the thread."""
        self.reset()
        self.refuse()
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, job: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(job, self._loop).result(10)

    def _each(self, what: Callable[[Link], object], name: str | None) -> int:
        async def every() -> int:
            found = self.named(name)
            for link in found:
                what(link)
            return len(found)

        count: int = self._run(every())
        return count

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._begin, "127.0.0.1", self.port, ssl=self.tls)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _unlisten(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        link = Link(self, writer, far_writer)
        for way in self._paused:
            link.open[way].clear()
        self.links.append(link)
        for way, source, sink in ((UP, reader, far_writer), (DOWN, far_reader, writer)):
            task = asyncio.ensure_future(link.pump(way, source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
