"""The pages that change something: a confirmation by GET, the deed by POST, and then what became of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from flask import Blueprint, Response, abort, make_response, redirect, render_template, request
from werkzeug.wrappers import Response as BaseResponse

from kestrel_stack.queue.producer import snake_case
from kestrel_stack.web import keys
from kestrel_stack.web.access.auth import role
from kestrel_stack.web.actions import peek, requeue
from kestrel_stack.web.actions.plans import ActionRefused, Plan, show
from kestrel_stack.web.actions.server_client import STATUSES
from kestrel_stack.web.site import site
from kestrel_stack.web.tables import columns, filters
from kestrel_stack.web.views.pages import path

blueprint = Blueprint("act", __name__)

TITLES = {
    "flush": "Flush {}?",
    "flush_expired": "Remove the expired items of {}?",
    "delete": "Delete {}?",
    "enqueue": "Enqueue on {}",
    "requeue": "Requeue parked jobs of {}",
    "drop": "Drop parked jobs of {}?",
    "reload": "Reload the configuration of {}?",
    "status": "Set the status of {}",
    "shutdown": "Shut down {}?",
}
BUTTONS = {
    "flush": "Flush",
    "flush_expired": "Remove expired items",
    "delete": "Delete",
    "enqueue": "Enqueue",
    "requeue": "Requeue",
    "drop": "Drop",
    "reload": "Reload",
    "status": "Set status",
    "shutdown": "Shut down",
}
FIELDS = {
    "enqueue": ("server", "job", "tenant", "data", "body", "as"),
    "requeue": ("all", "job", "tenant", "reason", "id", "count"),
    "drop": ("all", "job", "tenant", "reason", "id", "count"),
    "status": ("status",),
}
PICKS = ("flush", "flush_expired", "delete")
"""Actions on a queue that may leave out some servers."""
MOST_HEX = 512
"""Bytes of each parked job in hexadecimal: there may be hundreds on one page."""
AGAIN = (400, 409, 503)
"""Refusals after which the form is shown again, with the reason and the numbers of that moment."""


@blueprint.get("/queues/<key>/do/<action>")
@role("operator")
def confirm_queue(key: str, action: str) -> Response:
    """Show what an action would do to a queue."""
    return _form(action, _key(key))


@blueprint.post("/queues/<key>/do/<action>")
@role("operator")
def do_queue(key: str, action: str) -> BaseResponse:
    """Do it."""
    return _do(action, _key(key))


@blueprint.get("/servers/<server>/do/<action>")
@role("operator")
def confirm_server(server: str, action: str) -> Response:
    """Show what an action would do to a server."""
    return _form(action, _server(server))


@blueprint.post("/servers/<server>/do/<action>")
@role("operator")
def do_server(server: str, action: str) -> BaseResponse:
    """Do it."""
    return _do(action, _server(server))


@blueprint.get("/bulk/<action>")
@role("operator")
def confirm_bulk(action: str) -> Response:
    """Show what an action would do to several queues."""
    return _bulk_form(action)


@blueprint.post("/bulk/<action>")
@role("operator")
def do_bulk(action: str) -> BaseResponse:
    """Do it to those that were shown."""
    parts = site()
    targets = [_key(key) for key in request.form.getlist("key")]
    seen = {key: _count(f"seen-{key}") for key in targets}
    try:
        task = parts.actions.do_bulk(
            *(action, targets, parts.auth.who(), parts.auth.address()),
            confirm=request.form.get("confirm"),
            seen={key: number for key, number in seen.items() if number is not None},
            once=request.form.get("form"),
        )
    except ActionRefused as exc:
        if exc.status in AGAIN:
            return _bulk_form(action, exc, targets)
        _refuse(exc)
    return redirect(path("/tasks", task.id), 303)


@blueprint.get("/tasks/<task>")
@role("viewer")
def task(task: str) -> Response:
    """Show what became of an action, or how far it is."""
    parts = site()
    found = parts.actions.tasks.get(task)
    if found is None:
        abort(404, "This task is not known any more; what was done is in the audit log.")
    several = any(result.target for result in found.results) or found.target.endswith((" queue", " queues"))
    who = parts.auth.who()
    return make_response(
        render_template(
            "task.html",
            task=found,
            name=found.target if several else show(found.target),
            several=several,
            back=None if several else _page_of(found.target),
            live=found.running,
            every=1,
            # Whatever the allow-list says: it makes nothing happen.
            may_stop=found.running and found.can_stop and who is not None and who.may("operator"),
        ),
    )


@blueprint.post("/tasks/<task>/stop")
@role("operator")
def stop_task(task: str) -> BaseResponse:
    """Stop a task after the item in hand."""
    parts = site()
    if parts.config.read_only:
        abort(403, parts.actions.why_not("requeue") or "")
    if parts.actions.tasks.get(task) is None:
        abort(404, "This task is not known any more; what was done is in the audit log.")
    who = parts.auth.who()
    parts.actions.tasks.stop(task, who.name if who else "")
    return redirect(path("/tasks", task), 303)


@blueprint.get("/queues/<key>/peek")
@role("viewer")
def show_head(key: str) -> Response:
    """Show the head of a queue on one server, or on each."""
    parts = site()
    key = _key(key)
    form = request.args.get("as", "")
    if form not in ("", *peek.FORMS):
        abort(400, f"An item is shown as {', '.join(peek.FORMS)}, not as {form[:20]!r}.")
    addresses = list(map(str, parts.config.servers))
    asked = request.args.get("server", "")
    chosen = [_server(asked)] if asked else addresses
    with ThreadPoolExecutor(max_workers=8) as pool:
        heads = list(pool.map(lambda address: peek.look(parts.config, key, address), chosen))
    found = [head for head in heads if head.error or not head.empty]
    return make_response(
        render_template(
            "peek.html",
            key=key,
            name=keys.show(key),
            heads=found,
            asked=asked,
            form=form,
            forms=peek.FORMS,
            addresses=addresses,
            as_text=peek.as_text,
            visible=peek.visible,
        )
    )


@blueprint.get("/queues/<key>/parked")
@role("viewer")
def parked(key: str) -> Response:
    """Show what was last seen in the error queue; this takes nothing in hand."""
    return _parked(_key(key))


@blueprint.post("/queues/<key>/parked")
@role("operator")
def look_at_parked(key: str) -> BaseResponse:
    """Look at the first parked jobs, and give them back."""
    parts = site()
    key = _key(key)
    try:
        parts.actions.look(key, parts.auth.who(), parts.auth.address())
    except ActionRefused as exc:
        if exc.status not in AGAIN:
            _refuse(exc)
        return _parked(key, exc)
    wanted = {name: request.form.get(name, "") for name in ("job", "tenant", "reason")}
    return redirect(path("/queues", key, "parked", **wanted), 303)


# Forms ---------------------------------------------------------------------------------------------------


def _form(action: str, target: str, refused: ActionRefused | None = None) -> Response:
    parts = site()
    given = request.form if request.method == "POST" else request.args
    chosen = given.getlist("server") if ":" not in target and action in PICKS else []
    if refused is not None and refused.status == 404:
        _refuse(refused)
    for server in chosen:
        _server(server)
    try:
        plan = parts.actions.plan(action, target, {"servers": chosen} if chosen else {}, draft=True)
    except ActionRefused as exc:
        _refuse(exc)
    busy = parts.actions.busy(plan.target)
    values = {name: given.get(name, "") for name in FIELDS.get(action, ())}
    if action == "enqueue" and not values["job"] and plan.described is not None:
        values["job"] = _job_of(plan.described.queue.name)
    response = make_response(
        render_template(
            "act_confirm.html",
            plan=plan,
            title=TITLES[action].format(plan.name),
            button_text=_button(plan),
            values=values,
            error=str(refused) if refused else None,
            form=parts.actions.form_id(),
            back=_page_of(plan.target),
            picks=action in PICKS and len(plan.places) > 1 and ":" not in target,
            addresses=list(map(str, parts.config.servers)),
            statuses=STATUSES,
            busy=busy,
            running=_task_at(plan.target) if busy else None,
            limit=parts.config.confirm_typed_from,
        ),
        refused.status if refused else 200,
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _do(action: str, target: str) -> BaseResponse:
    parts = site()
    form = request.form
    options: dict[str, Any] = {name: form.get(name) for name in FIELDS.get(action, ())}
    for name in ("data", "body"):
        if options.get(name):
            # A browser sends every line end of a form as CR LF.
            options[name] = options[name].replace("\r\n", "\n")
    seen: int | None = None
    try:
        if ":" not in target:
            servers = form.getlist("server")
            if action in PICKS and servers:
                options["servers"] = servers
            elif action in PICKS and form.get("pick"):
                raise ActionRefused(400, "Tick at least one server.")
            counts = [_count(f"seen-{server}") for server in servers or map(str, parts.config.servers)]
            seen = sum(count or 0 for count in counts) if any(count is not None for count in counts) else None
        task = parts.actions.do(
            *(action, target, options, parts.auth.who(), parts.auth.address()),
            confirm=form.get("confirm"),
            seen=seen,
            once=form.get("form"),
        )
    except ActionRefused as exc:
        if exc.status in AGAIN:
            return _form(action, target, exc)
        _refuse(exc)
    return redirect(path("/tasks", task.id), 303)


def _bulk_form(
    action: str, refused: ActionRefused | None = None, targets: Iterable[str] | None = None
) -> Response:
    parts = site()
    try:
        bulk = parts.actions.plan_bulk(action, _chosen(action) if targets is None else targets, {})
    except ActionRefused as exc:
        _refuse(exc)
    response = make_response(
        render_template(
            "act_bulk.html",
            bulk=bulk,
            button_text=f"{BUTTONS[action]} {bulk.name}",
            error=str(refused) if refused else None,
            form=parts.actions.form_id(),
            back=path("/queues", f=request.args.get("f", "")),
        ),
        refused.status if refused else 200,
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _chosen(action: str) -> list[str]:
    """Return the keys of the queues that were ticked, or that match the filter themselves."""
    if not request.args.get("all"):
        return [_key(key) for key in request.args.getlist("key")]
    wanted = filters.parse(request.args.get("f", ""))
    rows = columns.arrange(site().poller.view(), wanted)
    found = [row for top in rows for row in (top, *top.children) if wanted.matches(row)]
    if action == "requeue":
        return [row.key for row in found if row.kind == "errors" or row.parked]
    return [row.key for row in found]


def _parked(key: str, refused: ActionRefused | None = None) -> Response:
    parts = site()
    parent = requeue.parent_of(key)
    plan: Plan | None = None
    problem: str | None = None
    try:
        plan = parts.actions.plan_look(key)
        problem = plan.problem
    except ActionRefused as exc:
        if exc.status == 404:
            _refuse(exc)
        problem = str(exc)
    found = parts.actions.last_look(key)
    wanted = {name: request.values.get(name, "").strip() for name in ("job", "tenant", "reason")}
    items = [item for item in (found.items if found else ()) if _meant(item, wanted)]
    response = make_response(
        render_template(
            "parked.html",
            key=parent,
            name=keys.show(parent),
            plan=plan,
            problem=problem,
            error=str(refused) if refused else None,
            look=found,
            why_no_look=parts.actions.why_no_look(parts.auth.who()),
            items=items,
            wanted=wanted,
            most=requeue.LOOK_ITEMS,
            seconds=requeue.LOOK_S,
            as_text=peek.as_text,
            pretty=peek.indented,
            hex_lines=peek.hex_lines,
            most_hex=MOST_HEX,
            is_text=peek.is_text,
            visible=peek.visible,
        ),
        refused.status if refused else 200,
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _meant(item: requeue.ParkedItem, wanted: dict[str, str]) -> bool:
    return all(
        not value or value.casefold() in (getattr(item, name) or "").casefold()
        for name, value in wanted.items()
    )


# Pieces --------------------------------------------------------------------------------------------------


def _key(key: str) -> str:
    try:
        keys.parse(key)
    except ValueError:
        abort(404, "This is not the key of a queue.")
    return key


def _server(address: str) -> str:
    if address not in map(str, site().config.servers):
        abort(404, "This server is not in the configuration.")
    return address


def _count(name: str) -> int | None:
    with contextlib.suppress(ValueError):
        return min(int(request.form.get(name, "")[:18]), 10**15)
    return None


def _button(plan: Plan) -> str:
    said = BUTTONS[plan.action]
    if plan.action in ("flush", "delete") and plan.count:
        return f"{said} {plan.count:,} {'item' if plan.count == 1 else 'items'}"
    return said


def _task_at(target: str) -> str | None:
    """Return the address of the task that is at a queue."""
    found = (task.id for task in site().actions.tasks.running() if task.target == target)
    return next((path("/tasks", task) for task in found), None)


def _page_of(target: str) -> str:
    return path("/servers" if ":" in target else "/queues", target)


def _job_of(queue: str) -> str:
    """Return the job that has this queue by default, if its name leads back there."""
    made = "".join(part.capitalize() for part in queue.split("_"))
    return made if snake_case(made) == queue else ""


def _refuse(exc: ActionRefused) -> NoReturn:
    abort(exc.status, str(exc))
