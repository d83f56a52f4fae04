"""The records of a journal: how they are written, and what a replay makes of them. No I/O here.

A journal is a bare row of records without header or checksum. The first byte is the opcode; integers
are little-endian and signed. Opcodes 0, 3, 4, 7 and 8 are read but never written. Source: observed on
Kestrel 2.4.1 (its own description of the format differs from what it writes).
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field

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
_ADDX_HEAD = struct.Struct("<Biqq")
_TIMES = struct.Struct("<qq")

ADDX_OVERHEAD = _ADDX_HEAD.size
"""Bytes that an ADDX record is longer than its data."""


class Item:
    """One queued item: data, the time it was added, and when it expires (unix ms, 0 = never)."""

    __slots__ = ("added_ms", "data", "expiry_ms")

    def __init__(self, added_ms: int, expiry_ms: int, data: bytes):
        self.added_ms = added_ms
        self.expiry_ms = expiry_ms
        self.data = data


def addx(item: Item) -> bytes:
    """Return the record of an item put at the end of the queue."""
    return _ADDX_HEAD.pack(ADDX, len(item.data) + 16, item.added_ms, item.expiry_ms) + item.data


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


@dataclass(slots=True)
class Replayed:
    """What the records read so far leave: items in order, open reads by xid, the last xid used."""

    items: deque[Item] = field(default_factory=deque)
    open: dict[int, Item] = field(default_factory=dict)
    last_xid: int = 0
    lost_xids: list[int] = field(default_factory=list)
    """xids opened twice without an end; Kestrel forgets the first item of each, and so do we."""


@dataclass(frozen=True, slots=True)
class Break:
    """Where a file stops making sense: the offset of the first bad record, and why."""

    offset: int
    reason: str


class _UnreadableError(Exception):
    pass


def replay(buffer: bytes | memoryview, state: Replayed, now_ms: int) -> Break | None:
    """Apply every record of one file to ``state``; return where and why it broke off, or None.

    ``now_ms`` is the add time of items in the oldest format, which has none.
    """
    offset = 0
    end = len(buffer)
    while offset < end:
        try:
            offset = _apply(buffer, offset, state, now_ms)
        except (_UnreadableError, struct.error) as error:
            reason = str(error) if isinstance(error, _UnreadableError) else "the record is cut short"
            return Break(offset, reason)
    return None


def _apply(buffer: bytes | memoryview, offset: int, state: Replayed, now_ms: int) -> int:
    opcode = buffer[offset]
    at = offset + 1
    if opcode == ADDX:
        item, at = _item(buffer, at)
        state.items.append(item)
    elif opcode == REMOVE:
        if state.items:
            state.items.popleft()
    elif opcode in (REMOVE_TENTATIVE_XID, UNREMOVE, CONFIRM_REMOVE, SAVE_XID):
        (xid,) = _I32.unpack_from(buffer, at)
        at += 4
        _apply_xid(opcode, xid, state)
    elif opcode == REMOVE_TENTATIVE:
        _apply_xid(REMOVE_TENTATIVE_XID, 0, state)
    elif opcode == ADD:
        block, at = _block(buffer, at, least=4)
        (expiry_s,) = _I32.unpack_from(block)
        state.items.append(Item(now_ms, expiry_s * 1000, bytes(block[4:])))
    elif opcode in (ADD_XID, CONTINUE):
        (xid,) = _I32.unpack_from(buffer, at)
        item, at = _item(buffer, at + 4)
        if opcode == CONTINUE:
            state.open.pop(xid, None)
        state.items.append(item)
    else:
        raise _UnreadableError(f"no record starts with the byte 0x{opcode:02x}")
    return at


def _apply_xid(opcode: int, xid: int, state: Replayed) -> None:
    if opcode == REMOVE_TENTATIVE_XID:
        state.last_xid = xid
        if state.items:
            if xid in state.open:
                state.lost_xids.append(xid)
            state.open[xid] = state.items.popleft()
    elif opcode == UNREMOVE:
        if xid in state.open:
            state.items.appendleft(state.open.pop(xid))
    elif opcode == CONFIRM_REMOVE:
        state.open.pop(xid, None)
    else:
        state.last_xid = xid


def _block(buffer: bytes | memoryview, at: int, least: int) -> tuple[memoryview, int]:
    (size,) = _I32.unpack_from(buffer, at)
    if size < least:
        raise _UnreadableError(
            f"the record gives its size as {size}, less than the {least} bytes of its head"
        )
    start, stop = at + 4, at + 4 + size
    if stop > len(buffer):
        raise _UnreadableError(f"the record is cut short: {len(buffer) - start} of {size} bytes are there")
    return memoryview(buffer)[start:stop], stop


def _item(buffer: bytes | memoryview, at: int) -> tuple[Item, int]:
    block, stop = _block(buffer, at, least=16)
    added_ms, expiry_ms = _TIMES.unpack_from(block)
    return Item(added_ms, expiry_ms, bytes(block[16:])), stop
