"""What the controller keeps of earlier builds, in ``.build/``: all of it can be made again."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from ..description import ROOT

CACHE = ROOT / ".build"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, whoever else writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as part:
        part.write(data)
    Path(part.name).replace(path)


def keep_folder(made: Path, folder: Path) -> None:
    """Move a finished folder into the cache; when another run was faster, its result is the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as name:
        part = Path(name, "part")
        shutil.copytree(made, part, symlinks=True)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def in_use(folder: Path) -> bool:
    """Say whether a folder is kept; from then on it is among the newest."""
    with contextlib.suppress(OSError):
        os.utime(folder)
    return folder.is_dir()


def trim_cache(cache: Path = CACHE, keep: int = 20) -> None:
    """Remove the oldest archives, bundles, manifests, wheels and vendor folders; all can be made again.

    Manifests are small, and a host that is deployed to seldom still gets little when its own is known: of
    these ten times as many stay. Every commit that changes a class of PHP makes a whole vendor folder: of
    these a quarter stays.
    """
    numbers = {
        "archives": keep,
        "bundles": keep,
        "manifests": 10 * keep,
        "wheels": keep,
        "web": keep,
        "wheelhouse": keep,
        "composer/packages": -(-keep // 4),
        "composer/vendor": -(-keep // 4),
    }
    for kind, number in numbers.items():
        folder = cache / kind
        if folder.is_dir():
            for path in sorted(folder.iterdir(), key=_age)[number:]:
                _remove(path)


def _remove(path: Path) -> None:
    """Remove a file, or a folder, of which nobody ever sees a half."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as name, contextlib.suppress(OSError):
        path.rename(Path(name, "old"))


def _age(path: Path) -> float:
    """Return what puts the newest first; what another deploy has removed meanwhile comes last."""
    try:
        return -path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
