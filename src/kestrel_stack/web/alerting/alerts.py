"""Alerts over time: told to the webhook once when raised and once when over, also across restarts.

What is raised, what was told and what waits for the receiver is one JSON value in the store, written whenever
it changes. After a restart nothing is told twice, and what ended meanwhile is told as over; only a process
killed in the moment of a delivery sends that message again, with the same id. ``schemas/alert-v1.json`` is
the message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
import uuid
from typing import Any

from kestrel_stack.web import keys
from kestrel_stack.web.alerting.judge import SERVER_KINDS, Name
from kestrel_stack.web.alerting.webhook import Counters, Delivery, Message
from kestrel_stack.web.config import Config
from kestrel_stack.web.model import Alert, Condition, View
from kestrel_stack.web.record.store import Store, StoreTrouble

KEY = "alerts"
"""In the store."""
GIVE_UP_LOADING_S = 60.0
"""So long a file that cannot be read at the start is waited for before alerts are told without it."""

log = logging.getLogger("kestrel-web")


def remembered(store: Store) -> View:
    """Return a view that has nothing but what was raised when the last process ended, for `judge`."""
    with contextlib.suppress(StoreTrouble):
        raised, _, _ = _load(store)
        return View(
            alerts=tuple(raised.values()),
            conditions={name: Condition(alert.since, alert=alert) for name, alert in raised.items()},
        )
    return View()


class Alerting:
    """Heeds each view: compares its alerts with those that were told."""

    def __init__(self, config: Config, store: Store):
        self._config, self._store = config, store
        self._lock = threading.Lock()
        self._raised: dict[Name, Alert] = {}
        self._told: set[Name] = set()
        self._loaded = False
        self._began = time.monotonic()
        self._delivery: Delivery | None = None
        if config.webhook is not None:
            self._delivery = Delivery(config.webhook.url, config.webhook.timeout_s, self._delivered)

    def start(self) -> None:
        """Begin to send."""
        if self._delivery is not None:
            self._delivery.start()

    def stop(self) -> None:
        """Send nothing more; what waits is sent after the next start."""
        if self._delivery is not None:
            self._delivery.stop()

    def trouble(self) -> str | None:
        """Return in one line why the webhook does not get its messages, or None."""
        return None if self._delivery is None else self._delivery.trouble()

    def counters(self) -> Counters:
        """Return what became of the messages since the start."""
        return Counters() if self._delivery is None else self._delivery.counters()

    def on_view(self, view: View) -> None:
        """Tell what is new and what is over."""
        if not view.servers:
            return
        with self._lock:
            if not self._loaded and not self._take_up():
                return
            raised = {(alert.kind, alert.subject): alert for alert in view.alerts}
            messages: list[Message] = []
            if self._delivery is not None:
                messages += [
                    self._message("raised", alert, view, alert.text)
                    for name, alert in raised.items()
                    if name not in self._told
                ]
                messages += [
                    self._message("recovered", alert, view, _over(alert, view))
                    for name, alert in self._raised.items()
                    if name in self._told and name not in raised
                ]
                told = set(raised)
            else:
                told = set()
            if messages or raised.keys() != self._raised.keys() or told != self._told:
                self._log(raised)
                self._raised, self._told = raised, told
                if self._delivery is not None:
                    self._delivery.add(messages)
                self._keep()

    def _take_up(self) -> bool:
        """Load what the last process left; while the file cannot be read, wait for it for a time."""
        try:
            self._raised, self._told, waiting = _load(self._store)
        except StoreTrouble:
            if time.monotonic() - self._began < GIVE_UP_LOADING_S:
                return False
            waiting = []
        self._loaded = True
        if self._delivery is not None:
            self._delivery.add(waiting)
        return True

    def _log(self, raised: dict[Name, Alert]) -> None:
        for name, alert in raised.items():
            if name not in self._raised:
                log.warning("alert: %s", alert.text)
        for name, alert in self._raised.items():
            if name not in raised:
                log.info("alert over: %s", alert.text)

    def _delivered(self) -> None:
        with self._lock:
            if self._loaded:
                self._keep()

    def _keep(self) -> None:
        self._store.put(
            KEY,
            {
                "raised": [dataclasses.asdict(alert) for alert in self._raised.values()],
                "told": sorted(self._told),
                "waiting": [] if self._delivery is None else self._delivery.waiting(),
            },
        )

    def _message(self, event: str, alert: Alert, view: View, text: str) -> Message:
        server = alert.kind in SERVER_KINDS
        return {
            "v": 1,
            "id": str(uuid.uuid4()),
            "event": event,
            "kind": alert.kind,
            "subject": alert.subject,
            "queue": None if server else keys.show(alert.subject),
            "server": alert.subject if server else None,
            "text": text,
            "value": alert.value,
            "limit": alert.limit,
            "since": round(alert.since * 1000),
            "at": round(view.at * 1000),
            "environment": self._config.environment,
        }


def _over(alert: Alert, view: View) -> str:
    """Return what to say when an alert has ended."""
    if alert.kind in SERVER_KINDS:
        if view.server(alert.subject) is None:
            return f"{alert.subject} is not watched any more"
        return f"{alert.subject} {'answers' if alert.kind == 'server_down' else 'is UP'} again"
    name, row = keys.show(alert.subject), view.row(alert.subject)
    if row is None:
        return f"{name} is not there any more"
    if alert.kind == "no_consumers":
        return f"{name} has consumers again" if row.numbers.items else f"{name} is empty"
    return f"{name} is below its limit of {'items' if alert.kind == 'backlog' else 'age'} again"


def _load(store: Store) -> tuple[dict[Name, Alert], set[Name], list[Message]]:
    """Return what was raised, told and waits; raise `StoreTrouble` when it cannot be read now."""
    content: Any = store.fetch(KEY) or {}
    try:
        raised = {(each["kind"], each["subject"]): Alert(**each) for each in content.get("raised", [])}
        told = {(kind, subject) for kind, subject in content.get("told", [])}
        waiting = [dict(each) for each in content.get("waiting", [])]
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        log.warning("what the store has of alerts makes no sense and is left out: %s", type(exc).__name__)
        return {}, set(), []
    return raised, told & raised.keys(), waiting
