"""The ledger: which jobs this host has done, once each.

A job may be delivered twice; its id tells. SQLite's rollback journal is used, not WAL: a reader of another
user then needs nothing but to read the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shop import files

BUSY_SECONDS = 20.0
"""How long a process waits for the others to finish writing."""

_TABLE = """
    CREATE TABLE IF NOT EXISTS done (
        id TEXT PRIMARY KEY,
        tenant TEXT NOT NULL,
        job TEXT NOT NULL,
        release TEXT,
        at TEXT NOT NULL,
        again INTEGER NOT NULL DEFAULT 0
    )
"""


def record(job_id: str, tenant: str, job: str, release: str | None, path: Path | None = None) -> bool:
    """Write down that a job was done; return False when it had been done before."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    with _opened(path or default_path()) as ledger:
        ledger.execute("BEGIN IMMEDIATE")
        ledger.execute(_TABLE)
        new = ledger.execute(
            "INSERT INTO done (id, tenant, job, release, at) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (job_id, tenant, job, release, at),
        ).rowcount
        if not new:
            ledger.execute("UPDATE done SET again = again + 1 WHERE id = ?", (job_id,))
        ledger.execute("COMMIT")
    return bool(new)


def is_done(job_id: str, path: Path | None = None) -> bool:
    """Say whether the ledger has the job."""
    path = path or default_path()
    if not path.exists():
        return False
    with _opened(path) as ledger:
        return bool(_rows(ledger, "SELECT 1 FROM done WHERE id = ?", job_id))


def report(path: Path | None = None) -> dict[str, Any]:
    """Return the jobs done by tenant, name and release, and how many deliveries came again."""
    path = path or default_path()
    done: dict[str, dict[str, int]] = {}
    releases: dict[str, int] = {}
    duplicates = 0
    if path.exists():
        with _opened(path) as ledger:
            rows = _rows(
                ledger,
                "SELECT tenant, job, release, count(*), sum(again) FROM done GROUP BY tenant, job, release",
            )
        for tenant, job, release, count, again in rows:
            of_tenant = done.setdefault(tenant, {})
            of_tenant[job] = of_tenant.get(job, 0) + count
            releases[release or "none"] = releases.get(release or "none", 0) + count
            duplicates += again
    return {"done": done, "by_release": releases, "duplicates": duplicates}


def recent(count: int = 10, path: Path | None = None) -> list[tuple[str, str, str, str | None]]:
    """Return when, what, for whom and by which release of the jobs done last, the newest first."""
    path = path or default_path()
    if not path.exists():
        return []
    with _opened(path) as ledger:
        return _rows(ledger, "SELECT at, job, tenant, release FROM done ORDER BY at DESC LIMIT ?", count)


def default_path() -> Path:
    """Return the ledger's file."""
    return files.var() / "ledger.sqlite"


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    files.shared_file(path)
    # isolation_level None: transactions are begun and ended where it is written.
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def _rows(ledger: sqlite3.Connection, query: str, *values: object) -> list[tuple[Any, ...]]:
    try:
        return ledger.execute(query, values).fetchall()
    except sqlite3.OperationalError as exc:
        if "no such table" in str(exc):
            return []
        raise
