"""The pages that show: overview, queues, one queue, servers, audit; and what an error looks like."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    make_response,
    render_template,
    request,
    send_from_directory,
)
from markupsafe import escape
from werkzeug.exceptions import HTTPException

from kestrel_stack.web import events, keys, problems
from kestrel_stack.web.access.auth import role
from kestrel_stack.web.actions import peek
from kestrel_stack.web.config import ACTIONS
from kestrel_stack.web.model import QueueRow, ServerState, View
from kestrel_stack.web.site import site
from kestrel_stack.web.tables import charts, columns, filters, text

log = logging.getLogger("kestrel-web")

blueprint = Blueprint("pages", __name__)

STATIC = Path(__file__).parent.parent / "static"
FRAGMENT_HEADER = "X-Kestrel-Fragment"
"""A script that asks with this header gets <main> only."""

PER_PAGE = (50, 100, 250, 500)
RANGES = {
    "15m": 15 * 60,
    "1h": 3600,
    "6h": 6 * 3600,
    "24h": 86400,
    "7d": 7 * 86400,
    "30d": 30 * 86400,
}
"""Of a queue's charts: what it is called, and its seconds."""
CHART_POINTS = 160
TABLE_POINTS = 24
SPARK_SECONDS, SPARK_POINTS = 900, 48
MAX_EVENT_TEXT = 100
"""Characters of what a parked record calls its event; an id has 36 at most."""

# Serials begin anew with every process.
_PROCESS = secrets.token_hex(4)


# What every template finds ---------------------------------------------------------------------------------


def path(*parts: str, **query: Any) -> str:
    """Return the address of a page below the prefix: ``path("/queues", key, "do", "flush", f="items>1")``.

    A part is quoted whole, unless it begins with a slash. None and "" in the query are left out.
    """
    at = request.script_root + "".join(
        part if part.startswith("/") else "/" + quote(part, safe="~:") for part in parts
    )
    pairs = [
        (name, each)
        for name, value in query.items()
        for each in (value if isinstance(value, list | tuple) else [value])
        if each not in (None, "")
    ]
    return at + ("?" + urlencode(pairs) if pairs else "")


@cache
def _version(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:10]


def static(name: str) -> str:
    """Return the address of one of our own files; it changes with the file's content."""
    return path("/static/" + name, v=_version(name))


def why_not(action: str) -> str | None:
    """Return why the one who asks may not do this now, in one line; None when they may."""
    parts = site()
    identity = parts.auth.who()
    if parts.config.read_only:
        return "kestrel-web is read-only"
    if action not in parts.config.actions:
        return f"{action.replace('_', ' ')} is switched off in the configuration"
    if identity is None or not identity.may("operator"):
        return "only an operator may do this"
    return None


def event_url(event: str | None) -> str | None:
    """Return where the event of a parked job is; None when that is not known."""
    return events.address(site().config.event_url, event)


@blueprint.record_once
def _globals(state: Any) -> None:
    app: Flask = state.app
    app.jinja_env.globals.update(
        path=path, static=static, why_not=why_not, event_url=event_url, spark=charts.spark
    )
    app.jinja_env.filters.update(
        short=text.short,
        exact=text.exact,
        clock=text.clock,
        exact_time=text.exact_time,
        ago=text.ago,
        show=keys.show,
        target_name=_target_name,
        detail=_detail,
        event_text=_event_text,
        count=text.count,
        size=text.size,
        rate=text.rate,
        duration=text.duration,
        milliseconds=text.milliseconds,
    )
    app.jinja_env.trim_blocks = True
    app.jinja_env.lstrip_blocks = True


def _event_text(event: str | None) -> str:
    """Return what a parked record calls its event, which may be anything, as a short text."""
    shown = peek.visible(event or text.NOTHING)
    return shown if len(shown) <= MAX_EVENT_TEXT else shown[:MAX_EVENT_TEXT] + "…"


