# ruff: noqa: T201 - a script prints.
"""What this host has done: ``venv/bin/python report.py [--json]``."""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from pathlib import Path

from shop import ledger

RELEASE_FILE = Path(__file__).resolve().parent / "release.json"


def main() -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(description="Show the jobs that were done on this host.")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    given = parser.parse_args()
    release = json.loads(RELEASE_FILE.read_text())["release"] if RELEASE_FILE.exists() else None
    try:
        found = {"release": release, **ledger.report()}
    except (OSError, sqlite3.Error) as exc:
        print(f"report: the ledger {ledger.default_path()} cannot be read: {exc}", file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps(found))
        return 0
    print(f"release     {release or 'none'}")
    for tenant, jobs in sorted(found["done"].items()):
        for job, count in sorted(jobs.items()):
            print(f"{count:>10}  {tenant}  {job}")
    print(f"{found['duplicates']:>10}  delivered again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
