"""Filters that check and complete what the inventory says of where errors are reported.

Like the ones beside them they run on the controller, touch nothing, and those that check return lists of
one-line sentences: an empty list is a pass. What is secret is never repeated.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

# Those that run on a host of ours, each with the variable of its port.
PORTS = {"bugsink": "sentry_bugsink_port", "self_hosted": "sentry_self_hosted_port"}
NAMES = {"bugsink": "Bugsink", "self_hosted": "Sentry"}
PASSWORD_LENGTH, SECRET_LENGTH = 10, 50
MAIL_TLS = ("starttls", "tls", "none")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,49}\Z")
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\Z")
_RATE = re.compile(r"[1-9][0-9]{0,5}r/[sm]\Z")
_HOST = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*\Z"
)
_DATABASE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}\Z")
_PLACEHOLDER = re.compile(r"\{event_id\}|\{event_uuid\}")
_EVENT_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+/[!-~]*\Z")
_PRINTABLE = re.compile(r"[!-~]+\Z")


def place_problems(backend: Any, hosts: Sequence[str]) -> list[str]:
    """Say why the inventory's group sentry, with `hosts`, does not fit the backend."""
    if backend in PORTS:
        if len(hosts) == 1:
            return []
        found = f"has {len(hosts)} hosts: {', '.join(hosts)}" if hosts else "is empty"
        return [f"sentry_backend {backend} needs one host, and the inventory's group sentry {found}"]
    if hosts:
        return [
            f"the inventory's group sentry has {', '.join(hosts)}, and sentry_backend is {backend!s}, which"
            " needs none: empty the group, or set sentry_backend: bugsink or self_hosted"
        ]
    return []


def url(says: Mapping[str, Any], address: str) -> str:
    """Return what browsers and the other hosts call it by, without a / at its end.

    `says` has the variables' names without ``sentry_``: url, listen_address, port, nginx, server_name,
    nginx_port; `address` is the host's kestrel_stack_address.
    """
    if says["url"]:
        return str(says["url"]).rstrip("/")
    if says["nginx"]:
        port = int(says["nginx_port"])
        return f"https://{says['server_name']}{'' if port == 443 else f':{port}'}"
    listen = str(says["listen_address"])
    if _is_unspecified(listen):
        listen = str(address)
    return f"http://{f'[{listen}]' if ':' in listen else listen}:{says['port']}"


def reach_problems(says: Mapping[str, Any], host: str, others: Iterable[str]) -> list[str]:
    """Say why it could not be used where it is, or by those that should not.

    `says` has what `url` takes, and tls_certificate, backend, url and generate_login, login_file,
    admin_email, admin_password; `others` are the application's hosts.
    """
    problems = []
    listen, there = str(says["listen_address"]), [name for name in others if name != host]
    if says["nginx"]:
        if not _is_loopback(listen):
            problems.append(
                f"sentry_listen_address {listen} would be a way around nginx: leave it at 127.0.0.1, and set"
                " sentry_nginx_listen_address"
            )
        if not says["tls_certificate"]:
            problems.append(
                "sentry_nginx needs sentry_tls_certificate and sentry_tls_key: give their paths on the host"
            )
        if not says["server_name"]:
            problems.append("sentry_server_name is empty: give the name that the certificate is for")
        if str(says["url"]).startswith("http:"):
            problems.append(
                f"sentry_url {says['url']} is HTTP, and sentry_nginx speaks HTTPS alone: write it with https://"
            )
    elif there and _is_loopback(listen) and (not says["url"] or _is_loopback(urlsplit(says["url"]).hostname)):
        problems.append(
            f"sentry_listen_address of {host} is {listen}, which {_shown(there)} cannot reach: set it to"
            " the host's kestrel_stack_address, or set sentry_nginx: true with a certificate"
        )
    return problems + _login_problems(says)


def shared_problems(own: Sequence[Any], other: Sequence[Any]) -> list[str]:
    """Say why the two nginx of one host, each [address, port], could not both listen; without one: empty."""
    if not own or not other or int(own[1]) != int(other[1]):
        return []
    addresses = {str(own[0]), str(other[0])}
    if len(addresses) > 1 and not any(map(_is_unspecified, addresses)):
        return []
    return [
        f"sentry_nginx_port {own[1]} is kestrel_web_nginx_port as well, on the same address: set one of"
        " them to another port"
    ]


def app_problems(app: Any, apps: Mapping[str, Any], host: str) -> list[str]:
    """Say which hosts run another application than the one that a project is made for; `apps` is by host."""
    return [
        f"kestrel_stack_app of {name} is {other!s}, and {host} of group sentry has a project for {app!s}"
        " alone: an inventory for each application, or sentry_backend: external"
        for name, other in apps.items()
        if other != app
    ]


