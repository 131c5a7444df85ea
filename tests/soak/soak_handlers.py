"""The handlers of the soak: a message says itself what becomes of it, and each run leaves a line that survives a kill."""

import logging
import os
import time

import rpcd

LEDGER = os.open(os.environ["SOAK_LEDGER"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)


def note(message: "rpcd.Message", word: str) -> None:
    """Append one line by one write: when, which message, what, by which process."""
    os.write(LEDGER, f"{time.monotonic():.3f} {message.message_id} {word} {os.getpid()}\n".encode())


def perform(message: "rpcd.Message") -> dict[str, object]:
    """Do what the body says: `fail` so many times, be `hopeless`, take some `seconds`, `publish` something."""
    order = message.body
    if order.get("hopeless"):
        note(message, "hopeless")
        raise rpcd.PermanentFailure("the order says so")
    if message.attempt <= order.get("fail", 0):
        note(message, "failed")
        raise ConnectionError("a failure that a later attempt will not meet")
    if order.get("seconds"):
        time.sleep(order["seconds"])
    if order.get("publish"):
        message.publish("", "soak.news", {"from": message.message_id}, message_id=message.message_id)
    note(message, "done")
    return {"id": message.message_id}


logging.getLogger("rpcd").setLevel(os.environ.get("SOAK_LEVEL", "INFO"))
