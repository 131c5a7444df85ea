"""systemd's end of the notify protocol: a datagram socket, and what came over it."""

import pathlib
import socket
import threading
import time
from collections.abc import Callable

SECONDS = 90.0

Told = dict[str, str]


class NotifySocket:
    """Listens at a path, or in the abstract namespace for a name that begins with @."""

    def __init__(self, address: str | pathlib.Path) -> None:
        self.address = str(address)
        self.told: list[Told] = []
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{self.address[1:]}" if self.address.startswith("@") else self.address)
        if not self.address.startswith("@"):
            pathlib.Path(self.address).chmod(0o777)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = self._socket.recv(65536)
            except OSError:
                return
            if not data:
                return
            with self._changed:
                self.told.append(dict(line.split("=", 1) for line in data.decode().splitlines()))
                self._changed.notify_all()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def wait_for(self, found: Callable[[Told], object], since: int = 0, what: str = "", seconds: float = SECONDS) -> int:
        """Wait for a message and return the number of the one after it."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                for number in range(since, len(self.told)):
                    if found(self.told[number]):
                        return number + 1
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"{what or 'it'} was not told in {seconds} s; since then: {self.told[since:]}")
                self._changed.wait(left)

    def mark(self) -> int:
        """Return the number of the next message: everything that was sent before this call has been counted."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            name = f"{time.monotonic_ns()}"
            own.sendto(f"MARK={name}".encode(), self._socket.getsockname())
        return self.wait_for(lambda told: told.get("MARK") == name, what="the mark")

    def ready(self, since: int = 0) -> int:
        return self.wait_for(lambda told: told.get("READY") == "1", since, "READY=1")

    def status(self, text: str, since: int = 0) -> int:
        """Wait for a status that begins with a text."""
        return self.wait_for(lambda told: told.get("STATUS", "").startswith(text), since, f"STATUS={text}")

    def has(self, name: str, until: int | None = None) -> bool:
        return any(name in told for told in self.told[:until])
