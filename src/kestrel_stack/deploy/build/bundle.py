"""The one file that a host receives: what it lacks of a release, and the wheels unless it has their venv.

A host that runs a release whose manifest is known here gets the files that differ from it. See
``onhost/unpack.py`` for the other end.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import re
import tarfile
import threading
from dataclasses import dataclass
from pathlib import Path

from ..description import ROOT
from ..errors import DeployError
from ..hoststate import HostState, Release
from . import manifest
from . import tree as trees
from .archive import Archive, build_archive
from .cache import CACHE, write_whole
from .source import Source, at_commit
from .wheels import Wheels

_REVISION = re.compile(r"[0-9a-f]{40,64}\Z")


@dataclass(frozen=True)
class Bundle:
    """The one file that goes to a host."""

    path: Path
    sha256: str
    size: int
    """In bytes."""
    base_release: str | None = None
    """Name of the release on the host whose unchanged files are linked; None: everything is sent."""
    with_wheels: bool = False

    @property
    def seconds(self) -> int:
        """How long its upload may take: 50 KB a second is a line on which one would rather not deploy."""
        return 120 + self.size // 50_000


_packing = threading.Lock()
"""Hosts are many and most need the same bundle: one thread packs it, the others find it packed."""
_packed: dict[tuple[object, ...], Bundle] = {}


def bundle_for(
    archive: Archive,
    wheels: Wheels,
    state: HostState,
    source: Source | None = None,
    *,
    full: bool = False,
    cache: Path = CACHE,
    root: Path = ROOT,
) -> Bundle:
    """Pack what one host lacks.

    ``source`` helps to find out what an earlier commit consisted of, when it was deployed from elsewhere.
    With ``full`` everything is sent, wheels too: the answer to a host that said ``need full``.
    """
    with_wheels = full or wheels.key not in state.venvs
    if not full:
        for release in _candidates(state):
            base = _known(release, source, cache, root)
            if base is not None:
                bundle = build_bundle(
                    archive, wheels, with_wheels=with_wheels, base=base, base_id=release.manifest, cache=cache
                )
                return dataclasses.replace(bundle, base_release=release.name)
    return build_bundle(archive, wheels, with_wheels=with_wheels, cache=cache)


def _candidates(state: HostState) -> list[Release]:
    """Releases to build upon: the current one, else the newest that was verified."""
    verified = sorted((r for r in state.releases if r.verified), key=lambda r: r.name, reverse=True)
    current = state.current_release
    return [release for release in ([current] if current else []) + verified[:1] if release.manifest]


def _known(release: Release, source: Source | None, cache: Path, root: Path) -> manifest.Entries | None:
    """Return the manifest of a release on a host, from the cache or made again from its commit."""
    found = manifest.recall(release.manifest, cache)
    if found is not None or source is None or not _REVISION.match(release.rev):
        return found
    with _packing:
        # Made again, it is in the cache; whether it is the one that the host has, its name tells.
        key = (str(cache), str(source.repository), source.prefix, release.rev)
        if key not in _tried:
            _tried.add(key)
            try:
                build_archive(at_commit(source, release.rev), cache, root=root)
            except DeployError:
                return None
        return manifest.recall(release.manifest, cache)


_tried: set[tuple[str, ...]] = set()


def build_bundle(
    archive: Archive,
    wheels: Wheels,
    *,
    with_wheels: bool,
    base: manifest.Entries | None = None,
    base_id: str = "",
    cache: Path = CACHE,
) -> Bundle:
    """Pack a bundle: all files, or with ``base`` (a manifest named ``base_id``) those that differ from it."""
    key = (archive.manifest, archive.time, base_id, wheels.key if with_wheels else "", str(cache))
    with _packing:
        known = _packed.get(key)
        if known is None or not known.path.exists():
            known = _packed[key] = _pack(archive, wheels if with_wheels else None, base, base_id, cache)
        return known


def _pack(
    archive: Archive, wheels: Wheels | None, base: manifest.Entries | None, base_id: str, cache: Path
) -> Bundle:
    if base is None:
        changed, removed = archive.entries, []
        files = archive.path.read_bytes()
    else:
        changed, removed = manifest.difference(base, archive.entries)
        files = compress(trees.pack({path: archive.tree[path] for path in changed}, archive.time))
    said = {"id": archive.manifest, "base": base_id, "files": changed, "removed": removed}
    content = {"manifest.json.gz": compress(manifest.pack_json(said)), "files.tar.gz": files}
    if wheels is not None:
        content["requirements.txt"] = wheels.requirements.encode()
        content |= {f"wheels/{path.name}": path.read_bytes() for path in wheels.files}
    data = tar(content)
    digest = hashlib.sha256(data).hexdigest()
    path = cache / "bundles" / f"{digest}.tar"
    if not path.exists():
        write_whole(path, data)
    return Bundle(path, digest, len(data), with_wheels=wheels is not None)


def compress(data: bytes) -> bytes:
    """Return gzip data without this moment in it."""
    return gzip.compress(data, compresslevel=6, mtime=0)


def tar(content: dict[str, bytes]) -> bytes:
    """Return a tar of files by name, the same bytes whenever it is made."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o644
            made.addfile(member, io.BytesIO(data))
        end = made.offset
    # Two empty blocks end a tar. Python fills up to 10 KB, which is more than most changes need.
    return packed.getvalue()[: end + 2 * tarfile.BLOCKSIZE]
