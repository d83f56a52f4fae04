"""Replacing the oldest files of a journal by one small file that leaves a queue the same.

The later files hold records such as "the head is gone" that belong to items of the files to be replaced. So
the new file holds, in order, everything that the queue held at the end of the last replaced file: open reads
(ADDX and opcode 9 each), items that had come back, items never given out. What is gone since stands there as
an item without data: the later records take it away before anybody sees it.

The way into place is Kestrel's: a temporary, synced; renamed to ``<archive>.pack``, from which moment a start
would remove the archives up to that number and drop the ``.pack``; then we do just that.
"""

from __future__ import annotations

import contextlib
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from kestrel_stack.broker.backlog import Backlog
from kestrel_stack.broker.records import ADDX_OVERHEAD, WINDOW, addx, open_read
from kestrel_stack.broker.segments import Boundary, Reader, Segment

FILLER = addx(0, 0, b"")
"""The record of an item that is gone. Its time marks it as ours; nobody ever gets it."""

FILLERS_AT_ONCE = 4096

OPEN_READ_OVERHEAD = ADDX_OVERHEAD + 5
"""Bytes that an open read takes in a new file besides its data."""


class CancelledError(Exception):
    """The queue ended while its files were being replaced."""


def size_of(boundary: Boundary, backlog: Backlog, opened: Mapping[int, tuple[int, bytes]]) -> int:
    """Return about how many bytes a file needs that stands for the files up to ``boundary``."""
    live = _live(backlog, opened)
    remembered = [*boundary.open[1::2], *boundary.returned]
    size = len(remembered) * ADDX_OVERHEAD + len(boundary.open) // 2 * 5
    size += (boundary.end - boundary.first) * ADDX_OVERHEAD
    size += sum(len(live[number]) - ADDX_OVERHEAD for number in remembered if number in live)
    size += sum(
        len(record) - ADDX_OVERHEAD
        for number, record in live.items()
        if boundary.first <= number < boundary.end
    )
    if boundary.end > backlog.first:
        size += backlog.bytes  # more than needed if the backlog goes on after the boundary
    return size


def content(
    boundary: Boundary, backlog: Backlog, opened: Mapping[int, tuple[int, bytes]]
) -> Iterator[tuple[int | None, bytes]]:
    """Return the content of that file in pieces, to be read in another thread.

    With each piece comes the number of its first item if all its items are live and in order, else None.
    ``opened`` gives number and record by xid. Reading may raise OSError or JournalError.
    """
    first, end = backlog.first, boundary.end
    live = _live(backlog, opened)
    wanted = min(end, first + len(backlog.fresh)) - first
    memory = list(islice(backlog.fresh, wanted)) if wanted > 0 else []
    place = None
    if backlog.reader is not None and backlog.reader.number < end:
        reader = backlog.reader
        place = (reader.segment, reader.position, reader.number, backlog.legacy_ms)
    return _pieces(boundary, live, first, memory, place)


def _live(backlog: Backlog, opened: Mapping[int, tuple[int, bytes]]) -> dict[int, bytes]:
    return dict((*opened.values(), *backlog.returned))


def _pieces(
    boundary: Boundary,
    live: dict[int, bytes],
    first: int,
    memory: list[bytes],
    place: tuple[Segment, int, int, int] | None,
) -> Iterator[tuple[int | None, bytes]]:
    for xid, number in zip(boundary.open[::2], boundary.open[1::2], strict=True):
        yield None, live.get(number, FILLER) + open_read(xid)
    for number in boundary.returned:
        yield None, live.get(number, FILLER)
    gone_until = min(first, boundary.end)
    at = boundary.first
    held = sorted(number for number in live if boundary.first <= number < gone_until)
    for number in [*held, gone_until]:
        while at < number:
            count = min(FILLERS_AT_ONCE, number - at)
            yield None, FILLER * count
            at += count
        if number < gone_until:
            yield None, live[number]
            at += 1
    yield from _joined(iter(memory), first)
    if place is not None:
        reader = Reader(*place)
        try:
            start = reader.number
            rest = (reader.next_record() for _ in range(boundary.end - start))
            yield from _joined(rest, start)
        finally:
            reader.close()


def _joined(records: Iterator[bytes], number: int) -> Iterator[tuple[int, bytes]]:
    """Yield the records in pieces of about a window, each with the number of its first."""
    piece: list[bytes] = []
    size = 0
    for record in records:
        piece.append(record)
        size += len(record)
        if size >= WINDOW:
            yield number, b"".join(piece)
            number += len(piece)
            piece, size = [], 0
    if piece:
        yield number, b"".join(piece)


class Compaction:
    """One replacement: ``write`` and then ``clean`` run in another thread, the rest in the queue's own."""

    def __init__(
        self,
        old: Sequence[Segment],
        later: Sequence[Segment],
        current_fd: int,
        pieces: Iterator[tuple[int | None, bytes]] | None,
    ):
        """``old`` are the files to be replaced; without ``pieces`` by nothing.

        ``later`` are the archives after them; ``current_fd`` is a descriptor of the current file, and ours.
        """
        self.old = list(old)
        self._later = list(later)
        self._current_fd = current_fd
        self._pieces = pieces
        self.target = self.old[-1].path
        queue = self.target.name.partition(".")[0]
        self._temporary = self.target.with_name(f"{queue}~~{self.old[-1].stamp}")
        self.pack = self.target.with_name(self.target.name + ".pack")
        self._index: list[tuple[int, int]] = []
        self.size = 0
        self.error: Exception | None = None
        self.cancelled = False
        self.idle = threading.Event()
        """Set while no thread is at work for us."""

    def write(self) -> None:
        """Write the new file and rename it to ``.pack``; ``error`` says if it failed, and nothing changed."""
        fd = -1
        try:
            fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            for number, piece in self._pieces or ():
                if self.cancelled:
                    raise CancelledError
                if number is not None:
                    self._index.append((number, self.size))
                write_all(fd, piece)
                self.size += len(piece)
            os.fsync(fd)
            # After a power cut no later file may lack the records that take the items without data away.
            for segment in self._later:
                if not segment.synced:
                    _sync_file(segment.path)
                    segment.synced = True
            os.fdatasync(self._current_fd)
            if self.cancelled:
                raise CancelledError
            self._temporary.rename(self.pack)
        except Exception as error:
            self.error = error
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)
        finally:
            close = getattr(self._pieces, "close", None)
            if close:
                close()
            if fd >= 0:
                os.close(fd)
            os.close(self._current_fd)

    def clean(self) -> None:
        """Remove the old files, oldest first, and give the new one its name.

        ``error`` says if that failed; then it may be done again.
        """
        self.error = None
        try:
            if self._pieces is None:
                for segment in self.old:
                    segment.path.unlink(missing_ok=True)
                return
            fsync_directory(self.target.parent)
            for segment in self.old[:-1]:
                segment.path.unlink(missing_ok=True)
            if self.pack.exists():
                self.pack.rename(self.target)
            fsync_directory(self.target.parent)
        except OSError as error:
            self.error = error

    def place_of(self, number: int) -> tuple[int, int]:
        """Return an offset in the new file and the number of the item there, at or before ``number``."""
        at = bisect_right(self._index, (number, self.size)) - 1
        first, offset = self._index[at]
        return offset, first


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``, however often the system takes only a part; OSError if it does not."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def fsync_directory(directory: Path) -> None:
    """Make the folder's entries (a new or renamed file) durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
