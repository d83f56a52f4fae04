"""What a demo found, as numbers and as text."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kestrel_stack.demo.visitors import WAYS, Visit


@dataclass(frozen=True)
class Sample:
    """The jobs on the queues at `at` seconds: for a worker, for another try, and in a worker's hands."""

    at: float
    ready: int
    delayed: int
    reserved: int

    @property
    def backlog(self) -> int:
        """All jobs that are not done."""
        return self.ready + self.delayed + self.reserved


@dataclass
class Outage:
    """Everything that was observed; times in seconds since the first visitor."""

    down_at: float = 0.0
    up_at: float = 0.0
    ended_at: float = 0.0
    orders: int = 0
    workers: Sequence[str] = ()
    visits: list[Visit] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    taken: Counter[str] = field(default_factory=Counter)
    """How often the third party took each order."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """How the attempts at jobs ended, by the workers' logs."""
    parked: int = 0
    left: int = 0
    """Jobs still on the queues at the end."""

    def accepted(self, way: str) -> set[int]:
        """Return the orders of which a visitor was told that all is well."""
        return {visit.order for visit in self.visits if visit.way == way and visit.ok}

    def times_taken(self, way: str) -> list[int]:
        """Return how often the third party took each order of a way."""
        return [self.taken[f"{way}-{order}"] for order in range(self.orders)]

    def lost(self, way: str) -> int:
        """Return how many orders the third party never heard of."""
        return sum(times == 0 for times in self.times_taken(way))

    def doubled(self, way: str) -> int:
        """Return how many orders the third party took more than once."""
        return sum(times > 1 for times in self.times_taken(way))

    @property
    def enqueued(self) -> int:
        """How many jobs were put on a queue."""
        return sum(visit.ok for visit in self.visits if visit.way == "queued")

    @property
    def jobs_lost(self) -> int:
        """Orders that were enqueued, are neither waiting nor parked, and of which nobody was told."""
        missing = sum(self.taken[f"queued-{order}"] == 0 for order in self.accepted("queued"))
        return max(0, missing - self.left - self.parked)

    def faults(self) -> list[str]:
        """Return everything in which the queue did not keep its promise, with its count."""
        checks = [
            ("orders not enqueued", self.orders - len(self.accepted("queued"))),
            ("jobs not done in time", self.left),
            ("jobs parked", self.parked),
            ("jobs lost", self.jobs_lost),
            ("orders doubled", self.doubled("queued")),
        ]
        return [f"{what}: {count}" for what, count in checks if count]

    def phase(self, way: str, down: bool) -> list[Visit]:
        """Return the visits of a way that the outage touched, or those that it did not."""
        return [
            visit
            for visit in self.visits
            if visit.way == way
            and (visit.at < self.up_at and visit.at + visit.seconds > self.down_at) == down
        ]


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that is at least as large as `share` of them; 0 without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def outcomes(logs: Iterable[Path]) -> Counter[str]:
    """Count how the attempts at jobs ended, from the workers' logs."""
    found: Counter[str] = Counter()
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, Mapping) and entry.get("event") == "job":
                found[str(entry.get("outcome"))] += 1
    return found


def tables(outage: Outage) -> str:
    """Return the two tables: what visitors saw, and what became of their orders."""
    rows = []
    for down in (False, True):
        for way in WAYS:
            visits = outage.phase(way, down)
            times = [visit.seconds for visit in visits]
            rows.append(
                [
                    f"API {'down' if down else 'up'}, {way}",
                    str(len(visits)),
                    str(sum(not visit.ok for visit in visits)),
                    *(duration(percentile(times, share)) for share in (0.5, 0.99, 1.0)),
                ]
            )
    visitors = table(["what visitors saw", "requests", "failed", "p50", "p99", "max"], rows)
    rows = []
    for way in WAYS:
        done = outage.orders - outage.lost(way)
        rows.append([way, *map(str, (outage.orders, done, outage.lost(way), outage.doubled(way)))])
    orders = table(["what the API got", "orders", "arrived", "never", "twice"], rows)
    ended = outage.outcomes
    figures = (
        *(outage.enqueued, ended["done"], ended["retry"], outage.parked),
        *(outage.jobs_lost, outage.doubled("queued")),
    )
    jobs = table(
        ["jobs", "enqueued", "done", "retried", "parked", "lost", "doubled"],
        [[", ".join(outage.workers), *map(str, figures)]],
    )
    return f"{visitors}\n\n{orders}\n\n{jobs}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a head: the first column to the left, the others to the right."""
    widths = [max(len(row[number]) for row in (head, *rows)) for number in range(len(head))]
    widths[0] = max(widths[0], 24)
    widths[1:] = [max(width, 8) for width in widths[1:]]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  " + "  ".join(cells)

    rule = "  " + "-" * (sum(widths) + 2 * len(widths) - 2)
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def duration(seconds: float) -> str:
    """Return a time for people: ``0.8 ms``, ``24 ms``, ``3.02 s``."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"
