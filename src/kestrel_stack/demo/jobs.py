"""The demo's job: tell the third party of an order, once."""

from __future__ import annotations

import os
import urllib.request
from typing import Any

from kestrel_stack.consumer import Context, Registry
from kestrel_stack.queue.once import Once

TTL = 86400
"""Seconds for which an order that was told is remembered."""

registry = Registry()


@registry.job("PostOrder")
def post_order(data: dict[str, Any], context: Context) -> None:
    """POST the order; what fails is raised, and the queue's delays say when it is tried again."""
    once = Once.sqlite(os.environ["DEMO_ONCE"])
    once.run(context.id, TTL, lambda: _post(data["order"]))


def _post(order: str) -> None:
    url = f"{os.environ['DEMO_API']}/orders/{order}"
    request = urllib.request.Request(url, method="POST")  # noqa: S310 - the demo's own URL
    with urllib.request.urlopen(request, timeout=float(os.environ["DEMO_TIMEOUT"])):  # noqa: S310
        pass
