"""The HTTP server of health and metrics, made so that whoever asks, or only connects, can't use up the daemon.

Loaded only where `[service] http` is set: it imports twisted.web.
"""

import io
from collections.abc import Callable
from typing import Any

from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

MOST_CONNECTIONS = 32
"""Connections at a time; one more costs the oldest its own, so that a new question always gets an answer."""

IDLE_SECONDS = 30
"""How long a connection may say nothing."""

LARGEST_REQUEST = 16 * 1024
"""Bytes of a request's body, which nobody reads; Twisted limits its headers to as many."""

NOT_ALLOWED = 405


class Small(Request):
    """A request whose body, if it has one, stays small; Twisted would keep a large one in a file."""

    _received = 0

    def gotLength(self, length: int | None) -> None:  # noqa: ARG002, N802  # Twisted's name
        """Prepare to throw the body away."""
        self.content = io.BytesIO()

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802  # Twisted's name
        """Count the body, and hang up on one that is too large."""
        self._received += len(data)
        if self._received > LARGEST_REQUEST:
            self.channel.loseConnection()


class Pages(Resource):
    """All pages: GET and HEAD of what a function returns for a path and an Accept header."""

    isLeaf = True  # noqa: N815  # Twisted's name

    def __init__(self, page: Callable[[bytes, str], tuple[int, bytes, str]]) -> None:
        """Take what makes a page: status, body and content type."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._page = page

    def render(self, request: Request) -> bytes:
        """Answer one request."""
        status, body, content_type = NOT_ALLOWED, b'{"error":"there are GET and HEAD"}', "application/json"
        if request.method in (b"GET", b"HEAD"):
            status, body, content_type = self._page(request.path, _header(request, "accept"))
        else:
            request.setHeader(b"allow", b"GET, HEAD")
        request.setResponseCode(status)
        request.setHeader(b"server", b"rpcd")
        request.setHeader(b"content-type", content_type.encode())
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"content-length", b"%d" % len(body))
        return b"" if request.method == b"HEAD" else body


def _header(request: Request, name: str) -> str:
    """Return a header of a request; several of the same name are one list."""
    return ", ".join(value.decode("latin-1") for value in request.requestHeaders.getRawHeaders(name.encode(), []))


class Quiet(Site):
    """The pages on connections that end when nothing is said, without a word in the log: probes come every few seconds."""

    noisy = False
    displayTracebacks = False  # noqa: N815  # Twisted's name
    requestFactory = Small  # noqa: N815  # Twisted's name

    def __init__(self, pages: Resource) -> None:
        """Take the pages."""
        super().__init__(pages, timeout=IDLE_SECONDS)  # type: ignore[no-untyped-call]

    def log(self, request: Any) -> None:
        """Leave requests out of the log."""


class Bounded(WrappingFactory):
    """Keeps the number of connections bounded, by hanging up on the oldest."""

    noisy = False

    def __init__(self, site: Site) -> None:
        """Take what the connections are for."""
        super().__init__(site)  # type: ignore[no-untyped-call]
        self._open: dict[ProtocolWrapper, None] = {}

    def registerProtocol(self, p: ProtocolWrapper) -> None:  # noqa: N802  # Twisted's name
        """Enter a connection, and end the oldest if it is one too many."""
        super().registerProtocol(p)  # type: ignore[no-untyped-call]
        self._open[p] = None
        if len(self._open) > MOST_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.abortConnection()

    def unregisterProtocol(self, p: ProtocolWrapper) -> None:  # noqa: N802  # Twisted's name
        """Forget a connection that has ended."""
        super().unregisterProtocol(p)  # type: ignore[no-untyped-call]
        self._open.pop(p, None)
