"""How far a long command is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

WIDTH = 30
TERMINAL_PAUSE = 0.1
"""Seconds between two drawings of the bar."""
LINE_PAUSE = 5.0
"""Seconds between two lines in a pipe or file."""


class Progress:
    """Shows on `stream` how many of `total` items are through, and how fast; `what` happens to them."""

    def __init__(self, what: str, total: int, stream: TextIO):
        self.what = what
        self.total = total
        self.count = 0
        self._stream = stream
        self._terminal = stream.isatty()
        self._began = time.monotonic()
        self._next = self._began + (0 if self._terminal else LINE_PAUSE)

    def step(self) -> None:
        """Count one more item."""
        self.count += 1
        now = time.monotonic()
        if now >= self._next:
            self._next = now + (TERMINAL_PAUSE if self._terminal else LINE_PAUSE)
            self._show()

    def clear(self) -> None:
        """Take the bar away, before something else is printed."""
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def summary(self, count: int | None = None) -> str:
        """Return the last line: how many in which time; `count` when not all that was seen was meant."""
        seconds = time.monotonic() - self._began
        done = self.count if count is None else count
        return f"{self.what}: {done:,} of {self.total:,} in {seconds:.1f} s ({self._rate():,.0f}/s)"

    def _show(self) -> None:
        # Others may add items meanwhile.
        total = max(self.total, self.count)
        text = f"{self.what} {self.count:,} of {total:,}  {self._rate():,.0f}/s"
        if self._terminal:
            filled = WIDTH * self.count // total
            self._stream.write(f"\r[{'#' * filled}{' ' * (WIDTH - filled)}] {text}\x1b[K")
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def _rate(self) -> float:
        return self.count / max(time.monotonic() - self._began, 0.001)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
