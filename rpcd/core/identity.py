"""What a message is recognised by when the broker delivers it again."""

from typing import Any, TypeAlias

from rpcd.core.copies import COPY_HEADER
from rpcd.core.message import Message
from rpcd.core.retry import COUNT_HEADER
from rpcd.core.tables import Headers

_EDGE = 4096

Key: TypeAlias = tuple[Any, Any, Any, int, int, int]


def key_of(message: Message[Any]) -> Key | None:
    """Return what a redelivery of this message would be recognised by, or None when it has no id.

    That is (`x-rpcd-copy` or `message_id`, attempt), backed by correlation id and a fingerprint of the body, for a client's
    ids may not be unique.
    """
    properties = message.properties
    headers = properties.headers if isinstance(properties.headers, Headers) else None
    identity = headers.get(COPY_HEADER) if headers else None
    if identity is None:
        identity = properties.message_id
        if identity is None:
            return None
    if not isinstance(identity, str | bytes):
        return None
    count = headers.get(COUNT_HEADER, 0) if headers else 0
    payload = message.payload
    edge = payload if len(payload) <= _EDGE else payload[:_EDGE]
    return (
        identity,
        count if isinstance(count, int) else 0,
        properties.correlation_id,
        len(payload),
        hash(edge),
        hash(payload[-64:]),
    )
