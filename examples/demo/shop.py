"""A small shop: the handlers of the demonstration. They are plain Python and know nothing of RabbitMQ."""

import rpcd

PRICES = {"tea": 4.5, "cup": 12.0}


class PlaceOrder:
    """Answers requests, and tells the rest of the world by an event when it has placed an order."""

    def __init__(self, config):
        self.country = config["country"]
        self.number = 0

    def __call__(self, message):
        order = message.body
        if order["country"] != self.country:
            raise rpcd.RequestFailed(f"we do not deliver to {order['country']}", {"deliver_to": [self.country]})
        self.number += 1
        total = sum(PRICES[item] for item in order["items"])
        message.publish("rpcd-demo", "order.placed", {"number": self.number, "items": order["items"]})
        return {"number": self.number, "total": total}


def pack(message):
    """Subscribes to order.placed."""
    print(f"warehouse: packing {', '.join(message.body['items'])} for order {message.body['number']}")


def thank(message):
    """Subscribes to order.placed as well; each subscriber has its own queue, so each gets every event."""
    print(f"mailer: thank you for order {message.body['number']}")


def charge(message):
    """Fails twice, as a payment service does on a bad day; rpcd tries again, later each time."""
    if message.attempt < 3:
        raise ConnectionError("the payment service does not answer")
    print(f"payment: charged {message.body['amount']} on attempt {message.attempt}")
