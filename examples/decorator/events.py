"""Handlers that say themselves what they want to be sent."""

import rpcd


@rpcd.message_handler(["order.*", "invoice.paid"], exchange="shop", workers=4, on_error="archive")
def note(message):
    return {"noted": message.routing_key}


@rpcd.message_handler("order.placed", exchange="shop", queue="packing", retry={"delays": [1, 60]})
class Pack:
    def __call__(self, message):
        print("packing", message.body["items"])
