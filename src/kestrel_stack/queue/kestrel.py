"""The queues of `kestrel_stack.queue.interface`, kept by Kestrel.

One connection reads: ``get <queue>/t=…/close/open`` confirms the last item and reserves the next.
Everything that is written goes over a second connection, to another server when one refuses. An item is
confirmed only on the connection that reserved it: on another one Kestrel would answer the same and confirm
nothing (source: observed on Kestrel 2.4.1).
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Iterable

from kestrel_stack.queue import names, pings
from kestrel_stack.queue.client import READ_TIMEOUT, KestrelClient
from kestrel_stack.queue.errors import ProtocolError, QueueFull, ReservationLost, ServerUnavailable
from kestrel_stack.queue.interface import Counts, Descriptions, JobQueue, ProcessLock, Queue, Reservation
from kestrel_stack.queue.servers import Backoff, Rotation, Server, parse_servers
from kestrel_stack.queue.settings import QueueSettings

DWELL = 10.0
"""Seconds that a worker stays with a server that always has work, while others may be waiting for a visit."""
WRITE_TIMEOUT = 3.0
"""Seconds that one server gets to take a record or a retry; with TERM at hand nobody waits for long."""
PING_PAUSE = 1.0
"""Seconds between two looks for pings at the same server."""
PING_TIME = 0.05
"""Seconds that one look may take while there are pings: a thousand of them must not hold up the jobs."""


class KestrelQueue(JobQueue):
    """The queue `name` (as the servers know it) on `servers`; the visits begin at server `start` mod N.

    `errors` is where `park` writes, by default the queue's error queue.
    """

    def __init__(
        self,
        name: str,
        servers: Iterable[Server],
        start: int = 0,
        dwell: float = DWELL,
        errors: str | None = None,
    ):
        self.name = names.check(name)
        self.errors = names.errors(name) if errors is None else names.check(errors)
        self._servers = tuple(servers)
        self._rotation = Rotation(self._servers, start)
        self._asked = self._rotation.current
        self._reader: KestrelClient | None = None
        self._writer: KestrelClient | None = None
        self._dwell = dwell
        self._arrived = 0.0
        self._empty = False
        self._tickets = 0
        self._ping_at: dict[Server, float] = {}
        self._held: tuple[int, int] | None = None
        """The ticket of the item in hand, and the number of the connection that reserved it."""

    @property
    def server(self) -> Server:
        """The server that the last `reserve` asked."""
        return self._asked

    @property
    def server_count(self) -> int:
        """How many servers hold items of this queue."""
        return len(self._rotation)

    def reserve(self, wait: float, done: Reservation | None = None) -> Reservation | None:
        """Confirm `done` and reserve the next item, in one round trip unless it is another server's turn."""
        if self._time_to_move():
            if done is not None:
                self.done(done)
                done = None
            self._leave()
            self._rotation.advance()
        if done is not None and self.lost(done):
            self._leave()
            raise ReservationLost(f"The connection to {done.server} was lost; the item is delivered again.")
        self._held = None
        self._asked = self._rotation.current
        if self._reader is None:
            self._reader = KestrelClient(self._asked)
            self._arrived = time.monotonic()
        reader = self._reader
        try:
            body = reader.get(
                self.name, wait, open=True, close=done is not None, same_connection=done is not None
            )
        except (ServerUnavailable, ProtocolError, ReservationLost) as exc:
            self._leave()
            self._rotation.failed()
            if done is not None:
                raise ReservationLost(f"{exc} The item may be delivered again.") from None
            raise
        self._rotation.answered()
        self._empty = body is None
        if body is None:
            return None
        self._tickets += 1
        self._held = (self._tickets, reader.connection)
        return Reservation(body, reader.server, self._tickets, self.name)

    def pause(self) -> float:
        """Return how long to wait before the next `reserve`, in seconds."""
        return self._rotation.pause()

    def done(self, reservation: Reservation) -> None:
        """Confirm the item on the connection that reserved it."""
        if self.lost(reservation):
            self._leave()
            raise ReservationLost(
                f"The connection to {reservation.server} was lost; the item is delivered again."
            )
        assert self._reader is not None
        self._held = None
        try:
            self._reader.close_read(self.name)
        except (ServerUnavailable, ProtocolError, ReservationLost) as exc:
            self._leave()
            raise ReservationLost(f"{exc} The item may be delivered again.") from None

    def park(self, reservation: Reservation, record: bytes) -> None:
        """Write `record` to the error queue of any server, that of the item first."""
        self._write(reservation, self.errors, record)

    def later(self, reservation: Reservation, body: bytes, delay: int) -> None:
        """Write `body` to the delay queue of any server, that of the item first; a mover brings it back."""
        self._write(reservation, names.retry(self.name, delay), body)

    def _write(self, reservation: Reservation, queue: str, data: bytes) -> None:
        if self.lost(reservation):
            raise ReservationLost(f"The connection to {reservation.server} was lost.")
        usual = self._writer.server if self._writer is not None else reservation.server
        failures: list[Exception] = []
        for server in sorted(self._servers, key=lambda server: server != usual):
            if self._writer is None or self._writer.server != server:
                self._drop_writer()
                self._writer = KestrelClient(server, read_timeout=WRITE_TIMEOUT)
            try:
                self._writer.set(queue, data)
            except (QueueFull, ServerUnavailable, ProtocolError) as exc:
                failures.append(exc)
            else:
                return
        full = all(isinstance(failure, QueueFull) for failure in failures)
        raise (QueueFull if full else ServerUnavailable)(" ".join(map(str, failures)))

    def lost(self, reservation: Reservation) -> bool:
        """Say whether the connection that reserved the item is gone."""
        return (
            self._reader is None
            or not self._reader.connected()
            or self._held != (reservation.ticket, self._reader.connection)
        )

    def fileno(self) -> int | None:
        """Return the reading connection's file descriptor."""
        return None if self._reader is None else self._reader.fileno()

    def drop(self) -> None:
        """Close both connections."""
        self._leave()
        self._drop_writer()

    def pings_due(self) -> bool:
        """Say whether the server that is read from was not looked at for pings within `PING_PAUSE`."""
        reader = self._reader
        return reader is not None and time.monotonic() >= self._ping_at.get(reader.server, 0.0)

    def answer_pings(self, host: str, answer: Callable[[bytes], bytes | None]) -> None:
        """Answer the pings that the server read from has, for at most `PING_TIME` if there are many.

        Without one that is one question on the connection that stands already, about one queue.
        """
        reader = self._reader
        if reader is None:
            return
        began = time.monotonic()
        self._ping_at[reader.server] = began + PING_PAUSE
        queue = names.ping(self.name, host)
        try:
            for _ in range(reader.items(queue)):
                body = reader.get(queue)
                if body is None:
                    # They had expired. A look is what made them go, so it also removes what they were in.
                    reader.delete(queue)
                    break
                if (said := answer(body)) is not None:
                    with contextlib.suppress(QueueFull):
                        reader.set(names.ping_answers(queue), said, pings.EXPIRES)
                if time.monotonic() - began > PING_TIME:
                    break
        except (ServerUnavailable, ProtocolError):
            self._leave()

    def _time_to_move(self) -> bool:
        if len(self._rotation) == 1 or self._reader is None:
            return False
        return self._empty or time.monotonic() - self._arrived >= self._dwell

    def _leave(self) -> None:
        if self._reader is not None:
            self._reader.disconnect()
        self._reader = None
        self._held = None
        self._empty = False

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.disconnect()
        self._writer = None


