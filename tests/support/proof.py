"""The tables of docs/proof.md, from the rows that the tests in tests/faults/lab write.

``python -m support.proof [FILE…]`` (with src and tests in PYTHONPATH) puts them between the document's
markers; with ``--print`` they are only shown. Of several rows of the same fault the last one counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kestrel_stack.lab import image

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/proof.md"
RATE = 200.0
"""Jobs a second, where nothing else is said."""
VARIABLE = "KESTREL_STACK_PROOF"
"""Names the file that rows are added to; by default it is `.lab/proof/rows.jsonl` in the checkout."""
SECTIONS = ("broker", "workers", "services", "deploys", "two at once", "power loss")
FLAVORS = ("embedded", "stand-in", "release")
HEADER = ("fault", "jobs", "refused", "lost", "doubled", "recovered after", "what an operator sees")
POWER_LOSS = SECTIONS[-1]
POWER_HEADER = ("what", "jobs acknowledged", "not on the disk, at most", "for at most", "seen")
HOW = "bin/test --long faults"


class ProofError(Exception):
    """The document or the rows cannot be used; the text is one line for a person."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of the jobs of a load during one fault; docs/proof.md says what each number means."""

    section: str
    fault: str
    flavor: str
    """`stand-in` is a release by tests/support/kestrel_standin: its layout and launch, not its program."""
    suite: str
    enqueued: int
    acknowledged: int
    refused: int
    done: int
    lost: int
    doubled: int
    recovery_seconds: float | None
    allowed: str
    said: str
    at: str
    machine: str
    commit: str
    rate: float = RATE
    """Jobs a second that the load was to be."""
    failed: str = ""
    """What was not as promised."""
    series: dict[str, Any] | None = None
    """How many were acknowledged and done in each step of time, and when the fault was: for a picture."""

    @property
    def name(self) -> tuple[str, str, str, str]:
        """What a later row of the same fault replaces it by."""
        return self.section, self.fault, self.flavor, self.suite


# --- rows ------------------------------------------------------------------------------------------------


def rows_file() -> Path:
    """Return the file that rows are added to."""
    return Path(os.environ.get(VARIABLE) or ROOT / ".lab/proof/rows.jsonl")


def add(row: Row, file: Path | None = None) -> None:
    """Add a row to a file, as one line."""
    file = file or rows_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(dataclasses.asdict(row)) + "\n")


def read(files: Iterable[Path]) -> list[Row]:
    """Return the last row of each fault, in the order in which the faults first came."""
    found: dict[tuple[str, ...], Row] = {}
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ProofError(f"{file}: no such file; `{HOW}` writes {rows_file()}") from None
        for number, line in enumerate(text.splitlines(), 1):
            try:
                row = Row(**json.loads(line))
            except (TypeError, ValueError) as error:
                raise ProofError(f"{file}:{number}: not a row: {error}") from None
            if row.section not in SECTIONS or row.flavor not in FLAVORS:
                raise ProofError(f"{file}:{number}: no such section or flavor: {row.section}, {row.flavor}")
            found[row.name] = row
    return list(found.values())


def now() -> str:
    """Return the time, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime())


def machine() -> str:
    """Return what a row was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    kernel = platform.release()
    python = platform.python_version()
    return f"{os.cpu_count()} cores, {memory:.0f} GB, Linux {kernel}, {system}, Python {python}"


def commit() -> str:
    """Return the commit that was tried, with a `+` where the files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "php", "ansible", "templates")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if changed else "")


# --- tables ----------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Return the table of one section's rows, with its totals and what they were measured on."""
    if rows[0].section == POWER_LOSS:
        # No sum of these would mean anything.
        lines = [
            joined(POWER_HEADER),
            "|---|---:|---:|---:|---|",
            *(joined(power_cells(row)) for row in rows),
        ]
        return "\n".join([*lines, "", *origin(rows)])
    letters = reasons(rows)
    lines = [joined(HEADER), "|---|---:|---:|---:|---|---:|---|"]
    lines += [joined(cells(row, letters)) for row in rows]
    summed = ("acknowledged", "refused", "lost", "doubled")
    totals = [str(sum(getattr(row, name) for row in rows)) for name in summed]
    lines.append(joined(["all", *totals, "", ""]))
    why = [f"Doubled: {'; '.join(f'({letter}) {reason}' for reason, letter in letters.items())}.", ""]
    return "\n".join([*lines, "", *(why if letters else []), *origin(rows)])


def reasons(rows: Iterable[Row]) -> dict[str, str]:
    """Return a letter for each reason why jobs may be doubled."""
    every = [reason for row in rows for reason in allowed(row)[1]]
    return {reason: chr(ord("a") + number) for number, reason in enumerate(dict.fromkeys(every))}


def allowed(row: Row) -> tuple[str, list[str]]:
    """Return how many may be doubled ("at most 14"), and the reasons."""
    most, _, why = plain(row.allowed).partition(": ")
    return most, why.split("; ") if why else []


def joined(texts: Iterable[str]) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(texts)} |"


