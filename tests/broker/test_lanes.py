"""Lanes on a real broker: one at a time per key and in order, no worker idle while work is runnable, nothing remembered."""

import http.client
import itertools
import json
import pathlib
import random
import re
from collections import Counter
from typing import Any

import pytest
from daemon import Daemon, StartDaemon
from peer import Peer

from rpcd.ops.rabbitmq import free_ports

COUNT, KEYS, WORKERS = 10_000, 50, 16

REFEREE = """
import asyncio, collections, json, pathlib, random, threading, time

HERE = pathlib.Path(__file__).parent
WORKERS = 16
LONG = 60.0  # seconds; only a worker that is left idle for good makes anybody wait so long


class Referee:
    '''Lets no handler go before all that can be inside are inside: one for each worker, or one for each key that is left.'''

    def __init__(self):
        self.left = collections.Counter(json.loads((HERE / "counts.json").read_text()))
        self.next = collections.Counter()
        self.inside = {}
        self.most = self.checks = 0
        self.faults = []
        self.threads = set()
        self.changed = threading.Condition()
        threading.Thread(target=self.watch, daemon=True).start()

    def enter(self, message, go):
        key, number = message.body["key"], message.body["number"]
        with self.changed:
            if key in self.inside:
                self.faults.append(f"two of {key} at once")
            if number != self.next[key]:
                self.faults.append(f"{key}: {number} came when it was the turn of {self.next[key]}")
            self.next[key] = number + 1
            self.inside[key] = go
            self.threads.add(threading.get_ident())
            self.changed.notify()

    def leave(self, message):
        key = message.body["key"]
        with self.changed:
            del self.inside[key]
            self.left[key] -= 1
            if not self.left[key]:
                del self.left[key]
            self.changed.notify()

    def watch(self):
        dice, began = random.Random(5), time.monotonic()
        with self.changed:
            while self.left:
                wanted = min(WORKERS, len(self.left))
                if not self.changed.wait_for(lambda: len(self.inside) == wanted, LONG):
                    self.faults.append(f"{len(self.inside)} of {wanted} that could run do")
                    break
                self.checks += 1
                self.most = max(self.most, len(self.inside))
                chosen = dice.sample(sorted(self.inside), dice.randint(1, wanted))
                before = sum(self.left.values())
                for key in chosen:
                    self.inside[key]()
                if not self.changed.wait_for(lambda: sum(self.left.values()) == before - len(chosen), LONG):
                    self.faults.append("a handler that may go on does not")
                    break
        found = {"seconds": time.monotonic() - began, "threads": len(self.threads)}
        found |= {name: getattr(self, name) for name in ("checks", "most", "faults")}
        (HERE / "result.new").write_text(json.dumps(found))
        (HERE / "result.new").rename(HERE / "result.json")


referee = Referee()


class Threaded:
    lock = "body.key"

    def __call__(self, message):
        go = threading.Event()
        referee.enter(message, go.set)
        go.wait()
        referee.leave(message)


class Async:
    lock = "body.key"

    async def __call__(self, message):
        loop, go = asyncio.get_running_loop(), asyncio.Event()
        referee.enter(message, lambda: loop.call_soon_threadsafe(go.set))
        await go.wait()
        referee.leave(message)
"""

RECORDER = """
import json, pathlib, time

HERE = pathlib.Path(__file__).parent
trace = []


def record(message):
    began = time.monotonic()
    time.sleep(0.001)  # wait for somebody, as handlers do
    trace.append((message.body["key"], message.body["number"], began, time.monotonic()))
    if len(trace) == 10_000:
        (HERE / "trace.new").write_text(json.dumps(trace))
        (HERE / "trace.new").rename(HERE / "trace.json")


record.lock = "body.key"
"""

CONFIG = """
[service]
http = "tcp:{port}:interface=127.0.0.1"
[queues.work]
[consumers.work]
queue = "work"
handler = "handlers_of_test:{handler}"
{more}
"""


