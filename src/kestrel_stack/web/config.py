"""The configuration of kestrel-web: one JSON file, flags over it, every value checked before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kestrel_stack.queue.servers import Server
from kestrel_stack.queue.settings import Settings

ACTIONS = (
    "flush",
    "flush_expired",
    "delete",
    "enqueue",
    "requeue",
    "reload",
    "status",
    "shutdown",
)
DEFAULT_ACTIONS = tuple(action for action in ACTIONS if action != "shutdown")
ROLES = ("viewer", "operator")
DEFAULT_PORT = 8090
DEFAULT_ADMIN_PORT = 2223


class ConfigError(Exception):
    """A configuration that cannot be used; the message is one line that says what and how to mend it."""


@dataclass(frozen=True)
class User:
    """Somebody who may log in; `password_hash` is argon2's own text."""

    name: str
    password_hash: str
    role: str = "viewer"


@dataclass(frozen=True)
class Token:
    """A program that may ask: `sha256` is the hexadecimal digest of its bearer token.

    `role` is ``metrics`` (only /metrics), ``viewer`` or ``operator``.
    """

    name: str
    sha256: str
    role: str = "metrics"


@dataclass(frozen=True)
class Proxy:
    """Who may say in `header` who the user is: requests that come from `addresses`, and nobody else."""

    header: str
    addresses: tuple[str, ...]
    operators: tuple[str, ...] = ()
    """Names that are operators; all others are viewers."""


@dataclass(frozen=True)
class Webhook:
    """Where alerts go: a POST of JSON for each crossing and each recovery."""

    url: str
    timeout_s: float = 5.0


@dataclass(frozen=True)
class Config:
    """Everything that a kestrel-web is told. Times are seconds."""

    servers: tuple[Server, ...]
    admin_port: int | None = DEFAULT_ADMIN_PORT
    """Of every server that `admin_ports` does not name."""
    admin_ports: Mapping[Server, int | Server | None] = field(default_factory=dict)
    """A `Server` is a port on another address; None: this server's admin port is not asked."""
    listen: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    prefix: str = ""
    """Path below which everything is served, like ``/queues``; empty is none."""
    hosts: tuple[str, ...] = ()
    """Further names in the Host header by which it may be called; loopback names and `listen` always may."""
    state: Path = Path()
    """Folder of the SQLite file and the session key."""
    settings: tuple[Settings, ...] = ()
    """Applications whose queues are described."""
    read_only: bool = False
    actions: tuple[str, ...] = DEFAULT_ACTIONS
    users: tuple[User, ...] = ()
    tokens: tuple[Token, ...] = ()
    proxy: Proxy | None = None
    forwarded_from: tuple[str, ...] = ()
    """Addresses whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    session_s: int = 12 * 3600
    session_idle_s: int = 2 * 3600
    """A session that nobody uses ends after."""
    interval_s: float = 2.0
    """Between two polls of a server."""
    timeout_s: float = 3.0
    """That one server gets for a poll."""
    stale_after_s: float = 10.0
    history_days: int = 30
    history_mb: int = 512
    """The history's share of the disk; the oldest goes first."""
    confirm_typed_from: int = 100
    """From so many items on the queue's name must be typed to flush or delete it."""
    peek_bytes: int = 64 * 1024
    """As much of an item is shown."""
    no_consumers_after_s: float = 60.0
    webhook: Webhook | None = None
    event_url: str = ""
    """Where events of parked jobs are, with a placeholder of `kestrel_stack.web.events`; empty: no links."""
    environment: str = ""
    """Shown in the title, so that nobody flushes production by mistake."""

    def admin(self, server: Server) -> Server | None:
        """Return where a server's admin port is; None when it is not to be asked."""
        found = self.admin_ports.get(server, self.admin_port)
        return Server(server.host, found) if isinstance(found, int) else found

    @property
    def login(self) -> bool:
        """Whether anybody has to say who they are."""
        return bool(self.users) or self.proxy is not None
