"""All files of a release, made from a commit: the same inputs give the same bytes on every machine."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from .. import assets
from ..appspec import RESERVED, AppSpec
from ..description import ROOT
from ..errors import Refused
from . import composer, manifest
from . import tree as trees
from .cache import CACHE, write_whole
from .source import Source, pack_commit
from .stack import STACK_FOLDER, stack_php
from .tree import File, Tree

_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
"""How the text begins that stands in git for a file which Git LFS keeps elsewhere."""


@dataclass(frozen=True)
class Archive:
    """The files of a release. They are packed when somebody asks for it: most hosts need a few of them only.

    ``manifest`` names the whole content. All files have the time ``time``, in seconds since 1970.
    """

    tree: Tree = field(repr=False)
    entries: manifest.Entries = field(repr=False)
    manifest: str
    time: int
    cache: Path = field(repr=False, default=CACHE)

    @property
    def files_size(self) -> int:
        """Bytes of its files when unpacked."""
        return trees.size(self.tree)

    @cached_property
    def path(self) -> Path:
        """All files as one gzipped tar, in the cache."""
        path = self.cache / "archives" / f"{self.manifest}-{self.time}.tar.gz"
        if not path.exists():
            packed = trees.pack(self.tree, self.time)
            write_whole(path, gzip.compress(packed, compresslevel=6, mtime=0))
        return path


def build_archive(source: Source, cache: Path = CACHE, *, root: Path = ROOT) -> Archive:
    """Make a release's files of a commit; its manifest is kept for later deploys."""
    tree = read_tree(source, cache, root=root)
    described = manifest.entries(tree)
    return Archive(tree, described, manifest.remember(described, cache), source.time, cache)


def read_tree(source: Source, cache: Path = CACHE, *, root: Path = ROOT) -> dict[str, File]:
    """Return every file of a release, by path.

    These are the application's folder at the commit without its prefix, what Composer adds, static files
    under the names of their content, and the stack's own PHP code, of the commit that its wheel is built
    from. Raises Refused for a name that the deploy writes itself, and for a file that is not in git itself.
    """
    paths = [source.prefix] if source.prefix else []
    tree = trees.read(pack_commit(source.repository, source.rev, *paths), source.prefix)
    for path in sorted(tree):
        if path.split("/")[0] in RESERVED:
            raise Refused(f"the application contains {path}, a name that the deploy writes itself: rename it")
        if tree[path].data.startswith(_LFS_POINTER):
            raise Refused(
                f"{path} is kept by Git LFS, and this machine has no Git LFS to fetch it:"
                " apt install git-lfs, git lfs install, git lfs pull"
            )
    if source.spec.composer:
        tree = dict(composer.add_vendor(tree, source.spec.composer, cache))
    if source.spec.assets is not None:
        tree |= assets.compile_assets(tree, source.spec.assets, cache / "assets")
    php = stack_php(source, root)
    if php is not None:
        tree |= {f"{STACK_FOLDER}/{path}": file for path, file in trees.read(php).items()}
    return _without_what_hosts_make(tree, source.spec)


def _without_what_hosts_make(tree: Tree, spec: AppSpec) -> dict[str, File]:
    """Leave out what a host puts its own in the place of: shared paths, and Python's byte code."""
    shared = {PurePosixPath(path) for path in (*spec.shared_files, *spec.shared_directories)}
    for path in sorted(shared):
        for parent in path.parents[:-1]:
            if str(parent) in tree:
                raise Refused(
                    f"deploy.yml: shared: {path}: {parent} is a file of the application, not a folder"
                )
    return {
        path: file
        for path, file in tree.items()
        if "__pycache__" not in path.split("/")
        and not ({PurePosixPath(path), *PurePosixPath(path).parents} & shared if shared else False)
    }
