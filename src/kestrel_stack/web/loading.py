"""The configuration from a file and flags: every value checked, and nothing started that is wrong or open."""

from __future__ import annotations

import argparse
import ipaddress
import json
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kestrel_stack import __version__
from kestrel_stack.queue import settings
from kestrel_stack.queue.errors import InvalidServer, SettingsError
from kestrel_stack.queue.flags import Parser, UsageError
from kestrel_stack.queue.servers import Server, parse_servers
from kestrel_stack.queue.settings import Settings
from kestrel_stack.web import events
from kestrel_stack.web.access import passwords
from kestrel_stack.web.checks import Values, nearest
from kestrel_stack.web.config import (
    ACTIONS,
    DEFAULT_ACTIONS,
    DEFAULT_ADMIN_PORT,
    DEFAULT_PORT,
    ROLES,
    Config,
    ConfigError,
    Proxy,
    Token,
    User,
    Webhook,
)
from kestrel_stack.web.thresholds import limits

KEYS = tuple(entry.name for entry in fields(Config))
FLAGS = (
    *("servers", "settings", "listen", "port", "prefix", "state", "admin_port", "interval_s"),
    *("read_only", "environment", "event_url"),
)
SECRETS = ("users", "tokens", "webhook")
"""Hashes to guess at, and an address that takes alerts."""

