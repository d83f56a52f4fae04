"""What applications and workers need of a queue, in their words: put, reserve, done, later, park.

Nothing here is Kestrel's. `kestrel_stack.queue.kestrel` does it with Kestrel, `kestrel_stack.queue.memory`
inside one process, and `kestrel_stack.queue.beanstalkd` with beanstalkd.
"""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kestrel_stack.queue import names, settings
from kestrel_stack.queue.errors import InvalidJob, InvalidQueueName, InvalidServer, ServerUnavailable
from kestrel_stack.queue.servers import Server
from kestrel_stack.queue.settings import QueueSettings

TIMEOUT = 5.0
"""Seconds after which `Queue.put` gives up, however many servers there are."""

Descriptions = Iterable[str | Mapping[str, Any] | QueueSettings]
"""Queues as in the settings file, or plain names."""


@dataclass(frozen=True)
class Reservation:
    """One item in a worker's hands; other workers do not see it until it is given back or lost.

    `queue` is the server's name of the queue that it came from. `ticket` means something only to the queue
    that made the reservation.
    """

    body: bytes
    server: Server
    ticket: int
    queue: str


class JobQueue(ABC):
    """One queue as one worker uses it; the worker holds at most one reservation."""

    name: str
    """The server's name of the queue."""

    @property
    @abstractmethod
    def server(self) -> Server:
        """The server that the last `reserve` asked."""

    @property
    @abstractmethod
    def server_count(self) -> int:
        """How many servers hold items of this queue."""

    @abstractmethod
    def reserve(self, wait: float, done: Reservation | None = None) -> Reservation | None:
        """Confirm `done`, if given, and reserve the next item; None when there is none within `wait` seconds.

        Raises `ReservationLost` when `done` could not be confirmed (it may be delivered again; nothing is
        reserved), otherwise `ServerUnavailable` or `ProtocolError`. Then see `pause`.
        """

    @abstractmethod
    def pause(self) -> float:
        """Return how long to wait before the next `reserve`, in seconds; not 0 when no server answers."""

    @abstractmethod
    def done(self, reservation: Reservation) -> None:
        """Confirm that the item was dealt with; `ReservationLost` when it may be delivered again."""

    @abstractmethod
    def park(self, reservation: Reservation, record: bytes) -> None:
        """Write `record` to the error queue. The item stays reserved: confirm it with `done` afterwards.

        Raises `ReservationLost` when the item will be delivered again (nothing is written), and `QueueFull`,
        `ServerUnavailable` or `ProtocolError` when no server took the record.
        """

    @abstractmethod
    def later(self, reservation: Reservation, body: bytes, delay: int) -> None:
        """Write `body` so that it comes again after `delay` seconds, one of the queue's retry delays.

        The item stays reserved: confirm it with `done` afterwards. Raises as `park` does.
        """

    @abstractmethod
    def lost(self, reservation: Reservation) -> bool:
        """Say whether the item is known to be no longer reserved, so that it will be delivered again."""

    @abstractmethod
    def fileno(self) -> int | None:
        """Return a file descriptor that becomes readable when a reservation is lost; None without one."""

    @abstractmethod
    def drop(self) -> None:
        """Close all connections; a reserved item goes back to its queue."""

    def pings_due(self) -> bool:
        """Say whether it is time to look for pings where items are taken from. Sends nothing."""
        return False

    def answer_pings(  # noqa: B027 - most kinds of queue know no pings
        self, host: str, answer: Callable[[bytes], bytes | None]
    ) -> None:
        """Have `answer` reply to the pings for the workers of this queue on `host`; None is no reply.

        Call it with nothing reserved: when the connection ends meanwhile, that is for `reserve` to find.
        """


@dataclass(frozen=True)
class Counts:
    """How many items a queue has.

    `ready` are free to take, `reserved` in workers' hands, `delayed` wait for a delay (by its seconds), and
    `parked` are in the error queue.
    """

    ready: int = 0
    reserved: int = 0
    delayed: Mapping[int, int] = field(default_factory=dict)
    parked: int = 0


