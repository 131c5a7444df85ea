"""Over HTTP: `/live` says that the process turns, `/ready` that every consumer consumes, or which does not; `/metrics`."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString

Report = Callable[[], Mapping[str, Any]]

Metrics = Callable[[str], tuple[bytes, str]]
"""Takes the Accept header of a scrape; returns body and content type."""

Page = tuple[int, bytes, str]
"""Status, body and content type."""

NOT_FOUND, UNAVAILABLE = 404, 503

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


def warnings(description: str | None) -> list[str]:
    """Tell what an operator may not have meant: an endpoint that listens for everybody without saying so."""
    if description is None or description.startswith(PASSED):
        return []
    found = endpoint(description, None)
    inner = getattr(found, "_wrappedEndpoint", found)  # haproxy:tcp:8001, say
    if not hasattr(inner, "_interface") or "interface=" in description:
        return []
    said = f"others on the network can ask {description}, which listens on all interfaces"
    return [f"{said}; write interface=127.0.0.1, or interface=0.0.0.0 if that is meant"]


def answer(path: bytes, report: Report) -> tuple[int, Mapping[str, Any]]:
    """Return status and document for a path."""
    if path == b"/live":
        return 200, {"status": "OK"}
    if path == b"/ready":
        found = report()
        return 200 if found["ready"] else UNAVAILABLE, found
    return NOT_FOUND, {"error": "there are /live, /ready and /metrics"}


def listen(where: Any, report: Report, metrics: Metrics) -> Deferred[Any]:
    """Listen on an endpoint; fires with the port."""
    from rpcd.ops.site import Bounded, Pages, Quiet  # noqa: PLC0415  # only who is configured to serve HTTP loads it

    def page(path: bytes, accept: str) -> Page:
        if path == b"/metrics":
            return (200, *metrics(accept))
        status, document = answer(path, report)
        return status, msgspec.json.encode(document), "application/json"

    listening: Deferred[Any] = where.listen(Bounded(Quiet(Pages(page))))
    return listening
