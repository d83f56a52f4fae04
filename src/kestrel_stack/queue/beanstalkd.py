"""The queues of `kestrel_stack.queue.interface`, kept by beanstalkd.

It needs the package greenstalk, which is imported only here. A queue is the tube of its name. Delayed items
lie in tubes of their own, ``<name>_retry_<seconds>``, with beanstalkd's own delay: no mover is needed, since
workers watch those tubes as well. An item that a worker holds for longer than `Queue.open`'s description of
the queue allows (twice its job_timeout and a minute) is delivered again.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
from collections.abc import Iterable, Iterator
from typing import Any

from kestrel_stack.queue import names
from kestrel_stack.queue.client import CONNECT_TIMEOUT, READ_TIMEOUT
from kestrel_stack.queue.errors import (
    InvalidServer,
    ProtocolError,
    QueueError,
    QueueFull,
    ReservationLost,
    ServerUnavailable,
)
from kestrel_stack.queue.interface import Counts, Descriptions, JobQueue, ProcessLock, Queue, Reservation
from kestrel_stack.queue.kestrel import WRITE_TIMEOUT
from kestrel_stack.queue.servers import Rotation, Server, parse_servers
from kestrel_stack.queue.settings import QueueSettings

DEFAULT_PORT = 11300
PRIORITY = 2**16
"""Every item's; beanstalkd then keeps them in order."""


class Connection:
    """One connection to beanstalkd, made at the first command and again after an error."""

    def __init__(self, server: Server, watch: Iterable[str] = ()):
        self.server = server
        self._greenstalk = _greenstalk()
        self._watch = tuple(watch)
        self._socket: socket.socket | None = None
        self._client: Any = None
        self._used: str | None = None

    @contextlib.contextmanager
    def client(self, timeout: float = READ_TIMEOUT) -> Iterator[Any]:
        """Give out a greenstalk client; each of its answers must come within `timeout` seconds.

        Errors become those of `kestrel_stack.queue.errors` and drop the connection; `NotFoundError` and
        `TimedOutError` are answers, and left to the caller.
        """
        greenstalk = self._greenstalk
        try:
            if not self.connected():
                self._connect(min(timeout, CONNECT_TIMEOUT))
            assert self._socket is not None
            self._socket.settimeout(timeout)
            yield self._client
        except (greenstalk.NotFoundError, greenstalk.TimedOutError):
            raise
        except greenstalk.JobTooBigError:
            self.drop()
            raise QueueFull(f"{self.server} refused the item: it is larger than the server allows.") from None
        except (greenstalk.DrainingError, greenstalk.OutOfMemoryError, greenstalk.BuriedError) as exc:
            self.drop()
            raise ServerUnavailable(f"{self.server} refused: {type(exc).__name__}.") from None
        except OSError as exc:
            self.drop()
            said = "timed out" if isinstance(exc, TimeoutError) else exc.strerror or exc
            raise ServerUnavailable(f"{self.server} gave no answer: {said}.") from None
        except (greenstalk.Error, ValueError, AssertionError) as exc:
            self.drop()
            raise ProtocolError(
                f"{self.server} answered what was not expected: {type(exc).__name__}."
            ) from None
        except BaseException:
            self.drop()
            raise

    def put(self, tube: str, body: bytes, delay: int, ttr: int, timeout: float) -> None:
        """Put `body` into `tube`."""
        with self.client(timeout) as client:
            self._use(tube)
            client.put(body, priority=PRIORITY, delay=delay, ttr=ttr)

    def peek(self, tube: str) -> bytes | None:
        """Return the item of `tube` that is next; None when there is none."""
        try:
            with self.client() as client:
                self._use(tube)
                return client.peek_ready().body
        except self._greenstalk.NotFoundError:
            return None

    def connected(self) -> bool:
        """Say whether the connection stands: beanstalkd says nothing by itself, except that it has ended."""
        if self._socket is None:
            return False
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        if poller.poll(0):
            self.drop()
            return False
        return True

    def fileno(self) -> int | None:
        """Return the connection's file descriptor; None without a connection."""
        return None if self._socket is None else self._socket.fileno()

    def drop(self) -> None:
        """Close the connection; what is reserved on it goes back to its tube."""
        if self._client is not None:
            self._client.close()
        if self._socket is not None:
            self._socket.close()
        self._socket = self._client = self._used = None

    def _use(self, tube: str) -> None:
        if self._used != tube:
            self._client.use(tube)
            self._used = tube

    def _connect(self, timeout: float) -> None:
        try:
            self._socket = socket.create_connection((self.server.host, self.server.port), timeout)
        except (OSError, UnicodeError) as exc:
            said = "timed out" if isinstance(exc, TimeoutError) else getattr(exc, "strerror", None) or exc
            raise ServerUnavailable(f"{self.server} is not reachable: {said}.") from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        watch = self._watch or ("default",)
        self._client = self._greenstalk.Client(self._socket, encoding=None, watch=watch)


