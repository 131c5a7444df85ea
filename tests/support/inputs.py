"""A daemon for a whole table of bad input, and what every row of such a table has to leave behind."""

import pathlib
import textwrap
import time
from collections.abc import Iterator

from canary import CANARY
from daemon import Daemon
from peer import Peer, Received
from raw import Content, RawPeer

from rpcd.ops.rabbitmq import PrivateNode

SECONDS = 30.0


class Inputs:
    """One daemon, a client that is hostile, and one that is not."""

    def __init__(
        self,
        node: PrivateNode,
        virtual_host: str,
        directory: pathlib.Path,
        config: str,
        handlers: str,
        at: str | None = None,
    ) -> None:
        (directory / "input_handlers.py").write_text(textwrap.dedent(handlers))
        file = directory / "rpcd.toml"
        file.write_text(f"[service]\npath = [{str(directory)!r}]\n{textwrap.dedent(config)}")
        node.add_virtual_hosts([virtual_host])
        self._node, self._virtual_host = node, virtual_host
        self.url = node.url(virtual_host)
        self.daemon = Daemon(file, at or self.url).ready()
        self.consumers = len(self.daemon.wait_for("INFO rpcd.consumer: consuming"))
        self.may_raise = False
        """Whether handlers raise what ends as a traceback in the log."""
        self.peer = Peer(self.url)
        self.raw = RawPeer(self.url)

    def archived(self, queue: str) -> Content:
        """Wait for the message in the archive of a queue."""
        deadline = time.monotonic() + SECONDS
        while (found := self.raw.get(f"{queue}.archive".encode())) is None:
            assert time.monotonic() < deadline, f"nothing came into the archive of {queue}:\n{self.daemon.output}"
            time.sleep(0.01)
        return found

    def neighbour(self, queue: str) -> Received:
        """Have a harmless request answered, and find nothing else in the archive, and no connection made anew."""
        answer = self.peer.call(queue, {"do": "return"}, message_id="neighbour")
        assert answer.json.get("success", True) is True  # it is the bare value with reply = "plain"
        assert self.raw.get(f"{queue}.archive".encode()) is None
        self.unharmed()
        return answer

    def unharmed(self) -> None:
        """Insist that the daemon lives on its first connections."""
        assert self.daemon.process.poll() is None, self.daemon.output
        again = [line for line in self.daemon.lines if "INFO rpcd.consumer: consuming" in line]
        assert len(again) == self.consumers, self.daemon.output

    def end(self, *queues: str) -> None:
        """Stop the daemon; nothing may be left, and nothing may be said that is nobody's business."""
        self.raw.close()
        code = self.daemon.stop()
        there = self._node.ctl("list_queues", "-p", self._virtual_host, "--silent", "--no-table-headers", "name").split()
        waiting = [name for name in there if ".retry." in name]
        left = {name: len(self.peer.left(name)) for each in queues for name in (each, f"{each}.archive")}
        left |= {name: len(self.peer.left(name)) for name in waiting}
        self.peer.close()
        assert code == 0, self.daemon.output
        assert not any(left.values()), left
        for wrong in (CANARY, "CRITICAL", "Unhandled", *(() if self.may_raise else ("Traceback",))):
            assert wrong not in self.daemon.output, self.daemon.output


def ended(inputs: Inputs, *queues: str) -> Iterator[Inputs]:
    """Hand out the inputs of a module's table and end them afterwards."""
    try:
        yield inputs
        inputs.end(*queues)
    finally:
        inputs.daemon.kill()
