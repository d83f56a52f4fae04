"""What the JSON API answers: the model's objects as plain dictionaries, as ``openapi.json`` describes them.

Fields are called as in the model and always there; what is not known is null. The numbers are made safe for
any reader in one place (`parameters.plain`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import kestrel_stack
from kestrel_stack.web import events, keys
from kestrel_stack.web.actions.peek import Head
from kestrel_stack.web.actions.tasks import Task
from kestrel_stack.web.model import (
    Alert,
    QueueNumbers,
    QueueRow,
    ServerNumbers,
    ServerState,
    View,
)
from kestrel_stack.web.record.audit import AuditEntry
from kestrel_stack.web.record.history import Sample
from kestrel_stack.web.site import Site

_QUEUE_FIELDS = tuple(one.name for one in fields(QueueNumbers))
HEAD_FIELDS = (
    *("key", "name", "server", "empty", "size", "truncated"),
    *("kind", "faults", "job", "parked", "body", "body_b64"),
)
_SERVER_FIELDS = tuple(one.name for one in fields(ServerNumbers))


def overview(parts: Site, view: View) -> dict[str, Any]:
    """Return everything in short."""
    config = parts.config
    return {
        "at": view.at,
        "serial": view.serial,
        "version": kestrel_stack.__version__,
        "environment": config.environment,
        "read_only": config.read_only,
        "actions": [] if config.read_only else list(config.actions),
        "servers": {
            "configured": len(view.servers),
            "reachable": sum(server.reachable for server in view.servers),
            "stale": sum(server.stale for server in view.servers),
        },
        "queues": len(view.queues),
        "totals": queue_numbers(view.totals),
        "alerts": alerts(view.alerts),
        "database_trouble": parts.store.trouble(),
    }


def queue_numbers(numbers: QueueNumbers) -> dict[str, Any]:
    """Return the numbers of a queue, on one server or on all."""
    return {name: getattr(numbers, name) for name in _QUEUE_FIELDS}


def queue(row: QueueRow) -> dict[str, Any]:
    """Return one row as it stands in a list, with its children."""
    return {
        "key": row.key,
        "name": keys.show(row.key),
        "kind": row.kind,
        "parent": row.parent,
        "app": row.app,
        "described": row.described,
        "delay_s": row.delay_s,
        "limits": {"backlog": row.limits.backlog, "age_s": row.limits.age_s},
        "numbers": queue_numbers(row.numbers),
        "servers": list(row.servers),
        "stale": row.stale,
        "drain_s": row.drain_s,
        "parked": row.parked,
        "delayed": row.delayed,
        "alerts": alerts(row.alerts),
        "children": [queue(child) for child in row.children],
    }


def queue_in_full(row: QueueRow) -> dict[str, Any]:
    """Return one row with its numbers on each server."""
    by_server = [
        {"server": address, "numbers": queue_numbers(numbers)} for address, numbers in row.servers.items()
    ]
    return {**queue(row), "by_server": by_server}


def server(state: ServerState) -> dict[str, Any]:
    """Return one server."""
    return {
        "address": state.address,
        "reachable": state.reachable,
        "error": state.error,
        "since": state.since,
        "polled_at": state.polled_at,
        "attempted_at": state.attempted_at,
        "took_s": state.took_s,
        "source": state.source,
        "status": state.status,
        "stale": state.stale,
        "queues": len(state.queues),
        "rate_in": state.rate_in,
        "rate_out": state.rate_out,
        "numbers": None
        if state.numbers is None
        else {name: getattr(state.numbers, name) for name in _SERVER_FIELDS},
    }


def alerts(raised: Iterable[Alert]) -> list[dict[str, Any]]:
    """Return alerts, each with the name that people know its subject by."""
    return [
        {
            "kind": alert.kind,
            "subject": alert.subject,
            "name": _subject(alert),
            "text": alert.text,
            "value": alert.value,
            "limit": alert.limit,
            "since": alert.since,
        }
        for alert in raised
    ]


def sample(one: Sample) -> dict[str, Any]:
    """Return one point of a history."""
    return {
        "at": one.at,
        "items": one.items,
        "age_ms": one.age_ms,
        "rate_in": one.rate_in,
        "rate_out": one.rate_out,
        "open_transactions": one.open,
        "parked": one.parked,
        "peak_in": one.peak_in,
        "peak_out": one.peak_out,
    }


def head(parts: Site, one: Head) -> dict[str, Any]:
    """Return the head of a queue: as text where it is text, else as base64."""
    found = one.as_json()
    if one.record is not None:
        found["parked"]["sentry_url"] = events.address(parts.config.event_url, one.record.sentry_event)
    return {name: found.get(name) for name in HEAD_FIELDS}


def entry(one: AuditEntry) -> dict[str, Any]:
    """Return one entry of the audit log."""
    return {
        "id": one.id,
        "at": one.at,
        "ended": one.ended_at,
        "who": one.who,
        "address": one.address,
        "role": one.role,
        "action": one.action,
        "target": one.target,
        "name": shown(one.target),
        "servers": list(one.servers),
        "outcome": one.outcome,
        "detail": dict(one.detail),
    }


def task(one: Task) -> dict[str, Any]:
    """Return something that was done, or is being done."""
    return {
        "id": one.id,
        "action": one.action,
        "target": one.target,
        "name": shown(one.target),
        "who": one.who,
        "began": one.began,
        "ended": one.ended,
        "state": one.state,
        "done": one.done,
        "total": one.total,
        "text": one.text,
        "results": [
            {
                "server": result.server,
                "target": result.target or one.target,
                "outcome": result.outcome,
                "text": result.text,
                "count": result.count,
            }
            for result in one.results
        ],
        "detail": dict(one.detail),
    }


def shown(target: str) -> str:
    """Return the name behind the key of a queue; a server's address is its own."""
    try:
        return keys.show(target)
    except ValueError:
        return target


def _subject(alert: Alert) -> str:
    return alert.subject if alert.kind.startswith("server_") else keys.show(alert.subject)
