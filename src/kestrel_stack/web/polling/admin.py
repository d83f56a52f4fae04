"""What the admin port says: ``/stats.json`` and ``/server_info.json``, over HTTP.

It knows more of a queue than ``stats`` does, and has no ambiguous names: of a queue ``mail`` the keys are
``q/mail/items`` and so on, and no name holds a slash. Names come as ISO-8859-1, as on the memcache port.
"""

from __future__ import annotations

import calendar
import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from kestrel_stack.queue.servers import Server
from kestrel_stack.web.model import ServerNumbers
from kestrel_stack.web.polling.line import Line, LineError
from kestrel_stack.web.polling.stats import Answer, ratio

COUNTERS = {
    name: name
    for name in (
        *("total_items", "expired_items", "discarded", "transactions", "canceled_transactions"),
        *("total_flushes", "put_items", "get_items_hit", "get_items_miss"),
    )
}
GAUGES = {
    "items": "items",
    "bytes": "bytes",
    "mem_items": "mem_items",
    "mem_bytes": "mem_bytes",
    "journal_size": "journal_bytes",
    "age_msec": "age_ms",
    "waiters": "waiters",
    "open_transactions": "open_transactions",
    "create_time": "create_time",
}
_FIELDS = (*COUNTERS.values(), *GAUGES.values())
OPTIONAL = ("journal_rewrites", "journal_rotations")
"""Counters that some releases have."""

_LENGTH = re.compile(r"[0-9]{1,12}")
_MARK = "/open_transactions"
"""The end of a gauge that every queue has, and no alias."""


def fetch(
    admin: Server, path: str, deadline: float, monotonic: Callable[[], float] = time.monotonic
) -> Mapping[str, Any]:
    """Return the JSON object at a path; raise `LineError` when there is none by the deadline."""
    line = Line(admin, deadline, monotonic)
    try:
        # HTTP/1.0: an answer in one piece.
        line.send(f"GET {path} HTTP/1.0\r\nHost: {admin}\r\nConnection: close\r\n\r\n".encode())
        head = line.until(b"\r\n\r\n", 64 * 1024).decode("latin-1").split("\r\n")
        words = head[0].split(" ", 2)
        if not words[0].startswith("HTTP/") or len(words) < 2:
            raise LineError("answers no HTTP")
        if words[1] != "200":
            raise LineError(f"answers {' '.join(words[1:])[:60]!r} to {path}")
        lengths = [
            value.strip()
            for name, _, value in (text.partition(":") for text in head[1:])
            if name.strip().lower() == "content-length"
        ]
        body = line.everything(int(lengths[0]) if lengths and _LENGTH.fullmatch(lengths[0]) else None)
    finally:
        line.close()
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise LineError(f"answers something else than a JSON object to {path}")
    return found


def parse(stats: Mapping[str, Any]) -> Answer:
    """Read ``/stats.json``; `LineError` when it is not Kestrel's."""
    counters, gauges = stats.get("counters"), stats.get("gauges")
    if not isinstance(counters, dict) or not isinstance(gauges, dict) or "status/writeable" not in gauges:
        raise LineError("answers the statistics of something else than a Kestrel")
    queues: dict[str, dict[str, int]] = {}
    for key in gauges:
        if key.endswith(_MARK) and key.startswith("q/"):
            prefix = key[: -len(_MARK) + 1]
            found = [counters.get(prefix + name, 0) for name in COUNTERS]
            found += [gauges.get(prefix + name, 0) for name in GAUGES]
            block = dict(zip(_FIELDS, _wholes(found), strict=True))
            for name in OPTIONAL:
                if prefix + name in counters:
                    block[name] = _whole(counters[prefix + name])
            queues[prefix[2:-1]] = block
    known = {
        entry.name: _whole(counters[entry.name]) for entry in fields(ServerNumbers) if entry.name in counters
    }
    known |= {
        "curr_items": _whole(gauges.get("items", 0)),
        "bytes": _whole(gauges.get("bytes", 0)),
        "curr_connections": _whole(gauges.get("connections", 0)),
    }
    return Answer(
        ServerNumbers(
            reserved_memory_ratio=ratio(gauges.get("reserved_memory_ratio")),
            **known,  # type: ignore[arg-type]
        ),
        queues,
    )


def _wholes(values: list[Any]) -> list[int]:
    """Return numbers as whole ones, all at once where they are already."""
    if {*map(type, values)} == {int} and min(values) >= -(2**63) and max(values) < 2**63:
        return values
    return [_whole(value) for value in values]


def _whole(value: object) -> int:
    """Return a number as a whole one; `LineError` for what no Kestrel says."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -(2**63) <= value < 2**63:
        raise LineError("answers numbers that are none")
    return int(value)


def started(info: Mapping[str, Any]) -> tuple[int, int]:
    """Return uptime and own time, in seconds, of ``/server_info.json``; 0 for what is not said."""
    uptime = info.get("uptime")
    uptime_s = 0 if uptime is None else _whole(uptime) // 1000
    with contextlib.suppress(TypeError, ValueError):
        began = time.strptime(str(info.get("start_time")), "%a %b %d %H:%M:%S UTC %Y")
        return uptime_s, calendar.timegm(began) + uptime_s
    return uptime_s, 0
