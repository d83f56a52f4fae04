"""Filters that check and complete what the inventory says of kestrel-web.

Like the ones beside them they run on the controller, touch nothing, and those that check return lists of
one-line sentences: an empty list is a pass. What is secret is never repeated.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ROLES = ("viewer", "operator")
TOKEN_ROLES = ("metrics", *ROLES)
# What lab/login.py calls whom it makes a password for.
GENERATED = "operator"
ACTIONS = ("flush", "flush_expired", "delete", "enqueue", "requeue", "reload", "status", "shutdown")

_LOGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
_HASH = re.compile(
    r"\$argon2(id|i|d)\$v=[0-9]+\$m=[0-9]+,t=[0-9]+,p=[0-9]+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+\Z"
)
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}\Z")
_PREFIX = re.compile(r"(/[A-Za-z0-9_][A-Za-z0-9._-]*)*\Z")
_HOST = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*\Z"
)


def _named(
    entries: Any, variable: str, example: str
) -> tuple[list[str], list[tuple[str, Mapping[str, Any]]]]:
    """Check that `entries` are mappings with a name each; return problems, and each with its place."""
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        return [f"{variable} must be a list like [{example}]"], []
    problems, found = [], []
    names = [str(entry.get("name", "")) for entry in entries]
    for number, (name, entry) in enumerate(zip(names, entries, strict=True), 1):
        if not _LOGIN.match(name):
            problems.append(
                f"{variable}: entry {number}: name {name!r} is not legal: a letter or digit, then up to 63"
                " of A-Z, a-z, 0-9, ., _, @ and -"
            )
        elif name in names[: number - 1]:
            problems.append(f"{variable}: {name} is there twice: remove one of them")
        else:
            found.append((f"{variable}: {name}", entry))
    return problems, found


def _unknown(where: str, entry: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    unknown = sorted(set(map(str, entry)) - set(known))
    return [f"{where}: unknown option {name}: known are {', '.join(known)}" for name in unknown]


def login_problems(users: Any, variable: str = "kestrel_web_users") -> list[str]:
    """Say what is wrong with those who may log in."""
    problems, found = _named(users, variable, "{name: anna, role: operator, password_hash: ...}")
    for where, user in found:
        if "password" in user:
            problems.append(
                f"{where}: password is not taken, only its hash: make one with `kestrel-web hash-password`"
                " and write it as password_hash"
            )
            continue
        problems += _unknown(where, user, ("name", "role", "password_hash"))
        if not _HASH.match(str(user.get("password_hash", ""))):
            problems.append(
                f"{where}: password_hash is no argon2 hash: make one with `kestrel-web hash-password`"
            )
        if user.get("role", "viewer") not in ROLES:
            problems.append(f"{where}: role {user['role']!s} is unknown: use {' or '.join(ROLES)}")
    return problems


def token_problems(tokens: Any, variable: str = "kestrel_web_tokens") -> list[str]:
    """Say what is wrong with the programs that may ask."""
    problems, found = _named(tokens, variable, "{name: prometheus, role: metrics, sha256: ...}")
    for where, token in found:
        problems += _unknown(where, token, ("name", "role", "sha256"))
        if not _SHA256.match(str(token.get("sha256", ""))):
            problems.append(
                f"{where}: sha256 is not the digest of a token: give 64 hexadecimal digits, as of"
                " `printf %s TOKEN | sha256sum`"
            )
        if token.get("role", "metrics") not in TOKEN_ROLES:
            problems.append(f"{where}: role {token['role']!s} is unknown: use {', '.join(TOKEN_ROLES)}")
    return problems


def proxy_problems(proxy: Any, variable: str = "kestrel_web_proxy") -> list[str]:
    """Say what is wrong with who may say who the user is."""
    if not isinstance(proxy, Mapping):
        return [
            f"{variable} must be a mapping like {{header: X-Remote-User, addresses: [10.0.0.5]}}, or {{}}"
        ]
    if not proxy:
        return []
    problems = _unknown(variable, proxy, ("header", "addresses", "operators"))
    if not _HEADER.match(str(proxy.get("header", ""))):
        problems.append(
            f"{variable}: header {proxy.get('header', '')!s} is no header's name, like X-Remote-User"
        )
    addresses = proxy.get("addresses")
    if not isinstance(addresses, list) or not addresses:
        problems.append(f"{variable}: addresses is empty: whose header is to be believed? like [10.0.0.5]")
    else:
        problems += host_address_problems(addresses, f"{variable}: addresses")
    operators = proxy.get("operators", [])
    if not isinstance(operators, list) or not all(_LOGIN.match(str(name)) for name in operators):
        problems.append(f"{variable}: operators must be a list of names")
    return problems


def host_address_problems(addresses: Any, variable: str) -> list[str]:
    """Say which of `addresses` is no address."""
    if not isinstance(addresses, list):
        return [f"{variable} must be a list of addresses, like [10.0.0.5]"]
    problems = []
    for address in addresses:
        try:
            ipaddress.ip_address(str(address))
        except ValueError:
            problems.append(f"{variable}: {address!s} is no address: write it like 10.0.0.5")
    return problems


def name_problems(names: Any, variable: str) -> list[str]:
    """Say which of `names` cannot stand in an address that a browser shows."""
    if not isinstance(names, list):
        return [f"{variable} must be a list of names, like [queues.example.com]"]
    return [
        f"{variable}: {name!s} is no host's name: write it like queues.example.com, without port"
        for name in names
        if not _HOST.match(str(name))
    ]


def prefix_problems(prefix: Any, variable: str = "kestrel_web_prefix") -> list[str]:
    """Say what is wrong with the path below which everything is served."""
    if _PREFIX.match(str(prefix)):
        return []
    return [f"{variable} {str(prefix)!r} is no path: write it like /queues, without a / at its end"]


def action_problems(actions: Any, variable: str = "kestrel_web_actions") -> list[str]:
    """Say which of the allowed actions do not exist."""
    if not isinstance(actions, list):
        return [f"{variable} must be a list out of {', '.join(ACTIONS)}"]
    return [
        f"{variable}: {action!s} is unknown: known are {', '.join(ACTIONS)}"
        for action in actions
        if action not in ACTIONS
    ]


def _is_loopback(address: Any) -> bool:
    try:
        return ipaddress.ip_address(str(address)).is_loopback
    except ValueError:
        return False


def reach_problems(says: Mapping[str, Any]) -> list[str]:
    """Say whether strangers could reach a kestrel-web that lets everybody in, or passwords in the clear.

    `says` has the variables' names without ``kestrel_web_``: listen_address, nginx, nginx_listen_address,
    users, generate_login, login_file, proxy, tls_certificate, server_name.
    """
    problems = []
    login = bool(says["users"]) or bool(says["generate_login"]) or bool(says["proxy"])
    if says["nginx"]:
        if not _is_loopback(says["listen_address"]):
            problems.append(
                f"kestrel_web_listen_address {says['listen_address']!s} would be a way around nginx: leave it"
                " at 127.0.0.1, and set kestrel_web_nginx_listen_address"
            )
        if not says["tls_certificate"]:
            problems.append(
                "kestrel_web_nginx needs kestrel_web_tls_certificate and kestrel_web_tls_key: give their"
                " paths on the host"
            )
        if not says["server_name"]:
            problems.append("kestrel_web_server_name is empty: give the name that the certificate is for")
    where = "nginx_listen_address" if says["nginx"] else "listen_address"
    if not login and not _is_loopback(says[where]):
        problems.append(
            f"kestrel_web_{where} {says[where]!s} can be reached by others, and nobody would have to log in:"
            " set kestrel_web_users (or kestrel_web_proxy), or listen on 127.0.0.1"
        )
    if says["generate_login"] and not says["login_file"]:
        problems.append(
            "kestrel_web_login_file is empty: say where on the controller kestrel_web_generate_login keeps"
            " the login"
        )
    if says["generate_login"] and any(user.get("name") == GENERATED for user in says["users"]):
        problems.append(
            f"kestrel_web_users: {GENERATED} is the name of the login that kestrel_web_generate_login makes:"
            " choose another"
        )
    return problems


def admin_ports(
    servers: Sequence[str], hosts: Iterable[str], hostvars: Mapping[str, Any], this_host: str
) -> dict[str, Any]:
    """Map each of `servers`, the addresses of `hosts` in the same order, to its admin port.

    It is a port of the same address, the whole address where it is another one of `this_host`, and None where
    it cannot be reached: then all is read from the memcache port.
    """
    found: dict[str, Any] = {}
    for server, host in zip(servers, hosts, strict=True):
        says = hostvars[host]
        asked = server.rpartition(":")[0].strip("[]")
        listens = str(says.get("kestrel_admin_address", "127.0.0.1"))
        port = int(says.get("kestrel_admin_port", 2223))
        everywhere = listens in ("0.0.0.0", "::") or says.get("kestrel_flavor", "release") == "release"  # noqa: S104
        # A name stands for an address that only the hosts know: one that is not loopback may be it.
        if everywhere or listens == asked or not (_is_address(asked) or _is_loopback(listens)):
            found[server] = port
        elif host == this_host:
            found[server] = f"[{listens}]:{port}" if ":" in listens else f"{listens}:{port}"
        else:
            found[server] = None
    return found


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Name each filter."""
        return {
            "kestrel_stack_login_problems": login_problems,
            "kestrel_stack_token_problems": token_problems,
            "kestrel_stack_proxy_problems": proxy_problems,
            "kestrel_stack_host_address_problems": host_address_problems,
            "kestrel_stack_name_problems": name_problems,
            "kestrel_stack_prefix_problems": prefix_problems,
            "kestrel_stack_action_problems": action_problems,
            "kestrel_stack_reach_problems": reach_problems,
            "kestrel_stack_admin_ports": admin_ports,
        }
