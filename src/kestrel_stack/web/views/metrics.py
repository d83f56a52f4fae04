"""``/metrics`` for Prometheus; ``?f=FILTER`` shows only queues that the filter lets through."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from flask import Blueprint, Response, request
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

import kestrel_stack
from kestrel_stack.web import parameters
from kestrel_stack.web.access.auth import role
from kestrel_stack.web.site import Site, site
from kestrel_stack.web.tables.exposition import Families, Moment
from kestrel_stack.web.tables.filters import Filter

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
@role("metrics")
def metrics() -> Response:
    """Answer a scrape from what the last polls found."""
    filter_ = parameters.read(request.args, {"f": parameters.queue_filter})["f"]
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(Families(_moment(site(), filter_)))
    encode, content_type = _encoder(request.headers.get("Accept", ""))
    answer = Response(encode(registry), content_type=content_type)
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """Return how to write for who accepts this; text where the header makes no sense."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        # It compares the parts of a version as they come.
        return choose_encoder("")


def _moment(parts: Site, filter_: Filter | None) -> Moment:
    view = parts.poller.view()
    counted = parts.alerting.counters() if parts.config.webhook else None
    rows = None if filter_ is None else tuple(row for row in view.rows() if filter_.matches(row))
    return Moment(
        view=view,
        now=time.time(),
        version=kestrel_stack.__version__,
        environment=parts.config.environment,
        store_trouble=parts.store.trouble() is not None,
        polls={
            address: (count.polls, count.failures, count.seconds)
            for address, count in parts.poller.counters().items()
        },
        webhook={} if counted is None else asdict(counted),
        rows=rows,
    )
