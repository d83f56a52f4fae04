"""Who asks, and what they may do: every endpoint declares a role, and one that declares none is refused.

A view says who may call it::

    @blueprint.get("/queues")
    @role("viewer")
    def queues() -> str: ...

``metrics`` is below ``viewer``, ``viewer`` below ``operator``; ``role(None)`` is for everybody.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from flask import g, request, session

from kestrel_stack.web.access import passwords
from kestrel_stack.web.access.cookies import Cookies, Visit
from kestrel_stack.web.access.sessions import Sessions, new_id
from kestrel_stack.web.access.throttle import Limit, Throttle, network

if TYPE_CHECKING:
    from kestrel_stack.web.config import Config, User
    from kestrel_stack.web.record.store import Store

Role = Literal["metrics", "viewer", "operator"]
RANKS = {"metrics": 0, "viewer": 1, "operator": 2}

KEY_FILE = "session.key"
KEY_BYTES = 32
MAX_NAME = 200

PROXY_USER = "kestrel_web.proxy_user"
"""In the WSGI environment: the user that a trusted proxy names."""

BY_USER = Limit(free=10, longest_s=60)
BY_ADDRESS = Limit(free=20, longest_s=300)
BY_DEVICE = Limit(free=5, longest_s=300)

log = logging.getLogger("kestrel-web")

_ATTRIBUTE = "kestrel_web_role"
_View = TypeVar("_View", bound=Callable[..., Any])


class Undeclared:
    """What `declared` returns for a view without a role."""


@dataclass(frozen=True)
class Identity:
    """Who makes the present request, and how that is known."""

    name: str
    role: str
    via: str
    """``session``, ``proxy``, ``token``, or ``local`` where nobody has to log in."""

    def may(self, role: str) -> bool:
        """Return whether this is enough for what `role` may do."""
        return RANKS[self.role] >= RANKS[role]


@dataclass(frozen=True)
class Refusal:
    """A login that failed, in one line; `retry_s` when it would have to wait in any case."""

    line: str
    status: int
    retry_s: int | None = None


LOCAL = Identity("local", "operator", "local")


def role(needed: Role | None) -> Callable[[_View], _View]:
    """Declare who may call a view; put it right above the function, below the route."""
    if needed is not None and needed not in RANKS:
        raise ValueError(f"{needed!r} is not a role")

    def declare(view: _View) -> _View:
        setattr(view, _ATTRIBUTE, needed)
        return view

    return declare


def declared(view: object) -> str | type[Undeclared] | None:
    """Return the role that a view declares."""
    return getattr(view, _ATTRIBUTE, Undeclared)


class Auth:
    """Who may do what on one site."""

    def __init__(self, config: Config, store: Store):
        self.config = config
        self.key = load_key(config.state)
        self.cookies = Cookies(config, self.key, self._name)
        self.sessions = Sessions(store, config.users, config.session_s, config.session_idle_s)
        self._passwords = passwords.Passwords(user.password_hash for user in config.users)
        self._users = {user.name: user for user in config.users}
        # Names of users have room of their own, so that a flood of other names pushes none of them out.
        self._by_user = Throttle(BY_USER, max(1, len(config.users)))
        self._by_other_name = Throttle(BY_USER, 10_000)
        self._by_address = Throttle(BY_ADDRESS, 10_000)
        self._by_device = Throttle(BY_DEVICE, 1_000)
        for user in config.users:
            if passwords.outdated(user.password_hash):
                log.info(
                    "the password hash of %r was made with older parameters; "
                    "make a new one with: kestrel-web hash-password",
                    user.name,
                )

    def who(self) -> Identity | None:
        """Return who makes the present request; None: somebody who has to log in."""
        if "kestrel_web_who" not in g:
            g.kestrel_web_who = self._identify()
        return cast("Identity | None", g.kestrel_web_who)

    def address(self) -> str:
        """Return the address that the present request comes from, as far as that can be believed."""
        return request.remote_addr or ""

    def bearer(self) -> str | None:
        """Return the bearer token of the present request; with one nothing else says who it is."""
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        return value.strip() if scheme.lower() == "bearer" else None

    def log_in(self, name: str, password: str, device: str | None) -> str | Refusal:
        """Log somebody in and return what their browser shows next time as `device`."""
        user = self._users.get(name)
        known_device = self._device_of(name, device)
        attempts = self._attempts(name, user, known_device)
        begun: list[tuple[Throttle, str]] = []
        for throttle, key in attempts:
            wait = throttle.begin(key)
            if wait:
                _take_back(begun)
                seconds = max(1, math.ceil(wait))
                return Refusal(f"Too many attempts failed; try again in {seconds} s.", 429, seconds)
            begun.append((throttle, key))
        try:
            right = self._passwords.right(user.password_hash if user else None, password)
        except passwords.BusyError:
            _take_back(begun)
            return Refusal("Too many people log in at this moment; try again in a few seconds.", 503, 2)
        if user is None or not right:
            log.warning("login as %r failed, from %s", name[:MAX_NAME], self.address())
            return Refusal("The name or the password is wrong.", 403)
        _take_back(begun)
        self.log_out()
        visit().become(self.sessions.begin(user))
        g.pop("kestrel_web_who", None)
        log.info("%r logged in, from %s", user.name, self.address())
        return device if device and known_device else self._new_device(user.name)

    def log_out(self) -> None:
        """End the session of the present request, if it has one."""
        known = visit()
        if known.sent and self.sessions.user(known.id) is not None:
            self.sessions.end(known.id)
        known.leave()
        g.pop("kestrel_web_who", None)

    def _identify(self) -> Identity | None:
        token = self.bearer()
        if token is not None:
            return self._token(token)
        named = request.environ.get(PROXY_USER)
        if named is not None and self.config.proxy is not None:
            operator = named in self.config.proxy.operators
            return Identity(named, "operator" if operator else "viewer", "proxy")
        known = visit()
        user = self.sessions.user(known.id) if known.sent and self._users else None
        if user is not None:
            return Identity(user.name, user.role, "session")
        return None if self.config.login else LOCAL

    def _token(self, token: str) -> Identity | None:
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for known in self.config.tokens:
            if hmac.compare_digest(known.sha256.lower().encode(), digest.encode()):
                found = known
        return Identity(found.name, found.role, "token") if found else None

    def _name(self) -> str:
        identity = self.who()
        return f"{identity.via} {identity.name}" if identity else ""

    def _attempts(self, name: str, user: User | None, device: str | None) -> list[tuple[Throttle, str]]:
        if device is not None:
            # Whoever logged in from this browser before is kept out by nobody else's failures.
            return [(self._by_device, device)]
        by_name = self._by_user if user else self._by_other_name
        return [(self._by_address, network(self.address())), (by_name, _short(name))]

    def _new_device(self, name: str) -> str:
        device = new_id()
        return f"{device}.{self._device_mark(name, device)}"

    def _device_of(self, name: str, text: str | None) -> str | None:
        device, _, mark = (text or "").partition(".")
        expected = self._device_mark(name, device)
        return device if hmac.compare_digest(mark.encode(), expected.encode()) else None

    def _device_mark(self, name: str, device: str) -> str:
        text = f"device\0{device}\0{name}".encode("utf-8", "surrogatepass")
        return hmac.new(self.key, text, hashlib.sha256).hexdigest()


def visit() -> Visit:
    """Return what the present request's cookie stands for."""
    return cast(Visit, session._get_current_object())  # type: ignore[attr-defined]


def load_key(state: Path) -> bytes:
    """Return the secret of this kestrel-web, made at the first start: 0600 in the state folder.

    Where it cannot be kept it is a new one at every start; forms that are open then have to be loaded again.
    """
    if state == Path():
        return secrets.token_bytes(KEY_BYTES)
    file = state / KEY_FILE
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_key(file)
        key = file.read_bytes()
        if len(key) == KEY_BYTES:
            return key
        log.warning("%s is not %d bytes long; remove it to have a new one", file, KEY_BYTES)
    except OSError as exc:
        log.warning("%s cannot be used: %s", file, exc.strerror)
    return secrets.token_bytes(KEY_BYTES)


def _make_key(file: Path) -> None:
    """Make the file unless it is there: whole or not at all, and once only when two start together."""
    if file.exists():
        return
    new = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(secrets.token_bytes(KEY_BYTES))
            out.flush()
            os.fsync(out.fileno())
        try:
            file.hardlink_to(new)
        except FileExistsError:
            return
    finally:
        new.unlink(missing_ok=True)


def _take_back(begun: list[tuple[Throttle, str]]) -> None:
    for throttle, key in begun:
        throttle.take_back(key)


def _short(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
