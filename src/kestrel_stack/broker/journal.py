"""One queue's files: the archives ``<queue>.<ms>``, oldest first, and the current file ``<queue>``.

Every record goes to the current file with write() before the client is answered, so that what was
acknowledged survives a kill of the process. A record that cannot be written whole is taken out again, so
that nothing written later can be swallowed by it.

Kept small in three ways. ``rewrite`` replaces the current file by one rename, when it is the only one.
``rotate`` makes it an archive and begins a new one. ``compact`` replaces the oldest archives by one small
file, or by nothing, in another thread (see compaction.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from kestrel_stack.broker import records
from kestrel_stack.broker.compaction import (
    Compaction,
    fsync_directory,
    write_all,
)
from kestrel_stack.broker.records import BrokenRecordError, Scanner
from kestrel_stack.broker.replay import Replayed, replay
from kestrel_stack.broker.segments import Boundary, JournalError, Segment

__all__ = ["Journal", "JournalError", "fsync_directory", "stamp"]

log = logging.getLogger("kestrel.journal")

DAMAGED = "damaged~"
"""Folder in that of the journals where the ends that were cut off are kept; no queue can have its name."""

_OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


def in_background(work: Callable[[], None], done: Callable[[], None]) -> None:
    """Run ``work`` in another thread and then ``done`` in this one; both at once where no loop runs."""
    try:
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, work).add_done_callback(lambda _: done())
    except RuntimeError:  # no loop, or one that takes no more work since it ends
        work()
        done()


class Journal:
    """The files of one queue, open for appending."""

    def __init__(
        self,
        path: Path,
        *,
        sync_each_write: bool = False,
        on_unsynced: Callable[[Journal], None] = lambda journal: None,
    ):
        """``path`` is the current file; ``on_unsynced`` is called at the first write after each sync."""
        self.path = path
        self.size = 0
        """Bytes of the current file."""
        self.current = Segment(path)
        self.archives: list[Segment] = []
        self.sync_each_write = sync_each_write
        self._on_unsynced = on_unsynced
        self._unsynced = False
        self._owed = b""
        self._torn = False
        self._fd = -1
        self._compaction: Compaction | None = None
        self._unclean: Compaction | None = None

    @property
    def on_unsynced(self) -> Callable[[Journal], None]:
        """What is called at the first write after each sync; another may be put here."""
        return self._on_unsynced

    @on_unsynced.setter
    def on_unsynced(self, tell: Callable[[Journal], None]) -> None:
        self._on_unsynced = tell
        self._unsynced = False  # the one before may have taken no notice

    # Start

    @property
    def is_open(self) -> bool:
        """Say whether records can be written."""
        return self._fd >= 0

    def recover(self, state: Replayed, siblings: Sequence[Path] = (), *, create: bool = True) -> None:
        """Read the archives and the current file into ``state``, cut a torn tail off, open for appending.

        ``siblings`` are the other files of this queue: archives, and what a rewrite or a pack left. Without
        ``create`` a queue that has no file gets none, and is not open then.
        """
        self._clean_up(siblings)
        self._finish_rewrite()
        files = [*self.archives, self.current]
        for segment, after in pairwise(files):
            segment.next = after
        for archive in self.archives:
            broken = replay(archive, state)
            if broken:
                # Kestrel would cut the current file at this offset, which has nothing to do with it.
                log.warning(
                    "%s: %s at byte %d; the rest of this archive is skipped, the file is left as it is",
                    archive.path,
                    broken.reason,
                    broken.offset,
                )
        exists = self.path.exists()
        broken = replay(self.current, state) if exists else None
        if exists or self.archives or create:
            self._open(is_new=not exists)
        if broken:
            log.warning(
                "%s: %s; cut back from %d to %d bytes (%d bytes dropped)",
                self.path,
                broken.reason,
                self.size,
                broken.offset,
                self.size - broken.offset,
            )
            self._keep_aside(broken.offset)
            self._truncate(broken.offset)
        for xid in state.lost_xids:
            log.warning("%s: xid %d was opened twice; the first item is lost", self.path, xid)

    def _keep_aside(self, offset: int) -> None:
        """Copy what a cut drops into a folder beside the journals: it may be somebody's file."""
        folder = self.path.parent / DAMAGED
        kept = folder / f"{self.path.name}.{time.time_ns() // 1_000_000}"
        try:
            folder.mkdir(mode=0o750, exist_ok=True)
            with self.path.open("rb") as whole, kept.open("xb") as copy:
                whole.seek(offset)
                shutil.copyfileobj(whole, copy)
        except OSError as error:
            log.error("%s: cannot keep what is dropped: %s", kept, error.strerror)
            with contextlib.suppress(OSError):
                kept.unlink(missing_ok=True)  # half of it would pass for the whole
        else:
            log.warning("%s: what was dropped of %s from byte %d on", kept, self.path.name, offset)

    def _open(self, is_new: bool) -> None:
        self._fd = os.open(self.path, _OPEN_FLAGS, 0o640)
        self.size = self.current.size = os.fstat(self._fd).st_size
        if is_new:
            fsync_directory(self.path.parent)

    def _clean_up(self, siblings: Sequence[Path]) -> None:
        """Sort the archives, remove what a rewrite left, finish a pack that was completed."""
        archives: dict[Path, int] = {}
        packs: dict[Path, int] = {}
        for path in siblings:
            if path.name.startswith(f"{self.path.name}~~"):
                path.unlink()
            elif path.suffix == ".pack":
                packs[path] = stamp(path)
            else:
                archives[path] = stamp(path)
        for pack, pack_stamp in sorted(packs.items(), key=lambda entry: entry[1]):
            if pack.stat().st_size == 0:
                # Kestrel makes it empty and fills it by a rename; until then the archives say everything.
                log.warning("%s: empty, left by an interrupted rewrite; removed, the archives are read", pack)
                pack.unlink()
                continue
            for archive in [path for path, number in archives.items() if number <= pack_stamp]:
                archive.unlink()
                del archives[archive]
            archives[pack.rename(pack.with_suffix(""))] = pack_stamp
        # By the number, not by the text: 99 is older than 1000.
        ordered = sorted(archives, key=lambda path: (archives[path], path.name))
        self.archives = [Segment(path, archives[path]) for path in ordered]

    def _finish_rewrite(self) -> None:
        """Put Kestrel's new file in the place of the current one, if it was stopped just before that.

        Its rewrite of an empty queue leaves, for a moment, one archive of nothing but open reads beside the
        current file that it stands for. That is so if the current file opens a read which the archive holds
        open: no live queue gives a number out twice. Source: observed on Kestrel 2.4.1, which replays both
        files then and loses an item.
        """
        if len(self.archives) != 1 or not self.path.exists():
            return
        archive = self.archives[0].path
        opened = _open_reads_only(archive)
        if opened and _opens_again(self.path, opened):
            log.warning(
                "%s: an interrupted rewrite of %s, whose records it stands for; put in its place",
                archive,
                self.path.name,
            )
            archive.replace(self.path)
            self.archives = []

    def total_size(self) -> int:
        """Return the bytes of the current file and all archives."""
        return self.size + sum(segment.size for segment in self.archives)

    # Writing

    def append(self, records: bytes) -> None:
        """Write records at the end; JournalError if they are not all in the file (then none is)."""
        if self._owed or self._torn:
            self._write_owed()
        self._write(records)

    def append_or_owe(self, records: bytes) -> None:
        """Write records whose change has happened anyway (an open read came back).

        What cannot be written now goes before the next record: a replay must meet them in this order.
        """
        try:
            self.append(records)
        except JournalError as error:
            self._owed += records
            log.error("%s; will be written before the next record", error)

    def _write_owed(self) -> None:
        if self._torn:
            self._truncate(self.size)
        if self._owed:
            self._write(self._owed)
            self._owed = b""

    def _write(self, records: bytes) -> None:
        length = len(records)
        try:
            written = os.write(self._fd, records)
            while written < length:  # the disk is full, or about to be
                written += os.write(self._fd, memoryview(records)[written:])
            if self.sync_each_write:
                os.fdatasync(self._fd)
        except OSError as error:
            self._torn = True
            if self._fd >= 0:
                self._truncate(self.size)
            raise JournalError(f"{self.path}: cannot write {length} bytes: {error.strerror}") from error
        self.size += length
        self.current.size = self.size
        if not self._unsynced and not self.sync_each_write:
            self._unsynced = True
            self._on_unsynced(self)

    def _truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot cut a torn record off: {error.strerror}") from error
        self.size = self.current.size = size
        self._torn = False

    # Keeping it small

    def rewrite(self, records: bytes) -> None:
        """Replace the current file by ``records``, by one rename; there must be no archives.

        JournalError if that fails, and nothing has changed.
        """
        temporary = self._temporary()
        fd = -1
        try:
            fd = os.open(temporary, _OPEN_FLAGS | os.O_TRUNC, 0o640)
            if records:
                write_all(fd, records)
            os.fsync(fd)
            temporary.replace(self.path)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise JournalError(f"{self.path}: cannot rewrite: {error.strerror}") from error
        os.close(self._fd)
        self.current = Segment(self.path)
        self._fd, self.size = fd, len(records)
        self.current.size = self.size
        self._owed, self._torn = b"", False
        try:
            fsync_directory(self.path.parent)
        except OSError as error:
            log.error("%s: cannot sync the folder after a rewrite: %s", self.path, error)

    def rotate(self, boundary: Boundary | None) -> None:
        """Make the current file an archive and begin a new one; JournalError if not, and nothing has changed.

        ``boundary`` is what the queue holds now.
        """
        if self._owed or self._torn:
            self._write_owed()
        # A clock that was set back must not put this archive before older ones.
        number = max(int(time.time() * 1000), self.archives[-1].stamp + 1 if self.archives else 0)
        archive = self.path.with_name(f"{self.path.name}.{number}")
        temporary = self._temporary()
        fd, renamed = -1, False
        try:
            fd = os.open(temporary, _OPEN_FLAGS | os.O_EXCL, 0o640)
            self.path.rename(archive)
            renamed = True
            temporary.rename(self.path)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if renamed:
                with contextlib.suppress(OSError):
                    archive.rename(self.path)
            raise JournalError(f"{self.path}: cannot begin a new file: {error.strerror}") from error
        old, old_fd = self.current, self._fd
        old.path, old.stamp, old.boundary = archive, number, boundary
        self.current = old.next = Segment(self.path)
        self.archives.append(old)
        self._fd, self.size = fd, 0
        self._sync_rotated(old, old_fd)

    def _sync_rotated(self, segment: Segment, fd: int) -> None:
        """Sync the archive, and the folder with the new names; at once if each write is."""
        if self.sync_each_write:
            segment.synced = True
        else:
            in_background(lambda: _sync_and_close(segment, fd), lambda: None)
            return
        os.close(fd)
        try:
            fsync_directory(self.path.parent)
        except OSError as error:
            log.error("%s: cannot sync the folder after a rotation: %s", self.path, error)

    def _temporary(self) -> Path:
        return self.path.with_name(f"{self.path.name}~~{int(time.time() * 1000)}.new")

    @property
    def is_compacting(self) -> bool:
        """Say whether archives are being replaced."""
        return self._compaction is not None

    def compact(
        self,
        count: int,
        pieces: Iterator[tuple[int | None, bytes]] | None,
        install: Callable[[Compaction, Segment], None],
        finished: Callable[[bool], None],
    ) -> None:
        """Replace the ``count`` oldest archives by a file of ``pieces`` (or by nothing), in the background.

        ``install`` is called when the new file is complete, for readers to move to it before the old files
        go; then ``finished`` with whether all went well. What fails is logged, and changes nothing;
        JournalError if it cannot even begin.
        """
        if self._unclean:
            self._unclean.clean()
            if self._unclean.error:
                raise JournalError(f"{self.path}: cannot remove old archives: {self._unclean.error}")
            self._unclean, self.archives[0].path = None, self._unclean.target
        try:
            current_fd = os.dup(self._fd)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot compact: {error.strerror}") from error
        job = Compaction(self.archives[:count], self.archives[count:], current_fd, pieces)
        self._compaction = job
        if pieces is None:
            os.close(current_fd)
            self._in_background(job, job.clean, lambda: self._removed(job, finished))
        else:
            self._in_background(job, job.write, lambda: self._written(job, install, finished))

    def _in_background(self, job: Compaction, work: Callable[[], None], done: Callable[[], None]) -> None:
        idle = threading.Event()
        job.idle = idle

        def work_and_tell() -> None:
            try:
                work()
            finally:
                idle.set()

        in_background(work_and_tell, lambda: done() if self._compaction is job else None)

    def _written(
        self,
        job: Compaction,
        install: Callable[[Compaction, Segment], None],
        finished: Callable[[bool], None],
    ) -> None:
        last = job.old[-1]
        segment = Segment(job.pack, last.stamp)
        segment.size, segment.boundary, segment.next = job.size, last.boundary, last.next
        segment.synced = True
        error = job.error
        if error is None:
            try:
                install(job, segment)
            except (JournalError, OSError) as failure:
                error = failure
                with contextlib.suppress(OSError):
                    job.pack.unlink()
        if error is not None:
            self._compaction = None
            log.error("%s: cannot replace old archives, they stay: %s", self.path, error)
            finished(False)
            return
        self.archives[: len(job.old)] = [segment]
        self._in_background(job, job.clean, lambda: self._cleaned(job, finished))

    def _cleaned(self, job: Compaction, finished: Callable[[bool], None]) -> None:
        self._compaction = None
        if job.error:
            self._unclean = job
            log.error("%s: cannot remove old archives yet: %s", self.path, job.error)
        else:
            self.archives[0].path = job.target
        finished(job.error is None)

    def _removed(self, job: Compaction, finished: Callable[[bool], None]) -> None:
        self._compaction = None
        if job.error:
            log.error("%s: cannot remove old archives: %s", self.path, job.error)
            self.archives = [segment for segment in self.archives if segment.path.exists()]
        else:
            del self.archives[: len(job.old)]
        finished(job.error is None)

    def _stop_compacting(self) -> None:
        """Have the other thread end soon, and wait for it."""
        job, self._compaction = self._compaction, None
        if job:
            job.cancelled = True
            job.idle.wait()

    # Syncing and closing

    def duplicate_for_sync(self) -> int | None:
        """Return a new descriptor of the file for a sync in another thread, or None if closed."""
        self._unsynced = False
        return os.dup(self._fd) if self._fd >= 0 else None

    def close(self) -> None:
        """Sync and close; a failing sync is logged, since nobody is left to be told."""
        self._stop_compacting()
        if self._fd < 0:
            return
        try:
            self._write_owed()
            os.fdatasync(self._fd)
        except (OSError, JournalError) as error:
            log.error("%s: cannot sync at close: %s", self.path, error)
        os.close(self._fd)
        self._fd = -1

    def delete(self) -> None:
        """Close, and remove the archives and the current file; JournalError if one stays."""
        self._owed = b""
        job = self._compaction or self._unclean
        self.close()
        leftovers = [*(segment.path for segment in job.old), job.pack] if job else []
        try:
            for path in [*leftovers, *(segment.path for segment in self.archives), self.path]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot delete: {error.strerror}") from error
        self.archives = []
        self.current = Segment(self.path)
        self.size = 0
        self._unclean = None


