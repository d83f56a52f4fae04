"""Connections that read: one for each thread, lent for a moment, and all out of the way when they must be."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

from kestrel_stack.web.record import database


class _Reader:
    """A thread's connection, which ends with the thread."""

    def __init__(self, connection: sqlite3.Connection, generation: int):
        self.connection, self.generation = connection, generation

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()

    __del__ = close


class Readers:
    """The connections of all threads to one file."""

    def __init__(self, path: Path):
        self._path = path
        self._condition = threading.Condition()
        self._own = threading.local()
        self._all: weakref.WeakSet[_Reader] = weakref.WeakSet()
        self._generation = 0
        self._lent = 0
        self._replacing = self._closed = False

    @contextlib.contextmanager
    def lend(self) -> Iterator[sqlite3.Connection]:
        """Lend this thread's connection; while it is lent the file stays where it is."""
        with self._condition:
            if self._closed:
                raise sqlite3.ProgrammingError("kestrel-web is stopping")
            if self._replacing:
                raise sqlite3.OperationalError("it is being replaced")
            self._lent += 1
        try:
            yield self._connection()
        finally:
            with self._condition:
                self._lent -= 1
                self._condition.notify_all()

    def renew(self) -> None:
        """Have every thread open the file anew before it reads on: it is another one."""
        with self._condition:
            self._generation += 1

    @contextlib.contextmanager
    def away(self, seconds: float) -> Iterator[None]:
        """Keep every reader off the file meanwhile; who read then read the one that is there afterwards.

        Raises `sqlite3.OperationalError` when somebody still reads after `seconds`.
        """
        try:
            # Who reads while the files are renamed would have one file and the other's log.
            with self._condition:
                self._replacing = True
                if not self._condition.wait_for(lambda: self._lent == 0, seconds):
                    raise sqlite3.OperationalError("it is damaged, and still being read")
                self._generation += 1
            self._close_all()
            yield
        finally:
            with self._condition:
                self._replacing = False

    def close(self, seconds: float) -> None:
        """Lend no more, and close what is not lent within `seconds`."""
        with self._condition:
            self._closed = True
            unread = self._condition.wait_for(lambda: self._lent == 0, seconds)
        if unread:
            self._close_all()

    def _close_all(self) -> None:
        for reader in list(self._all):
            reader.close()

    def _connection(self) -> sqlite3.Connection:
        found: _Reader | None = getattr(self._own, "found", None)
        if found is not None and found.generation == self._generation:
            return found.connection
        if found is not None:
            found.close()
            del self._own.found
        generation = self._generation
        # A reader's end may come in another thread.
        connection = database.open_to_read(self._path, any_thread=True)
        try:
            connection.execute("PRAGMA query_only = 1")
            connection.execute("PRAGMA cache_size = -2000")
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.Error:
            connection.close()
            raise
        self._own.found = reader = _Reader(connection, generation)
        self._all.add(reader)
        return connection