def left(enabled: Iterable[str], backend: Any, hosts: Sequence[str], host: str) -> list[str]:
    """Say what collects errors on `host` though nothing reports there; `enabled` are those there."""
    if backend in PORTS and host not in hosts:
        instead = f"errors go to {', '.join(hosts)}"
    else:
        instead = f"sentry_backend is {backend!s}"
    return [
        f"{host} still runs {NAMES[name]}, and {instead}: nothing reports there any more; docs/sentry.md says"
        " how to remove it"
        for name in enabled
        if name != backend or host not in hosts
    ]


def _login_problems(says: Mapping[str, Any]) -> list[str]:
    if says["generate_login"]:
        problems = []
        if not says["login_file"]:
            problems.append(
                "sentry_login_file is empty: say where on the controller sentry_generate_login keeps the"
                " login"
            )
        if says["admin_password"]:
            problems.append(
                "sentry_admin_password is set, and sentry_generate_login would make another: use one of them"
            )
        return problems + (email_problems(says["admin_email"]) if says["admin_email"] else [])
    if not says["admin_email"] or not says["admin_password"]:
        empty = [f"sentry_{name}" for name in ("admin_email", "admin_password") if not says[name]]
        return [
            f"{' and '.join(empty)} {'are' if len(empty) > 1 else 'is'} empty, so nobody could log in: set"
            " both, the password from a vault, or for a lab sentry_generate_login: true"
        ]
    problems = email_problems(says["admin_email"])
    if len(str(says["admin_password"])) < PASSWORD_LENGTH:
        problems.append(f"sentry_admin_password is too short: give at least {PASSWORD_LENGTH} characters")
    return problems


def email_problems(address: Any, variable: str = "sentry_admin_email") -> list[str]:
    """Say what is wrong with an address of mail."""
    if not address:
        return [f"{variable} is empty: give an address of mail, like anna@example.com"]
    if _EMAIL.match(str(address)):
        return []
    return [f"{variable} {address!s} is no address of mail: write it like anna@example.com"]


def url_problems(text: Any) -> list[str]:
    """Say what is wrong with sentry_url; empty is right."""
    if not text:
        return []
    wrong = ["sentry_url must be like https://errors.example.com: no path, no user, nothing behind it"]
    try:
        parts = urlsplit(str(text))
        port = parts.port
    except ValueError:
        return wrong
    if (
        parts.scheme not in ("http", "https")
        or not _PRINTABLE.match(str(text))
        or "@" in parts.netloc
        or port == 0
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
    ):
        return wrong
    host = parts.hostname or ""
    return [] if _HOST.match(host) or _is_address(host) else wrong


def names_problems(names: Mapping[str, Any]) -> list[str]:
    """Say which names of teams, projects and organisations are not legal; `names` is by variable."""
    return [
        f"{variable} {str(name)!r} is not legal: a letter or digit, then up to 49 of A-Z, a-z, 0-9, ., _, -"
        " and blank"
        for variable, name in names.items()
        if not _NAME.match(str(name))
    ]


def rate_problems(rate: Any) -> list[str]:
    """Say what is wrong with the rate of requests."""
    if _RATE.match(str(rate)):
        return []
    return [f"sentry_nginx_rate {rate!s} must look like 50r/s or 600r/m"]


def secret_key_problems(key: Any) -> list[str]:
    """Say what is wrong with the key that signs; empty is one that is made."""
    if not key or (_PRINTABLE.match(str(key)) and len(str(key)) >= SECRET_LENGTH):
        return []
    return [
        f"sentry_secret_key must have at least {SECRET_LENGTH} characters without blanks: leave it empty, or"
        " make one with `openssl rand -hex 32`"
    ]


def mail_problems(mail: Any) -> list[str]:
    """Say what is wrong with the server and the sender of mail; its password is not repeated."""
    if not isinstance(mail, Mapping):
        return [
            "sentry_mail must be a mapping like {host: mail.example.com, from: errors@example.com}, or {}"
        ]
    if not mail:
        return []
    problems = _unknown("sentry_mail", mail, ("host", "port", "from", "user", "password", "tls"))
    if not _HOST.match(str(mail.get("host", ""))) and not _is_address(str(mail.get("host", ""))):
        problems.append("sentry_mail: host is no host's name: write it like mail.example.com")
    problems += email_problems(mail.get("from", ""), "sentry_mail: from")
    problems += _port_problems("sentry_mail", mail.get("port", 587))
    if mail.get("tls", "starttls") not in MAIL_TLS:
        problems.append(f"sentry_mail: tls {mail['tls']!s} is unknown: use {', '.join(MAIL_TLS)}")
    if bool(mail.get("user")) != bool(mail.get("password")):
        problems.append("sentry_mail: user and password belong together: give both, or none")
    return problems


