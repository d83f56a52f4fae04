"""How the queues stand, for programs: numbers and ages, together and server by server."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kestrel_stack.queue.envelope import Envelope, now_ms
from kestrel_stack.queue.errors import InvalidEnvelope, ProtocolError, ServerUnavailable
from kestrel_stack.queue.interface import Queue

ADDED = ("items", "open", "errors", "retries")
"""The numbers that add up over servers."""


def sample(store: Queue, queues: Sequence[str]) -> dict[str, Any]:
    """Return the numbers of `queues` and the servers that gave none; all servers are asked at once.

    It is ``{"queues": {NAME: NUMBERS and "servers": {ADDRESS: NUMBERS}}, "failed_servers": [{"server",
    "reason"}]}`` with these NUMBERS: `items` are ready to be taken, `open` are in workers' hands, `errors`
    are parked, `retries` wait for a delay, by its seconds in `delayed`. `oldest_s` is for how many seconds
    the next item has been ready; None when there is none, or one that is no job. Raises `InvalidQueueName`.
    """
    for queue in queues:
        store.name(queue)
    parts = store.parts()
    with ThreadPoolExecutor(max_workers=min(len(parts), 16)) as pool:
        answers = list(pool.map(lambda part: _ask(part, queues), parts))
    addresses = [str(part.worker(queues[0]).server) for part in parts]
    failed = [
        {"server": address, "reason": str(answer)}
        for address, answer in zip(addresses, answers, strict=True)
        if isinstance(answer, Exception)
    ]
    found = {}
    for queue in queues:
        servers = {
            address: answer[queue]
            for address, answer in zip(addresses, answers, strict=True)
            if not isinstance(answer, Exception)
        }
        found[queue] = {**_together(list(servers.values())), "servers": servers}
    return {"queues": found, "failed_servers": failed}


def _ask(part: Queue, queues: Sequence[str]) -> dict[str, dict[str, Any]] | Exception:
    try:
        return {queue: _one(part, queue) for queue in queues}
    except (ServerUnavailable, ProtocolError) as exc:
        return exc
    finally:
        part.close()


def _one(part: Queue, queue: str) -> dict[str, Any]:
    counts = part.count(queue)
    return {
        "items": counts.ready,
        "open": counts.reserved,
        "errors": counts.parked,
        "retries": sum(counts.delayed.values()),
        "delayed": {str(delay): number for delay, number in counts.delayed.items()},
        "oldest_s": _age(part, queue) if counts.ready else None,
    }


def _age(part: Queue, queue: str) -> float | None:
    try:
        body = part.peek(queue)
        envelope = None if body is None else Envelope.decode(body)
    except (InvalidEnvelope, ServerUnavailable, ProtocolError):
        # A server that is told to be quiescent counts, and shows nothing.
        return None
    if envelope is None:
        return None
    ready_at = envelope.enqueued_at if envelope.due_at is None else envelope.due_at
    # The producer's clock may be ahead of this one.
    return max(0.0, round((now_ms() - ready_at) / 1000, 3))


def _together(numbers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    delayed: dict[str, int] = {}
    for one in numbers:
        for delay, number in one["delayed"].items():
            delayed[delay] = delayed.get(delay, 0) + number
    ages = [one["oldest_s"] for one in numbers if one["oldest_s"] is not None]
    return {
        **{key: sum(one[key] for one in numbers) for key in ADDED},
        "delayed": delayed,
        "oldest_s": max(ages, default=None),
    }
