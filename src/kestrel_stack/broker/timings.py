"""Distributions of measured times: what the ``metrics`` of the admin HTTP are made of.

Buckets grow by a tenth, so that a percentile is within 5 percent of the truth, as Kestrel's are; count, sum,
average, minimum and maximum are exact. Source of the names: observed on Kestrel 2.4.1.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right

FRESH = 512
"""Values that are collected before they are sorted into buckets; this keeps the cost of one value small."""

PERCENTILES = (
    ("p25", 0.25),
    ("p50", 0.50),
    ("p75", 0.75),
    ("p90", 0.90),
    ("p95", 0.95),
    ("p99", 0.99),
    ("p999", 0.999),
    ("p9999", 0.9999),
)


def _bounds() -> tuple[int, ...]:
    bounds = [0]
    while bounds[-1] < 1 << 42:
        bounds.append(max(bounds[-1] + 1, bounds[-1] * 11 // 10))
    return tuple(bounds)


BOUNDS = _bounds()
"""Lower ends of the buckets."""


class Histogram:
    """Whole numbers of at least 0, counted in buckets."""

    __slots__ = ("_buckets", "_count", "_fresh", "_maximum", "_minimum", "_sum")

    def __init__(self) -> None:
        self._fresh = array("q")
        self._buckets: dict[int, int] = {}
        self._count = self._sum = self._minimum = self._maximum = 0

    def add(self, value: int) -> None:
        """Count one value."""
        self._fresh.append(value)
        if len(self._fresh) >= FRESH:
            self._sort_in()

    def _sort_in(self) -> None:
        fresh = self._fresh
        if not fresh:
            return
        least, greatest = min(fresh), max(fresh)
        self._minimum = min(self._minimum, least) if self._count else least
        self._maximum = max(self._maximum, greatest)
        self._count += len(fresh)
        self._sum += sum(fresh)
        buckets = self._buckets
        for value in fresh:
            bucket = bisect_right(BOUNDS, value)
            buckets[bucket] = buckets.get(bucket, 0) + 1
        self._fresh = array("q")

    def copy(self) -> Histogram:
        """Return the same numbers, on their own from now on."""
        new = Histogram()
        new.include(self)
        return new

    def include(self, other: Histogram) -> None:
        """Add everything that ``other`` has counted."""
        self._sort_in()
        other._sort_in()
        if not other._count:
            return
        self._minimum = min(self._minimum, other._minimum) if self._count else other._minimum
        self._maximum = max(self._maximum, other._maximum)
        self._count += other._count
        self._sum += other._sum
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count

    def since(self, before: Histogram | None) -> Histogram:
        """Return what was counted after ``before``, an older copy; its ends are those of the buckets."""
        new = self.copy()
        if before is None or not before._count:
            return new
        new._count -= before._count
        new._sum -= before._sum
        new._buckets = {
            bucket: left
            for bucket, count in new._buckets.items()
            if (left := count - before._buckets.get(bucket, 0)) > 0
        }
        if new._count <= 0 or not new._buckets:
            return Histogram()
        new._minimum = max(new._minimum, _middle(min(new._buckets)))
        new._maximum = min(new._maximum, _middle(max(new._buckets)))
        return new

    def summary(self) -> dict[str, int]:
        """Return the numbers under Kestrel's names; without a value only average, count and sum."""
        self._sort_in()
        if not self._count:
            return {"average": 0, "count": 0, "sum": 0}
        numbers = {
            "average": self._sum // self._count,
            "count": self._count,
            "maximum": self._maximum,
            "minimum": self._minimum,
        }
        ordered = sorted(self._buckets.items())
        at, passed = -1, 0
        for name, share in PERCENTILES:
            while passed < share * self._count and at + 1 < len(ordered):
                at += 1
                passed += ordered[at][1]
            numbers[name] = min(max(_middle(ordered[at][0]), self._minimum), self._maximum)
        return {**numbers, "sum": self._sum}


def _middle(bucket: int) -> int:
    """Return the middle of the bucket that ``bisect_right`` calls ``bucket``."""
    if bucket >= len(BOUNDS):
        return BOUNDS[-1]
    return (BOUNDS[bucket - 1] + BOUNDS[bucket] - 1) // 2


class Timings:
    """The distributions of one queue."""

    __slots__ = ("delivery", "get_hit", "get_miss", "get_timeout", "set")

    def __init__(self) -> None:
        self.set = Histogram()
        self.get_hit = Histogram()
        self.get_miss = Histogram()
        self.get_timeout = Histogram()
        self.delivery = Histogram()

    def include(self, other: Timings) -> None:
        """Add everything that ``other`` has counted."""
        for name in self.__slots__:
            getattr(self, name).include(getattr(other, name))

    def by_metric(self) -> dict[str, Histogram]:
        """Return the distributions under the names of Kestrel's metrics."""
        return {metric: getattr(self, name) for name, metric in METRICS.items()}


METRICS = {
    "delivery": "delivery_latency_msec",
    "get_hit": "get_hit_latency_usec",
    "get_miss": "get_miss_latency_usec",
    "get_timeout": "get_timeout_msec",
    "set": "set_latency_usec",
}
"""Our names and Kestrel's: how long an item lay there, gets that found one or none, waits in vain, sets."""
