"""What a queue's description says of when to look at it: ``alert: {backlog: 1000, age: 60s}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kestrel_stack.queue.errors import SettingsError
from kestrel_stack.queue.settings import parse_age
from kestrel_stack.web.model import Limits

KEYS = ("backlog", "age")


def limits(alert: Mapping[str, Any]) -> Limits:
    """Return a queue's limits; raise `SettingsError` when they make no sense."""
    unknown = sorted(set(alert) - set(KEYS))
    if unknown:
        raise SettingsError(f"'alert' has the unknown key {unknown[0]!r}; known: {', '.join(KEYS)}.")
    backlog, age = alert.get("backlog"), alert.get("age")
    if backlog is not None and (isinstance(backlog, bool) or not isinstance(backlog, int) or backlog < 1):
        raise SettingsError("'backlog' of 'alert' must be a whole number from 1 on.")
    return Limits(backlog, None if age is None else parse_age(age, "'age' of 'alert'"))
