"""One running kestrel-web: its parts put together, started, and stopped in order."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import waitress
from waitress.task import ThreadedTaskDispatcher

from kestrel_stack.queue.servers import Server
from kestrel_stack.web.access import security
from kestrel_stack.web.access.auth import Auth
from kestrel_stack.web.actions.actions import Actions
from kestrel_stack.web.alerting import alerts
from kestrel_stack.web.app import create_app
from kestrel_stack.web.config import Config
from kestrel_stack.web.memory import few_arenas
from kestrel_stack.web.polling.poller import Poller
from kestrel_stack.web.record.store import Store, StoreError
from kestrel_stack.web.site import Site

log = logging.getLogger("kestrel-web")

THREADS = 16
"""Requests that are answered at a time; one that waits for a server that hangs holds a thread."""
BACKLOG = 128
"""Connections that wait to be accepted."""
REQUESTS_END_S = 1.5
"""Seconds that requests under way are given at the end."""
PARTS_END_S = 2.5
"""Seconds that everything else is given then; what is not done is cut, which it has to bear anyway."""


class StartError(Exception):
    """It cannot start; the message is one line that says why and what to do."""


class Dispatcher(ThreadedTaskDispatcher):
    """Waitress's threads, which do not hold up the end for long."""

    def shutdown(self, cancel_pending: bool = True, timeout: float = REQUESTS_END_S) -> bool:
        """Wait for what is under way, `timeout` seconds at most."""
        return bool(super().shutdown(cancel_pending, timeout))


def build(config: Config) -> Site:
    """Make the parts of a site; nothing is polled yet. Raises `StartError` when its state cannot be used."""
    try:
        config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = Store(config.state, config.history_days, config.history_mb, config.interval_s)
    except StoreError as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise StartError(
            f"The state folder {config.state} cannot be used: {error.strerror}. Name another with --state."
        ) from None
    poller = Poller(config, earlier=alerts.remembered(store))
    alerting = alerts.Alerting(config, store)
    poller.on_view(store.record)
    poller.on_view(alerting.on_view)
    actions = Actions(config, store, poller)
    return Site(config, poller, store, Auth(config, store), actions, alerting)


def serve(config: Config) -> None:
    """Answer requests until SIGTERM or SIGINT; raise `StartError` when that cannot begin."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if not stopping.is_set():
            stopping.set()
            raise SystemExit

    few_arenas()
    listening = listen(config.listen, config.port)
    site = build(config)
    try:
        app = create_app(site)
        dispatcher = Dispatcher()
        dispatcher.set_thread_count(THREADS)
        server = waitress.create_server(
            app, sockets=[listening], _dispatcher=dispatcher, backlog=BACKLOG, **security.SERVER_LIMITS
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        log.info("listening at %s", address(config, listening.getsockname()[1]))
        site.poller.start()
        site.alerting.start()
        tell_systemd("READY=1")
        server.run()
    except SystemExit:
        pass
    finally:
        stopping.set()
        tell_systemd("STOPPING=1")
        end(site)
    log.info("stopped")


def end(site: Site) -> None:
    """Stop all parts of a site, in bounded time."""
    until = time.monotonic() + PARTS_END_S
    _all_within(until - 1.0, site.poller.stop, site.actions.stop, site.alerting.stop)
    _all_within(until, site.store.close)


def _all_within(until: float, *calls: Callable[[], object]) -> None:
    """Call all of these side by side, and wait no longer than `until`."""
    threads = [threading.Thread(target=_quietly, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception:
        log.exception("a part could not be stopped")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound; raise `StartError` when the port is not to be had."""
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        made.bind((host, port))
        # Before anything else begins: of two that are bound only one can listen.
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise StartError(_why_not(error, host, port)) from None
    return made


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host} is taken by another program; stop that or choose another with --port."
    if error.errno == errno.EACCES:
        return f"Port {port} is for root only; choose one from 1024 on with --port."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine; choose one with --listen."
    return f"Port {port} of {host} cannot be listened at: {error.strerror}."


def address(config: Config, port: int) -> str:
    """Return the URL of the first page."""
    return f"http://{Server(config.listen, port)}{config.prefix}/"


def tell_systemd(message: str) -> None:
    """Tell a systemd unit of Type=notify how far we are; nothing outside of one."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(message.encode(), "\0" + path[1:] if path.startswith("@") else path)
