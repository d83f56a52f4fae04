"""An application's files in memory: read from git, completed, packed; same files, same bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class File:
    """A regular file, or a symbolic link when ``link`` is its target."""

    data: bytes = b""
    executable: bool = False
    link: str | None = None


Tree = Mapping[str, File]
"""Files by their path below the release, with slashes. Folders are there as parts of paths alone."""


def read(packed: bytes, prefix: str = "") -> dict[str, File]:
    """Return the files of a tar such as ``git archive`` makes, those below ``prefix``, without it."""
    top = PurePosixPath(prefix).parts
    tree: dict[str, File] = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as given:
        for member in given:
            parts = PurePosixPath(member.name).parts
            if parts[: len(top)] != top or len(parts) == len(top):
                continue
            path = "/".join(parts[len(top) :])
            if member.issym():
                tree[path] = File(link=member.linkname)
            elif member.isreg() or member.islnk():
                tree[path] = File(given.extractfile(member).read(), bool(member.mode & 0o100))
    return tree


def pack(tree: Tree, mtime: int) -> bytes:
    """Return a tar of the files, in the order of their paths, with nothing in it of this machine.

    ``mtime`` is the time of all of them, in seconds since 1970: a web server derives cache validators from
    it, so it is the commit's.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as made:
        for path in sorted(tree):
            file = tree[path]
            member = tarfile.TarInfo(path)
            member.mtime = mtime
            member.mode = 0o755 if file.executable else 0o644
            if file.link is not None:
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, file.link, 0o777
                made.addfile(member)
            else:
                member.size = len(file.data)
                made.addfile(member, io.BytesIO(file.data))
    return packed.getvalue()


def size(tree: Tree) -> int:
    """Bytes of all files together."""
    return sum(len(file.data) for file in tree.values())
