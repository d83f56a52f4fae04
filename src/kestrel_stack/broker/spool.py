"""All queues of one folder, their fanouts and aliases, and the lock that keeps a second broker out of it.

A queue ``a+b`` is a fanout of ``a``: from its first use on, what is set to ``a`` is copied to it. An alias is
a name that is several queues for a set and empty for a get. Both as observed on Kestrel 2.4.1, and where
nobody has looked, as in Kestrel 2.4.1's code. Different here: an alias that a reload takes away is gone
(Kestrel keeps it until a restart), and a queue with open reads is not idle (Kestrel's max_queue_age deletes
it, and what its readers hold is lost when they fail).
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kestrel_stack.broker.config import Config, QueueSettings
from kestrel_stack.broker.journal import Journal, JournalError, stamp
from kestrel_stack.broker.protocol import HangUp
from kestrel_stack.broker.queue import Queue
from kestrel_stack.broker.timings import Timings

log = logging.getLogger("kestrel.spool")

ILLEGAL_IN_NAMES = frozenset("./~\0")
"""Kestrel refuses the first three; no file can have the last."""


class SpoolError(Exception):
    """The folder cannot be used; the text is one line that names it and the fix."""


def wall_clock() -> int:
    """Return unix milliseconds."""
    return int(time.time() * 1000)


class Alias:
    """A name that stands for several queues when something is set."""

    __slots__ = ("created_ms", "name", "put_bytes", "put_items", "targets")

    def __init__(self, name: str, targets: Sequence[str], created_ms: int):
        """``targets`` are the queues' names."""
        self.name = name
        self.targets = tuple(targets)
        self.created_ms = created_ms
        self.put_items = 0
        self.put_bytes = 0


