"""The filter that one types above the table of queues: ``items>1000 age>=5m name~mail``.

Terms ``FIELD OP VALUE``, separated by spaces or commas, all of which must hold. OP is one of = != < > <= >= ~
(a regular expression, case ignored). Numbers take units: ``1k``, ``64MB``, ``5m``. A word by itself is
``name~word``. A value with spaces or commas stands in double quotes.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kestrel_stack.web.model import QueueRow
from kestrel_stack.web.tables import patterns
from kestrel_stack.web.tables.columns import COLUMNS, Column, Value, column

MAX_LENGTH = 500
"""Of a whole filter."""

MAX_PATTERN = 100
_TERM = re.compile(
    r"""[\s,]*(?:
        (?P<field>[A-Za-z_]+)\s*(?P<op>!=|<=|>=|[=<>~])\s*(?P<value>"[^"]*"|[^\s,"]+)?
      | (?P<word>"[^"]*"|[^\s,"]+)
      )(?=[\s,]|$)""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<unit>[A-Za-z]*)")
_UNITS: dict[str, dict[str, float]] = {
    "count": {"": 1, "k": 1e3, "m": 1e6, "g": 1e9},
    "bytes": {
        "": 1,
        "b": 1,
        "k": 1 << 10,
        "kb": 1 << 10,
        "m": 1 << 20,
        "mb": 1 << 20,
        "g": 1 << 30,
        "gb": 1 << 30,
        "t": 1 << 40,
        "tb": 1 << 40,
    },
    "seconds": {"": 1, "ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800},
}
_UNITS["rate"] = _UNITS["count"]
_UNITS["milliseconds"] = {unit: 1000 * factor for unit, factor in _UNITS["seconds"].items()}
_UNITS["time"] = {"": 1}
_EXAMPLES = {"bytes": "64MB", "seconds": "5m", "milliseconds": "5m", "time": "1700000000"}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


class FilterError(ValueError):
    """A filter that cannot be understood or takes too long; one line with the term and what would be right.

    It comes from `parse`, and from `matches` where a pattern takes too long.
    """


@dataclass(frozen=True)
class Term:
    """One condition; `text` is how it is written."""

    text: str
    column: Column
    op: str
    value: str
    test: Callable[[Value], bool]

    def matches(self, row: QueueRow) -> bool:
        """Whether a row fulfils it; what is not known fulfils only ``!=``."""
        return self.test(self.column.value(row))


@dataclass(frozen=True)
class Filter:
    """Some conditions, all of which must hold; none of them is true of every row."""

    terms: tuple[Term, ...] = ()

    def matches(self, row: QueueRow) -> bool:
        """Whether a row fulfils all terms; raise `FilterError` when that takes too long to find out."""
        return all(term.matches(row) for term in self.terms)

    def without(self, term: Term) -> str:
        """Return the text of the filter that lacks one term."""
        return " ".join(each.text for each in self.terms if each is not term)

    def __str__(self) -> str:
        return " ".join(term.text for term in self.terms)


def parse(text: str) -> Filter:
    """Return the filter that a text stands for; raise `FilterError` naming the term that is wrong."""
    if len(text) > MAX_LENGTH:
        raise FilterError(f"The filter has {len(text)} characters; it may have {MAX_LENGTH}.")
    terms = []
    budget = patterns.Budget()
    at = 0
    end = len(text.rstrip(" \t\r\n,"))
    while at < end:
        match = _TERM.match(text, at)
        if match is None:
            rest = text[at:].strip(" \t\r\n,")
            if rest.count('"') % 2:
                raise FilterError(f"{rest!r} has a quotation mark without its partner.")
            raise FilterError(f"{rest!r} is not understood; write FIELD OP VALUE, for example items>1000.")
        terms.append(_term(match, budget))
        at = match.end()
    return Filter(tuple(terms))


def _term(match: re.Match[str], budget: patterns.Budget) -> Term:
    written = match[0].strip(" \t\r\n,")
    if match["word"] is not None:
        if match["word"][0] in "=<>~!":
            raise FilterError(
                f"{written!r} has no field before {written[0]!r}; write for example items>1000."
            )
        pattern = match["word"].strip('"')
        return Term(written, COLUMNS["name"], "~", pattern, _pattern(pattern, written, budget))
    by = column(match["field"])
    if by is None:
        near = difflib.get_close_matches(match["field"].lower(), COLUMNS, 1)
        known = f"did you mean {near[0]}?" if near else f"there are {', '.join(COLUMNS)}."
        raise FilterError(f"{written!r}: there is no field {match['field']!r}; {known}")
    if match["value"] is None:
        raise FilterError(f"{written!r} has no value after {match['op']!r}.")
    op, value = match["op"], match["value"].strip('"')
    written = f"{match['field']}{op}{match['value']}"
    if op == "~":
        if by.numeric:
            raise FilterError(f"{written!r}: ~ is for text; {by.name} is a number, use = != < > <= >=.")
        return Term(written, by, op, value, _pattern(value, written, budget))
    if not by.numeric:
        return Term(written, by, op, value, _text_test(op, value, written))
    return Term(written, by, op, value, _number_test(op, _number(value, by, written)))


def _number(value: str, by: Column, written: str) -> float:
    units = _UNITS[by.kind]
    match = _NUMBER.fullmatch(value)
    if match is None or match["unit"].lower() not in units:
        known = ", ".join(unit for unit in units if unit) or "none"
        example = _EXAMPLES.get(by.kind, "1.5k")
        raise FilterError(
            f"{written!r}: {value!r} is no number for {by.name}; write one like {example} (units: {known})."
        )
    return float(match["number"]) * units[match["unit"].lower()]


def _number_test(op: str, limit: float) -> Callable[[Value], bool]:
    compare = _COMPARE[op]

    def test(value: Value) -> bool:
        if not isinstance(value, int | float):
            return op == "!="
        return compare(value, limit)

    return test


def _text_test(op: str, wanted: str, written: str) -> Callable[[Value], bool]:
    if op not in ("=", "!="):
        raise FilterError(f"{written!r}: {op} is for numbers; use = != or ~ with text.")
    wanted = wanted.casefold()

    def test(value: Value) -> bool:
        return (wanted in (text.casefold() for text in _texts(value))) == (op == "=")

    return test


def _texts(value: Value) -> Iterable[str]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (str(value),)


def _pattern(pattern: str, written: str, budget: patterns.Budget) -> Callable[[Value], bool]:
    if len(pattern) > MAX_PATTERN:
        raise FilterError(
            f"{written[:40] + '…'!r}: the pattern has {len(pattern)} characters; it may have {MAX_PATTERN}."
        )
    try:
        search = patterns.compile_pattern(pattern, budget)
    except patterns.PatternError as error:
        raise FilterError(f"{written!r} is not a regular expression: {error}.") from None

    def test(value: Value) -> bool:
        try:
            return any(search(text) for text in _texts(value))
        except patterns.TooSlow:
            raise FilterError(
                f"{written!r} takes too long to look for; write a simpler pattern, with fewer * + and ?."
            ) from None

    return test
