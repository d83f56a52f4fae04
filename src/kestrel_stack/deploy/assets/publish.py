"""The way of assets to a CDN's origin, before any host is switched: what is missing there, and nothing else.

Names carry the content's hash, so nothing is ever changed or deleted there: pages of every release that was
ever deployed find their files.
"""

from __future__ import annotations

import functools
import mimetypes
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ..errors import Cancelled, Failed, Refused
from .compile import FOLDER, MANIFESTS
from .spec import S3, AssetsSpec, Rsync

if TYPE_CHECKING:
    from ..build.tree import File
    from ..report import Report

CACHE_CONTROL = "public, max-age=31536000, immutable"
"""A year, the longest that caches take seriously; the content of a name never changes."""
SECONDS = 120
BYTES_PER_SECOND = 50_000
"""An upload that is slower than this, after the first SECONDS, is given up."""

_TYPES = {
    ".avif": "image/avif",
    ".css": "text/css",
    ".eot": "application/vnd.ms-fontobject",
    ".ico": "image/vnd.microsoft.icon",
    ".js": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".otf": "font/otf",
    ".svg": "image/svg+xml",
    ".ttf": "font/ttf",
    ".txt": "text/plain",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xml": "application/xml",
}
_ENCODINGS = {".gz": "gzip", ".br": "br"}


@dataclass(frozen=True)
class Upload:
    """A file for the CDN's origin."""

    name: str
    """Its path below the target, with slashes."""
    data: bytes
    content_type: str
    content_encoding: str | None = None


class Limits:
    """When to stop: a person's wish, or the time that the upload gets."""

    def __init__(self, size: int, cancel: threading.Event | None = None) -> None:
        """``size`` in bytes decides how long it may take."""
        self.seconds = SECONDS + size // BYTES_PER_SECOND
        self._end = time.monotonic() + self.seconds
        self._cancel = cancel or threading.Event()

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self._end - time.monotonic()

    def check(self, target: object) -> None:
        """Raise Cancelled when a person stopped it, Failed when the time is over."""
        if self._cancel.is_set():
            raise Cancelled("stopped")
        if self.left <= 0:
            raise Failed(f"assets.cdn: {target}: not done within {self.seconds} s: given up")


def require_tools(spec: AssetsSpec | None) -> None:
    """Refuse an upload that this machine has no program for: asked before anything is changed."""
    if spec is not None and isinstance(spec.cdn, Rsync) and shutil.which("rsync") is None:
        raise Refused("assets.cdn: rsync is not installed on this machine: apt install rsync")


def publish(
    files: Mapping[str, File], spec: AssetsSpec | None, out: Report, cancel: threading.Event | None = None
) -> int:
    """Upload what the CDN's origin lacks, and return how many files that were; 0 without one in deploy.yml.

    ``files`` are those of a release; those below ``_assets/`` count, without the manifests. Credentials come
    from the environment and the usual files (AWS's, ssh's) alone. Takes at most SECONDS and what
    BYTES_PER_SECOND allow. Raises Failed, with every host as before, and Cancelled once ``cancel`` is set.
    """
    if spec is None or spec.cdn is None:
        return 0
    from ..report import count, size
    from . import rsync, s3

    wanted = uploads(files)
    limits = Limits(sum(len(upload.data) for upload in wanted), cancel)
    if isinstance(spec.cdn, S3):
        sent = s3.send(wanted, spec.cdn, limits)
    else:
        sent = rsync.send(wanted, spec.cdn, limits)
    if sent:
        total = sum(len(upload.data) for upload in wanted if upload.name in sent)
        out.step(
            f"Assets: uploaded {count(len(sent), 'file')} ({size(total)}) to {spec.cdn};"
            f" {len(wanted) - len(sent)} were there"
        )
    else:
        out.step(f"Assets: {count(len(wanted), 'file')} at {spec.cdn} already")
    return len(sent)


def uploads(files: Mapping[str, File]) -> list[Upload]:
    """Return what belongs on the CDN, by name, with its type and encoding."""
    found = []
    for path in sorted(files):
        if not path.startswith(f"{FOLDER}/") or path in MANIFESTS:
            continue
        # `x.css.gz` is the copy of `x.css`; an archive that the commit has is called `x.<hash>.gz`.
        plain, suffix = path[: -len(PurePosixPath(path).suffix) or None], PurePosixPath(path).suffix
        encoding = _ENCODINGS.get(suffix) if plain in files else None
        original = plain if encoding else path
        found.append(
            Upload(
                path.removeprefix(f"{FOLDER}/"),
                files[path].data,
                content_type(original, files[original].data),
                encoding,
            )
        )
    return found


def content_type(name: str, data: bytes) -> str:
    """Say what a file is, the same on every machine."""
    kind = _kind(PurePosixPath(name).suffix.lower())
    if kind.startswith("text/") and _is_utf8(data):
        return f"{kind}; charset=utf-8"
    return kind


@functools.cache
def _kind(suffix: str) -> str:
    # An instance of its own: the module's functions read files of this machine.
    found = _TYPES.get(suffix) or mimetypes.MimeTypes().guess_type(f"x{suffix}")[0]
    return found or "application/octet-stream"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
