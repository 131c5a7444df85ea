"""The real `twistd rpcd` as a test runs it: its own process and session, its output read line by line."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from canary import unsaid
from privilege import least

TWISTD = pathlib.Path(sys.executable).parent / "twistd"
RPCD = pathlib.Path(sys.executable).parent / "rpcd"

SECONDS = 90.0
"""How long a test waits for a line or an end."""


class Daemon:
    """One running daemon; everything that it prints is in `lines`."""

    def __init__(
        self,
        config: pathlib.Path,
        url: str | None,
        *,
        command: tuple[str, ...] = (str(TWISTD),),
        arguments: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        user: int | None = None,
        **environment: str,
    ) -> None:
        self.lines: list[str] = []
        self._files = [config.parent / each.partition("=")[2] for each in arguments if each.startswith("--logfile=")]
        self._changed = threading.Condition()
        env = {**os.environ, "PYTHONWARNINGS": "default", **environment}
        url = least(config, url, env)
        if url is not None:
            env["RABBITMQ_URL"] = url
        self.process = subprocess.Popen(
            [*command, "-n", "--pidfile=", *arguments, "rpcd", "--config", str(config), *options],
            env=env,
            cwd=config.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, count: int = 1, seconds: float = SECONDS) -> list[str]:
        """Wait until `count` lines match a pattern; fail at once if the process ends before."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                found = [line for line in self.lines if re.search(pattern, line)]
                if len(found) >= count:
                    return found
                left = deadline - time.monotonic()
                ended = not self._reader.is_alive()
                if left <= 0 or ended:
                    said = "it ended" if ended else f"in {seconds} s"
                    raise AssertionError(f"{len(found)} of {count} lines match {pattern!r}; {said}:\n{self.output}")
                self._changed.wait(min(left, 0.5))

    def wait_a_little(self) -> None:
        """Wait until it prints, or for a moment."""
        with self._changed:
            self._changed.wait(0.01)

    def ready(self) -> "Daemon":
        """Wait until it consumes."""
        self.wait_for("ready, consuming: ")
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = SECONDS) -> int:
        """Wait until it has ended and return its exit code."""
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def stop(self) -> int:
        """Stop it as systemd would and return its exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it at once, only for cleaning up; it may have said nothing of what messages hold."""
        self.end()
        self.said_nothing()

    def said_nothing(self) -> None:
        """Insist that neither its output nor its log file holds what a message holds."""
        unsaid(self.output, *self._files)

    def end(self) -> None:
        """End it at once."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


StartDaemon = Callable[..., Daemon]
