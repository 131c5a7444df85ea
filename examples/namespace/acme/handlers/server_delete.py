"""Handles what comes from the exchange server-delete."""


class Handler:
    def __call__(self, message):
        return {"deleted": message.body["name"]}
