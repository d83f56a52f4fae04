"""The numbers: the memcache ``stats`` and ``dump_stats`` blocks, and ``/stats`` of the admin HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kestrel_stack.broker import SERVER_VERSION

if TYPE_CHECKING:
    from kestrel_stack.broker.queue import Queue
    from kestrel_stack.broker.server import Broker


@dataclass(slots=True)
class Counters:
    """Counts of the whole server since its start."""

    total_connections: int = 0
    cmd_get: int = 0
    cmd_set: int = 0
    cmd_peek: int = 0
    cmd_get_open_dropped: int = 0
    get_hits: int = 0
    get_misses: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


class Stats:
    """Renders the numbers of a broker; keys and their order as observed on Kestrel 2.4.1."""

    def __init__(self, broker: Broker):
        self._broker = broker

    def memcache(self) -> bytes:
        """Return the reply of ``stats``."""
        broker, counters = self._broker, self._broker.counters
        spool, queues = broker.spool, list(broker.spool.queues.values())
        lines = [
            ("uptime", (broker.clock() - broker.started_ms) // 1000),
            ("time", broker.clock() // 1000),
            ("version", SERVER_VERSION),
            ("curr_items", sum(queue.items for queue in queues)),
            ("total_items", sum(queue.total_items for queue in queues)),
            ("bytes", sum(queue.bytes for queue in queues)),
            ("reserved_memory_ratio", "0.0"),
            ("curr_connections", len(broker.sessions)),
            ("total_connections", counters.total_connections),
            ("cmd_get", counters.cmd_get),
            ("cmd_set", counters.cmd_set),
            ("cmd_peek", counters.cmd_peek),
            ("get_hits", counters.get_hits),
            ("get_misses", counters.get_misses),
            ("bytes_read", counters.bytes_read),
            ("bytes_written", counters.bytes_written),
            ("queue_creates", spool.queue_creates),
            ("queue_deletes", spool.queue_deletes),
            ("queue_expires", 0),
        ]
        for queue in queues:
            lines += [(f"queue_{queue.name}_{key}", number) for key, number in queue_lines(queue)]
        text = "".join(f"STAT {key} {number}\r\n" for key, number in lines)
        return text.encode("latin-1") + b"END\r\n"

    def dump(self, names: list[str]) -> bytes:
        """Return the reply of ``dump_stats``: one block for each named queue, or for all."""
        spool = self._broker.spool
        text = ""
        for name in names or list(spool.queues):
            queue = spool.get(name)
            body = (
                "\r\n  ".join(f"{key}={number}" for key, number in queue_lines(queue))
                if queue is not None
                else ""
            )
            text += f"queue '{name}' {{\r\n  {body}\r\n}}\r\n"
        return text.encode("latin-1") + b"END\r\n"

    def admin(self) -> dict[str, Any]:
        """Return ``/stats`` as a JSON object; metrics (timings) are not measured yet, so they are empty."""
        broker, counters = self._broker, self._broker.counters
        queues = list(broker.spool.queues.values())
        totals = {name: getattr(counters, name) for name in Counters.__slots__}
        totals |= {
            "queue_creates": broker.spool.queue_creates,
            "queue_deletes": broker.spool.queue_deletes,
            "total_items": sum(queue.total_items for queue in queues),
        }
        gauges: dict[str, float] = {
            "items": sum(queue.items for queue in queues),
            "bytes": sum(queue.bytes for queue in queues),
            "connections": len(broker.sessions),
            "reserved_memory_ratio": 0.0,
            "status/readable": 1,
            "status/writeable": 1,
        }
        for queue in queues:
            prefix = f"q/{queue.name}/"
            totals |= {
                prefix + "total_items": queue.total_items,
                prefix + "put_items": queue.put_items,
                prefix + "put_bytes": queue.put_bytes,
                prefix + "get_items_hit": queue.hits,
                prefix + "get_items_miss": queue.misses,
                prefix + "transactions": queue.transactions,
                prefix + "canceled_transactions": queue.canceled_transactions,
                prefix + "expired_items": queue.expired,
                prefix + "discarded": queue.discarded,
                prefix + "total_flushes": queue.flushes,
            }
            gauges |= {
                prefix + "items": queue.items,
                prefix + "bytes": queue.bytes,
                prefix + "journal_size": queue.journal.total_size(),
                prefix + "mem_items": queue.items,
                prefix + "mem_bytes": queue.bytes,
                prefix + "age_msec": queue.age_ms,
                prefix + "waiters": queue.waiters,
                prefix + "open_transactions": queue.open_reads,
                prefix + "create_time": queue.created_ms // 1000,
            }
        return {"counters": totals, "gauges": gauges, "labels": {"version": SERVER_VERSION}, "metrics": {}}


def queue_lines(queue: Queue) -> list[tuple[str, int]]:
    """Return the keys and numbers of one queue in Kestrel's order."""
    return [
        ("items", queue.items),
        ("bytes", queue.bytes),
        ("total_items", queue.total_items),
        ("logsize", queue.journal.size),
        ("expired_items", queue.expired),
        ("mem_items", queue.items),
        ("mem_bytes", queue.bytes),
        ("age", queue.age_ms),
        ("discarded", queue.discarded),
        ("waiters", queue.waiters),
        ("open_transactions", queue.open_reads),
        ("transactions", queue.transactions),
        ("canceled_transactions", queue.canceled_transactions),
        ("total_flushes", queue.flushes),
    ]