def _target_name(target: str) -> str:
    """Return what an audit entry was about: a queue's name for its key, anything else as it is."""
    try:
        return keys.show(target)
    except ValueError:
        return target


def _detail(value: Any) -> str:
    """Return a value of an audit entry's details as a short text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_detail(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_detail, value))
    if value is None:
        return text.NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


@blueprint.app_context_processor
def _context() -> dict[str, Any]:
    parts = site()
    who = parts.auth.who()
    return {
        "fragment": FRAGMENT_HEADER in request.headers,
        "who": who,
        "environment": parts.config.environment,
        "read_only": parts.config.read_only,
        "may_operate": who is not None and who.may("operator") and not parts.config.read_only,
        "trouble": _trouble(),
        "now": f"{time.time():.3f}",
        "serial": 0,
        "live": False,
    }


def _trouble() -> str | None:
    parts = site()
    try:
        return parts.store.trouble() or parts.poller.trouble() or parts.alerting.trouble()
    except Exception:
        log.exception("the store's state")
        return "The history and the audit log cannot be reached."


def _answer(template: str, view: View, **values: Any) -> Response:
    """Return a page, or 304 when the one who asks has it of the same view already."""
    parts = site()
    who = parts.auth.who()
    seen = (_PROCESS, view.serial, request.full_path, FRAGMENT_HEADER in request.headers, who, _trouble())
    tag = hashlib.sha256(repr(seen).encode("utf-8", "surrogatepass")).hexdigest()[:20]
    # Only the script asks so: a browser's own reload must show a message that waits for it.
    if FRAGMENT_HEADER in request.headers and tag in request.if_none_match:
        answer = Response(status=304)
    else:
        answer = make_response(
            render_template(template, view=view, at=view.at, live=True, **(values | {"serial": view.serial}))
        )
    answer.set_etag(tag, weak=False)
    answer.headers["Cache-Control"] = "private, no-store"
    answer.headers["Vary"] = f"Cookie, {FRAGMENT_HEADER}"
    return answer


def _history(ask: Any, otherwise: Any) -> Any:
    """Return what the store says; a page does without when it cannot."""
    try:
        return ask()
    except Exception:
        log.exception("the history cannot be read")
        return otherwise


# Pages -----------------------------------------------------------------------------------------------------


@blueprint.get("/static/<path:name>")
@role(None)
def static_file(name: str) -> Response:
    """Send one of our own files; its address changes with its content, so it may be kept for long."""
    answer = send_from_directory(STATIC, name)
    answer.headers["Cache-Control"] = (
        "public, max-age=31536000, immutable" if request.args.get("v") else "public, max-age=300"
    )
    return answer


@blueprint.get("/")
@role("viewer")
def overview() -> Response:
    """Show what needs attention first, then the whole."""
    view = site().poller.view()
    tops = list(view.queues)
    sparks = _history(
        lambda: site().store.spark(["", *[r.key for r in tops]], SPARK_SECONDS, SPARK_POINTS), {}
    )
    busiest = _top(tops, lambda row: (row.numbers.rate_in or 0) + (row.numbers.rate_out or 0))
    oldest = _top(tops, lambda row: row.numbers.age_ms if row.numbers.items else 0)
    growing = _top(tops, _growth)
    return _answer(
        "overview.html",
        view,
        alerts=sorted(view.alerts, key=lambda alert: _GRAVITY.get(alert.kind, 9)),
        sparks=sparks,
        boards=(
            ("Busiest", "busiest", busiest, "in"),
            ("Oldest", "oldest", oldest, "age"),
            ("Growing", "growing", growing, "growth"),
        ),
        parked=sum(row.parked for row in tops) + _alone(tops, "errors"),
        delayed=sum(row.delayed for row in tops) + _alone(tops, "delay"),
        polled=any(server.polled_at is not None for server in view.servers),
    )


_GRAVITY = {"server_down": 0, "server_status": 1, "backlog": 2, "age": 3, "no_consumers": 4}
"""Which alerts come first."""


def _top(rows: Iterable[QueueRow], value: Any, count: int = 5) -> list[QueueRow]:
    return sorted((row for row in rows if value(row) > 0), key=value, reverse=True)[:count]


def _growth(row: QueueRow) -> float:
    growth = (row.numbers.rate_in or 0) - (row.numbers.rate_out or 0)
    return growth if growth >= 0.05 else 0  # less is chance


def _alone(tops: Iterable[QueueRow], kind: str) -> int:
    """Items in the error or delay queues that have no parent."""
    return sum(row.numbers.items + row.numbers.open_transactions for row in tops if row.kind == kind)


@dataclass(frozen=True)
class Shown:
    """A row of the table of queues on one page."""

    row: QueueRow
    open: bool
    matches: bool
    """False: it is there for the sake of a child."""
    children: tuple[QueueRow, ...]


@blueprint.get("/queues")
@role("viewer")
def queues() -> Response:
    """Show one row per queue over all servers."""
    view = site().poller.view()
    typed = request.args.get("f", "").strip()
    problem = None
    chosen: filters.Filter | None = None
    order, direction = request.args.get("sort") or "name", request.args.get("dir") or "asc"
    try:
        columns.arrange(View(), None, order, direction)
    except columns.SortError as error:
        problem = str(error)
        order, direction = "name", "asc"
    per = _number("per", 100)
    per = per if per in PER_PAGE else 100
    try:
        chosen = filters.parse(typed)
        count, page, shown = _table(view, chosen, order, direction, per)
    except filters.FilterError as error:
        problem = str(error)
        chosen = None
        count, page, shown = _table(view, None, order, direction, per)
    sorted_by = columns.column(order)
    groups = _groups()
    drawn = [row.key for each in shown for row in (each.row, *(each.children if each.open else ()))]
    sparks = _history(lambda: site().store.spark(drawn, SPARK_SECONDS, SPARK_POINTS), {})
    return _answer(
        "queues.html",
        view,
        typed=typed,
        chosen=chosen,
        problem=problem,
        shown=shown,
        count=count,
        sort=sorted_by.name if sorted_by else "name",
        dir=direction,
        groups=groups,
        all_groups=columns.GROUPS,
        columns=columns.shown(groups),
        every_column=columns.COLUMNS,
        page=page,
        pages=_pages(count, per),
        per=per,
        per_page=PER_PAGE,
        sparks=sparks,
        polled=any(server.polled_at is not None for server in view.servers),
        here=_here,
        as_of=lambda row: _as_of(view, row),
        open_with=lambda key: [*request.args.getlist("open"), key],
        open_without=lambda key: [each for each in request.args.getlist("open") if each not in (key, "*")],
    )


def _table(
    view: View, chosen: filters.Filter | None, order: str, direction: str, per: int
) -> tuple[int, int, list[Shown]]:
    """Return how many rows there are, the number of the page that is asked for, and what is on it."""
    rows = columns.arrange(view, chosen, order, direction)
    page = min(max(1, _number("page", 1)), _pages(len(rows), per))
    opened = set(request.args.getlist("open"))
    return len(rows), page, [_shown(row, chosen, opened) for row in rows[(page - 1) * per : page * per]]


def _pages(count: int, per: int) -> int:
    return max(1, -(-count // per))


def _shown(row: QueueRow, chosen: filters.Filter | None, opened: set[str]) -> Shown:
    matches = chosen is None or chosen.matches(row)
    children = row.children
    if chosen is not None and not matches:
        children = tuple(child for child in children if chosen.matches(child))
    return Shown(row, row.key in opened or "*" in opened or not matches, matches, children)


def _groups() -> tuple[str, ...]:
    asked = request.args.get("cols")
    if asked is None:
        return columns.DEFAULT_GROUPS
    return ("backlog", *(name for name in columns.GROUPS if name in asked.split(",") and name != "backlog"))


def _number(name: str, default: int) -> int:
    given = request.args.get(name, "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 7 else default


def _as_of(view: View, row: QueueRow) -> float | None:
    """Return when the oldest of a row's numbers were read."""
    times = [server.polled_at for server in view.servers if server.stale and server.address in row.servers]
    return min((at for at in times if at is not None), default=None)


