"""The JSON API below ``/api/v1``; ``openapi.json`` in this package describes every address of it.

What shows the present comes from the latest view, carries its serial as ETag and costs nothing when it is
asked for again before the next poll.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, TypeVar

from flask import Blueprint, Response, request

from kestrel_stack.web import bodies, keys, parameters
from kestrel_stack.web.access.auth import role
from kestrel_stack.web.actions import peek
from kestrel_stack.web.actions.plans import ActionRefused
from kestrel_stack.web.model import QueueRow, ServerState, View
from kestrel_stack.web.problems import Problem
from kestrel_stack.web.record.audit import OUTCOMES
from kestrel_stack.web.site import site
from kestrel_stack.web.tables import columns, documents

T = TypeVar("T")

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")

QUEUES_AT_ONCE, QUEUES_AT_MOST = 100, 1000
ENTRIES_AT_ONCE, ENTRIES_AT_MOST = 100, 500
POINTS, POINTS_AT_MOST = 240, 2000
HOURS = 1.0
"""Of history, unless more or less is asked for."""
PERIOD = {"start": parameters.moment, "end": parameters.moment, "hours": parameters.hours}

AUDIT_FILTERS = {
    "who": parameters.text(),
    "action": parameters.text(),
    "target": parameters.text(),
    "outcome": parameters.choice(*OUTCOMES),
    "server": parameters.text(),
    "text": parameters.text(),
    "since": parameters.moment,
    "until": parameters.moment,
}
REFUSED = {400: "bad_parameter", 403: "forbidden", 404: "not_found", 409: "conflict", 503: "unavailable"}
PAGE_BEFORE = parameters.whole(1, parameters.MAX_WHOLE)
PAGE_LIMIT = parameters.whole(1, ENTRIES_AT_MOST, ENTRIES_AT_ONCE)
_BOOT = secrets.token_hex(4)
"""Serials begin again with the process; ETags must not."""


@blueprint.get("/openapi.json")
@role("viewer")
def openapi() -> Response:
    """Answer with the description of this API."""
    parameters.read(request.args, {})
    text = resources.files("kestrel_stack.web").joinpath("openapi.json").read_text("utf-8")
    if request.script_root:
        # An address in it counts from the host, and only the configuration knows what stands before it.
        document = json.loads(text)
        document["servers"][0]["url"] = request.script_root + document["servers"][0]["url"]
        text = json.dumps(document, ensure_ascii=False, indent=1)
    return _conditional(Response(text, mimetype="application/json"))


@blueprint.get("/overview")
@role("viewer")
def overview() -> Response:
    """Answer with everything in short."""
    parameters.read(request.args, {})
    return _of_view(lambda view: documents.overview(site(), view))


@blueprint.get("/alerts")
@role("viewer")
def alerts() -> Response:
    """Answer with what is raised now."""
    parameters.read(request.args, {})
    return _of_view(
        lambda view: {"at": view.at, "serial": view.serial, "alerts": documents.alerts(view.alerts)}
    )


@blueprint.get("/queues")
@role("viewer")
def queues() -> Response:
    """Answer with a page of the queues that a filter leaves, in an order."""
    asked = parameters.read(
        request.args,
        {
            **parameters.OF_THE_TABLE,
            "limit": parameters.whole(1, QUEUES_AT_MOST, QUEUES_AT_ONCE),
            "offset": parameters.whole(0, parameters.MAX_WHOLE, 0),
        },
    )

    def page(view: View) -> dict[str, Any]:
        rows = columns.arrange(view, asked["f"], asked["sort"], asked["dir"])
        first, after = asked["offset"], asked["offset"] + asked["limit"]
        return {
            "at": view.at,
            "serial": view.serial,
            "total": len(rows),
            "offset": first,
            "limit": asked["limit"],
            "next_offset": after if after < len(rows) else None,
            "queues": [documents.queue(row) for row in rows[first:after]],
        }

    return _of_view(page)


@blueprint.get("/queues/<key>")
@role("viewer")
def queue(key: str) -> Response:
    """Answer with one queue in full."""
    parameters.read(request.args, {})
    return _of_view(
        lambda view: {
            "at": view.at,
            "serial": view.serial,
            "queue": documents.queue_in_full(_row(view, key)),
        }
    )


@blueprint.get("/servers")
@role("viewer")
def servers() -> Response:
    """Answer with every server."""
    parameters.read(request.args, {})
    return _of_view(
        lambda view: {
            "at": view.at,
            "serial": view.serial,
            "servers": [documents.server(state) for state in view.servers],
        }
    )


@blueprint.get("/servers/<server>")
@role("viewer")
def server(server: str) -> Response:
    """Answer with one server."""
    parameters.read(request.args, {})
    return _of_view(
        lambda view: {"at": view.at, "serial": view.serial, "server": documents.server(_server(view, server))}
    )


@blueprint.get("/queues/<key>/history")
@role("viewer")
def history(key: str) -> Response:
    """Answer with what a queue was like, also of one that is gone."""
    _legal(key)
    asked = parameters.read(request.args, PERIOD | {"points": parameters.whole(1, POINTS_AT_MOST, POINTS)})
    start, end = period(asked)
    samples = kept(site().store.history(key, start, end, asked["points"]))
    return _conditional(
        _json(
            {
                "key": key,
                "name": keys.show(key),
                "start": start,
                "end": end,
                "samples": [documents.sample(one) for one in samples],
            }
        )
    )


@blueprint.get("/queues/<key>/peek")
@role("viewer")
def look(key: str) -> Response:
    """Answer with the head of a queue on one server; it stays where it is."""
    _legal(key)
    address = parameters.read(request.args, {"server": parameters.text()})["server"]
    view = site().poller.view()
    head = peek.look(site().config, key, _server(view, address).address if address else _holder(view, key))
    if head.error is not None:
        raise Problem(503, "unavailable", head.error)
    answer = _json(documents.head(site(), head))
    answer.headers["Cache-Control"] = "no-store"
    return answer


@blueprint.get("/audit")
@role("viewer")
def audit() -> Response:
    """Answer with who did what, newest first."""
    asked = parameters.read(request.args, AUDIT_FILTERS | {"before": PAGE_BEFORE, "limit": PAGE_LIMIT})
    limit = asked["limit"]
    entries = kept(site().store.audit_list(asked["before"], limit + 1, audit_filters(asked)))
    return _conditional(
        _json(
            {
                "limit": limit,
                "next_before": entries[limit - 1].id if len(entries) > limit else None,
                "entries": [documents.entry(one) for one in entries[:limit]],
            }
        )
    )


@blueprint.get("/tasks/<task>")
@role("viewer")
def task(task: str) -> Response:
    """Answer with how far something is that takes a while."""
    parameters.read(request.args, {})
    found = site().actions.tasks.get(task)
    if found is None:
        raise Problem(404, "no_task", "There is no such task; a restart of kestrel-web forgets them.")
    return _json({"task": documents.task(found)})


@blueprint.post("/queues/<key>/<any(flush,flush_expired,delete,enqueue,requeue,drop):action>")
@role("operator")
def act_on_queue(key: str, action: str) -> Response:
    """Do something to a queue."""
    parameters.read(request.args, {})
    _legal(key)
    return _act(action, key, bodies.read(action, parameters.body(request), bodies.OF_QUEUES[action]))


@blueprint.post("/servers/<server>/<any(reload,status,flush_expired,shutdown):action>")
@role("operator")
def act_on_server(server: str, action: str) -> Response:
    """Do something to a server."""
    parameters.read(request.args, {})
    _server(site().poller.view(), server)
    return _act(action, server, bodies.read(action, parameters.body(request), bodies.OF_SERVERS[action]))


def _act(action: str, target: str, options: dict[str, Any]) -> Response:
    """Have it done, and answer with the task: over, or under way when parked jobs are moved."""
    parts = site()
    confirm, seen = options.pop("confirm", None), options.pop("seen", None)
    try:
        task = parts.actions.do(
            action,
            target,
            options,
            parts.auth.who(),
            parts.auth.address(),
            confirm=confirm,
            seen=seen,
            # A program has seen no page that names the queue.
            always_typed=True,
        )
    except ActionRefused as refused:
        raise Problem(refused.status, REFUSED.get(refused.status, "refused"), str(refused)) from None
    answer = _json({"task": documents.task(task)}, 202 if task.running else 200)
    answer.headers["Cache-Control"] = "no-store"
    if task.running:
        answer.headers["Location"] = f"{request.script_root}{blueprint.url_prefix}/tasks/{task.id}"
    return answer


def period(asked: Mapping[str, Any]) -> tuple[float, float]:
    """Return the beginning and the end that the parameters of `PERIOD` mean."""
    start, end, hours = asked["start"], asked["end"], asked["hours"]
    if start is not None and hours is not None:
        raise parameters.bad("hours", "goes without start")
    end = time.time() if end is None else end
    if start is None:
        start = max(0.0, end - 3600 * (HOURS if hours is None else hours))
    elif start >= end:
        raise parameters.bad("start", "must be before end")
    return start, end


def kept(found: list[T]) -> list[T]:
    """Return what the store has found, unless it found nothing because it is in trouble."""
    trouble = None if found else site().store.trouble()
    if trouble is not None:
        raise Problem(503, "unavailable", trouble)
    return found


def audit_filters(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the filters among some parameters, without empty ones."""
    return {name: asked[name] for name in AUDIT_FILTERS if asked[name] not in (None, "")}


