"""Several queues as one, by priority: an item of an earlier queue is taken before any of a later one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from kestrel_stack.queue.errors import ProtocolError, ServerUnavailable
from kestrel_stack.queue.interface import JobQueue, Reservation
from kestrel_stack.queue.servers import Server

LOOK_AGAIN = 0.05
"""Seconds until a queue that was empty is looked at again while another has work, if it has several servers.

Each look is then a visit to another server, and so many new connections would use up a host's ports.
"""


class PriorityQueue(JobQueue):
    """Takes from the first of `queues` that has an item.

    Every queue keeps its own connections and visits its servers by itself, so that priority holds among what
    the servers of one visit have. With nothing to do, the wait is shared by the queues: none is looked at
    less often than once in that time.
    """

    def __init__(self, queues: Sequence[JobQueue]):
        self._queues = tuple(queues)
        self.name = ",".join(queue.name for queue in self._queues)
        self._asked = self._queues[0]
        self._held: JobQueue | None = None
        self._idle = False
        self._empty_since = dict.fromkeys(range(len(self._queues)), float("-inf"))

    @property
    def server(self) -> Server:
        """The server that the last `reserve` asked, or that failed."""
        return self._asked.server

    @property
    def server_count(self) -> int:
        """How many calls of `reserve` without an item mean that there is none."""
        return max(queue.server_count for queue in self._queues)

    def reserve(self, wait: float, done: Reservation | None = None) -> Reservation | None:
        """Confirm `done` and reserve the next item of the first queue that has one."""
        held, self._held = self._held, None
        if done is not None and held is not None and held is not self._queues[0]:
            # First, since nothing may be reserved when this fails.
            self._asked = held
            held.done(done)
            done = None
        # Right after an item the queues are only looked at: to wait for an early one holds up the others.
        share = wait / len(self._queues) if self._idle else 0
        failure: Exception | None = None
        failed = self._asked
        for number, queue in enumerate(self._queues):
            if done is None and (queue.pause() > 0 or self._just_looked(number)):
                continue
            self._asked = queue
            try:
                found = queue.reserve(share, done)
            except (ServerUnavailable, ProtocolError) as exc:
                failure, failed = exc, queue
                continue
            finally:
                done = None
            if found is not None:
                self._held, self._idle = queue, False
                return found
            self._empty_since[number] = time.monotonic()
        self._idle = True
        if failure is not None:
            self._asked = failed
            raise failure
        return None

    def pause(self) -> float:
        """Return how long to wait until any of the queues can be asked, in seconds."""
        return min(queue.pause() for queue in self._queues)

    def done(self, reservation: Reservation) -> None:
        """Confirm the item."""
        self._holder().done(reservation)

    def park(self, reservation: Reservation, record: bytes) -> None:
        """Write `record` to the error queue of the item's queue."""
        self._holder().park(reservation, record)

    def later(self, reservation: Reservation, body: bytes, delay: int) -> None:
        """Write `body` so that it comes again to the item's queue after `delay` seconds."""
        self._holder().later(reservation, body, delay)

    def lost(self, reservation: Reservation) -> bool:
        """Say whether the item is known to be no longer reserved."""
        return self._held is None or self._held.lost(reservation)

    def fileno(self) -> int | None:
        """Return a file descriptor that becomes readable when the item is lost."""
        return None if self._held is None else self._held.fileno()

    def drop(self) -> None:
        """Close all connections."""
        for queue in self._queues:
            queue.drop()

    def pings_due(self) -> bool:
        """Say whether to look for pings for the first queue; the others have workers of their own."""
        return self._queues[0].pings_due()

    def answer_pings(self, host: str, answer: Callable[[bytes], bytes | None]) -> None:
        """Answer the pings for the workers of the first queue."""
        self._queues[0].answer_pings(host, answer)

    def _just_looked(self, number: int) -> bool:
        return (
            not self._idle
            and self._queues[number].server_count > 1
            and time.monotonic() - self._empty_since[number] < LOOK_AGAIN
        )

    def _holder(self) -> JobQueue:
        assert self._held is not None
        return self._held
