"""What deploy.yml says of assets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AssetsSpec:
    """Folders whose files get a name by their content."""

    folders: tuple[str, ...] = ()
    url: str = "/assets/"
    """Where browsers find them: a path on the web hosts, or a CDN's address."""
