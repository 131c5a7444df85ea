"""What comes from the exchange `created`."""

from typing import Any

import rpcd


def handle(message: rpcd.Message[Any]) -> Any:
    return {"created": message.body["name"]}
