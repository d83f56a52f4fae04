"""The queues of `kestrel_stack.queue.interface`, kept in this process: for an application's tests.

Nothing is written anywhere; what is here ends with the process. Delayed items come by themselves.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import Counter, defaultdict, deque

from kestrel_stack.queue import names
from kestrel_stack.queue.errors import QueueFull, ReservationLost
from kestrel_stack.queue.interface import Counts, Descriptions, JobQueue, Queue, Reservation
from kestrel_stack.queue.servers import Server
from kestrel_stack.queue.settings import QueueSettings


class Memory:
    """All items of all queues of one store; every access holds `changed`."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.items: dict[str, deque[bytes]] = defaultdict(deque)
        self.reserved: Counter[str] = Counter()
        self._delayed: dict[str, list[tuple[float, int, int, bytes]]] = defaultdict(list)
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """Return a number that was not returned before."""
        return next(self._numbers)

    def delay(self, name: str, body: bytes, seconds: int) -> None:
        """Keep `body` back from the queue `name`."""
        due = time.monotonic() + seconds
        heapq.heappush(self._delayed[name], (due, self.number(), seconds, body))

    def delayed(self, name: str) -> dict[int, int]:
        """Return how many items of `name` are kept back, by their delay."""
        self.next_due(name)
        return Counter(seconds for _, _, seconds, _ in self._delayed[name])

    def next_due(self, name: str) -> float:
        """Put what is due on the queue, and return in how many seconds the next item will be."""
        waiting = self._delayed[name]
        while waiting and waiting[0][0] <= time.monotonic():
            self.items[name].append(heapq.heappop(waiting)[3])
        return waiting[0][0] - time.monotonic() if waiting else float("inf")


_memories: dict[str, Memory] = defaultdict(Memory)


class MemoryQueue(JobQueue):
    """The queue `name` of one memory, as one worker uses it; `errors` is where `park` writes."""

    def __init__(self, name: str, memory: Memory, server: Server, errors: str):
        self.name = name
        self.errors = errors
        self._memory = memory
        self._server = server
        self._held: Reservation | None = None

    @property
    def server(self) -> Server:
        """The memory, as if it were a server."""
        return self._server

    @property
    def server_count(self) -> int:
        """One."""
        return 1

    def reserve(self, wait: float, done: Reservation | None = None) -> Reservation | None:
        """Confirm `done` and reserve the next item."""
        if done is not None:
            self.done(done)
        memory, deadline = self._memory, time.monotonic() + wait
        with memory.changed:
            while True:
                due = memory.next_due(self.name)
                if memory.items[self.name]:
                    break
                if (left := deadline - time.monotonic()) <= 0:
                    return None
                memory.changed.wait(min(left, max(due, 0)))
            body = memory.items[self.name].popleft()
            memory.reserved[self.name] += 1
            self._held = Reservation(body, self._server, memory.number(), self.name)
            return self._held

    def pause(self) -> float:
        """Return 0: a memory is never away."""
        return 0.0

    def done(self, reservation: Reservation) -> None:
        """Forget the item."""
        self._check(reservation)
        with self._memory.changed:
            self._memory.reserved[self.name] -= 1
            self._held = None

    def park(self, reservation: Reservation, record: bytes) -> None:
        """Put `record` on the error queue."""
        self._check(reservation)
        with self._memory.changed:
            self._memory.items[self.errors].append(record)
            self._memory.changed.notify_all()

    def later(self, reservation: Reservation, body: bytes, delay: int) -> None:
        """Keep `body` back for `delay` seconds."""
        self._check(reservation)
        with self._memory.changed:
            self._memory.delay(self.name, body, delay)
            self._memory.changed.notify_all()

    def lost(self, reservation: Reservation) -> bool:
        """Say whether the item was given back."""
        return self._held is not reservation

    def fileno(self) -> int | None:
        """There is no connection to look at."""
        return None

    def drop(self) -> None:
        """Put a reserved item back to the head of the queue."""
        held, self._held = self._held, None
        if held is None:
            return
        with self._memory.changed:
            self._memory.items[self.name].appendleft(held.body)
            self._memory.reserved[self.name] -= 1
            self._memory.changed.notify_all()

    def _check(self, reservation: Reservation) -> None:
        if self.lost(reservation):
            raise ReservationLost("The item was given back; it is delivered again.")


class MemoryStore(Queue):
    """The queues of `namespace` in the memory called `name`; the same name is the same memory."""

    def __init__(self, namespace: str, name: str, queues: Descriptions = ()):
        super().__init__(namespace, queues)
        self._memory = _memories[name]
        self._server = Server(name, 0)

    def worker(self, queue: str, start: int = 0) -> MemoryQueue:
        """Return `queue` as a worker uses it."""
        name = self.name(queue)
        return MemoryQueue(name, self._memory, self._server, names.errors(name))

    def parked(self, queue: str) -> MemoryQueue:
        """Return the error queue of `queue`."""
        name = names.errors(self.name(queue))
        return MemoryQueue(name, self._memory, self._server, name)

    def count(self, queue: str) -> Counts:
        """Count the items."""
        name, memory = self.name(queue), self._memory
        errors = names.errors(name)
        with memory.changed:
            found = memory.delayed(name)
            delayed = {delay: found[delay] for delay in sorted({*self.described(queue).retry_delays, *found})}
            return Counts(
                ready=len(memory.items[name]),
                reserved=memory.reserved[name],
                delayed=delayed,
                parked=len(memory.items[errors]) + memory.reserved[errors],
            )

    def peek(self, queue: str) -> bytes | None:
        """Return the head of the queue."""
        name = self.name(queue)
        with self._memory.changed:
            self._memory.next_due(name)
            items = self._memory.items[name]
            return items[0] if items else None

    def _put(
        self, queue: QueueSettings, name: str, body: bytes, timeout: float, delay: int | None = None
    ) -> None:
        own, memory = self.name(queue.name), self._memory
        with memory.changed:
            if delay is not None:
                memory.delay(own, body, delay)
            else:
                full = queue.max_items is not None and len(memory.items[name]) >= queue.max_items
                if full and name == own:
                    raise QueueFull(f"Not enqueued: {name} has {queue.max_items} items already.")
                memory.items[name].append(body)
            memory.changed.notify_all()