def _here(**changes: Any) -> str:
    """Return the address of this page with other parameters; None leaves one out."""
    query: dict[str, Any] = {name: request.args.getlist(name) for name in request.args}
    query.update(changes)
    if "page" not in changes and changes.keys() & {"f", "sort", "dir", "per"}:
        query.pop("page", None)
    return path(request.path, **query)


def _row(view: View, key: str) -> QueueRow:
    try:
        keys.parse(key)
    except ValueError:
        abort(404, "This is not the key of a queue.")
    row = view.row(key)
    if row is None:
        abort(404, f"No server has a queue {keys.show(key)} now. It may have been deleted.")
    return row


@blueprint.get("/queues/<key>")
@role("viewer")
def queue(key: str) -> Response:
    """Show one queue: its numbers, where they come from, and its history."""
    view = site().poller.view()
    row = _row(view, key)
    chosen, start, end = _range(view)
    samples = _history(lambda: site().store.history(key, start, end, CHART_POINTS), [])
    parent = next((top for top in view.queues if row in top.children), None)
    return _answer(
        "queue.html",
        view,
        row=row,
        parent=parent,
        name=keys.show(key),
        range=chosen,
        ranges=RANGES,
        charts=_charts(row, samples, start, end),
        samples=_thinned(samples),
        columns=[each for each in columns.COLUMNS.values() if each.numbers is not None],
        here=_here,
    )