def power_cells(row: Row) -> list[str]:
    """Return the cells of a row that says what a power cut would have cost at its worst moment."""
    longest = f"{row.recovery_seconds:.2f} s" if row.recovery_seconds else "–"
    return [plain(row.fault), str(row.acknowledged), str(row.lost), longest, plain(row.said)]


def cells(row: Row, letters: Mapping[str, str]) -> list[str]:
    """Return a row's cells, in the order of HEADER; `letters` stand for reasons."""
    recovery = "–" if row.recovery_seconds is None else f"{row.recovery_seconds:.1f} s"
    fault = plain(row.fault)
    if row.flavor != "embedded":
        fault += " *(release)*" if row.flavor == "release" else " *(stand-in for a release)*"
    if row.suite != image.SUITES[0]:
        fault += f" *({row.suite})*"
    if row.failed:
        fault += " **(failed)**"
    most, why = allowed(row)
    doubled = (
        f"{row.doubled} ({', '.join([most, *(letters[reason] for reason in why)])})"
        if most
        else f"{row.doubled}"
    )
    return [
        fault,
        str(row.acknowledged),
        str(row.refused),
        str(row.lost) if row.lost == 0 else f"**{row.lost}**",
        doubled,
        recovery,
        plain(row.said),
    ]


def origin(rows: Sequence[Row]) -> list[str]:
    """Return the lines that say when, where and from what the rows come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        at = "" if row.rate == RATE else f", **at {row.rate:g} jobs a second**"
        found.setdefault(row.machine + at, []).append(row)
    lines = []
    for name, group in found.items():
        days = sorted({row.at.split()[0] for row in group})
        span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        commits = ", ".join(dict.fromkeys(row.commit for row in group))
        lines.append(f"Measured {span} on {name}; commit {commits}.")
    return lines


def plain(text: str) -> str:
    """Return text as it may stand in a cell, without addresses that are others the next time."""
    text = re.sub(r"\b172(\.\d+){3}\b", "ADDRESS", text)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def markers(section: str) -> tuple[str, str]:
    """Return the lines that a section's table stands between."""
    return f"<!-- proof: {section} -->", f"<!-- proof: end of {section} -->"


def put(text: str, section: str, content: str, name: str = "docs/proof.md") -> str:
    """Return the document with the content between a section's markers."""
    first, last = markers(section)
    if text.count(first) != 1 or text.count(last) != 1 or text.index(first) > text.index(last):
        raise ProofError(f"{name}: needs the lines `{first}` and `{last}`, once each and in this order")
    before, rest = text.split(first)
    return f"{before}{first}\n{content}\n{last}{rest.split(last)[1]}"


def write(document: Path, rows: Sequence[Row]) -> list[str]:
    """Put the tables into a document; a section without rows stays as it is. Return a line for each table."""
    try:
        text = document.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ProofError(f"{document}: no such file") from None
    said = []
    for section in SECTIONS:
        group = [row for row in rows if row.section == section]
        if group:
            text = put(text, section, table(group), document.name)
            lost = "" if section == POWER_LOSS else f", {sum(row.lost for row in group)} jobs lost"
            failed = sum(bool(row.failed) for row in group)
            said.append(f"{section}: {len(group)} rows{lost}{f', {failed} failed' if failed else ''}")
    document.write_text(text, encoding="utf-8")
    return said


# --- command line ----------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 when it is done, 1 when it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m support.proof", description="Put what the fault matrix found into docs/proof.md."
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: .lab/proof/rows.jsonl")
    parser.add_argument("--print", action="store_true", dest="show", help="show the tables, write nothing")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="default: docs/proof.md")
    parser.add_argument("--picture", metavar="FAULT", help="draw docs/proof.svg from the row of this fault")
    options = parser.parse_args(argv)
    files = options.files or [rows_file()]
    try:
        if options.show:
            show(files)
            return 0
        rows = read(files)
        if options.picture:
            from support.proof_picture import draw

            draw(_pictured(rows, options.picture), options.document.with_suffix(".svg"))
        for line in write(options.document, rows):
            say(line)
    except ProofError as error:
        sys.stderr.write(f"proof: {error}\n")
        return 1
    return 0


def show(files: Sequence[Path]) -> None:
    """Print the tables, and how to put them into the document."""
    if not any(file.exists() for file in files):
        say(f"no rows in {', '.join(map(str, files))}: `{HOW}` writes them")
        return
    rows = read(files)
    for section in SECTIONS:
        if group := [row for row in rows if row.section == section]:
            say(f"\n{section}\n\n{table(group)}")
    names = " ".join(map(str, files))
    say(f"\nTo write docs/proof.md: PYTHONPATH=src:tests python -m support.proof {names}")


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


def _pictured(rows: Sequence[Row], fault: str) -> Row:
    for row in rows:
        if row.fault == fault and row.series:
            return row
    names = "; ".join(row.fault for row in rows if row.series)
    raise ProofError(f"no row of {fault!r} that could be drawn; there are: {names or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
