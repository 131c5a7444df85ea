"""`rpcd` as a person runs it: a process of its own, its output, and a terminal if it is to have one."""

import contextlib
import os
import pty
import subprocess
import threading
import time
from collections.abc import Iterator

from daemon import RPCD

SECONDS = 120.0
"""How long a test waits for a command."""


def surroundings(url: str | None, **environment: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ", "RPCD"))}
    return env | {"PYTHONWARNINGS": "default"} | environment | ({"RABBITMQ_URL": url} if url else {})


def rpcd(*arguments: str, url: str | None = None, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    env = surroundings(url, **environment)
    return subprocess.run(
        [str(RPCD), *arguments], env=env, input=stdin, capture_output=True, text=True, errors="replace", timeout=SECONDS
    )


class Running:
    """A command that goes on for a while; what it prints is read as it comes."""

    def __init__(self, *arguments: str, url: str, stdin: int = subprocess.DEVNULL) -> None:
        self.process = subprocess.Popen(
            [str(RPCD), *arguments],
            env=surroundings(url, PYTHONUNBUFFERED="1"),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._changed = threading.Condition()
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Iterator[str], lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    def wait_for(self, text: str, lines: list[str], count: int = 1) -> None:
        """Wait until so many lines contain a text."""
        deadline = time.monotonic() + SECONDS
        with self._changed:
            while sum(text in line for line in lines) < count:
                assert time.monotonic() < deadline, (text, self.out, self.err)
                self._changed.wait(0.5)

    def wait(self) -> int:
        code = self.process.wait(SECONDS)
        for reader in self._readers:
            reader.join(5)
        return code


@contextlib.contextmanager
def running(*arguments: str, url: str, stdin: int = subprocess.DEVNULL) -> Iterator[Running]:
    """Run a command for the length of a block."""
    command = Running(*arguments, url=url, stdin=stdin)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.process.kill()
        command.wait()
        for stream in (command.process.stdin, command.process.stdout, command.process.stderr):
            if stream is not None:
                stream.close()


def on_terminal(*arguments: str, url: str | None = None, answer: bytes = b"", **environment: str) -> tuple[int, bytes]:
    """Run a command on a terminal of its own, with `answer` typed ahead; return its exit code and all that it was sent."""
    master, slave = pty.openpty()
    os.write(master, answer)
    env = surroundings(url, TERM="xterm", COLUMNS="100", **environment)
    process = subprocess.Popen(
        [str(RPCD), *arguments], env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(master, 4096):
            said += chunk
    os.close(master)
    return process.wait(SECONDS), said
