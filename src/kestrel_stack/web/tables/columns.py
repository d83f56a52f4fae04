"""The columns of the table of queues: what they are called, how they are sorted, and what a filter may name.

The page, the CSV file and the JSON API take them from here, so that they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kestrel_stack.web import keys
from kestrel_stack.web.model import QueueNumbers, QueueRow, View

if TYPE_CHECKING:
    from kestrel_stack.web.tables.filters import Filter

Value = str | int | float | tuple[str, ...] | None

GROUPS = {
    "backlog": "Backlog",
    "size": "Size",
    "counters": "Counters",
    "gets": "Puts and gets",
    "journal": "Journal",
    "about": "About",
}
"""Names of the groups in addresses, and their titles."""

DEFAULT_GROUPS = ("backlog",)


class SortError(ValueError):
    """An order that there is not; one line that says which there are."""


@dataclass(frozen=True)
class Column:
    """One column.

    `kind` is ``text``, ``words`` (several texts), ``count``, ``rate``, ``bytes``, ``milliseconds``,
    ``seconds`` or ``time``.
    """

    name: str
    title: str
    group: str
    kind: str
    help: str
    value: Callable[[QueueRow], Value]
    numbers: Callable[[QueueNumbers], Value] | None = None
    """The same of one server's numbers, where there is such a thing."""

    @property
    def numeric(self) -> bool:
        """Whether it is right-aligned and compared as a number."""
        return self.kind not in ("text", "words")

    @property
    def unit(self) -> str:
        """The unit of its bare values, for the head of a CSV file."""
        return {
            "rate": "1/s",
            "bytes": "bytes",
            "milliseconds": "ms",
            "seconds": "s",
            "time": "unix s",
        }.get(self.kind, "")


def name_of(row: QueueRow) -> str:
    """Return a queue's name as people read it."""
    return keys.show(row.key)


def _of(field: str) -> tuple[Callable[[QueueRow], Value], Callable[[QueueNumbers], Value]]:
    def of_row(row: QueueRow) -> Value:
        return getattr(row.numbers, field)

    def of_numbers(numbers: QueueNumbers) -> Value:
        return getattr(numbers, field)

    return of_row, of_numbers


def _counted(name: str, title: str, group: str, kind: str, help_: str, field: str = "") -> Column:
    of_row, of_numbers = _of(field or name)
    return Column(name, title, group, kind, help_, of_row, of_numbers)


_ALL = (
    Column("name", "Queue", "backlog", "text", "Its name on the servers", name_of),
    _counted("items", "Items", "backlog", "count", "Items that wait, those in open reads not counted"),
    _counted("in", "In/s", "backlog", "rate", "Items that arrive per second", "rate_in"),
    _counted("out", "Out/s", "backlog", "rate", "Items that leave per second", "rate_out"),
    Column(
        "drain",
        "Drain",
        "backlog",
        "seconds",
        "Time until it is empty at the present rates; nothing when it does not get shorter",
        lambda row: row.drain_s,
    ),
    _counted("age", "Age", "backlog", "milliseconds", "How long the next item has waited", "age_ms"),
    _counted(
        "open",
        "Open",
        "backlog",
        "count",
        "Items that a worker has taken and not yet confirmed",
        "open_transactions",
    ),
    _counted("waiters", "Waiters", "backlog", "count", "Connections that wait for an item of this queue"),
    Column("parked", "Parked", "backlog", "count", "Items in its error queue", lambda row: row.parked),
    Column("delayed", "Delayed", "backlog", "count", "Items in its delay queues", lambda row: row.delayed),
    _counted("bytes", "Bytes", "size", "bytes", "Bytes of all items that wait"),
    _counted("mem_items", "In memory", "size", "count", "Items that its servers hold in memory"),
    _counted("mem_bytes", "Memory", "size", "bytes", "Bytes of the items in memory"),
    _counted("log", "Log size", "size", "bytes", "Size of its journal files", "journal_bytes"),
    _counted("total", "Total", "counters", "count", "Items put since its servers started", "total_items"),
    _counted(
        "expired", "Expired", "counters", "count", "Items thrown away since they got too old", "expired_items"
    ),
    _counted("discarded", "Discarded", "counters", "count", "Items thrown away since the queue was full"),
    _counted("flushes", "Flushes", "counters", "count", "How often it was emptied by hand", "total_flushes"),
    _counted("transactions", "Reads", "counters", "count", "Open reads that were begun"),
    _counted(
        "canceled",
        "Given back",
        "counters",
        "count",
        "Open reads that were given back: the worker failed or went away",
        "canceled_transactions",
    ),
    _counted("puts", "Puts", "gets", "count", "Items put, as the admin port counts them", "put_items"),
    _counted("hits", "Hits", "gets", "count", "Gets that found an item", "get_items_hit"),
    _counted("misses", "Misses", "gets", "count", "Gets that found none", "get_items_miss"),
    _counted(
        "rewrites", "Rewrites", "journal", "count", "How often its journal was rewritten", "journal_rewrites"
    ),
    _counted(
        "rotations",
        "Rotations",
        "journal",
        "count",
        "How often a new journal file was begun",
        "journal_rotations",
    ),
    _counted("created", "Created", "journal", "time", "When it came to be on its server", "create_time"),
    Column("kind", "Kind", "about", "text", "queue, errors, delay or fanout", lambda row: row.kind),
    Column("app", "Application", "about", "text", "Whose settings describe it", lambda row: row.app),
    Column(
        "alert",
        "Alerts",
        "about",
        "words",
        "What is wrong with it: backlog, age, no_consumers",
        lambda row: tuple(dict.fromkeys(alert.kind for alert in row.alerts)),
    ),
    Column("server", "Servers", "about", "words", "Servers that have it", lambda row: tuple(row.servers)),
)

