"""The application that answers requests: its blueprints, and what guards them."""

from __future__ import annotations

import importlib
import logging

from flask import Flask

from kestrel_stack.web import site as sites
from kestrel_stack.web.site import Site

log = logging.getLogger("kestrel-web")

VIEWS = ("health", "login", "pages", "act", "api", "metrics", "csv")


def create_app(parts: Site) -> Flask:
    """Return the application of one site; nothing listens yet."""
    app = Flask(__name__, static_folder=None)
    sites.attach(app, parts)
    try:
        security = importlib.import_module("kestrel_stack.web.security")
        security.install(app, parts)
    except Exception as error:
        log.warning("not there yet: %s", error)
    for name in VIEWS:
        try:
            app.register_blueprint(importlib.import_module(f"kestrel_stack.web.views.{name}").blueprint)
        except Exception as error:
            log.warning("not there yet: views/%s.py: %s", name, error)
    if "healthz" not in {rule.rule.strip("/") for rule in app.url_map.iter_rules()}:
        app.add_url_rule("/healthz", "healthz", lambda: {"status": "skeleton"})
    return app
