"""Bundles without git and pip: a release's files given as a mapping."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kestrel_stack.deploy import build
from kestrel_stack.deploy.build import manifest
from kestrel_stack.deploy.build.archive import Archive
from kestrel_stack.deploy.build.tree import File
from kestrel_stack.deploy.build.wheels import pinned
from kestrel_stack.deploy.hoststate import HostState, Release

MOMENT = 1_700_000_000


def archive_of(files: dict[str, str | bytes | File], cache: Path, time: int = MOMENT) -> Archive:
    """Make an archive of files; plain text stands for a file that is not executable."""
    tree = {}
    for path, content in files.items():
        if isinstance(content, str):
            content = content.encode()
        tree[path] = content if isinstance(content, File) else File(content)
    described = manifest.entries(tree)
    return Archive(tree, described, manifest.remember(described, cache), time, cache)


def wheels_of(*paths: Path, requirements: str = "", key: str = "v9") -> build.Wheels:
    """Describe wheels that are there; ``requirements`` pin all but the last, the stack's own."""
    return build.Wheels(requirements + (pinned(paths[-1]) if paths else ""), paths, key)


def state_of(releases: dict[str, str], *, current: str = "", venvs: tuple[str, ...] = ("v9",)) -> HostState:
    """Describe a host that has verified releases, each with the manifest of this name."""
    found = tuple(Release(name, True, manifest=known) for name, known in releases.items())
    return HostState("h", {"current": current}, found, venvs)


def digest(path: Path) -> str:
    """Return a file's sha256 in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
