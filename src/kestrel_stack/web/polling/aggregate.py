"""From what each server says to one row per queue: sums, families, zeros for what is described.

A queue's family is found by the settings where an application describes it, exactly; otherwise by its suffix,
and only where the queue it would belong to exists, so that nobody's ``press_errors`` disappears.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter

from kestrel_stack.queue import names
from kestrel_stack.queue.settings import Settings
from kestrel_stack.web.model import Limits, QueueNumbers, QueueRow, ServerState, View
from kestrel_stack.web.thresholds import limits

_RETRY = re.compile(r"(.+)_retry_([1-9][0-9]{0,9})")
_SUMS = tuple(
    entry.name
    for entry in fields(QueueNumbers)
    if entry.name not in ("age_ms", "create_time", "rate_in", "rate_out")
)
_summed = attrgetter(*_SUMS)
_PLUS = "~2B"
"""``+`` in a key."""


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Place:
    """Where a queue stands: what kind it is, and below which."""

    kind: str = "queue"
    parent: str | None = None
    delay_s: int | None = None
    described: bool = False
    app: str | None = None
    limits: Limits = NO_LIMITS


class Families:
    """Tells the queues' places by their keys."""

    def __init__(self, settings: Iterable[Settings]):
        self._described: dict[str, Place] = {}
        self.described: list[str] = []
        """The keys of the queues that applications describe, in their order."""
        for each in settings:
            for queue in each.queues.values():
                self._describe(each, queue.name)

    def _describe(self, settings: Settings, name: str) -> None:
        queue = settings.queue(name)
        full = names.make(settings.namespace, queue.name)
        if full in self._described:
            return  # two applications share it; the first one's word holds
        self._described[full] = Place(described=True, app=settings.app, limits=limits(queue.alert))
        self.described.append(full)

        def child(key: str, kind: str, delay_s: int | None = None) -> None:
            self._described.setdefault(
                key, Place(kind, parent=full, delay_s=delay_s, described=True, app=settings.app)
            )

        child(names.errors(full), "errors")
        for delay in queue.retry_delays:
            child(names.retry(full, delay), "delay", delay)
        for fanout in queue.fanouts:
            child(f"{full}{_PLUS}{fanout}", "fanout")

    def places(self, known: Iterable[str]) -> dict[str, Place]:
        """Return the place of each queue; `known` are the keys of all queues there are."""
        return _Places(self._described, known).found


class _Places:
    """The places of all queues, each found once: a name may be made of many that have to be looked at."""

    def __init__(self, described: Mapping[str, Place], known: Iterable[str]):
        self._described = described
        self._known = frozenset(known)
        self.found: dict[str, Place] = {}
        for key in self._known:
            self._place(key)

    def _place(self, key: str) -> Place:
        found = self.found.get(key) or self._described.get(key)
        if found is None:
            found = self._find(key)
        self.found[key] = found
        return found

    def _find(self, key: str) -> Place:
        parent, plus, _ = key.partition(_PLUS)
        if plus:
            # A fanout's own family (a+b_errors) is made of fanouts, too, as the server has it.
            above = self._top(parent) if self._there(parent) else None
            return Place("fanout", above)
        if self._is_ping(key):
            return Place("ping")
        if key.endswith("_errors") and self._is_top(key[:-7]):
            return Place("errors", key[:-7])
        match = _RETRY.fullmatch(key)
        if match and self._is_top(match[1]):
            return Place("delay", match[1], delay_s=int(match[2]))
        return Place()

    def _there(self, key: str) -> bool:
        return bool(key) and (key in self._known or key in self._described)

    def _is_top(self, key: str) -> bool:
        return self._there(key) and self._place(key).kind == "queue"

    def _top(self, key: str) -> str:
        return self._place(key).parent or key

    def _is_ping(self, key: str) -> bool:
        at = key.find("_ping_", 1)
        while at > 0:
            if at + 6 < len(key) and self._is_top(key[:at]):
                return True
            at = key.find("_ping_", at + 1)
        return False


