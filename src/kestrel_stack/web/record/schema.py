"""The tables of kestrel-web's SQLite file, and how an older file becomes a newer one.

A file's version is the number of steps below that were taken, kept in SQLite's own ``user_version``. A step
never changes once it was released; a change is a further step.
"""

from __future__ import annotations

import sqlite3

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE series (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, seen INTEGER NOT NULL);
    CREATE TABLE ticks (
        tier INTEGER NOT NULL, at INTEGER NOT NULL, whole INTEGER NOT NULL, PRIMARY KEY (tier, at)
    ) WITHOUT ROWID;
    CREATE TABLE history (
        tier INTEGER NOT NULL, at INTEGER NOT NULL, series INTEGER NOT NULL,
        items INTEGER, age_ms INTEGER, rate_in INTEGER, rate_out INTEGER,
        peak_in INTEGER, peak_out INTEGER, open INTEGER, parked INTEGER,
        PRIMARY KEY (tier, at, series)
    ) WITHOUT ROWID;
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, ended_at REAL, run TEXT NOT NULL,
        who TEXT NOT NULL, address TEXT NOT NULL, role TEXT NOT NULL, action TEXT NOT NULL,
        target TEXT NOT NULL, servers TEXT NOT NULL, outcome TEXT NOT NULL, detail TEXT NOT NULL
    );
    CREATE INDEX audit_open ON audit (outcome) WHERE outcome = 'begun';
    CREATE TABLE kv (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE sessions (
        id_hash BLOB PRIMARY KEY, user TEXT NOT NULL, stamp BLOB NOT NULL, made REAL NOT NULL,
        seen REAL NOT NULL
    ) WITHOUT ROWID;
    """,
)
HISTORY_TABLES = ("series", "ticks", "history")
"""Everything else is carried over from a damaged file as far as it can be read."""


class NewerVersion(Exception):  # noqa: N818 - it names what is the matter
    """The file was written by a newer kestrel-web."""


def check(connection: sqlite3.Connection) -> int:
    """Return the file's version; raise `NewerVersion` when it is more than we know. Changes nothing."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise NewerVersion(f"version {version}; this kestrel-web knows versions up to {len(MIGRATIONS)}")
    return int(version)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to this version's tables.

    Each step is one transaction together with its number: a process that dies between two of them goes on
    where it was.
    """
    version = check(connection)
    for number, step in enumerate(MIGRATIONS[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in filter(str.strip, step.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
