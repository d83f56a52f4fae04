"""The application that answers requests: its blueprints, and what guards them."""

from __future__ import annotations

from flask import Flask

from kestrel_stack.web import site as sites
from kestrel_stack.web.access import security
from kestrel_stack.web.site import Site
from kestrel_stack.web.views import act, api, csv, health, login, metrics, pages

VIEWS = (health, login, pages, act, api, metrics, csv)


def create_app(parts: Site) -> Flask:
    """Return the application of one site; nothing listens yet."""
    app = Flask(__name__, static_folder=None)
    # An address answers the methods that are written at it, and no others.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.json.sort_keys = False  # type: ignore[attr-defined]
    sites.attach(app, parts)
    security.install(app, parts)
    for view in VIEWS:
        app.register_blueprint(view.blueprint)
    return app
