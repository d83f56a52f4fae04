"""The application that answers requests: its blueprints, and what guards them."""

from __future__ import annotations

import importlib
import logging

from flask import Flask

from kestrel_stack.web import security
from kestrel_stack.web import site as sites
from kestrel_stack.web.site import Site

log = logging.getLogger("kestrel-web")

VIEWS = ("health", "login", "pages", "act", "api", "metrics", "csv")


def create_app(parts: Site) -> Flask:
    """Return the application of one site; nothing listens yet."""
    app = Flask(__name__, static_folder=None)
    # An address answers the methods that are written at it, and no others.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.json.sort_keys = False  # type: ignore[attr-defined]
    sites.attach(app, parts)
    security.install(app, parts)
    for name in VIEWS:
        try:
            app.register_blueprint(importlib.import_module(f"kestrel_stack.web.views.{name}").blueprint)
        except Exception as error:
            log.warning("not there yet: views/%s.py: %s", name, error)
    return app
