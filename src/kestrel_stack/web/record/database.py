"""The SQLite file of kestrel-web itself: whose it is, how it is opened, and what becomes of a damaged one."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from kestrel_stack.web.record import audit, schema

FILE = "kestrel-web.sqlite3"
LOCK_FILE = "kestrel-web.lock"

READ_BUSY_S = 0.25
WRITE_BUSY_S = 1.0
SALVAGE_BUSY_S = 3.0
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

_log = logging.getLogger(__name__)


class StoreError(Exception):
    """The file cannot be used at all; the text is one line that says why and what to do."""


class StoreTrouble(Exception):  # noqa: N818 - it names what is the matter
    """Something could not be written or read now; later it may."""


def take(folder: Path) -> int:
    """Make the folder ours, so that two processes never record or close the same entries twice."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StoreError(
            f"The state folder {folder} cannot be used ({exc.strerror}):"
            " name a folder that this user may write."
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise StoreError(
            f"The state folder {folder} is in use by another kestrel-web (process {holder or 'unknown'}):"
            " stop it, or name another folder."
        ) from None
    # The number is for people only; a full disk must not keep us from starting.
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    return lock


def open_to_write(path: Path, at: float, run: str) -> sqlite3.Connection:
    """Return the connection that writes; actions that another run left open are closed in the audit log."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StoreError(f"The database {path} cannot be opened: {exc.strerror}.") from None
    try:
        if os.fstat(descriptor).st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    connection = sqlite3.connect(path, timeout=WRITE_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        schema.check(connection)
        if connection.execute("PRAGMA page_count").fetchone() == (0,):
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        connection.execute("PRAGMA cache_size = -16000")
        schema.migrate(connection)
        connection.execute("BEGIN IMMEDIATE")
        number = audit.cut(connection, at, run)
        connection.execute("COMMIT")
    except schema.NewerVersion as exc:
        connection.close()
        raise StoreError(
            f"The database {path} was written by a newer kestrel-web ({exc}): start that one, or"
            " give this one another state folder."
        ) from None
    except BaseException:
        roll_back(connection)
        connection.close()
        raise
    if number:
        _log.warning("%d actions were under way when kestrel-web last ended; see the audit log", number)
    return connection


def open_to_read(path: Path, timeout: float | None = None, any_thread: bool = False) -> sqlite3.Connection:
    """Return a connection to a file that is there; it waits for others for `timeout` seconds."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=READ_BUSY_S if timeout is None else timeout,
        isolation_level=None,
        check_same_thread=not any_thread,
    )


def damage(path: Path) -> str | None:
    """Return what is wrong with the file when it is damaged indeed, and None when it is not."""
    try:
        # Not by the connection that writes: it knows the file as it was.
        with contextlib.closing(open_to_read(path)) as connection:
            check = connection.execute("PRAGMA quick_check(1)").fetchone()
        return None if check and check[0] == "ok" else str(check and check[0])
    except sqlite3.DatabaseError as exc:
        return str(exc) if code(exc) in DAMAGED else None


def replace(path: Path, at: float, run: str, reason: str) -> sqlite3.Connection:
    """Move the damaged file aside and make a new one with all that can be read of it."""
    stamp = datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")
    aside, number = path.with_name(f"{FILE}.damaged-{stamp}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{FILE}.damaged-{stamp}-{number}")
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")  # noqa: PTH104
    connection = open_to_write(path, at, run)
    saved = salvage(aside, connection)
    text = (
        f"The database was damaged ({reason}). It was moved to {aside.name}; the history begins anew, and"
        f" {saved.get('audit', 0)} audit entries could be read and were taken over."
    )
    _log.error("%s", text)
    with contextlib.suppress(sqlite3.Error):
        connection.execute("BEGIN IMMEDIATE")
        entry = audit.begin(
            connection,
            at,
            run,
            "kestrel-web",
            "",
            "",
            "database",
            "",
            (),
            {"text": text},
        )
        audit.end(connection, at, entry, "done", {})
        connection.execute("COMMIT")
    return connection


def salvage(aside: Path, connection: sqlite3.Connection) -> dict[str, int]:
    """Copy what can be read of a damaged file, but for the history; return how many rows of each table."""
    saved: dict[str, int] = {}
    tables = [
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if name not in schema.HISTORY_TABLES and not name.startswith("sqlite_")
    ]
    for table in tables:
        # From both ends: what is behind a damaged page is reached from the other side.
        for order in ("", " ORDER BY 1 DESC"):
            with (
                contextlib.suppress(sqlite3.Error),
                contextlib.closing(open_to_read(aside, SALVAGE_BUSY_S)) as old,
            ):
                rows = old.execute(f"SELECT * FROM {table}{order}")  # noqa: S608
                names = [column[0] for column in rows.description]
                marks = ", ".join("?" * len(names))
                insert = f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608
                connection.execute("BEGIN IMMEDIATE")
                try:
                    for row in rows:
                        with contextlib.suppress(sqlite3.IntegrityError):
                            saved[table] = saved.get(table, 0) + connection.execute(insert, row).rowcount
                finally:
                    connection.execute("COMMIT")
    return saved


def say(exc: BaseException) -> str:
    """Return what everybody may read; where the folder is stands in the log."""
    number = code(exc)
    if number in LOCKED:
        return f"History and audit wait: another program has locked {FILE}."
    if number == sqlite3.SQLITE_FULL:
        return "History and audit cannot be written: the disk of the state folder is full."
    if number in DAMAGED:
        return f"The database {FILE} is damaged; it is being replaced."
    if number == sqlite3.SQLITE_READONLY:
        return f"History and audit cannot be written: {FILE} is read-only."
    if isinstance(exc, StoreError):
        return f"History and audit cannot be kept: {FILE} cannot be used, see kestrel-web's log."
    return f"History and audit cannot be kept in {FILE}: {exc}."


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return how much of the file is in use."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells this file from another of its name; None when there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def roll_back(connection: sqlite3.Connection) -> None:
    """Undo a transaction, if there is one."""
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def code(exc: BaseException) -> int:
    """Return SQLite's own primary code of an error."""
    return (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
