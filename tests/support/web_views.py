"""Views of kestrel-web made by hand."""

from __future__ import annotations

from collections.abc import Mapping

from kestrel_stack.web.model import Limits, QueueNumbers, QueueRow, ServerNumbers, ServerState, View

START = 1_800_000_000.0


def server(address: str = "a:1", fresh: bool = True, **fields) -> ServerState:
    """A server that answers, or one that has not answered for a while."""
    fields = {"attempted_at": START, "status": "UP" if fresh else None} | fields
    fields.setdefault("polled_at", START)
    if not fresh:
        fields.setdefault("error", "it does not answer")
    return ServerState(address, reachable=fresh, stale=not fresh, numbers=ServerNumbers(), **fields)


def row(key: str, limits: Limits | None = None, servers: Mapping[str, QueueNumbers] | None = None, **more):
    """A queue's row whose numbers are those of its servers; without `servers` it is on a:1."""
    own = {name: more.pop(name) for name in list(more) if name in QueueNumbers.__dataclass_fields__}
    parts = dict(servers) if servers is not None else {"a:1": QueueNumbers(**own)}
    total = QueueNumbers(
        items=sum(part.items for part in parts.values()),
        age_ms=max((part.age_ms for part in parts.values()), default=0),
        waiters=sum(part.waiters for part in parts.values()),
        open_transactions=sum(part.open_transactions for part in parts.values()),
        rate_in=own.get("rate_in"),
        rate_out=own.get("rate_out"),
    )
    return QueueRow(key, limits=limits or Limits(), numbers=total, servers=parts, **more)


def view(at: float, *rows: QueueRow, servers: tuple[ServerState, ...] | None = None) -> View:
    """What is known at a moment; the servers know the queues of the rows that name them."""
    states = servers or (server(),)
    totals = QueueNumbers(items=sum(each.numbers.items for each in rows))
    return View(serial=1, at=at, servers=states, queues=rows, totals=totals)
