"""Results in a PostgreSQL table, `rpcd_inbox`, which is made if it is not there: for daemons of several machines."""

from collections.abc import Collection
from typing import Any

import psycopg

from rpcd.features.inbox.store import Claim, Held, Pool

SECONDS = 10
"""How long a statement, or the network, may take."""

CLEANED = 1000
"""Rows that are forgotten at a time."""

_LOCK = 0x72706364
"""PostgreSQL can't make one table twice at a time: who does it holds this advisory lock."""

_MAKE = f"""
DO $$ BEGIN
    PERFORM pg_advisory_xact_lock({_LOCK});
    IF to_regclass('rpcd_inbox') IS NULL THEN
        CREATE TABLE rpcd_inbox (key bytea PRIMARY KEY, owner text NOT NULL, until timestamptz NOT NULL, kept bytea);
        CREATE INDEX rpcd_inbox_until ON rpcd_inbox (until);
    END IF;
END $$
"""
_CLAIM = """
INSERT INTO rpcd_inbox AS had (key, owner, until, kept)
VALUES (%(key)s, %(owner)s, clock_timestamp() + make_interval(secs => %(seconds)s), NULL)
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until = excluded.until, kept = NULL
WHERE had.until <= clock_timestamp()
"""
_LOOK = """
SELECT owner, extract(epoch FROM until - clock_timestamp())::float8, kept FROM rpcd_inbox WHERE key = %(key)s
"""
_FINISH = """
INSERT INTO rpcd_inbox AS had (key, owner, until, kept)
VALUES (%(key)s, %(owner)s, clock_timestamp() + make_interval(secs => %(seconds)s), %(kept)s)
ON CONFLICT (key) DO UPDATE SET until = excluded.until, kept = excluded.kept WHERE had.owner = excluded.owner
"""
_RELEASE = "DELETE FROM rpcd_inbox WHERE key = %(key)s AND owner = %(owner)s AND kept IS NULL"
_RENEW = """
UPDATE rpcd_inbox SET until = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE (key, owner) IN (SELECT * FROM unnest(%(keys)s::bytea[], %(owners)s::text[])) AND kept IS NULL
"""
_CLEAN = """
DELETE FROM rpcd_inbox WHERE key IN
(SELECT key FROM rpcd_inbox WHERE until <= clock_timestamp() LIMIT %(most)s FOR UPDATE SKIP LOCKED)
"""

Connection = psycopg.Connection[tuple[Any, ...]]


class PostgresqlStore:
    """A table of a database; the clock is the database's."""

    def __init__(self, url: str) -> None:
        """Take the URL as libpq knows it."""
        self._url = url
        self._pool = Pool(self._connect, Connection.close, psycopg.Error)

    def open(self) -> None:
        """Make the table if it is not there."""
        self._do(_MAKE)

    def _connect(self) -> Connection:
        connection = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=SECONDS,
            tcp_user_timeout=1000 * SECONDS,
            fallback_application_name="rpcd inbox",
        )
        connection.execute(f"SET statement_timeout = '{SECONDS}s'")
        return connection

    def _do(self, statement: str, **values: Any) -> int:
        """Execute a statement; return how many rows it changed."""
        query = statement.encode()
        return self._pool.use(lambda connection: connection.execute(query, values or None).rowcount)

    def claim(self, held: Held, lease: float) -> Claim:
        """Claim a message, or say why it can't be."""
        key, owner = held

        def work(connection: Connection) -> Claim:
            while True:
                values = {"key": key, "owner": owner, "seconds": lease}
                if connection.execute(_CLAIM, values).rowcount == 1:
                    return Claim()
                row = connection.execute(_LOOK, {"key": key}).fetchone()
                if row is None:
                    continue  # released since
                if row[0] == owner and row[2] is None:
                    return Claim()  # the first try came through, and its answer did not
                if row[2] is not None or row[1] > 0:
                    return Claim(row[2], 0.0 if row[2] is not None else row[1])

        return self._pool.use(work)

    def finish(self, held: Held, kept: bytes, keep: float) -> bool:
        """Keep the result of a claimed message."""
        return self._do(_FINISH, key=held[0], owner=held[1], kept=kept, seconds=keep) == 1

    def release(self, held: Held) -> None:
        """Give up a claim."""
        self._do(_RELEASE, key=held[0], owner=held[1])

    def renew(self, held: Collection[Held], lease: float) -> None:
        """Let claims last from now."""
        self._do(_RENEW, keys=[key for key, _ in held], owners=[owner for _, owner in held], seconds=lease)

    def clean(self) -> None:
        """Forget some of what is too old."""
        self._do(_CLEAN, most=CLEANED)
