"""Health over HTTP: `/live` says that the process turns, `/ready` that every consumer consumes, or which does not."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString

Report = Callable[[], Mapping[str, Any]]

NOT_ALLOWED, NOT_FOUND, UNAVAILABLE = 405, 404, 503

LARGEST_PORT = 65535

PASSED = "systemd:"
"""Endpoints whose socket systemd passes to the daemon: nobody else can tell whether it is there."""


def endpoint(description: str, reactor: Any) -> Any:
    """Parse a Twisted endpoint string; raise ValueError with a sentence if it is none."""
    try:
        found = serverFromString(reactor, description)
        if not 0 <= getattr(found, "_port", 0) <= LARGEST_PORT:  # Twisted's finds that out when it listens, with a traceback
            raise ValueError(f"a port is 0 to {LARGEST_PORT}")
        return found
    except Exception as error:  # noqa: BLE001  # whatever a plugin of Twisted's raises, the string is wrong
        said = str(error).strip("'\"") or type(error).__name__
        example = "tcp:8001:interface=127.0.0.1"
        raise ValueError(f"{description!r} is nothing that can be listened on: {said}; {example} is, say") from None


def problems(description: str | None) -> list[str]:
    """Tell what is wrong with an endpoint string, without listening."""
    if description is None or description.startswith(PASSED):
        return []
    try:
        endpoint(description, None)
    except ValueError as error:
        return [str(error)]
    return []


def answer(path: bytes, report: Report) -> tuple[int, Mapping[str, Any]]:
    """Return status and document for a path."""
    if path == b"/live":
        return 200, {"status": "OK"}
    if path == b"/ready":
        found = report()
        return 200 if found["ready"] else UNAVAILABLE, found
    return NOT_FOUND, {"error": "there are /live and /ready"}


def listen(where: Any, report: Report) -> Deferred[Any]:
    """Listen on an endpoint; fires with the port."""
    from twisted.web.resource import Resource  # noqa: PLC0415  # only who is configured to serve HTTP loads it
    from twisted.web.server import Request, Site  # noqa: PLC0415  # the same

    class Health(Resource):
        isLeaf = True  # noqa: N815  # Twisted's name

        def render(self, request: Request) -> bytes:
            """Answer GET and HEAD."""
            status, document = answer(request.path, report)
            if request.method not in (b"GET", b"HEAD"):
                status, document = NOT_ALLOWED, {"error": "there are GET and HEAD"}
                request.setHeader(b"allow", b"GET, HEAD")
            body = msgspec.json.encode(document)
            request.setResponseCode(status)
            request.setHeader(b"server", b"rpcd")
            request.setHeader(b"content-type", b"application/json")
            request.setHeader(b"cache-control", b"no-store")
            request.setHeader(b"content-length", b"%d" % len(body))
            return b"" if request.method == b"HEAD" else body

    class Quiet(Site):
        noisy = False
        displayTracebacks = False  # noqa: N815  # Twisted's name

        def log(self, request: Any) -> None:
            """Leave requests out of the log: probes come every few seconds."""

    listening: Deferred[Any] = where.listen(Quiet(Health()))  # type: ignore[no-untyped-call]
    return listening
