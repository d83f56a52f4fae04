"""All files of a release, made from a commit: the same inputs give the same bytes on every machine."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..appspec import RESERVED
from ..description import ROOT
from ..errors import Refused
from . import tree as trees
from .cache import CACHE, write_whole
from .source import Source, git
from .stack import STACK_FOLDER, stack_php
from .tree import File


@dataclass(frozen=True)
class Archive:
    """The application's files at a commit."""

    path: Path
    sha256: str
    size: int
    files_size: int
    """Bytes of its files when unpacked."""
    tree: Mapping[str, File] = field(repr=False, default_factory=dict)


def build_archive(source: Source, cache: Path = CACHE, *, root: Path = ROOT) -> Archive:
    """Make app.tar.gz of the commit: the application's folder without its prefix, nothing of this machine.

    The stack's own PHP code goes with it, from the commit that its wheel is built from.
    """
    tree = read_tree(source, root=root)
    packed = gzip.compress(trees.pack(tree, source.time), compresslevel=6, mtime=0)
    digest = hashlib.sha256(packed).hexdigest()
    path = cache / "archives" / f"{digest}.tar.gz"
    if not path.exists():
        write_whole(path, packed)
    return Archive(path, digest, len(packed), trees.size(tree), tree)


def read_tree(source: Source, *, root: Path = ROOT) -> dict[str, File]:
    """Return every file of a release, by path. Raises Refused for a name that the deploy writes itself."""
    words = ["archive", "--format=tar", source.rev]
    if source.prefix:
        words += ["--", source.prefix]
    tree = trees.read(git(source.repository, *words).stdout, source.prefix)
    for path in sorted(tree):
        if path.split("/")[0] in RESERVED:
            raise Refused(f"the application contains {path}, a name that the deploy writes itself: rename it")
    php = stack_php(source, root)
    if php is not None:
        tree |= {f"{STACK_FOLDER}/{path}": file for path, file in trees.read(php).items()}
    return tree
