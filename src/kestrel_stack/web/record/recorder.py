"""Makes ticks of views, writes them, and removes what is too old; see `ticks`."""

from __future__ import annotations

import math
import sqlite3
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kestrel_stack.web.model import ServerState, View
from kestrel_stack.web.record import ticks
from kestrel_stack.web.record.ticks import DAY, MAX_TIME, QUEUE, SERVER, UNKNOWN, Moment, Sum, Values, scan

MAX_SERIES = 10_000
"""So many queues and servers have a history; of more the first by name."""
TOTALS = ""

_MAX_PENDING = 60


@dataclass
class _Open:
    """The tick of a tier that is not over."""

    at: int
    sums: dict[str, Sum] = field(default_factory=dict)


@dataclass(frozen=True)
class _Tick:
    tier: int
    at: int
    values: Mapping[str, Values]


@dataclass
class _Written:
    """What a reader knows after the last tick of a tier that was written."""

    at: int
    since_whole: int
    values: dict[str, Values]


class Recorder:
    """Makes ticks of views and writes them; used by one thread only."""

    def __init__(self, days: int, interval_s: float = 2.0):
        self.tiers = ticks.tiers(days)
        self._spacing = 3 * interval_s + self.tiers[0].step
        self._open: list[_Open | None] = [None] * len(self.tiers)
        self._pending: deque[_Tick] = deque(maxlen=_MAX_PENDING)
        self._written: list[_Written | None] = [None] * len(self.tiers)
        self._series: dict[str, int] = {}
        self._last_values: dict[str, Values] = {}
        self._last_view_at: float | None = None
        self.latest: Moment | None = None
        """Of the last view, for readers in other threads."""
        self._credit = [0.0] * len(self.tiers)

    @property
    def pending(self) -> bool:
        """Whether a tick waits for being written."""
        return bool(self._pending)

    def forget(self) -> None:
        """Take nothing for written: the file is another one."""
        self._series = {}
        self._written = [None] * len(self.tiers)

    def add(self, view: View) -> None:
        """Take in a view; ticks that it ends become pending."""
        if not view.servers or not math.isfinite(view.at) or not 0 <= view.at < MAX_TIME:
            return
        values = observe(view)
        step = self.tiers[0].step
        at = int(view.at // step) * step
        current = self._open[0]
        if current is not None and at == current.at - step:
            # A clock that is set back by moments does not begin the tick before once more.
            at = current.at
        if (
            current is not None
            and current.at < at
            and self._last_view_at is not None
            and view.at - self._last_view_at <= self._spacing
        ):
            # Polls that are further apart than ticks: nothing else was seen in between.
            for missing in range(current.at + step, at, step):
                self._feed(0, missing, self._last_values)
        self._last_view_at = view.at
        self.latest = (int(view.at), values)
        # Equal values are one object, for those that wait for the disk as well.
        last = self._last_values
        self._last_values = {name: _same(last.get(name), new) for name, new in values.items()}
        self._feed(0, at, self._last_values)

    def close(self) -> None:
        """End the finest tick that is open; the coarser ones are restored from it at the next start."""
        if self._open[0] is not None:
            self._end(0)

    def _feed(self, tier: int, at: int, values: Mapping[str, Values]) -> None:
        current = self._open[tier]
        if current is not None and current.at != at:
            self._end(tier)
            current = None
        if current is None:
            current = self._open[tier] = _Open(at)
        sums = current.sums
        for name, value in values.items():
            found = sums.get(name)
            if found is None:
                found = sums[name] = Sum()
            found.add(value)

    def _end(self, tier: int) -> None:
        current = self._open[tier]
        assert current is not None
        self._open[tier] = None
        written = self._written[tier]
        known = written.values if written is not None else {}
        tick = _Tick(
            tier, current.at, {name: _same(known.get(name), s.values()) for name, s in current.sums.items()}
        )
        self._pending.append(tick)
        if tier + 1 < len(self.tiers):
            step = self.tiers[tier + 1].step
            self._feed(tier + 1, current.at // step * step, tick.values)

    def restore(self, connection: sqlite3.Connection, now: float) -> None:
        """Take up the coarser ticks that were not over when the last process ended."""
        for tier in range(len(self.tiers) - 1, 0, -1):
            finer, step = self.tiers[tier - 1], self.tiers[tier].step
            (last,) = connection.execute(
                "SELECT max(at) FROM ticks WHERE tier = ? AND at <= ?", (tier, int(now))
            ).fetchone()
            start = max(int(now) - finer.keep, 0 if last is None else last + step)
            for at, values in scan(connection, self.tiers, tier - 1, start, int(now) + 1):
                self._feed(tier, at // step * step, values)

    def flush(self, connection: sqlite3.Connection) -> None:
        """Write what is pending, in a transaction of the caller's that `written` is to follow."""
        self._new_series: dict[str, int] = {}
        self._new_written = list(self._written)
        for tick in self._pending:
            self._write(connection, tick)

    def written(self) -> None:
        """Know that what `flush` wrote is on disk."""
        self._series.update(self._new_series)
        self._written = self._new_written
        self._pending.clear()

    def _write(self, connection: sqlite3.Connection, tick: _Tick) -> None:
        tier, at = tick.tier, tick.at
        before = self._new_written[tier]
        if before is None or at <= before.at or at != before.at + self.tiers[tier].step:
            before = None
        self._make_way(connection, tier, at)
        whole = before is None or before.since_whole + 1 >= self.tiers[tier].whole_every
        known = {} if before is None or whole else before.values
        rows = [(name, value) for name, value in tick.values.items() if known.get(name) != value]
        rows += [(name, UNKNOWN) for name in known if name not in tick.values]
        connection.execute("INSERT INTO ticks VALUES (?, ?, ?)", (tier, at, whole))
        numbers = [self._number(connection, name, at) for name, _ in rows]
        connection.executemany(
            "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(tier, at, number, *value) for number, (_, value) in zip(numbers, rows, strict=True)],
        )
        if whole and tier == len(self.tiers) - 1:
            connection.executemany("UPDATE series SET seen = ? WHERE id = ?", [(at, n) for n in numbers])
        self._new_written[tier] = _Written(
            at, 0 if before is None or whole else before.since_whole + 1, dict(tick.values)
        )

    def _make_way(self, connection: sqlite3.Connection, tier: int, at: int) -> None:
        """Remove what was recorded of this moment and what builds on it: the clock went back."""
        if connection.execute("SELECT 1 FROM ticks WHERE tier = ? AND at >= ?", (tier, at)).fetchone():
            (end,) = connection.execute(
                "SELECT min(at) FROM ticks WHERE tier = ? AND at > ? AND whole = 1", (tier, at)
            ).fetchone()
            _remove(connection, tier, at, MAX_TIME if end is None else end)

    def _number(self, connection: sqlite3.Connection, name: str, at: int) -> int:
        number = self._series.get(name) or self._new_series.get(name)
        if number is None:
            row = connection.execute("SELECT id FROM series WHERE name = ?", (name,)).fetchone()
            if row is None:
                cursor = connection.execute("INSERT INTO series (name, seen) VALUES (?, ?)", (name, at))
                assert cursor.lastrowid is not None
                row = (cursor.lastrowid,)
            number = self._new_series[name] = row[0]
        return number

    def prune(self, connection: sqlite3.Connection, now: float, elapsed_s: float) -> None:
        """Remove what is older than its tier keeps, and what lies in the future.

        Of the old at most four times as much as was recorded in `elapsed_s`: a clock that is wrong for an
        hour costs a few hours of the oldest history, and never all of it. Of the future nothing before most
        of a day was lived by the present clock.
        """
        (minutes,) = connection.execute(
            "SELECT count(*) FROM ticks WHERE tier = 1 AND at > ? AND at <= ?", (int(now) - DAY, int(now))
        ).fetchone()
        settled = minutes > 1000
        for tier, about in enumerate(self.tiers):
            credit = min(self._credit[tier] + 4 * elapsed_s / about.step, 4.0 * about.whole_every)
            while block := self._oldest_block(connection, tier, int(now) - about.keep):
                ticks, end = block
                if ticks > credit:
                    break
                credit -= ticks
                _remove(connection, tier, 0, end)
            self._credit[tier] = credit
            if settled:
                rows = connection.execute(
                    "SELECT at FROM ticks WHERE tier = ? AND at > ? ORDER BY at DESC LIMIT 1000",
                    (tier, int(now) + DAY),
                ).fetchall()
                if rows:
                    _remove(connection, tier, rows[-1][0], MAX_TIME)
        forgotten = connection.execute(
            "SELECT id, name FROM series WHERE seen < ? AND NOT EXISTS"
            " (SELECT 1 FROM ticks WHERE at < ? LIMIT 1) LIMIT 1000",
            (int(now) - self.tiers[-1].keep - 2 * DAY,) * 2,
        ).fetchall()
        for number, name in forgotten:
            if not any(written is not None and name in written.values for written in self._written):
                connection.execute("DELETE FROM series WHERE id = ?", (number,))
                self._series.pop(name, None)

    @staticmethod
    def _oldest_block(connection: sqlite3.Connection, tier: int, cutoff: int) -> tuple[int, int] | None:
        """Return the ticks before the second whole one and its time, when all of that is before `cutoff`."""
        (first,) = connection.execute("SELECT min(at) FROM ticks WHERE tier = ?", (tier,)).fetchone()
        if first is None or first >= cutoff:
            return None
        (end,) = connection.execute(
            "SELECT min(at) FROM ticks WHERE tier = ? AND at > ? AND whole = 1", (tier, first)
        ).fetchone()
        if end is None or end > cutoff:
            return None
        (ticks,) = connection.execute(
            "SELECT count(*) FROM ticks WHERE tier = ? AND at < ?", (tier, end)
        ).fetchone()
        return ticks, end

    def shorten(self, connection: sqlite3.Connection) -> bool:
        """Remove the oldest twentieth of the whole time, in every tier; return False when nothing is left."""
        first, last = connection.execute("SELECT min(at), max(at) FROM ticks").fetchone()
        if first is None:
            return False
        cut = first + max((last - first) // 20, self.tiers[-1].step)
        for tier in range(len(self.tiers)):
            _remove(connection, tier, 0, cut)
        return True


def _same(known: Values | None, new: Values) -> Values:
    return known if known is not None and known == new else new


def _remove(connection: sqlite3.Connection, tier: int, start: int, end: int) -> None:
    for table in ("history", "ticks"):
        connection.execute(
            f"DELETE FROM {table} WHERE tier = ? AND at >= ? AND at < ?",  # noqa: S608
            (tier, start, end),
        )


def observe(view: View) -> dict[str, Values]:
    """Return what a view says of each queue and server that can be told.

    While a server does not answer, its part of a queue is what it last held: its journal still holds it. A
    queue none of whose servers answers is a gap.
    """
    fresh = {server.address for server in view.servers if not server.stale and server.reachable}
    found: dict[str, Values] = {}
    for server in view.servers:
        found[SERVER + server.address] = _server(server) if server.address in fresh else UNKNOWN
    if fresh:
        numbers = view.totals
        parked = sum(row.parked for row in view.queues)
        found[QUEUE + TOTALS] = _values(numbers, parked)
    for row in view.rows():
        if len(found) >= MAX_SERIES:
            break
        known = any(address in fresh for address in row.servers) if row.servers else not row.stale
        found[QUEUE + row.key] = _values(row.numbers, row.parked) if known else UNKNOWN
    return found


def _values(numbers: Any, parked: int) -> Values:
    rate_in, rate_out = _hundredths(numbers.rate_in), _hundredths(numbers.rate_out)
    return (
        max(0, numbers.items),
        _coarse(numbers.age_ms),
        rate_in,
        rate_out,
        rate_in,
        rate_out,
        max(0, numbers.open_transactions),
        max(0, parked),
    )


def _server(server: ServerState) -> Values:
    if server.numbers is None:
        return UNKNOWN
    rate_in, rate_out = _hundredths(server.rate_in), _hundredths(server.rate_out)
    return (
        max(0, server.numbers.curr_items),
        None,
        rate_in,
        rate_out,
        rate_in,
        rate_out,
        server.numbers.curr_connections,
        None,
    )


def _hundredths(rate: float | None) -> int | None:
    return None if rate is None or not math.isfinite(rate) else max(0, round(rate * 100))


def _coarse(number: int) -> int:
    """Return a number to seven leading bits: an age that only grows changes ever more rarely."""
    shift = max(0, number.bit_length() - 7)
    return max(0, number) >> shift << shift
