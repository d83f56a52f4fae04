"""The numbers: the memcache ``stats`` and ``dump_stats`` blocks, and ``/stats`` of the admin HTTP.

Names and their order as observed on Kestrel 2.4.1. What only a Java virtual machine has (``jvm_*``) is left
out; in its place are gauges of this process: ``process/rss_bytes``, ``process/open_files``,
``process/cpu_msec``. ``reserved_memory_ratio`` is the queues' max_memory_size together, divided by the memory
that this process may have (of the host, or of its control group), where Kestrel divides by its heap.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kestrel_stack.broker import SERVER_VERSION
from kestrel_stack.broker.timings import Histogram, Timings

if TYPE_CHECKING:
    from kestrel_stack.broker.queue import Queue
    from kestrel_stack.broker.server import Broker
    from kestrel_stack.broker.spool import Alias

MOST_LISTENERS = 8
"""Periods and namespaces that are remembered at a time; each costs a copy of all counters."""


@dataclass(slots=True)
class Counters:
    """Counts of the whole server since its start."""

    total_connections: int = 0
    requests: int = 0
    cmd_get: int = 0
    cmd_set: int = 0
    cmd_peek: int = 0
    cmd_monitor: int = 0
    cmd_monitor_get: int = 0
    cmd_get_open_dropped: int = 0
    cmd_get_timeout_dropped: int = 0
    get_hits: int = 0
    get_misses: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(slots=True)
class Totals:
    """Counters and distributions at one moment."""

    counters: dict[str, int]
    metrics: dict[str, Histogram]

    def since(self, before: Totals) -> Totals:
        """Return what has come after ``before``; what was deleted and made again counts from zero."""
        counters = {}
        for name, count in self.counters.items():
            old = before.counters.get(name, 0)
            counters[name] = count - old if count >= old else count
        metrics = {name: metric.since(before.metrics.get(name)) for name, metric in self.metrics.items()}
        return Totals(counters, metrics)


class Stats:
    """Renders the numbers of a broker."""

    def __init__(self, broker: Broker):
        self._broker = broker
        self._memory = memory_limit()
        self._namespaces: dict[str, Totals] = {}
        self._periods: dict[int, tuple[Totals, Totals]] = {}
        """Seconds to the totals at the start of the running period, and what came in the one before."""

    def memcache(self) -> bytes:
        """Return the reply of ``stats``."""
        broker, counters = self._broker, self._broker.counters
        spool, queues = broker.spool, list(broker.spool.queues.values())
        lines: list[tuple[str, object]] = [
            ("uptime", broker.uptime_ms // 1000),
            ("time", broker.clock() // 1000),
            ("version", SERVER_VERSION),
            ("curr_items", sum(queue.items for queue in queues)),
            ("total_items", spool.total_items),
            ("bytes", sum(queue.bytes for queue in queues)),
            ("reserved_memory_ratio", f"{self._reserved_memory_ratio():.3f}"),
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
            ("queue_expires", spool.queue_expires),
        ]
        for name in self._names():
            lines += [(f"queue_{name}_{key}", number) for key, number in self._lines(name)]
        text = "".join(f"STAT {key} {number}\r\n" for key, number in lines)
        return text.encode("latin-1") + b"END\r\n"

    def dump(self, names: list[str]) -> bytes:
        """Return the reply of ``dump_stats``: one block for each named queue or alias, or for all."""
        text = ""
        for name in names or self._names():
            body = "\r\n  ".join(f"{key}={number}" for key, number in self._lines(name))
            text += f"queue '{name}' {{\r\n  {body}\r\n}}\r\n"
        return text.encode("latin-1") + b"END\r\n"

    def _names(self) -> list[str]:
        return list(dict.fromkeys([*self._broker.spool.queues, *self._broker.spool.aliases]))

    def _lines(self, name: str) -> list[tuple[str, object]]:
        """Return the keys and numbers of one queue or alias; nothing for an unknown name."""
        spool = self._broker.spool
        queue = spool.queues.get(name)
        if queue is not None:
            lines: list[tuple[str, object]] = list(queue_lines(queue))
            if name in spool.fanouts:
                lines.append(("children", ",".join(spool.fanouts[name])))
            return lines
        alias = spool.aliases.get(name)
        return list(alias_lines(alias)) if alias else []

    def _reserved_memory_ratio(self) -> float:
        reserved = sum(queue.settings.max_memory_size for queue in self._broker.spool.queues.values())
        return reserved / self._memory

    # Admin HTTP

    def admin(self, *, period_s: int | None = None, namespace: str | None = None) -> dict[str, Any]:
        """Return ``/stats`` as a JSON object.

        With ``period_s`` counters and metrics are those of the last whole period of so many seconds, and all
        0 when nobody has asked for such periods before. With ``namespace`` they are what has come since the
        last question with this namespace. Gauges and labels are of now in any case.
        """
        if period_s is not None:
            totals = self._of_period(period_s)
        elif namespace is not None:
            now = self._totals()
            before = self._namespaces.pop(namespace, None)
            self._namespaces[namespace] = _copy(now)
            if len(self._namespaces) > MOST_LISTENERS:
                self._namespaces.pop(next(iter(self._namespaces)))
            totals = now.since(before) if before else now
        else:
            totals = self._totals()
        labels = {"version": SERVER_VERSION}
        if self._broker.status.was_set:
            labels["status"] = self._broker.status.current.value
        return {
            "counters": totals.counters,
            "gauges": self._gauges(),
            "labels": labels,
            "metrics": {name: metric.summary() for name, metric in totals.metrics.items()},
        }

    def _of_period(self, seconds: int) -> Totals:
        if seconds not in self._periods:
            now = self._totals()
            if len(self._periods) >= MOST_LISTENERS:
                return now.since(now)
            self._periods[seconds] = (_copy(now), now.since(now))
            asyncio.get_running_loop().call_later(seconds, self._next_period, seconds)
        return self._periods[seconds][1]

    def _next_period(self, seconds: int) -> None:
        now = self._totals()
        self._periods[seconds] = (_copy(now), now.since(self._periods[seconds][0]))
        asyncio.get_running_loop().call_later(seconds, self._next_period, seconds)

    def _totals(self) -> Totals:
        broker, spool = self._broker, self._broker.spool
        counters = {entry.name: getattr(broker.counters, entry.name) for entry in fields(Counters)}
        counters |= {
            "total_items": spool.total_items,
            "queue_creates": spool.queue_creates,
            "queue_deletes": spool.queue_deletes,
            "queue_expires": spool.queue_expires,
            "kestrel-memcache/requests": counters.pop("requests"),
            "kestrel-memcache/connects": broker.counters.total_connections,
            "kestrel-memcache/closes": broker.counters.total_connections - len(broker.sessions),
            "kestrel-memcache/received_bytes": broker.counters.bytes_read,
            "kestrel-memcache/sent_bytes": broker.counters.bytes_written,
        }
        all_timings = Timings()
        all_timings.include(spool.past_timings)
        metrics = dict(all_timings.by_metric())
        for name, timings in spool.timings.items():
            all_timings.include(timings)
            # Of an alias nothing can be read.
            found = timings.by_metric() if name in spool.queues else {"set_latency_usec": timings.set}
            metrics |= {f"q/{name}/{metric}": histogram for metric, histogram in found.items()}
        for name, queue in spool.queues.items():
            counters |= {f"q/{name}/{key}": number for key, number in queue_counters(queue)}
            if name not in spool.timings:
                metrics |= {f"q/{name}/{metric}": value for metric, value in Timings().by_metric().items()}
        for name, alias in spool.aliases.items():
            counters |= {f"q/{name}/put_items": alias.put_items, f"q/{name}/put_bytes": alias.put_bytes}
        return Totals(counters, metrics)

    def _gauges(self) -> dict[str, float]:
        broker, status = self._broker, self._broker.status
        queues = list(broker.spool.queues.values())
        gauges: dict[str, float] = {
            "items": sum(queue.items for queue in queues),
            "bytes": sum(queue.bytes for queue in queues),
            "connections": len(broker.sessions),
            "reserved_memory_ratio": self._reserved_memory_ratio(),
            "status/readable": 0 if status.blocks_reads else 1,
            "status/writeable": 0 if status.blocks_writes else 1,
            **process_gauges(),
        }
        for alias in broker.spool.aliases.values():
            gauges[f"q/{alias.name}/create_time"] = alias.created_ms // 1000
        for queue in queues:
            prefix = f"q/{queue.name}/"
            gauges |= {
                prefix + "items": queue.items,
                prefix + "bytes": queue.bytes,
                prefix + "journal_size": queue.journal.total_size(),
                prefix + "mem_items": in_memory(queue)[0],
                prefix + "mem_bytes": in_memory(queue)[1],
                prefix + "age_msec": queue.age_ms,
                prefix + "waiters": queue.waiters,
                prefix + "open_transactions": queue.open_reads,
                prefix + "create_time": queue.created_ms // 1000,
            }
        return gauges


def in_memory(queue: Queue) -> tuple[int, int]:
    """Return how many of the queue's items are in memory, and their bytes."""
    return getattr(queue, "mem_items", queue.items), getattr(queue, "mem_bytes", queue.bytes)


