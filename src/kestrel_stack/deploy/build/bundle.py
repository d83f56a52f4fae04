"""The one file that a host receives."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from .archive import Archive
from .cache import CACHE, write_whole
from .wheels import Wheels


@dataclass(frozen=True)
class Bundle:
    """The one file that goes to a host."""

    path: Path
    sha256: str
    size: int


def build_bundle(archive: Archive, wheels: Wheels, *, with_wheels: bool, cache: Path = CACHE) -> Bundle:
    """Pack what a host lacks into one tar: the archive, and the wheels unless it has their venv already."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as made:
        _add(made, "app.tar.gz", archive.path.read_bytes())
        if with_wheels:
            _add(made, "requirements.txt", wheels.requirements.encode())
            for path in wheels.files:
                _add(made, f"wheels/{path.name}", path.read_bytes())
    data = packed.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = cache / "bundles" / f"{digest}.tar"
    if not path.exists():
        write_whole(path, data)
    return Bundle(path, digest, len(data))


def _add(made: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    made.addfile(member, io.BytesIO(content))
