"""What a worker needs of a queue, in a worker's words: reserve, done, park.

Nothing here is Kestrel's; `kestrel_stack.queue.kestrel` does it with Kestrel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from kestrel_stack.queue.servers import Server


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
