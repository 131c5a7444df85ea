"""Layers: what happens around every handler, said once."""

import logging
import time

import rpcd

log = logging.getLogger("shop")


def timed(handler):
    """Say how long each message took; around all handlers."""

    def around(message):
        began = time.monotonic()
        try:
            return handler(message)
        finally:
            log.info("%s took %.3f s", message.consumer, time.monotonic() - began)

    return around


def limited(handler, config):
    """Refuse what is too big; its limit is in the config."""

    def around(message):
        if message.body["amount"] > config["most"]:
            raise rpcd.RequestFailed(f"not more than {config['most']}")
        return handler(message)

    return around


def order(message):
    return {"ordered": message.body["amount"]}
