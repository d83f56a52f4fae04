"""Tables as CSV (RFC 4180): UTF-8, CRLF, a head line, written as they are read.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or ``@`` for a formula and computes it. Names
of queues and texts of errors are written by anybody, so such a text gets a ``'`` in front; numbers stay
numbers.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_CHUNK = 32 * 1024


def lines(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[bytes]:
    """Yield a table in pieces of some size; the first comes before a row has been read."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([cell(value) for value in row])
        if buffer.tell() >= _CHUNK:
            yield buffer.getvalue().encode("utf-8", "backslashreplace")
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue().encode("utf-8", "backslashreplace")


def cell(value: object) -> str:
    """Return a value as the text of a cell; what is not known is empty."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # Shorter than repr, and never with an exponent, which some spreadsheets read as text.
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, int):
        return str(value)
    return defuse(str(value).replace("\0", "\\0"))


def defuse(text: str) -> str:
    """Return a text that no spreadsheet computes."""
    # White space in front is dropped by some of them before they look.
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def moment(at: float | None) -> str | None:
    """Return Unix seconds as ISO 8601 in UTC."""
    if at is None:
        return None
    try:
        shown = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return None
    return shown.replace("+00:00", "Z")
