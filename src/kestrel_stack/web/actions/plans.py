"""What an action would do, before it is done: on which servers, to how much, and what must be said first."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kestrel_stack.queue.envelope import Envelope
from kestrel_stack.queue.errors import InvalidJob
from kestrel_stack.queue.jobs.parked import Filter
from kestrel_stack.web import keys
from kestrel_stack.web.actions.requeue import Described
from kestrel_stack.web.actions.server_client import STATUSES, Present

QUEUE_ACTIONS = ("flush", "flush_expired", "delete", "enqueue", "requeue", "drop")
SERVER_ACTIONS = ("reload", "status", "shutdown", "flush_expired")
BULK_ACTIONS = ("flush", "delete", "requeue")
DESTRUCTIVE = ("flush", "delete", "drop", "shutdown")
ALLOWED_BY = {"drop": "delete"}
"""Actions that the allow-list knows by another's name."""
VERBS = {
    "flush": "flush",
    "flush_expired": "flush the expired items of",
    "delete": "delete",
    "enqueue": "enqueue on",
    "requeue": "requeue the parked jobs of",
    "drop": "drop the parked jobs of",
    "reload": "reload the configuration of",
    "status": "set the status of",
    "shutdown": "shut down",
}

MAX_BODY_BYTES = 256 * 1024
"""Largest test job; a form must fit into one request with all its quoting."""
MAX_TEXT = 500
"""Longest filter for parked jobs."""

_CHOICE = ("all", "job", "tenant", "reason", "id", "count")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "flush": ("servers",),
    "flush_expired": ("servers",),
    "delete": ("servers",),
    "enqueue": ("server", "job", "tenant", "data", "body", "as"),
    "requeue": _CHOICE,
    "drop": _CHOICE,
    "reload": (),
    "status": ("status",),
    "shutdown": (),
}


