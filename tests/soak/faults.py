"""Random faults, one after the other or two at a time, from a seed."""

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence

import attrs
from book import Tail
from client import LOST, Publisher
from peer import Peer
from stage import QUEUES, Actor, Stage

ALARM = "rabbit_alarm:set_alarm({{resource_limit,memory,node()},[]})."
NO_ALARM = "rabbit_alarm:clear_alarm({resource_limit,memory,node()})."

USED = [queue for queue in QUEUES if not queue.startswith("ask.retry.")]
"""Queues that will be missed when they are gone; a request is answered, not tried again."""

RECOVERY_SECONDS = 60.0
"""How long the next fault waits for every daemon to handle a message again."""


@attrs.define
class Fault:
    """One fault, or two that overlap. Times are monotonic."""

    kind: str
    began: float
    healed: float = 0.0
    """When everything was there again: from here on rpcd is to consume again."""


class Injector:
    """Plays faults on a stage; one thread."""

    def __init__(self, stage: Stage, publishers: Sequence[Publisher], tails: Sequence[Tail], seed: str) -> None:
        """Play nothing yet."""
        self.faults: list[Fault] = []
        self._stage, self._publishers, self._tails = stage, publishers, tails
        self._random = random.Random(seed)
        self._settled = True
        self.unquiet = 0
        """How often a queue was left alone, because what had been published to it did not come to rest."""
        self._quiet: Callable[[], bool] = lambda: False
        around: dict[Callable[[random.Random], None], int] = {
            self.cut: 3, self.reset: 3, self.black_hole: 4, self.refuse: 1, self.kill_a_daemon: 3, self.stop_a_daemon: 3,
        }  # fmt: skip
        within: dict[Callable[[random.Random], None], int] = {
            self.kill_the_broker: 3, self.freeze_the_broker: 3, self.alarm: 2, self.close_all_connections: 2,
        }  # fmt: skip
        self._around, self._within = around, within

    def play(self, until: float, quiet: Callable[[], bool]) -> None:
        """Play faults until a time; `quiet` tells whether everything published so far has come to its end."""
        self._quiet = quiet
        while time.monotonic() < until:
            self.one()
            if self._random.random() < 0.75:
                self._recovered()
            time.sleep(self._random.uniform(0.1, 1.5))
        self._recovered()

    def one(self) -> None:
        """Play one fault, or one at the broker and one at a daemon together."""
        chance = self._random.random()
        if chance < 0.04:
            self._play([self.delete_a_queue])
        elif chance < 0.2:
            self._play([self._pick(self._within), self._pick(self._around)])
        else:
            self._play([self._pick(self._around | self._within)])

    def _pick(self, weights: dict[Callable[[random.Random], None], int]) -> Callable[[random.Random], None]:
        return self._random.choices(list(weights), list(weights.values()))[0]

    def _play(self, parts: Sequence[Callable[[random.Random], None]]) -> None:
        kind = " + ".join(part.__name__.replace("_", " ") for part in parts)
        fault = Fault(kind, time.monotonic())
        self.faults.append(fault)
        failed: list[Exception] = []

        def run(part: Callable[[random.Random], None], own: random.Random) -> None:
            try:
                part(own)
            except Exception as error:  # noqa: BLE001  # told to whoever waits for the thread
                failed.append(error)

        threads = [threading.Thread(target=run, args=(part, random.Random(self._random.random()))) for part in parts]
        with self._stage.lock:
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    thread.join()
            except BaseException:  # Ctrl-C: nobody may start anything any more once the stage is closed
                self._stage.interrupted.set()
                for thread in threads:
                    thread.join()
                raise
        fault.healed = time.monotonic()
        with (self._stage.directory / "faults.log").open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {fault.began:.3f} {fault.healed:.3f} {kind}\n")
        if failed:
            raise failed[0]

    def _recovered(self) -> None:
        since, deadline = self.faults[-1].healed, time.monotonic() + RECOVERY_SECONDS
        while time.monotonic() < deadline and any(tail.last <= since for tail in self._tails):
            time.sleep(0.05)

    def _wait(self, seconds: float) -> None:
        if self._stage.interrupted.wait(seconds):
            raise InterruptedError

    def _actor(self, own: random.Random) -> Actor:
        return own.choice(self._stage.actors)

    def cut(self, own: random.Random) -> None:
        """End a daemon's connections by FIN."""
        self._actor(own).proxy.cut()

    def reset(self, own: random.Random) -> None:
        """End a daemon's connections by RST."""
        self._actor(own).proxy.reset()

    def black_hole(self, own: random.Random) -> None:
        """Pass nothing on between a daemon and the broker for some seconds, one way or both."""
        proxy = self._actor(own).proxy
        proxy.pause(*own.choice([("up",), ("down",), ()]))
        self._wait(own.uniform(0.5, 8))
        if own.random() < 0.5:
            proxy.reset()
        proxy.resume()

    def refuse(self, own: random.Random) -> None:
        """End a daemon's connections and refuse new ones for some seconds."""
        proxy = self._actor(own).proxy
        proxy.refuse()
        proxy.reset()
        self._wait(own.uniform(0.5, 5))
        proxy.accept()

    def kill_a_daemon(self, own: random.Random) -> None:
        """Kill a daemon and start it again."""
        actor = self._actor(own)
        actor.end(signal.SIGKILL)
        actor.start()

    def stop_a_daemon(self, own: random.Random) -> None:
        """Stop a daemon in order and start it again."""
        actor = self._actor(own)
        actor.end(signal.SIGTERM)
        actor.start()

    def kill_the_broker(self, own: random.Random) -> None:
        """Kill the broker and start it again."""
        self._stage.node.kill()
        self._wait(own.uniform(0, 2))
        self._stage.node.start()

    def freeze_the_broker(self, own: random.Random) -> None:
        """Freeze the broker's process for some seconds."""
        self._stage.node.signal(signal.SIGSTOP)
        self._wait(own.uniform(0.5, 6))
        self._stage.node.signal(signal.SIGCONT)

    def alarm(self, own: random.Random) -> None:
        """Let the broker run out of memory, as it thinks, for some seconds."""
        self._stage.node.ctl("eval", ALARM)
        self._wait(own.uniform(0.5, 4))
        self._stage.node.ctl("eval", NO_ALARM)

    def close_all_connections(self, _own: random.Random) -> None:
        """Close all connections as an operator would."""
        self._stage.node.ctl("close_all_connections", "maintenance")

    def delete_a_queue(self, own: random.Random) -> None:
        """Delete a queue that nothing is in: its content would be lost by order. Publishers wait for that long."""
        for publisher in self._publishers:
            publisher.may.clear()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (all(each.idle.is_set() for each in self._publishers) and self._quiet()):
            self._wait(0.1)
        queue = own.choice(USED) if time.monotonic() < deadline else None
        try:
            if queue is not None:
                self._delete(queue)
        finally:
            for publisher in self._publishers:
                publisher.may.set()
        if queue is None:
            self.unquiet += 1
        else:
            self._made_again(queue)

    def _delete(self, queue: str) -> None:
        peer = Peer(self._stage.node.url())
        peer.channel.queue_delete(queue)
        peer.close()

    def _made_again(self, queue: str) -> None:
        """Wait until rpcd has declared it anew, and make it safe against a kill at once."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(*LOST):
                peer = Peer(self._stage.node.url())
                there = peer.exists(queue)
                peer.close()
                if there:
                    break
            self._wait(0.2)
        self._stage.settle()
