"""Waiting for an answer that comes at once, without going to sleep for it.

A job without much to do is handed over four times: queue server, worker, child, worker. Each time somebody
is put to sleep and woken, which takes longer than the work itself: a worker did 3,000 no-op jobs a second
without this and 5,000 with it (bench/jobs.py on 4 virtual processors).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

SPIN = 0.0003
"""Seconds of looking again and again before sleeping."""
QUICK = 0.001
"""Seconds: after an answer that took less, spin for the next. Being woken takes its time, too."""


class Spinner:
    """Looks for an answer a little longer before its owner sleeps, while answers come fast.

    Where they come slowly, and where there is one processor only, it never spins. Whoever else wants the
    processor gets it meanwhile.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._alone = len(os.sched_getaffinity(0)) < 2
        self._began = 0.0
        self._quick = False

    def look(self, look: Callable[[], Found]) -> Found:
        """Return what `look` returns as soon as that is true, or the last of it: then sleep, and `note`."""
        self._began = now = self._clock()
        found = look()
        if self._quick:
            end = now + SPIN
            while not found and self._clock() < end:
                os.sched_yield()
                found = look()
        return found

    def note(self) -> None:
        """Note that the answer is there: how long it took since `look` decides what the next `look` does."""
        self._quick = not self._alone and self._clock() - self._began < QUICK
