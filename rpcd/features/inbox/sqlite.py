"""Results in an SQLite file: for all daemons of one machine."""

import os
import sqlite3
import time
from collections.abc import Callable, Collection
from pathlib import Path

from rpcd.features.inbox.store import Claim, Held, Pool

BUSY_SECONDS = 10.0
"""How long a write waits for another process's."""

CLEANED = 1000
"""Rows that are forgotten at a time."""

_TABLE = """
CREATE TABLE IF NOT EXISTS rpcd_inbox (key BLOB PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL, kept BLOB)
WITHOUT ROWID
"""
_INDEX = "CREATE INDEX IF NOT EXISTS rpcd_inbox_until ON rpcd_inbox (until)"
_CLAIM = """
INSERT INTO rpcd_inbox (key, owner, until, kept) VALUES (:key, :owner, :until, NULL)
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until = excluded.until, kept = NULL WHERE until <= :now
"""
_LOOK = "SELECT owner, until, kept FROM rpcd_inbox WHERE key = :key"
_FINISH = """
INSERT INTO rpcd_inbox (key, owner, until, kept) VALUES (:key, :owner, :until, :kept)
ON CONFLICT (key) DO UPDATE SET until = excluded.until, kept = excluded.kept WHERE owner = excluded.owner
"""
_RELEASE = "DELETE FROM rpcd_inbox WHERE key = :key AND owner = :owner AND kept IS NULL"
_RENEW = "UPDATE rpcd_inbox SET until = :until WHERE key = :key AND owner = :owner AND kept IS NULL"
_CLEAN = "DELETE FROM rpcd_inbox WHERE key IN (SELECT key FROM rpcd_inbox WHERE until <= :now LIMIT :most)"


class SqliteStore:
    """A file that only its owner may read; several processes may use it at a time."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        """Take the file, which need not be there, and the clock, in seconds since the epoch."""
        self._file = file
        self._clock = clock
        self._pool = Pool(self._connect, sqlite3.Connection.close, sqlite3.Error)

    def open(self) -> None:
        """Make the file, open to its owner alone, and its table."""
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(
            os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        )  # SQLite gives its other files the same mode
        self._pool.use(self._make)

    @staticmethod
    def _make(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(_TABLE)
        connection.execute(_INDEX)

    def _connect(self) -> sqlite3.Connection:
        where = f"{self._file.absolute().as_uri()}?mode=rw"  # made by `open` alone, which takes care of its mode
        connection = sqlite3.connect(where, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def claim(self, held: Held, lease: float) -> Claim:
        """Claim a message, or say why it can't be."""
        key, owner = held

        def work(connection: sqlite3.Connection) -> Claim:
            while True:
                now = self._clock()
                values = {"key": key, "owner": owner, "until": now + lease, "now": now}
                if connection.execute(_CLAIM, values).rowcount == 1:
                    return Claim()
                row = connection.execute(_LOOK, {"key": key}).fetchone()
                if row is None:
                    continue  # released since
                if row[0] == owner and row[2] is None:
                    return Claim()  # the first try came through, and its answer did not
                if row[2] is not None or row[1] > now:
                    return Claim(row[2], 0.0 if row[2] is not None else row[1] - now)

        return self._pool.use(work)

    def finish(self, held: Held, kept: bytes, keep: float) -> bool:
        """Keep the result of a claimed message."""
        values = {"key": held[0], "owner": held[1], "until": self._clock() + keep, "kept": kept}
        return self._pool.use(lambda connection: connection.execute(_FINISH, values).rowcount) == 1

    def release(self, held: Held) -> None:
        """Give up a claim."""
        self._pool.use(lambda connection: connection.execute(_RELEASE, {"key": held[0], "owner": held[1]}))

    def renew(self, held: Collection[Held], lease: float) -> None:
        """Let claims last from now."""
        until = self._clock() + lease
        rows = [{"key": key, "owner": owner, "until": until} for key, owner in held]
        self._pool.use(lambda connection: connection.executemany(_RENEW, rows))

    def clean(self) -> None:
        """Forget some of what is too old."""
        self._pool.use(lambda connection: connection.execute(_CLEAN, {"now": self._clock(), "most": CLEANED}))
