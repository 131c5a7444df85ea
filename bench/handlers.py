"""Handlers for the measurements."""

import asyncio
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


class Sleeping:
    """Sleeps on the loop, and says when the last of `count` messages has ended how long all took, and how much CPU."""

    def __init__(self, config):
        self.sleep = config["sleep"]
        self.left = config["count"]
        self.began = None

    async def __call__(self, message):
        if self.began is None:
            self.began, self.cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(self.sleep)
        self.left -= 1
        if not self.left:
            print(f"took {time.monotonic() - self.began:.4f}, CPU {time.process_time() - self.cpu:.4f}")