def postgresql_problems(database: Any, kind: Any) -> list[str]:
    """Say what is wrong with sentry_bugsink_postgresql where the database is of this `kind`."""
    variable = "sentry_bugsink_postgresql"
    if not isinstance(database, Mapping):
        return [
            f"{variable} must be a mapping like {{host: 10.0.0.51, name: bugsink, user: bugsink}}, or {{}}"
        ]
    if kind != "postgresql":
        return [f"{variable} is set, and sentry_bugsink_database is {kind!s}: use one"] if database else []
    keys = ("host", "port", "name", "user", "password")
    problems = _unknown(variable, database, keys)
    empty = [key for key in keys if key != "port" and not database.get(key)]
    if empty:
        return [
            *problems,
            f"{variable} has no {', '.join(empty)}: sentry_bugsink_database postgresql needs them",
        ]
    if not _HOST.match(str(database["host"])) and not _is_address(str(database["host"])):
        problems.append(f"{variable}: host {database['host']!s} is no address and no host's name")
    problems += _port_problems(variable, database.get("port", 5432))
    problems += [
        f"{variable}: {key} {database[key]!s} is not legal: a letter or _, then A-Z, a-z, 0-9, _ and -"
        for key in ("name", "user")
        if not _DATABASE_NAME.match(str(database[key]))
    ]
    return problems


def event_url_problems(text: Any, variable: str) -> list[str]:
    """Say what is wrong with the address of an event's page; empty is none, and right."""
    parts = _PLACEHOLDER.split(str(text))
    if not text or (
        _EVENT_URL.match(parts[0]) and len(parts) == 2 and not re.search(r"[{}]", "".join(parts))
    ):
        return []
    return [
        f"{variable} must be like https://errors.example.com/event/{{event_id}}/: http or https, and once"
        " {event_id} or {event_uuid} in its path"
    ]


def warnings(says: Mapping[str, Any], host: str) -> list[str]:
    """Say what is let through though it should be known; `says` is as for `url`."""
    if says["nginx"] or _is_loopback(says["listen_address"]):
        return []
    return [
        f"sentry_listen_address {says['listen_address']!s} of {host} speaks HTTP: passwords and what errors"
        " tell of your users can be read on the way; set sentry_nginx: true with a certificate, or keep it to"
        " a network that you trust"
    ]


def summary(backend: Any, hosts: Sequence[str], url: Any) -> str:
    """Say in one line where errors go."""
    if backend in PORTS:
        return (
            f"sentry_backend: {backend}: errors go to {', '.join(hosts)}, {url or 'which has no address yet'}"
        )
    if backend == "external":
        return "sentry_backend: external: errors go to the project of app_host_sentry_dsn"
    return "sentry_backend: none: errors go to the workers' logs only"


def _unknown(where: str, entry: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    unknown = sorted(set(map(str, entry)) - set(known))
    return [f"{where}: unknown option {name}: known are {', '.join(known)}" for name in unknown]


def _port_problems(where: str, port: Any) -> list[str]:
    if re.match(r"[0-9]{1,5}\Z", str(port)) and 1 <= int(port) <= 65535:
        return []
    return [f"{where}: port {port!s} must be a whole number from 1 to 65535"]


def _shown(hosts: Sequence[str]) -> str:
    more = f" and {len(hosts) - 3} more" if len(hosts) > 3 else ""
    return f"{', '.join(hosts[:3])}{more}"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(address: Any) -> bool:
    try:
        return ipaddress.ip_address(str(address)).is_loopback
    except ValueError:
        return address == "localhost"


def _is_unspecified(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Name each filter."""
        return {
            "kestrel_stack_sentry_place_problems": place_problems,
            "kestrel_stack_sentry_url": url,
            "kestrel_stack_sentry_reach_problems": reach_problems,
            "kestrel_stack_sentry_url_problems": url_problems,
            "kestrel_stack_sentry_names_problems": names_problems,
            "kestrel_stack_sentry_rate_problems": rate_problems,
            "kestrel_stack_sentry_secret_key_problems": secret_key_problems,
            "kestrel_stack_sentry_mail_problems": mail_problems,
            "kestrel_stack_sentry_postgresql_problems": postgresql_problems,
            "kestrel_stack_event_url_problems": event_url_problems,
            "kestrel_stack_sentry_warnings": warnings,
            "kestrel_stack_sentry_shared_problems": shared_problems,
            "kestrel_stack_sentry_app_problems": app_problems,
            "kestrel_stack_sentry_left": left,
            "kestrel_stack_sentry_summary": summary,
        }
