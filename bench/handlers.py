"""Handlers for the measurements."""

import threading
import time

_lock = threading.Lock()
_starts = []


def noop(message):
    return None


class Counted:
    """Sleeps 10 ms, and says when the last of `count` messages has begun how long all took."""

    def __init__(self, config):
        self.count = config["count"]

    def __call__(self, message):
        with _lock:
            _starts.append(time.monotonic())
            if len(_starts) == self.count:
                print(f"took {_starts[-1] - _starts[0]:.4f}")
        time.sleep(0.01)