def _range(view: View) -> tuple[str, float, float]:
    """Return the time that charts show: what it is called, where it begins and ends."""
    chosen = request.args.get("range", "1h")
    chosen = chosen if chosen in RANGES else "1h"
    end = view.at or time.time()
    return chosen, end - RANGES[chosen], end


def _series(samples: list[Any], title: str, field: str, style: int = 1, factor: float = 1) -> charts.Series:
    points = []
    for sample in samples:
        value = getattr(sample, field)
        points.append((sample.at, None if value is None else value * factor))
    return charts.Series(title, points, style)


def _charts(row: QueueRow, samples: list[Any], start: float, end: float) -> list[tuple[str, Any, list[Any]]]:
    backlog = [_series(samples, "items", "items")]
    age = [_series(samples, "age", "age_ms", factor=0.001)]
    rates = [_series(samples, "in", "rate_in"), _series(samples, "out", "rate_out", 2)]
    return [
        ("Backlog", charts.chart("Backlog", backlog, start, end, limit=row.limits.backlog), backlog),
        (
            "Age of the next item",
            charts.chart("Age", age, start, end, kind="seconds", limit=row.limits.age_s),
            age,
        ),
        ("Rates per second", charts.chart("Rates", rates, start, end, kind="rate"), rates),
    ]