class ActionRefused(Exception):  # noqa: N818 - it names what is the matter
    """An action that was not begun; nothing was changed. The message is one line.

    `status` is the HTTP status: 400 a wrong option, 403 not allowed, 404 no such target, 409 not now (the
    numbers have changed, somebody else is at it, the name was not typed), 503 the audit log cannot
    be written.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Place:
    """One server in a plan: what it has of the queue at this moment."""

    address: str
    present: Present | None = None
    """None for a server that did not answer, and in plans for a server itself."""
    error: str | None = None
    status: str | None = None
    """As it was last seen."""
    chosen: bool = True
    """The action is for it."""


@dataclass(frozen=True)
class Plan:
    """What an action would do. Nothing was changed to make it."""

    action: str
    target: str
    """The queue's key, or the server's address."""
    name: str
    """The target as people read it."""
    at: float
    places: tuple[Place, ...]
    count: int = 0
    """Items it is about, on all servers that answered."""
    destructive: bool = False
    needs_typed: bool = False
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What should be known of the action, whatever the numbers."""
    problem: str | None = None
    """Why it cannot be done at this moment."""
    options: Mapping[str, Any] = field(default_factory=dict)
    described: Described | None = None

    @property
    def verb(self) -> str:
        """Return the action in words, to be followed by the name."""
        return VERBS[self.action]

    @property
    def addresses(self) -> list[str]:
        """Return the servers that it is for."""
        return [place.address for place in self.places if place.chosen]

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine to read."""
        return {
            "action": self.action,
            "target": self.target,
            "name": self.name,
            "count": self.count,
            "destructive": self.destructive,
            "needs_typed": self.needs_typed,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "problem": self.problem,
            "servers": [
                {
                    "server": place.address,
                    "chosen": place.chosen,
                    "error": place.error,
                    "status": place.status,
                    "exists": place.present.exists if place.present else None,
                    "items": place.present.items if place.present else None,
                    "reserved": place.present.open_transactions if place.present else None,
                    "waiters": place.present.waiters if place.present else None,
                }
                for place in self.places
            ],
        }


def check_options(
    action: str, options: Mapping[str, Any], configured: list[str], described: Described | None, target: str
) -> dict[str, Any]:
    """Return the options of an action, checked; raise `ActionRefused` (400) naming the wrong one."""
    known = _OPTIONS[action] if ":" not in target else tuple(set(_OPTIONS[action]) - {"servers"})
    # Blanks mean nothing, too: as a part of a reason they would mean every parked job.
    given = {
        name: value
        for name, value in options.items()
        if value not in (None, "", [], ()) and not (name in _CHOICE and str(value).isspace())
    }
    unknown = sorted(set(given) - set(known))
    if unknown:
        listed = ", ".join(sorted(known)) or "none"
        raise ActionRefused(
            400, f"The action {action} has no option {', '.join(map(repr, unknown))}; it has: {listed}."
        )
    for server in _servers(given):
        if server not in configured:
            raise ActionRefused(404, f"{server[:100]!r} is not one of the servers: {', '.join(configured)}.")
    if action == "enqueue":
        return _check_enqueue(given, described)
    if action in ("requeue", "drop"):
        return _check_choice(action, given)
    if action == "status":
        status = given.get("status")
        if not isinstance(status, str) or status.upper() not in STATUSES:
            raise ActionRefused(400, f"The option status is one of {', '.join(STATUSES)}.")
        return {"status": status.upper()}
    return given


def choice(options: Mapping[str, Any]) -> Filter:
    """Return which parked jobs are meant."""
    return Filter(*(options.get(name) for name in ("job", "tenant", "reason", "id")))


def has_changed(seen: int, now: int) -> bool:
    """Say whether so much has changed since somebody looked that they must look again."""
    return abs(now - seen) > max(10, seen / 10)


def _servers(given: Mapping[str, Any]) -> list[str]:
    servers = given.get("servers", [])
    if not isinstance(servers, list | tuple) or not all(isinstance(server, str) for server in servers):
        raise ActionRefused(400, "The option servers is a list of addresses such as 127.0.0.1:22133.")
    server = given.get("server", "")
    if not isinstance(server, str):
        raise ActionRefused(400, "The option server is an address such as 127.0.0.1:22133.")
    return [*servers, *([server] if server else [])]


def _check_enqueue(given: dict[str, Any], described: Described | None) -> dict[str, Any]:
    server = {"server": given["server"]} if "server" in given else {}
    if described is not None:
        wrong = sorted({"body", "as"} & set(given))
        if wrong:
            raise ActionRefused(
                400,
                f"{described.name} is a queue of jobs: give job, tenant and data, not {', '.join(wrong)}.",
            )
        return {**server, "body": _envelope(given)}
    wrong = sorted({"job", "tenant", "data"} & set(given))
    if wrong:
        raise ActionRefused(
            400, f"No settings describe this queue: give a body, not {', '.join(wrong)}, which are of jobs."
        )
    body = given.get("body")
    if isinstance(body, dict | list) and given.get("as", "json") == "json":
        body = json.dumps(body, ensure_ascii=False)
    if not isinstance(body, str):
        raise ActionRefused(400, "The item is empty: give a body, as text or JSON.")
    if given.get("as", "text") not in ("text", "json"):
        raise ActionRefused(400, "The option as is text or json.")
    if given.get("as") == "json":
        try:
            json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise ActionRefused(400, f"The body is not JSON: {exc}.") from None
    return {**server, "body": _limited(body.encode("utf-8", "surrogatepass"))}


def _envelope(given: Mapping[str, Any]) -> bytes:
    data = given.get("data", {})
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise ActionRefused(400, f"The data is not JSON: {exc}.") from None
    if not isinstance(data, dict):
        raise ActionRefused(400, 'The data is not a JSON object such as {"name": "Ada"}.')
    for name in ("job", "tenant"):
        if not isinstance(given.get(name), str):
            raise ActionRefused(400, f"Give the {name}, such as {'HelloWorld' if name == 'job' else 'acme'}.")
    try:
        return _limited(Envelope(given["job"].strip(), given["tenant"].strip(), data).encode())
    except InvalidJob as exc:
        raise ActionRefused(400, str(exc)) from None


def _limited(body: bytes) -> bytes:
    if len(body) > MAX_BODY_BYTES:
        raise ActionRefused(
            400, f"The item has {len(body):,} bytes; from here at most {MAX_BODY_BYTES:,} are possible."
        )
    return body


def _check_choice(action: str, given: dict[str, Any]) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name in ("job", "tenant", "reason", "id"):
        if name in given:
            if not isinstance(given[name], str) or len(given[name]) > MAX_TEXT:
                raise ActionRefused(400, f"The option {name} is a text of at most {MAX_TEXT} characters.")
            checked[name] = given[name].strip()
    if "count" in given:
        count = given["count"]
        if isinstance(count, str) and re.fullmatch(r"[0-9]{1,12}", count.strip()):
            count = int(count)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < 10**12:
            raise ActionRefused(400, "The option count is a whole number from 1 on.")
        checked["count"] = count
    everything = given.get("all") in (True, "1", "true", "on", "yes")
    if "all" in given and not everything and given["all"] not in (False, "0", "false"):
        raise ActionRefused(400, "The option all is true or false.")
    if everything == bool(checked):
        raise ActionRefused(
            400, f"Say which parked jobs to {action}: all, or by job, tenant, reason, id and count."
        )
    return checked


def show(target: str) -> str:
    """Return a queue's key or a server's address as people read it."""
    return target if ":" in target else keys.show(target)
