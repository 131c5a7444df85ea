"""What the soak is played on: a private broker, proxies, and real daemons that are watched."""

import os
import pathlib
import signal
import tempfile
import threading
import time
from typing import NamedTuple

from daemon import Daemon
from proxy import Proxy

from rpcd.ops.ports import free_ports
from rpcd.ops.rabbitmq import PrivateNode

HERE = pathlib.Path(__file__).parent
HEARTBEAT = 5
STEPS = (200, 1000)
"""Milliseconds: the retry steps."""

QUEUES = tuple(
    name for queue in ("work", "ask") for name in (queue, f"{queue}.archive", *(f"{queue}.retry.{step}" for step in STEPS))
)
"""All queues that the daemons declare."""

CONFIG = """
[service]
path = ["{here}"]
drain_timeout = 10
confirm_timeout = 10
[logging]
level = "info"
[queues.{queue}]
type = "{kind}"
[consumers.{queue}]
queue = "{queue}"
handler = "soak_handlers:perform"
workers = 4
prefetch = 32
reply_to_allowed = ["soak.replies"]
reply_confirm = {confirm}
[consumers.{queue}.retry]
delays = [0.2, 1]
"""

ROLL_OVER = "[dets:sync(Table) || Table <- dets:all()], ra_log_wal:force_roll_over(ra_log_wal)."
"""Makes a quorum queue that was just declared survive a kill; see rabbitmq-server#15725."""

_BAD = ("Unhandled", " CRITICAL ")


class Sample(NamedTuple):
    """What a process held at a time."""

    at: float
    megabytes: int
    descriptors: int


class Actor:
    """One daemon in all its lives, and the proxy between it and the broker."""

    def __init__(self, name: str, queue: str, kind: str, directory: pathlib.Path, node: PrivateNode) -> None:
        """Make its place; nothing is started yet."""
        self.name, self.queue = name, queue
        self.ledger = directory / f"{name}.ledger"
        self.lives = 0
        self.codes: list[int] = []
        """Exit codes of lives that were told to end."""
        self.complaints: list[str] = []
        """What it said or did that it never should."""
        self.samples: list[Sample] = []
        self.proxy = Proxy(node.port, port=free_ports(1)[0])
        self._url = self.proxy.url(node.url())
        self._config = directory / name / "rpcd.toml"
        self._config.parent.mkdir()
        confirm = "true" if kind == "classic" else "false"
        self._config.write_text(CONFIG.format(here=HERE, queue=queue, kind=kind, confirm=confirm))
        self._daemon: Daemon | None = None
        self._expected = False

    def start(self) -> None:
        """Start a new life."""
        self._expected = False
        environment = {"SOAK_LEDGER": str(self.ledger), "RABBITMQ_HEARTBEAT": str(HEARTBEAT)}
        self._daemon = Daemon(self._config, self._url, **environment)
        self.lives += 1

    def ready(self) -> None:
        """Wait until it consumes for the first time."""
        assert self._daemon is not None
        self._daemon.ready()

    def end(self, number: int) -> None:
        """End this life by a signal and wait until it is over."""
        assert self._daemon is not None
        self._expected = True
        if self._daemon.process.poll() is None:
            self._daemon.signal(number)
        code = self._daemon.wait(120)
        if number != signal.SIGKILL:
            self.codes.append(code)
            if code not in {0, 75}:
                self.complaints.append(f"{self.name} ended with {code} on signal {number}")
        self._bury()

    def look(self) -> None:
        """Take a sample; a daemon that ended unasked is a complaint, and is started again."""
        daemon = self._daemon
        if daemon is None or self._expected:
            return
        if (code := daemon.process.poll()) is not None:
            self.complaints.append(f"{self.name} ended by itself with {code}: {daemon.lines[-1:]}")
            self._bury()
            self.start()
            return
        process = pathlib.Path(f"/proc/{daemon.process.pid}")
        pages = int((process / "statm").read_text().split()[1])
        count = len(list((process / "fd").iterdir()))
        self.samples.append(Sample(time.monotonic(), pages * 4096 // 2**20, count))

    def _bury(self) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon is None:
            return
        daemon.kill()
        self.complaints += [f"{self.name}: {line}" for line in daemon.lines if any(word in line for word in _BAD)]
        with self.ledger.with_suffix(".log").open("a") as log:
            log.writelines(f"{line}\n" for line in daemon.lines)

    def close(self) -> None:
        """End everything at once."""
        self._expected = True
        self._bury()
        self.proxy.close()


class Stage:
    """The broker and all daemons; `close` ends every process, by its id."""

    def __init__(self, directory: pathlib.Path) -> None:
        """Start everything and wait until all consume."""
        self.directory = directory
        self.lock = threading.Lock()
        """Held by whoever starts or ends something."""
        self.interrupted = threading.Event()
        """Set when all is to end at once."""
        self.actors: list[Actor] = []
        other = os.environ.get("RPCD_TEST_RABBITMQ_ROOT")  # see tests/conftest.py
        place = pathlib.Path(other, "tmp") if other else directory
        self.node = PrivateNode(pathlib.Path(tempfile.mkdtemp(prefix="node.", dir=place)), root=pathlib.Path(other or "/"))
        try:
            self.node.start()
            for name, queue, kind in (("one", "work", "quorum"), ("two", "work", "quorum"), ("three", "ask", "classic")):
                self.actors.append(Actor(name, queue, kind, directory, self.node))
                self.actors[-1].start()
            for actor in self.actors:
                actor.ready()
            self.settle()
        except BaseException:
            self.close()
            raise
        self.version = self.node.ctl("version").strip()

    def settle(self) -> None:
        """Make all quorum queues safe against a kill, whatever their age."""
        self.node.ctl("eval", ROLL_OVER)

    def look(self) -> None:
        """Sample all daemons."""
        with self.lock:
            for actor in self.actors:
                actor.look()

    def close(self) -> None:
        """End everything, whatever state it is in."""
        with self.lock:
            for actor in self.actors:
                actor.close()
            self.node.stop()