class BeanstalkdQueue(JobQueue):
    """The queue of tube `name`, as one worker uses it; `errors` is the tube where `park` writes.

    It reads on one connection and writes on another, so that a failed write never costs the reservation.
    """

    def __init__(self, name: str, server: Server, ttr: int, errors: str, delays: Iterable[int] = ()):
        self.name = name
        self.errors = errors
        self._server = server
        self._ttr = ttr
        self._reader = Connection(server, [name, *(names.retry(name, delay) for delay in delays)])
        self._writer = Connection(server)
        self._rotation = Rotation([server])
        self._held: Reservation | None = None

    @property
    def server(self) -> Server:
        """The server."""
        return self._server

    @property
    def server_count(self) -> int:
        """One."""
        return 1

    def reserve(self, wait: float, done: Reservation | None = None) -> Reservation | None:
        """Confirm `done` and reserve the next item. `wait` is rounded up: beanstalkd knows whole seconds."""
        if done is not None:
            self.done(done)
        self._held = None
        seconds = math.ceil(wait)
        try:
            with self._reader.client(seconds + READ_TIMEOUT) as client:
                job = client.reserve(timeout=seconds)
        except _greenstalk().TimedOutError:
            self._rotation.answered()
            return None
        except QueueError:
            self._rotation.failed()
            raise
        self._rotation.answered()
        self._held = Reservation(job.body, self._server, job.id, self.name)
        return self._held

    def pause(self) -> float:
        """Return how long to wait before the next `reserve`, in seconds."""
        return self._rotation.pause()

    def done(self, reservation: Reservation) -> None:
        """Delete the item."""
        self._check(reservation)
        self._held = None
        try:
            with self._reader.client() as client:
                client.delete(reservation.ticket)
        except (_greenstalk().NotFoundError, QueueError) as exc:
            self._reader.drop()
            raise ReservationLost(f"{exc or 'Its time was over.'} The item may be delivered again.") from None

    def park(self, reservation: Reservation, record: bytes) -> None:
        """Put `record` into the error tube."""
        self._check(reservation)
        self._writer.put(self.errors, record, 0, self._ttr, WRITE_TIMEOUT)

    def later(self, reservation: Reservation, body: bytes, delay: int) -> None:
        """Put `body` into the tube of `delay`, delayed."""
        self._check(reservation)
        self._writer.put(names.retry(self.name, delay), body, delay, self._ttr, WRITE_TIMEOUT)

    def lost(self, reservation: Reservation) -> bool:
        """Say whether the connection that reserved the item is gone."""
        return self._held is not reservation or not self._reader.connected()

    def fileno(self) -> int | None:
        """Return the reading connection's file descriptor."""
        return self._reader.fileno()

    def drop(self) -> None:
        """Close both connections."""
        self._held = None
        self._reader.drop()
        self._writer.drop()

    def _check(self, reservation: Reservation) -> None:
        if self.lost(reservation):
            self._reader.drop()
            raise ReservationLost(f"The connection to {self._server} was lost; the item is delivered again.")


