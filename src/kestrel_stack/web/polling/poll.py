"""One poll of one server: everything that is known of it, within a bounded time, or why not.

A connection to the memcache port stays open: ``version`` and ``status`` on it prove that clients are
served, and its end tells that the server may be another since. The numbers come from the admin port when it
answers, else from ``stats``. Whether an admin port belongs to this server is found out, not assumed: two
servers on one machine cannot both have it.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from kestrel_stack.queue.servers import Backoff, Server
from kestrel_stack.web import keys
from kestrel_stack.web.model import ServerNumbers
from kestrel_stack.web.polling import admin, stats
from kestrel_stack.web.polling.line import Closed, Line, LineError
from kestrel_stack.web.polling.stats import Answer, Raw

log = logging.getLogger("kestrel-web")

STATUSES = (b"UP", b"READONLY", b"QUIESCENT", b"DOWN")
ADMIN_SHARE = 0.6
"""Part of a poll's time that an admin port may take; when it hangs, there is time for `stats` instead."""
ADMIN_AGAIN_S = 60.0
"""Longest time between two tries of an admin port that does not answer."""
MONOTONE = (
    *("cmd_get", "cmd_set", "cmd_peek", "get_hits", "get_misses"),
    *("bytes_read", "total_connections", "total_items"),
)
"""Counters that both ports show."""


class PollError(Exception):
    """A server that could not be asked; the message is one line and does not name it."""


@dataclass(frozen=True)
class Reading:
    """What one poll found. `queues` are by key, `at` is a moment of the monotonic clock."""

    at: float
    source: str
    status: str
    numbers: ServerNumbers
    queues: Mapping[str, Raw] = field(default_factory=dict)
    again: bool = False
    """The connection was made anew: counters may have begun from zero."""
    note: str | None = None
    """What is wrong with the admin port."""


