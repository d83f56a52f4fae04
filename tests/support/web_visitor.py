"""Somebody with a browser without JavaScript: keeps cookies, fills in forms, says where it comes from."""

from __future__ import annotations

import re
from http.cookies import SimpleCookie
from urllib.parse import urlencode

from argon2 import PasswordHasher

from support.kestrel_web import KestrelWeb

PASSWORD = "correct horse battery"
_CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
_TOKEN = re.compile(r'name="csrf_token" value="([^"]+)"')


def user(name: str, role: str = "viewer", password: str = PASSWORD) -> dict[str, str]:
    """An entry of the key `users`; its hash is a cheap one, so that tests are fast."""
    return {"name": name, "password_hash": _CHEAP.hash(password), "role": role}


class Visitor:
    """A browser at one kestrel-web."""

    def __init__(self, web: KestrelWeb, **headers: str):
        self.web = web
        self.prefix = web.config.get("prefix", "")
        self.cookies: dict[str, str] = {}
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.origin = f"http://127.0.0.1:{web.port}"

    def get(self, path: str, **headers: str):
        return self.send("GET", path, headers=headers)

    def post(self, path: str, fields: dict | None = None, token: str | None = None, **headers: str):
        """Send a form as a page of kestrel-web would; without `token` that of this browser's login page."""
        token = self.token() if token is None else token
        body = urlencode({**(fields or {}), "csrf_token": token}).encode()
        own = {"Content-Type": "application/x-www-form-urlencoded", "Origin": self.origin}
        return self.send("POST", path, body, {**own, **headers})

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None):
        """Send a request with this browser's cookies; header names may be written with underscores."""
        given = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent = {**self.headers, **({"Cookie": cookie} if cookie else {}), **given}
        response = self.web.request(method, self.prefix + path, body, sent)
        self.keep(response)
        return response

    def keep(self, response) -> None:
        for line in response.headers.get_all("Set-Cookie") or []:
            for name, morsel in SimpleCookie(line).items():
                if morsel["max-age"] == "0" or morsel["expires"].startswith("Thu, 01 Jan 1970"):
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value

    def token(self) -> str:
        """The CSRF token of this browser, out of a page that has a form."""
        # Where nobody logs in by a form, the form of an operator has one.
        for path in ("/login", f"/servers/{self.web.config['servers'][0]}/do/status"):
            found = _TOKEN.search(self.get(path).data.decode())
            if found:
                return found[1]
        raise AssertionError("no page with a form was found")

    def log_in(self, name: str, password: str = PASSWORD, **fields: str):
        return self.post("/login", {"name": name, "password": password, **fields})

    def logged_in(self, name: str, password: str = PASSWORD) -> Visitor:
        """Log in, which must work."""
        answer = self.log_in(name, password)
        assert answer.status == 303, (answer.status, answer.data)
        return self
