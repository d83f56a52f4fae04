"""Steps that take a while: one line each with its time; a timer on a terminal, plain lines in a pipe."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

NAME_WIDTH = 44
TICK_SECONDS = 0.2
# In a pipe a step says that it is still alive this often, so that a CI job without output is not taken for
# dead.
PLAIN_SECONDS = 30.0


def clock(seconds: float) -> str:
    """Return a duration for people: ``0.4 s``, ``38 s``, ``2 min 05 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def say(text: str, out: TextIO | None = None) -> None:
    """Print a line for the user, at once: programs that we run write to the same stream."""
    print(text, file=out if out is not None else sys.stdout, flush=True)


class Step:
    """One running step; ``detail`` is what it is doing now, ``result`` what its final line says."""

    def __init__(self, name: str, out: TextIO) -> None:
        self.name = name
        self.result = ""
        self._out = out
        self._detail = ""
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._terminal = out.isatty()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._lock = threading.Lock()
        self._thread.start()

    @property
    def seconds(self) -> float:
        """Return how long the step has been running, in seconds."""
        return time.monotonic() - self._started

    def detail(self, text: str) -> None:
        """Say what the step is doing now: on a terminal beside the timer, in a pipe as a line of its own."""
        if self._terminal:
            self._detail = text
        else:
            self.line(f"    {text}")

    def line(self, text: str) -> None:
        """Print a line of its own, above the timer."""
        with self._lock:
            self._clear()
            print(text, file=self._out, flush=True)

    def _tick(self) -> None:
        while not self._stop.wait(TICK_SECONDS if self._terminal else PLAIN_SECONDS):
            with self._lock:
                if self._terminal:
                    width = shutil.get_terminal_size().columns - 1
                    line = f"  {self.name:<{NAME_WIDTH}} {clock(self.seconds):>10}  {self._detail}"
                    print(f"\r\033[K{line[:width]}", end="", file=self._out, flush=True)
                else:
                    print(f"    {self.name}: {clock(self.seconds)}", file=self._out, flush=True)

    def _clear(self) -> None:
        if self._terminal:
            print("\r\033[K", end="", file=self._out, flush=True)

    def finish(self, outcome: str) -> None:
        """Stop the timer and print the step's one line."""
        self._stop.set()
        self._thread.join()
        self._clear()
        line = f"  {self.name:<{NAME_WIDTH}} {clock(self.seconds):>10}  {outcome}"
        print(line.rstrip(), file=self._out, flush=True)


@contextlib.contextmanager
def step(name: str, out: TextIO | None = None) -> Iterator[Step]:
    """Run a block as one step. Its line says ``failed`` or ``interrupted`` when the block raises."""
    running = Step(name, out if out is not None else sys.stdout)
    try:
        yield running
    except KeyboardInterrupt:
        running.finish("interrupted")
        raise
    except BaseException:
        running.finish("failed")
        raise
    running.finish(running.result)