class Probe:
    """Asks one server; used by one thread."""

    def __init__(
        self,
        server: Server,
        admin_port: Server | None,
        timeout: float,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ):
        self._server = server
        self._admin = admin_port
        self._timeout = timeout
        self._monotonic = monotonic
        self._line: Line | None = None
        self._version = ""
        self._by_admin = False
        self._note: str | None = None
        self._admin_from = float("-inf")
        self._admin_backoff = Backoff(first=2.0, limit=ADMIN_AGAIN_S, chance=chance)
        self._started: tuple[float, int, int] | None = None
        self._keys: dict[str, str | None] = {}

    def poll(self) -> Reading:
        """Ask once; raise `PollError` when there is no whole answer within the time-out."""
        deadline = self._monotonic() + self._timeout
        try:
            status, again = self._status(deadline)
            if again and self._by_admin:
                # Whether it is still this server's is found out anew.
                self._by_admin = False
                self._admin_from = float("-inf")
            answer = self._ask_admin(deadline) if self._by_admin else None
            source = "admin"
            if answer is None:
                source, answer = "memcache", self._stats()
                if self._admin is not None and self._monotonic() >= self._admin_from:
                    adopted = self._adopt(self._admin, deadline)
                    if adopted is not None:
                        source, answer = "admin", adopted
        except LineError as error:
            self.close()
            raise PollError(self._why(error)) from None
        return Reading(
            at=self._monotonic(),
            source=source,
            status=status,
            numbers=replace(answer.numbers, version=self._version),
            queues=self._by_key(answer.queues),
            again=again,
            note=self._note,
        )

    def close(self) -> None:
        """Drop the connection."""
        if self._line is not None:
            self._line.close()
        self._line = None

    # The memcache port

    def _status(self, deadline: float) -> tuple[str, bool]:
        """Return the server's status, and whether the connection is a new one."""
        if self._line is not None and self._line.idle():
            self._line.deadline = deadline
            try:
                return self._hello(self._line), False
            except Closed:
                pass  # between our look and the request; a new connection tells more
        self.close()
        self._line = Line(self._server, deadline, self._monotonic)
        return self._hello(self._line), True

    def _hello(self, line: Line) -> str:
        line.send(b"version\r\nstatus\r\n")
        version = line.line()
        if not version.startswith(b"VERSION "):
            raise LineError(f"answers {_shown(version)} to `version`: it is no Kestrel")
        status = line.line()
        if status not in STATUSES:
            raise LineError(f"answers {_shown(status)} to `status`: it is no Kestrel 2.4")
        self._version = version[8:48].decode("ascii", "backslashreplace")
        return status.decode("ascii")

    def _stats(self, mark: bytes = b"") -> Answer:
        assert self._line is not None
        self._line.send(b"stats" + mark + b"\r\n")
        return stats.parse(self._line.until(b"\r\nEND\r\n"))

    # The admin port

    def _ask_admin(self, deadline: float) -> Answer | None:
        """Return the numbers of the admin port, or None; then it is left alone for a while."""
        assert self._admin is not None
        now = self._monotonic()
        try:
            return self._admin_answer(self._admin, now + (deadline - now) * ADMIN_SHARE)
        except LineError as error:
            self._refuse(str(error))
            return None

    def _adopt(self, at: Server, deadline: float) -> Answer | None:
        """Return the numbers of the admin port when it is this server's, and use it from now on.

        It is when its counters lie between what the memcache port says before and after. The first request
        is of a random length, which shows in the bytes that the server has read.
        """
        assert self._line is not None
        now = self._monotonic()
        try:
            before = self._stats(b" " + b"x" * (1 + secrets.randbelow(4000))).numbers
            found = self._admin_answer(at, now + (deadline - now) * ADMIN_SHARE, anew=True)
        except Closed:
            if self._line.idle():
                self._refuse("closed the connection")
                return None
            raise
        except LineError as error:
            if self._monotonic() >= deadline:
                raise
            self._refuse(str(error))
            return None
        after = self._stats().numbers
        for name in MONOTONE:
            if not getattr(before, name) <= getattr(found.numbers, name) <= getattr(after, name):
                self._refuse(
                    "it belongs to another server (its counters differ); give this one's own in admin_ports, "
                    "or null for none"
                )
                return None
        self._by_admin, self._note = True, None
        self._admin_backoff.reset()
        return found

    def _admin_answer(self, at: Server, deadline: float, anew: bool = False) -> Answer:
        answer = admin.parse(admin.fetch(at, "/stats.json", deadline, self._monotonic))
        now = self._monotonic()
        if self._started is None or anew:
            uptime, their_time = admin.started(
                admin.fetch(at, "/server_info.json", deadline, self._monotonic)
            )
            self._started = (now, uptime, their_time)
        since, uptime, their_time = self._started
        passed = int(now - since)
        return replace(
            answer,
            numbers=replace(
                answer.numbers, uptime_s=uptime + passed, time=their_time + passed if their_time else 0
            ),
        )

    def _refuse(self, why: str) -> None:
        self._by_admin = False
        self._note = f"The admin port {self._admin} is not used: {why}."
        self._admin_from = self._monotonic() + self._admin_backoff.next()

    # Names

    def _by_key(self, queues: Mapping[str, Raw]) -> dict[str, Raw]:
        if len(self._keys) > 2 * len(queues) + 1000:
            self._keys.clear()
        found: dict[str, Raw] = {}
        for name, raw in queues.items():
            if name not in self._keys:
                self._keys[name] = self._key(name)
            key = self._keys[name]
            if key is not None:
                found[key] = raw
        return found

    def _key(self, name: str) -> str | None:
        # A Java server that found a file with such a name may show characters that no client can send.
        encoded = name.encode("latin-1", "replace")
        if not keys.legal(encoded) or encoded.decode("latin-1") != name:
            log.warning(
                "%s has a queue that no client can name, %a; it is left out (a stray file in its spool?)",
                self._server,
                name[:300],
            )
            return None
        return keys.make(encoded)

    def _why(self, error: LineError) -> str:
        why = str(error)
        return f"no answer within {self._timeout:g} s" if why == "no answer in time" else why


def _shown(line: bytes) -> str:
    return repr(line[:60].decode("ascii", "backslashreplace"))
