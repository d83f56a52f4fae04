"""One queue: its items, its open reads, and the reads that wait for an item. No sockets here.

The order of every change is: first the journal, then memory. A change whose record cannot be written does
not happen (JournalError); only an open read that comes back does, since its connection is gone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from kestrel_stack.broker import records
from kestrel_stack.broker.config import QueueSettings
from kestrel_stack.broker.journal import Journal, JournalError
from kestrel_stack.broker.records import ADDX_OVERHEAD, Item, addx

log = logging.getLogger("kestrel.queue")

OPEN_READ_OVERHEAD = ADDX_OVERHEAD + 5
"""Bytes that an open read takes in a rewritten journal besides its data."""


class Waiter(Protocol):
    """A read that waits for an item."""

    def alive(self) -> bool:
        """Say whether somebody is still there to take an item."""

    def wake(self) -> None:
        """Take an item now, or answer that there is none (the queue is deleted)."""


class Queue:
    """Items in order, open reads by xid, waiting reads first come first served."""

    def __init__(self, name: str, settings: QueueSettings, journal: Journal, clock: Callable[[], int]):
        """``clock`` gives unix milliseconds."""
        self.name = name
        self.settings = settings
        self.journal = journal
        self.closed = False
        self.created_ms = clock()
        self._clock = clock
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._open: dict[int, Item] = {}
        self._open_bytes = 0
        self._last_xid = 0
        self._waiters: dict[Waiter, None] = {}
        self._serving = False
        self._age_ms = 0
        self.total_items = 0
        self.put_items = 0
        self.put_bytes = 0
        self.hits = 0
        self.misses = 0
        self.expired = 0
        self.discarded = 0
        self.transactions = 0
        self.canceled_transactions = 0
        self.flushes = 0

    def recover(self, siblings: Sequence[Path] = ()) -> int:
        """Load the journal; return how many reads were found open and put back at the head.

        ``siblings`` are the queue's files besides the current one.
        """
        state = self.journal.recover(self._clock(), siblings)
        self._items = state.items
        self._bytes = sum(len(item.data) for item in state.items)
        self._last_xid = state.last_xid
        # Descending, each to the head: the head then holds them as they were first opened.
        xids = sorted(state.open, reverse=True)
        if xids:
            self.journal.append_or_owe(b"".join(map(records.unremove, xids)))
        for xid in xids:
            self._items.appendleft(state.open[xid])
            self._bytes += len(state.open[xid].data)
        return len(xids)

    # What is in it

    @property
    def items(self) -> int:
        """Number of items queued, without open reads."""
        return len(self._items)

    @property
    def bytes(self) -> int:
        """Bytes of data queued, without open reads."""
        return self._bytes

    @property
    def waiters(self) -> int:
        """Number of reads that wait."""
        return len(self._waiters)

    @property
    def open_reads(self) -> int:
        """Number of items given out and not yet confirmed."""
        return len(self._open)

    @property
    def age_ms(self) -> int:
        """How long the item last given out had waited, in ms; 0 when the queue is empty (Kestrel's rule)."""
        return self._age_ms if self._items else 0

    def peek(self) -> Item | None:
        """Return the head without taking it."""
        self.drop_expired()
        return self._items[0] if self._items else None

    # Adding

    def add(self, data: bytes, expires_in_ms: int | None = None, *, expiry_ms: int = 0) -> bool:
        """Add an item and give it to whoever waits; False if the queue does not take it.

        It expires ``expires_in_ms`` from now, or at ``expiry_ms`` (unix ms, 0 never).
        """
        settings = self.settings
        if self.closed or (settings.max_item_size is not None and len(data) > settings.max_item_size):
            return False
        self.drop_expired()
        pushed_out = self._overfull_by()
        if pushed_out and not settings.discard_old_when_full:
            return False
        self._rewrite_if_due()
        now = self._clock()
        if expires_in_ms is not None:
            expiry_ms = now + expires_in_ms
        if settings.max_age is not None:
            latest = now + int(settings.max_age * 1000)
            expiry_ms = min(expiry_ms, latest) if expiry_ms else latest
        item = Item(now, expiry_ms, data)
        self.journal.append(records.remove(pushed_out) + addx(item))
        for _ in range(pushed_out):
            self._take_head()
        self.discarded += pushed_out
        self._items.append(item)
        self._bytes += len(data)
        self.total_items += 1
        self.put_items += 1
        self.put_bytes += len(data)
        self._serve_waiters()
        return True

    def _overfull_by(self) -> int:
        """Return how many items must leave before one more fits."""
        settings = self.settings
        count, size, leaving = len(self._items), self._bytes, 0
        while leaving < len(self._items) and (
            (settings.max_items is not None and count >= settings.max_items)
            or (settings.max_size is not None and size >= settings.max_size)
        ):
            size -= len(self._items[leaving].data)
            count -= 1
            leaving += 1
        return leaving

    # Taking

    def remove(self) -> Item | None:
        """Take the head for good; None if there is none."""
        self.drop_expired()
        if not self._items:
            return None
        self.journal.append(records.remove())
        item = self._give_out()
        self._rewrite_if_due()
        return item

    def open(self) -> tuple[int, Item] | None:
        """Give the head out under a new xid; it stays owed until confirmed or put back."""
        self.drop_expired()
        if not self._items:
            return None
        xid = self._next_xid()
        self.journal.append(records.open_read(xid))
        self._last_xid = xid
        item = self._give_out()
        self._open[xid] = item
        self._open_bytes += len(item.data)
        self.transactions += 1
        self._rewrite_if_due()
        return xid, item

    def confirm(self, xid: int) -> None:
        """Finish the open read ``xid`` for good."""
        if self.closed or xid not in self._open:
            return
        self.journal.append(records.confirm(xid))
        self._open_bytes -= len(self._open.pop(xid).data)

    def put_back_one(self, xid: int) -> None:
        """Put the open read ``xid`` back at the head."""
        self.put_back([xid])

    def put_back(self, xids: list[int]) -> None:
        """Put open reads back at the head, one after the other: the last given is the next to go out."""
        if self.closed:
            return
        xids = [xid for xid in xids if xid in self._open]
        if not xids:
            return
        self.journal.append_or_owe(b"".join(map(records.unremove, xids)))
        for xid in xids:
            item = self._open.pop(xid)
            self._open_bytes -= len(item.data)
            self._items.appendleft(item)
            self._bytes += len(item.data)
            self.canceled_transactions += 1
        self._serve_waiters()

    def _give_out(self) -> Item:
        item = self._take_head()
        self._age_ms = max(0, self._clock() - item.added_ms)
        return item

    def _take_head(self) -> Item:
        item = self._items.popleft()
        self._bytes -= len(item.data)
        return item

    def _next_xid(self) -> int:
        xid = self._last_xid
        while True:
            xid = xid + 1 if xid < (1 << 31) - 1 else -(1 << 31)
            if xid and xid not in self._open:
                return xid

    # Emptying

    def flush(self) -> None:
        """Drop every queued item; open reads stay open."""
        if self._items:
            self.journal.append(records.remove(len(self._items)))
            self._items.clear()
            self._bytes = 0
        self.flushes += 1

    def drop_expired(self, most: int | None = None) -> int:
        """Drop expired items from the head, at most so many if given, and return how many.

        One behind a live item stays until later.
        """
        if not self._items:
            return 0
        now = self._clock()
        age_ms = None if self.settings.max_age is None else int(self.settings.max_age * 1000)
        count = 0
        for item in self._items:
            expiry = item.expiry_ms
            if age_ms is not None:
                expiry = min(expiry, item.added_ms + age_ms) if expiry else item.added_ms + age_ms
            if not expiry or expiry > now or count == most:
                break
            count += 1
        if count:
            self.journal.append(records.remove(count))
            for _ in range(count):
                self._take_head()
            self.expired += count
        return count

    def delete(self) -> None:
        """End the queue and remove its files; who waits is answered that there is nothing."""
        self._end()
        self.journal.delete()

    def close(self) -> None:
        """End the queue; its files stay, synced. Reads still open return at the next start."""
        self._end()
        self.journal.close()

    def _end(self) -> None:
        self.closed = True
        self._items.clear()
        self._open.clear()
        self._bytes = self._open_bytes = 0
        for waiter in list(self._waiters):
            waiter.wake()
        self._waiters.clear()

    # Waiting

    def wait(self, waiter: Waiter) -> None:
        """Have ``waiter`` woken when an item is there, after those who came before it."""
        self._waiters[waiter] = None

    def stop_waiting(self, waiter: Waiter) -> None:
        """Forget ``waiter``; harmless if it does not wait."""
        self._waiters.pop(waiter, None)

    def _serve_waiters(self) -> None:
        if self._serving:
            return  # called from a wake(); the loop below goes on when that returns
        self._serving = True
        try:
            while self._waiters and self._head_is_live():
                waiter = next(iter(self._waiters))
                del self._waiters[waiter]
                if waiter.alive():
                    waiter.wake()
        finally:
            self._serving = False

    def _head_is_live(self) -> bool:
        try:
            return self.peek() is not None
        except JournalError as error:
            log.error("%s", error)
            return False

    # The journal's size

    def _rewrite_if_due(self) -> None:
        """Replace a journal that is mostly history by what is still owed."""
        size = self.journal.size
        if size < self.settings.default_journal_size:
            return
        live = (
            self._bytes
            + self._open_bytes
            + ADDX_OVERHEAD * len(self._items)
            + OPEN_READ_OVERHEAD * len(self._open)
        )
        # With items queued, write at most a third of what has been written since the last rewrite.
        least_gain = size * 3 // 4 if self._items else self.settings.default_journal_size // 4
        if size - live < least_gain:
            return
        opened = [addx(self._open[xid]) + records.open_read(xid) for xid in sorted(self._open, reverse=True)]
        try:
            self.journal.rewrite(b"".join([*opened, *map(addx, self._items)]))
        except JournalError as error:
            log.error("%s; the old file stays in use", error)
