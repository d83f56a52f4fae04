"""What protects every answer of kestrel-web, whatever view makes it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from flask import Flask

if TYPE_CHECKING:
    from kestrel_stack.web.site import Site


def install(app: Flask, parts: Site) -> None:
    """Protect an application; call it after `attach` and before the blueprints are registered."""
    app.secret_key = secrets.token_bytes(32)
