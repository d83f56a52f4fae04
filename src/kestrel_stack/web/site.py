"""The parts of one running kestrel-web, as its pages find them: ``site()`` within a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from flask import Flask, current_app

if TYPE_CHECKING:
    from kestrel_stack.web.access.auth import Auth
    from kestrel_stack.web.actions.actions import Actions
    from kestrel_stack.web.alerting.alerts import Alerting
    from kestrel_stack.web.config import Config
    from kestrel_stack.web.polling.poller import Poller
    from kestrel_stack.web.record.store import Store

EXTENSION = "kestrel_web"


@dataclass(frozen=True)
class Site:
    """What one process consists of; nothing else is global."""

    config: Config
    poller: Poller
    store: Store
    auth: Auth
    actions: Actions
    alerting: Alerting


def attach(app: Flask, parts: Site) -> None:
    """Make the parts known to the application."""
    app.extensions[EXTENSION] = parts


def site() -> Site:
    """Return the parts of the application that answers the present request."""
    return cast(Site, current_app.extensions[EXTENSION])
