"""What ``stats`` of the memcache port says: lines ``STAT <key> <value>``, the queues' after the server's.

Of a queue ``mail`` the keys are ``queue_mail_items`` and so on, which is ambiguous: ``queue_a_mem_items`` are
the items in memory of ``a`` or the items of ``a_mem``. Only the order tells: a queue's lines stand together,
and the first is ``items``. Names come as ISO-8859-1, which is how a name's bytes are read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from kestrel_stack.web.model import ServerNumbers

Raw = Mapping[str, int]
"""A queue's numbers by the fields of `QueueNumbers`."""

FIELDS = {
    "items": "items",
    "bytes": "bytes",
    "total_items": "total_items",
    "logsize": "journal_bytes",
    "expired_items": "expired_items",
    "mem_items": "mem_items",
    "mem_bytes": "mem_bytes",
    "age": "age_ms",
    "discarded": "discarded",
    "waiters": "waiters",
    "open_transactions": "open_transactions",
    "transactions": "transactions",
    "canceled_transactions": "canceled_transactions",
    "total_flushes": "total_flushes",
}
"""Kestrel's keys, in its order, to ours."""

MOST_DIGITS = 18

_SERVER = {entry.name: entry.name for entry in fields(ServerNumbers)} | {"uptime": "uptime_s"}


@dataclass(frozen=True)
class Answer:
    """The numbers of a server and of its queues, by the queues' names."""

    numbers: ServerNumbers
    queues: Mapping[str, Raw]


def parse(reply: bytes) -> Answer:
    """Read the lines of ``stats`` without their ``END``; what makes no sense is left out."""
    lines = reply.decode("latin-1").split("\r\n")
    server: dict[str, str] = {}
    queues: dict[str, dict[str, int]] = {}
    prefix = ""
    block: dict[str, int] = {}
    for line in lines:
        if not line.startswith("STAT queue_"):
            word, _, rest = line.partition(" ")
            key, _, value = rest.partition(" ")
            if word == "STAT" and key in _SERVER:
                server[_SERVER[key]] = value
            continue
        key, _, value = line[5:].rpartition(" ")
        field = FIELDS.get(key[len(prefix) :]) if prefix and key.startswith(prefix) else None
        if field is None or field in block:
            if not key.endswith("_items"):
                if key in _SERVER:
                    server[key] = value
                continue
            # Another queue begins; or an alias, of which there is nothing to read: its first line is
            # `put_items`, and the third is none of a queue's.
            prefix, block, field = key[:-5], {}, "items"
            queues[prefix[6:-1]] = block
        number = whole(value)
        if number is not None:
            block[field] = number
    return Answer(_server(server), {name: block for name, block in queues.items() if "total_items" in block})


def _server(texts: Mapping[str, str]) -> ServerNumbers:
    known: dict[str, str | int | float] = {}
    for entry in fields(ServerNumbers):
        text = texts.get(entry.name, "")
        if entry.name == "version":
            known["version"] = text[:40]
        elif entry.name == "reserved_memory_ratio":
            known["reserved_memory_ratio"] = ratio(text)
        elif (number := whole(text)) is not None:
            known[entry.name] = number
    return ServerNumbers(**known)  # type: ignore[arg-type]


def whole(text: str) -> int | None:
    """Return a number from 0 on that fits into 64 bits, as all of Kestrel's do; None for anything else."""
    return int(text) if len(text) <= MOST_DIGITS and text.isascii() and text.isdigit() else None


def ratio(value: object) -> float:
    """Return a ratio that a server says, 0 when it is none."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return found if math.isfinite(found) else 0.0