def stamp(path: Path) -> int:
    """Return the number of an archive ``<queue>.<number>``; ValueError if it is not one."""
    number = path.name.partition(".")[2].partition(".")[0]
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"{path.name} is not the name of an archive")
    return int(number)


def _sync_and_close(segment: Segment, fd: int) -> None:
    try:
        os.fdatasync(fd)
        segment.synced = True
        fsync_directory(segment.path.parent)
    except OSError as error:
        log.error("%s: cannot sync: %s", segment.path, error.strerror)
    finally:
        os.close(fd)


def _open_reads_only(path: Path) -> set[int] | None:
    """Return the xids that a file of nothing but open reads (ADDX and opcode 9 each) holds, else None."""
    opened: set[int] = set()
    with path.open("rb") as file:
        scanner = Scanner(file.fileno(), os.fstat(file.fileno()).st_size)
        expected = records.ADDX
        with contextlib.suppress(BrokenRecordError):
            for opcode, xid in scanner.read():
                if opcode != expected or xid in opened:
                    return None
                if opcode == records.ADDX:
                    expected = records.REMOVE_TENTATIVE_XID
                else:
                    opened.add(xid)
                    expected = records.ADDX
            return opened if expected == records.ADDX else None
    return None


def _opens_again(path: Path, opened: set[int]) -> bool:
    """Say whether a file gives out one of these xids before it ends it."""
    left = set(opened)
    with path.open("rb") as file:
        scanner = Scanner(file.fileno(), os.fstat(file.fileno()).st_size)
        with contextlib.suppress(BrokenRecordError):
            for opcode, xid in scanner.read():
                if xid in left:
                    if opcode == records.REMOVE_TENTATIVE_XID:
                        return True
                    if opcode in (records.UNREMOVE, records.CONFIRM_REMOVE, records.CONTINUE):
                        left.discard(xid)
    return False
