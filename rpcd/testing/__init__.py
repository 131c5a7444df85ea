"""A harness for the tests of handlers: the real rules of rpcd, without a broker, a reactor or a thread.

Nothing is imported before it is asked for: pytest looks into this package for its plugin, whoever's tests it runs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpcd.testing.delivery import Delivery, Reply
    from rpcd.testing.errors import HarnessError, NoReply
    from rpcd.testing.harness import Harness
    from rpcd.testing.posted import Posted

_PLACES = {
    "Delivery": "delivery",
    "Harness": "harness",
    "HarnessError": "errors",
    "NoReply": "errors",
    "Posted": "posted",
    "Reply": "delivery",
}

__all__ = ["Delivery", "Harness", "HarnessError", "NoReply", "Posted", "Reply"]


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415  # only then

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
