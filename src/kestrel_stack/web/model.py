"""What kestrel-web knows of its servers at one moment. All of it is immutable; a new poll makes a new `View`.

Times are Unix seconds unless a name says otherwise, sizes are bytes, rates are per second. A queue is called
by its key (see `keys`). None is "not known", never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

UP, READONLY, QUIESCENT = "UP", "READONLY", "QUIESCENT"
KINDS = ("queue", "errors", "delay", "fanout", "ping")


@dataclass(frozen=True)
class QueueNumbers:
    """One queue on one server. Some are known by the admin port only, some by the memcache port only."""

    items: int = 0
    bytes: int = 0
    mem_items: int = 0
    mem_bytes: int = 0
    journal_bytes: int | None = None
    """By the memcache port: of the current journal file only."""
    age_ms: int = 0
    """How long the next item has waited, as far as anybody can know (see `ages`)."""
    waiters: int = 0
    open_transactions: int = 0
    total_items: int = 0
    expired_items: int = 0
    discarded: int = 0
    transactions: int = 0
    canceled_transactions: int = 0
    total_flushes: int = 0
    put_items: int | None = None
    get_items_hit: int | None = None
    get_items_miss: int | None = None
    journal_rewrites: int | None = None
    journal_rotations: int | None = None
    create_time: int | None = None
    rate_in: float | None = None
    rate_out: float | None = None


@dataclass(frozen=True)
class ServerNumbers:
    """One server as a whole; counters are since its start."""

    version: str = ""
    uptime_s: int = 0
    time: int = 0
    curr_items: int = 0
    total_items: int = 0
    bytes: int = 0
    reserved_memory_ratio: float = 0.0
    curr_connections: int = 0
    total_connections: int = 0
    cmd_get: int = 0
    cmd_set: int = 0
    cmd_peek: int = 0
    get_hits: int = 0
    get_misses: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    queue_creates: int = 0
    queue_deletes: int = 0
    queue_expires: int = 0


@dataclass(frozen=True)
class ServerState:
    """One server: how it answered the last poll, and what it said when it last answered."""

    address: str
    """``host:port`` as configured; also its name in addresses of pages."""
    reachable: bool = False
    error: str | None = None
    """Why it is not reachable, in one line; also what is wrong with the admin port while memcache answers."""
    since: float = 0.0
    """Since when it has been reachable, or has not been."""
    polled_at: float | None = None
    """When the numbers below were read; older than the view's `at` when the server fails or hangs."""
    attempted_at: float | None = None
    took_s: float | None = None
    source: str | None = None
    """``admin`` or ``memcache``."""
    status: str | None = None
    stale: bool = True
    """The numbers are older than the site's `stale_after`."""
    numbers: ServerNumbers | None = None
    queues: Mapping[str, QueueNumbers] = field(default_factory=dict)
    rate_in: float | None = None
    rate_out: float | None = None


@dataclass(frozen=True)
class Alert:
    """Something that somebody should look at."""

    kind: str
    """``backlog``, ``age``, ``no_consumers``, ``server_down``, ``server_status``."""
    subject: str
    """The key of the queue, or the server's address."""
    text: str
    """One line for people, with value and limit."""
    value: float | None = None
    limit: float | None = None
    since: float = 0.0


@dataclass(frozen=True)
class Condition:
    """How long something has been wrong, and right again: what `judge` remembers from view to view."""

    since: float = 0.0
    """When it began."""
    bad_s: float = 0.0
    """For how long it was seen to be wrong; time in which nothing was known does not count."""
    good_s: float = 0.0
    """Since then for how long it was seen to be right."""
    alert: Alert | None = None
    """What was raised, if anything."""


@dataclass(frozen=True)
class Limits:
    """When a queue's row gets attention: items waiting, and seconds that the next item has waited."""

    backlog: int | None = None
    age_s: int | None = None


@dataclass(frozen=True)
class QueueRow:
    """One queue over all servers: numbers add up, `age_ms` is the largest."""

    key: str
    kind: str = "queue"
    parent: str | None = None
    described: bool = False
    """An application's settings describe it."""
    app: str | None = None
    limits: Limits = Limits()
    numbers: QueueNumbers = QueueNumbers()
    servers: Mapping[str, QueueNumbers] = field(default_factory=dict)
    """Its numbers by the address of each server that has it."""
    stale: bool = False
    """Some server that has it gives no fresh numbers."""
    drain_s: float | None = None
    """Seconds until it is empty at the present rates; None when it does not get shorter or is not known."""
    alerts: tuple[Alert, ...] = ()
    children: tuple[QueueRow, ...] = ()
    """Error queue, delay queues and fanouts; ping queues are left out of everything."""
    delay_s: int | None = None
    """Of a delay queue: its seconds."""

    @property
    def parked(self) -> int:
        """Items in its error queue, those that somebody is looking at included."""
        return sum(
            row.numbers.items + row.numbers.open_transactions for row in self.children if row.kind == "errors"
        )

    @property
    def delayed(self) -> int:
        """Items that wait for a delay, those that a mover holds included."""
        return sum(
            row.numbers.items + row.numbers.open_transactions for row in self.children if row.kind == "delay"
        )


@dataclass(frozen=True)
class View:
    """Everything at one moment, in the order in which it was configured or, for queues, by key."""

    serial: int = 0
    """Grows with every view."""
    at: float = 0.0
    servers: tuple[ServerState, ...] = ()
    queues: tuple[QueueRow, ...] = ()
    """Top rows only; an error, delay or fanout queue without its parent is a top row itself."""
    totals: QueueNumbers = QueueNumbers()
    """Over all queues but pings; the rates over top rows of kind ``queue``."""
    alerts: tuple[Alert, ...] = ()
    conditions: Mapping[tuple[str, str], Condition] = field(default_factory=dict)
    """By kind and subject, what is or may become an alert; for `judge` only."""

    def rows(self) -> list[QueueRow]:
        """Return every row, children right behind their parents."""
        return [row for top in self.queues for row in (top, *top.children)]

    def row(self, key: str) -> QueueRow | None:
        """Return a queue's row, wherever it stands."""
        return self._by_key.get(key)

    @cached_property
    def _by_key(self) -> Mapping[str, QueueRow]:
        return {row.key: row for row in self.rows()}

    def server(self, address: str) -> ServerState | None:
        """Return a server by its address."""
        return next((server for server in self.servers if server.address == address), None)
