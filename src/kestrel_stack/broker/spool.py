"""All queues of one folder, and the lock that keeps a second broker out of it."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kestrel_stack.broker.config import Config
from kestrel_stack.broker.journal import Journal, JournalError, stamp
from kestrel_stack.broker.protocol import HangUp
from kestrel_stack.broker.queue import Queue

log = logging.getLogger("kestrel.spool")

ILLEGAL_IN_NAMES = frozenset("./~+\0")
"""Kestrel refuses the first three; ``+`` makes a fanout there, which we do not have yet."""


class SpoolError(Exception):
    """The folder cannot be used; the text is one line that names it and the fix."""


def wall_clock() -> int:
    """Return unix milliseconds."""
    return int(time.time() * 1000)


class Spool:
    """The queues of a folder, loaded at start and made on first use."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], int] = wall_clock,
        on_unsynced: Callable[[Journal], None] = lambda journal: None,
    ):
        """``on_unsynced`` is called with a journal that has its first unsynced record."""
        self.config = config
        self.queues: dict[str, Queue] = {}
        self.queue_creates = 0
        self.queue_deletes = 0
        self._clock = clock
        self._on_unsynced = on_unsynced
        self._lock_fd = -1

    def load(self) -> None:
        """Load every queue in the folder; SpoolError if one cannot be."""
        for name, siblings in self._files(self.config.queue_path).items():
            self._load(name, siblings)
            if "+" in name:
                log.warning(
                    "%s: fanouts are not supported yet; what is in it is served, nothing is copied", name
                )

    def lock(self) -> None:
        """Keep every other broker out of the folder; SpoolError if it is in use or cannot be used."""
        # The lock is on the folder itself: a lock file in it would be taken for a queue.
        path = self.config.queue_path
        try:
            self._lock_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SpoolError(
                f"{path}: cannot open the queue folder: {error.strerror}; make it, or set queue_path"
            ) from None
        if not os.access(path, os.W_OK | os.X_OK):
            raise SpoolError(f"{path}: this user may not write in the queue folder; give it to this user")
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SpoolError(
                f"{path}: another broker uses this queue folder; stop it, or set another queue_path"
            ) from None

    def _files(self, path: Path) -> dict[str, list[Path]]:
        """Return the files beside the current one of every queue that has a file, by queue name."""
        queues: dict[str, list[Path]] = {}
        temporaries: list[Path] = []
        with os.scandir(path) as entries:
            for file in sorted(Path(entry.path) for entry in entries if entry.is_file()):
                if "~~" in file.name:
                    temporaries.append(file)
                    continue
                try:
                    name, is_current = _queue_of(file)
                except ValueError:
                    # Kestrel does not start at all with such a file in its folder.
                    log.warning("%s: not a journal, left alone; move it out of the folder", file)
                    continue
                siblings = queues.setdefault(name, [])
                if not is_current:
                    siblings.append(file)
        for file in temporaries:
            name = _to_queue_name(file.name.partition("~~")[0])
            if name in queues:
                queues[name].append(file)
        return queues

    def _load(self, name: str, siblings: Sequence[Path] = ()) -> Queue:
        path = self.config.queue_path / os.fsdecode(name.encode("latin-1"))
        journal = Journal(
            path, sync_each_write=self.config.sync_journal_ms == 0, on_unsynced=self._on_unsynced
        )
        queue = Queue(name, self.config.settings_for(name), journal, self._clock)
        try:
            returned = queue.recover(siblings)
        except OSError as error:
            raise SpoolError(f"{path}: cannot read the journal: {error.strerror}") from error
        except (JournalError, ValueError) as error:
            raise SpoolError(f"{path}: {error}") from error
        if returned:
            log.info("%s: %d open reads returned to the queue", name, returned)
        self.queues[name] = queue
        return queue

    def get(self, name: str) -> Queue | None:
        """Return the named queue if there is one."""
        return self.queues.get(name)

    def get_or_create(self, name: str) -> Queue:
        """Return the named queue, made if need be; a name that no file can have is a silent close."""
        queue = self.queues.get(name)
        if queue is None:
            if not name or ILLEGAL_IN_NAMES & set(name):
                raise HangUp(why=f"illegal queue name {name[:80]!r}")
            try:
                queue = self._load(name)
            except SpoolError as error:
                log.warning("cannot make a queue: %s", error)
                raise HangUp(why="no such queue can be made") from error
            self.queue_creates += 1
        return queue

    def delete(self, name: str) -> None:
        """End the named queue and remove its files; nothing if there is none."""
        queue = self.queues.pop(name, None)
        if queue is not None:
            queue.delete()
            self.queue_deletes += 1

    def item_limit(self, name: str) -> int | None:
        """Return the greatest item in bytes that the named queue takes; None is any."""
        return self.config.settings_for(name).max_item_size

    def close(self) -> None:
        """Sync and close every queue, and give the folder free."""
        for queue in self.queues.values():
            queue.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _queue_of(file: Path) -> tuple[str, bool]:
    """Return whose file this is and whether it is the current one; ValueError for a stray file."""
    name, dot, _ = file.name.partition(".")
    if not name or "~" in name:
        raise ValueError(file.name)
    if dot:
        stamp(file)
    return _to_queue_name(name), not dot


def _to_queue_name(file_name: str) -> str:
    return os.fsencode(file_name).decode("latin-1")
