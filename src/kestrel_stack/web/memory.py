"""How much memory the C library keeps for a process with many threads."""

from __future__ import annotations

import contextlib
import ctypes

M_ARENA_MAX = -8
ARENAS = 2


def few_arenas() -> bool:
    """Have all threads share two heaps; say whether the C library does so.

    glibc gives each thread one of its own, and what one of sixteen threads has freed is of no use to the
    others: at 2,000 queues on three servers that doubles the memory. Other C libraries have no such thing.
    """
    with contextlib.suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS))
    return False
