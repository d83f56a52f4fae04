"""Putting a parked job back on its queue, for a new first attempt with all retries."""

from __future__ import annotations

from collections.abc import Callable

from kestrel_stack.queue.envelope import afresh
from kestrel_stack.queue.errors import InvalidEnvelope
from kestrel_stack.queue.jobs.parked import Found


def put_back(found: Found, put: Callable[[bytes], None]) -> bool:
    """Have `put` write the job of a parked item, then take the item away; say whether that was done.

    It is not for an item that is no parked record, which stays. What `put` raises leaves the item parked.
    """
    if found.record is None:
        return False
    try:
        body = afresh(found.record.body)
    except InvalidEnvelope:
        body = found.record.body
    # First there, then away from here: a cut in between leaves it in both places.
    put(body)
    found.remove()
    return True
