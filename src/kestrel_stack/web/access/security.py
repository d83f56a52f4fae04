"""What protects every answer of kestrel-web, whatever view makes it.

`Front` sees a request before Flask does: it decides what of the request can be believed, and puts the same
headers on every answer. `_guard` then refuses what may not be, in this order: the host, the address, where
the request comes from, who makes it, read-only, the CSRF token.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from flask import Flask, Response, abort, make_response, redirect, request, url_for
from flask_wtf.csrf import CSRFError, CSRFProtect
from werkzeug.wrappers import Response as BaseResponse

from kestrel_stack.web import problems
from kestrel_stack.web.access.auth import PROXY_USER, Undeclared, declared, visit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from kestrel_stack.web.access.auth import Auth
    from kestrel_stack.web.config import Config
    from kestrel_stack.web.site import Site

MAX_BODY = 1024 * 1024
MAX_HEADER = 64 * 1024

SERVER_LIMITS: dict[str, Any] = {
    "ident": None,
    "max_request_header_size": MAX_HEADER,
    # Flask refuses what is larger than MAX_BODY, with an answer of ours; waitress what is much larger.
    "max_request_body_size": 4 * MAX_BODY,
    # Somebody who sends a request byte by byte is not waited for; so many connections cost little memory.
    "channel_timeout": 30,
    "connection_limit": 300,
    "inbuf_overflow": 64 * 1024,
    # `Front` judges them, and has to see them for that.
    "clear_untrusted_proxy_headers": False,
}
"""What waitress is told."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
HEADERS = (
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
HTTPS_HEADERS = (
    ("Strict-Transport-Security", "max-age=31536000"),
    # Without https browsers ignore it, and complain on every page.
    ("Cross-Origin-Opener-Policy", "same-origin"),
)

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
LOGIN, LOGOUT = "login.login", "login.logout"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

log = logging.getLogger("kestrel-web")

_BAD_HOST = "kestrel_web.bad_host"
_IGNORED = "kestrel_web.ignored_proxy"
_OUTSIDE = "kestrel_web.outside"
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?")
_FORWARDED = (
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_FORWARDED_PORT",
    "HTTP_X_FORWARDED_PREFIX",
    "HTTP_FORWARDED",
)
_PORTS = {"http": 80, "https": 443}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def install(app: Flask, parts: Site) -> None:
    """Protect an application, before its blueprints are registered."""
    app.secret_key = parts.auth.key
    app.session_interface = parts.auth.cookies
    app.config.update(
        MAX_CONTENT_LENGTH=MAX_BODY,
        MAX_FORM_MEMORY_SIZE=MAX_BODY,
        # A token is good as long as its session; `_guard` asks for it where it is needed, and looks at where
        # a request comes from itself, not over https only.
        WTF_CSRF_TIME_LIMIT=None,
        WTF_CSRF_CHECK_DEFAULT=False,
        WTF_CSRF_SSL_STRICT=False,
    )
    # An address is the one that it looks like: nothing is redirected for a slash too many.
    app.url_map.merge_slashes = False
    csrf = CSRFProtect(app)
    app.before_request(lambda: _guard(app, parts.config, parts.auth, csrf))
    app.wsgi_app = Front(app.wsgi_app, parts.config)  # type: ignore[method-assign]


class Front:
    """Decides what of a request can be believed, and puts the same headers on every answer.

    Who sent a request is what the socket says. Only a peer in `forwarded_from` may name another sender and
    another scheme, only one in `proxy.addresses` a user; from anybody else such headers are thrown away.
    """

    def __init__(self, app: WSGIApplication, config: Config):
        self._app = app
        self._prefix = config.prefix.rstrip("/")
        self._hosts = frozenset(
            host.lower().strip("[]").rstrip(".") for host in (*LOOPBACK_NAMES, config.listen, *config.hosts)
        )
        self._forwarders = networks(config.forwarded_from)
        self._proxies = networks(config.proxy.addresses if config.proxy else ())
        header = config.proxy.header if config.proxy else ""
        self._user_header = "HTTP_" + header.upper().replace("-", "_") if header else None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        peer = environ.get("REMOTE_ADDR") or ""
        self._user(environ, peer)
        self._forwarded(environ, peer)
        self._host(environ)
        self._path(environ)
        secure = environ["wsgi.url_scheme"] == "https"

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(status, _protected(headers, secure), exc_info)

        return self._app(environ, start)

    def _user(self, environ: WSGIEnvironment, peer: str) -> None:
        if self._user_header is None:
            return
        said = environ.pop(self._user_header, None)
        if said is None:
            return
        if not within(peer, self._proxies):
            environ[_IGNORED] = peer
            return
        name = user_name(said)
        if name is None:
            log.warning("the proxy %s named a user that is none: %s", plain(peer), plain(said))
            return
        environ[PROXY_USER] = name

    def _forwarded(self, environ: WSGIEnvironment, peer: str) -> None:
        said = {name: environ.pop(name, "") for name in _FORWARDED}
        if not within(peer, self._forwarders):
            return
        # Each proxy adds who asked it at the end; the first from there who is none of them is the sender.
        for each in reversed(said["HTTP_X_FORWARDED_FOR"].split(",")):
            sender = _address(each)
            if sender is None:
                break
            environ["REMOTE_ADDR"] = str(sender)
            if not within(str(sender), self._forwarders):
                break
        scheme = said["HTTP_X_FORWARDED_PROTO"].rpartition(",")[2].strip().lower()
        if scheme in _PORTS:
            environ["wsgi.url_scheme"] = scheme

    def _host(self, environ: WSGIEnvironment) -> None:
        said = environ.get("HTTP_HOST", "")
        match = _HOST.fullmatch(said)
        if match is not None:
            name = match["name"].strip("[]").lower().rstrip(".")
            if name in self._hosts or f"{name}:{match['port']}" in self._hosts:
                return
        environ[_BAD_HOST] = said
        environ["HTTP_HOST"] = "localhost"

    def _path(self, environ: WSGIEnvironment) -> None:
        if not self._prefix:
            return
        path = environ.get("PATH_INFO", "")
        environ["SCRIPT_NAME"] = self._prefix
        if path == self._prefix or path.startswith(self._prefix + "/"):
            environ["PATH_INFO"] = path[len(self._prefix) :]
        else:
            environ[_OUTSIDE] = path


def _protected(headers: list[tuple[str, str]], secure: bool) -> list[tuple[str, str]]:
    ours = (*HEADERS, *HTTPS_HEADERS) if secure else HEADERS
    names = {name.lower() for name, _ in ours}
    kept = [(name, value) for name, value in headers if name.lower() not in names]
    if not any(name.lower() == "cache-control" for name, _ in kept):
        kept.append(("Cache-Control", "no-store"))
    return [*kept, *ours]


def _guard(app: Flask, config: Config, auth: Auth, csrf: CSRFProtect) -> BaseResponse | None:
    environ = request.environ
    if _BAD_HOST in environ:
        return _wrong_host(environ[_BAD_HOST])
    if _OUTSIDE in environ:
        if environ[_OUTSIDE] in ("", "/") and request.method == "GET":
            return redirect(f"{config.prefix}/")
        abort(404, f"Everything of this kestrel-web is below {config.prefix}/.")
    if config.prefix and not environ.get("PATH_INFO") and request.method == "GET":
        return redirect(f"{config.prefix}/")
    changes = request.method not in SAFE_METHODS
    if changes and (line := foreign(needed=auth.bearer() is None)):
        log.warning("%s %s refused, from %s: %s", request.method, plain(request.path), auth.address(), line)
        abort(403, line)
    if request.routing_exception is not None or request.endpoint is None:
        return None
    _check_role(app, auth)
    if changes:
        if config.read_only and request.endpoint not in (LOGIN, LOGOUT):
            abort(403, "This kestrel-web is read-only; nothing can be changed with it.")
        if auth.bearer() is None:
            _check_token(csrf)
    return None


def _check_role(app: Flask, auth: Auth) -> None:
    endpoint = request.endpoint or ""
    needed = declared(app.view_functions[endpoint])
    if needed is None or (needed is Undeclared and endpoint.rpartition(".")[2] == "static"):
        return
    if not isinstance(needed, str):
        log.error("nobody may use %s, since it declares no role", endpoint)
        abort(403, "Nobody may do this.")
    identity = auth.who()
    if identity is None:
        _ask_for_login(auth)
    elif not identity.may(needed):
        abort(403, f"Only somebody with the role {needed} may do this; {identity.name} is {identity.role}.")


def _ask_for_login(auth: Auth) -> None:
    if auth.bearer() is not None:
        abort(401, "This token is not known.")
    if problems.wanted():
        abort(401)
    if not auth.config.users:
        assert auth.config.proxy is not None
        line = f"The proxy in front has to say who you are, in the header {auth.config.proxy.header}."
        if _IGNORED in request.environ:
            line += f" {plain(request.environ[_IGNORED])} said so, but is not in proxy.addresses."
        abort(401, line)
    back = url_for(LOGIN, next=_here())
    if request.method in ("GET", "HEAD") and _is_navigation():
        abort(redirect(back, 303))
    from kestrel_stack.web.views.pages import error_page

    abort(error_page(401, "You are not logged in any more; nothing was changed.", login_url=back))


def _is_navigation() -> bool:
    """Return whether somebody goes to a page; a script is better told the truth than shown the login."""
    headers = request.headers
    return headers.get("Sec-Fetch-Mode", "navigate") == "navigate" and "X-Kestrel-Fragment" not in headers


def _here() -> str:
    """Return where somebody goes on after a login: a form that was sent is shown again, and not sent."""
    query = request.query_string.decode("latin-1") if request.method in ("GET", "HEAD") else ""
    return request.script_root + request.path + (f"?{query}" if query else "")


def _check_token(csrf: CSRFProtect) -> None:
    line = None
    if not visit().sent:
        line = "The browser sent no cookie of this page; allow it cookies, load the page again and try again."
    else:
        try:
            csrf.protect()
        except CSRFError:
            line = "The page with this form was too old; load it again and try again."
    if line:
        log.info("%s %s refused: no valid CSRF token", request.method, plain(request.path))
        abort(400, line)


def _wrong_host(said: str) -> Response:
    name = plain(said)[:200] or "no name at all"
    line = (
        f"kestrel-web is not called {name}: "
        'add the name by which you call it to "hosts" in its configuration (or to --hosts).'
    )
    if problems.wanted():
        return problems.response(problems.Problem(400, "wrong_host", line))
    return make_response(line + "\n", 400, {"Content-Type": "text/plain; charset=utf-8"})


def foreign(needed: bool = True) -> str | None:
    """Return why the present request cannot come from one of our own pages; None: it does.

    A browser says where a request comes from and lets no page forge that. With `needed` a request that says
    nothing is refused as well.
    """
    origin, referer = request.headers.get("Origin"), request.headers.get("Referer")
    site = request.headers.get("Sec-Fetch-Site")
    if site not in (None, "same-origin", "none"):
        return "This request came from another site."
    said = origin if origin is not None else referer
    if said is None:
        if site == "same-origin" or not needed:
            return None
        return "The request does not say where it comes from; send the header Origin."
    ours, theirs = _origin(f"{request.scheme}://{request.host}"), _origin(said)
    if theirs == ours:
        return None
    if theirs is not None and ours is not None and theirs[0] != ours[0] and theirs[1:2] == ours[1:2]:
        return (
            f"The page was called by {theirs[0]}, and kestrel-web by {ours[0]}: add the address of the proxy "
            'between them to "forwarded_from" and have it send X-Forwarded-Proto.'
        )
    return "This request came from another site."


def _origin(text: str) -> tuple[str, str, int] | None:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname.rstrip("."), port or _PORTS[parts.scheme]


def local_path(text: str | None, prefix: str) -> str | None:
    """Return `text` if it is the address of one of our own pages, without host and scheme; else None."""
    if not text or len(text) > 4096 or not text.startswith(f"{prefix}/"):
        return None
    # Browsers take a backslash for a slash and leave out tabs and line ends.
    if text.startswith("//") or "\\" in text or any(not 0x20 < ord(char) < 0x7F for char in text):
        return None
    if {".", ".."}.intersection(unquote(urlsplit(text).path).split("/")):
        return None
    return text


def networks(addresses: Iterable[str]) -> tuple[Network, ...]:
    """Return addresses and networks of the configuration as networks."""
    return tuple(ipaddress.ip_network(address, strict=False) for address in addresses)


def within(address: str, trusted: Iterable[Network]) -> bool:
    """Return whether an address is one of these."""
    parsed = _address(address)
    return parsed is not None and any(parsed.version == each.version and parsed in each for each in trusted)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(text.strip().strip("[]").partition("%")[0])
    except ValueError:
        return None
    # What an IPv6 socket calls somebody who came by IPv4.
    return getattr(parsed, "ipv4_mapped", None) or parsed


def user_name(said: str) -> str | None:
    """Return the user of a proxy's header; None when it is none.

    A comma is how two headers become one: a proxy that adds its own to what a browser sent names nobody.
    """
    try:
        name = said.encode("latin-1").decode("utf-8").strip()
    except UnicodeError:
        return None
    return name if 0 < len(name) <= 200 and name.isprintable() and "," not in name else None


def plain(text: str) -> str:
    """Return a text that is one line and moves no cursor, for logs."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )


class LogFormatter(logging.Formatter):
    """One line per message, whatever is in it: nobody writes lines into the log who only sends requests."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line; an exception's own lines follow it, each behind a bar."""
        return plain(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return an exception's lines, so that none looks like a message."""
        return "\n".join("  | " + plain(line) for line in super().formatException(ei).splitlines())
