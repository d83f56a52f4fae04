"""Doing something once, although a job may be delivered twice.

::

    from kestrel_stack.queue.once import Once, SqliteStore

    once = Once(SqliteStore("/srv/shop/shared/once.db"))

    @registry.job("PostUpload")
    def post_upload(data, context):
        once.run(f"post-upload-{data['upload']}", 7 * 86400, lambda: api.post(data["upload"]))

What this can promise, and what not: of two workers with the same key, one runs the function, and the other
raises `Busy` (so that its job is tried again later) or, after the first has finished, does nothing. A worker
that dies between the act and its mark leaves a claim behind; when its lease is over, the function runs again.
No helper can do better from outside: only the one who acts, such as an API that takes an idempotency key, can
make the act and its mark one.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from kestrel_stack.queue.errors import QueueError

LEASE = 60.0
"""Seconds that a claim holds; let it be the queue's job_timeout, after which no worker is at it any more."""
MAX_KEY = 200
PREFIX = "kestrel_stack_once:"
"""What the keys in Redis begin with."""

_SQL_MAKE = (
    "CREATE TABLE IF NOT EXISTS kestrel_stack_once (name VARCHAR(200) PRIMARY KEY, "
    "token VARCHAR(36) NOT NULL, done SMALLINT NOT NULL, until_ms BIGINT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS kestrel_stack_once_until ON kestrel_stack_once (until_ms)",
)
_SQL_FORGET = "DELETE FROM kestrel_stack_once WHERE until_ms <= ?"
_SQL_CLAIM = (
    "INSERT INTO kestrel_stack_once (name, token, done, until_ms) VALUES (?, ?, 0, ?) "
    "ON CONFLICT (name) DO NOTHING"
)
_SQL_LOOK = "SELECT done FROM kestrel_stack_once WHERE name = ?"
_SQL_MARK = (
    "INSERT INTO kestrel_stack_once (name, token, done, until_ms) VALUES (?, ?, 1, ?) ON CONFLICT (name) "
    "DO UPDATE SET done = 1, until_ms = excluded.until_ms WHERE kestrel_stack_once.token = excluded.token"
)
_SQL_RELEASE = "DELETE FROM kestrel_stack_once WHERE name = ? AND token = ? AND done = 0"


class Busy(QueueError):  # noqa: N818 - it names what is the matter
    """Another worker is at it now. Let it go through: the job is then tried again later."""


class StoreFailed(QueueError):  # noqa: N818 - it names what is the matter
    """The store could not be used, so nothing was run, or it is not known to be done."""


class Store(ABC):
    """Where claims and marks are kept; every worker that shares the keys must use the same store."""

    @abstractmethod
    def claim(self, key: str, token: str, lease: float) -> bool:
        """Claim `key` for `lease` seconds; False when it is done. Raises `Busy` and `StoreFailed`."""

    @abstractmethod
    def mark(self, key: str, token: str, ttl: float) -> None:
        """Note for `ttl` seconds that `key` is done, unless another has claimed it meanwhile."""

    @abstractmethod
    def release(self, key: str, token: str) -> None:
        """Give a claim back."""


class Once:
    """Runs functions once per key. `lease` is in seconds."""

    def __init__(self, store: Store, lease: float = LEASE):
        if not lease > 0:
            raise ValueError(f"The lease must be a number of seconds above 0, not {lease!r}.")
        self._store = store
        self._lease = lease

    def run(self, key: str, ttl: float, function: Callable[[], Any]) -> bool:
        """Run `function` unless it has succeeded for `key` within the last `ttl` seconds; say whether it ran.

        Raises `Busy` while another worker is at it, `StoreFailed` when the store does not answer, and what
        the function raises: then it counts as not done, and may be tried again at once.
        """
        if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
            raise ValueError(f"The key must be a text of 1 to {MAX_KEY} characters, not {key!r}.")
        if not ttl > 0:
            raise ValueError(f"The ttl must be a number of seconds above 0, not {ttl!r}.")
        token = uuid.uuid4().hex
        if not self._store.claim(key, token, self._lease):
            return False
        try:
            function()
        except BaseException:
            # What the function raised matters more than a claim that ends with its lease anyway.
            with contextlib.suppress(StoreFailed):
                self._store.release(key, token)
            raise
        self._store.mark(key, token, ttl)
        return True


