"""From the folders of the commit to files that never change: pure, a tree in and files out."""

from __future__ import annotations

import base64
import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from ..errors import Refused
from . import compress, css
from .spec import AssetsSpec, ignored

if TYPE_CHECKING:
    from ..build.tree import File, Tree

FOLDER = "_assets"
"""Where a release has them."""
MANIFEST = "manifest.json"
MANIFEST_PHP = "manifest.php"
"""The same for PHP, whose opcode cache then keeps it in memory instead of reading JSON at every request."""
MANIFESTS = (f"{FOLDER}/{MANIFEST}", f"{FOLDER}/{MANIFEST_PHP}")
"""What is not served."""
HASH_DIGITS = 16
"""Hexadecimal digits of the SHA-256 in a name."""
_CODE = """
    .php .phtml .phar .phps .php3 .php4 .php5 .php7 .php8 .inc .py .pyc .rb .pl .cgi .fcgi .sh
    .sql .sqlite .db .lock
"""
CODE = frozenset(_CODE.split())
"""Suffixes that are never published: folders that a web server uses as its root have code in them as well."""


COPIES = frozenset([".bak", ".dist", ".example", ".old", ".orig", ".rej", ".sample", ".save", ".swp", ".tmp"])
"""Suffixes that editors and people put behind a name: what is in there is what it was."""


@dataclass(frozen=True)
class Source:
    """A file of the commit that becomes an asset."""

    path: str
    """Below the application, for messages."""
    data: bytes


@dataclass(frozen=True)
class Asset:
    """A file with the name that its content gives it."""

    name: str
    data: bytes

    @property
    def entry(self) -> dict[str, Any]:
        """What the manifest says of it; ``size`` in bytes."""
        integrity = base64.b64encode(hashlib.sha384(self.data).digest()).decode()
        return {
            "path": self.name,
            "sha256": hashlib.sha256(self.data).hexdigest(),
            "size": len(self.data),
            "integrity": f"sha384-{integrity}",
        }


def compile_assets(tree: Tree, spec: AssetsSpec, cache: Path | None = None) -> dict[str, File]:
    """Return the files to add to a release, all below ``_assets/``: assets, compressed copies, manifest.

    Same tree, same bytes. ``cache`` is a folder for compressed copies; the result is the same without it.
    Raises Refused: two files of one name, references to what is not there, style sheets that import each
    other.
    """
    from ..build.tree import File

    made = _Compiler(_sources(tree, spec), spec).run()
    files = {asset.name: asset.data for asset in made.values()}
    files |= compress.copies(files, cache)
    manifest = {
        "version": 1,
        "url": spec.url,
        "files": {name: made[name].entry for name in sorted(made)},
    }
    files[MANIFEST] = (json.dumps(manifest, indent=1) + "\n").encode()
    files[MANIFEST_PHP] = f"<?php\n\nreturn {_php(manifest)};\n".encode()
    return {f"{FOLDER}/{name}": File(files[name]) for name in sorted(files)}


# --- which files ----------------------------------------------------------------------------------------


def _sources(tree: Tree, spec: AssetsSpec) -> dict[str, Source]:
    """Return the assets by name: the path below the folder that deploy.yml names."""
    sources: dict[str, Source] = {}
    for folder in spec.folders:
        paths = [path for path in sorted(tree) if path.startswith(f"{folder}/")]
        if not paths:
            raise Refused(f"deploy.yml: assets.folders: the commit has no file in {folder}")
        for path in paths:
            name = path.removeprefix(f"{folder}/")
            if _left_out(name, spec):
                continue
            data = _content(tree, path)
            if data is None:
                continue
            if name in sources:
                raise Refused(
                    f"assets: {sources[name].path} and {path} would both be {name}: rename one of them"
                )
            if any(ord(sign) < 32 or 0xD800 <= ord(sign) < 0xE000 for sign in name):
                raise Refused(f"assets: {path!r}: a name that is not UTF-8 text of one line: rename it")
            sources[name] = Source(path, data)
    return sources


def _left_out(name: str, spec: AssetsSpec) -> str:
    """Say why a file is no asset; empty when it is one."""
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):
        return "is hidden, and hidden files are never published"
    if _may_be_code(path):
        return "is never published, since it may be code"
    if ignored(name, spec.ignore):
        return "is left out by assets.ignore"
    return ""


