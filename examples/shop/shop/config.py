"""What the shop is told from outside: the environment first, then ``config.json`` beside the package.

``config.json`` holds what differs from host to host, so it belongs to the shared files of deploy.yml.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "config.json"


class NotConfigured(Exception):  # noqa: N818 - it says what is the matter
    """A job needs something that nobody has set."""


def partner_url(file: Path | None = None) -> str:
    """Return the URL of the partner's API; raise `NotConfigured` saying where to set it."""
    file = file or FILE
    url = os.environ.get("SHOP_PARTNER_URL")
    if not url and file.exists():
        try:
            url = json.loads(file.read_text()).get("partner_url")
        except (ValueError, AttributeError):
            raise NotConfigured(f"{file.name} is not a JSON object") from None
    if not url:
        # Not the file's path, which names the release: Sentry would take each deploy's for another error.
        raise NotConfigured(f"no partner is configured: set SHOP_PARTNER_URL, or partner_url in {file.name}")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise NotConfigured(f"the partner's URL {url!r} does not begin with http:// or https://")
    return url
