"""Which server next: a list of addresses, a fair turn for workers, and waiting times after a failure."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kestrel_stack.queue.errors import InvalidServer

DEFAULT_PORT = 22133
"""Kestrel's memcache port."""

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, order=True)
class Server:
    """One queue server's address."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_servers(servers: str | Iterable[str | Server]) -> tuple[Server, ...]:
    """Return the servers of ``"host:port,host:port"`` or of a list; `InvalidServer` names the wrong one.

    Without a port it is 22133; an IPv6 address stands in brackets when a port follows.
    """
    parts = servers.split(",") if isinstance(servers, str) else list(servers)
    found: list[Server] = []
    for part in parts:
        server = part if isinstance(part, Server) else _parse(part)
        if server in found:
            raise InvalidServer(f"The server {server} is listed twice.")
        found.append(server)
    if not found:
        raise InvalidServer("No server is given; write host:port, for example 127.0.0.1:22133.")
    return tuple(found)


def _parse(text: object) -> Server:
    match = _ADDRESS.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise InvalidServer(f"{text!r} is not a server; write host:port, for example 127.0.0.1:22133.")
    port = int(match["port"] or DEFAULT_PORT)
    if not 1 <= port <= 65535:
        raise InvalidServer(f"The server {text!r} has no such port; ports go from 1 to 65535.")
    return Server(match["host"].strip("[]"), port)


class Backoff:
    """Waiting times in seconds that double from `first` to `limit`, each shortened at random by up to a half.

    The chance keeps a hundred workers from knocking at the same moment when a server comes back.
    """

    def __init__(self, first: float = 0.2, limit: float = 5.0, chance: Callable[[], float] = random.random):
        self._first = first
        self._limit = limit
        self._chance = chance
        self._failures = 0

    def next(self) -> float:
        """Return how long to wait after one more failure, in seconds."""
        # The exponent is bounded, since 2.0 ** 2000 is an OverflowError after an outage of some hours.
        wait = min(self._limit, self._first * 2 ** min(self._failures, 30))
        self._failures += 1
        return wait * (1 - self._chance() / 2)

    def reset(self) -> None:
        """Begin with the shortest wait again."""
        self._failures = 0


class Rotation:
    """Every server in turn, beginning with number `start` modulo their count.

    A server that failed is left out until its backoff is over; the others go on being visited.
    """

    def __init__(
        self,
        servers: Iterable[Server],
        start: int = 0,
        clock: Callable[[], float] = time.monotonic,
        backoff: Callable[[], Backoff] = Backoff,
    ):
        self._servers = tuple(servers)
        self._at = start % len(self._servers)
        self._clock = clock
        self._backoffs = {server: backoff() for server in self._servers}
        self._not_before = dict.fromkeys(self._servers, float("-inf"))

    def __len__(self) -> int:
        return len(self._servers)

    @property
    def current(self) -> Server:
        """The server whose turn it is."""
        return self._servers[self._at]

    def answered(self) -> None:
        """Note that the current server works."""
        self._backoffs[self.current].reset()
        self._not_before[self.current] = float("-inf")

    def failed(self) -> None:
        """Note that the current server does not work, and move on to the next that may be tried."""
        self._not_before[self.current] = self._clock() + self._backoffs[self.current].next()
        self.advance()

    def advance(self) -> None:
        """Move on to the next server that may be tried; if all are failing, the one whose wait ends first."""
        following = [(self._at + step) % len(self._servers) for step in range(1, len(self._servers) + 1)]
        now = self._clock()
        for index in following:
            if self._not_before[self._servers[index]] <= now:
                self._at = index
                return
        self._at = min(following, key=lambda index: self._not_before[self._servers[index]])

    def pause(self) -> float:
        """Return how long to wait before the current server may be tried, in seconds; 0 for at once."""
        return max(0.0, self._not_before[self.current] - self._clock())
