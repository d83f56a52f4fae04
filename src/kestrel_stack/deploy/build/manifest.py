"""What a release consists of: every file with its mode, size and sha256, and one name for all of it.

The manifest of a release lies in it as ``.manifest.json``. Its name is the sha256 of those bytes, so whoever
knows the name can tell whether the manifest, and by it every file, is what it was.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .cache import CACHE, write_whole
from .tree import Tree

_ID = re.compile(r"[0-9a-f]{64}\Z")


class Entry(NamedTuple):
    """One file of a manifest."""

    mode: str
    """``644``, ``755``, or ``link`` for a symbolic link."""
    size: int
    """In bytes; 0 for a link."""
    content: str
    """sha256 of the content, or the link's target."""


Entries = Mapping[str, Entry]


def entries(tree: Tree) -> dict[str, Entry]:
    """Describe every file of a tree, by path."""
    described = {}
    for path, file in tree.items():
        if file.link is not None:
            described[path] = Entry("link", 0, file.link)
        else:
            mode = "755" if file.executable else "644"
            described[path] = Entry(mode, len(file.data), hashlib.sha256(file.data).hexdigest())
    return described


def dump(described: Entries) -> bytes:
    """Return a manifest's bytes, in the one form whose sha256 names it."""
    return pack_json({"files": described, "version": 1})


def pack_json(content: Any) -> bytes:
    """Return JSON that is the same bytes for the same content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def remember(described: Entries, cache: Path = CACHE) -> str:
    """Keep a manifest for later deploys and return its name."""
    data = dump(described)
    name = hashlib.sha256(data).hexdigest()
    path = _path(name, cache)
    if not path.exists():
        write_whole(path, data)
    return name


def recall(name: str, cache: Path = CACHE) -> dict[str, Entry] | None:
    """Return a manifest that was kept; None when it is not there or not whole."""
    if not _ID.match(name):
        return None
    try:
        data = _path(name, cache).read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data).hexdigest() != name:
        return None
    return {path: Entry(*entry) for path, entry in json.loads(data)["files"].items()}


def difference(old: Entries, new: Entries) -> tuple[dict[str, Entry], list[str]]:
    """Return what ``new`` has that ``old`` has not or has otherwise, and the paths that are gone."""
    changed = {path: entry for path, entry in new.items() if old.get(path) != entry}
    return changed, sorted(set(old) - set(new))


def _path(name: str, cache: Path) -> Path:
    return cache / "manifests" / f"{name}.json"
