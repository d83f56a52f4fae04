"""Log lines: time, level, event, then ``key=value``.

One event is one line, whatever text a job or a queue brought along::

    2026-11-21T01:15:00.123Z info job done job=HelloWorld id=… tenant=acme ms=12
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime

LEVELS = ("debug", "info", "warning", "error")

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@%+,*-]+")

Sink = Callable[[str, str, dict[str, object]], None]


class Log:
    """Writes events with fields; `bind` returns a log that adds fields to each of them."""

    def __init__(self, sink: Sink, fields: dict[str, object] | None = None):
        self._sink = sink
        self._fields = fields or {}

    def bind(self, **fields: object) -> Log:
        """Return a log whose every line carries `fields`."""
        return Log(self._sink, {**self._fields, **fields})

    def debug(self, event: str, **fields: object) -> None:
        """Log what only someone looking for a fault wants to know."""
        self._sink("debug", event, {**self._fields, **fields})

    def info(self, event: str, **fields: object) -> None:
        """Log what happened as it should."""
        self._sink("info", event, {**self._fields, **fields})

    def warning(self, event: str, **fields: object) -> None:
        """Log what someone should look at one day."""
        self._sink("warning", event, {**self._fields, **fields})

    def error(self, event: str, **fields: object) -> None:
        """Log what someone should look at now."""
        self._sink("error", event, {**self._fields, **fields})


def write_lines(debug: bool = False, descriptor: int = 2) -> Sink:
    """Return a sink that writes to a file descriptor; levels below info only with `debug`."""

    def sink(level: str, event: str, fields: dict[str, object]) -> None:
        if level == "debug" and not debug:
            return
        data = (line(level, event, fields) + "\n").encode("utf-8", "backslashreplace")
        # A full disk or a closed pipe must not stop the work that the lines are about.
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(descriptor, data) :]

    return sink


def line(level: str, event: str, fields: dict[str, object], now: datetime | None = None) -> str:
    """Return one log line without its end. Fields that are None are left out."""
    now = now or datetime.now(UTC)
    stamp = now.strftime("%Y-%m-%dT%H:%M:%S.") + f"{now.microsecond // 1000:03d}Z"
    parts = [stamp, level, _printable(event)]
    parts += [
        f"{_printable(str(key))}={value(content)}" for key, content in fields.items() if content is not None
    ]
    return " ".join(parts)


def value(content: object) -> str:
    """Return a field's value: bare when it is one plain word, otherwise quoted, always printable."""
    if isinstance(content, bool):
        return "true" if content else "false"
    try:
        text = content if isinstance(content, str) else str(content)
    except Exception:
        text = f"<{type(content).__name__}>"
    return text if _PLAIN.fullmatch(text) else _printable(json.dumps(text, ensure_ascii=False))


def _printable(text: str) -> str:
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in text
    )
