"""Orders are accepted when another service knows their price; then somebody says thank you."""

import attrs

import rpcd

sent = []


@attrs.define
class Order:
    customer: str
    item: str


class Accept:
    def __init__(self, config):
        self.currency = config["currency"]

    def __call__(self, message: rpcd.Message[Order]):
        order = message.body
        if order.customer == "nobody":
            raise rpcd.PermanentFailure("we don't know this customer")
        price = message.call("", "prices", {"item": order.item}, timeout=5)["price"]
        message.publish("shop", "order.accepted", {"customer": order.customer, "price": f"{price} {self.currency}"})
        return {"price": price}


def thank(message):
    sent.append(f"thank you for {message.body['price']}, {message.body['customer']}")
