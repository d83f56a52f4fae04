"""Tables for spreadsheets: the queues as the page shows them, the audit log, a queue's history."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flask import Blueprint, Response, request

from kestrel_stack.web import keys, parameters
from kestrel_stack.web.access.auth import role
from kestrel_stack.web.model import QueueRow
from kestrel_stack.web.problems import Problem
from kestrel_stack.web.record.audit import AuditEntry
from kestrel_stack.web.record.store import Store
from kestrel_stack.web.site import site
from kestrel_stack.web.tables import columns, csvfile, documents
from kestrel_stack.web.tables.columns import COLUMNS, Column
from kestrel_stack.web.tables.filters import Filter
from kestrel_stack.web.views.api import AUDIT_FILTERS, PERIOD, POINTS_AT_MOST, audit_filters, kept, period

blueprint = Blueprint("csv", __name__)

ENTRIES_AT_ONCE = 500
HISTORY_FIELDS = ("items", "age_ms", "rate_in", "rate_out", "open", "parked", "peak_in", "peak_out")
"""Of a sample, behind the moment."""

AUDIT_HEAD = (
    *("id", "at", "ended", "who", "address", "role"),
    *("action", "target", "name", "servers", "outcome", "detail"),
)


@blueprint.get("/queues.csv")
@role("viewer")
def queues() -> Response:
    """Send every queue that a filter leaves, in an order, children right behind their parents."""
    asked = parameters.read(request.args, parameters.OF_THE_TABLE)
    rows = columns.arrange(site().poller.view(), asked["f"], asked["sort"], asked["dir"])
    head = ["key", *map(_head, COLUMNS.values()), "parent", "stale"]
    # All are found before anything is sent: a filter that takes too long is an error, and no half table.
    return _send("queues", head, map(_line, list(_queues(rows, asked["f"]))))


@blueprint.get("/audit.csv")
@role("viewer")
def audit() -> Response:
    """Send who did what, newest first."""
    asked = parameters.read(request.args, AUDIT_FILTERS)
    store, wanted = site().store, audit_filters(asked)
    # The first page is read before anything is sent, so that a database in trouble is an error and not a
    # table that looks whole.
    first = kept(store.audit_list(None, ENTRIES_AT_ONCE, wanted))
    return _send("audit", AUDIT_HEAD, _entries(store, wanted, first))


@blueprint.get("/queues/<key>/history.csv")
@role("viewer")
def history(key: str) -> Response:
    """Send what a queue was like."""
    try:
        keys.parse(key)
    except ValueError:
        raise Problem(404, "no_queue", "This is not the key of a queue.") from None
    points = parameters.whole(1, POINTS_AT_MOST, POINTS_AT_MOST)
    asked = parameters.read(request.args, PERIOD | {"points": points})
    start, end = period(asked)
    samples = kept(site().store.history(key, start, end, asked["points"]))
    rows = ([csvfile.moment(one.at), *(getattr(one, name) for name in HISTORY_FIELDS)] for one in samples)
    return _send("history", ["at", *HISTORY_FIELDS], rows)


def _queues(rows: Iterable[QueueRow], chosen: Filter | None) -> Iterator[QueueRow]:
    for top in rows:
        yield top
        whole = chosen is None or chosen.matches(top)
        for child in top.children:
            if whole or chosen is None or chosen.matches(child):
                yield child


def _line(row: QueueRow) -> Sequence[object]:
    parent = keys.show(row.parent) if row.parent else None
    return [row.key, *(_value(column, row) for column in COLUMNS.values()), parent, row.stale]


def _value(column: Column, row: QueueRow) -> object:
    value = column.value(row)
    if isinstance(value, tuple):
        return " ".join(value)
    if column.kind == "time" and not isinstance(value, str):
        return csvfile.moment(value)
    return value


def _head(column: Column) -> str:
    unit = "" if column.kind == "time" else column.unit
    return f"{column.name} ({unit})" if unit else column.name


def _entries(store: Store, wanted: dict[str, Any], page: list[AuditEntry]) -> Iterator[Sequence[object]]:
    while page:
        for entry in page:
            one = documents.entry(entry)
            yield [
                entry.id,
                csvfile.moment(entry.at),
                csvfile.moment(entry.ended_at),
                entry.who,
                entry.address,
                entry.role,
                entry.action,
                entry.target,
                one["name"],
                " ".join(entry.servers),
                entry.outcome,
                json.dumps(parameters.plain(dict(entry.detail)), ensure_ascii=False, allow_nan=False),
            ]
        full = len(page) == ENTRIES_AT_ONCE
        page = store.audit_list(page[-1].id, ENTRIES_AT_ONCE, wanted) if full else []
        if full and not page and (trouble := store.trouble()) is not None:
            # The connection breaks then, which a reader notices; a table that just ends looks whole.
            raise RuntimeError(trouble)


def _send(name: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Response:
    answer = Response(csvfile.lines(head, rows), content_type="text/csv; charset=utf-8; header=present")
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}.csv"'
    answer.headers["Cache-Control"] = "private, no-store"
    return answer