class SqliteStore(Store):
    """A table in the SQLite file at `path`, which is made if need be. For the workers of one host.

    The file must lie on a local disk: SQLite's locks do not hold on network drives. Another worker's lock is
    waited for at most `timeout` seconds.
    """

    def __init__(self, path: str | os.PathLike[str], timeout: float = 5.0):
        self._path = os.fspath(path)
        self._timeout = timeout

    def claim(self, key: str, token: str, lease: float) -> bool:
        """Claim `key` in one transaction."""
        now = _now_ms()
        with self._transaction() as database:
            database.execute(_SQL_FORGET, (now,))
            if database.execute(_SQL_CLAIM, (key, token, now + round(lease * 1000))).rowcount:
                return True
            (done,) = database.execute(_SQL_LOOK, (key,)).fetchone()
        if done:
            return False
        raise Busy(f"Another worker is at {key!r}.")

    def mark(self, key: str, token: str, ttl: float) -> None:
        """Mark `key` as done, also when the claim has run out and was cleared away."""
        with self._transaction() as database:
            database.execute(_SQL_MARK, (key, token, _now_ms() + round(ttl * 1000)))

    def release(self, key: str, token: str) -> None:
        """Delete the claim."""
        with self._transaction() as database:
            database.execute(_SQL_RELEASE, (key, token))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # A connection for each transaction: threads and forks need no thought then.
        try:
            with closing(
                sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None)
            ) as database:
                # Locked from the first statement on: a lock that is upgraded later can fail at once.
                database.execute("BEGIN IMMEDIATE")
                for statement in _SQL_MAKE:
                    database.execute(statement)
                yield database
                # Without it, as after an error, closing takes everything back.
                database.execute("COMMIT")
        except sqlite3.Error as exc:
            raise StoreFailed(f"The SQLite file {self._path} cannot be used: {exc}.") from None


class RedisStore(Store):
    """Keys in Redis, through the client object that the application has (``redis.Redis``).

    For workers of several hosts. A Redis that evicts keys, or was restored from an older copy, forgets.
    """

    _MARK = (
        "local v = redis.call('get', KEYS[1]) "
        "if not v or v == ARGV[1] then redis.call('set', KEYS[1], 'done', 'PX', ARGV[2]) end"
    )
    _RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end"

    def __init__(self, client: Any):
        self._client = client

    def claim(self, key: str, token: str, lease: float) -> bool:
        """Claim `key` with SET NX."""
        name, value = PREFIX + key, f"claimed {token}"
        if self._call(self._client.set, name, value, nx=True, px=max(1, round(lease * 1000))):
            return True
        found = self._call(self._client.get, name)
        if found in (b"done", "done"):
            return False
        # Also when the claim ran out between the two calls: the next try will see.
        raise Busy(f"Another worker is at {key!r}.")

    def mark(self, key: str, token: str, ttl: float) -> None:
        """Mark `key` as done, also when the claim has run out."""
        milliseconds = max(1, round(ttl * 1000))
        self._call(self._client.eval, self._MARK, 1, PREFIX + key, f"claimed {token}", milliseconds)

    def release(self, key: str, token: str) -> None:
        """Delete the claim."""
        self._call(self._client.eval, self._RELEASE, 1, PREFIX + key, f"claimed {token}")

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except Exception as exc:
            # The client's own errors, of whatever library and version the application has.
            raise StoreFailed(f"Redis cannot be used: {exc}") from exc


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
