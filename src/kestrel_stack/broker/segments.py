"""The files of one journal as a chain, and a reader that follows it.

A queue's journal is one long row of records, cut into files: the archives, oldest first, and the current
file. Items are numbered in the order in which the row adds them, from 0 at the start of the process.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from pathlib import Path

from kestrel_stack.broker.records import BrokenRecordError, Scanner


class JournalError(Exception):
    """A journal cannot be written or read now; what was asked for has not happened."""


class Boundary:
    """What the queue held at the end of a file, by the items' numbers.

    Never given out: ``first`` up to, not including, ``end``. Before them at the head: ``returned``, in order.
    Given out: ``open``, as xid, number, xid, number... in the order in which they were opened.
    """

    __slots__ = ("end", "first", "open", "returned")

    def __init__(self, first: int, end: int, open_reads: Iterable[tuple[int, int]], returned: Iterable[int]):
        self.first = first
        self.end = end
        self.open = array("q", [number for pair in open_reads for number in pair])
        self.returned = array("q", returned)

    @property
    def is_empty(self) -> bool:
        """Say whether the queue held nothing, so that the files up to here matter to no later one."""
        return self.first == self.end and not self.open and not self.returned


class Segment:
    """One file: ``size`` is the bytes of whole records in it, ``next`` the file after it."""

    __slots__ = ("boundary", "next", "path", "size", "stamp", "synced")

    def __init__(self, path: Path, stamp: int = 0):
        """``stamp`` is the number in an archive's name."""
        self.path = path
        self.stamp = stamp
        self.size = 0
        self.boundary: Boundary | None = None
        """None where it is not known: then the files up to here go only together with later ones."""
        self.next: Segment | None = None
        self.synced = False


class Reader:
    """Reads the items of a chain one after the other, from a place in it."""

    def __init__(self, segment: Segment, offset: int, number: int, legacy_ms: int = 0):
        """Begin at ``offset``, where the item ``number`` is the next; OSError if the file cannot be read."""
        self.number = number
        self._legacy_ms = legacy_ms
        self._fd = -1
        self.segment = segment
        self.move_to(segment, offset)

    def move_to(self, segment: Segment, offset: int) -> None:
        """Go on at another place, where the item with the same number comes next; OSError as above."""
        fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        self.close()
        self._fd = fd
        self.segment = segment
        self._scan_from(offset)

    def _scan_from(self, offset: int) -> None:
        self._scanner = Scanner(self._fd, self.segment.size, offset, self._legacy_ms)
        self._added = self._scanner.read(only_added=True)

    @property
    def position(self) -> int:
        """Offset in the file where reading goes on."""
        return self._scanner.position

    def next_record(self) -> bytes:
        """Return the record of the next item; JournalError if it cannot be read (the next call retries)."""
        while True:
            self._scanner.limit = self.segment.size
            try:
                if next(self._added, None):
                    self.number += 1
                    return self._scanner.record()
                if self.segment.next is None:
                    self._scan_from(self.position)
                    raise JournalError(f"{self.segment.path}: ends before the last item that is queued")
                self.move_to(self.segment.next, 0)
            except BrokenRecordError as error:
                self._scan_from(self.position)
                raise JournalError(f"{self.segment.path}: {error}") from error
            except OSError as error:
                self._scan_from(self.position)
                raise JournalError(f"{self.segment.path}: cannot read it: {error.strerror}") from error

    def close(self) -> None:
        """Let the file go; harmless if it is closed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
