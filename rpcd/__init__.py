"""rpcd turns Python callables into reliable RabbitMQ consumers and RPC services.

These are the names for handlers, and for programs that ask them. Importing the package loads neither Twisted nor pika, so a
handler and its tests need no more than it; only the first use of a client's name does.
"""

from typing import TYPE_CHECKING, Any

from rpcd.core.errors import (
    BadMessage,
    BadReply,
    BadValue,
    CallError,
    CallFailed,
    CallInterrupted,
    CallTimeout,
    DeadlinePassed,
    Drop,
    HaltConsumer,
    Nack,
    PermanentFailure,
    PublishError,
    PublishRefused,
    PublishTimeout,
    RequestFailed,
    Retry,
    RpcdError,
    Unroutable,
)
from rpcd.core.message import Message, Reply
from rpcd.core.patterns import Output, pull, respond, subscribe
from rpcd.core.registration import message_handler
from rpcd.core.secret import Secret

if TYPE_CHECKING:
    from rpcd.client import AsyncClient, Client, TwistedClient

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "BadMessage",
    "BadReply",
    "BadValue",
    "CallError",
    "CallFailed",
    "CallInterrupted",
    "CallTimeout",
    "Client",
    "DeadlinePassed",
    "Drop",
    "HaltConsumer",
    "Message",
    "Nack",
    "Output",
    "PermanentFailure",
    "PublishError",
    "PublishRefused",
    "PublishTimeout",
    "Reply",
    "RequestFailed",
    "Retry",
    "RpcdError",
    "Secret",
    "TwistedClient",
    "Unroutable",
    "__version__",
    "message_handler",
    "pull",
    "respond",
    "subscribe",
]

_CLIENTS = ("AsyncClient", "Client", "TwistedClient")


def __getattr__(name: str) -> Any:
    """Load the clients when somebody wants one."""
    if name in _CLIENTS:
        import rpcd.client  # noqa: PLC0415  # it loads Twisted and pika

        return getattr(rpcd.client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
