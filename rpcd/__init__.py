"""rpcd turns Python callables into reliable RabbitMQ consumers and RPC services.

These are the names for handlers. Importing them loads neither Twisted nor pika, so a handler and its tests need no more
than this package.
"""

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

__version__ = "0.1.0"

__all__ = [
    "BadMessage",
    "BadReply",
    "BadValue",
    "CallError",
    "CallFailed",
    "CallInterrupted",
    "CallTimeout",
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
    "Unroutable",
    "__version__",
    "message_handler",
    "pull",
    "respond",
    "subscribe",
]