def _may_be_code(path: PurePosixPath) -> bool:
    suffixes = [suffix.rstrip("~").lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COPIES:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in CODE


def _content(tree: Tree, path: str) -> bytes | None:
    """Return a file's bytes, through links inside the application; None for a link that leads out.

    Raises Refused for a link to a folder: what is in there would be missed by the first page that shows it.
    """
    place = path
    for _ in range(8):
        file = tree.get(place)
        if file is None:
            if any(name.startswith(f"{place}/") for name in tree):
                raise Refused(
                    f"assets: {path} is a link to the folder {place}: name that one in assets.folders, or"
                    " leave the link out with assets.ignore"
                )
            return None
        if file.link is None:
            return file.data
        if file.link.startswith("/"):
            return None
        place = posixpath.normpath(posixpath.join(posixpath.dirname(place), file.link))
    return None


# --- names and references -------------------------------------------------------------------------------


class _Compiler:
    """Names files, those first that others refer to: a changed picture changes the style sheet's name."""

    def __init__(self, sources: Mapping[str, Source], spec: AssetsSpec) -> None:
        self._sources = sources
        self._spec = spec
        self._made: dict[str, Asset] = {}
        self._at_work: list[str] = []
        self._faults: list[str] = []
        # What a path from the site's root may begin with where assets are meant.
        self._roots = ["", *([spec.url.strip("/")] if _is_path(spec.url) else []), *spec.folders]
        self._tops = {name.split("/")[0] for name in sources if "/" in name}

    def run(self) -> dict[str, Asset]:
        for name in self._sources:
            self._make(name)
        if self._faults:
            shown = "; ".join(self._faults[:5])
            more = f"; and {len(self._faults) - 5} more" if len(self._faults) > 5 else ""
            raise Refused(f"assets: {shown}{more}")
        return self._made

    def _make(self, name: str) -> Asset:
        if name in self._made:
            return self._made[name]
        if name in self._at_work:
            circle = [*self._at_work[self._at_work.index(name) :], name]
            paths = " -> ".join(self._sources[one].path for one in circle)
            raise Refused(f"assets: style sheets that need each other's name: {paths}: break the circle")
        self._at_work.append(name)
        data = self._rewritten(name)
        self._at_work.pop()
        asset = Asset(_hashed_name(name, data), data)
        self._made[name] = asset
        return asset

    def _rewritten(self, name: str) -> bytes:
        data = self._sources[name].data
        find = _FINDERS.get(PurePosixPath(name).suffix.lower())
        if find is None:
            return data
        # Bytes that are not UTF-8 come out as they went in.
        text = data.decode("utf-8", "surrogateescape")
        try:
            changed = css.replace(text, find(text), lambda reference: self._address(name, text, reference))
        except RecursionError:
            raise Refused(f"assets: {self._sources[name].path}: imports are nested too deep") from None
        return changed.encode("utf-8", "surrogateescape")

    def _address(self, name: str, text: str, reference: css.Reference) -> str | None:
        target = self._target(name, text, reference)
        if target is None:
            return None
        # Relative, so that it holds on the web hosts and on the CDN alike.
        path = posixpath.relpath(self._make(target).name, posixpath.dirname(name) or ".")
        return quote(path, safe="/")

    def _target(self, name: str, text: str, reference: css.Reference) -> str | None:
        """Return the name of the asset that is meant; None when the reference is to stay."""
        path = reference.path
        if not path or path.startswith("//") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path):
            return None
        plain = unquote(path, errors="surrogateescape")
        if plain.startswith("/"):
            found, expected = self._from_root(plain.lstrip("/"))
        else:
            expected = posixpath.normpath(posixpath.join(posixpath.dirname(name), plain))
            found = expected if expected in self._sources else None
        # A map is read by developers' tools alone, and libraries often name one they do not bring.
        if found is None and expected is not None and not reference.source_map:
            line = text.count("\n", 0, reference.start) + 1
            self._faults.append(
                f"{self._sources[name].path} line {line}: {path[:200]}: {self._missing(expected)}"
            )
        return found

    def _from_root(self, path: str) -> tuple[str | None, str | None]:
        """Return the asset that a path from the site's root means, and which one was expected, if any."""
        plain = posixpath.normpath(path) if path else ""
        expected = None
        for root in self._roots:
            if root and not plain.startswith(f"{root}/"):
                continue
            name = plain.removeprefix(f"{root}/") if root else plain
            if name in self._sources:
                return name, name
            if root or name.split("/")[0] in self._tops:
                expected = name
        return None, expected

    def _missing(self, name: str) -> str:
        if name.startswith("../") or name == "..":
            return "leads out of the folder"
        why = _left_out(name, self._spec)
        if why:
            return f"{name} {why}"
        return f"there is no {name} in {' or '.join(self._spec.folders)}"


_FINDERS = {
    ".css": css.style_references,
    ".js": css.script_references,
    ".mjs": css.script_references,
}


def _is_path(url: str) -> bool:
    return url.startswith("/") and not url.startswith("//")


def _hashed_name(name: str, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()[:HASH_DIGITS]
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}.{digest}{path.suffix}"))


# --- the manifest for PHP -------------------------------------------------------------------------------


def _php(value: Any) -> str:
    """Write plain data as PHP does with short arrays."""
    if isinstance(value, Mapping):
        return "[" + ", ".join(f"{_php(key)} => {_php(item)}" for key, item in value.items()) + "]"
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