class Aggregate:
    """Makes views; what has not changed since the last one is used again."""

    def __init__(self, settings: Iterable[Settings]):
        self._families = Families(settings)
        self._places: dict[str, Place] = {}
        self._known: frozenset[str] = frozenset()
        self._rows: dict[str, tuple[Sequence[object], QueueRow]] = {}

    def view(self, serial: int, at: float, servers: Sequence[ServerState]) -> View:
        """Return the view of all servers' states."""
        parts: dict[str, dict[str, QueueNumbers]] = {key: {} for key in self._families.described}
        fresh = {server.address for server in servers if not server.stale}
        for server in servers:
            for key, numbers in server.queues.items():
                parts.setdefault(key, {})[server.address] = numbers
        if self._known != parts.keys():
            self._known = frozenset(parts)
            self._places = self._families.places(parts)
            self._rows = {key: kept for key, kept in self._rows.items() if key in parts}
        children: dict[str, list[QueueRow]] = {}
        tops: list[QueueRow] = []
        for key in sorted(parts):
            place = self._places[key]
            if place.kind == "ping":
                continue
            row = self._row(key, place, parts[key], fresh, nobody_knows=len(fresh) < len(servers))
            if place.parent is not None:
                children.setdefault(place.parent, []).append(row)
            else:
                tops.append(row)
        queues = tuple(self._with(top, children.get(top.key)) for top in tops)
        rows = [row for top in queues for row in (top, *top.children)]
        totals = add([row.numbers for row in rows], [row.numbers for row in queues if row.kind == "queue"])
        return View(serial=serial, at=at, servers=tuple(servers), queues=queues, totals=totals)

    def _row(
        self,
        key: str,
        place: Place,
        parts: Mapping[str, QueueNumbers],
        fresh: set[str],
        nobody_knows: bool,
    ) -> QueueRow:
        stale = any(address not in fresh for address in parts) if parts else nobody_knows
        same = (
            place,
            stale,
            *parts.keys(),
            *(address in fresh for address in parts),
            *map(id, parts.values()),
        )
        kept = self._rows.get(key)
        if kept is not None and kept[0] == same:
            return kept[1]
        numbers = add(list(parts.values()), [part for address, part in parts.items() if address in fresh])
        row = QueueRow(
            key=key,
            kind=place.kind,
            parent=place.parent,
            described=place.described,
            app=place.app,
            limits=place.limits,
            numbers=numbers,
            servers=dict(parts),
            stale=stale,
            drain_s=drain_s(numbers),
            delay_s=place.delay_s,
        )
        # The row holds the numbers whose ids it is found by, so none of these is used for another.
        self._rows[key] = (same, row)
        return row

    def _with(self, row: QueueRow, children: list[QueueRow] | None) -> QueueRow:
        if not children:
            return row
        children.sort(key=lambda child: (ORDER[child.kind], child.delay_s or 0, child.key))
        return replace(row, children=tuple(children))


ORDER = {"errors": 0, "delay": 1, "fanout": 2, "queue": 3}
"""In which children follow their parent."""


def add(parts: Sequence[QueueNumbers], fresh: Sequence[QueueNumbers] | None = None) -> QueueNumbers:
    """Return the sum: the largest age, the oldest creation; what one part does not know is not known.

    Rates are those of the `fresh` ones, by default of all.
    """
    fresh = parts if fresh is None else fresh
    if len(parts) == 1 and len(fresh) == 1:
        return parts[0]
    sums = map(_total, zip(*map(_summed, parts), strict=True))
    return QueueNumbers(
        # Of no parts there are no sums, and every number is its default.
        **dict(zip(_SUMS, sums, strict=False)),
        age_ms=max([part.age_ms for part in parts], default=0),
        create_time=min([part.create_time for part in parts if part.create_time], default=None),
        rate_in=_sum([part.rate_in for part in fresh if part.rate_in is not None]),
        rate_out=_sum([part.rate_out for part in fresh if part.rate_out is not None]),
    )


def drain_s(numbers: QueueNumbers) -> float | None:
    """Return in how many seconds a queue is empty at its present rates."""
    if numbers.items == 0:
        return 0.0
    if numbers.rate_in is None or numbers.rate_out is None:
        return None
    faster = numbers.rate_out - numbers.rate_in
    return numbers.items / faster if faster > 0.001 else None


def _total(values: tuple[int | None, ...]) -> int | None:
    try:
        return sum(values)  # type: ignore[arg-type]
    except TypeError:
        return None  # one of them


def _sum(values: Sequence[float]) -> float | None:
    return sum(values) if values else None
