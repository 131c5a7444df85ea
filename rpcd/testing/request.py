"""What a test sends: a body and properties, by the names that AMQP has for them."""

import difflib
from collections.abc import Mapping
from typing import Any

from rpcd.core.codec import encode_body
from rpcd.core.outgoing import PERSISTENT, Outgoing
from rpcd.core.retry import milliseconds
from rpcd.core.tables import Headers, table
from rpcd.core.wire import Properties, write_properties

KNOWN = tuple(name for name in Properties.__annotations__ if name not in ("headers", "delivery_mode"))
"""What a test may say besides headers."""


def request(
    exchange: str, routing_key: str, body: Any, headers: Mapping[str, Any] | None, said: Mapping[str, Any]
) -> Outgoing:
    """Encode a message that a test sends; raise TypeError for a property that there is not.

    Bytes are sent as they are and without a content type, which every consumer takes as the first that it accepts; anything
    else is JSON, or text if the content type says so. `expiration` is in seconds, as a handler gives it.
    """
    for name in said:
        if name not in KNOWN:
            close = difflib.get_close_matches(name, KNOWN, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(KNOWN)}"
            raise TypeError(f"a message has no property {name!r}; {hint}")
    properties = {name: value for name, value in said.items() if value is not None}
    payload, kind = encode_body(body, properties.get("content_type"))
    if not isinstance(body, bytes | bytearray | memoryview):
        properties.setdefault("content_type", kind)
    if "expiration" in properties and not isinstance(properties["expiration"], str):
        properties["expiration"] = str(milliseconds(properties["expiration"]))
    if headers is not None:
        properties["headers"] = Headers(table(headers))
    encoded = write_properties(Properties(delivery_mode=PERSISTENT, **properties))
    return Outgoing(exchange, routing_key, payload, encoded, mandatory=True)
