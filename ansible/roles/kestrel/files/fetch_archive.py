"""Fetch the archive of a Kestrel release to this controller, once, and verify it before anybody unpacks it.

`fetch_archive.py --archive URL|PATH --cache DIR [--sha256 HEX] [--blob HEX] [--check]` prints one JSON line
with the file's path and its pins. A file on the controller is used where it is. `--check` downloads nothing:
the path is then null unless the file is there already. What goes wrong is one line on stderr that names
kestrel_archive, with exit code 1.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import http.client
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

LIMIT_BYTES = 512 * 1024 * 1024
TRIES = 3
# Seconds: between two tries, without a byte, and for one try as a whole.
PAUSE_SECONDS = 3
SILENCE_SECONDS = 30
TRY_SECONDS = 600
# What a server that has no such file answers: asking again changes nothing.
FINAL = (400, 401, 403, 404, 405, 410)
HINT = " (if you trust it, put its SHA-256 into kestrel_archive_sha256)"


class FetchError(Exception):
    """There is no archive that could be used; the text is for the user."""


def pins_of(archive: Path) -> dict[str, str]:
    """Return both pins of a file: `sha256`, and `blob`, which is what `git hash-object` prints."""
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(f"blob {archive.stat().st_size}\0".encode(), usedforsecurity=False)
    with archive.open("rb") as file:
        while part := file.read(1 << 20):
            sha256.update(part)
            blob.update(part)
    return {"sha256": sha256.hexdigest(), "blob": blob.hexdigest()}


def mismatch(found: dict[str, str], wanted: dict[str, str]) -> str | None:
    """Say which pin is another one than wanted; None when all are right."""
    for kind, name in (("sha256", "SHA-256"), ("blob", "git blob id")):
        if wanted[kind] and found[kind] != wanted[kind].lower():
            return f"its {name} is {found[kind]}, not {wanted[kind]}"
    return None


def download(url: str, target: Path) -> None:
    """Write what `url` answers to `target`; raise OSError (URLError is one) or FetchError."""
    deadline = time.monotonic() + TRY_SECONDS
    request = urllib.request.Request(url, headers={"User-Agent": "kestrel-stack"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as answer, target.open("wb") as file:  # noqa: S310
        length = int(answer.headers.get("Content-Length") or -1)
        size = 0
        while part := answer.read(1 << 16):
            size += len(part)
            if size > LIMIT_BYTES:
                raise FetchError(f"it is larger than {LIMIT_BYTES} bytes")
            if time.monotonic() > deadline:
                raise OSError(f"not complete after {TRY_SECONDS} s")
            file.write(part)
    if length not in (-1, size):
        raise OSError(f"it ended after {size} of {length} bytes")


def reason(error: Exception) -> str:
    """Return an error of a download in words."""
    inner = getattr(error, "reason", None)
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(inner, OSError):
        error = inner
    # What a server says may have several lines.
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def fetch(archive: str, cache: Path, wanted: dict[str, str], *, check: bool, pause: float) -> dict[str, Any]:
    """Return where the verified archive is, and its pins."""
    try:
        scheme = urllib.parse.urlsplit(archive).scheme
    except ValueError as error:
        raise FetchError(f"it is no URL: {error}") from None
    if scheme not in ("http", "https"):
        path = Path(archive).expanduser()
        if not path.is_file():
            raise FetchError("there is no such file on the controller")
        found = pins_of(path)
        if wrong := mismatch(found, wanted):
            raise FetchError(f"{wrong}: it is not unpacked{HINT}")
        return {"path": str(path.absolute()), **found}
    # One name for one content, so that hosts with different releases do not meet.
    path = cache / f"kestrel-{(wanted['sha256'] or wanted['blob']).lower()[:16]}.zip"
    if path.is_file() and not mismatch(found := pins_of(path), wanted):
        return {"path": str(path.absolute()), **found}
    if check:
        return {"path": None, "sha256": None, "blob": None}
    cache.mkdir(parents=True, exist_ok=True)
    # The controller does this for several hosts at once; one downloads, the others wait and find it.
    lock = os.open(cache, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_file() and not mismatch(found := pins_of(path), wanted):
            return {"path": str(path.absolute()), **found}
        return {"path": str(path.absolute()), **download_verified(archive, path, wanted, pause)}
    finally:
        os.close(lock)


def download_verified(archive: str, path: Path, wanted: dict[str, str], pause: float) -> dict[str, str]:
    """Download to ``path``, which is there only when it is what is wanted, and return its pins."""
    handle, name = tempfile.mkstemp(prefix=".fetch-", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        for attempt in range(1, TRIES + 1):
            try:
                download(archive, part)
                break
            except FetchError:
                raise
            except (OSError, ValueError, http.client.HTTPException) as error:
                if (
                    attempt == TRIES
                    or getattr(error, "code", None) in FINAL
                    or isinstance(error, (ValueError, http.client.InvalidURL))
                ):
                    raise FetchError(
                        f"{reason(error)} (tried {attempt} of {TRIES} times): give another URL,"
                        " or the path of the zip on the controller"
                    ) from None
                time.sleep(pause)
        found = pins_of(part)
        if wrong := mismatch(found, wanted):
            size = part.stat().st_size
            raise FetchError(f"what came has {size} bytes and {wrong}: it is not unpacked{HINT}")
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Fetch; return the exit code."""
    parser = argparse.ArgumentParser(description="Fetch and verify the archive of a Kestrel release.")
    parser.add_argument("--archive", required=True, metavar="URL|PATH")
    parser.add_argument("--cache", required=True, type=Path, metavar="DIR")
    parser.add_argument("--sha256", default="", metavar="HEX")
    parser.add_argument("--blob", default="", metavar="HEX")
    parser.add_argument("--check", action="store_true", help="download nothing")
    parser.add_argument(
        "--pause", type=float, default=PAUSE_SECONDS, metavar="SECONDS", help="between two tries (3)"
    )
    options = parser.parse_args(arguments)
    try:
        if not (options.sha256 or options.blob):
            raise FetchError("it has no pin: set kestrel_archive_sha256")
        wanted = {"sha256": options.sha256, "blob": options.blob}
        found = fetch(options.archive, options.cache, wanted, check=options.check, pause=options.pause)
    except FetchError as error:
        sys.stderr.write(f"kestrel_archive {options.archive}: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(
            f"kestrel_archive {options.archive}: {error.filename or ''} {error.strerror or error}\n"
        )
        return 1
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
