"""The cookie of a browser: one random id, and what hangs on it as Flask's ``session``.

The id stands for a login or for nobody yet. The CSRF token is derived from it and from the user's name, so a
token is good for one session of one user. Apart from that nothing can be kept here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Any

from flask import Flask, Request, Response, request
from flask.sessions import SessionInterface, SessionMixin

from kestrel_stack.web.access.sessions import is_id, new_id
from kestrel_stack.web.config import Config

CSRF = "csrf_token"


class Visit(dict[str, Any], SessionMixin):
    """What one browser's cookie stands for."""

    def __init__(self, visit_id: str, sent: bool, token: Callable[[str], str]):
        super().__init__()
        self.id = visit_id
        self.sent = sent
        """The browser sent this id; it has been given none otherwise."""
        self.give = False
        """The answer brings it to the browser."""
        self.gone = False
        """The answer takes it away."""
        self._token = token

    def become(self, visit_id: str) -> None:
        """Go on under another id."""
        self.id, self.give, self.gone = visit_id, True, False

    def leave(self) -> None:
        """End; what is shown from now on is for nobody."""
        self.become(new_id())
        self.give, self.gone = False, True

    def __contains__(self, key: object) -> bool:
        return key == CSRF or super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        if key == CSRF:
            self.give = self.give or not self.sent
            return self._token(self.id)
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        raise RuntimeError(f"{key!r} cannot be kept in a cookie of kestrel-web")


class Cookies(SessionInterface):
    """Gives browsers their ids and takes them back."""

    def __init__(self, config: Config, key: bytes, name: Callable[[], str]):
        self._key = key
        self._name = name
        """Returns the name of whoever makes the present request."""
        slug = re.sub(r"[^A-Za-z0-9]+", "-", config.prefix).strip("-")
        self._slug = f"-{slug}" if slug else ""
        self._path = config.prefix or "/"

    def name(self, request: Request, what: str = "") -> str:
        """Return a cookie's name: its own for every port and prefix of a host, since cookies mix them."""
        port = request.environ.get("SERVER_PORT", "")
        return f"kestrel-web-{port}{self._slug}" + (f"-{what}" if what else "")

    def _session_name(self, request: Request) -> str:
        # With __Host- the browser itself sees to it that no other host of the same domain set the cookie.
        return ("__Host-" if request.is_secure else "") + self.name(request)

    def open_session(self, app: Flask, request: Request) -> Visit:
        """Return what the request's cookie stands for."""
        sent = request.cookies.get(self._session_name(request))
        if sent and is_id(sent):
            return Visit(sent, True, self._token)
        return Visit(new_id(), False, self._token)

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Put the cookie into the answer when there is something new to say."""
        assert isinstance(session, Visit)
        secure = request.is_secure
        # __Host- wants the path /.
        where = {
            "path": "/" if secure else self._path,
            "secure": secure,
            "httponly": True,
            "samesite": "Lax",
        }
        if session.give:
            response.set_cookie(self._session_name(request), session.id, **where)
        elif session.gone:
            response.delete_cookie(self._session_name(request), **where)

    def _token(self, visit_id: str) -> str:
        text = f"csrf\0{visit_id}\0{self._name()}"
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
