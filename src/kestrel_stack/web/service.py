"""One running kestrel-web: its parts put together, started, and stopped in order."""

from __future__ import annotations

import importlib
import logging
import socket
from typing import Any

import waitress
from waitress.task import ThreadedTaskDispatcher

from kestrel_stack.web.app import create_app
from kestrel_stack.web.config import Config
from kestrel_stack.web.poller import Poller
from kestrel_stack.web.site import Site

log = logging.getLogger("kestrel-web")

THREADS = 16
"""Requests that are answered at a time; one that waits for a server that hangs holds a thread."""
STOP_S = 2.0
"""Seconds that requests under way are given when it stops."""


class Dispatcher(ThreadedTaskDispatcher):
    """Waitress's threads, which do not hold up the end for long."""

    def shutdown(self, cancel_pending: bool = True, timeout: float = STOP_S) -> bool:
        """Wait for what is under way, `timeout` seconds at most."""
        return bool(super().shutdown(cancel_pending, timeout))


def build(config: Config) -> Site:
    """Make the parts of a site; nothing runs yet."""
    poller = Poller(config)
    store = _part("store", "Store", config.state)
    auth = _part("auth", "Auth", config, store)
    actions = _part("actions", "Actions", config, store, poller)
    alerting = _part("alerts", "Alerting", config, store)
    if store is not None:
        poller.on_view(store.record)
    if alerting is not None:
        poller.on_view(getattr(alerting, "on_view", alerting))
    return Site(config, poller, store, auth, actions)


def _part(module: str, name: str, *arguments: object) -> Any:
    try:
        return getattr(importlib.import_module(f"kestrel_stack.web.{module}"), name)(*arguments)
    except Exception as error:
        log.warning("not there yet: %s", error)
        return None


def serve(config: Config) -> None:
    """Answer requests until a signal says stop."""
    config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    listening = socket.create_server((config.listen, config.port))
    site = build(config)
    app = create_app(site)
    dispatcher = Dispatcher()
    dispatcher.set_thread_count(THREADS)
    server = waitress.create_server(
        app,
        sockets=[listening],
        _dispatcher=dispatcher,
        ident=None,
        # Which of them are believed is for `forwarded_from` to say.
        clear_untrusted_proxy_headers=False,
    )
    site.poller.start()
    port = listening.getsockname()[1]
    log.info("listening at http://%s:%d%s/", config.listen, port, config.prefix)
    try:
        server.run()
    finally:
        site.poller.stop()
