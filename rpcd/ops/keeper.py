"""A process that keeps a private broker for another one, and takes it away when that has ended, in whatever way.

It reads one line of JSON from its standard input, and then waits for the end of it, which comes with the end of whoever
holds the other side: a process that is killed can't clean up after itself. It says a line of
JSON for each thing that happens.
"""

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

import msgspec

from rpcd.ops.rabbitmq import NodeError, PrivateNode, alive

LOOK_SECONDS = 0.2
"""How often the broker is looked at."""


class Wanted(msgspec.Struct):
    """Who uses the broker, and as whom."""

    owner: str
    """What its directory is called after."""
    username: str = "guest"
    password: str = "guest"  # noqa: S105  # RabbitMQ's own
    virtual_host: str = "/"


class Event(msgspec.Struct):
    """What has happened: `ready` with the URL, `gone` when the broker has ended by itself, `failed` with the reason."""

    kind: Literal["ready", "gone", "failed"]
    text: str = ""


def main() -> None:
    """Keep a broker until the standard input ends, or at SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    line = sys.stdin.buffer.readline()
    if not line:
        return
    wanted = msgspec.json.decode(line, type=Wanted)
    threading.Thread(target=_wait_for_the_end, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory(prefix=f"rpcd-{wanted.owner}-", ignore_cleanup_errors=True) as directory:
            _keep(Path(directory), wanted)
    except (NodeError, OSError) as error:
        _tell(Event("failed", str(error)))
        sys.exit(1)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _wait_for_the_end() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _keep(directory: Path, wanted: Wanted) -> NoReturn:
    node = PrivateNode(directory)
    try:
        node.start()
        _admit(node, wanted)
        while True:
            _tell(Event("ready", node.url(wanted.virtual_host, wanted.username, wanted.password)))
            pid = node.pid
            while alive(pid):
                time.sleep(LOOK_SECONDS)
            _tell(Event("gone"))
            node.stop()
            node.start()  # with all that durable queues held
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        node.stop()


def _admit(node: PrivateNode, wanted: Wanted) -> None:
    """Make the user and the virtual host that the config names."""
    if (wanted.username, wanted.password, wanted.virtual_host) == ("guest", "guest", "/"):
        return  # which is how a node begins
    if wanted.username != "guest":
        node.ctl("add_user", wanted.username, typed=f"{wanted.password}\n")
    elif wanted.password != "guest":  # noqa: S105  # RabbitMQ's own
        node.ctl("change_password", "guest", typed=f"{wanted.password}\n")
    if wanted.virtual_host != "/":
        node.ctl("add_vhost", wanted.virtual_host)
    node.ctl("set_permissions", "-p", wanted.virtual_host, wanted.username, ".*", ".*", ".*")


def _tell(event: Event) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(1, msgspec.json.encode(event) + b"\n")
