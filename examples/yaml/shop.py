"""The handler of shop.yaml."""


def handle(message):
    return {"seen": message.body}