class BeanstalkdStore(Queue):
    """The queues of `namespace` on one beanstalkd server, ``host`` or ``host:port``."""

    def __init__(self, namespace: str, server: str | Server, queues: Descriptions = ()):
        super().__init__(namespace, queues)
        found = parse_servers(server if isinstance(server, str) else [server])
        if len(found) > 1:
            raise InvalidServer(
                "Only one beanstalkd server can be used; write beanstalkd://host:port/namespace."
            )
        given = isinstance(server, Server) or server.rpartition("]")[2].count(":") == 1
        self._server = found[0] if given else Server(found[0].host, DEFAULT_PORT)
        self._lock = ProcessLock()
        self._connection = Connection(self._server)
        self._process = os.getpid()

    def worker(self, queue: str, start: int = 0) -> BeanstalkdQueue:
        """Return `queue` as a worker uses it."""
        described, name = self.described(queue), self.name(queue)
        return BeanstalkdQueue(
            name, self._server, _ttr(described), names.errors(name), described.retry_delays
        )

    def parked(self, queue: str) -> BeanstalkdQueue:
        """Return the error tube of `queue`."""
        name = names.errors(self.name(queue))
        return BeanstalkdQueue(name, self._server, _ttr(self.described(queue)), name)

    def count(self, queue: str) -> Counts:
        """Add up the numbers of the queue's tubes."""
        name = self.name(queue)
        delays = sorted(self.described(queue).retry_delays)
        tubes = [self._stats(name), *(self._stats(names.retry(name, delay)) for delay in delays)]
        errors = self._stats(names.errors(name))
        return Counts(
            ready=sum(tube.get("current-jobs-ready", 0) for tube in tubes),
            reserved=sum(tube.get("current-jobs-reserved", 0) for tube in tubes),
            delayed={
                delay: tube.get("current-jobs-delayed", 0)
                for delay, tube in zip(delays, tubes[1:], strict=True)
            },
            parked=errors.get("current-jobs-ready", 0) + errors.get("current-jobs-reserved", 0),
        )

    def peek(self, queue: str) -> bytes | None:
        """Return the head of the queue's own tube."""
        with self._locked(READ_TIMEOUT) as connection:
            return connection.peek(self.name(queue))

    def close(self) -> None:
        """Close the connection."""
        with self._lock.held(READ_TIMEOUT):
            self._connection.drop()

    def _put(
        self, queue: QueueSettings, name: str, body: bytes, timeout: float, delay: int | None = None
    ) -> None:
        try:
            with self._locked(timeout) as connection:
                # Connecting, using the tube, and putting: each has its part of the time.
                connection.put(name, body, delay or 0, _ttr(queue), timeout / 3)
        except (QueueFull, ServerUnavailable) as exc:
            raise type(exc)(f"Not enqueued: {exc}") from None
        except ProtocolError as exc:
            raise ServerUnavailable(f"Not enqueued: {exc}") from None

    def _stats(self, tube: str) -> dict[str, Any]:
        with self._locked(READ_TIMEOUT) as connection:
            try:
                with connection.client() as client:
                    return dict(client.stats_tube(tube))
            except _greenstalk().NotFoundError:
                return {}

    @contextlib.contextmanager
    def _locked(self, timeout: float) -> Iterator[Connection]:
        with self._lock.held(timeout):
            if self._process != os.getpid():
                # After a fork both processes would write into the same connection.
                self._connection.drop()
                self._process = os.getpid()
            yield self._connection


def _ttr(queue: QueueSettings) -> int:
    """Return the seconds that a worker may hold an item of `queue`."""
    return 2 * queue.job_timeout + 60


def _greenstalk() -> Any:
    try:
        import greenstalk
    except ImportError:
        raise QueueError(
            "beanstalkd:// needs the package greenstalk; add it to the application's requirements."
        ) from None
    return greenstalk
