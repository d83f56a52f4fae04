"""What the processes write, made readable: one line each, with its process's name and a colour."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from kestrel_stack.consumer import log

COLOURS = ("36", "35", "34", "32", "33", "96", "95", "94")
DIM, RED, YELLOW, GREEN, BOLD = "2", "31", "33", "32", "1"
_LEVELS = {"warning": YELLOW, "error": RED, "debug": DIM}
_OUTCOMES = {"done": GREEN, "retry": YELLOW, "parked": RED, "lost": YELLOW}
_SILENT = frozenset(["worker begins", "worker ends", "mover begins", "mover ends", "child is replaced"])
"""What bin/dev itself tells, or what nobody asks in front of a terminal."""
_JOB_KEYS = ("time", "level", "event", "queue", "job", "id", "tenant", "attempt")


class Screen:
    """Writes lines to a terminal in colour, elsewhere plain."""

    def __init__(self, out: TextIO | None = None, colour: bool | None = None):
        self._out = sys.stdout if out is None else out
        if isinstance(self._out, io.TextIOWrapper):
            # A letter that the terminal does not have is no reason to say nothing.
            self._out.reconfigure(errors="backslashreplace")
        terminal = self._out.isatty()
        self.colour = terminal and not os.environ.get("NO_COLOR") if colour is None else colour
        self.gone = False
        """Nobody reads any more: the terminal was closed, or the pipe."""
        self._width = 0
        self._colours: dict[str, str] = {}

    def know(self, name: str) -> None:
        """Give a process a colour, and its name room."""
        self._width = max(self._width, len(name))
        self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])

    def say(self, text: str, code: str = BOLD) -> None:
        """Write a line of bin/dev's own."""
        self._row("bin/dev", BOLD, self.paint(text, code))

    def plain(self, text: str) -> None:
        """Write text as it is."""
        self._write(text)

    def line(self, name: str, data: bytes) -> None:
        """Write what a process has written, unless it is nothing for a reader."""
        shown = self.readable(data)
        if shown is not None:
            self._row(name, self._colours.get(name, BOLD), shown)

    def _row(self, name: str, code: str, shown: str) -> None:
        self._write(f"{self.paint(_clock(), DIM)} {self.paint(name.ljust(self._width), code)} {shown}")

    def readable(self, data: bytes) -> str | None:
        """Return a line for a reader; None: it is nothing for one."""
        text = data.decode("utf-8", "backslashreplace").rstrip("\r\n")
        entry = parse(text)
        if entry is None:
            return printable(text)
        event = str(entry["event"])
        if event in _SILENT:
            return None
        if event == "job":
            return self._job(entry)
        if event == "output":
            # Of the job in hand: a consumer does one at a time.
            return printable(str(entry.get("text", "")))
        fields = {key: content for key, content in entry.items() if key not in _JOB_KEYS}
        told = (f"{printable(key)}={log.value(content)}" for key, content in fields.items())
        said = " ".join([printable(event), *told])
        return self.paint(said, _LEVELS.get(str(entry["level"]), "")) + self._of(entry)

    def _job(self, entry: Mapping[str, Any]) -> str:
        outcome, job = str(entry.get("outcome")), printable(str(entry.get("job", "item")))
        why = " ".join(printable(str(entry[key])) for key in ("reason", "error") if entry.get(key))
        if outcome == "done":
            said = f"{job} done in {entry.get('run_ms')} ms"
        elif outcome == "retry":
            said = f"{job} failed at attempt {entry.get('attempt')}, again in {entry.get('delay')} s: {why}"
        elif outcome == "parked":
            said = f"{job} parked after attempt {entry.get('attempt', 1)}: {why}"
        else:
            said = f"{job} is delivered again: {why}"
        return self.paint(said, _OUTCOMES.get(outcome, "")) + self._of(entry, job=False)

    def _of(self, entry: Mapping[str, Any], job: bool = True) -> str:
        """Return which job a line belongs to."""
        if "id" not in entry:
            return ""
        parts = [str(entry["job"])] if job else [str(entry.get("tenant", ""))]
        said = printable(" ".join([*parts, str(entry["id"])[:8]]))
        return self.paint(f"  ({said})", DIM)

    def paint(self, text: str, code: str) -> str:
        """Return text in a colour, where there are colours."""
        return f"\033[{code}m{text}\033[0m" if self.colour and code and text else text

    def look(self) -> None:
        """Notice that nobody reads any more, also while there is nothing to write."""
        with contextlib.suppress(OSError, ValueError):
            poller = select.poll()
            poller.register(self._out.fileno(), 0)
            if any(events & (select.POLLERR | select.POLLHUP) for _, events in poller.poll(0)):
                self.gone = True

    def _write(self, text: str) -> None:
        if self.gone:
            return
        try:
            self._out.write(text + "\n")
            self._out.flush()
        except (OSError, ValueError):
            self.gone = True


def parse(text: str) -> dict[str, Any] | None:
    """Return a line of a worker's log; None when it is something else."""
    if not text.startswith("{"):
        return None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and "event" in entry and "level" in entry else None


def printable(text: str) -> str:
    """Return text in which nothing moves a cursor or turns a line."""
    return "".join(char if char.isprintable() or char == "\t" else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


def _clock() -> str:
    return time.strftime("%H:%M:%S")
