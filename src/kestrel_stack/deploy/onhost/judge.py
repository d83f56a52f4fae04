"""Whether the workers of a host run from a release. Pure, and its own program.

The switch script sends this very file to the host and pipes the lines ``@ workers …`` into it, so that a host
judges its workers even when nobody is connected to it any more, by the rule that the plan applies to what it
was told. For that reason it needs nothing but the standard library, and nothing of this package.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MIN_UPTIME = 7
"""Seconds a worker must have been up to count.

Supervisor says RUNNING after startsecs (2), but a consumer whose application does not import stays until
it is 5 seconds old, so that supervisor takes its exit 78 for final.
"""
WEB = "web"
"""Name of the group of what serves pages: it answers before it reports, so its age proves nothing more."""

DOWN_SECONDS = 5
"""A worker that has done its share of jobs is EXITED until supervisor starts it again; not for longer."""

WAIT, FINAL = 10, 12
"""Exit codes of the program beside 0: not yet; never."""


@dataclass(frozen=True)
class Verdict:
    """How the workers of a host stand against a release: ok, still to wait, or failed for good."""

    ok: bool
    final: bool
    reason: str = ""
    down: bool = False
    """A worker is EXITED or STOPPED: for a moment that is normal, for longer it is not."""
    worker: str = ""
    """The worker, or else the group, that the reason is about."""


def judge(groups: Sequence[Any], release: str, min_uptime: int = MIN_UPTIME) -> Verdict:
    """Say whether every worker runs from ``release`` and has been up for ``min_uptime`` seconds.

    ``groups`` are Groups as ``hoststate`` has them. FATAL is final, supervisor has given up; every other
    state may still come right.
    """
    waiting = worker = ""
    down = False
    for group in groups:
        if group.error is not None:
            return Verdict(False, True, f"workers {group.name}: {group.error}", worker=group.name)
        if not group.processes:
            reason = f"workers {group.name}: there is no process in this group"
            return Verdict(False, True, reason, worker=group.name)
        for process in group.processes:
            reason = ""
            if process.state == "FATAL":
                return Verdict(False, True, f"worker {process.name} is FATAL", worker=process.name)
            if process.state != "RUNNING":
                reason = f"worker {process.name} is {process.state}"
                down = down or process.state in ("EXITED", "STOPPED")
            elif process.release != release:
                reason = f"worker {process.name} runs from {process.release or 'an unknown release'}"
            elif process.uptime < min_uptime and group.name != WEB:
                reason = f"worker {process.name} has been up for {process.uptime} s only"
            if reason and not waiting:
                waiting, worker = reason, process.name
    return Verdict(not waiting, False, waiting, down, worker)


def watch(
    groups: Sequence[Any],
    release: str,
    memory: dict[str, dict[str, float]],
    now: float,
    min_uptime: int = MIN_UPTIME,
) -> Verdict:
    """Say the same after several looks, of which ``memory`` tells; ``now`` is in seconds.

    Every worker has to be seen well once. On a busy host some are always between two lives, since each ends
    after its share of jobs, so that a moment in which all are well may never come.
    """
    seen, down = memory.setdefault("seen", {}), memory.setdefault("down", {})
    waiting = Verdict(True, False)
    for group in groups:
        if group.error is not None or not group.processes:
            return judge([group], release, min_uptime)
        for process in group.processes:
            one = judge([_Alone(group.name, [process])], release, min_uptime)
            if one.final:
                return one
            if one.ok:
                seen[process.name] = now
            since = down.setdefault(process.name, now) if one.down else down.pop(process.name, now)
            if one.down and now - since > DOWN_SECONDS:
                return Verdict(False, True, f"{one.reason} for {now - since:.0f} s", True, process.name)
            if process.name not in seen and waiting.ok:
                waiting = one
    return waiting


@dataclass(frozen=True)
class _Alone:
    """A group with one of its workers."""

    name: str
    processes: Sequence[Any]
    error: None = None


def read(lines: Iterable[str]) -> list[Any]:
    """Read the lines ``@ workers GROUP CODE JSON-or-complaint`` into groups that `judge` understands."""
    groups = []
    for line in lines:
        if not line.startswith("@ workers "):
            continue
        _, _, name, code, *rest = line.rstrip("\n").split(" ", 4)
        said = rest[0].strip() if rest else ""
        try:
            items = json.loads(said)["processes"] if code == "0" else None
        except (ValueError, KeyError, TypeError):
            items = None
        if not isinstance(items, list):
            error = said or f"the helper ended with exit code {code}"
            groups.append(SimpleNamespace(name=name, processes=[], error=error))
            continue
        processes = [
            SimpleNamespace(
                name=str(item.get("name")),
                state=str(item.get("state")),
                uptime=int(item.get("uptime") or 0),
                release=item.get("release"),
            )
            for item in items
        ]
        groups.append(SimpleNamespace(name=name, processes=processes, error=None))
    return groups


def main(release: str, lines: Iterable[str], path: str) -> int:
    """Judge what is piped in, with the memory in the file ``path``; print the reason and whom it is about."""
    memory = json.loads(Path(path).read_text()) if Path(path).exists() else {}
    verdict = watch(read(lines), release, memory, time.monotonic())
    Path(path).write_text(json.dumps(memory))
    sys.stdout.write(f"{verdict.reason}\n{verdict.worker}\n")
    if verdict.ok:
        return 0
    return FINAL if verdict.final else WAIT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.stdin, sys.argv[2]))
