"""Rates from counters, over the last seconds; what restarts, is deleted or flushed makes no spikes.

What comes in is what `total_items` grows by. What goes out is what has come in and is not there any more,
neither waiting nor reserved, and was not thrown away: so a job that is taken, given back and taken again
counts once, and the numbers are the same by either port. By how much a flush shortened a queue nobody says:
from a flush on it is counted afresh.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from kestrel_stack.web.polling.stats import Raw

WINDOW_S = 10.0
"""Seconds over which a rate is the mean."""


@dataclass(frozen=True)
class Rate:
    """Items per second."""

    in_: float
    out: float


@dataclass(frozen=True, slots=True)
class _Count:
    """A queue at one moment: its counters, and `epoch`, which changes when they begin afresh."""

    epoch: int
    total: int
    gone: int
    flushes: int
    created: int
    taken: int


class Rates:
    """The rates of one server's queues; moments are of the monotonic clock."""

    def __init__(self, window_s: float = WINDOW_S):
        self._window = window_s
        self._seen: deque[tuple[float, dict[str, _Count]]] = deque()
        self._epoch = 0

    def forget(self) -> None:
        """Begin afresh: the server is another one now, or has begun from zero."""
        self._seen.clear()

    def update(self, at: float, queues: Mapping[str, Raw]) -> Mapping[str, Rate]:
        """Take what was read at one moment, and return the rates that are known then."""
        last = self._seen[-1][1] if self._seen else None
        self._epoch += 1
        counts = {key: self._count(raw, last, key) for key, raw in queues.items()}
        # So many moments that the window is full, and no more when polls come in quick succession.
        if len(self._seen) > 1 and at - self._seen[-2][0] < self._window / 10:
            self._seen.pop()
        self._seen.append((at, counts))
        while len(self._seen) > 2 and self._seen[1][0] <= at - self._window:
            self._seen.popleft()
        return {key: rate for key, count in counts.items() if (rate := self._rate(at, key, count))}

    def _count(self, raw: Raw, last: dict[str, _Count] | None, key: str) -> _Count:
        total = raw["total_items"]
        gone = (
            total
            - raw.get("items", 0)
            - raw.get("open_transactions", 0)
            - raw.get("expired_items", 0)
            - raw.get("discarded", 0)
        )
        flushes, created = raw.get("total_flushes", 0), raw.get("create_time", 0)
        taken = raw.get("transactions", 0)
        if last is None:
            return _Count(self._epoch, total, gone, flushes, created, taken)
        before = last.get(key)
        if (
            before is None
            or total < before.total
            or taken < before.taken
            or (created and before.created and created != before.created)
        ):
            # It was made since the last look, perhaps after it was deleted: its counters began at zero.
            last[key] = _Count(self._epoch, 0, 0, flushes, created, 0)
            return _Count(self._epoch, total, gone, flushes, created, taken)
        epoch = before.epoch if flushes == before.flushes else self._epoch
        return _Count(epoch, total, gone, flushes, created, taken)

    def _rate(self, at: float, key: str, count: _Count) -> Rate | None:
        for then, counts in self._seen:
            before = counts.get(key)
            if before is not None and before.epoch == count.epoch:
                if then >= at:
                    return None
                passed = at - then
                return Rate(
                    max(0.0, (count.total - before.total) / passed),
                    max(0.0, (count.gone - before.gone) / passed),
                )
        return None
