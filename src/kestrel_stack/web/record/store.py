"""The SQLite file of kestrel-web: history, audit log, sessions, and what alerts were told.

One thread writes; everybody else reads over a connection of their own. Neither a poll nor a page waits for
the disk: views are handed over and coalesced, and what must be on disk before somebody goes on (the audit
entry of an action) waits for it in bounded time. While the file is locked by another program or its disk is
full, `trouble` says so, reads give what can be read, ten minutes of history wait in memory, and everything
goes on by itself afterwards.

A damaged file is moved aside under a name that says so; a new one takes over what can still be read of it,
but for the history.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kestrel_stack.web.model import View
from kestrel_stack.web.record import audit, database, history, recorder
from kestrel_stack.web.record.audit import AuditEntry
from kestrel_stack.web.record.database import (
    FILE,
    StoreError,
    StoreTrouble,
    identity,
    roll_back,
    used_bytes,
)
from kestrel_stack.web.record.history import Sample, ServerSample
from kestrel_stack.web.record.readers import Readers

WAIT_S = 3.0
"""So long somebody waits for what must be written."""
RETRY_S = 2.0
HOUSEKEEPING_S = 600.0
MAX_JOBS = 200

_MAX_VIEWS = 4
_VIEW_EVERY_S = 1.0
_MB = 1024 * 1024

T = TypeVar("T")
_log = logging.getLogger(__name__)


class _Job:
    """Something to write, and the one who waits for it."""

    def __init__(self, work: Callable[[sqlite3.Connection], Any], durable: bool):
        self.work, self.durable = work, durable
        self.over = threading.Event()
        self.abandoned = self.committing = False
        self.result: Any = None
        self.error: BaseException | None = None


class Store:
    """What is kept over restarts; every method may be called by any thread.

    Raises `StoreError` when the folder is another kestrel-web's, cannot be written, or has the file of a
    newer version. A file that is locked or a full disk is `trouble`, now as later.
    """

    def __init__(
        self,
        folder: Path,
        history_days: int = 30,
        history_mb: int = 512,
        interval_s: float = 2.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        self.folder, self.path = folder, folder / FILE
        self._clock, self._monotonic = clock, monotonic
        self._limit_bytes = history_mb * _MB
        self._recorder = recorder.Recorder(history_days, interval_s)
        self._run = uuid.uuid4().hex
        self._condition = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._views: deque[View] = deque(maxlen=_MAX_VIEWS)
        self._last_view = -float("inf")
        self._dirty: dict[str, str | None] = {}
        self._ends: list[tuple[int, float, str, dict[str, Any]]] = []
        self._stopping = False
        self._trouble: str | None = None
        self._said: set[str] = set()
        """Troubles that are in the log, since all was well."""
        self._damaged = False
        self._restored = False
        self._file: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        self._readers = Readers(self.path)
        self._sparks: dict[tuple[float, int], tuple[float, dict[str, list[float | None]], int]] = {}
        self._sparks_lock = threading.Lock()
        self._lock = database.take(folder)
        try:
            self._ready()
        except sqlite3.Error as exc:
            self._fail(exc)
        except BaseException:
            os.close(self._lock)
            raise
        self._next_try = self._monotonic()
        self._next_housekeeping = self._monotonic() + 60
        self._last_housekeeping = self._monotonic()
        self._thread = threading.Thread(target=self._write_loop, name="store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, as far as that is possible now, and give the folder free."""
        with self._condition:
            if self._stopping:
                return
            self._stopping = True
            self._condition.notify_all()
        self._thread.join(WAIT_S + 2 * database.WRITE_BUSY_S)
        self._readers.close(1.0)
        os.close(self._lock)

    def trouble(self) -> str | None:
        """Return in one line what is wrong with the file, or None."""
        return self._trouble

    # What is written

    def write(
        self,
        work: str | Callable[[sqlite3.Connection], T],
        params: Sequence[Any] = (),
        *,
        durable: bool = False,
        timeout: float = WAIT_S,
    ) -> T:
        """Run a statement, or a function of the connection, in a transaction of its own; return its result.

        Waits until it is committed, with `durable` until it would survive a power cut. Raises `StoreTrouble`
        when that does not happen within `timeout`: nothing is written then, unless the disk hangs in the very
        commit and comes back later.
        """
        if isinstance(work, str):
            statement = work
            job = _Job(lambda connection: connection.execute(statement, params).rowcount, durable)
        else:
            job = _Job(work, durable)
        with self._condition:
            if self._stopping:
                raise StoreTrouble("kestrel-web is stopping")
            if len(self._jobs) >= MAX_JOBS:
                raise StoreTrouble(self._trouble or f"too much waits for being written to {FILE}")
            self._jobs.append(job)
            self._condition.notify_all()
        if not job.over.wait(timeout):
            with self._condition:
                job.abandoned = not job.committing
            if job.abandoned or not job.over.wait(timeout):
                raise StoreTrouble(self._trouble or f"{FILE} could not be written in {timeout:g} s")
        if job.error is not None:
            if isinstance(job.error, sqlite3.Error | StoreError):
                raise StoreTrouble(database.say(job.error)) from job.error
            raise job.error
        return job.result

    def record(self, view: View) -> None:
        """Take a view into the history; never waits, and takes about one view in a second."""
        with self._condition:
            now = self._monotonic()
            if now - self._last_view < _VIEW_EVERY_S * 0.9 or self._stopping:
                return
            self._last_view = now
            self._views.append(view)
            self._condition.notify_all()

    def put(self, key: str, value: Any | None) -> None:
        """Keep a JSON value under `key`; never waits, and is repeated until the disk has it. None removes."""
        with self._condition:
            self._dirty[key] = None if value is None else json.dumps(value)
            self._condition.notify_all()

    def get(self, key: str) -> Any | None:
        """Return what was kept under `key`, or None; None too when it cannot be read now."""
        with contextlib.suppress(StoreTrouble):
            return self.fetch(key)
        return None

    def fetch(self, key: str) -> Any | None:
        """Return what was kept under `key`, or None; raise `StoreTrouble` when it cannot be read now."""
        with self._condition:
            if key in self._dirty:
                text = self._dirty[key]
                return None if text is None else json.loads(text)
        rows = self.read("SELECT value FROM kv WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    # The audit log

    def audit_begin(
        self,
        who: str,
        address: str,
        role: str,
        action: str,
        target: str,
        servers: Iterable[str] = (),
        detail: Mapping[str, Any] | None = None,
    ) -> int:
        """Write an entry that survives a power cut, and return its id.

        Raises `StoreTrouble` when that is not possible: the action must not be done then.
        """
        at, names = self._clock(), tuple(servers)
        return self.write(
            lambda connection: audit.begin(
                connection, at, self._run, who, address, role, action, target, names, detail or {}
            ),
            durable=True,
        )

    def audit_end(self, entry: int, outcome: str, detail: Mapping[str, Any] | None = None) -> None:
        """Write how an action ended; never raises, and is repeated until the disk has it."""
        if outcome not in audit.OUTCOMES:
            raise ValueError(f"{outcome!r} is no outcome; there are {', '.join(audit.OUTCOMES)}")
        end = (entry, self._clock(), outcome, dict(detail or {}))
        try:
            self.write(lambda connection: audit.end(connection, end[1], end[0], *end[2:]), durable=True)
        except StoreTrouble as exc:
            _log.warning("the outcome %s of audit entry %d waits for the disk: %s", outcome, entry, exc)
            with self._condition:
                self._ends.append(end)

    def audit_list(
        self, before_id: int | None = None, limit: int = 100, filters: Mapping[str, Any] | None = None
    ) -> list[AuditEntry]:
        """Return entries, the newest first, at most `limit` older than `before_id`; see `audit.FILTERS`.

        Nothing when the file cannot be read; `trouble` says why.
        """
        return self._reading(
            lambda connection: audit.find(connection, before_id, max(0, limit), filters or {}), []
        )

    # History

    def history(self, key: str, start: float, end: float, points: int = 300) -> list[Sample]:
        """Return a queue's samples at equal distances; with key ``""`` those of all queues together."""
        now, tiers = self._clock(), self._recorder.tiers
        return self._reading(
            lambda connection: history.queue_samples(
                connection, tiers, key, start, end, points, now, self._recorder.latest
            ),
            [],
        )

    def server_history(self, address: str, start: float, end: float, points: int = 300) -> list[ServerSample]:
        """Return a server's samples at equal distances."""
        now, tiers = self._clock(), self._recorder.tiers
        return self._reading(
            lambda connection: history.server_samples(
                connection, tiers, address, start, end, points, now, self._recorder.latest
            ),
            [],
        )

    def spark(
        self, keys: Iterable[str], seconds: float = 900, points: int = 60
    ) -> dict[str, list[float | None]]:
        """Return the backlog of each queue over the last `seconds`, oldest first; None is a gap."""
        wanted = list(keys)
        now, tiers = self._clock(), self._recorder.tiers
        if len(wanted) <= 20:
            return self._reading(
                lambda connection: history.some_sparks(
                    connection, tiers, wanted, seconds, points, now, self._recorder.latest
                ),
                {key: [] for key in wanted},
            )
        found, count = self._spark_table(seconds, points)
        return {key: found.get(key) or [None] * count for key in wanted}

    def _spark_table(self, seconds: float, points: int) -> tuple[dict[str, list[float | None]], int]:
        """Return everything's sparks, computed once a tick for all who ask."""
        step = self._recorder.tiers[0].step
        with self._sparks_lock:
            now = self._clock()
            known = self._sparks.get((seconds, points))
            if known is None or not 0 <= now - known[0] < step:
                tiers = self._recorder.tiers
                table, count = self._reading(
                    lambda connection: history.all_sparks(connection, tiers, seconds, points, now), ({}, 0)
                )
                if count and (latest := self._recorder.latest) is not None and latest[0] <= now:
                    history.complete_sparks(table, latest, count)
                if len(self._sparks) >= 4:
                    self._sparks.clear()
                known = self._sparks[seconds, points] = (now, table, count)
            return known[1:]

    # Reading

    def read(self, statement: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a statement; raise `StoreTrouble` when they cannot be read in a moment."""
        try:
            with self._readers.lend() as connection:
                return connection.execute(statement, params).fetchall()
        except (sqlite3.Error, OSError) as exc:
            raise StoreTrouble(self._read_failed(exc)) from exc

    def _reading(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        try:
            with self._readers.lend() as connection:
                return work(connection)
        except (sqlite3.Error, OSError) as exc:
            self._read_failed(exc)
            return otherwise

    def _read_failed(self, exc: Exception) -> str:
        text = database.say(exc)
        with self._condition:
            if not self._stopping:
                self._trouble = text
                self._damaged = self._damaged or database.code(exc) in database.DAMAGED
                self._condition.notify_all()
        return text

    # The thread that writes

    def _write_loop(self) -> None:
        while True:
            with self._condition:
                while not self._jobs and not self._stopping and not self._due():
                    self._condition.wait(self._until_due())
                job = self._jobs.popleft() if self._jobs else None
                views = list(self._views)
                self._views.clear()
                stopping = self._stopping
            try:
                if job is not None:
                    self._run_job(job)
                for view in views:
                    self._recorder.add(view)
                if self._damaged and self._monotonic() >= self._next_try:
                    self._repair()
                if job is None:
                    self._background(stopping)
            except Exception:
                _log.exception("kestrel-web's store goes on after an error of its own")
                self._next_try = self._monotonic() + RETRY_S
            if stopping and job is None:
                self._disconnect()
                return

    def _due(self) -> bool:
        return bool(self._views) or self._until_due() <= 0

    def _until_due(self) -> float:
        """Return the seconds until something is to be written that nobody waits for."""
        wanted = bool(self._dirty or self._ends or self._recorder.pending or self._trouble or self._damaged)
        # Housekeeping that is overdue waits for the next try, too.
        due = self._next_try if wanted else max(self._next_try, self._next_housekeeping)
        return due - self._monotonic()

    def _run_job(self, job: _Job) -> None:
        try:
            if job.abandoned:
                return
            connection = self._ready()
            if job.durable:
                connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                job.result = job.work(connection)
            except BaseException:
                roll_back(connection)
                raise
            # From here on it counts, or nobody waits for it any more.
            with self._condition:
                job.committing = not job.abandoned
            if not job.committing:
                roll_back(connection)
                return
            self._commit(connection)
            self._well()
        except (sqlite3.Error, StoreError) as exc:
            job.error = exc
            if not isinstance(exc, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                self._fail(exc)
        except BaseException as exc:
            job.error = exc
        finally:
            if job.durable and self._connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("PRAGMA synchronous = NORMAL")
            job.over.set()

    @staticmethod
    def _commit(connection: sqlite3.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except BaseException:
            roll_back(connection)
            raise

    def _background(self, stopping: bool) -> None:
        now = self._monotonic()
        if stopping:
            self._recorder.close()
        elif now < self._next_try:
            return
        with self._condition:
            dirty, ends = dict(self._dirty), list(self._ends)
        housekeeping = now >= self._next_housekeeping and not stopping
        if not (dirty or ends or self._recorder.pending or self._trouble or housekeeping):
            return
        try:
            connection = self._ready()
            self._restore(connection)
            connection.execute("BEGIN IMMEDIATE")
            try:
                for key, text in dirty.items():
                    if text is None:
                        connection.execute("DELETE FROM kv WHERE key = ?", (key,))
                    else:
                        connection.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, text))
                for entry, at, outcome, detail in ends:
                    audit.end(connection, at, entry, outcome, detail)
                self._recorder.flush(connection)
                if self._trouble:
                    # Whether it can be written at all is known only by writing.
                    connection.execute("INSERT OR REPLACE INTO kv VALUES ('probe', ?)", (str(self._clock()),))
                connection.execute("COMMIT")
            except BaseException:
                roll_back(connection)
                raise
            self._recorder.written()
            with self._condition:
                for key, text in dirty.items():
                    if self._dirty.get(key, "") == text:
                        self._dirty.pop(key, None)
                del self._ends[: len(ends)]
            self._well()
            if housekeeping:
                self._housekeep(now)
        except (sqlite3.Error, StoreError) as exc:
            self._fail(exc)
            self._next_try = self._monotonic() + RETRY_S

    def _restore(self, connection: sqlite3.Connection) -> None:
        if not self._restored:
            self._recorder.restore(connection, self._clock())
            self._restored = True

    def _housekeep(self, now: float) -> None:
        """Remove what is too old or too much, in steps between which others have their turn."""
        self._next_housekeeping = now + HOUSEKEEPING_S
        elapsed, self._last_housekeeping = now - self._last_housekeeping, now
        wall = self._clock()
        self._step(lambda connection: self._recorder.prune(connection, wall, elapsed))
        self._step(lambda connection: audit.prune(connection, wall))
        for _ in range(40):
            if self._stopping or used_bytes(self._ready()) <= self._limit_bytes:
                break
            if not self._step(self._recorder.shorten):
                break
        # A statement without columns is stepped once by `execute`, and gives back one page for each step.
        self._ready().executescript("PRAGMA incremental_vacuum(5000)")

    def _step(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do a part of the housekeeping, then what somebody waits for meanwhile."""
        connection = self._ready()
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            roll_back(connection)
            raise
        while True:
            with self._condition:
                job = self._jobs.popleft() if self._jobs else None
                views = list(self._views)
                self._views.clear()
            for view in views:
                self._recorder.add(view)
            if job is None:
                return result
            self._run_job(job)

    # The file

    def _ready(self) -> sqlite3.Connection:
        """Return the connection that writes, to the file that is there."""
        if self._connection is not None and self._file != identity(self.path):
            _log.warning("%s was removed or replaced while it was in use; it is opened anew", self.path)
            self._disconnect()
        if self._connection is None:
            self._connect()
        assert self._connection is not None
        return self._connection

    def _connect(self) -> None:
        connection = database.open_to_write(self.path, self._clock(), self._run)
        self._connection, self._file = connection, identity(self.path)
        self._recorder.forget()
        self._readers.renew()

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _repair(self) -> None:
        """Replace the file if it is damaged indeed."""
        self._damaged = False
        reason = database.damage(self.path)
        if reason is None:
            return
        self._disconnect()
        try:
            with self._readers.away(WAIT_S):
                self._connection = database.replace(self.path, self._clock(), self._run, reason)
                self._file = identity(self.path)
                self._recorder.forget()
        except (sqlite3.Error, StoreError, OSError) as exc:
            self._fail(exc)
            self._damaged = True
            self._next_try = self._monotonic() + RETRY_S

    def _well(self) -> None:
        self._trouble = None
        self._said.clear()

    def _fail(self, exc: BaseException) -> None:
        text = database.say(exc)
        if text not in self._said:
            _log.error("%s (%s: %s)", text, self.folder, exc)
            self._said.add(text)
        self._trouble = text
        if database.code(exc) in database.DAMAGED:
            self._damaged = True