COLUMNS: dict[str, Column] = {column.name: column for column in _ALL}
"""Every column by its name in addresses and filters, in the order of the table."""

OLD_NAMES = {
    "queue": "name",
    "logsize": "log",
    "journal_bytes": "log",
    "age_ms": "age",
    "open_transactions": "open",
    "servers": "server",
    "alerts": "alert",
    "rate_in": "in",
    "rate_out": "out",
    "total_items": "total",
    "expired_items": "expired",
}
"""What Kestrel's stats call them, and the first kestrel-web did."""


def column(name: str) -> Column | None:
    """Return a column by its name, or by the name that Kestrel's stats have for it."""
    name = name.lower()
    return COLUMNS.get(OLD_NAMES.get(name, name))


def shown(groups: Iterable[str]) -> list[Column]:
    """Return the columns of these groups; the name is always there."""
    wanted = set(groups)
    return [each for each in _ALL if each.name == "name" or each.group in wanted]


def sort(rows: Iterable[QueueRow], name: str, *, descending: bool = False) -> list[QueueRow]:
    """Return rows in the order of a column: numbers by size, text without regard to case, nothing last.

    Equal rows stay in the order of their names, whichever way the column goes.
    """
    by = column(name)
    if by is None:
        raise SortError(f"There is no column {name!r} to sort by; there are {', '.join(COLUMNS)}.")
    known: list[tuple[str | int | float, QueueRow]] = []
    unknown: list[QueueRow] = []
    for row in sorted(rows, key=_name_key):
        value = by.value(row)
        if isinstance(value, tuple):
            value = ", ".join(value) or None
        if value is None:
            unknown.append(row)
        else:
            known.append((value.casefold() if isinstance(value, str) else value, row))
    known.sort(key=lambda pair: pair[0], reverse=descending)  # type: ignore[arg-type,return-value]
    return [row for _, row in known] + unknown


def _name_key(row: QueueRow) -> tuple[str, str]:
    return name_of(row).casefold(), row.key


def arrange(
    view: View, filter_: Filter | None = None, order: str | None = None, direction: str = "asc"
) -> list[QueueRow]:
    """Return the top rows of a view that a filter leaves, in an order; raise `SortError` for a wrong one.

    A row stays when it or one of its children matches. Without an order they go by name.
    """
    if direction not in ("asc", "desc"):
        raise SortError(f"The direction {direction!r} is neither asc nor desc.")
    rows = [
        row
        for row in view.queues
        if filter_ is None or filter_.matches(row) or any(map(filter_.matches, row.children))
    ]
    return sort(rows, order or "name", descending=direction == "desc")
