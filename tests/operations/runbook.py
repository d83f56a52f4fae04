"""docs/operations.md read as a script: its chapters, and the steps that its comments mark.

A comment stands before what it is about, in a line of its own:

`<!-- chapter: NAME -->`: the following steps are NAME's. With `doubled` behind it jobs may be done twice.

`<!-- step: NAME -->`: the fence that follows is typed. Lines with `$ ` are commands; the others must come
out, in this order: `…` is anything, numbers may be others. Behind the name: `exit=N`, how the last
command ends; `until`, it is typed again until it comes out so; `exact`, numbers must be those; `as=WORD`,
WORD stands for the last line that came out from then on.

`<!-- edit: NAME FILE -->`: the YAML of the fence is put into FILE. Mappings are merged, and lists, whose
items are told apart by `name`.

`<!-- remove: NAME FILE PATH -->`: that key, or item of a list, is taken out of FILE.

`<!-- trouble: NAME ARGUMENT… -->`: what the script does so that there is something to mend; see
troubles.py.

`<!-- by hand: WHY -->`: the fence that follows is not run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from support.deploy import ROOT

DOCUMENT = ROOT / "docs" / "operations.md"
COMMENT = re.compile(r"<!-- (chapter|step|edit|remove|trouble|by hand): (.*?) -->\Z")
FENCES = ("edit", "step", "by hand")


class Wrong(Exception):  # noqa: N818 - it names what is the matter
    """The document cannot be read as a script."""


@dataclass
class Step:
    """One marked place of the document."""

    kind: str
    words: list[str]
    line: int
    fence: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{DOCUMENT.name}:{self.line} {' '.join(self.words[:1])}"

    @property
    def exit_code(self) -> int:
        """How its last command is to end."""
        return next((int(word.removeprefix("exit=")) for word in self.words if word.startswith("exit=")), 0)

    @property
    def keeps(self) -> str:
        """The word that stands for the last line of what it prints, in what follows; empty: none."""
        return next((word.removeprefix("as=") for word in self.words if word.startswith("as=")), "")

    @property
    def again(self) -> bool:
        """Whether it is typed until it comes out as it stands there."""
        return "until" in self.words

    @property
    def exact(self) -> bool:
        """Whether the numbers of what it prints are what it is about."""
        return "exact" in self.words

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Each command with the lines that must come out."""
        found: list[tuple[str, list[str]]] = []
        for line in self.fence:
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.startswith("> ") and found and not found[-1][1]:
                found[-1] = (f"{found[-1][0]}\n{line[2:]}", [])
            elif found:
                if line.strip() not in ("", "…"):
                    found[-1][1].append(line)
            else:
                raise Wrong(f"{self.name}: output before the first command")
        return found


@dataclass
class Chapter:
    """A chapter that can be followed by a program."""

    name: str
    doubled: bool
    """Whether its jobs may be done twice."""
    steps: list[Step] = field(default_factory=list)


def read(text: str) -> list[Chapter]:
    """Return the chapters. Raises Wrong with the line."""
    chapters: list[Chapter] = []
    waiting: Step | None = None
    fence: Step | None = None
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if inside:
            if line.startswith("```"):
                inside, fence = False, None
            elif fence:
                fence.fence.append(line)
            continue
        if line.startswith("```"):
            if waiting is None:
                raise Wrong(f"{DOCUMENT.name}:{number}: a fence without a step before it")
            inside, fence, waiting = True, waiting, None
            continue
        found = COMMENT.match(line)
        if line.startswith("<!--") and not found:
            raise Wrong(f"{DOCUMENT.name}:{number}: not understood: {line}")
        if waiting is not None and (found or line.startswith("#")):
            raise Wrong(f"{waiting.name}: no fence follows")
        if found is None:
            continue
        kind, rest = found.groups()
        words = rest.split()
        if kind == "chapter":
            chapters.append(Chapter(words[0], "doubled" in words[1:]))
            continue
        step = Step(kind, words, number)
        if chapters:
            chapters[-1].steps.append(step)
        elif kind != "by hand":
            raise Wrong(f"{DOCUMENT.name}:{number}: a step before the first chapter")
        if kind in FENCES:
            waiting = step
    return chapters


def document() -> list[Chapter]:
    """Return the chapters of docs/operations.md."""
    return read(DOCUMENT.read_text(encoding="utf-8"))


# What is other each time, and what stands for it. A commit has a digit in it, else it might be a word.
VARIES = (
    ("…", ".*"),
    (r"\b[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}\b", "[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}"),
    (r"\b(?=[a-f]*[0-9])[0-9a-f]{8}\b", "[0-9a-f]{8}"),
    # Nothing is nothing: an empty queue, no failed task.
    (r"(?<![0-9.])0(?![0-9.])", r"(?<![0-9.])0(?![0-9.])"),
    (r"[0-9]+(?:\.[0-9]+)?", r"[0-9]+(?:\.[0-9]+)?"),
    (r"\s+", r"\s+"),
)


NUMBER = len(VARIES) - 1
"""The group of VARIES that stands for any number."""
TOKEN = re.compile("|".join(f"({shown})" for shown, _ in VARIES))


def pattern(line: str, exact: bool = False) -> re.Pattern[str]:
    """Return what a shown line stands for: other numbers, releases and spaces, anything for `…`."""
    meaning, at = [], 0
    for found in TOKEN.finditer(line := line.strip()):
        number = exact and found.lastindex == NUMBER
        means = rf"(?<![0-9.]){re.escape(found[0])}(?![0-9.])" if number else VARIES[found.lastindex - 1][1]
        meaning += [re.escape(line[at : found.start()]), means]
        at = found.end()
    return re.compile("".join(meaning) + re.escape(line[at:]))


def missing(shown: list[str], said: str, exact: bool = False) -> str | None:
    """Return the first shown line that was not said, or not in this order; None when all were."""
    lines = iter(said.splitlines())
    for line in shown:
        wanted = pattern(line, exact)
        if not any(wanted.search(each) for each in lines):
            return line
    return None


def merge(old: Any, new: Any) -> Any:
    """Return `old` with `new` put into it."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: merge(old[key], value) if key in old else value for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        named = {item["name"]: item for item in new if isinstance(item, dict) and "name" in item}
        kept = [
            merge(item, named.pop(item["name"]))
            if isinstance(item, dict) and item.get("name") in named
            else item
            for item in old
        ]
        more = [item for item in new if item not in old and not (isinstance(item, dict) and "name" in item)]
        return [*kept, *more, *named.values()]
    return new


def edit(path: Path, text: str) -> None:
    """Put YAML into a file."""
    old = yaml.safe_load(path.read_text()) if path.exists() else {}
    path.write_text(yaml.safe_dump(merge(old, yaml.safe_load(text)), sort_keys=False))


def remove(path: Path, key: str) -> None:
    """Take a key, or a list's item of that name, out of a file."""
    data = whole = yaml.safe_load(path.read_text())
    *way, last = key.split(".")
    for name in way:
        data = data[name]
    if isinstance(data, list):
        found = [
            item for item in data if (item.endswith(last) if isinstance(item, str) else item["name"] == last)
        ]
        assert found, f"{path}: no {key}"
        data.remove(found[0])
    else:
        del data[last]
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
