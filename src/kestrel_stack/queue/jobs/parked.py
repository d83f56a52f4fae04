"""One walk over an error queue.

A queue server has no scan: to look at the second item one must take the first. So a walk takes every item
that is there when it begins, each on a connection of its own, and holds on to those that it leaves alone;
at the end it lets go of them, and the server puts them back at the front. A process that dies meanwhile does
the same. Where there are more than `HOLD`, the one that is held for longest goes to the end of the queue, on
the same server: it is written there first and confirmed afterwards, so that a cut in between doubles one
record and never loses it.
"""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from kestrel_stack.queue.errors import InvalidEnvelope, InvalidParkedRecord
from kestrel_stack.queue.interface import JobQueue, Queue, Reservation

HOLD = 200
"""Items that are held at a time; each has a connection to the server, of which it may not have too many."""


class Found:
    """One item of an error queue, in hand until it is removed, or the walk ends."""

    def __init__(self, hand: JobQueue, reservation: Reservation):
        self._hand = hand
        self._reservation = reservation
        self.gone = False
        self.record: ParkedRecord | None = None
        self.envelope: Envelope | None = None
        self.fault = ""
        try:
            self.record = ParkedRecord.decode(reservation.body)
            self.envelope = Envelope.decode(self.record.body)
        except InvalidParkedRecord as exc:
            self.fault = f"Not a parked record: {exc}"
        except InvalidEnvelope:
            pass

    @property
    def raw(self) -> bytes:
        """What lies in the error queue."""
        return self._reservation.body

    @property
    def reason(self) -> str:
        """Why the item is here."""
        return self.fault if self.record is None else self.record.reason

    def remove(self) -> None:
        """Take the item out for good. Raises `ReservationLost` when it may still be there."""
        self._hand.done(self._reservation)
        self.gone = True

    def to_the_end(self) -> JobQueue:
        """Move the item to the end of its queue; return the free hand."""
        self._hand.park(self._reservation, self.raw)
        self.remove()
        return self._hand

    def let_go(self) -> None:
        """Give the item back."""
        self._hand.drop()


@dataclass(frozen=True)
class Filter:
    """Which items are meant; what is None does not matter. `reason` is a part of the reason."""

    job: str | None = None
    tenant: str | None = None
    reason: str | None = None
    id: str | None = None

    def __bool__(self) -> bool:
        return self != Filter()

    def matches(self, found: Found) -> bool:
        """Say whether `found` is meant."""
        envelope = found.envelope
        for wanted, value in (
            (self.job, envelope and envelope.job),
            (self.tenant, envelope and envelope.tenant),
            (self.id, envelope and envelope.id),
        ):
            if wanted is not None and wanted != value:
                return False
        return self.reason is None or self.reason.casefold() in found.reason.casefold()


def walk(store: Queue, queue: str, hold: int = HOLD) -> Iterator[Found]:
    """Yield every parked item of `queue` once; those that the caller does not remove stay parked.

    Raises `ServerUnavailable`, `ProtocolError`, `ReservationLost` or `QueueFull`; nothing is lost then.
    """
    for part in store.parts():
        with closing(part):
            yield from _walk_part(part, queue, hold)


def _walk_part(part: Queue, queue: str, hold: int) -> Iterator[Found]:
    held: deque[Found] = deque()
    rotated: set[bytes] = set()
    free: JobQueue | None = None
    try:
        for _ in range(part.count(queue).parked):
            hand, free = free or part.parked(queue), None
            try:
                reservation = hand.reserve(0)
            except BaseException:
                hand.drop()
                raise
            if reservation is None:
                free = hand
                return
            found = Found(hand, reservation)
            held.append(found)
            # When others hold some of the items, the end of the queue comes before the end of the count.
            if _digest(found) not in rotated:
                yield found
            if found.gone:
                held.pop()
                free = hand
            elif len(held) >= hold:
                oldest = held.popleft()
                rotated.add(_digest(oldest))
                free = oldest.to_the_end()
    finally:
        if free is not None:
            free.drop()
        # What was first is let go last, so that it comes to the front again.
        for found in reversed(held):
            found.let_go()


def as_json(found: Found) -> dict[str, Any]:
    """Return what is known of an item, for a machine to read."""
    record, envelope = found.record, found.envelope
    content: dict[str, Any] = {
        "parked_at": None if record is None else record.parked_at,
        "job": None if envelope is None else envelope.job,
        "tenant": None if envelope is None else envelope.tenant,
        "id": None if envelope is None else envelope.id,
        "attempts": None if record is None else record.attempts,
        "reason": found.reason,
        "error": None if record is None else record.error,
        "sentry_event": None if record is None else record.sentry_event,
    }
    return content | text_or_base64(found.raw if record is None else record.body)


def text_or_base64(body: bytes) -> dict[str, str]:
    """Return `body` as text where it is UTF-8, else in base64, under a key that says which."""
    try:
        return {"body": body.decode("utf-8")}
    except UnicodeDecodeError:
        return {"body_b64": base64.b64encode(body).decode("ascii")}


def _digest(found: Found) -> bytes:
    return hashlib.sha256(found.raw).digest()
