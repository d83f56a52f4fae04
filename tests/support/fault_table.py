"""The table of docs/deploy.md, from what the tests of faults noted: ``fault_table.py FILE…``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

# Of several files or runs, a test's last line counts.
COLUMNS = ("fault", "exit", "hosts afterwards", "what fab says last", "jobs", "lost", "twice")
LONGEST = 180


def rows(files: list[Path]) -> list[dict]:
    found: dict[str, dict] = {}
    for file in files:
        for line in file.read_text().splitlines():
            row = json.loads(line)
            found[row["test"]] = row
    grouped: dict[str, list[dict]] = {}
    for row in found.values():
        grouped.setdefault(row["row"], []).append(row)
    return [merged(group) for group in grouped.values()]


def merged(group: list[dict]) -> dict:
    """One row of several tests of the same fault, such as one for each step."""
    exits = Counter(", then ".join(map(str, row["exit"])) for row in group)
    places = Counter(row.get("place") or place(row["hosts"]) for row in group)
    return {
        "fault": group[0]["row"] + (f" ({len(group)} tests)" if len(group) > 1 else ""),
        "exit": counted(exits),
        "hosts afterwards": counted(places),
        "what fab says last": plain(group[-1]["says"]),
        "jobs": sum(row["jobs"] for row in group),
        "lost": sum(row["lost"] for row in group),
        "twice": sum(row["doubled"] for row in group),
    }


def counted(values: Counter) -> str:
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value} ({count}×)" for value, count in values.most_common())


def place(hosts: dict[str, str]) -> str:
    kinds = set(hosts.values())
    if len(kinds) == 1:
        return f"all {kinds.pop()}"
    return ", ".join(f"{host} {where}" for host, where in hosts.items())


def plain(text: str) -> str:
    text = text.removeprefix("fab: ")
    text = re.sub(r"\b\d{8}T\d{6}Z-[0-9a-f]{8}\b", "R", text)
    text = re.sub(r"(?<=--env )\S+?(?=[;,]|$| )", "lab", text)
    text = re.sub(r"/tmp/\S+/application\b", "APP", text)
    text = re.sub(r"\b\d+\.\d+\.\d+\.\d+\b", "ADDRESS", text)
    text = re.sub(r"/\S*/(known_hosts|config|ssh_config)\b", r"\1", text)
    text = re.sub(r"\b[\w-]+@[\w-]+ \(pid \d+\)( since [^\s;]+)?", "ann@desk (pid 4711)", text)
    text = text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m support.fault_table", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="rows, as the tests wrote them")
    try:
        table = rows(parser.parse_args().files)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(f"{row[name]}" for name in COLUMNS) + " |" for row in table]
    totals = {name: sum(row[name] for row in table) for name in ("jobs", "lost", "twice")}
    lines.append(f"| all | | | | {totals['jobs']} | {totals['lost']} | {totals['twice']} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
