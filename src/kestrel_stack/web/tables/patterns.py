r"""Regular expressions of filters, by the library `regex`, in a bounded time.

Python's own engine cannot be stopped, and takes longer than anybody lives for some patterns; that of `regex`
gives up when it is told to. Making a pattern ready cannot be given up, so what makes that large is refused
before: counts within counts, and what begins with ``(?``, of which recursion takes memory without end.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import regex

BUDGET_S = 0.5
"""Of the processor, for all patterns of one filter over all names together."""

TRY_S = 0.05
"""Of the processor, after which other threads get their turn."""

MAX_PARTS = 2000
"""Of a pattern, when what is counted is written out."""

_PARTS = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^]\\])*\]|(?P<special>\(\?(?!:|=|!|<[=!]))|\{(?P<count>[^}]*)\}?|.", re.DOTALL
)
_COUNT = re.compile(r"([0-9]{0,5})(?:,([0-9]{0,5}))?")


class PatternError(ValueError):
    """A pattern that is none, or asks for too much; half a sentence that says why."""


class TooSlow(Exception):  # noqa: N818 - it says what is the matter
    """The patterns of a filter have used up their time."""


class Budget:
    """The time that some patterns have together."""

    def __init__(self, seconds: float = BUDGET_S):
        self._left = seconds

    def search(self, pattern: regex.Pattern[str], text: str) -> bool:
        """Whether some part of a text matches; raise `TooSlow` when that cannot be told in the time left."""
        while self._left > 0:
            began = time.thread_time()
            try:
                # The library counts the time of all threads of this process; another's is no reason to give
                # up. It would let go of the interpreter for each name, which costs more than most searches.
                found: bool | None = pattern.search(text, timeout=TRY_S, concurrent=False) is not None
            except TimeoutError:
                found = None
            self._left -= time.thread_time() - began
            if found is not None:
                return found
        raise TooSlow


def compile_pattern(pattern: str, budget: Budget) -> Callable[[str], bool]:
    """Return what tells whether a text has a match somewhere; raise `PatternError` for a wrong pattern."""
    if _written_out(pattern) > MAX_PARTS:
        raise PatternError("it is too large with its counts written out")
    try:
        flags = regex.IGNORECASE | regex.FULLCASE | regex.VERSION0
        made = regex.compile(pattern, flags, cache_pattern=False)
    except (regex.error, OverflowError, RecursionError) as error:
        raise PatternError(" ".join(str(error).split())) from None
    return lambda text: budget.search(made, text)


def _written_out(pattern: str) -> int:
    """Return how many parts a pattern has at most; raise `PatternError` for what is not offered."""
    open_groups, last = [0], 1
    for part in _PARTS.finditer(pattern):
        if part["special"]:
            raise PatternError("of what begins with (? there are (?: (?= (?! (?<= and (?<!")
        if part["count"] is not None:
            count = _COUNT.fullmatch(part["count"])
            if count is None or not part[0].endswith("}") or not any(count.groups()):
                raise PatternError(r"{ begins a count like {2,5}; the sign itself is \{")
            most = max(1, *(int(number or 0) for number in count.groups()))
            open_groups[-1] += last * (most - 1)
            last *= most
        elif part[0] == "(":
            open_groups.append(1)
        elif part[0] == ")" and len(open_groups) > 1:
            last = open_groups.pop()
            open_groups[-1] += last
        elif part[0] not in "*+?|":
            open_groups[-1] += 1
            last = 1
    return sum(open_groups)