class Lanes:
    """A daemon, and what its metrics say of its lanes."""

    def __init__(self, start: StartDaemon, handlers: str, handler: str, more: str = "") -> None:
        (self._port,) = free_ports(1)
        self.daemon: Daemon = start(CONFIG.format(port=self._port, handler=handler, more=more), handlers)

    def value(self, name: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        (found,) = re.findall(rf"^rpcd_{name}{{[^}}]*}} (\d+)", text, re.MULTILINE)
        return int(float(found))


def shuffled(count: int, keys: int) -> list[str]:
    """The keys of so many messages; some come ten times as often as others."""
    dice = random.Random(11)
    return dice.choices([f"k{number}" for number in range(keys)], [1 + number % 10 for number in range(keys)], k=count)


def publish_at_once(peer: Peer, keys: list[str]) -> None:
    """Publish a message for each key, with its number among those of that key; not confirmed one by one, but all counted."""
    channel, numbers = peer.connection.channel(), Counter[str]()
    for key in keys:
        channel.basic_publish("", "work", json.dumps({"key": key, "number": numbers[key]}).encode())
        numbers[key] += 1
    channel.close()  # answered when all have been taken in


def ready(peer: Peer) -> int:
    return int(peer.channel.queue_declare("work", passive=True).method.message_count)


@pytest.mark.parametrize("kind", ["Threaded", "Async"])
def test_ten_thousand_messages_never_two_of_a_key_in_order_and_nobody_idle_while_work_is_runnable(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path, kind: str
) -> None:
    """Nobody is let go before as many are inside as can be: a worker that slept beside work would make that wait for ever.

    The prefetch is that of all messages, so that what is runnable is known: one message of each key that is left.
    """
    keys = shuffled(COUNT, KEYS)
    (tmp_path / "counts.json").write_text(json.dumps(Counter(keys)))
    lanes = Lanes(start, REFEREE, kind, f"workers = {WORKERS}\nprefetch = {COUNT}")
    publish_at_once(peer, keys)
    result = tmp_path / "result.json"
    peer.until(result.exists, 240, lambda: lanes.daemon.output[-2000:])
    found: dict[str, Any] = json.loads(result.read_text())
    assert found["faults"] == []
    assert found["most"] == WORKERS
    assert found["threads"] == (WORKERS if kind == "Threaded" else 1)
    assert found["checks"] >= COUNT / WORKERS
    peer.until(lambda: lanes.value("unsettled") == 0)
    assert (lanes.value("keys_held"), lanes.value("keys_waiting"), ready(peer)) == (0, 0, 0)
    assert lanes.daemon.stop() == 0
    assert (peer.left("work"), peer.left("work.archive")) == ([], [])


def test_at_full_speed_with_the_prefetch_that_rpcd_chooses_each_key_has_one_at_a_time_and_in_order(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    keys = shuffled(COUNT, KEYS)
    lanes = Lanes(start, RECORDER, "record", f"workers = {WORKERS}")
    assert lanes.value("prefetch") == 128
    publish_at_once(peer, keys)
    peer.until((tmp_path / "trace.json").exists, 240, lambda: lanes.daemon.output[-2000:])
    by_key: dict[str, list[tuple[float, float, int]]] = {}
    for key, number, began, ended in json.loads((tmp_path / "trace.json").read_text()):
        by_key.setdefault(key, []).append((began, ended, number))
    for runs in by_key.values():
        runs.sort()
        assert [number for *_, number in runs] == list(range(len(runs)))
        assert all(ended <= began for (_, ended, _), (began, *_) in itertools.pairwise(runs))
    assert sum(map(len, by_key.values())) == COUNT
    peer.until(lambda: lanes.value("unsettled") == 0)
    assert (lanes.value("keys_held"), lanes.value("keys_waiting"), ready(peer)) == (0, 0, 0)


GATES = """
import pathlib, time
import rpcd

HERE = pathlib.Path(__file__).parent


def note(line):
    with (HERE / "book").open("a") as book:
        book.write(f"{line}\\n")


class Gated:
    lock = "body.key"

    def __call__(self, message):
        name = message.body["name"]
        note(name)
        while message.body["key"] == "hot" and not (HERE / f"gate-{name}").exists():
            time.sleep(0.01)


class Wrong:
    lock = object()

    def __call__(self, message):
        pass
"""


def book(tmp_path: pathlib.Path) -> list[str]:
    file = tmp_path / "book"
    return file.read_text().split() if file.exists() else []


def test_a_hot_key_stops_the_others_only_once_what_waits_for_it_fills_the_prefetch(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    lanes = Lanes(start, GATES, "Gated", "workers = 2\nprefetch = 8")
    for number in range(7):
        peer.publish("work", {"key": "hot", "name": f"h{number}"})
    peer.until(lambda: lanes.value("keys_waiting") == 6)
    peer.publish("work", {"key": "cold", "name": "beside"})
    peer.until(lambda: "beside" in book(tmp_path))  # one worker is free for it, and one place in the prefetch
    assert book(tmp_path) == ["h0", "beside"]
    peer.publish("work", {"key": "hot", "name": "h7"})
    peer.until(lambda: lanes.value("keys_waiting") == 7)  # now all eight places are taken by the hot key
    peer.publish("work", {"key": "cold", "name": "behind"})
    assert (ready(peer), lanes.value("handlers_running"), lanes.value("keys_held")) == (1, 1, 1)
    (tmp_path / "gate-h0").touch()
    peer.until(lambda: "behind" in book(tmp_path))
    for number in range(1, 8):
        (tmp_path / f"gate-h{number}").touch()
    peer.until(lambda: lanes.value("unsettled") == 0)
    assert [name for name in book(tmp_path) if name.startswith("h")] == [f"h{number}" for number in range(8)]
    assert (lanes.value("keys_held"), lanes.value("keys_waiting")) == (0, 0)


def test_a_message_that_lacks_its_key_is_a_bad_message_and_the_others_go_on(start: StartDaemon, peer: Peer) -> None:
    lanes = Lanes(start, GATES, "Gated", "workers = 2")
    answer = peer.call("work", {"name": "nobody's"})
    assert answer.json["success"] is False
    assert answer.json["data"] == {"place": "body.key", "reason": "missing; the lock of this consumer needs it"}
    archived = peer.get("work.archive")
    assert archived.headers["x-rpcd-reason"] == "bad message: body.key: missing; the lock of this consumer needs it"
    assert peer.call("work", {"key": "cold", "name": "next"}).json["success"] is True
    peer.until(lambda: lanes.value("unsettled") == 0)
    assert lanes.value("keys_held") == 0


def test_the_config_wins_over_the_handlers_own_lock(start: StartDaemon, peer: Peer, tmp_path: pathlib.Path) -> None:
    lanes = Lanes(start, GATES, "Gated", 'workers = 2\nlock = "body.name"')
    for name in ("a", "b"):
        peer.publish("work", {"key": "hot", "name": name})
    peer.until(lambda: sorted(book(tmp_path)) == ["a", "b"])  # both at once, although their `key` is the same
    assert lanes.value("keys_held") == 2
    for name in ("a", "b"):
        (tmp_path / f"gate-{name}").touch()
    assert lanes.daemon.stop() == 0


def test_a_lock_that_is_none_is_a_mistake_at_start_that_names_the_class(start: StartDaemon) -> None:
    daemon = start(CONFIG.format(port=1, handler="Wrong", more=""), GATES, wait=False)
    assert daemon.wait() == 78
    assert "consumers.work.handler: handlers_of_test:Wrong.lock: of type object, but it names what only one" in daemon.output


def test_each_handler_of_a_namespace_has_the_lock_that_it_names(
    start: StartDaemon, peer: Peer, tmp_path: pathlib.Path
) -> None:
    """`a` runs twice at once for different customers, `b` once at a time, and neither waits for the other."""
    package = tmp_path / "acme_lanes"
    package.mkdir()
    body = (
        "import pathlib, time\n"
        "def handle(message):\n"
        "    place = pathlib.Path(__file__).parent.parent\n"
        "    with (place / 'book').open('a') as book:\n"
        "        book.write(message.body['name'] + '\\n')\n"
        "    while not (place / ('gate-' + message.body['name'])).exists():\n"
        "        time.sleep(0.01)\n"
    )
    (package / "a.py").write_text(body + "handle.lock = 'body.customer'\n")
    (package / "b.py").write_text(body + "handle.lock = '*'\n")
    (package / "c.py").write_text(body)
    config = """
        [queues.work]
        [consumers.work]
        queue = "work"
        namespace = "acme_lanes"
        workers = 8
        """
    daemon = start(config)
    sent = [
        ("a", "a1", "x"),
        ("a", "a2", "y"),
        ("a", "a3", "x"),
        ("b", "b1", "x"),
        ("b", "b2", "z"),
        ("c", "c1", ""),
        ("c", "c2", ""),
    ]
    for exchange, name, customer in sent:
        peer.publish("work", {"name": name, "customer": customer}, exchange)
    peer.until(lambda: len(book(tmp_path)) == 5)
    for name in ("a1", "b1", "c1"):
        (tmp_path / f"gate-{name}").touch()
    peer.until(lambda: len(book(tmp_path)) == 7)
    assert sorted(book(tmp_path)[:5]) == ["a1", "a2", "b1", "c1", "c2"]
    assert sorted(book(tmp_path)[5:]) == ["a3", "b2"]
    for _exchange, name, _customer in sent:
        (tmp_path / f"gate-{name}").touch()
    assert daemon.stop() == 0
    assert peer.left("work") == []
