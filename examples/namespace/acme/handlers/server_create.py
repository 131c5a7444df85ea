"""Handles what comes from the exchange server-create."""


def handle(message):
    return {"created": message.body["name"]}
