"""The items of one queue that are not given out: the head in memory, the rest perhaps only in the journal.

Kept apart are items that came back (at the head, last come first) and those never given out, which leave in
the order of their numbers: so a range of numbers says all about the latter, in memory or not.

Read-behind: from ``limit`` bytes of data on, new items are only counted, and a reader follows the journal
to bring them into memory as others leave it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain, islice

from kestrel_stack.broker.records import ADDX_OVERHEAD
from kestrel_stack.broker.segments import Boundary, JournalError, Reader, Segment

log = logging.getLogger("kestrel.queue")

MEMORY_PER_ITEM = 64
"""Bytes that an item takes besides its data: so many items fill memory as their data may, too."""

READ_AT_ONCE = 64
"""Items brought into memory per item that leaves it, at most; more only while memory has none."""

MOST_REMEMBERED = 20_000
"""Items given out, or come back, at the end of a file that are remembered one by one."""


class Backlog:
    """The queued items, as ADDX records, in order."""

    __slots__ = (
        *("_complained", "_most_items", "bytes", "end", "first", "fresh", "legacy_ms", "limit", "mem_bytes"),
        *("reader", "returned"),
    )

    def __init__(self, limit: int, legacy_ms: int = 0):
        """``limit`` is bytes of data in memory; ``legacy_ms`` the add time of items in the oldest format."""
        self.legacy_ms = legacy_ms
        self.returned: deque[tuple[int, bytes]] = deque()
        self.fresh: deque[bytes] = deque()
        self.first = 0
        """Number of the first item never given out."""
        self.end = 0
        """Number of the next item that is added."""
        self.bytes = 0
        self.mem_bytes = 0
        self.reader: Reader | None = None
        """Follows the journal during read-behind; its next item is the first that is not in memory."""
        self._complained = False
        self.set_limit(limit)

    def set_limit(self, limit: int) -> None:
        """Take another limit; items over it leave memory only by being taken."""
        self.limit = limit
        self._most_items = limit // MEMORY_PER_ITEM + 16

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.returned) + self.end - self.first

    @property
    def mem_items(self) -> int:
        """Number of items in memory."""
        return len(self.returned) + len(self.fresh)

    @property
    def memory_is_full(self) -> bool:
        """Say whether the next item belongs into the journal only."""
        return self.bytes >= self.limit or len(self.fresh) >= self._most_items

    def append(self, record: bytes) -> None:
        """Add an item at the end; during read-behind it must be in the journal."""
        size = len(record) - ADDX_OVERHEAD
        if self.reader is None:
            self.fresh.append(record)
            self.mem_bytes += size
        self.bytes += size
        self.end += 1

    def append_unread(self, size: int) -> None:
        """Add an item of ``size`` bytes that the journal has, during read-behind."""
        self.bytes += size
        self.end += 1

    def read_behind(self, segment: Segment, offset: int) -> None:
        """Leave the items to come in the journal, from this place on; OSError if it cannot be read."""
        self.reader = Reader(segment, offset, self.end, self.legacy_ms)

    def head(self) -> bytes:
        """Return the record of the head, there must be one; JournalError if it cannot be read now."""
        if self.returned:
            return self.returned[0][1]
        if not self.fresh:
            self._read(1)
        return self.fresh[0]

    def take(self) -> tuple[int, bytes]:
        """Take the head, which ``head`` has just returned; return its number and record."""
        if self.returned:
            number, record = self.returned.popleft()
        else:
            number, record = self.first, self.fresh.popleft()
            self.first += 1
        size = len(record) - ADDX_OVERHEAD
        self.bytes -= size
        self.mem_bytes -= size
        if self.reader is not None:
            try:
                self._read(READ_AT_ONCE)
            except JournalError as error:
                # Nothing is lost: it is tried again with every read, and told to who needs the item.
                if not self._complained:
                    log.error("%s; the items that are not in memory wait", error)
                    self._complained = True
        return number, record

    def _read(self, most: int) -> None:
        reader = self.reader
        if reader is None:
            raise JournalError("the queue counts an item that it does not have")
        while reader.number < self.end:
            full = self.mem_bytes >= self.limit or len(self.fresh) >= self._most_items
            if self.fresh and (full or most <= 0):
                return
            record = reader.next_record()
            self.fresh.append(record)
            self.mem_bytes += len(record) - ADDX_OVERHEAD
            self._complained = False
            most -= 1
        reader.close()
        self.reader = None

    def put_back(self, number: int, record: bytes) -> None:
        """Put an item that was taken back at the head."""
        self.returned.appendleft((number, record))
        size = len(record) - ADDX_OVERHEAD
        self.bytes += size
        self.mem_bytes += size

    def in_memory(self) -> Iterator[bytes]:
        """Yield the records in memory, from the head on."""
        return chain((record for _, record in self.returned), self.fresh)

    def numbers(self, count: int) -> Iterator[int]:
        """Yield the numbers of the first ``count`` items."""
        return islice(chain((number for number, _ in self.returned), range(self.first, self.end)), count)

    def clear(self) -> None:
        """Drop every item."""
        self.returned.clear()
        self.fresh.clear()
        self.first = self.end
        self.bytes = self.mem_bytes = 0
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    def boundary(self, open_reads: Mapping[int, tuple[int, bytes]]) -> Boundary | None:
        """Return what there is now, or None if that is too much to remember for every file.

        ``open_reads`` gives number and record by xid.
        """
        if len(open_reads) + len(self.returned) > MOST_REMEMBERED:
            return None
        opened = ((xid, number) for xid, (number, _) in open_reads.items())
        return Boundary(self.first, self.end, opened, (number for number, _ in self.returned))
