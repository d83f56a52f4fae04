"""One queue's files: ``<queue>`` and the archives ``<queue>.<ms>`` that Kestrel may have left.

Every record goes to the file with write() before the client is answered, so that what was acknowledged
survives a kill of the process. A record that cannot be written whole is taken out again, so that nothing
written later can be swallowed by it.

Kept small by a rewrite: the file is replaced, by one rename, with a new one that holds the open reads and
the queued items. Kestrel's rotation and background packing are not done; archives that it left are read,
and go when the queue is empty.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kestrel_stack.broker.records import Break, Replayed, replay

log = logging.getLogger("kestrel.journal")

_OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class JournalError(Exception):
    """A record could not be written; nothing of it is in the file, and nothing may change in memory."""


def fsync_directory(directory: Path) -> None:
    """Make the folder's entries (a new or renamed file) durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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
        self._sync_each_write = sync_each_write
        self._on_unsynced = on_unsynced
        self._unsynced = False
        self._owed = b""
        self._torn = False
        self._fd = -1
        self._archives: list[Path] = []

    # Start

    def recover(self, now_ms: int, siblings: Sequence[Path] = ()) -> Replayed:
        """Read the archives and the current file, cut a torn tail off, and open the file for appending.

        ``siblings`` are the other files of this queue: archives, and what a rewrite or a pack left.
        """
        self._clean_up(siblings)
        state = Replayed()
        for archive in self._archives:
            broken = _replay_file(archive, state, now_ms)
            if broken:
                # Kestrel would cut the current file at this offset, which has nothing to do with it.
                log.warning(
                    "%s: %s at byte %d; the rest of this archive is skipped, the file is left as it is",
                    archive,
                    broken.reason,
                    broken.offset,
                )
        broken = _replay_file(self.path, state, now_ms) if self.path.exists() else None
        self._open()
        if broken:
            log.warning(
                "%s: %s; cut back from %d to %d bytes (%d bytes dropped)",
                self.path,
                broken.reason,
                self.size,
                broken.offset,
                self.size - broken.offset,
            )
            self._truncate(broken.offset)
        for xid in state.lost_xids:
            log.warning("%s: xid %d was opened twice; the first item is lost", self.path, xid)
        return state

    def _open(self) -> None:
        is_new = not self.path.exists()
        self._fd = os.open(self.path, _OPEN_FLAGS, 0o640)
        self.size = os.fstat(self._fd).st_size
        if is_new:
            fsync_directory(self.path.parent)

    def _clean_up(self, siblings: Sequence[Path]) -> None:
        """Sort the archives, remove what a rewrite left, finish a pack that Kestrel completed."""
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
        self._archives = sorted(archives, key=lambda path: (archives[path], path.name))

    def total_size(self) -> int:
        """Return the bytes of the current file and all archives."""
        return self.size + sum(path.stat().st_size for path in self._archives)

    # Writing

    def append(self, records: bytes) -> None:
        """Write records at the end; JournalError if they are not all in the file (then none is)."""
        self._write(self._owed + records)
        self._owed = b""

    def append_or_owe(self, records: bytes) -> None:
        """Write records whose change has happened anyway (an open read came back).

        What cannot be written now goes before the next record: a replay must meet them in this order.
        """
        try:
            self.append(records)
        except JournalError as error:
            self._owed += records
            log.error("%s; will be written before the next record", error)

    def _write(self, records: bytes) -> None:
        if self._torn:
            self._truncate(self.size)
        try:
            self._write_all(self._fd, records)
            if self._sync_each_write:
                os.fdatasync(self._fd)
        except OSError as error:
            self._torn = True
            self._truncate(self.size)
            raise JournalError(f"{self.path}: cannot write {len(records)} bytes: {error.strerror}") from error
        self.size += len(records)
        if not self._unsynced and not self._sync_each_write:
            self._unsynced = True
            self._on_unsynced(self)

    @staticmethod
    def _write_all(fd: int, records: bytes) -> None:
        written = os.write(fd, records)
        while written < len(records):
            written += os.write(fd, memoryview(records)[written:])

    def _truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot cut a torn record off: {error.strerror}") from error
        self.size = size
        self._torn = False

    def rewrite(self, records: bytes) -> None:
        """Replace everything by ``records``, by one rename; JournalError if that fails, and nothing changed.

        While Kestrel's archives are there this is done only when nothing is to be kept (else it is put
        off): they go oldest first, and what is left of a journal that ends empty ends empty too, so that a
        crash at any moment brings nothing back.
        """
        if self._archives and records:
            return
        temporary = self.path.with_name(f"{self.path.name}~~{int(time.time() * 1000)}")
        fd = -1
        try:
            fd = os.open(temporary, _OPEN_FLAGS | os.O_TRUNC, 0o640)
            if records:
                self._write_all(fd, records)
            os.fsync(fd)
            while self._archives:
                self._archives[0].unlink()
                del self._archives[0]
            temporary.replace(self.path)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise JournalError(f"{self.path}: cannot rewrite: {error.strerror}") from error
        os.close(self._fd)
        self._fd, self.size = fd, len(records)
        self._owed, self._torn = b"", False
        try:
            fsync_directory(self.path.parent)
        except OSError as error:
            log.error("%s: cannot sync the folder after a rewrite: %s", self.path, error)

    # Syncing and closing

    def duplicate_for_sync(self) -> int | None:
        """Return a new descriptor of the file for a sync in another thread, or None if closed."""
        self._unsynced = False
        return os.dup(self._fd) if self._fd >= 0 else None

    def close(self) -> None:
        """Sync and close; a failing sync is logged, since nobody is left to be told."""
        if self._fd < 0:
            return
        try:
            if self._owed:
                self.append(b"")
            os.fdatasync(self._fd)
        except (OSError, JournalError) as error:
            log.error("%s: cannot sync at close: %s", self.path, error)
        os.close(self._fd)
        self._fd = -1

    def delete(self) -> None:
        """Close, and remove the archives and the current file; JournalError if one stays."""
        self._owed = b""
        self.close()
        try:
            for path in [*self._archives, self.path]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot delete: {error.strerror}") from error


def stamp(path: Path) -> int:
    """Return the number of an archive ``<queue>.<number>``; ValueError if it is not one."""
    number = path.name.partition(".")[2].partition(".")[0]
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"{path.name} is not the name of an archive")
    return int(number)


def _replay_file(path: Path, state: Replayed, now_ms: int) -> Break | None:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            return replay(view, state, now_ms)
