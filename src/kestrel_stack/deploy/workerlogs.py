"""Layer two: the workers' logs as hosts send them, read, put in order and made readable. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

OWN_KEYS = ("time", "level", "event")
"""What every line of a worker begins with."""
LEVEL_STYLES = {"debug": "dim", "info": "", "warning": "yellow", "error": "red"}

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_PLAIN = re.compile(r"[A-Za-z0-9_.:/@%+,*-]+")


@dataclass(frozen=True)
class Entry:
    """One line of one worker's log."""

    host: str
    worker: str
    """The log's name: ``shop_mail_00``."""
    text: str
    """The line as it is."""
    time: str
    """When, in UTC; that of the line before it where a line has none, such as one of a traceback."""
    record: Mapping[str, Any] | None = None
    """The line's fields, when it is one of JSON."""


@dataclass
class Stream:
    """One host's logs as they arrive: lines in, entries out, and how far every log is read."""

    host: str
    at: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By log: its inode and the offset behind the last line that arrived."""
    caught_up: bool = False
    """All that was there at the beginning has arrived."""
    _times: dict[str, str] = field(default_factory=dict)
    _since: dict[str, int] = field(default_factory=dict)
    """By log: how many lines came after the host last said how far it is."""
    _again: dict[str, int] = field(default_factory=dict)
    """By log: how many lines will come once more."""

    def resume(self) -> None:
        """Note that the host goes on at what ``at`` says: lines that come once more are left out."""
        self._again = {worker: number for worker, number in self._since.items() if worker in self.at}
        self._since = {}

    def take(self, line: str) -> Entry | None:
        """Read one line of the host's output; None when it holds no line of a log."""
        if line.startswith("@ "):
            match line.split():
                case ["@", "at", name, inode, offset] if inode.isdigit() and offset.isdigit():
                    self.at[name] = (int(inode), int(offset))
                    self._since.pop(name, None)
                case ["@", "caught", "up"]:
                    self.caught_up = True
            return None
        worker, tab, text = line.partition("\t")
        if not tab:
            return None
        self._since[worker] = self._since.get(worker, 0) + 1
        if self._again.get(worker):
            self._again[worker] -= 1
            return None
        record = _record(text)
        found = str(record.get("time", "")) if record else text.partition(" ")[0]
        if _TIME.fullmatch(found):
            self._times[worker] = found
        return Entry(self.host, worker, text, self._times.get(worker, ""), record)


def _record(text: str) -> Mapping[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        data = json.loads(text)
    except ValueError:
        return None
    return data if isinstance(data, dict) and "event" in data else None


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Sort by time; what has the same time stays in the order in which it arrived."""
    return sorted(entries, key=lambda entry: entry.time)


def as_json(entry: Entry) -> str:
    """Return the line as one JSON object: the worker's own fields, after whose it is."""
    whose = {"host": entry.host, "worker": entry.worker}
    # A worker's field of that name is its own matter; whose line it is must not be hidden by it.
    fields = entry.record if entry.record is not None else {"text": entry.text}
    return json.dumps({**whose, **{k: v for k, v in fields.items() if k not in whose}}, ensure_ascii=False)


def as_text(entry: Entry, host_width: int = 0, worker_width: int = 0) -> Text:
    """Return the line for a person: when, where, how grave, what, and the rest as key=value."""
    line = Text.assemble((f"{entry.time:<24} ", "dim"))
    line.append(f"{entry.host:<{host_width}} ", style="cyan")
    line.append(f"{entry.worker:<{worker_width}} ", style="blue")
    if entry.record is None:
        text = entry.text
        # Text lines of a worker begin with their time, which is there already.
        line.append(_printable(text.removeprefix(f"{entry.time} ") if entry.time else text))
        return line
    level = str(entry.record.get("level", ""))
    style = LEVEL_STYLES.get(level, "")
    line.append(f"{level:<7} ", style=style)
    line.append(_printable(str(entry.record.get("event"))), style=f"bold {style}".strip())
    for key, value in entry.record.items():
        if key not in OWN_KEYS and value is not None:
            line.append(f" {_printable(str(key))}=", style="dim")
            line.append(_value(value), style=style)
    return line


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str) or _PLAIN.fullmatch(text):
        return _printable(text)
    return _printable(json.dumps(text, ensure_ascii=False))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in text)