class Queue(ABC):
    """The queues of one namespace, on some servers; it may be shared by threads and survives a fork.

    `queues` describes them. Without a description any name is taken, and no delay.
    """

    def __init__(self, namespace: str, queues: Descriptions = ()):
        self.namespace = names.check(namespace, "namespace")
        described = [settings.describe_queue(queue, namespace) for queue in queues]
        self.queues = {queue.name: queue for queue in described}

    @staticmethod
    def open(url: str, *, queues: Descriptions = ()) -> Queue:
        """Return the queues at `url`; nothing is sent yet.

        ``kestrel://host:port,host:port/namespace`` (port 22133 if none is given),
        ``beanstalkd://host:port/namespace`` (port 11300; needs the package greenstalk), or
        ``memory://name/namespace``, which lives in this process: the same name is the same store. Raises
        `InvalidServer` or `InvalidQueueName`.
        """
        scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
        where, slash, namespace = rest.partition("/")
        if not separator or not where or not slash:
            raise InvalidServer(
                f"{url!r} is not the address of a queue; write kestrel://host:port,host:port/namespace."
            )
        # Imported here, since each of them imports this module.
        if scheme == "kestrel":
            from kestrel_stack.queue.kestrel import KestrelStore

            return KestrelStore(namespace, where, queues)
        if scheme == "memory":
            from kestrel_stack.queue.memory import MemoryStore

            return MemoryStore(namespace, where, queues)
        if scheme == "beanstalkd":
            from kestrel_stack.queue.beanstalkd import BeanstalkdStore

            return BeanstalkdStore(namespace, where, queues)
        raise InvalidServer(
            f"{url!r} begins with an unknown scheme; known: kestrel://, beanstalkd://, memory://."
        )

    def described(self, queue: str) -> QueueSettings:
        """Return the description of `queue`; raise `InvalidQueueName` when it is not one of those known."""
        if queue in self.queues:
            return self.queues[queue]
        if self.queues:
            known = ", ".join(sorted(self.queues))
            raise InvalidQueueName(f"The queue {queue!r} is not configured; configured: {known}.")
        return settings.describe_queue(queue, self.namespace)

    def put(self, queue: str, body: bytes, delay: int | None = None, timeout: float = TIMEOUT) -> None:
        """Put `body` on `queue`, or have it come after `delay` seconds, one of the queue's retry delays.

        Raises `InvalidQueueName` or `InvalidJob` before anything is sent, `QueueFull` when every server
        refused the item, and `ServerUnavailable` when none took it within `timeout` seconds. After
        `ServerUnavailable` it is not known whether the item was stored.
        """
        described = self.described(queue)
        if delay is not None:
            check_delay(described, delay)
        name = self.name(queue)
        self._put(described, name if delay is None else names.retry(name, delay), body, timeout, delay)

    def park(self, queue: str, record: bytes, timeout: float = TIMEOUT) -> None:
        """Put `record` on the error queue of `queue`. Raises as `put` does."""
        self._put(self.described(queue), names.errors(self.name(queue)), record, timeout)

    def name(self, queue: str) -> str:
        """Return the server's name of `queue`; raise `InvalidQueueName` as `described` does."""
        return names.make(self.namespace, self.described(queue).name)

    @abstractmethod
    def worker(self, queue: str, start: int = 0) -> JobQueue:
        """Return `queue` as a worker uses it; its visits begin at server number `start` mod their count."""

    @abstractmethod
    def parked(self, queue: str) -> JobQueue:
        """Return the error queue of `queue`, to take parked records from it.

        Its `park` writes to the end of the same error queue, on the server of the item.
        """

    @abstractmethod
    def count(self, queue: str) -> Counts:
        """Return how many items `queue` has. Raises `ServerUnavailable` when a server does not answer."""

    @abstractmethod
    def peek(self, queue: str) -> bytes | None:
        """Return an item that is next, and leave it where it is; None when there is none."""

    def parts(self) -> list[Queue]:
        """Return these queues server by server, for tools that must see each of them."""
        return [self]

    def close(self) -> None:  # noqa: B027 - there may be nothing to close
        """Close the connections; the next call opens them again."""

    @abstractmethod
    def _put(
        self, queue: QueueSettings, name: str, body: bytes, timeout: float, delay: int | None = None
    ) -> None:
        """Put `body` on the server's queue `name`, which belongs to `queue`; everything was checked."""

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ProcessLock:
    """A lock between the threads of one process; a forked one begins with a free lock of its own.

    A plain lock that another thread held at the moment of the fork would stay locked in the new process.
    """

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    @contextlib.contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """Hold the lock; raise `ServerUnavailable` when other threads do so for `timeout` seconds."""
        lock = self._locks.setdefault(os.getpid(), threading.Lock())
        if not lock.acquire(timeout=timeout):
            raise ServerUnavailable(f"Other threads are using the connection since {timeout:g} s.")
        try:
            yield
        finally:
            lock.release()


def check_delay(queue: QueueSettings, delay: object) -> None:
    """Raise `InvalidJob` unless `delay` is one of the queue's retry delays."""
    if delay not in queue.retry_delays or isinstance(delay, bool | float):
        allowed = ", ".join(map(str, queue.retry_delays)) or "none"
        raise InvalidJob(
            f"The delay {delay!r} is not one of the retry_delays of the queue {queue.name}, "
            f"in seconds: {allowed}."
        )
