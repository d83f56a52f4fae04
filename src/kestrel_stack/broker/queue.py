"""One queue: its items, its open reads, and the reads that wait for an item. No sockets here.

The order of every change is: first the journal, then memory. A change whose record cannot be written does
not happen (JournalError); only what has happened elsewhere does: an open read that comes back since its
connection is gone, an expired item that is in another queue now.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from kestrel_stack.broker import compaction, records
from kestrel_stack.broker.backlog import Backlog
from kestrel_stack.broker.compaction import OPEN_READ_OVERHEAD, Compaction
from kestrel_stack.broker.config import QueueSettings
from kestrel_stack.broker.journal import Journal, JournalError
from kestrel_stack.broker.records import ADDX_OVERHEAD, Item, addx, item_of, times_of
from kestrel_stack.broker.replay import Replayed
from kestrel_stack.broker.segments import Segment

log = logging.getLogger("kestrel.queue")

NEVER = 1 << 62
"""A number that no item reaches, a size that no file has."""

NO_EXPIRY = bytes(8)
"""The expiry in a record that has none."""

FIRST_RETRY_MS, LAST_RETRY_MS = 1_000, 300_000
"""How long to wait before a new file is tried again, growing from failure to failure."""

REWRITTEN_AT_ONCE = 1 << 20
"""Bytes of open reads up to which an empty queue's file is rewritten at once; more goes in the background."""

MOVED_AT_ONCE = 500
"""Expired items that go to another queue before they are taken from this one."""


class Waiter(Protocol):
    """A read that waits for an item."""

    def alive(self) -> bool:
        """Say whether somebody is still there to take an item."""

    def wake(self) -> None:
        """Take an item now, or answer that there is none (the queue is deleted)."""


