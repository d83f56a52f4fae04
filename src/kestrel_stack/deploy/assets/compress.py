"""Compressed copies, made once here so that no web server spends its time on it."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import brotli

_COMPRESSIBLE = """
    .css .js .mjs .json .map .svg .html .htm .txt .md .csv .xml .rss .atom .xsl .webmanifest .ico .cur .bmp
    .ttf .otf .eot .wasm .geojson .topojson .vtt .ics .vcf .ps .eps
"""
COMPRESSIBLE = frozenset(_COMPRESSIBLE.split())
"""Suffixes of what shrinks; pictures, films, archives and woff are compressed already."""


def copies(files: Mapping[str, bytes], cache: Path | None = None) -> dict[str, bytes]:
    """Return ``NAME.gz`` and ``NAME.br`` of the files that are worth it: only copies that are smaller.

    Same files, same bytes, as long as zlib and brotli are the same. ``cache`` is a folder that keeps what was
    made: brotli's best level takes a second for about half a megabyte.
    """
    worth = [name for name in files if PurePosixPath(name).suffix.lower() in COMPRESSIBLE]
    jobs = [(name, suffix) for name in worth for suffix in _WAYS]

    def make(job: tuple[str, str]) -> bytes:
        return _kept(files[job[0]], job[1], cache)

    # Both libraries release the interpreter while they work.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        made = zip(jobs, pool.map(make, jobs), strict=True)
        return {name + suffix: data for (name, suffix), data in made if len(data) < len(files[name])}


def _gzip(data: bytes) -> bytes:
    # By hand: what gzip.compress() says of the operating system depends on Python's version.
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
    body = packer.compress(data) + packer.flush()
    header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    return header + body + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def _brotli(data: bytes) -> bytes:
    return brotli.compress(data, quality=11)


_WAYS = {
    ".gz": (_gzip, f"zlib-{zlib.ZLIB_RUNTIME_VERSION}"),
    ".br": (_brotli, f"brotli-{brotli.__version__}"),
}


def _kept(data: bytes, suffix: str, cache: Path | None) -> bytes:
    compress, version = _WAYS[suffix]
    if cache is None:
        return compress(data)
    path = cache / version / f"{hashlib.sha256(data).hexdigest()}{suffix}"
    try:
        return path.read_bytes()
    except FileNotFoundError:
        # Not from the package itself: it imports this one.
        from ..build.cache import write_whole

        made = compress(data)
        write_whole(path, made)
        return made
