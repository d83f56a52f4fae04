"""When a job that failed is tried again; the same rule in every language.

A job that fails at attempt n waits in the n-th of its queue's retry delays and comes again as attempt n + 1.
When there is none left, it is parked.
"""

from __future__ import annotations

from collections.abc import Sequence


class Park(Exception):  # noqa: N818 - the names say what is asked for, as in `raise Park`.
    """Raised by a job that will never work: it is parked at once, with `reason` for its reader."""

    def __init__(self, reason: str = "it gave no reason"):
        super().__init__(reason)
        self.reason = reason


class Retry(Exception):  # noqa: N818
    """Raised by a job that cannot be done now: it is tried again after `delay` seconds.

    Only a delay that the queue is configured with can be had; without one, or with another, it is the next
    of the queue's delays. How often a job is tried is the same as for any failure.
    """

    def __init__(self, delay: int | None = None, reason: str = "it gave no reason"):
        super().__init__(reason)
        self.delay = delay
        self.reason = reason


def next_delay(attempt: int, delays: Sequence[int], wanted: object = None) -> int | None:
    """Return after how many seconds a job that failed at `attempt` is tried again; None: it is parked.

    `wanted` is the delay that the job asked for; what is not one of `delays` is not heeded.
    """
    if attempt > len(delays):
        return None
    # By its type, too: true is no delay of 1 s.
    return wanted if type(wanted) is int and wanted in delays else delays[attempt - 1]
