"""All queues of one folder, and the lock that keeps a second broker out of it."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from kestrel_stack.broker.config import Config
from kestrel_stack.broker.journal import Journal, JournalError
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

    def open(self) -> None:
        """Lock the folder and load every queue in it; SpoolError if that cannot be."""
        path = self.config.queue_path
        self._lock(path)
        for name in sorted(self._names(path)):
            self._load(name)

    def _lock(self, path: Path) -> None:
        # The lock is on the folder itself: a lock file in it would be taken for a queue.
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

    def _names(self, path: Path) -> set[str]:
        names = set()
        with os.scandir(path) as entries:
            for entry in entries:
                if "~~" in entry.name or not entry.is_file():
                    continue
                name, dot, rest = entry.name.partition(".")
                if not name or "~" in name or (dot and not _is_stamp(rest)):
                    # Kestrel does not start at all with such a file in its folder.
                    log.warning("%s: not a journal, left alone; move it out of the folder", entry.path)
                else:
                    names.add(os.fsencode(name).decode("latin-1"))
        return names

    def _load(self, name: str) -> Queue:
        path = self.config.queue_path / os.fsdecode(name.encode("latin-1"))
        journal = Journal(
            path, sync_each_write=self.config.sync_journal_ms == 0, on_unsynced=self._on_unsynced
        )
        queue = Queue(name, self.config.settings_for(name), journal, self._clock)
        try:
            returned = queue.recover()
        except OSError as error:
            raise SpoolError(f"{path}: cannot read the journal: {error.strerror}") from error
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
            except (SpoolError, JournalError, OSError) as error:
                raise HangUp(why=f"cannot make queue {name[:80]!r}: {error}") from error
            self.queue_creates += 1
        return queue

    def delete(self, name: str) -> None:
        """End the named queue and remove its files; nothing if there is none."""
        queue = self.queues.pop(name, None)
        if queue:
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


def _is_stamp(rest: str) -> bool:
    number = rest.split(".")[0]
    return number.isascii() and number.isdigit()
