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
from rpcd.core.registration import message_handler
from rpcd.core.secret import Secret

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
    "PermanentFailure",
    "PublishError",
    "PublishRefused",
    "PublishTimeout",
    "Reply",
    "RequestFailed",
    "Retry",
    "RpcdError",
    "Secret",
    "Unroutable",
    "__version__",
    "message_handler",
]
