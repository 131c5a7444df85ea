"""Handlers for the measurements."""

import time


def noop(message):
    return None


def sleep(message):
    time.sleep(0.01)