_PREFIX = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_HOST = re.compile(r"(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])")
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,99}")
_NAME = re.compile(r"[^\s:]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_A_USER = ("authorization", "cookie", "host", "origin", "referer", "user-agent", "content-type")


def parser() -> argparse.ArgumentParser:
    """Return the parser of kestrel-web's flags."""
    made = Parser(
        prog="kestrel-web",
        description="A page to see every queue of some Kestrel servers, and to act on it safely.",
        epilog="Further: `kestrel-web hash-password` makes the hash of a password for the configuration. "
        "Every flag but --config and --check is a key of the configuration file, and goes before it. "
        "Exit status: 0 done; 1 it cannot start; 78 wrong flags or configuration.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--config", metavar="FILE.json", help="the configuration; without it flags are all there is")
    add("--servers", metavar="HOST:PORT,…", help="Kestrel servers, by their memcache port")
    add(
        *("--settings",),
        metavar="FILE.json",
        action="append",
        help="an application's settings file: its queues, their limits, and without --servers its servers "
        "(repeatable)",
    )
    add("--listen", metavar="ADDRESS", help="address to listen at (default: 127.0.0.1)")
    add("--port", type=int, metavar="N", help=f"port to listen at (default: {DEFAULT_PORT}; 0: any)")
    add("--prefix", metavar="/PATH", help="path below which it is served (default: none)")
    add("--state", metavar="FOLDER", help="for history and audit log (default: ~/.local/state/kestrel-web)")
    add(
        *("--admin-port",),
        type=_port_or_none,
        metavar="N",
        default=argparse.SUPPRESS,
        help=f"the servers' admin port (default: {DEFAULT_ADMIN_PORT}; none: do not ask it)",
    )
    add("--interval", type=float, metavar="S", dest="interval_s", help="seconds between polls (default: 2)")
    add("--environment", metavar="NAME", help="shown in the title, for example production")
    add(
        *("--event-url",),
        metavar="URL",
        help="where events of parked jobs are: an address with {event_id} or {event_uuid} in it",
    )
    add("--read-only", action="store_true", default=None, help="no action at all, for nobody")
    add("--check", action="store_true", help="check flags and configuration, and end")
    add("--version", action="version", version=f"kestrel-web {__version__}")
    return made


def load(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Return the configuration of a command line; raise `ConfigError` with one line about what is wrong."""
    return settle(parse(argv), environ)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the flags of a command line; raise `ConfigError` with one line about what is wrong."""
    try:
        return parser().parse_args(argv)
    except UsageError as exc:
        raise ConfigError(str(exc)) from None


def settle(options: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """Return the configuration of parsed flags; raise `ConfigError` with one line about what is wrong."""
    content: dict[str, Any] = {}
    file = Path(options.config) if options.config else None
    if file is not None:
        content = _read(file)
    given = {
        key: getattr(options, key)
        for key in FLAGS
        if hasattr(options, key) and (key == "admin_port" or getattr(options, key) is not None)
    }
    names = {key: f"--{key.removesuffix('_s').replace('_', '-')}" for key in given}
    values = Values({**content, **given}, KEYS, str(file) if file else "flags", names)
    if file is not None:
        _guard(file, content)
    return _check(values, environ)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"The configuration {file} does not exist.") from None
    except PermissionError:
        raise ConfigError(f"The configuration {file} may not be read by this user.") from None
    except OSError as error:
        raise ConfigError(f"The configuration {file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"The configuration {file} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold one JSON object.")
    return content


def _guard(file: Path, content: Mapping[str, Any]) -> None:
    """Refuse a file with secrets that everybody may read, if they get to it."""
    secrets = [key for key in SECRETS if content.get(key)]
    file = file.resolve()
    mode = file.stat().st_mode
    reached = all(folder.stat().st_mode & stat.S_IXOTH for folder in file.parents)
    if secrets and reached and stat.S_ISREG(mode) and mode & stat.S_IRWXO:
        raise ConfigError(
            f'{file} holds secrets ("{secrets[0]}") and is open to every user of this machine; '
            f"run: chmod o= {file}"
        )


def _check(values: Values, environ: Mapping[str, str]) -> Config:
    described = _settings(values)
    servers = _servers(values, described)
    interval_s = values.seconds("interval_s", 2.0, 0.05, 60)
    config = Config(
        servers=servers,
        admin_port=_admin_port(values),
        admin_ports=_admin_ports(values, servers),
        listen=_listen(values),
        port=values.whole("port", DEFAULT_PORT, 0, 65535),
        prefix=_prefix(values),
        hosts=_hosts(values),
        state=_state(values, environ),
        settings=described,
        read_only=values.flag("read_only"),
        actions=_actions(values),
        users=_users(values),
        tokens=_tokens(values),
        proxy=_proxy(values),
        forwarded_from=values.networks("forwarded_from"),
        session_s=values.whole("session_s", 12 * 3600, 60, 366 * 86400),
        session_idle_s=values.whole("session_idle_s", 2 * 3600, 60, 366 * 86400),
        interval_s=interval_s,
        timeout_s=values.seconds("timeout_s", 3.0, 0.1, 60),
        stale_after_s=values.seconds("stale_after_s", max(10.0, 3 * interval_s), 0.5, 3600),
        history_days=values.whole("history_days", 30, 1, 3660),
        history_mb=values.whole("history_mb", 512, 1, 1024 * 1024),
        confirm_typed_from=values.whole("confirm_typed_from", 100, 0, 10**15),
        peek_bytes=values.whole("peek_bytes", 64 * 1024, 1, 16 * 1024 * 1024),
        no_consumers_after_s=values.seconds("no_consumers_after_s", 60.0, 0, 7 * 86400),
        webhook=_webhook(values),
        event_url=_event_url(values),
        environment=values.text("environment", "", 40),
    )
    if config.stale_after_s <= interval_s:
        raise values.wrong("stale_after_s", f"must be more than interval_s, which is {interval_s:g}")
    _refuse_open(values, config)
    return config


def _refuse_open(values: Values, config: Config) -> None:
    """Refuse to let anybody in who can reach the address."""
    address = ipaddress.ip_address(config.listen)
    login = 'give "users" (`kestrel-web hash-password` makes a hash) or a "proxy" in the configuration'
    if not address.is_loopback and not config.login:
        raise ConfigError(
            f"Listening at {config.listen} lets everybody in who can reach this machine, since there is no "
            f"login: {login}, or listen at 127.0.0.1."
        )
    if config.forwarded_from and not config.login:
        raise values.wrong("forwarded_from", f"lets everybody in whom that proxy lets through: {login}")
    if address.is_unspecified and not config.hosts:
        raise values.wrong(
            "hosts", f'must name how browsers call it (like ["queues.example.org"]) at {config.listen}'
        )


def _servers(values: Values, described: Sequence[Settings]) -> tuple[Server, ...]:
    given = values.content.get("servers")
    if given is None:
        found = tuple(dict.fromkeys(server for each in described for server in each.servers))
        if not found:
            raise ConfigError(
                "No server is given: name them with --servers HOST:PORT,…, for example 127.0.0.1:22133, "
                "or give --config FILE or --settings FILE."
            )
        return found
    try:
        if not isinstance(given, str | list):
            raise InvalidServer("It must be a list of texts like 127.0.0.1:22133.")
        return parse_servers(given)
    except InvalidServer as error:
        raise ConfigError(f"{values.name('servers')}: {error}") from None


def _settings(values: Values) -> tuple[Settings, ...]:
    found: list[Settings] = []
    for path in values.texts("settings"):
        try:
            # Without the environment: KESTREL_STACK_… is for one application's workers.
            loaded = settings.load(path, {})
            for queue in loaded.queues.values():
                try:
                    limits(queue.alert)
                except SettingsError as error:
                    raise SettingsError(f"{path}: queue '{queue.name}': {error}") from None
        except SettingsError as error:
            raise ConfigError(str(error)) from None
        found.append(loaded)
    return tuple(found)


def _admin_port(values: Values) -> int | None:
    if values.content.get("admin_port", DEFAULT_ADMIN_PORT) is None:
        return None
    return values.whole("admin_port", DEFAULT_ADMIN_PORT, 1, 65535)


def _admin_ports(values: Values, servers: Sequence[Server]) -> dict[Server, int | Server | None]:
    content = values.content.get("admin_ports")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise values.wrong("admin_ports", "must be an object, of servers to their admin ports")
    ports: dict[Server, int | Server | None] = {}
    for name, port in content.items():
        try:
            server = parse_servers(name)[0]
            if isinstance(port, str):
                port = parse_servers(port)[0]
        except InvalidServer as error:
            raise ConfigError(f"{values.name('admin_ports')}: {error}") from None
        if server not in servers:
            raise values.wrong(
                "admin_ports", f"names {name}, which is none of the servers ({', '.join(map(str, servers))})"
            )
        if not isinstance(port, Server | None) and (
            isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535
        ):
            raise values.wrong(
                "admin_ports", f"must give {name} a port, an address like 10.0.0.1:2223 or null"
            )
        ports[server] = port
    return ports


def _listen(values: Values) -> str:
    text = values.text("listen", "127.0.0.1")
    if text == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise values.wrong(
            "listen",
            f"must be an address of this machine like 127.0.0.1 (the port is separate), not {text!r}",
        ) from None


def _prefix(values: Values) -> str:
    text = values.text("prefix", "", 200).rstrip("/")
    if not _PREFIX.fullmatch(text):
        raise values.wrong("prefix", "must be a path like /queues, of letters, digits and -_.")
    return text


def _hosts(values: Values) -> tuple[str, ...]:
    found = values.texts("hosts")
    for host in found:
        if not _HOST.fullmatch(host):
            raise values.wrong("hosts", f"has {host!r}, which is no host's name like queues.example.org")
    return tuple(host.lower() for host in found)


def _state(values: Values, environ: Mapping[str, str]) -> Path:
    if "state" in values:
        text = values.text("state")
        path = Path(text).expanduser()
        if not text:
            raise values.wrong("state", "must be a folder")
        return path.absolute()
    # systemd's may be several, with colons between them.
    if folder := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(folder)
    home = environ.get("XDG_STATE_HOME", "")
    # By its specification a relative path is to be ignored.
    base = (
        Path(home) if home.startswith("/") else Path(environ.get("HOME") or "~").expanduser() / ".local/state"
    )
    return base / "kestrel-web"


def _actions(values: Values) -> tuple[str, ...]:
    if "actions" not in values:
        return DEFAULT_ACTIONS
    found = values.texts("actions")
    for action in found:
        if action not in ACTIONS:
            raise values.wrong("actions", f"has the unknown action {action!r}{nearest(action, ACTIONS)}")
    return tuple(action for action in ACTIONS if action in found)


def _users(values: Values) -> tuple[User, ...]:
    found: list[User] = []
    for entry in values.sections("users", ("name", "password_hash", "role")):
        name = _name(entry)
        problem = passwords.problem(entry.text("password_hash"))
        if problem:
            raise entry.wrong("password_hash", f"of {name} {problem}")
        if any(user.name == name for user in found):
            raise values.wrong("users", f"has {name} twice")
        found.append(User(name, entry.text("password_hash"), entry.choice("role", "viewer", ROLES)))
    return tuple(found)


def _tokens(values: Values) -> tuple[Token, ...]:
    found: list[Token] = []
    for entry in values.sections("tokens", ("name", "sha256", "role")):
        name, digest = _name(entry), entry.text("sha256").lower()
        if not _SHA256.fullmatch(digest):
            raise entry.wrong(
                "sha256",
                f"of {name} must be 64 hexadecimal digits; make them with: printf %s TOKEN | sha256sum",
            )
        if any(name == token.name or digest == token.sha256 for token in found):
            raise values.wrong("tokens", f"has {name}, or its token, twice")
        found.append(Token(name, digest, entry.choice("role", "metrics", ("metrics", *ROLES))))
    return tuple(found)


def _name(entry: Values) -> str:
    name = entry.text("name", most=64)
    if not _NAME.fullmatch(name):
        raise entry.wrong("name", "must be 1 to 64 characters without white space and colon")
    return name


def _proxy(values: Values) -> Proxy | None:
    entry = values.section("proxy", ("header", "addresses", "operators"))
    if entry is None:
        return None
    header = entry.text("header")
    if (
        not _HEADER.fullmatch(header)
        or header.lower() in _NOT_A_USER
        or header.lower().startswith("x-forwarded-")
    ):
        raise entry.wrong(
            "header", "must be the header in which the proxy names the user, like X-Remote-User"
        )
    addresses = entry.networks("addresses")
    if not addresses:
        raise entry.wrong("addresses", "must name the proxy's address, like 127.0.0.1")
    return Proxy(header, addresses, entry.texts("operators"))


def _webhook(values: Values) -> Webhook | None:
    entry = values.section("webhook", ("url", "timeout_s"))
    if entry is None:
        return None
    url = entry.text("url", most=4000)
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or " " in url:
        # Not shown: its path is often a secret.
        raise entry.wrong("url", "must begin with https:// or http:// and a host")
    return Webhook(url, entry.seconds("timeout_s", 5.0, 0.1, 60))


def _event_url(values: Values) -> str:
    text = values.text("event_url", "")
    wrong = events.problem(text) if text else None
    if wrong is not None:
        # Not shown: it may hold a password.
        raise values.wrong("event_url", wrong)
    return text


def _port_or_none(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a port nor none")
    return int(text)
