"""Numbers and times as people read them: short, with units; the exact value is for a title.

A thin space would be prettier between number and unit, but a copied ``1.2 k`` must stay a plain text.
"""

from __future__ import annotations

import datetime

NOTHING = "–"
"""Shown for what is not known."""

_THOUSANDS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB"))
_PERIODS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def _scaled(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 99.95 else f"{value:.0f}"


def count(value: float | None) -> str:
    """Return a number of things: ``950``, ``1,200``, ``12.3 k``, ``34 M``."""
    if value is None:
        return NOTHING
    for step, unit in _THOUSANDS:
        # What would be rounded to 1000 k is 1 M.
        if abs(value) >= step * (0.9995 if step > 1e3 else 10):
            return f"{'-' if value < 0 else ''}{_scaled(abs(value) / step)} {unit}"
    return f"{value:,.0f}"


def size(value: float | None) -> str:
    """Return a number of bytes: ``12 B``, ``34 MB``; a kB is 1024 of them, as in Kestrel's settings."""
    if value is None:
        return NOTHING
    for step, unit in _BINARY:
        # What would be rounded to 1024 kB is 1 MB.
        if value >= step * (0.9995 if step > 1 << 10 else 1):
            return f"{_scaled(value / step)} {unit}"
    return f"{value:,.0f} B"


def rate(value: float | None) -> str:
    """Return a number per second: ``0``, ``0.25``, ``12.3``, ``1,234``, ``12.3 k``."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    if value < 0.01:
        return "<0.01"
    if value < 10:
        return f"{value:.2f}".rstrip("0").rstrip(".")
    if value < 1000:
        return _scaled(value)
    return count(value) if value >= 10000 else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Return a length of time, two units at most: ``350 ms``, ``42 s``, ``2 m 10 s``, ``3 d 4 h``."""
    if seconds is None:
        return NOTHING
    if seconds <= 0:
        return "0 s"
    if seconds < 1:
        return f"{max(1, round(seconds * 1000))} ms"
    left = round(seconds)
    if left >= 1000 * 86400:
        return f"{left // 86400} d"
    for place, (step, unit) in enumerate(_PERIODS):
        if left >= step:
            first, rest = divmod(left, step)
            if place + 1 < len(_PERIODS):
                smaller, name = _PERIODS[place + 1]
                if rest // smaller:
                    return f"{first} {unit} {rest // smaller} {name}"
            return f"{first} {unit}"
    return "0 s"


def milliseconds(value: float | None) -> str:
    """Return a length of time that is given in milliseconds."""
    return duration(None if value is None else value / 1000)


def when(at: float | None) -> datetime.datetime | None:
    """Return a moment in this machine's time zone; None for one that no calendar has."""
    if at is None:
        return None
    try:
        return datetime.datetime.fromtimestamp(at).astimezone()
    except (OverflowError, OSError, ValueError):
        return None


def clock(at: float | None, now: float | None = None) -> str:
    """Return a moment: ``14:03:05``, with its date when it is not today."""
    moment = when(at)
    if moment is None:
        return NOTHING
    today = when(now) or datetime.datetime.now().astimezone()
    return moment.strftime("%H:%M:%S" if moment.date() == today.date() else "%Y-%m-%d %H:%M:%S")


def exact_time(at: float | None) -> str:
    """Return a moment with date and offset, for a machine and for a title."""
    moment = when(at)
    return moment.isoformat(timespec="seconds") if moment else NOTHING


def ago(at: float | None, now: float) -> str:
    """Return how long ago something was: ``40 s ago``; ``just now`` below a second, or in the future."""
    if at is None:
        return NOTHING
    seconds = now - at
    return f"{duration(seconds)} ago" if seconds >= 1 else "just now"


def exact(value: object, kind: str) -> str:
    """Return the whole value of a cell, for its title."""
    if value is None:
        return "not known"
    if kind == "time":
        return exact_time(float(value))  # type: ignore[arg-type]
    if kind == "milliseconds":
        return f"{value:,} ms"
    if kind == "seconds":
        return f"{value:,.0f} s"
    if kind == "rate":
        return f"{value:,.3f} per second"
    if kind == "bytes":
        return f"{value:,} bytes"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def short(value: object, kind: str, now: float | None = None) -> str:
    """Return the text of a cell of a kind: text, count, bytes, rate, milliseconds, seconds, time."""
    if value is None:
        return NOTHING
    if kind == "time":
        return clock(float(value), now)  # type: ignore[arg-type]
    shorten = {
        "count": count,
        "bytes": size,
        "rate": rate,
        "milliseconds": milliseconds,
        "seconds": duration,
    }.get(kind)
    return shorten(value) if shorten else str(value)  # type: ignore[arg-type]