class KestrelStore(Queue):
    """The queues of `namespace` on Kestrel `servers`, written as ``host:port,host:port`` or a list."""

    def __init__(self, namespace: str, servers: str | Iterable[str | Server], queues: Descriptions = ()):
        super().__init__(namespace, queues)
        self.servers = parse_servers(servers)
        self._lock = ProcessLock()
        self._clients: dict[Server, KestrelClient] = {}
        self._backoffs: dict[Server, Backoff] = {}
        self._last_resort: dict[Server, float] = {}
        """Until when a server that failed is tried only after the others."""
        self._process = os.getpid()

    def worker(self, queue: str, start: int = 0) -> KestrelQueue:
        """Return `queue` as a worker uses it."""
        return KestrelQueue(self.name(queue), self.servers, start)

    def parked(self, queue: str) -> KestrelQueue:
        """Return the error queue of `queue`."""
        name = names.errors(self.name(queue))
        return KestrelQueue(name, self.servers, errors=name)

    def count(self, queue: str) -> Counts:
        """Add up the numbers of all servers. What a mover holds until it is due counts as delayed."""
        name = self.name(queue)
        ready = reserved = parked = 0
        delayed = dict.fromkeys(sorted(self.described(queue).retry_delays), 0)
        pattern = re.compile(rf"queue_{re.escape(name)}_retry_([1-9][0-9]*)_(?:items|open_transactions)")
        for server in self.servers:
            stats = self._stats(server)
            ready += _number(stats, name, "items")
            reserved += _number(stats, name, "open_transactions")
            errors = names.errors(name)
            parked += _number(stats, errors, "items") + _number(stats, errors, "open_transactions")
            for key, value in stats.items():
                if (match := pattern.fullmatch(key)) and value.isdigit():
                    # Also those that are no longer configured: their items have not gone away.
                    delayed[int(match[1])] = delayed.get(int(match[1]), 0) + int(value)
        return Counts(ready, reserved, delayed, parked)

    def peek(self, queue: str) -> bytes | None:
        """Return the head of the queue on the first server that has one."""
        name = self.name(queue)
        for server in self.servers:
            # Kestrel would make the queue if it were asked for an item of one that does not exist.
            if _number(self._stats(server), name, "items"):
                with KestrelClient(server) as client:
                    body = client.get(name, peek=True)
                if body is not None:
                    return body
        return None

    def parts(self) -> list[Queue]:
        """Return one object for each server."""
        if len(self.servers) == 1:
            return [self]
        return [KestrelStore(self.namespace, [server], self.queues.values()) for server in self.servers]

    def close(self) -> None:
        """Close the connections."""
        with self._lock.held(READ_TIMEOUT):
            self._drop_all()

    def _put(
        self, queue: QueueSettings, name: str, body: bytes, timeout: float, delay: int | None = None
    ) -> None:
        # Each server is tried once, in random order, so that producers spread over the servers. One that has
        # just failed comes last: frozen, it would hold up every second job for its share of the time limit.
        now = time.monotonic()
        servers = random.sample(self.servers, len(self.servers))
        servers.sort(key=lambda server: self._last_resort.get(server, now) > now)
        deadline = time.monotonic() + timeout
        failures: list[Exception] = []
        try:
            with self._lock.held(timeout):
                for number, server in enumerate(servers):
                    left = deadline - time.monotonic()
                    if left <= 0:
                        failures.append(ServerUnavailable(f"{server} was not tried: no time was left."))
                        continue
                    # The time left is shared: one silent server must not use up what the others need.
                    try:
                        self._client(server, left / (len(servers) - number)).set(name, body)
                    except QueueFull as exc:
                        failures.append(exc)
                    except (ServerUnavailable, ProtocolError) as exc:
                        failures.append(exc)
                        backoff = self._backoffs.setdefault(server, Backoff())
                        self._last_resort[server] = time.monotonic() + backoff.next()
                    else:
                        self._backoffs.pop(server, None)
                        return
        except ServerUnavailable as exc:
            failures.append(exc)
        said = " ".join(map(str, failures))
        if all(isinstance(failure, QueueFull) for failure in failures):
            raise QueueFull(f"Not enqueued: {said}")
        raise ServerUnavailable(f"Not enqueued: {said}")

    def _client(self, server: Server, seconds: float) -> KestrelClient:
        if self._process != os.getpid():
            # After a fork both processes would write into the same connections.
            self._drop_all()
            self._process = os.getpid()
        client = self._clients.setdefault(server, KestrelClient(server))
        client.limit(connect=seconds / 2, read=seconds / 2)
        return client

    def _drop_all(self) -> None:
        for client in self._clients.values():
            client.disconnect()
        self._clients.clear()

    def _stats(self, server: Server) -> dict[str, str]:
        with KestrelClient(server) as client:
            return client.stats()


def _number(stats: dict[str, str], name: str, key: str) -> int:
    return int(stats.get(f"queue_{name}_{key}", 0))
