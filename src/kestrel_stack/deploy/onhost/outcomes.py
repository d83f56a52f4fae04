"""How the jobs of a host's workers ended, counted in their logs.

Runs on a canary's host as ``python3 -I -S -c``. It says how many jobs had which outcome (done, retry, parked,
lost) since so many seconds ago, or since the link ``current`` was made, all together and by kind of job, and
the last lines about failed ones. ``late`` are those of the parked ones that had been tried before:

    @ log shop_mail_00 {"time": …, "event": "job", "outcome": "retry", …}
    @ kinds {"SendMail": {"done": 118, "retry": 2}}
    @ outcomes {"done": 118, "retry": 2}
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

SHOWN = 3
"""Lines about failed jobs that are passed on."""
LONGEST = 400
"""Characters of such a line."""
KINDS = 200
"""Kinds of jobs that are counted each for itself."""
TAIL = 4 * 2**20
"""Bytes of the end of each log that are read: some 15,000 jobs, more than a worker does in a soak."""


def count(
    lines: Iterable[bytes], since: float, found: dict[str, int], kinds: dict[str, dict[str, int]]
) -> list[str]:
    """Add the outcomes of the jobs that ended at ``since`` (seconds since 1970) or later to ``found``.

    ``kinds`` has the same by kind of job.

    Returns the last lines about failed ones.
    """
    failed: list[str] = []
    for line in lines:
        if b'"outcome"' not in line:
            continue
        try:
            event = json.loads(line)
            at = datetime.fromisoformat(event["time"]).timestamp()
        except (ValueError, KeyError, TypeError):
            continue
        if event.get("event") == "job" and at >= since:
            outcome = str(event.get("outcome"))
            counted = [found]
            kind = str(event.get("job"))
            if kind in kinds or len(kinds) < KINDS:
                counted.append(kinds.setdefault(kind, {}))
            tried = event.get("attempt")
            late = outcome == "parked" and isinstance(tried, int) and tried > 1
            for numbers in counted:
                for key in [outcome] + ["late"] * late:
                    numbers[key] = numbers.get(key, 0) + 1
            if outcome in ("retry", "parked"):
                failed = [*failed[1 - SHOWN :], line.decode("utf-8", "replace")[:LONGEST]]
    return failed


def tail(path: Path) -> list[bytes]:
    """Return the lines of the end of a log; none when it cannot be read."""
    try:
        with path.open("rb") as log:
            start = max(0, log.seek(0, os.SEEK_END) - TAIL)
            log.seek(start)
            lines = log.read(TAIL).split(b"\n")
    except OSError:
        return []
    return lines[1:] if start else lines


def main(folder: str, since: str, groups: list[str]) -> int:
    """Count; ``since`` is seconds into the past, or ``current`` for the time when this link was made."""
    moment = os.lstat("current").st_mtime if since == "current" else time.time() - float(since)
    # Raises when the logs cannot be read, so that this is not taken for "no job has ended".
    logs = sorted(Path(folder).iterdir()) if groups else []
    found: dict[str, int] = {}
    kinds: dict[str, dict[str, int]] = {}
    said: list[str] = []
    for group in groups:
        # A log that was rotated meanwhile goes on in the file with the suffix .1. Group shop_a_1 is another
        # one than shop_a.
        name = re.compile(rf"{re.escape(group)}_[0-9]+\.log(\.1)?\Z")
        for path in logs:
            if name.match(path.name):
                failed = count(tail(path), moment, found, kinds)
                said += [f"@ log {path.name.partition('.')[0]} {line}" for line in failed]
    said = said[-SHOWN:]
    said.append(f"@ kinds {json.dumps(kinds, sort_keys=True)}")
    said.append(f"@ outcomes {json.dumps(found, sort_keys=True)}")
    sys.stdout.write("\n".join(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
