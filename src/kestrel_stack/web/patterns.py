r"""Regular expressions that cannot hang: the time they take grows with the text only.

Python's own engine tries one way after the other, which takes longer than anybody lives for some patterns.
This one goes all ways at once. It knows what somebody types into a filter: ``.`` ``[a-z]`` ``[^a-z]`` ``*``
``+`` ``?`` ``{2,5}`` ``|`` ``( )`` ``^`` ``$`` and ``\d \w \s`` with their opposites; case is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MAX_STATES = 300
"""Of one pattern, counted repeats written out."""

MAX_STEPS = 20_000
"""Remembered of one pattern."""

MAX_DEPTH = 20
"""Of groups within groups."""

_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "w": lambda char: char.isalnum() or char == "_",
    "s": str.isspace,
}
_COUNT = re.compile(r"\{([0-9]{0,4})(,?)([0-9]{0,4})\}")
_SIMPLE = re.compile(r"[^\\\[\](){}?|*+^$.]*")

_Test = Callable[[str], bool]
_CHAR, _SPLIT, _START, _END, _MATCH = range(5)


class PatternError(ValueError):
    """A pattern that is none, or asks for too much; half a sentence that says why."""


@dataclass(frozen=True)
class _Node:
    """A part of a pattern: ``char``, ``start``, ``end``, ``chain``, ``either`` or ``repeat``."""

    kind: str
    test: _Test | None = None
    parts: tuple[_Node, ...] = ()
    low: int = 0
    high: int | None = None


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """Return what tells whether a text has a match somewhere; raise `PatternError` for a wrong pattern."""
    if _SIMPLE.fullmatch(pattern):
        wanted = pattern.casefold()
        return lambda text: wanted in text.casefold()
    return _Machine(_Parser(pattern).parse()).search


class _Parser:
    def __init__(self, pattern: str):
        self._text = pattern
        self._at = 0
        self._depth = 0

    def parse(self) -> _Node:
        node = self._either()
        if self._at < len(self._text):
            raise PatternError("a ) has no (")
        return node

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._peek()
        self._at += 1
        return char

    def _either(self) -> _Node:
        parts = [self._chain()]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._chain())
        return parts[0] if len(parts) == 1 else _Node("either", parts=tuple(parts))

    def _chain(self) -> _Node:
        parts = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated(self._one()))
        return _Node("chain", parts=tuple(parts))

    def _repeated(self, node: _Node) -> _Node:
        found = self._count()
        if found is None:
            return node
        if node.kind in ("start", "end"):
            raise PatternError("^ and $ cannot be repeated")
        if self._peek() == "?":  # as few as possible: the same, since only whether it matches is asked
            self._at += 1
        if self._count() is not None:
            raise PatternError("a repeat is repeated")
        return _Node("repeat", parts=(node,), low=found[0], high=found[1])

    def _count(self) -> tuple[int, int | None] | None:
        simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        char = self._peek()
        if char in simple and char:
            self._at += 1
            return simple[char]
        match = _COUNT.match(self._text, self._at)
        if match is None or match[0] in ("{}", "{,}"):
            return None
        self._at = match.end()
        low = int(match[1] or 0)
        high = low if not match[2] else (int(match[3]) if match[3] else None)
        if high is not None and high < low:
            raise PatternError(f"{match[0]} has more than it has at most")
        if max(low, high or 0) > MAX_STATES:
            raise PatternError(f"{match[0]} is too many")
        return low, high

    def _one(self) -> _Node:
        char = self._take()
        if char == "(":
            return self._group()
        if char == "[":
            return _Node("char", test=self._class())
        if char == ".":
            return _Node("char", test=lambda each: each != "\n")
        if char == "^":
            return _Node("start")
        if char == "$":
            return _Node("end")
        if char in "*+?":
            raise PatternError(f"{char} has nothing to repeat")
        if char == "\\":
            return _Node("char", test=self._escape())
        return _Node("char", test=_same(char))

    def _group(self) -> _Node:
        if self._peek() == "?":
            raise PatternError("(? is not supported")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise PatternError("there are too many groups within groups")
        node = self._either()
        if self._take() != ")":
            raise PatternError("a ( has no )")
        self._depth -= 1
        return _Node("chain", parts=(node,))

    def _escape(self) -> _Test:
        char = self._take()
        if char.lower() in _CLASSES and char:
            test = _CLASSES[char.lower()]
            return test if char.islower() else lambda each: not test(each)
        if not char:
            raise PatternError("it ends with a \\")
        if char.isalnum():
            raise PatternError(f"\\{char} is not supported")
        return _same(char)

    def _class(self) -> _Test:
        opposite = self._peek() == "^"
        self._at += opposite
        tests: list[_Test] = []
        first = True
        while (char := self._take()) != "]" or first:
            first = False
            if not char:
                raise PatternError("a [ has no ]")
            if char == "\\":
                escaped = self._peek()
                tests.append(self._escape())
                if escaped.lower() in _CLASSES:
                    continue
                char = escaped
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._take()
                if last == "\\":
                    last = self._take()
                if last < char:
                    raise PatternError(f"{char}-{last} goes backwards")
                tests.append(_between(char, last))
            else:
                tests.append(_same(char))

        def test(each: str) -> bool:
            return any(one(each) for one in tests) != opposite

        return test


def _same(char: str) -> _Test:
    folded = char.casefold()
    return lambda each: each.casefold() == folded


def _between(first: str, last: str) -> _Test:
    def test(each: str) -> bool:
        return any(first <= form <= last for form in (each, each.lower(), each.upper()) if len(form) == 1)

    return test


class _Machine:
    """States, and which come after which; all states that are possible are held at once."""

    def __init__(self, node: _Node):
        self._kinds: list[int] = []
        self._tests: list[_Test | None] = []
        self._next: list[tuple[int, ...]] = []
        self._first = self._build(node, self._state(_MATCH))
        # What comes after some states and a character is worked out once: names are much alike.
        self._steps: dict[tuple[frozenset[int], str], frozenset[int] | None] = {}
        self._ends: dict[tuple[frozenset[int], bool], bool] = {}

    def _state(self, kind: int, following: tuple[int, ...] = (), test: _Test | None = None) -> int:
        if len(self._kinds) >= MAX_STATES:
            raise PatternError("it is too large with its repeats written out")
        self._kinds.append(kind)
        self._tests.append(test)
        self._next.append(following)
        return len(self._kinds) - 1

    def _build(self, node: _Node, after: int) -> int:
        """Return the first state of a part which goes on to the state `after`."""
        if node.kind == "char":
            return self._state(_CHAR, (after,), node.test)
        if node.kind in ("start", "end"):
            return self._state(_START if node.kind == "start" else _END, (after,))
        if node.kind == "chain":
            for part in reversed(node.parts):
                after = self._build(part, after)
            return after
        if node.kind == "either":
            return self._state(_SPLIT, tuple(self._build(part, after) for part in node.parts))
        (part,) = node.parts
        if node.high is None:
            loop = self._state(_SPLIT)
            self._next[loop] = (self._build(part, loop), after)
            after = loop
        else:
            for _ in range(node.high - node.low):
                after = self._state(_SPLIT, (self._build(part, after), after))
        for _ in range(node.low):
            after = self._build(part, after)
        return after

    def search(self, text: str) -> bool:
        """Whether some part of a text matches."""
        here = self._reach([self._first], at_start=True)
        for char in text:
            if here is None:
                return True
            step = (here, char)
            if step not in self._steps:
                if len(self._steps) >= MAX_STEPS:
                    self._steps.clear()
                self._steps[step] = self._step(here, char)
            here = self._steps[step]
        if here is None:
            return True
        end = (here, not text)
        if end not in self._ends:
            if len(self._ends) >= MAX_STEPS:
                self._ends.clear()
            self._ends[end] = self._reach(here, at_start=not text, at_end=True) is None
        return self._ends[end]

    def _step(self, here: frozenset[int], char: str) -> frozenset[int] | None:
        tests = self._tests
        after = [self._next[state][0] for state in here if (test := tests[state]) is not None and test(char)]
        return self._reach([*after, self._first])

    def _reach(
        self, states: Iterable[int], *, at_start: bool = False, at_end: bool = False
    ) -> frozenset[int] | None:
        """Return states and all that need no character to be reached; None when the whole matches."""
        reached: set[int] = set()
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            if state in reached:
                continue
            reached.add(state)
            kind = self._kinds[state]
            if kind == _MATCH:
                return None
            if kind == _SPLIT or (kind == _START and at_start) or (kind == _END and at_end):
                waiting.extend(self._next[state])
        return frozenset(reached)
