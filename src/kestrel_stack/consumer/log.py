"""Log lines: one JSON object per event, or text for a reader when every action is shown.

One event is one line, whatever text a job or a queue brought along::

    {"time":"2026-11-21T01:15:00.123Z","level":"info","event":"job","queue":"shop_hello_world",…}
    2026-11-21T01:15:00.123Z info job queue=shop_hello_world job=HelloWorld …

What a job logs below info is kept back, and written only when the job fails.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

LEVELS = ("debug", "info", "warning", "error")
OWN_KEYS = ("time", "level", "event")
"""The keys of every line; a field of that name gets a ``_`` at its end."""
MAX_KEPT_LINES = 1000
MAX_KEPT_BYTES = 256 * 1024
"""So many lines and bytes of one job are kept back; the oldest are dropped first."""

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@%+,*-]+")
# ASCII, so that no character breaks a line or a terminal.
_quoted = json.encoder.encode_basestring_ascii

Sink = Callable[[str, str, dict[str, object]], None]


class Log:
    """Writes events with fields; `bind` returns a log that adds fields to each of them."""

    def __init__(self, sink: Sink, fields: dict[str, object] | None = None):
        self._sink = sink
        self._fields = fields or {}

    @property
    def sink(self) -> Sink:
        """Where the lines go."""
        return self._sink

    def bind(self, /, **fields: object) -> Log:
        """Return a log whose every line carries `fields`."""
        return Log(self._sink, {**self._fields, **fields})

    def debug(self, event: str, /, **fields: object) -> None:
        """Log what only someone looking for a fault wants to know."""
        self._sink("debug", event, {**self._fields, **fields})

    def info(self, event: str, /, **fields: object) -> None:
        """Log what happened as it should."""
        self._sink("info", event, {**self._fields, **fields})

    def warning(self, event: str, /, **fields: object) -> None:
        """Log what someone should look at one day."""
        self._sink("warning", event, {**self._fields, **fields})

    def error(self, event: str, /, **fields: object) -> None:
        """Log what someone should look at now."""
        self._sink("error", event, {**self._fields, **fields})


class Writer:
    """A sink that writes lines to a file descriptor, or to a file that `reopen` opens again.

    With `debug` it writes every level, as text; otherwise from info on, as JSON. Raises `OSError` when `file`
    cannot be opened for appending.
    """

    def __init__(self, debug: bool = False, descriptor: int = 2, file: str | os.PathLike[str] | None = None):
        self.debug = debug
        self.file = None if file is None else Path(file)
        self._descriptor = descriptor if self.file is None else _open(self.file)
        self._line = line if debug else json_line

    def __call__(self, level: str, event: str, fields: dict[str, object]) -> None:
        """Write one event, unless its level is too low."""
        if level != "debug" or self.debug:
            self.write(level, event, fields)

    def write(self, level: str, event: str, fields: dict[str, object], at: float | None = None) -> None:
        """Write one event of any level; `at` is when it happened, in Unix seconds (None: now)."""
        data = (self._line(level, event, fields, at) + "\n").encode("utf-8", "backslashreplace")
        # A full disk or a closed pipe must not stop the work that the lines are about.
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._descriptor, data) :]

    def reopen(self) -> None:
        """Open the file again, by its name; raise `OSError` and go on with the old one if that fails."""
        if self.file is not None:
            opened = _open(self.file)
            os.close(self._descriptor)
            self._descriptor = opened


class KeptBack:
    """The debug lines of the job in hand: at most `lines` and `size` bytes, the newest."""

    def __init__(self, lines: int = MAX_KEPT_LINES, size: int = MAX_KEPT_BYTES):
        self._most_lines = lines
        self._most_bytes = size
        self._kept: deque[tuple[float, str, dict[str, object], int]] = deque()
        self._bytes = 0
        self.dropped = 0

    def clear(self) -> None:
        """Forget everything: the next job begins."""
        self._kept.clear()
        self._bytes = 0
        self.dropped = 0

    def add(self, event: str, fields: dict[str, object]) -> None:
        """Keep a line, dropping the oldest ones when there are too many."""
        size = len(event) + sum(len(key) + len(str(content)) for key, content in fields.items())
        self._kept.append((time.time(), event, fields, size))
        self._bytes += size
        while self._kept and (len(self._kept) > self._most_lines or self._bytes > self._most_bytes):
            self._bytes -= self._kept.popleft()[3]
            self.dropped += 1

    def lines(self) -> list[tuple[float, str, dict[str, object]]]:
        """Return what is kept: Unix seconds, event, fields; the oldest first."""
        return [(at, event, fields) for at, event, fields, _ in self._kept]

    def write(self, writer: Writer, log: Log) -> None:
        """Write the lines with the time at which they were logged; how many are missing comes first."""
        if self.dropped:
            log.warning("lines dropped", count=self.dropped)
        for at, event, fields in self.lines():
            writer.write("debug", event, fields, at)
        self.clear()


def json_line(level: str, event: str, fields: dict[str, object], at: float | None = None) -> str:
    """Return one line of JSON without its end, in ASCII. Fields that are None are left out."""
    # By hand, which takes half the time of a JSON encoder: every job has such a line.
    parts = [f'{{"time":"{stamp(at)}","level":"{level}","event":{_quoted(event)}']
    for name, content in fields.items():
        if content is not None:
            key = f"{name}_" if name in OWN_KEYS else str(name)
            parts.append(f",{_quoted(key)}:{_json(content)}")
    parts.append("}")
    return "".join(parts)


def line(level: str, event: str, fields: dict[str, object], at: float | None = None) -> str:
    """Return one line of text without its end. Fields that are None are left out."""
    parts = [stamp(at), level, _printable(event)]
    parts += [
        f"{_printable(str(key))}={value(content)}" for key, content in fields.items() if content is not None
    ]
    return " ".join(parts)


def stamp(at: float | None = None) -> str:
    """Return Unix seconds (None: now) as a line shows them: UTC with milliseconds."""
    seconds, milliseconds = divmod(round((time.time() if at is None else at) * 1000), 1000)
    if _last_second[0] != seconds:
        # Most lines share their second with the one before.
        _last_second[:] = seconds, datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
    return f"{_last_second[1]}{milliseconds:03d}Z"


def value(content: object) -> str:
    """Return a field's value as text: bare when it is one plain word, otherwise quoted, always printable."""
    if isinstance(content, bool):
        return "true" if content else "false"
    text = content if isinstance(content, str) else _text(content)
    return text if _PLAIN.fullmatch(text) else _printable(json.dumps(text, ensure_ascii=False))


_last_second: list = [None, ""]


def _json(content: object) -> str:
    """Return a field's value as JSON: a text, a number that every reader keeps, or a truth value."""
    kind = type(content)
    if kind is str:
        return _quoted(content)
    if kind is bool:
        return "true" if content else "false"
    if kind is int and -(2**63) <= content < 2**63:  # type: ignore[operator]
        return str(content)
    if kind is float and math.isfinite(content):  # type: ignore[arg-type]
        return repr(content)
    return _quoted(_text(content))


def _text(content: object) -> str:
    try:
        return str(content)
    except Exception:
        return f"<{type(content).__name__}>"


def _printable(text: str) -> str:
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in text
    )


def _open(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