def _thinned(samples: list[Any]) -> list[Any]:
    """Return some of the samples, newest first, for the table beside the charts."""
    step = max(1, -(-len(samples) // TABLE_POINTS))
    return list(reversed(samples))[::step]


@blueprint.get("/servers")
@role("viewer")
def servers() -> Response:
    """Show how every server does."""
    return _answer("servers.html", site().poller.view())


@blueprint.get("/servers/<server>")
@role("viewer")
def server(server: str) -> Response:
    """Show one server and what it holds."""
    view = site().poller.view()
    state: ServerState | None = view.server(server)
    if state is None:
        abort(404, "This server is not in the configuration.")
    rows = [row for row in view.rows() if server in row.servers]
    chosen, start, end = _range(view)
    samples = _history(lambda: site().store.server_history(server, start, end, CHART_POINTS), [])
    items = [_series(samples, "items", "items")]
    rates = [_series(samples, "in", "rate_in"), _series(samples, "out", "rate_out", 2)]
    connections = [_series(samples, "connections", "connections")]
    return _answer(
        "server.html",
        view,
        server=state,
        rows=sorted(rows, key=lambda row: -row.servers[server].items)[:50],
        count=len(rows),
        range=chosen,
        ranges=RANGES,
        charts=[
            ("Items", charts.chart("Items", items, start, end), items),
            ("Rates per second", charts.chart("Rates", rates, start, end, kind="rate"), rates),
            ("Connections", charts.chart("Connections", connections, start, end), connections),
        ],
        here=_here,
    )


@blueprint.get("/audit")
@role("viewer")
def audit() -> Response:
    """Show who changed what, newest first."""
    wanted = {
        name: request.args.get(name, "").strip()[:200]
        for name in ("text", "who", "action", "target", "outcome")
        if request.args.get(name, "").strip()
    }
    before = _number("before", 0) or None
    entries = _history(lambda: site().store.audit_list(before, 51, wanted), None)
    return _answer(
        "audit.html",
        site().poller.view(),
        entries=(entries or [])[:50],
        more=bool(entries) and len(entries) > 50,
        unreadable=entries is None,
        actions=(*ACTIONS, "drop", "look"),
        wanted=wanted,
        before=before,
        here=_here,
    )


# Errors ----------------------------------------------------------------------------------------------------

TITLES = {
    400: "This request cannot be understood",
    401: "Log in first",
    403: "This is not allowed",
    404: "There is nothing here",
    405: "This cannot be done so",
    409: "This does not fit any more",
    413: "This is too large",
    429: "Too many attempts",
    500: "Something went wrong",
    503: "Not possible at the moment",
}
_LINES = {
    400: "The address or what was sent with it is not right.",
    401: "This page is for people who are logged in.",
    403: "You may look at this kestrel-web, but not do that.",
    404: "The address may be mistyped, or what it names is gone.",
    405: "The address takes no such request.",
    409: "Something has changed in the meantime. Look again, then decide.",
    413: "Less must be sent at once.",
    429: "Wait a while, then try again.",
    500: "Nothing is lost by that. The log of kestrel-web says what happened.",
    503: "Try again in a while.",
}


def error_page(status: int, line: str | None = None, *, login_url: str | None = None) -> Response:
    """Return the page of an error, in the design of all others."""
    title = TITLES.get(status, "This did not work")
    line = line or _LINES.get(status, "The request was not answered.")
    try:
        page = render_template("error.html", status=status, title=title, line=line, login_url=login_url)
    except Exception:
        # What broke the page may break this one as well; something must be said all the same.
        log.exception("the page of an error")
        page = f"<!doctype html><title>{status}</title><h1>{escape(title)}</h1><p>{escape(line)}"
    answer = make_response(page, status)
    answer.headers["Cache-Control"] = "no-store"
    return answer


@blueprint.app_errorhandler(filters.FilterError)
def _filter_error(error: filters.FilterError) -> Response:
    # Also of one that was understood, and takes too long once it is used.
    return _http_error(problems.Problem(400, "bad_filter", str(error)))


@blueprint.app_errorhandler(HTTPException)
def _http_error(error: HTTPException) -> Response:
    if problems.wanted():
        return problems.response(error)
    if error.response is not None or (error.code or 500) < 400:
        return error.get_response()  # type: ignore[return-value]
    status = error.code or 500
    # werkzeug's own sentences speak of URLs and servers; ours are given as descriptions.
    own = error.description != type(error).description
    answer = error_page(status, error.description if own else None)
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            answer.headers[name] = value
    return answer


@blueprint.app_errorhandler(Exception)
def _any_error(error: Exception) -> Response:
    log.exception("%s %s failed", request.method, request.path)
    return problems.response(error) if problems.wanted() else error_page(500)
