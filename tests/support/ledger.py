"""The ledger check: what became of each message that was published, found by a plain client in the broker itself."""

import collections
import json
import pathlib
import time
from collections.abc import Iterable
from typing import Any

from canary import CANARY
from peer import Peer, Received

SECONDS = 60.0

SECRET = json.dumps({"canary": CANARY}).encode()
"""The body of a request that has none of its own."""

HANDLER = """
    import os, pathlib
    import rpcd

    ledger = os.open(pathlib.Path(__file__).with_name("ledger"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def note(message):
        os.write(ledger, f"{message.message_id}\\n".encode())
        return {"id": message.message_id}
"""
"""A handler that notes each run; the line is there even if the process is killed the moment after."""


class Ledger:
    """Publishes requests with ids of their own to a queue and finds out what became of each."""

    def __init__(self, peer: Peer, queue: str, steps: Iterable[str] = ("200", "1000", "60000", "1800000")) -> None:
        self.peer = peer
        self.queue = queue
        self.published: list[str] = []
        self.answered: collections.Counter[str] = collections.Counter()
        self.succeeded: set[str] = set()
        self.places: dict[str, collections.Counter[str]] = {}
        self._queues = {queue: "queue", f"{queue}.archive": "archive"} | {f"{queue}.retry.{step}": "retry" for step in steps}

    def publish(self, count: int = 1, body: object = SECRET, **properties: Any) -> list[str]:
        """Publish requests, confirmed; return their ids. Their headers hold a canary, which no log may show."""
        properties["headers"] = {"canary": CANARY, **(properties.get("headers") or {})}
        ids = [f"id{len(self.published) + number}" for number in range(count)]
        for each in ids:
            self.peer.publish(
                self.queue, body, message_id=each, correlation_id=each, reply_to=self.peer.reply_queue, **properties
            )
            self.published.append(each)
        return ids

    def replies(self, count: int, seconds: float = SECONDS) -> None:
        """Wait until so many different requests have been answered."""

        def enough() -> bool:
            self.collect()
            return len(self.answered) >= count

        self.peer.until(enough, seconds, lambda: f"{len(self.answered)} of {count} were answered")

    def collect(self) -> None:
        """Count the answers that have come."""
        self.count(self.peer.replies(0))

    def count(self, replies: Iterable[Received]) -> None:
        """Count answers, and note which of them tell of a success."""
        for reply in replies:
            self.answered[reply.properties.correlation_id] += 1
            if _success(reply):
                self.succeeded.add(reply.properties.correlation_id)

    def check(self, *, twice: int = 0, copies: int = 0, seconds: float = SECONDS) -> dict[str, collections.Counter[str]]:
        """Insist that each published id is in exactly one place: answered, retry, archive or queue.

        Call it when the daemon has stopped or has nothing left to do: it empties the queues. An archived request may be
        answered as well, but not with a success. `twice`: how many answers more than one a request there may be in
        all; `copies`: how many copies more than one a request. Returns place -> ids.
        """
        missing = set(self.published)
        deadline = time.monotonic() + seconds
        while missing and time.monotonic() < deadline:
            self._look()
            missing = {each for each in self.published if each not in self.answered and not self._queued(each)}
        assert not missing, f"lost: {sorted(missing)} of {len(self.published)}"
        self._look()  # duplicates may come after all that was looked for
        unknown = set(self.answered) | {each for found in self.places.values() for each in found}
        assert unknown <= set(self.published), f"nobody published {sorted(map(str, unknown - set(self.published)))}"
        for each in self.published:
            queued = self._queued(each)
            copies -= max(0, sum(queued.values()) - 1)
            assert copies >= 0, f"{each} is there more than once: {dict(queued)}"
            assert each not in self.answered or set(queued) <= {"archive"}, f"{each} was answered and is in {dict(queued)}"
        both = self.succeeded & set(self.places.get("archive", ()))
        assert both == set(), f"answered with a success and archived: {sorted(both)}"
        more = {each: count for each, count in self.answered.items() if count > 1}
        assert sum(more.values()) - len(more) <= twice, f"answered more than once: {more}"
        return self.places | {"answered": self.answered}

    def _look(self) -> None:
        self.peer.connection.process_data_events(0.05)
        self.collect()
        self._empty()

    def _empty(self) -> None:
        for queue, place in self._queues.items():
            if self.peer.exists(queue):
                found = self.places.setdefault(place, collections.Counter())
                found.update(message.properties.message_id for message in self.peer.left(queue))

    def _queued(self, each: str) -> collections.Counter[str]:
        return collections.Counter({place: found[each] for place, found in self.places.items() if found[each]})


def _success(reply: Received) -> bool:
    try:
        found = reply.json
    except ValueError:  # a handler's own answer
        return False
    return isinstance(found, dict) and found.get("success") is True


def runs(tmp_path: pathlib.Path) -> collections.Counter[str]:
    """Count the runs of each id that `HANDLER` has noted."""
    file = tmp_path / "ledger"
    return collections.Counter(file.read_text().split() if file.exists() else [])
