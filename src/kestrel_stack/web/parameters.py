"""What programs send: parameters of an address, and JSON bodies; what is wrong is called by its name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from flask import Request
from werkzeug.datastructures import MultiDict

from kestrel_stack.web.problems import Problem
from kestrel_stack.web.tables import columns, filters

MAX_TEXT = 2000
"""Characters of a parameter."""
MAX_WHOLE = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly."""

MAX_HOURS = 100_000
LAST_MOMENT = 253402300799
"""The end of the year 9999, in Unix seconds."""

# As JSON writes numbers, which is less than float() takes.
_NUMBER = re.compile(r"[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,4})?")

Reader = Callable[[str, str | None], Any]
"""Gets a parameter's name and its text, or None when it is not there; returns its value."""


def read(arguments: MultiDict[str, str], known: Mapping[str, Reader]) -> dict[str, Any]:
    """Return the value of every known parameter; refuse others, and those that are given twice."""
    for name in arguments:
        if name not in known:
            said = f"{_quoted(name)} is no parameter of this; {_there_are(known)}."
            raise Problem(400, "unknown_parameter", said)
        if len(arguments.getlist(name)) > 1:
            raise Problem(400, "bad_parameter", f"{name} is given more than once.")
    return {name: reader(name, arguments.get(name)) for name, reader in known.items()}


def text(default: str = "", most: int = MAX_TEXT) -> Reader:
    """Read a text."""

    def reader(name: str, given: str | None) -> str:
        if given is not None and len(given) > most:
            raise bad(name, f"is longer than {most} characters")
        return default if given is None else given

    return reader


def whole(low: int, high: int, default: int | None = None) -> Reader:
    """Read an integer."""

    def reader(name: str, given: str | None) -> int | None:
        if given is None:
            return default
        # int() takes more than digits: signs, underscores, other alphabets.
        if not (given.isascii() and given.isdigit() and len(given) <= 16 and low <= int(given) <= high):
            raise bad(name, f"must be a whole number from {low} to {high}")
        return int(given)

    return reader


def choice(*values: str, default: str | None = None) -> Reader:
    """Read one of some words."""

    def reader(name: str, given: str | None) -> str | None:
        if given is not None and given not in values:
            raise bad(name, f"must be one of {', '.join(values)}")
        return default if given is None else given

    return reader


def moment(name: str, given: str | None) -> float | None:
    """Read Unix seconds."""
    if given is None:
        return None
    if not _NUMBER.fullmatch(given):
        raise bad(name, "must be a moment in Unix seconds, like 1700000000")
    if float(given) > LAST_MOMENT:
        raise bad(name, f"must be a moment in Unix seconds, at most {LAST_MOMENT}")
    return float(given)


def hours(name: str, given: str | None) -> float | None:
    """Read a number of hours."""
    if given is None:
        return None
    if not _NUMBER.fullmatch(given) or not (0 < float(given) <= MAX_HOURS):
        raise bad(name, f"must be a number of hours, more than 0 and at most {MAX_HOURS}")
    return float(given)


def queue_filter(name: str, given: str | None) -> filters.Filter | None:
    """Read a filter as one types it above the table of queues."""
    if not given:
        return None
    try:
        return filters.parse(given)
    except filters.FilterError as exc:
        raise Problem(400, "bad_filter", str(exc)) from None


def sort_column(name: str, given: str | None) -> str:
    """Read the name of a column."""
    by = columns.column("name" if given is None else given)
    if by is None:
        raise bad(name, f"must be one of {', '.join(columns.COLUMNS)}")
    return by.name


def bad(name: str, what: str) -> Problem:
    """Return the error that a parameter or key is wrong."""
    return Problem(400, "bad_parameter", f"{name} {what}.")


def body(request: Request) -> dict[str, Any]:
    """Return the JSON object that a request carries."""
    if request.mimetype != "application/json":
        raise Problem(415, "not_json", "Send a JSON object with Content-Type: application/json.")
    if request.mimetype_params.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        raise Problem(415, "not_json", "JSON is UTF-8; send it without another charset.")
    data = request.get_data(cache=False)
    try:
        found = json.loads(
            data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite
        )
    except Problem:
        raise
    except (ValueError, RecursionError) as exc:
        why = "is not UTF-8" if isinstance(exc, UnicodeDecodeError) else "is not JSON"
        raise Problem(400, "bad_json", f"The body {why}.") from None
    if not isinstance(found, dict):
        raise Problem(400, "bad_json", "The body must be a JSON object, like {}.")
    return found


def keys(found: Mapping[str, Any], known: Mapping[str, Callable[[str, Any], Any]]) -> dict[str, Any]:
    """Return the checked values of the keys that are there; refuse those that are not known."""
    for name in found:
        if name not in known:
            raise Problem(400, "unknown_key", f"{_quoted(name)} is no key of this body; {_there_are(known)}.")
    return {name: known[name](name, value) for name, value in found.items()}


def is_text(name: str, value: Any) -> str:
    """Check a string; one that is no text, by half of a pair of surrogates, is refused."""
    if not isinstance(value, str):
        raise bad(name, "must be a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise bad(name, "is not a text: it has half of a pair of surrogates") from None
    return value


def is_whole(low: int, high: int) -> Callable[[str, Any], int]:
    """Check an integer; 3.0 is one in JSON, true is none."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise bad(name, f"must be a whole number from {low} to {high}")
        return value

    return check


def is_choice(*values: str) -> Callable[[str, Any], str]:
    """Check one of some words."""

    def check(name: str, value: Any) -> str:
        if value not in values or not isinstance(value, str):
            raise bad(name, f"must be one of {', '.join(values)}")
        return value

    return check


def plain(value: Any) -> Any:
    """Return a value as JSON can say it: no NaN, no infinity, no integer that a reader would round."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return max(-MAX_WHOLE, min(MAX_WHOLE, value))
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Problem(400, "bad_json", f"The body has the key {_quoted(twice)} more than once.")
    return found


def _no_constant(word: str) -> Any:
    raise Problem(400, "bad_json", f"The body has {word}, which is not JSON.")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise Problem(400, "bad_json", "The body has a number that is too large.")
    return number


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:60]}…")


def _there_are(known: Mapping[str, Any]) -> str:
    return f"there are {', '.join(known)}" if known else "it has none"


OF_THE_TABLE: dict[str, Reader] = {
    "f": queue_filter,
    "sort": sort_column,
    "dir": choice("asc", "desc", default="asc"),
}
"""Which queues, and in which order."""
