"""When somebody should look: a pure function from what the servers say to alerts.

* ``backlog``: a queue has its limit of items or more; ``age``: its next item has waited for its limit.
* ``no_consumers``: items wait and nobody takes them: on every server nobody waits for an item, none is in an
  open read and none left, all of it for `no_consumers_after_s`. Error and delay queues have no consumers.
* ``server_down``: a server does not answer and its numbers are stale; ``server_status``: it is not UP.

Against flapping: backlog and age end below nine tenths of their limit only, and every alert but
``no_consumers`` after ten seconds in which all was well.

What is not known changes nothing. Time without knowledge does not count, what a server last said before it
went away raises no alert, and no alert of a queue ends while a server may hold more of it. Nor does a clock
that is set: between two views at most some seconds pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kestrel_stack.web import keys
from kestrel_stack.web.config import Config
from kestrel_stack.web.model import UP, Alert, Condition, QueueNumbers, QueueRow, ServerState, View

CLEAR_AFTER_S = 10.0
LOWER_MARK = 0.9
CONSUMED = ("queue", "fanout")
"""Kinds of queues that somebody should take from."""
SERVER_KINDS = ("server_down", "server_status")

_ORDER = {kind: n for n, kind in enumerate((*SERVER_KINDS, "no_consumers", "age", "backlog"))}
_MAX_PASSED_S = 30.0

Name = tuple[str, str]


@dataclass(frozen=True)
class _Seen:
    """What one look at a condition says: `bad` is None when it is neither wrong nor right, or not known."""

    bad: bool | None
    text: str = ""
    value: float | None = None
    limit: float | None = None
    since: float | None = None


class _Judge:
    """One view under judgement, with the one before it."""

    def __init__(self, view: View, config: Config, earlier: View):
        self.view, self.config = view, config
        self.before: Mapping[Name, Condition] = earlier.conditions
        self.conditions: dict[Name, Condition] = {}
        passed = view.at - earlier.at if earlier.at else 0.0
        self.passed = min(max(0.0, passed), max(_MAX_PASSED_S, 3 * config.interval_s))
        self.servers = {server.address: server for server in view.servers}
        self.fresh = {server.address for server in view.servers if server.reachable and not server.stale}
        self.away = [server for server in view.servers if server.address not in self.fresh]

    def note(self, kind: str, subject: str, seen: _Seen, raise_after: float, clear_after: float) -> None:
        """Carry a condition on, or begin it."""
        known = self.before.get((kind, subject))
        if known is None:
            if not seen.bad:
                return
            since = self.view.at if seen.since is None else seen.since
            known = Condition(since)
            passed = 0.0
        else:
            passed = self.passed
        alert = known.alert
        if seen.bad:
            known = replace(known, bad_s=known.bad_s + passed, good_s=0.0)
            if alert is not None or known.bad_s >= raise_after:
                alert = Alert(kind, subject, seen.text, seen.value, seen.limit, known.since)
        elif seen.bad is False:
            known = replace(known, good_s=known.good_s + passed)
            if alert is None or known.good_s >= clear_after:
                return
        elif alert is not None and seen.text:
            # Within the band it goes on, with its present number.
            known = replace(known, good_s=0.0)
            alert = replace(alert, text=seen.text, value=seen.value, limit=seen.limit)
        if alert is not known.alert:
            known = replace(known, alert=alert)
        self.conditions[kind, subject] = known

    def server(self, server: ServerState) -> None:
        """Judge one server."""
        name = server.address
        if server.attempted_at is None:
            down = _Seen(None)
        elif server.reachable and not server.stale:
            down = _Seen(False)
        elif server.reachable or server.stale:
            # While it counts as reachable, its error is another one: of its admin port.
            hangs = server.reachable or not server.error
            since = server.polled_at if server.reachable else server.since
            why = "it does not answer" if hangs else server.error
            down = _Seen(True, f"{name} is down: {why}", since=since)
        else:
            # It failed, but its numbers are fresh yet: a restart is no alarm.
            down = _Seen(None)
        never = server.polled_at is None
        self.note("server_down", name, down, self.config.stale_after_s if never else 0.0, CLEAR_AFTER_S)
        if server.address not in self.fresh or server.status is None:
            status = _Seen(None)
        else:
            bad = server.status.upper() != UP
            status = _Seen(bad, f"{name} is {server.status.upper()}, not {UP}")
        self.note("server_status", name, status, 0.0, CLEAR_AFTER_S)

    def complete(self, key: str) -> bool:
        """Whether every server that may hold some of this queue tells now what it holds."""
        return not any(server.polled_at is None or key in server.queues for server in self.away)

    def queue(self, row: QueueRow) -> None:
        """Judge one queue."""
        limits = row.limits
        consumed = row.kind in CONSUMED and row.numbers.items > 0
        kinds = ("no_consumers", "age", "backlog")
        limited = limits.backlog is not None or limits.age_s is not None
        if not (consumed or limited or any((kind, row.key) in self.before for kind in kinds)):
            return
        complete = not self.away or self.complete(row.key)
        parts = (
            [row.numbers]
            if not self.away
            else [part for address, part in row.servers.items() if address in self.fresh]
        )
        items = sum(part.items for part in parts)
        name = keys.show(row.key)
        if limits.backlog is not None:
            seen = _over(items, limits.backlog, complete, f"{name} has {items:,} items")
            self.note("backlog", row.key, seen, 0.0, CLEAR_AFTER_S)
        if limits.age_s is not None:
            age = max((part.age_ms for part in parts if part.items > 0), default=0) / 1000
            seen = _over(age, limits.age_s, complete, f"The next item of {name} has waited for {_span(age)}")
            self.note("age", row.key, seen, 0.0, CLEAR_AFTER_S)
        if row.kind in CONSUMED:
            seen = self._consumers(name, parts, items, complete)
            self.note("no_consumers", row.key, seen, self.config.no_consumers_after_s, 0.0)

    def _consumers(self, name: str, parts: list[QueueNumbers], items: int, complete: bool) -> _Seen:
        if any(part.waiters or part.open_transactions or (part.rate_out or 0) > 0 for part in parts):
            return _Seen(False)
        if not complete:
            return _Seen(None)
        text = f"{name} has {items:,} item{'s' * (items != 1)} and no consumers"
        return _Seen(items > 0, text, items)

    def rest(self) -> None:
        """Keep conditions of queues that no server shows, while one that may have them does not answer."""
        shown = {row.key for row in self.view.rows()} if self.away else set()
        for (kind, subject), known in self.before.items():
            if (kind, subject) in self.conditions or kind in SERVER_KINDS:
                continue
            if self.away and subject not in shown and not self.complete(subject):
                self.conditions[kind, subject] = known


def judge(view: View, config: Config, earlier: View | None = None) -> View:
    """Return `view` with its alerts, given the view before it; the first one may be `alerts.remembered`'s."""
    case = _Judge(view, config, earlier or View())
    for server in view.servers:
        case.server(server)
    for row in view.rows():
        case.queue(row)
    case.rest()
    alerts = [known.alert for known in case.conditions.values() if known.alert is not None]
    alerts.sort(key=lambda alert: (_ORDER.get(alert.kind, len(_ORDER)), alert.subject))
    by_queue: dict[str, list[Alert]] = {}
    for alert in alerts:
        if alert.kind not in SERVER_KINDS:
            by_queue.setdefault(alert.subject, []).append(alert)
    return replace(
        view,
        queues=tuple(_with(row, by_queue) for row in view.queues) if by_queue else view.queues,
        alerts=tuple(alerts),
        conditions=case.conditions,
    )


def _with(row: QueueRow, alerts: Mapping[str, list[Alert]]) -> QueueRow:
    """Return the row with its own alerts and its children's on them; the same one when there are none."""
    children = row.children
    if any(child.key in alerts for child in children):
        children = tuple(_with(child, alerts) for child in children)
    own = tuple(alerts.get(row.key, ()))
    return (
        row if own == row.alerts and children is row.children else replace(row, alerts=own, children=children)
    )


def _over(value: float, limit: float, complete: bool, text: str) -> _Seen:
    """Compare what is known for sure with its limit; a part that is not known can only add to it."""
    bad: bool | None = None
    if value >= limit:
        bad = True
    elif value < limit * LOWER_MARK and complete:
        bad = False
    elif not complete:
        return _Seen(None)
    shown = f"{limit:,}" if text.endswith("items") else _span(limit)
    return _Seen(bad, f"{text}; its limit is {shown}", value, limit)


def _span(seconds: float) -> str:
    """Return a time for people: the two largest units."""
    left = int(seconds)
    parts = []
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        number, left = divmod(left, length)
        if number or (unit == "s" and not parts):
            parts.append(f"{number} {unit}")
        if len(parts) == 2 or (parts and not number):
            break
    return " ".join(parts[:2])
