import attrs

import rpcd


@attrs.define
class Order:
    customer: str
    card: rpcd.Secret[str]  # arrives as a Fernet token; plain text is refused


def pay(message: rpcd.Message[Order]):
    order = message.body
    print("charging", order)  # prints ****
    return {"customer": order.customer, "card": order.card.reveal()[-4:]}


def log_in(message):
    password = message.body["password"]  # a body without a type: this is one of the usual names
    return {"welcome": password == rpcd.Secret("correct-horse")}


def refund(message: rpcd.Message[dict]):
    return {"card": message.body["card"].reveal()[-4:]}  # the config names the field


def note(message):
    return {"characters": len(message.body["text"])}  # a token or plain text, as the sender liked


def report(message):
    return {"pages": len(message.body["pages"])}