def _row(view: View, key: str) -> QueueRow:
    row = view.row(_legal(key))
    if row is None:
        raise Problem(404, "no_queue", f"No server has a queue {keys.show(key)} now.")
    return row


def _holder(view: View, key: str) -> str:
    """Return a server that has items of a queue, or else one that has the queue."""
    servers = _row(view, key).servers
    return next((address for address, numbers in servers.items() if numbers.items), next(iter(servers)))


def _legal(key: str) -> str:
    try:
        keys.parse(key)
    except ValueError:
        raise Problem(404, "no_queue", "This is not the key of a queue.") from None
    return key


def _server(view: View, address: str) -> ServerState:
    state = view.server(address)
    if state is None:
        raise Problem(404, "no_server", "This server is not in the configuration of kestrel-web.")
    return state


def _of_view(make: Callable[[View], dict[str, Any]]) -> Response:
    """Answer from the latest view, or say that it is still the one that was answered before."""
    view = site().poller.view()
    tag = f"{_BOOT}-{view.serial}"
    seen = request.if_none_match.contains_weak(tag)
    answer = Response(status=304) if seen else _json(make(view))
    answer.set_etag(tag, weak=True)
    answer.headers["Cache-Control"] = "private, no-cache"
    return answer


def _json(document: dict[str, Any], status: int = 200) -> Response:
    text = json.dumps(parameters.plain(document), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text + "\n", status, mimetype="application/json")


def _conditional(answer: Response) -> Response:
    """Let who has this content already keep it."""
    answer.set_etag(hashlib.sha256(answer.get_data()).hexdigest()[:20], weak=True)
    answer.headers["Cache-Control"] = "private, no-cache"
    return answer.make_conditional(request)  # type: ignore[return-value]
