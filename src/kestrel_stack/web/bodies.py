"""The JSON bodies of actions: which keys each has, with what in them; ``openapi.json`` says the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kestrel_stack.web import parameters
from kestrel_stack.web.actions.plans import MAX_TEXT
from kestrel_stack.web.actions.server_client import STATUSES
from kestrel_stack.web.parameters import MAX_WHOLE, bad, is_choice, is_text, is_whole
from kestrel_stack.web.problems import Problem

Check = Callable[[str, Any], Any]

MAX_SERVERS = 100


def _servers(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SERVERS:
        raise bad(name, "must be a list of addresses like 127.0.0.1:22133, at least one")
    return [is_text(name, one) for one in value]


def _filled(name: str, value: Any) -> str:
    text = is_text(name, value)
    if not text.strip() or len(text) > MAX_TEXT:
        raise bad(name, f"must have from 1 to {MAX_TEXT} characters")
    return text


def _true(name: str, value: Any) -> bool:
    if value is not True:
        raise bad(name, "must be true, or left out")
    return True


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad(name, 'must be a JSON object like {"name": "Ada"}')
    return value


CONFIRM = {"confirm": is_text}
SEEN = {"seen": is_whole(0, MAX_WHOLE)}
SERVERS = {"servers": _servers}
CHOICE = {
    "all": _true,
    "job": _filled,
    "tenant": _filled,
    "reason": _filled,
    "id": _filled,
    "count": is_whole(1, 10**12 - 1),
}

OF_QUEUES: Mapping[str, Mapping[str, Check]] = {
    "flush": CONFIRM | SEEN | SERVERS,
    "flush_expired": SERVERS,
    "delete": CONFIRM | SEEN | SERVERS,
    "enqueue": {
        "server": _filled,
        "job": _filled,
        "tenant": _filled,
        "data": _object,
        "body": is_text,
        "as": is_choice("text", "json"),
    },
    "requeue": CHOICE,
    "drop": CONFIRM | SEEN | CHOICE,
}
OF_SERVERS: Mapping[str, Mapping[str, Check]] = {
    "reload": {},
    "status": {"status": is_choice(*STATUSES)},
    "flush_expired": {},
    "shutdown": CONFIRM,
}
REQUIRED = {
    "flush": ("confirm",),
    "delete": ("confirm",),
    "drop": ("confirm",),
    "shutdown": ("confirm",),
    "status": ("status",),
}


def read(action: str, found: Mapping[str, Any], known: Mapping[str, Check]) -> dict[str, Any]:
    """Return the checked keys of an action's body."""
    for name in REQUIRED.get(action, ()):
        if name not in found:
            what = "the name of what it is done to" if name == "confirm" else f"what {name} it shall have"
            raise Problem(400, "missing_key", f"{name} is missing: {what}.")
    return parameters.keys(found, known)
