"""``/healthz``: whether kestrel-web does its work. A Kestrel that is down does not make it unhealthy."""

from __future__ import annotations

import json

from flask import Blueprint, Response, request

import kestrel_stack
from kestrel_stack.web import parameters
from kestrel_stack.web.access.auth import role
from kestrel_stack.web.site import site

blueprint = Blueprint("health", __name__)

OK, DEGRADED, STUCK = "ok", "degraded", "stuck"


@blueprint.get("/healthz")
@role(None)
def healthz() -> Response:
    """Answer 200, or 503 when the servers are not being asked any more.

    Anybody may ask, so that nothing is said here that is not for anybody: numbers of servers, no names.
    """
    parameters.read(request.args, {})
    parts = site()
    view = parts.poller.view()
    stuck, trouble = parts.poller.trouble(), parts.store.trouble()
    webhook = "off" if parts.config.webhook is None else "failing" if parts.alerting.trouble() else "ok"
    document = {
        "status": STUCK if stuck else DEGRADED if trouble or webhook == "failing" else OK,
        "version": kestrel_stack.__version__,
        "polling": stuck and (stuck if _may_know() else "It does not poll as it should; its log says more."),
        "database": trouble,
        "webhook": webhook,
        "servers": {
            "configured": len(view.servers),
            "reachable": sum(server.reachable for server in view.servers),
            "stale": sum(server.stale for server in view.servers),
        },
        "at": view.at,
    }
    answer = Response(
        json.dumps(parameters.plain(document)) + "\n", 503 if stuck else 200, mimetype="application/json"
    )
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _may_know() -> bool:
    """Say whether the one who asks sees the servers anyway."""
    identity = site().auth.who()
    return identity is not None and identity.may("viewer")
