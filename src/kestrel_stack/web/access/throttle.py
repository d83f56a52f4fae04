"""How often somebody may try a password: a few times freely, then after waits that double.

A failure is counted when an attempt begins and taken back when it succeeds, so a hundred attempts at once are
a hundred failures and not none. Everything is in memory and bounded; nothing is ever blocked for good: the
wait ends, and after an hour of quiet everything is forgotten.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FORGET_S = 3600.0


@dataclass(frozen=True)
class Limit:
    """So many failures are free; then the wait is 1 s, 2 s, 4 s … `longest_s`."""

    free: int
    longest_s: float


@dataclass
class _Entry:
    failures: int = 0
    at: float = 0.0
    until: float = 0.0


class Throttle:
    """Failures by key, each kind of key with its own limit and its own room for `size` keys."""

    def __init__(self, limit: Limit, size: int, clock: Callable[[], float] = time.monotonic):
        self.limit = limit
        self._size = size
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, key: str) -> float:
        """Count an attempt and return 0; or return the seconds to wait, without counting it."""
        now = self._clock()
        with self._lock:
            entry = self._entries.pop(key, None) or _Entry()
            self._entries[key] = entry
            if now - entry.at > FORGET_S:
                entry.failures, entry.until = 0, 0.0
            if now < entry.until:
                return entry.until - now
            entry.failures += 1
            entry.at = now
            over = entry.failures - self.limit.free
            if over >= 0:
                entry.until = now + min(self.limit.longest_s, 2.0 ** min(over, 30))
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)
            return 0.0

    def take_back(self, key: str) -> None:
        """Forget the attempt that began last: it was none, or it was right."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.failures = max(0, entry.failures - 1)
                entry.until = 0.0

    def __len__(self) -> int:
        return len(self._entries)


def network(address: str) -> str:
    """Return what counts as one address: of IPv6 the /64, which is as small as anybody gets."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))