class Queue:
    """Items in order, open reads by xid, waiting reads first come first served."""

    def __init__(
        self,
        name: str,
        settings: QueueSettings,
        journal: Journal,
        clock: Callable[[], int],
        find: Callable[[str], Queue | None] = lambda name: None,
    ):
        """``clock`` gives unix milliseconds; ``find`` the queue that expired items go to, by its name."""
        self.name = name
        self.journal = journal
        self.closed = False
        self.created_ms = clock()
        self._clock = clock
        self._find = find
        self._backlog = Backlog(settings.max_memory_size, self.created_ms)
        self._open: dict[int, tuple[int, bytes]] = {}
        self._open_bytes = 0
        self._last_xid = 0
        self._waiters: dict[Waiter, None] = {}
        self._serving = False
        self._sweeping = False
        self._stuck = False
        self._last_added_ms = 0
        self._keeps = True
        self._unjournalled_from = NEVER
        self._drop_at = NEVER
        self._retry_ms = 0
        self._retry_delay_ms = 0
        self.settings = settings
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

    @property
    def settings(self) -> QueueSettings:
        """Its settings; others may be put here at any time and hold from then on.

        Only ``keep_journal`` is what it was when the queue was recovered.
        """
        return self._settings

    @settings.setter
    def settings(self, settings: QueueSettings) -> None:
        self._settings = settings
        self._max_age_ms = None if settings.max_age is None else int(settings.max_age * 1000)
        self._backlog.set_limit(settings.max_memory_size)
        self._file_size = min(settings.max_memory_size, settings.default_journal_size)

    def recover(self, siblings: Sequence[Path] = ()) -> int:
        """Load the journal; return how many reads were found open and put back at the head.

        ``siblings`` are the queue's files besides the current one. With keep_journal off a journal that is
        there is read all the same, since its items are still owed; they are journalled until they are gone,
        and then the files go. (Kestrel neither reads nor removes them: the items are back when keep_journal
        is, perhaps long after.)
        """
        state = Replayed(self._backlog)
        self.journal.recover(state, siblings, create=self._settings.keep_journal)
        self._last_xid = state.last_xid
        # Kestrel counts what it replays as added.
        self.total_items = self.put_items = state.added
        self.put_bytes = state.added_bytes
        # Descending, each to the head: the head then holds them as they were first opened.
        xids = sorted(state.open, reverse=True)
        if xids:
            self.journal.append_or_owe(b"".join(map(records.unremove, xids)))
        for xid in xids:
            self._backlog.put_back(*state.open[xid])
        self._plan_next_drop()
        self._follow_keep_journal()
        return len(xids)

    # What is in it

    @property
    def items(self) -> int:
        """Number of items queued, without open reads."""
        return self._backlog.items

    @property
    def bytes(self) -> int:
        """Bytes of data queued, without open reads."""
        return self._backlog.bytes

    @property
    def mem_items(self) -> int:
        """Number of queued items in memory; the others are only in the journal."""
        return self._backlog.mem_items

    @property
    def mem_bytes(self) -> int:
        """Bytes of data of the queued items in memory."""
        return self._backlog.mem_bytes

    @property
    def in_read_behind(self) -> bool:
        """Say whether some queued items are only in the journal."""
        return self._backlog.reader is not None

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
        """How long ago the item last given out was added, in ms; 0 while no bytes are queued.

        So it grows while nobody reads, and until the first read it is the time since 1970.
        Source: Kestrel 2.4.1's code (its guide describes another number).
        """
        return max(0, self._clock() - self._last_added_ms) if self._backlog.bytes else 0

    def peek(self) -> Item | None:
        """Return the head without taking it."""
        record = self._head()
        return None if record is None else item_of(record)

    def _head(self) -> bytes | None:
        """Return the record of the head that may be given out, or None; JournalError if it cannot be read."""
        backlog = self._backlog
        if not backlog.items:
            return None
        record = backlog.head()
        if self._max_age_ms is None and record[13:21] == NO_EXPIRY:
            return record
        if self._is_expired(record):
            self.drop_expired()
            if not backlog.items or self._is_expired(record := backlog.head()):
                return None
        return record

    # Adding

    def add(self, data: bytes, expires_in_ms: int | None = None, *, expiry_ms: int = 0) -> bool:
        """Add an item and give it to whoever waits; False if the queue does not take it.

        It expires ``expires_in_ms`` from now, or at ``expiry_ms`` (unix ms, 0 never).
        """
        settings = self._settings
        if self.closed or (settings.max_item_size is not None and len(data) > settings.max_item_size):
            return False
        backlog = self._backlog
        pushed_out: int | None = 0
        if backlog.items:
            self._head()
            if settings.max_items is not None or settings.max_size is not None:
                pushed_out = self._make_room()
                if pushed_out is None:
                    return False
        journal = self.journal
        if self._keeps is not settings.keep_journal:
            self._follow_keep_journal()
        if self._keeps and self._upkeep_is_due():
            self._keep_small()
        now = self._clock()
        if expires_in_ms is not None:
            expiry_ms = now + expires_in_ms
        if self._max_age_ms is not None:
            latest = now + self._max_age_ms
            expiry_ms = min(expiry_ms, latest) if expiry_ms else latest
        record = addx(now, expiry_ms, data)
        if self._keeps:
            if backlog.reader is None and backlog.memory_is_full:
                self._start_read_behind()
            journal.append(records.remove(pushed_out) + record if pushed_out else record)
        elif pushed_out:
            self._log_removed(pushed_out)
        for _ in range(pushed_out):
            backlog.take()
        self.discarded += pushed_out
        backlog.append(record)
        self.total_items += 1
        self.put_items += 1
        self.put_bytes += len(data)
        if self._waiters:
            self._serve_waiters()
        return True

    def _make_room(self) -> int | None:
        """Return how many items must leave before one more fits, all in memory; None if the queue is full."""
        while True:
            leaving, enough = self._overfull_by()
            # What is at the head while this queue's items move elsewhere is on its way, not to be discarded.
            if leaving and (self._sweeping or not self._settings.discard_old_when_full):
                return None
            if enough:
                return leaving
            # The limits are much lower than they were: more must go than memory holds.
            self._log_removed(leaving)
            for _ in range(leaving):
                self._backlog.take()
            self.discarded += leaving

    def _overfull_by(self) -> tuple[int, bool]:
        """Return how many of the items in memory must leave before one more fits, and if that is enough."""
        settings, backlog = self._settings, self._backlog
        max_items = NEVER if settings.max_items is None else settings.max_items
        max_size = NEVER if settings.max_size is None else settings.max_size
        count, size = backlog.items, backlog.bytes
        if count < max_items and size < max_size:
            return 0, True
        backlog.head()
        for leaving, record in enumerate(backlog.in_memory(), 1):
            size -= len(record) - ADDX_OVERHEAD
            if count - leaving < max_items and size < max_size:
                return leaving, True
        return backlog.mem_items, False

    def _start_read_behind(self) -> None:
        backlog = self._backlog
        try:
            backlog.read_behind(self.journal.current, self.journal.size)
        except OSError as error:
            raise JournalError(f"{self.journal.path}: cannot read it: {error.strerror}") from error
        log.info("%s: memory is full with %d bytes; the next items are read later", self.name, backlog.bytes)

    # Taking

    def remove(self) -> Item | None:
        """Take the head for good; None if there is none."""
        if self._head() is None:
            return None
        if self._keeps:
            self.journal.append(b"\x01")
        else:
            self._log_removed(1)
        _, record = self._backlog.take()
        item = item_of(record)
        self._has_given_out(item)
        return item

    def open(self) -> tuple[int, Item] | None:
        """Give the head out under a new xid; it stays owed until confirmed or put back."""
        if self._head() is None:
            return None
        xid = self._next_xid()
        if self._keeps or self._head_is_journalled():
            self.journal.append(records.open_read(xid))
        return self._open_head(xid)

    def confirm_and_open(self, confirmed: int) -> tuple[int, Item] | None:
        """Finish the open read ``confirmed`` and give the head out; JournalError: neither has happened.

        One write to the journal instead of two: a worker asks for both with each job.
        """
        there = self._keeps and confirmed in self._open and self._backlog.mem_items
        if not there or self._head() is None:
            self.confirm(confirmed)
            return self.open()
        xid = self._next_xid()
        self.journal.append(records.confirm_and_open(confirmed, xid))
        _, record = self._open.pop(confirmed)
        self._open_bytes -= len(record) - ADDX_OVERHEAD
        return self._open_head(xid)

    def _open_head(self, xid: int) -> tuple[int, Item]:
        """Give the head out under ``xid``, which the journal knows of."""
        self._last_xid = xid
        self._open[xid] = _, record = self._backlog.take()
        item = item_of(record)
        self._open_bytes += len(item.data)
        self.transactions += 1
        self._has_given_out(item)
        return xid, item

    def confirm(self, xid: int) -> None:
        """Finish the open read ``xid`` for good."""
        if self.closed or xid not in self._open:
            return
        if self._keeps or self._open[xid][0] < self._unjournalled_from:
            self.journal.append(records.confirm(xid))
        _, record = self._open.pop(xid)
        self._open_bytes -= len(record) - ADDX_OVERHEAD
        if not self._keeps:
            self._end_journal_if_spent()

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
        journalled = [xid for xid in xids if self._open[xid][0] < self._unjournalled_from]
        if journalled:
            self.journal.append_or_owe(b"".join(map(records.unremove, journalled)))
        for xid in xids:
            number, record = self._open.pop(xid)
            self._open_bytes -= len(record) - ADDX_OVERHEAD
            self._backlog.put_back(number, record)
            self.canceled_transactions += 1
        self._serve_waiters()

    def _has_given_out(self, item: Item) -> None:
        self._last_added_ms = item.added_ms
        if not self._keeps:
            self._end_journal_if_spent()
        elif self._upkeep_is_due():
            self._keep_small()

    def _next_xid(self) -> int:
        xid = self._last_xid
        while True:
            xid = xid + 1 if xid < (1 << 31) - 1 else -(1 << 31)
            if xid and xid not in self._open:
                return xid

    # Emptying

    def flush(self) -> None:
        """Drop every queued item; open reads stay open."""
        if self._backlog.items:
            self._log_removed(self._backlog.items)
            self._backlog.clear()
            if not self._keeps:
                self._end_journal_if_spent()
        self.flushes += 1

    def drop_expired(self, most: int | None = None) -> int:
        """Drop expired items from the head, at most so many if given, and return how many.

        One behind a live item stays until later. With expire_to_queue they are added to that queue first,
        with a new add time and no expiry but what its own max_age gives; what it does not take stays here,
        at the head, and nothing behind it is given out until it is taken.
        """
        backlog = self._backlog
        dropped = 0
        if self._sweeping:
            return 0
        while backlog.items and (most is None or dropped < most):
            backlog.head()
            expired = self._expired_in_memory(None if most is None else most - dropped)
            if not expired:
                break
            gone = self._expire(expired)
            dropped += gone
            if gone < len(expired):
                self._complain_of_stuck_items()
                break
            self._stuck = False
        return dropped

    def _expired_in_memory(self, most: int | None) -> list[bytes]:
        """Return the expired items at the head, as many as are moved at once."""
        limit = MOVED_AT_ONCE if self._settings.expire_to_queue else NEVER
        found: list[bytes] = []
        for record in self._backlog.in_memory():
            if len(found) >= limit or len(found) == most or not self._is_expired(record):
                break
            found.append(record)
        return found

    def _is_expired(self, record: bytes) -> bool:
        added, expiry = times_of(record)
        if self._max_age_ms is not None:
            latest = added + self._max_age_ms
            expiry = min(expiry, latest) if expiry else latest
        return bool(expiry) and expiry <= self._clock()

    def _expire(self, expired: list[bytes]) -> int:
        """Take these items from the head, or as many as the queue takes that they go to; return how many."""
        if self._settings.expire_to_queue is None:
            self._log_removed(len(expired))
            gone = len(expired)
        else:
            gone = self._move(expired, self._settings.expire_to_queue)
            if gone:
                # They are in the other queue: whatever happens, they may not be moved a second time.
                self._log_removed(gone, owe=True)
        for _ in range(gone):
            self._backlog.take()
        self.expired += gone
        if gone and not self._keeps:
            self._end_journal_if_spent()
        return gone

    def _move(self, expired: list[bytes], name: str) -> int:
        target = self._find(name)
        if target is None or target is self:
            return 0
        self._sweeping = True
        moved = 0
        try:
            for record in expired:
                if not target.add(record[ADDX_OVERHEAD:]):
                    break
                moved += 1
        except JournalError as error:
            log.error("%s", error)
        finally:
            self._sweeping = False
        return moved

    def _complain_of_stuck_items(self) -> None:
        if not self._stuck:
            log.error(
                "%s: %s does not take its expired items; they wait at the head, and all others behind them",
                self.name,
                self._settings.expire_to_queue,
            )
        self._stuck = True

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
        self._backlog.clear()
        self._open.clear()
        self._open_bytes = 0
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
            return self._head() is not None
        except JournalError as error:
            log.error("%s", error)
            return False

    # Without a journal

    def _follow_keep_journal(self) -> None:
        """With keep_journal off, journal no item added from now on, only what happens to those before."""
        # During read-behind the next items must go to the end of the journal, as they are read from there.
        if self._keeps and not self._settings.keep_journal and self._backlog.reader is None:
            self._keeps = False
            self._unjournalled_from = self._backlog.end
            self._end_journal_if_spent()

    def _head_is_journalled(self) -> bool:
        return next(self._backlog.numbers(1)) < self._unjournalled_from

    def _log_removed(self, count: int, *, owe: bool = False) -> None:
        """Journal that the first ``count`` items are gone; JournalError if not, or with ``owe`` later."""
        if not self._keeps:
            count = sum(number < self._unjournalled_from for number in self._backlog.numbers(count))
        if count and owe:
            self.journal.append_or_owe(records.remove(count))
        elif count:
            self.journal.append(records.remove(count))

    def _end_journal_if_spent(self) -> None:
        """Remove the files once none of the items in them is owed any more."""
        limit = self._unjournalled_from
        if not self.journal.is_open or self._backlog.first < limit:
            return
        held: Iterator[int] = (number for number, _ in (*self._open.values(), *self._backlog.returned))
        if any(number < limit for number in held):
            return
        try:
            self.journal.delete()
        except JournalError as error:
            log.error("%s", error)

    # The journal's size

    def _upkeep_is_due(self) -> bool:
        backlog, journal = self._backlog, self.journal
        return (
            journal.size >= self._file_size
            or backlog.first >= self._drop_at
            or (bool(journal.archives) and not backlog.items)
        )

    def _keep_small(self) -> None:
        """Begin a new file, or replace old ones, if due; what fails is logged and tried again later."""
        if self._retry_ms and self._clock() < self._retry_ms:
            return
        journal, backlog = self.journal, self._backlog
        try:
            if not backlog.items and journal.total_size() >= self._settings.default_journal_size:
                self._keep_only_open_reads()
            elif journal.size > self._file_size:
                self._rotate()
            if backlog.first >= self._drop_at and not journal.is_compacting:
                self._compact()
        except (JournalError, OSError) as error:
            log.error("%s", error)
            self._retry_later()

    def _retry_later(self) -> None:
        self._retry_delay_ms = min(2 * self._retry_delay_ms or FIRST_RETRY_MS, LAST_RETRY_MS)
        self._retry_ms = self._clock() + self._retry_delay_ms

    def _keep_only_open_reads(self) -> None:
        """Replace what is only history: the queue is empty, so nothing but its open reads is owed."""
        journal = self.journal
        live = self._open_bytes + OPEN_READ_OVERHEAD * len(self._open)
        gain = journal.total_size() - live
        if gain < self._settings.default_journal_size // 4 or journal.is_compacting:
            return
        if not journal.archives and live <= REWRITTEN_AT_ONCE:
            held = sorted(self._open.items(), reverse=True)
            journal.rewrite(b"".join(record + records.open_read(xid) for xid, (_, record) in held))
        elif gain > live:
            self._rotate()

    def _rotate(self) -> None:
        if self.journal.size:
            self.journal.rotate(self._backlog.boundary(self._open))
        self._drop_at = 0

    def _compact(self) -> None:
        """Replace the oldest archives, if their items are gone or if nearly all in the journal is history."""
        archives, backlog = self.journal.archives, self._backlog
        count = self._spent() or self._outgrown()
        self._plan_next_drop()
        if not count:
            return
        old, boundary = archives[:count], archives[count - 1].boundary
        assert boundary is not None
        pieces = None
        if not boundary.is_empty:
            pieces = compaction.content(boundary, backlog, self._open)
        elif old[-1].next is not None:
            self._move_reader(old, boundary.end, old[-1].next)

        def install(job: Compaction, segment: Segment) -> None:
            if self.closed:
                return
            after = segment.next
            assert after is not None
            if not self._move_reader(old, boundary.end, after):
                self._move_reader_into(job, segment)

        self._drop_at = NEVER  # until this is done
        self.journal.compact(count, pieces, install, self._compacted)

    def _compacted(self, succeeded: bool) -> None:
        if succeeded:
            self._retry_ms = self._retry_delay_ms = 0
        else:
            self._retry_later()
        self._drop_at = 0  # look again with the next change

    def _spent(self) -> int:
        """Return how many of the oldest archives to replace, as (nearly) all their items are gone."""
        archives, backlog = self.journal.archives, self._backlog
        best = best_empty = 0
        for count, archive in enumerate(archives, 1):
            boundary = archive.boundary
            if boundary is None or not self._may_end(count):
                continue
            if boundary.end > backlog.first:
                break
            best = count
            if boundary.is_empty:
                best_empty = count
        if best > best_empty and self._is_worth_it(best):
            return best
        return best_empty

    def _outgrown(self) -> int:
        """Return the number of archives if they are to be replaced although there are live items in them.

        That is so when reads are opened and put back again and again: that leaves records, but takes no
        item away. What is written then is at most a half of what it replaces.
        """
        journal, backlog = self.journal, self._backlog
        count, total = len(journal.archives), journal.total_size()
        live = backlog.bytes + ADDX_OVERHEAD * backlog.items
        live += self._open_bytes + OPEN_READ_OVERHEAD * len(self._open)
        outgrown = total > 4 * (live + self._file_size) or (
            total > self._settings.max_journal_size and total > 2 * live + self._file_size
        )
        if outgrown and count and journal.archives[-1].boundary is not None and self._is_worth_it(count):
            return count
        return 0

    def _may_end(self, count: int) -> bool:
        """Say whether no later archive has the same number in its name, as foreign ones may."""
        archives = self.journal.archives
        return count == len(archives) or archives[count].stamp != archives[count - 1].stamp

    def _is_worth_it(self, count: int) -> bool:
        archives = self.journal.archives
        boundary = archives[count - 1].boundary
        assert boundary is not None
        needed = compaction.size_of(boundary, self._backlog, self._open)
        return sum(archive.size for archive in archives[:count]) > 2 * needed

    def _plan_next_drop(self) -> None:
        """Look again when the last item of one more archive has been given out."""
        first = self._backlog.first
        ends = (archive.boundary.end for archive in self.journal.archives if archive.boundary is not None)
        self._drop_at = next((end for end in ends if end > first), NEVER)

    def _move_reader(self, old: list[Segment], end: int, after: Segment) -> bool:
        """Have the reader go on after these files if it need not read them; False if it must."""
        reader = self._backlog.reader
        if reader is None or reader.segment not in old:
            return True
        if reader.number < end:
            return False
        reader.move_to(after, 0)
        return True

    def _move_reader_into(self, job: Compaction, segment: Segment) -> None:
        reader = self._backlog.reader
        assert reader is not None
        offset, number = job.place_of(reader.number)
        skipped = reader.number - number
        reader.move_to(segment, offset)
        reader.number = number
        for _ in range(skipped):
            reader.next_record()
