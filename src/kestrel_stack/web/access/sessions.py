"""Who is logged in: a random id in a cookie, and what it stands for on the server.

The database holds a digest of the id only, so that nobody gets into a session by reading it. When it cannot
be asked, sessions go on in memory: trouble with the disk locks nobody out.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kestrel_stack.web.record.store import StoreTrouble

if TYPE_CHECKING:
    from kestrel_stack.web.config import User
    from kestrel_stack.web.record.store import Store

PER_USER = 50
"""Sessions that one user has at most; the one that rested longest goes first."""
IN_MEMORY = 5000
SEEN_EVERY_S = 60.0
"""How exactly the database knows when a session was used last."""
FUTURE_S = 300.0
"""A session that began so much later than now was not: the clock was set back."""
WRITE_S = 0.5
"""So long a login, a logout or a page waits for the database at most."""
AGAIN_S = 2.0
"""For so long a database in trouble is not asked again for what memory knows as well."""

log = logging.getLogger("kestrel-web")

_ID = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class _Session:
    user: str
    stamp: bytes
    """Of the password hash with which it began: another password ends the session."""
    made: float
    seen: float
    saved: bool
    """The database has it, and decides from then on."""


def new_id() -> str:
    """Return 256 random bits as a cookie holds them."""
    return secrets.token_urlsafe(32)


def is_id(text: str | None) -> bool:
    """Return whether this looks like an id that `new_id` made."""
    return text is not None and _ID.fullmatch(text) is not None


class Sessions:
    """The sessions of the configured users."""

    def __init__(
        self,
        store: Store,
        users: Iterable[User],
        longest_s: float,
        idle_s: float,
        clock: Callable[[], float] = time.time,
    ):
        self._store = store
        self._users = {user.name: user for user in users}
        self._longest_s = longest_s
        self._idle_s = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, _Session] = OrderedDict()
        self._ended: OrderedDict[bytes, None] = OrderedDict()
        """Those that ended last, so that nothing brings them back."""
        self._to_delete: set[bytes] = set()
        """Those of them that the database may still have."""
        self._trouble_until = 0.0

    def begin(self, user: User) -> str:
        """Begin a session and return its id, which nobody but the browser keeps."""
        session_id, now = new_id(), self._clock()
        key = _digest(session_id)
        session = _Session(user.name, _stamp(user), now, now, saved=False)

        def insert(database: sqlite3.Connection) -> None:
            database.execute(
                "INSERT INTO sessions (id_hash, user, stamp, made, seen) VALUES (?, ?, ?, ?, ?)",
                (key, session.user, session.stamp, session.made, session.seen),
            )
            database.execute(
                "DELETE FROM sessions WHERE made < ? OR seen < ?", (now - self._longest_s, now - self._idle_s)
            )
            database.execute(
                "DELETE FROM sessions WHERE user = ?1 AND id_hash NOT IN "
                "(SELECT id_hash FROM sessions WHERE user = ?1 ORDER BY seen DESC LIMIT ?2)",
                (session.user, PER_USER),
            )

        self._keep(key, replace(session, saved=self._write(insert)))
        return session_id

    def user(self, session_id: str) -> User | None:
        """Return whose session this is; None when it never was one or has ended."""
        if not is_id(session_id):
            return None
        key, now = _digest(session_id), self._clock()
        session = self._find(key)
        if session is None:
            return None
        user = self._users.get(session.user)
        if (
            user is None
            or not secrets.compare_digest(session.stamp, _stamp(user))
            or self._over(session, now)
        ):
            self._end(key)
            return None
        if now - session.seen >= SEEN_EVERY_S and self._keep(key, replace(session, seen=now)):
            self._write("UPDATE sessions SET seen = ? WHERE id_hash = ?", (now, key))
        return user

    def end(self, session_id: str) -> None:
        """End a session; an id that stands for none is no matter."""
        if self.user(session_id) is not None:
            self._end(_digest(session_id))

    def _over(self, session: _Session, now: float) -> bool:
        return (
            now - session.made >= self._longest_s
            or now - session.seen >= self._idle_s
            or max(session.made, session.seen) - now > FUTURE_S
        )

    def _find(self, key: bytes) -> _Session | None:
        with self._lock:
            if key in self._ended:
                return None
            known = self._known.get(key)
            if known is not None and time.monotonic() < self._trouble_until:
                return known
        try:
            rows = self._store.read("SELECT user, stamp, made, seen FROM sessions WHERE id_hash = ?", (key,))
        except StoreTrouble as exc:
            self._in_trouble(exc)
            return known
        if self._to_delete:
            self._delete_ended()
        if rows:
            user, stamp, made, seen = rows[0]
            found = _Session(user, bytes(stamp), made, max(seen, known.seen if known else seen), saved=True)
            self._keep(key, found)
            return found
        if known is not None and known.saved:
            # Another process ended it.
            with self._lock:
                self._known.pop(key, None)
            return None
        return known

    def _end(self, key: bytes) -> None:
        with self._lock:
            self._known.pop(key, None)
            self._ended[key] = None
            self._to_delete.add(key)
            while len(self._ended) > IN_MEMORY:
                self._to_delete.discard(self._ended.popitem(last=False)[0])
        self._delete_ended()

    def _delete_ended(self) -> None:
        with self._lock:
            waiting = list(self._to_delete)

        def delete(database: sqlite3.Connection) -> None:
            database.executemany("DELETE FROM sessions WHERE id_hash = ?", [(key,) for key in waiting])

        if self._write(delete):
            with self._lock:
                self._to_delete.difference_update(waiting)

    def _keep(self, key: bytes, session: _Session) -> bool:
        with self._lock:
            if key in self._ended:
                return False
            self._known[key] = session
            self._known.move_to_end(key)
            while len(self._known) > IN_MEMORY:
                self._known.popitem(last=False)
        return True

    def _write(
        self, work: str | Callable[[sqlite3.Connection], None], values: tuple[object, ...] = ()
    ) -> bool:
        try:
            self._store.write(work, values, timeout=WRITE_S)
        except StoreTrouble as exc:
            self._in_trouble(exc)
            return False
        return True

    def _in_trouble(self, exc: Exception) -> None:
        now = time.monotonic()
        with self._lock:
            first = now >= self._trouble_until
            self._trouble_until = now + AGAIN_S
        if first:
            log.warning("sessions are kept in memory for the moment: %s", exc)


def _digest(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode("ascii")).digest()


def _stamp(user: User) -> bytes:
    return hashlib.sha256(user.password_hash.encode()).digest()
