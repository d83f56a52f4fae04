"""Who did what: one entry per action, written before it is done and completed with its outcome."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kestrel_stack.web import keys

OUTCOMES = ("begun", "done", "failed", "refused", "cut")
"""`cut`: the process that began it died before it could tell the outcome."""
FILTERS = ("who", "action", "target", "outcome", "role", "address", "server", "text", "since", "until")
"""What `find` understands: `text` is found anywhere, `since` and `until` are Unix seconds."""
KEEP_DAYS = 400
KEEP_AT_LEAST = 10_000
"""So many entries stay however old they are; no wrong clock can empty the log."""
KEEP_AT_MOST = 1_000_000
MAX_DETAIL = 8192
"""Characters of an entry's details; longer values in them are shortened."""

_MAX_TEXT = 500
_MAX_ID = 2**63 - 1
_PER_PRUNE = 1000
_COLUMNS = "id, at, ended_at, who, address, role, action, target, servers, outcome, detail"


@dataclass(frozen=True)
class AuditEntry:
    """One action. Entries are in the order of their ids, whatever the clock did meanwhile."""

    id: int
    at: float
    ended_at: float | None
    who: str
    address: str
    role: str
    action: str
    target: str
    """The key of a queue, or a server's address."""
    servers: tuple[str, ...]
    outcome: str
    detail: Mapping[str, Any] = field(default_factory=dict)


def begin(
    connection: sqlite3.Connection,
    at: float,
    run: str,
    who: str,
    address: str,
    role: str,
    action: str,
    target: str,
    servers: Iterable[str],
    detail: Mapping[str, Any],
) -> int:
    """Write an entry before its action; return its id."""
    texts = [text[:_MAX_TEXT] for text in (who, address, role, action, target, ",".join(servers))]
    cursor = connection.execute(
        "INSERT INTO audit (at, run, who, address, role, action, target, servers, outcome, detail)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'begun', ?)",
        (at, run, *texts, _encode(detail)),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def end(
    connection: sqlite3.Connection, at: float, entry: int, outcome: str, detail: Mapping[str, Any]
) -> None:
    """Complete an entry; `detail` joins what was written at its beginning."""
    row = connection.execute("SELECT detail FROM audit WHERE id = ?", (entry,)).fetchone()
    if row is not None:
        connection.execute(
            "UPDATE audit SET ended_at = ?, outcome = ?, detail = ? WHERE id = ?",
            (at, outcome, _encode({**_decode(row[0]), **detail}), entry),
        )


def cut(connection: sqlite3.Connection, at: float, run: str) -> int:
    """Close the entries that another run of the program left open; return how many."""
    cursor = connection.execute(
        "UPDATE audit SET outcome = 'cut', ended_at = ? WHERE outcome = 'begun' AND run <> ?", (at, run)
    )
    return cursor.rowcount


def find(
    connection: sqlite3.Connection, before_id: int | None, limit: int, filters: Mapping[str, Any]
) -> list[AuditEntry]:
    """Return entries that match every filter, the newest first, at most `limit` older than `before_id`."""
    where, values = ["1"], []
    if before_id is not None:
        where.append("id < ?")
        values.append(max(0, min(before_id, _MAX_ID)))
    for name, value in filters.items():
        if name not in FILTERS:
            raise ValueError(f"{name!r} is no filter of the audit log; there are {', '.join(FILTERS)}")
        if value is None or value == "":
            continue
        if name == "text":
            where.append(
                "(who LIKE ? ESCAPE '\\' OR action LIKE ? ESCAPE '\\' OR servers LIKE ? ESCAPE '\\'"
                " OR address LIKE ? ESCAPE '\\' OR detail LIKE ? ESCAPE '\\' OR target LIKE ? ESCAPE '\\'"
                " OR target LIKE ? ESCAPE '\\')"
            )
            # Targets are written as keys; whoever searches types the name.
            values += [_like(str(value))] * 6 + [_like(keys.make(str(value).encode("utf-8", "replace")))]
        elif name == "server":
            where.append("(',' || servers || ',' LIKE ? ESCAPE '\\' OR target = ?)")
            values += [_like(f",{value},"), str(value)]
        elif name in ("since", "until"):
            where.append("at >= ?" if name == "since" else "at < ?")
            values.append(float(value))
        else:
            where.append(f"{name} = ?")
            values.append(str(value))
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM audit WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?",  # noqa: S608
        (*values, min(limit, _MAX_ID)),
    )
    return [
        AuditEntry(*row[:8], tuple(filter(None, row[8].split(","))), row[9], _decode(row[10])) for row in rows
    ]


def prune(connection: sqlite3.Connection, now: float) -> int:
    """Remove some entries that are too old or too many; return how many."""
    (newest,) = connection.execute("SELECT coalesce(max(id), 0) FROM audit").fetchone()
    cursor = connection.execute(
        "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE id <= ? OR (id <= ? AND at < ?)"
        " ORDER BY id LIMIT ?)",
        (newest - KEEP_AT_MOST, newest - KEEP_AT_LEAST, now - KEEP_DAYS * 86400, _PER_PRUNE),
    )
    return cursor.rowcount


def _like(text: str) -> str:
    for char in "\\%_":
        text = text.replace(char, "\\" + char)
    return f"%{text}%"


def _encode(detail: Mapping[str, Any]) -> str:
    text = json.dumps(detail, ensure_ascii=False, default=str, separators=(",", ":"))
    if len(text) > MAX_DETAIL:
        short = {str(name)[:100]: str(value)[:_MAX_TEXT] for name, value in list(detail.items())[:12]}
        text = json.dumps({**short, "shortened": True}, ensure_ascii=False, separators=(",", ":"))
    # Half of a pair is no text that a database takes.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _decode(text: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        content = json.loads(text)
        if isinstance(content, dict):
            return content
    return {"text": text}
