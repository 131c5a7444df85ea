"""Private PostgreSQL and Redis servers: own directories, own loopback ports, nothing shared with the system's."""

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import psycopg

from rpcd.ops.ports import free_ports, listens

SECONDS = 60.0
"""How long a server may take to start or to stop; a busy machine needs a few seconds."""

MISSING = "{} is not installed: script/bootstrap --dev installs it where there is apt-get"


class Server:
    """One server process; whoever starts it ends it."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None

    def _begin(self, command: list[str], log: pathlib.Path, user: str | None = None) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                user=user,
                group=user,
                extra_groups=[] if user else None,
            )
        self._until(lambda: listens(self.port), log)

    def _until(self, done: Callable[[], bool], log: pathlib.Path) -> None:
        deadline = time.monotonic() + SECONDS
        while not done():
            assert self._process is not None
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, by its pid."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            self._process.wait(SECONDS)
            self._process = None


class Postgresql(Server):
    """A PostgreSQL server; it refuses to run as root, so root runs it as the user that its package has made."""

    def __init__(self) -> None:
        super().__init__()
        self._bin = postgresql_bin()
        self._user = "postgres" if os.geteuid() == 0 else None
        self._directory = pathlib.Path(tempfile.mkdtemp(prefix="rpcd-postgresql-"))  # pytest's own are closed to that user
        self._data = self._directory / "data"
        self._log = self._directory / "log"
        self._log.touch()
        if self._user is not None:
            shutil.chown(self._directory, self._user)
        command = [str(self._bin / "initdb"), "-D", str(self._data), "-U", "rpcd", "--auth=trust", "--no-sync", "-E", "UTF8"]
        done = subprocess.run(
            [*command, "--locale=C"], cwd="/", capture_output=True, text=True, user=self._user, group=self._user
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        options = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "shared_buffers=16MB"]
        settings = [part for option in options for part in ("-c", option)]
        self._begin(
            [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port), *settings], self._log, self._user
        )
        ready = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        self._until(lambda: subprocess.run(ready).returncode == 0, self._log)

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it and all its connections at once; SIGINT is its word for that."""
        super().stop(number)

    def remove(self) -> None:
        """End it for good."""
        self.stop()
        shutil.rmtree(self._directory)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://rpcd@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Execute a statement as a client of its own; return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def make_database(self) -> str:
        """Make a database that nobody has used; return its name."""
        name = f"test_{secrets.token_hex(4)}"
        self.execute(f"CREATE DATABASE {name}")
        return name


class Redis(Server):
    """A Redis server."""

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__()
        self._directory = directory
        found = shutil.which("redis-server")
        assert found is not None, MISSING.format("redis-server")
        self._command = found

    def start(self) -> None:
        """Start it, or start it again with what it had, and wait until it listens."""
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._directory), "--save", ""]
        self._begin([self._command, *options, "--appendonly", "yes"], self._directory / "log")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


def postgresql_bin() -> pathlib.Path:
    """Return where the newest PostgreSQL has its programs; Debian keeps them out of the PATH."""
    debian = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda each: int(each.parts[-3]))
    found = shutil.which("initdb")
    places = [pathlib.Path(found), *debian] if found else debian
    assert places, MISSING.format("postgresql")
    return places[-1].parent
