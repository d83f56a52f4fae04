"""What the pages of this host have enqueued last: one JSON object a line in ``var/enqueued.jsonl``."""

from __future__ import annotations

import json
import os
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shop import files

LIMIT = 64 * 1024
"""Bytes at which a new file is begun; the one before is kept until then."""


def note(queue: str, jobs: int, result: str) -> None:
    """Write down how an attempt to enqueue went, whole or not at all: one append is one line."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({"at": at, "queue": queue, "jobs": jobs, "result": result[:200]}) + "\n"
    path = default_path()
    files.shared_file(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, line.encode())
        full = os.fstat(descriptor).st_size > LIMIT
    finally:
        os.close(descriptor)
    if full:
        path.replace(path.with_suffix(".old"))


def recent(count: int = 10) -> list[dict[str, Any]]:
    """Return the last attempts, the newest first."""
    try:
        with default_path().open(encoding="utf-8") as lines:
            return [json.loads(line) for line in deque(lines, count)][::-1]
    except (OSError, ValueError):
        return []


def default_path() -> Path:
    """Return the history's file."""
    return files.var() / "enqueued.jsonl"
