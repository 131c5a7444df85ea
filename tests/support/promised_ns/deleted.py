"""What comes from the exchange `deleted`."""

from typing import Any

import rpcd


def handle(message: rpcd.Message[Any]) -> Any:
    return {"deleted": message.body["name"]}
