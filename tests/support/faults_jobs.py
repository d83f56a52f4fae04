"""What the fault matrix does with jobs beside its steady load: extra ones, parked ones, their waits."""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from kestrel_stack.queue import Producer
from support.fault_lab import FaultLab, Host, Run

LOGS = "/var/log/kestrel-stack/shop"


def enqueue(
    lab: FaultLab, run: Run, queue: str, count: int, data: Mapping[str, Any], delay: int | None = None
) -> list[str]:
    """Enqueue jobs beside those of the load, to be counted with them; return their ids."""
    ids = []
    with Producer("shop", "acme", servers=lab.servers(), queues=list(lab.queues), timeout=5) as producer:
        for _ in range(count):
            job = str(uuid.uuid4())
            whole = {"run": run.load.run, "sent": time.time(), "seconds": 0.01, **data}
            due = time.time() + (delay or 0)
            producer.enqueue("Note", whole, queue=queue, id=job, delay=delay)
            with run.load.counting:
                run.load.enqueued += 1
            if delay:
                run.load.delayed[job] = due
            run.load.queue_of[job] = queue
            run.load.acknowledged[job] = time.time()
            ids.append(job)
    return ids


def parked(lab: FaultLab) -> dict[str, int]:
    """How many jobs of which queue are parked, on all servers; queues without any are left out."""
    found: dict[str, int] = {}
    for name in lab.queue_hosts:
        stats = lab.inside(name, f"curl -s http://{lab.addresses[name]}:2223/stats.txt", check=False)
        for queue, count in re.findall(r"q/shop_(\w+)_errors/items: ([1-9]\d*)", stats):
            found[queue] = found.get(queue, 0) + int(count)
    return found


def requeue(lab: FaultLab, host: str = "worker1") -> int:
    """Give each parked job a new start, as an operator does; return how many were parked."""
    there = parked(lab)
    for queue in there:
        lab.inside(host, f"kestrel-stack-jobs requeue {queue} --all 2>/dev/null || true")
    return sum(there.values())


def requeue_until_done(lab: FaultLab, run: Run, seconds: float = 240) -> int:
    """Requeue until all that was acknowledged before the fault's end is done; return how many in all."""
    count = 0

    def done() -> bool:
        nonlocal count
        count += requeue(lab)
        # Delayed ones, too, unlike `Run.unfinished`: they may be parked like any other.
        before = {job for job, when in dict(run.load.acknowledged).items() if when <= run.ended}
        return not before - {note.id for note in lab.notes(run.load)}

    run.recovered(done, seconds)
    return count


def log_lines(host: Host, *words: str, group: str = "shop_*", since: float = 0) -> list[str]:
    """The lines that a host's workers have logged since then, with all these words in them."""
    find = f"find {LOGS} -name '{group}.log*' -newermt @{since:.0f}"
    greps = " | ".join(f"grep -h -F -e '{word}'" for word in words)
    lines = host.run(f"{find} -exec cat {{}} + | {greps} | tail -n 20000 || true").splitlines()
    return sorted((line for line in lines if logged(line) >= since), key=logged)


def logged(line: str) -> float:
    """When a line was logged, in seconds since the epoch; 0 where it does not say."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return datetime.fromisoformat(json.loads(line)["time"]).timestamp()
    return 0.0


def told(line: str) -> str:
    """The telling part of a worker's line."""
    try:
        found = json.loads(line)
    except ValueError:
        return line
    names = ("queue", "attempt", "outcome", "reason", "delay", "error", "server", "size", "not_reported")
    return " ".join(
        [found["event"], *(f"{name}={found[name]}" for name in names if found.get(name) is not None)]
    )


def p99(waits: Iterable[float]) -> float:
    """The wait that all but one in a hundred stay below, in seconds."""
    ordered = sorted(waits)
    return ordered[int(len(ordered) * 0.99)] if ordered else 0.0


def waits(lab: FaultLab, run: Run, queues: Iterable[str]) -> list[float]:
    """How long each job of these queues that was enqueued while the fault lasted has waited, in seconds."""
    wanted = set(queues)
    end = run.ended or time.time()
    return [
        note.wait
        for note in lab.notes(run.load)
        if run.load.queue_of.get(note.id) in wanted
        and run.began <= note.sent <= end
        and note.id not in run.load.delayed
    ]