class Spool:
    """The queues of a folder, loaded at start and made on first use."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], int] = wall_clock,
        syncer_for: Callable[[int], Callable[[Journal], None]] | None = None,
    ):
        """Take the folder of ``config``; nothing is read or made yet.

        ``syncer_for`` gives, for a number of ms, what is called with a journal that has its first unsynced
        record and shall be synced after so many ms; without it nobody is called.
        """
        self.config = config
        self.queues: dict[str, Queue] = {}
        self.timings: dict[str, Timings] = {}
        """By queue and alias."""
        self.past_timings = Timings()
        """Of the queues that are deleted."""
        self.fanouts: dict[str, dict[str, None]] = {}
        """Parent to its fanouts, in the order in which they came; who had one once stays, as in Kestrel."""
        self.aliases: dict[str, Alias] = {}
        self.total_items = 0
        self.queue_creates = 0
        self.queue_deletes = 0
        self.queue_expires = 0
        self._clock = clock
        self._syncer_for = syncer_for
        self._lock_fd = -1

    def load(self) -> None:
        """Load every queue in the folder; SpoolError if one cannot be."""
        for name, siblings in self._files(self.config.queue_path).items():
            self._load(name, siblings)
        for queue in list(self.queues.values()):
            self._make_expiry_target(queue.settings)
        self._make_aliases()

    def reload(self, config: Config) -> list[str]:
        """Give every queue its settings in ``config``, and take over its aliases.

        Returned is what queues keep until a restart, such as ``queue "a": keep_journal``.
        """
        self.config = config
        stays = []
        for name, queue in self.queues.items():
            settings = config.settings_for(name)
            keeps = queue.settings.keep_journal
            if settings.keep_journal != keeps:
                stays.append(f'queue "{name}": keep_journal')
                settings = replace(settings, keep_journal=keeps)
            queue.settings = settings
            self._set_sync(queue.journal, settings)
        for queue in list(self.queues.values()):
            self._make_expiry_target(queue.settings)
        self._make_aliases()
        return stays

    def _make_aliases(self) -> None:
        known, self.aliases = self.aliases, {}
        for name, targets in self.config.aliases.items():
            alias = known.pop(name, None)
            if alias is None:
                alias = Alias(name, targets, self._clock())
                if name in self.queues:
                    log.warning("%s: the alias hides a queue of this name", name)
            alias.targets = targets
            self.aliases[name] = alias
        for name in known:
            if name not in self.queues:
                self._forget_timings(name)

    def _set_sync(self, journal: Journal, settings: QueueSettings) -> None:
        period = self.config.sync_ms_for(settings)
        journal.sync_each_write = period == 0
        journal.on_unsynced = self._syncer_for(period) if period and self._syncer_for else _nobody

    def _find_or_make(self, name: str) -> Queue | None:
        """Return the queue that expired items go to; None if there can be none."""
        try:
            return self.get_or_create(name)
        except HangUp:
            return None

    def _make_expiry_target(self, settings: QueueSettings) -> None:
        """Make the queue that expired items go to, as Kestrel does: it is there before it is needed."""
        target = settings.expire_to_queue
        if target is not None and self._find_or_make(target) is None:
            log.error("%s: cannot be made, so nothing expires to it", target)

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
            for file in sorted(Path(entry.path) for entry in entries if _is_file(entry)):
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
        settings = self.config.settings_for(name)
        journal = Journal(path)
        self._set_sync(journal, settings)
        queue = Queue(name, settings, journal, self._clock, self._find_or_make)
        try:
            if path.exists() and not path.is_file():  # to open a pipe would be to wait for ever
                raise SpoolError(f"{path}: it is no regular file; move it out of the folder")
            returned = queue.recover(siblings)
        except OSError as error:
            raise SpoolError(f"{path}: cannot open the journal: {error.strerror}") from error
        except (JournalError, ValueError) as error:
            raise SpoolError(f"{path}: {error}") from error
        if returned:
            log.info("%s: %d open reads returned to the queue", name, returned)
        self.queues[name] = queue
        self.queue_creates += 1  # Kestrel counts those that it finds at start, too
        if "+" in name:
            parent = name.partition("+")[0]
            self.fanouts.setdefault(parent, {})[name] = None
            log.info("%s: gets copies of what is set to %s from now on", name, parent)
        return queue

    def get(self, name: str) -> Queue | None:
        """Return the named queue if there is one."""
        return self.queues.get(name)

    def get_or_create(self, name: str) -> Queue:
        """Return the named queue, made if need be; a name that no file can have is a silent close."""
        queue = self.queues.get(name)
        if queue is None:
            if not name.strip("+") or not ILLEGAL_IN_NAMES.isdisjoint(name):
                raise HangUp(why=f"illegal queue name {name[:80]!r}")
            try:
                queue = self._load(name)
            except SpoolError as error:
                log.warning("cannot make a queue: %s", error)
                raise HangUp(why="no such queue can be made") from error
            self._make_expiry_target(queue.settings)
        return queue

    def timings_of(self, name: str) -> Timings:
        """Return the distributions of the named queue or alias."""
        timings = self.timings.get(name)
        if timings is None:
            timings = self.timings[name] = Timings()
        return timings

    def _forget_timings(self, name: str) -> None:
        timings = self.timings.pop(name, None)
        if timings:
            self.past_timings.include(timings)

    # Adding

    def add(self, name: str, data: bytes, expires_in_ms: int | None = None, *, expiry_ms: int = 0) -> bool:
        """Add an item to the named queue and its fanouts, or to an alias's queues; False if it is refused.

        It expires ``expires_in_ms`` from now, or at ``expiry_ms`` (unix ms, 0 never). The fanouts come first,
        and what they refuse is their loss; an alias takes an item when all of its queues do, and those that
        do keep it in any case. JournalError: the queue has not got it, some of its fanouts may.
        """
        if name in self.fanouts or name in self.aliases:
            alias = self.aliases.get(name)
            if alias:
                alias.put_items += 1
                alias.put_bytes += len(data)
                taken = [self.add(to, data, expires_in_ms, expiry_ms=expiry_ms) for to in alias.targets]
                return all(taken)
            for child in tuple(self.fanouts[name]):
                self.add(child, data, expires_in_ms, expiry_ms=expiry_ms)
        queue = self.queues.get(name)
        if queue is None:
            queue = self.get_or_create(name)
        if queue.settings.fanout_only and "+" not in name:
            limit = queue.settings.max_item_size
            taken_here = not queue.closed and (limit is None or len(data) <= limit)
        else:
            taken_here = queue.add(data, expires_in_ms, expiry_ms=expiry_ms)
        if taken_here:
            self.total_items += 1
        return taken_here

    def refuse(self, name: str, size: int) -> None:
        """Do what is left of an add whose item of ``size`` bytes nobody would take."""
        alias = self.aliases.get(name)
        if alias:
            alias.put_items += 1
            alias.put_bytes += size
        for target in alias.targets if alias else [name]:
            self.get_or_create(target)

    def item_limit(self, name: str) -> int | None:
        """Return the greatest item in bytes that is taken under this name; None is any."""
        alias = self.aliases.get(name)
        if alias:
            limits = [self.item_limit(target) for target in alias.targets]
        else:
            limits = [
                self.config.settings_for(each).max_item_size for each in (name, *self.fanouts.get(name, ()))
            ]
        return None if None in limits else max(limit for limit in limits if limit is not None)

    # Ending

    def delete(self, name: str) -> None:
        """End the named queue and remove its files; nothing if there is none. It is no fanout any more."""
        if "+" in name:
            if not name.strip("+"):
                raise HangUp(why=f"illegal queue name {name[:80]!r}")
            self.fanouts.setdefault(name.partition("+")[0], {}).pop(name, None)
        queue = self.queues.pop(name, None)
        if queue is not None:
            self._forget_timings(name)
            self.queue_deletes += 1
            queue.delete()
            log.info("%s: deleted", name)

    def delete_idle(self) -> None:
        """Delete the empty queues that are older than their max_queue_age and that nobody has a read open on.

        Their age counts from when they were made or loaded, not from their last use, as in Kestrel.
        JournalError if a file cannot be removed.
        """
        now = self._clock()
        for name, queue in list(self.queues.items()):
            age = queue.settings.max_queue_age
            if age is None or queue.items or queue.open_reads or now <= queue.created_ms + age * 1000:
                continue
            self.queue_expires += 1
            self.delete(name)

    def close(self) -> None:
        """Sync and close every queue, and give the folder free."""
        for queue in self.queues.values():
            queue.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _nobody(journal: Journal) -> None:
    """Sync it at close only."""


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Say whether this is a regular file, or a link to one."""
    try:
        return entry.is_file()
    except OSError as error:
        log.warning("%s: left alone: %s; move it out of the folder", entry.path, error.strerror)
        return False


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
