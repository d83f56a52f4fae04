"""What the records of a journal say that a queue holds."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field

from kestrel_stack.broker import records
from kestrel_stack.broker.backlog import Backlog
from kestrel_stack.broker.records import BrokenRecordError, Scanner
from kestrel_stack.broker.segments import Segment

log = logging.getLogger("kestrel.journal")

PROGRESS_EVERY = 1 << 28
"""Bytes of a file after which a line says how far its replay is."""


@dataclass(slots=True)
class Replayed:
    """What the records read so far leave: queued items, open reads by xid, the last xid used."""

    backlog: Backlog
    open: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """Number and record of each item given out, in the order in which they were opened."""
    last_xid: int = 0
    added: int = 0
    """Items that the records added, whatever came of them."""
    added_bytes: int = 0
    """Bytes of their data."""
    lost_xids: list[int] = field(default_factory=list)
    """xids opened twice without an end; Kestrel forgets the first item of each, and so do we."""


def replay(segment: Segment, state: Replayed) -> BrokenRecordError | None:
    """Apply every record of one file, and note its size and what the queue holds at its end.

    Return where and why the file breaks off, or None. However much is queued, memory holds no more of it
    than the backlog's limit. OSError if the file cannot be read; JournalError as in Backlog.
    """
    fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        segment.size = os.fstat(fd).st_size
        broken = _apply_all(Scanner(fd, segment.size, legacy_ms=state.backlog.legacy_ms), segment, state)
    finally:
        os.close(fd)
    if broken:
        segment.size = broken.offset
    segment.boundary = state.backlog.boundary(state.open)
    return broken


def _apply_all(scanner: Scanner, segment: Segment, state: Replayed) -> BrokenRecordError | None:
    backlog, opened = state.backlog, state.open
    next_line = PROGRESS_EVERY
    try:
        for opcode, xid in scanner.read():
            if opcode == records.ADDX or opcode in (records.ADD, records.ADD_XID, records.CONTINUE):
                if opcode == records.CONTINUE:
                    opened.pop(xid, None)
                state.added += 1
                state.added_bytes += scanner.data_size
                if backlog.reader is not None:
                    backlog.append_unread(scanner.data_size)
                else:
                    backlog.append(scanner.record())
                    if backlog.memory_is_full:
                        backlog.read_behind(segment, scanner.position)
            elif opcode == records.REMOVE:
                if backlog.items:
                    backlog.head()
                    backlog.take()
            elif opcode in (records.REMOVE_TENTATIVE_XID, records.REMOVE_TENTATIVE):
                state.last_xid = xid
                if backlog.items:
                    if xid in opened:
                        state.lost_xids.append(xid)
                        del opened[xid]
                    backlog.head()
                    opened[xid] = backlog.take()
            elif opcode == records.UNREMOVE:
                if xid in opened:
                    backlog.put_back(*opened.pop(xid))
            elif opcode == records.CONFIRM_REMOVE:
                opened.pop(xid, None)
            else:
                state.last_xid = xid
            if scanner.position >= next_line:
                log.info("%s: %d of %d bytes read so far", segment.path, scanner.position, segment.size)
                next_line = scanner.position + PROGRESS_EVERY
    except BrokenRecordError as broken:
        return broken
    return None
