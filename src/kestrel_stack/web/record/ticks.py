"""How history is kept: in ticks, of three tiers, fine and short, coarse and long.

A *tick* is one moment of a tier. Of the views within it each queue keeps its largest backlog, age, open reads
and parked jobs, so that a peak of a second is still seen in a month; its rates are means, so that the area
under a line stays the number of jobs, and beside them stand their largest values.

Only what differs from the tick before is written: a queue in which nothing moves costs a row per *whole*
tick, which has every queue and from which a reader starts. A tick that was not recorded, because nothing ran
or nobody answered, is a gap and never a zero. When the clock went back, the time lived again replaces what
was recorded of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

DAY = 86_400
QUEUE, SERVER = "q:", "s:"
MAX_TIME = 1 << 40
_COLUMNS = "items, age_ms, rate_in, rate_out, peak_in, peak_out, open, parked"

Values = tuple[int | None, ...]
"""In the order of `_COLUMNS`; rates in hundredths."""
Moment = tuple[int, Mapping[str, Values]]
"""What a view said of everything, and when."""
UNKNOWN: Values = (None,) * 8


@dataclass(frozen=True)
class Tier:
    """One resolution; seconds."""

    step: int
    keep: int
    whole_every: int
    """Ticks from one with every queue to the next."""


def tiers(days: int) -> tuple[Tier, ...]:
    """Return the tiers of a history of so many days."""
    keep = max(1, days) * DAY
    return (
        Tier(10, min(keep, 3 * 3600), 30),
        Tier(60, min(keep, 3 * DAY), 180),
        Tier(600, keep, 144),
    )


class Sum:
    """What one queue showed so far within a tick."""

    __slots__ = ("levels", "means", "peaks")

    def __init__(self) -> None:
        self.levels: list[int | None] = [None] * 4
        self.means: list[list[int]] = [[0, 0], [0, 0]]
        self.peaks: list[int | None] = [None, None]

    def add(self, values: Values) -> None:
        """Take in what it shows now."""
        items, age, rate_in, rate_out, peak_in, peak_out, held, parked = values
        levels = self.levels
        for index, level in enumerate((items, age, held, parked)):
            known = levels[index]
            if level is not None and (known is None or level > known):
                levels[index] = level
        for index, (rate, peak) in enumerate(((rate_in, peak_in), (rate_out, peak_out))):
            if rate is not None:
                self.means[index][0] += rate
                self.means[index][1] += 1
            known = self.peaks[index]
            if peak is not None and (known is None or peak > known):
                self.peaks[index] = peak

    def values(self) -> Values:
        """Return the largest levels and rates, and the mean rates."""
        items, age, held, parked = self.levels
        mean_in, mean_out = (round(total / count) if count else None for total, count in self.means)
        return (items, age, mean_in, mean_out, *self.peaks, held, parked)


def scan(
    connection: sqlite3.Connection, all_tiers: tuple[Tier, ...], tier: int, start: int, end: int
) -> Iterator[tuple[int, Mapping[str, Values]]]:
    """Yield each tick of a tier with what is known of every series then; the mapping is one that changes."""
    names = dict(connection.execute("SELECT id, name FROM series"))
    base = _base(connection, all_tiers[tier], tier, start)
    ticks = connection.execute(
        "SELECT at, whole FROM ticks WHERE tier = ? AND at >= ? AND at < ? ORDER BY at", (tier, base, end)
    ).fetchall()
    rows = connection.execute(
        f"SELECT at, series, {_COLUMNS} FROM history"  # noqa: S608
        " WHERE tier = ? AND at >= ? AND at < ? ORDER BY at",
        (tier, base, end),
    )
    values: dict[str, Values] = {}
    row = next(rows, None)
    for at, whole in ticks:
        if whole:
            values = {}
        while row is not None and row[0] <= at:
            if row[0] == at and row[1] in names:
                values[names[row[1]]] = row[2:]
            row = next(rows, None)
        if at >= start:
            yield at, values


def load(
    connection: sqlite3.Connection, about: Tier, tier: int, series: int, start: int, end: int
) -> Iterator[tuple[int, Values]]:
    """Yield each tick of a tier with one series' values."""
    rows = connection.execute(
        f"SELECT t.at, t.whole, h.series, {_COLUMNS} FROM ticks t LEFT JOIN history h"  # noqa: S608
        " ON h.tier = t.tier AND h.at = t.at AND h.series = ?"
        " WHERE t.tier = ? AND t.at >= ? AND t.at < ? ORDER BY t.at",
        (series, tier, _base(connection, about, tier, start), end),
    )
    values = UNKNOWN
    for at, whole, found, *columns in rows:
        if found is not None:
            values = tuple(columns)
        elif whole:
            values = UNKNOWN
        if at >= start:
            yield at, values


def _base(connection: sqlite3.Connection, about: Tier, tier: int, start: int) -> int:
    (base,) = connection.execute(
        "SELECT max(at) FROM ticks WHERE tier = ? AND at <= ? AND at >= ? AND whole = 1",
        (tier, start, start - (about.whole_every + 1) * about.step),
    ).fetchone()
    return start if base is None else base
