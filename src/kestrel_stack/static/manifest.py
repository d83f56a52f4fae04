"""The manifest of a release's static files, and what pages ask it."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .errors import InvalidManifest, UnknownAsset

PLACE = Path("_assets", "manifest.json")
"""The manifest inside a release."""
VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """Static files by name: each with its hashed path and its integrity value.

    Without ``path`` there is none, as in development: addresses are ``url`` and the plain name.
    """

    url: str = "/"
    """What every address begins with."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    path: Path | None = None
    """Where it was read."""

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest. Raises InvalidManifest naming the file."""
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise InvalidManifest(f"{path} cannot be read: {error.strerror}") from None
        except ValueError:
            raise InvalidManifest(f"{path} is not JSON") from None
        version = content.get("version") if isinstance(content, dict) else None
        if type(version) is not int or version != VERSION:
            raise InvalidManifest(f"{path} is not a manifest of version {VERSION}")
        url, files = content.get("url"), content.get("files")
        if not isinstance(url, str) or not isinstance(files, dict):
            raise InvalidManifest(f"{path} has no url or no files")
        return cls(url, files, path)

    @classmethod
    def find(cls, folder: Path | None = None, environ: Mapping[str, str] | None = None) -> Manifest:
        """Return the manifest of the release that this program runs in.

        The release is the folder that ``KESTREL_STACK_RELEASE_PATH`` names, else the first one with a
        manifest from ``folder`` (by default the working folder) upwards. Where there is none, names stay
        plain, below ``KESTREL_STACK_ASSETS_URL`` or else ``/``.
        """
        environ = os.environ if environ is None else environ
        named = environ.get("KESTREL_STACK_RELEASE_PATH", "")
        start = Path(named) if named else (folder or Path.cwd())
        for place in [start] if named else [start, *start.parents]:
            if (place / PLACE).is_file():
                return cls.load(place / PLACE)
        url = environ.get("KESTREL_STACK_ASSETS_URL") or "/"
        return cls(url if url.endswith("/") else f"{url}/")

    def address(self, name: str) -> str:
        """Return the address of a file; what follows ``?`` or ``#`` in its name is kept.

        Raises UnknownAsset.
        """
        plain, rest = self._split(name)
        path = plain if self.path is None else self._entry(plain, "path")
        return self.url + quote(path, safe="/") + rest

    def integrity(self, name: str) -> str:
        """Return the value for an ``integrity`` attribute; empty without a manifest. Raises UnknownAsset."""
        return "" if self.path is None else self._entry(self._split(name)[0], "integrity")

    def _split(self, name: str) -> tuple[str, str]:
        plain = name.removeprefix("/")
        if plain in self.files:
            return plain, ""
        end = re.search(r"[?#]|\Z", plain).start()
        return plain[:end], plain[end:]

    def _entry(self, name: str, key: str) -> str:
        entry = self.files.get(name)
        value = entry.get(key) if isinstance(entry, dict) else None
        if entry is None:
            raise UnknownAsset(
                f"There is no asset {name!r} in {self.path}: is it committed, in a folder that deploy.yml"
                " names in assets.folders?"
            )
        if not isinstance(value, str):
            raise InvalidManifest(f"{self.path} has no {key} of {name!r}")
        return value


@functools.cache
def _manifest() -> Manifest:
    return Manifest.find()


def asset_url(name: str) -> str:
    """Return the address of a static file, by its path below one of deploy.yml's ``assets.folders``.

    The manifest is read at the first call and kept as long as the process lives, as the release is. Raises
    UnknownAsset for a name that the release does not have. In development, where there is no manifest, it is
    the plain name below ``/``, or below ``KESTREL_STACK_ASSETS_URL``.
    """
    return _manifest().address(name)


def asset_integrity(name: str) -> str:
    """Return the value of the file's ``integrity`` attribute; empty in development. Raises UnknownAsset."""
    return _manifest().integrity(name)
