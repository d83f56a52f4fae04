"""What Prometheus reads: every server, every queue on every server, and kestrel-web itself.

* All numbers come from the last polls; a scrape asks no server.
* Counters are a server's own, with the label ``server``, and are never added up here: a sum in which one part
  restarts goes down without being a reset. Add up in the query: ``sum by (queue) (rate(…[5m]))``.
* What a server said last is shown while it is fresh. When it is older than ``stale_after_s`` its queues and
  its numbers disappear (Prometheus marks them stale, graphs end, sums do not count what nobody knows);
  ``kestrel_up`` stays and is 0. Limits stay too, since they come from the settings.
* The label ``queue`` is the queue's name as text; it is the queue's key where the name is not plain text, so
  that two names can never become one. No name holds a ``~``, so a key is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kestrel_stack.web import keys
from kestrel_stack.web.model import QUIESCENT, READONLY, UP, QueueRow, View

GAUGE, COUNTER = GaugeMetricFamily, CounterMetricFamily
ALERT_KINDS = ("backlog", "age", "no_consumers", "server_down", "server_status")

SERVER_NUMBERS = (
    # field of ServerNumbers, name without kestrel_, family, sentence
    ("uptime_s", "uptime_seconds", GAUGE, "Seconds since the server started"),
    ("curr_items", "items", GAUGE, "Items waiting in all queues of the server"),
    ("bytes", "bytes", GAUGE, "Bytes of all items waiting"),
    ("reserved_memory_ratio", "reserved_memory_ratio", GAUGE, "Share of the heap that queues may fill"),
    ("curr_connections", "connections", GAUGE, "Connections open now"),
    ("total_connections", "connections_opened", COUNTER, "Connections opened"),
    ("total_items", "items_added", COUNTER, "Items added to any queue"),
    ("cmd_get", "get_commands", COUNTER, "get commands"),
    ("cmd_set", "set_commands", COUNTER, "set commands"),
    ("cmd_peek", "peek_commands", COUNTER, "peek commands"),
    ("get_hits", "get_hits", COUNTER, "get commands that found an item"),
    ("get_misses", "get_misses", COUNTER, "get commands that found none"),
    ("bytes_read", "received_bytes", COUNTER, "Bytes that clients sent"),
    ("bytes_written", "sent_bytes", COUNTER, "Bytes sent to clients"),
    ("queue_creates", "queues_created", COUNTER, "Queues created"),
    ("queue_deletes", "queues_deleted", COUNTER, "Queues deleted"),
    ("queue_expires", "queues_expired", COUNTER, "Queues deleted because they were idle"),
)

QUEUE_NUMBERS = (
    ("items", "items", GAUGE, 1, "Items waiting, without those that are being read"),
    ("bytes", "bytes", GAUGE, 1, "Bytes of the items waiting"),
    ("mem_items", "memory_items", GAUGE, 1, "Items held in memory"),
    ("mem_bytes", "memory_bytes", GAUGE, 1, "Bytes of the items held in memory"),
    ("journal_bytes", "journal_bytes", GAUGE, 1, "Bytes of the queue's journal"),
    ("age_ms", "age_seconds", GAUGE, 0.001, "How long the next item has waited"),
    ("waiters", "waiters", GAUGE, 1, "Clients waiting for an item"),
    ("open_transactions", "open_reads", GAUGE, 1, "Items handed out and not confirmed yet"),
    ("create_time", "created_timestamp_seconds", GAUGE, 1, "When the server created the queue"),
    ("total_items", "items_added", COUNTER, 1, "Items added"),
    ("expired_items", "items_expired", COUNTER, 1, "Items removed because they were too old"),
    ("discarded", "items_discarded", COUNTER, 1, "Items thrown away because the queue was full"),
    ("transactions", "reads_opened", COUNTER, 1, "Reads that have to be confirmed"),
    ("canceled_transactions", "reads_canceled", COUNTER, 1, "Reads given back without being confirmed"),
    ("total_flushes", "flushes", COUNTER, 1, "How often the queue was flushed"),
    ("put_items", "items_put", COUNTER, 1, "Items that clients wrote (admin port only)"),
    ("get_items_hit", "get_hits", COUNTER, 1, "gets that found an item (admin port only)"),
    ("get_items_miss", "get_misses", COUNTER, 1, "gets that found none (admin port only)"),
    ("journal_rewrites", "journal_rewrites", COUNTER, 1, "How often the journal was rewritten"),
    ("journal_rotations", "journal_rotations", COUNTER, 1, "How often a new journal file was begun"),
)


@dataclass(frozen=True)
class Moment:
    """What one scrape shows."""

    view: View
    now: float
    version: str
    environment: str = ""
    store_trouble: bool = False
    polls: Mapping[str, tuple[int, int, float]] = field(default_factory=dict)
    """By server: polls, those that failed, seconds that all of them took."""
    webhook: Mapping[str, int] = field(default_factory=dict)
    """By outcome: deliveries."""
    rows: tuple[QueueRow, ...] | None = None
    """The queues to show; None is all of them."""


class Families(Collector):
    """The metrics of one moment, in the order in which they are explained."""

    def __init__(self, moment: Moment):
        self._moment = moment

    def collect(self) -> Iterator[Metric]:
        """Yield every family, also those without a sample at the moment."""
        yield from _site(self._moment)
        yield from _servers(self._moment)
        yield from _queues(self._moment)


def label(key: str) -> str:
    """Return what the label ``queue`` says for a queue."""
    shown = keys.show(key)
    return shown if shown.encode("utf-8") == keys.parse(key) and "\\" not in shown else key


def _site(moment: Moment) -> Iterator[Metric]:
    view = moment.view
    yield _family(
        GAUGE,
        "web_info",
        "What answers here; always 1",
        ("version", "environment"),
        [((moment.version, moment.environment), 1)],
    )
    yield _family(
        GAUGE,
        "web_view_timestamp_seconds",
        "When kestrel-web last put together what it knows; this stands still when it is stuck",
        (),
        [((), view.at)] if view.at else [],
    )
    yield _family(
        GAUGE,
        "web_database_trouble",
        "1 while history and audit cannot be written or read",
        (),
        [((), int(moment.store_trouble))],
    )
    raised = dict.fromkeys(ALERT_KINDS, 0)
    for alert in view.alerts:
        raised[alert.kind] = raised.get(alert.kind, 0) + 1
    yield _family(
        GAUGE, "web_alerts", "Alerts raised now", ("kind",), [((kind,), n) for kind, n in raised.items()]
    )
    yield _family(
        COUNTER,
        "web_webhook_deliveries",
        "Messages to the webhook",
        ("outcome",),
        [((outcome,), n) for outcome, n in moment.webhook.items()],
    )


def _servers(moment: Moment) -> Iterator[Metric]:
    servers, polls = moment.view.servers, moment.polls
    yield _family(
        GAUGE,
        "up",
        "1 when the server answered its last poll",
        ("server",),
        [((server.address,), int(server.reachable)) for server in servers],
    )
    yield _family(
        GAUGE,
        "web_poll_seconds",
        "How long the last poll took",
        ("server",),
        [((server.address,), server.took_s) for server in servers],
    )
    yield _family(
        GAUGE,
        "web_data_age_seconds",
        "How old the server's numbers are; nothing before its first answer",
        ("server",),
        [
            ((server.address,), max(0.0, moment.now - server.polled_at))
            for server in servers
            if server.polled_at is not None
        ],
    )
    for place, name, sentence in (
        (0, "web_polls", "Polls that have ended"),
        (1, "web_poll_errors", "Polls that failed"),
        (2, "web_polled_seconds", "Seconds that all polls took"),
    ):
        samples = [((address,), numbers[place]) for address, numbers in polls.items()]
        yield _family(COUNTER, name, sentence, ("server",), samples)
    fresh = [server for server in servers if not server.stale]
    yield _family(
        GAUGE,
        "status",
        "1 for the status that the server has",
        ("server", "status"),
        [
            ((server.address, status), int(server.status == status))
            for server in fresh
            if server.status is not None
            for status in (UP, READONLY, QUIESCENT)
        ],
    )
    yield _family(
        GAUGE,
        "server_info",
        "The server's version, and which of its ports is asked; always 1",
        ("server", "version", "source"),
        [
            ((server.address, server.numbers.version, server.source or ""), 1)
            for server in fresh
            if server.numbers is not None
        ],
    )
    for number, name, family, sentence in SERVER_NUMBERS:
        samples = [
            ((server.address,), getattr(server.numbers, number))
            for server in fresh
            if server.numbers is not None
        ]
        yield _family(family, name, sentence, ("server",), samples)


def _queues(moment: Moment) -> Iterator[Metric]:
    rows = moment.view.rows() if moment.rows is None else moment.rows
    fresh = {server.address for server in moment.view.servers if not server.stale}
    labels = {row.key: label(row.key) for row in rows}
    yield _family(
        GAUGE,
        "queue_info",
        "What the queue is (queue, errors, delay, fanout), and of which queue; always 1",
        ("queue", "kind", "parent", "app"),
        [
            ((labels[row.key], row.kind, label(row.parent) if row.parent else "", row.app or ""), 1)
            for row in rows
        ],
    )
    for name, sentence, value in (
        ("queue_backlog_limit", "Waiting items from which the queue gets an alert", "backlog"),
        ("queue_age_limit_seconds", "Age of its next item from which the queue gets an alert", "age_s"),
    ):
        yield _family(
            GAUGE,
            name,
            sentence,
            ("queue",),
            [((labels[row.key],), getattr(row.limits, value)) for row in rows],
        )
    tops = [row for row in rows if row.kind == "queue" and not row.stale]
    for name, sentence, value in (
        ("queue_parked_items", "Jobs that failed for good, in the queue's error queue", "parked"),
        ("queue_delayed_items", "Jobs that wait in the queue's delay queues", "delayed"),
    ):
        yield _family(
            GAUGE, name, sentence, ("queue",), [((labels[row.key],), getattr(row, value)) for row in tops]
        )
    parts = [
        ((labels[row.key], address), numbers)
        for row in rows
        for address, numbers in row.servers.items()
        if address in fresh
    ]
    for number, name, family, factor, sentence in QUEUE_NUMBERS:
        samples = ((both, getattr(numbers, number)) for both, numbers in parts)
        yield _family(family, f"queue_{name}", sentence, ("queue", "server"), samples, factor)


def _family(
    family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    sentence: str,
    labels: tuple[str, ...],
    samples: Iterable[tuple[tuple[str, ...], Any]],
    factor: float = 1,
) -> Metric:
    made = family(f"kestrel_{name}", sentence, labels=labels)
    for values, value in samples:
        if value is not None:
            made.add_metric(values, value * factor)
    return made