def queue_lines(queue: Queue) -> list[tuple[str, int]]:
    """Return the keys and numbers of one queue in Kestrel's order."""
    mem_items, mem_bytes = in_memory(queue)
    return [
        ("items", queue.items),
        ("bytes", queue.bytes),
        ("total_items", queue.total_items),
        ("logsize", queue.journal.size),
        ("expired_items", queue.expired),
        ("mem_items", mem_items),
        ("mem_bytes", mem_bytes),
        ("age", queue.age_ms),
        ("discarded", queue.discarded),
        ("waiters", queue.waiters),
        ("open_transactions", queue.open_reads),
        ("transactions", queue.transactions),
        ("canceled_transactions", queue.canceled_transactions),
        ("total_flushes", queue.flushes),
    ]


def alias_lines(alias: Alias) -> list[tuple[str, object]]:
    """Return the keys and values of one alias in Kestrel's order."""
    return [
        ("put_items", alias.put_items),
        ("put_bytes", alias.put_bytes),
        ("children", ",".join(alias.targets)),
    ]


def queue_counters(queue: Queue) -> Iterator[tuple[str, int]]:
    """Yield the counters of one queue under the names of the admin HTTP."""
    yield "total_items", queue.total_items
    yield "put_items", queue.put_items
    yield "put_bytes", queue.put_bytes
    yield "get_items_hit", queue.hits
    yield "get_items_miss", queue.misses
    yield "transactions", queue.transactions
    yield "canceled_transactions", queue.canceled_transactions
    yield "expired_items", queue.expired
    yield "discarded", queue.discarded
    yield "total_flushes", queue.flushes


def _copy(totals: Totals) -> Totals:
    return Totals(dict(totals.counters), {name: metric.copy() for name, metric in totals.metrics.items()})


def memory_limit() -> int:
    """Return the bytes of memory that this process may have: the host's, or those of its control group."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/proc/self/cgroup").read_text().rstrip("\n").rpartition("::")[2]
        for folder in (Path("/sys/fs/cgroup" + group), Path("/sys/fs/cgroup")):
            with contextlib.suppress(OSError, ValueError):
                limit = min(limit, int((folder / "memory.max").read_text()))
    return max(limit, 1)


def process_gauges() -> dict[str, float]:
    """Return the resident memory, the open files and the processor time of this process."""
    gauges: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        gauges["process/rss_bytes"] = pages * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError):
        gauges["process/open_files"] = len(list(Path("/proc/self/fd").iterdir()))
    used = resource.getrusage(resource.RUSAGE_SELF)
    gauges["process/cpu_msec"] = int((used.ru_utime + used.ru_stime) * 1000)
    return gauges
