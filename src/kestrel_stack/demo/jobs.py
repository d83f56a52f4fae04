"""The demo's job: tell the third party of an order, once. jobs.php is the same in PHP."""

from __future__ import annotations

import os
import urllib.request
from typing import Any

from kestrel_stack.consumer import Context, Registry
from kestrel_stack.queue.once import Once, SqliteStore

TTL = 86400
"""Seconds for which it is remembered that an order was told."""

registry = Registry()


@registry.job("PostOrder")
def post_order(data: dict[str, Any], context: Context) -> None:
    """POST the order; whatever fails is raised, and the queue's delays say when it is tried again."""
    timeout = float(os.environ["DEMO_TIMEOUT"])
    # The claim of a worker that was killed ends soon after no call of its can be under way any more.
    once = Once(SqliteStore(os.environ["DEMO_ONCE"]), lease=timeout + 1)
    once.run(context.id, TTL, lambda: _post(data["order"], timeout))


def _post(order: str, timeout: float) -> None:
    url = f"{os.environ['DEMO_API']}/orders/{order}"
    request = urllib.request.Request(url, method="POST")  # noqa: S310 - the demo's own URL
    with urllib.request.urlopen(request, timeout=timeout):  # noqa: S310
        pass
