"""The stack's own part of a release: its wheel and its PHP code, of the commit that says everything."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..description import ROOT
from ..errors import Failed, Refused
from .cache import CACHE, keep_folder
from .source import PHP_SOURCES, STACK_SOURCES, Source, git, pack_commit, resolve

STACK_FOLDER = "kestrel-stack"


def build_stack_wheel(source: Source, *, root: Path = ROOT, cache: Path = CACHE) -> Path:
    """Build the wheel of kestrel_stack and return its path.

    It comes from the commit that is deployed when the application lives in this checkout, so that one commit
    says everything; else from the checkout's HEAD; and from the files as they are when this is no git
    checkout.
    """
    return _kept_wheel(_sources(source, STACK_SOURCES, root), cache)


def build_checkout_wheel(*, root: Path = ROOT, cache: Path = CACHE) -> Path:
    """Build the wheel of kestrel_stack from the checkout's files as they are, and return its path."""
    return _kept_wheel(_pack_files(root, STACK_SOURCES), cache)


def _kept_wheel(data: bytes, cache: Path) -> Path:
    folder = cache / "stack" / _content_key(data)
    if not folder.is_dir():
        _build_wheel(data, folder)
    return next(folder.glob("*.whl"))


def _stack_commit(source: Source, root: Path) -> str | None:
    """Return the commit that the stack's own files are taken from; None where this is no git checkout."""
    top = git(root, "rev-parse", "--show-toplevel", check=False)
    if top.returncode != 0 or Path(top.stdout.decode().rstrip("\n")).resolve() != root.resolve():
        return None
    return source.rev if source.repository == root.resolve() else resolve(root, "HEAD")


def stack_php(source: Source, root: Path) -> bytes | None:
    """Return a tar of the stack's own PHP code; None for a commit that is older than that."""
    rev = _stack_commit(source, root)
    if rev and git(root, "cat-file", "-e", f"{rev}:{PHP_SOURCES[0]}", check=False).returncode != 0:
        return None
    return _sources(source, PHP_SOURCES, root)


def _sources(source: Source, paths: Sequence[str], root: Path) -> bytes:
    """Return a tar of the stack's own files, of the commit that `build_stack_wheel` says."""
    rev = _stack_commit(source, root)
    if rev is None:
        return _pack_files(root, paths)
    for path in paths:
        if git(root, "cat-file", "-e", f"{rev}:{path}", check=False).returncode != 0:
            raise Refused(f"commit {rev[:8]} has no {path}, so the stack's own code cannot be taken from it")
    return pack_commit(root, rev, *paths)


def _pack_files(root: Path, paths: Sequence[str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as made:
        for name in paths:
            made.add(root / name, name, filter=lambda m: None if "__pycache__" in m.name else m)
    return packed.getvalue()


def _content_key(data: bytes) -> str:
    """Name a tar by what is in it, not by when it was packed."""
    digest = hashlib.sha256()
    with tarfile.open(fileobj=io.BytesIO(data)) as given:
        for member in sorted(given, key=lambda m: m.name):
            if member.isreg():
                content = given.extractfile(member).read()
                digest.update(f"{member.name}\0{member.mode & 0o100}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()[:20]


def _build_wheel(data: bytes, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kestrel-stack-wheel-") as name:
        tree, out = Path(name, "tree"), Path(name, "out")
        with tarfile.open(fileobj=io.BytesIO(data)) as given:
            # Our own tar. Debian 12's Python 3.11.2 has no filters yet; 3.12 on warn when none is named.
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            given.extractall(tree, **safely)  # noqa: S202
        # A fixed time: the wheel is named in the venv's key by its bytes. 1580601600 is what hatchling uses
        # itself.
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1580601600", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        wheels = list(out.glob("*.whl")) if out.is_dir() else []
        if done.returncode != 0 or len(wheels) != 1:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise Failed(
                f"the stack's own wheel cannot be built: {said[-1] if said else 'hatchling said nothing'}"
            )
        keep_folder(out, folder)
