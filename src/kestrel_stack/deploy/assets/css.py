"""What a style sheet or a script refers to: found where it stands, so that it can be replaced."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_STRING = r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'"""
_GAP = r"(?:\s|/\*.*?\*/)*"
_TOKEN = re.compile(
    rf"""
      (?P<comment> /\*.*?(?:\*/|\Z) )
    | (?<![\w-]) url\( \s* (?: (?P<url_string>{_STRING}) | (?P<url_bare>(?:\\.|[^\\\s"'()])*) ) \s* \)
    | @import (?P<import_gap>{_GAP}) (?P<import_string>{_STRING})
    | (?P<string>{_STRING})
    | (?P<open> (?<![\w-])[\w-]*\( )
    | (?P<close> \) )
    """,
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
_CSS_MAP = re.compile(r"/\*[#@]\s*sourceMappingURL=(\S+)\s*\*/")
_JS_MAP = re.compile(r"^[ \t]*//[#@][ \t]*sourceMappingURL=(\S+)[ \t\r]*$", re.MULTILINE)
_JS_TAIL = re.compile(r"(?:\s|//[^\n]*(?:\n|\Z))*")
_ESCAPE = re.compile(r"\\(?:([0-9a-fA-F]{1,6})(?:\r\n|[ \t\r\n\f])?|\r?\n|(.))", re.DOTALL)


@dataclass(frozen=True)
class Reference:
    """One reference in a text."""

    start: int
    end: int
    """Where its path stands in the text, without quotes and without what follows from ``?`` or ``#`` on."""
    path: str
    """The path, its CSS escapes undone; still percent-encoded."""
    source_map: bool = False


def style_references(text: str) -> Iterator[Reference]:
    """Find what a style sheet refers to: url(), @import, image-set(), the comment that names its map."""
    functions: list[str] = []
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "comment":
            found = _CSS_MAP.fullmatch(token["comment"])
            if found:
                start = token.start("comment") + found.start(1)
                yield _reference(text, start, start + len(found[1]), source_map=True)
        elif kind in ("url_string", "import_string"):
            yield _reference(text, token.start(kind) + 1, token.end(kind) - 1)
        elif kind == "url_bare":
            yield _reference(text, *token.span(kind))
        elif kind == "string":
            # Strings in image-set() are addresses; those in its type() are not.
            if functions and functions[-1] in ("image-set(", "-webkit-image-set("):
                yield _reference(text, token.start(kind) + 1, token.end(kind) - 1)
        elif kind == "open":
            functions.append(token["open"].lower())
        elif functions:
            functions.pop()


def script_references(text: str) -> Iterator[Reference]:
    """Find the map that a script's last lines name."""
    found = None
    for found in _JS_MAP.finditer(text):  # noqa: B007 - the last one counts
        pass
    if found and _JS_TAIL.fullmatch(text, found.end()):
        yield _reference(text, *found.span(1), source_map=True)


def replace(text: str, references: Iterator[Reference], address: Callable[[Reference], str | None]) -> str:
    """Return the text with every reference replaced by its address; None leaves it as it is."""
    pieces = []
    at = 0
    for reference in references:
        new = address(reference)
        if new is not None:
            pieces += [text[at : reference.start], new]
            at = reference.end
    return "".join([*pieces, text[at:]])


def _reference(text: str, start: int, end: int, *, source_map: bool = False) -> Reference:
    raw = text[start:end]
    path = re.split(r"[?#]", raw, maxsplit=1)[0]
    return Reference(start, start + len(path), _unescaped(path), source_map)


def _unescaped(raw: str) -> str:
    def plain(escape: re.Match[str]) -> str:
        if escape[1]:
            code = int(escape[1], 16)
            return chr(code) if 0 < code < 0x110000 else "\ufffd"
        return escape[2] or ""

    return _ESCAPE.sub(plain, raw)
