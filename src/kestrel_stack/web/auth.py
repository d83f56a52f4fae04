"""Who asks, and what they may do: every endpoint declares a role, and one that declares none is refused.

A view says who may call it::

    @blueprint.get("/queues")
    @role("viewer")
    def queues() -> str: ...

``metrics`` is below ``viewer``, ``viewer`` below ``operator``; ``role(None)`` is for everybody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from kestrel_stack.web.config import Config
    from kestrel_stack.web.store import Store

Role = Literal["metrics", "viewer", "operator"]
RANKS = {"metrics": 0, "viewer": 1, "operator": 2}

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
        self.store = store

    def who(self) -> Identity | None:
        """Return who makes the present request; None: somebody who has to log in."""
        if not self.config.login:
            return Identity("local", "operator", "local")
        return None

    def address(self) -> str:
        """Return the address that the present request comes from, as far as it can be believed."""
        from flask import request

        return request.remote_addr or ""
