"""The records of a journal: how they are written, and how a file of them is read a window at a time.

A journal is a bare row of records without header or checksum. The first byte is the opcode; integers
are little-endian and signed. Opcodes 0, 3, 4, 7 and 8 are read but never written. Source: observed on
Kestrel 2.4.1 (its own description of the format differs from what it writes).

A queued item is kept in memory as its ADDX record, one bytes object: that takes the least memory, and it is
what a new file needs.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator

ADD = 0
REMOVE = 1
ADDX = 2
REMOVE_TENTATIVE = 3
SAVE_XID = 4
UNREMOVE = 5
CONFIRM_REMOVE = 6
ADD_XID = 7
CONTINUE = 8
REMOVE_TENTATIVE_XID = 9

_I32 = struct.Struct("<i")
_OP_XID = struct.Struct("<Bi")
_TWO_OP_XID = struct.Struct("<BiBi")
_ADDX_HEAD = struct.Struct("<Biqq")
_TIMES = struct.Struct("<qq")

ADDX_OVERHEAD = _ADDX_HEAD.size
"""Bytes that an ADDX record is longer than its data."""

LONGEST_HEAD = 25
"""Bytes of the longest record without its data: opcode, xid, size, two times."""

WINDOW = 128 * 1024
"""Bytes that are read from a file at once; a longer record is read whole."""

_NOTHING_ADDED = re.compile(rb"(?:[\x01\x03]++|[\x04\x05\x06\x09].{4})++", re.DOTALL)
"""A row of records that add nothing: a file may hold a million of them one after the other."""


class Item:
    """One queued item: data, the time it was added, and when it expires (unix ms, 0 = never)."""

    __slots__ = ("added_ms", "data", "expiry_ms")

    def __init__(self, added_ms: int, expiry_ms: int, data: bytes):
        self.added_ms = added_ms
        self.expiry_ms = expiry_ms
        self.data = data


def item_of(record: bytes) -> Item:
    """Return the item of an ADDX record."""
    _, _, added_ms, expiry_ms = _ADDX_HEAD.unpack_from(record)
    return Item(added_ms, expiry_ms, record[ADDX_OVERHEAD:])


def times_of(record: bytes) -> tuple[int, int]:
    """Return when the item of an ADDX record was added and when it expires (unix ms, 0 = never)."""
    return _TIMES.unpack_from(record, 5)


def addx(added_ms: int, expiry_ms: int, data: bytes) -> bytes:
    """Return the record of an item put at the end of the queue."""
    return _ADDX_HEAD.pack(ADDX, len(data) + 16, added_ms, expiry_ms) + data


def remove(count: int = 1) -> bytes:
    """Return the records of ``count`` items taken from the head for good."""
    return b"\x01" * count


def open_read(xid: int) -> bytes:
    """Return the record of the head being given out under ``xid``."""
    return _OP_XID.pack(REMOVE_TENTATIVE_XID, xid)


def unremove(xid: int) -> bytes:
    """Return the record of the open read ``xid`` put back at the head."""
    return _OP_XID.pack(UNREMOVE, xid)


def confirm(xid: int) -> bytes:
    """Return the record of the open read ``xid`` finished for good."""
    return _OP_XID.pack(CONFIRM_REMOVE, xid)


def confirm_and_open(confirmed: int, opened: int) -> bytes:
    """Return the records of both, in this order."""
    return _TWO_OP_XID.pack(CONFIRM_REMOVE, confirmed, REMOVE_TENTATIVE_XID, opened)


class BrokenRecordError(Exception):
    """A file stops making sense: ``offset`` is that of the first bad record, ``reason`` says why."""

    def __init__(self, offset: int, reason: str):
        super().__init__(f"{reason} at byte {offset}")
        self.offset = offset
        self.reason = reason


class Scanner:
    """Reads the records of an open file in order, holding one window of it in memory."""

    __slots__ = ("_base", "_fd", "_legacy_ms", "_start", "_stop", "_window", "data_size", "limit", "opcode")

    def __init__(self, fd: int, limit: int, start: int = 0, legacy_ms: int = 0):
        """Read from ``start`` up to ``limit``, which may be raised while the file grows.

        ``legacy_ms`` is the add time of items in the oldest format, which has none.
        """
        self._fd = fd
        self.limit = limit
        self._legacy_ms = legacy_ms
        self._base = start
        self._window = b""
        self._start = self._stop = 0
        self.opcode = 0
        self.data_size = 0
        """Bytes of data of the record last read, if it adds an item."""

    @property
    def position(self) -> int:
        """Offset in the file of the next record."""
        return self._base + self._stop

    def record(self) -> bytes:
        """Return the ADDX record of the item that the record last read adds."""
        if self.opcode == ADDX:
            return self._window[self._start : self._stop]
        body = self._window[self._stop - self.data_size - (4 if self.opcode == ADD else 16) : self._stop]
        if self.opcode == ADD:
            return addx(self._legacy_ms, _I32.unpack_from(body)[0] * 1000, body[4:])
        return addx(*_TIMES.unpack_from(body), body[16:])

    def read(self, *, only_added: bool = False) -> Iterator[tuple[int, int]]:
        """Yield opcode and xid (0 if it has none) of each record; BrokenRecordError where it breaks off.

        ``only_added`` leaves out what adds no item.
        """
        while True:
            at = self._stop
            left = len(self._window) - at
            if left < LONGEST_HEAD and self._base + len(self._window) < self.limit:
                self._fill(LONGEST_HEAD)
                at, left = 0, len(self._window)
            if not left:
                return
            window = self._window
            opcode = window[at]
            xid = 0
            if opcode == ADDX:
                self._block(at, at + 1, 16)
            elif only_added and (skipped := _NOTHING_ADDED.match(window, at)):
                self._stop = skipped.end()
                continue
            elif opcode in (REMOVE, REMOVE_TENTATIVE):
                self._start, self._stop = at, at + 1
            elif opcode in (REMOVE_TENTATIVE_XID, UNREMOVE, CONFIRM_REMOVE, SAVE_XID):
                if left < 5:
                    raise BrokenRecordError(self._base + at, "the record is cut short")
                (xid,) = _I32.unpack_from(window, at + 1)
                self._start, self._stop = at, at + 5
            elif opcode == ADD:
                self._block(at, at + 1, 4)
            elif opcode in (ADD_XID, CONTINUE):
                self._block(at, at + 5, 16)
                (xid,) = _I32.unpack_from(self._window, self._start + 1)
            else:
                raise BrokenRecordError(self._base + at, f"no record starts with the byte 0x{opcode:02x}")
            self.opcode = opcode
            yield opcode, xid

    def _block(self, at: int, size_at: int, least: int) -> None:
        """Bring the record at ``at`` whole into the window, and set where it is."""
        if size_at + 4 > len(self._window):
            raise BrokenRecordError(self._base + at, "the record is cut short")
        (size,) = _I32.unpack_from(self._window, size_at)
        if size < least:
            raise BrokenRecordError(
                self._base + at,
                f"the record gives its size as {size}, less than the {least} bytes of its head",
            )
        stop = size_at + 4 + size
        if stop > len(self._window):
            there = self.limit - self._base - size_at - 4
            if there < size:
                raise BrokenRecordError(
                    self._base + at, f"the record is cut short: {there} of {size} bytes are there"
                )
            self._stop = at
            self._fill(stop - at)
            at, stop = 0, stop - at
        self._start, self._stop = at, stop
        self.data_size = size - least

    def _fill(self, least: int) -> None:
        """Move the window to the next record, with at least so many bytes if the file has them."""
        self._base += self._stop
        self._start = self._stop = 0
        wanted = min(max(least, WINDOW), self.limit - self._base)
        parts = []
        while wanted > 0 and (part := os.pread(self._fd, wanted, self._base + sum(map(len, parts)))):
            parts.append(part)
            wanted -= len(part)
        self._window = b"".join(parts)
        if wanted > 0:
            raise BrokenRecordError(self._base + len(self._window), "the file has become shorter")
