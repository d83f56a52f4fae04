"""What queues and servers held and did over time, for who asks: at equal distances, from the tier that fits.

A slot of which nothing was recorded is a gap; see `ticks` for what is, and `recorder` for how it gets there.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from kestrel_stack.web.record.ticks import MAX_TIME, QUEUE, SERVER, UNKNOWN, Moment, Sum, Tier, load, scan

MAX_POINTS = 2000


@dataclass(frozen=True)
class Sample:
    """A queue within the time that begins at `at`; None is a gap.

    `items`, `age_ms`, `open` and `parked` are the largest, `rate_in` and `rate_out` the mean, `peak_in` and
    `peak_out` the largest rates per second.
    """

    at: float
    items: int | None = None
    age_ms: int | None = None
    rate_in: float | None = None
    rate_out: float | None = None
    open: int | None = None
    parked: int | None = None
    peak_in: float | None = None
    peak_out: float | None = None


@dataclass(frozen=True)
class ServerSample:
    """A server within the time that begins at `at`; all None while it did not answer."""

    at: float
    items: int | None = None
    connections: int | None = None
    rate_in: float | None = None
    rate_out: float | None = None
    peak_in: float | None = None
    peak_out: float | None = None


@dataclass(frozen=True)
class _Grid:
    """Slots of equal width that a reader wants, and the tier to take them from."""

    tier: int
    first: int
    width: int
    count: int
    end: int

    def slot(self, at: int) -> int:
        return (at - self.first) // self.width


def _grid(all_tiers: tuple[Tier, ...], start: float, end: float, points: int, now: float) -> _Grid | None:
    if not (math.isfinite(start) and math.isfinite(end)) or points < 1:
        return None
    low, high = max(0, math.floor(start)), min(MAX_TIME, math.ceil(end))
    if low >= high:
        return None
    wanted = max(1, math.ceil((high - low) / min(points, MAX_POINTS)))
    # Of the tiers that reach back far enough the coarsest that still shows so many points.
    reaching = [n for n, tier in enumerate(all_tiers) if low >= now - tier.keep] or [len(all_tiers) - 1]
    tier = max((n for n in reaching if all_tiers[n].step <= wanted), default=reaching[0])
    step = all_tiers[tier].step
    width = math.ceil(wanted / step) * step
    first = low // width * width
    return _Grid(tier, first, width, math.ceil((high - first) / width), high)


def _sums(
    connection: sqlite3.Connection,
    all_tiers: tuple[Tier, ...],
    grid: _Grid,
    name: str,
    latest: Moment | None = None,
) -> list[Sum | None]:
    sums: list[Sum | None] = [None] * grid.count
    row = connection.execute("SELECT id FROM series WHERE name = ?", (name,)).fetchone()
    start = grid.first
    # What a coarse tier does not have yet is taken from a finer one.
    for tier in range(grid.tier if row else -1, -1, -1):
        for at, values in load(connection, all_tiers[tier], tier, row[0], start, grid.end):
            start = at + all_tiers[tier].step
            if values is not UNKNOWN:
                slot = grid.slot(at)
                found = sums[slot] = sums[slot] or Sum()
                found.add(values)
    # What the tick that is not over yet shows.
    if latest is not None and start <= latest[0] < grid.end and name in latest[1]:
        slot = grid.slot(latest[0])
        found = sums[slot] = sums[slot] or Sum()
        found.add(latest[1][name])
    return sums


def queue_samples(
    connection: sqlite3.Connection,
    all_tiers: tuple[Tier, ...],
    key: str,
    start: float,
    end: float,
    points: int,
    now: float,
    latest: Moment | None = None,
) -> list[Sample]:
    """Return at most `points` + 1 samples from `start` to `end`, one for each slot of equal width."""
    grid = _grid(all_tiers, start, end, points, now)
    if grid is None:
        return []
    samples = []
    for slot, found in enumerate(_sums(connection, all_tiers, grid, QUEUE + key, latest)):
        values = UNKNOWN if found is None else found.values()
        items, age, rate_in, rate_out, peak_in, peak_out, held, parked = values
        samples.append(
            Sample(
                grid.first + slot * grid.width,
                items,
                age,
                _rate(rate_in),
                _rate(rate_out),
                held,
                parked,
                _rate(peak_in),
                _rate(peak_out),
            )
        )
    return samples


def server_samples(
    connection: sqlite3.Connection,
    all_tiers: tuple[Tier, ...],
    address: str,
    start: float,
    end: float,
    points: int,
    now: float,
    latest: Moment | None = None,
) -> list[ServerSample]:
    """Return a server's samples like `queue_samples`."""
    grid = _grid(all_tiers, start, end, points, now)
    if grid is None:
        return []
    samples = []
    for slot, found in enumerate(_sums(connection, all_tiers, grid, SERVER + address, latest)):
        values = UNKNOWN if found is None else found.values()
        items, _, rate_in, rate_out, peak_in, peak_out, connections, _ = values
        samples.append(
            ServerSample(
                grid.first + slot * grid.width,
                items,
                connections,
                _rate(rate_in),
                _rate(rate_out),
                _rate(peak_in),
                _rate(peak_out),
            )
        )
    return samples


def all_sparks(
    connection: sqlite3.Connection, all_tiers: tuple[Tier, ...], seconds: float, points: int, now: float
) -> tuple[dict[str, list[float | None]], int]:
    """Return the backlog of every queue over the last `seconds`, and how many values each list has."""
    grid = _grid(all_tiers, now - seconds, now, points, now)
    if grid is None:
        return {}, 0
    sparks: dict[str, list[float | None]] = {}
    start = grid.first
    for tier in range(grid.tier, -1, -1):
        for at, values in scan(connection, all_tiers, tier, start, grid.end):
            start, slot = at + all_tiers[tier].step, grid.slot(at)
            for name, (items, *_) in values.items():
                if items is None:
                    continue
                spark = sparks.get(name)
                if spark is None:
                    spark = sparks[name] = [None] * grid.count
                known = spark[slot]
                if known is None or items > known:
                    spark[slot] = items
    return {
        name.removeprefix(QUEUE): spark for name, spark in sparks.items() if name.startswith(QUEUE)
    }, grid.count


def complete_sparks(table: dict[str, list[float | None]], latest: Moment, count: int) -> None:
    """Put the last view's backlogs where nothing newer was recorded."""
    for name, (items, *_) in latest[1].items():
        if name.startswith(QUEUE) and items is not None:
            spark = table.setdefault(name.removeprefix(QUEUE), [None] * count)
            spark[-1] = items if spark[-1] is None else max(items, spark[-1])


def some_sparks(
    connection: sqlite3.Connection,
    all_tiers: tuple[Tier, ...],
    wanted: Iterable[str],
    seconds: float,
    points: int,
    now: float,
    latest: Moment | None = None,
) -> dict[str, list[float | None]]:
    """Return the backlog of a few queues over the last `seconds`."""
    grid = _grid(all_tiers, now - seconds, now, points, now)
    if grid is None:
        return {key: [] for key in wanted}
    return {
        key: [
            None if found is None else found.levels[0]
            for found in _sums(connection, all_tiers, grid, QUEUE + key, latest)
        ]
        for key in wanted
    }


def _rate(hundredths: int | None) -> float | None:
    return None if hundredths is None else hundredths / 100
