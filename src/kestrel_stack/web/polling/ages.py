"""How long the next item of a queue has waited, as far as anybody can know.

What a server calls a queue's age is how long ago the item was added that it gave out last (source: Kestrel
2.4.1's code). So it is right while consumers work; it is much too large for items that came after a pause;
and until the first item is given out it is the time since 1970. But whoever has seen the queue empty knows
that everything in it came later, and whoever has not knows at least since when they have seen it wait.
"""

from __future__ import annotations

from collections.abc import Mapping

from kestrel_stack.web.polling.stats import Raw

NEVER_MS = 20 * 365 * 86400 * 1000
"""An age from here on is a date: nothing has been given out yet."""


class Ages:
    """The ages of one server's queues; moments are of the monotonic clock."""

    def __init__(self) -> None:
        self._empty: dict[str, float] = {}
        self._first: dict[str, float] = {}

    def update(self, at: float, queues: Mapping[str, Raw]) -> Mapping[str, int]:
        """Take what was read at one moment, and return the ages in milliseconds."""
        empty, first = self._empty, self._first
        self._empty, self._first = {}, {}
        ages: dict[str, int] = {}
        for key, raw in queues.items():
            said = raw.get("age_ms", 0)
            self._first[key] = first.get(key, at)
            if raw.get("items", 0) + raw.get("open_transactions", 0) == 0:
                self._empty[key] = at
            elif key in empty:
                self._empty[key] = empty[key]
            if raw.get("items", 0) == 0:
                ages[key] = 0
            elif key in self._empty:
                ages[key] = min(said, _ms(at - self._empty[key]))
            else:
                ages[key] = said if said < NEVER_MS else _ms(at - self._first[key])
        return ages


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
