"""Layer one: what people wrote, read and checked: the inventory.

What the deploy reads of an inventory is plain data: ``ansible-inventory --list`` prints Jinja raw, so that a
value with ``{{`` in it would be taken by its letters. Such a value is refused by name.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import Refused
from .listing import list_inventory

ROOT = Path(__file__).resolve().parents[3]
"""The checkout: where fabfile.py, ansible/ and templates/ are."""

APP_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}\Z")
NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,100}\Z")
QUEUE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\Z")
LANGUAGES = ("python", "php")
USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")

WEB_REQUEST_TIMEOUT = 30
"""Role web's default of ``web_request_timeout``, in seconds."""

_READ = ("kestrel_stack_app", "kestrel_stack_namespace", "kestrel_stack_environment", "kestrel_stack_queues")
_READ_PER_HOST = (
    "ansible_host", "ansible_port", "kestrel_stack_address", "deploy_user", "deploy_ssh_config",
    "web_request_timeout",
)  # fmt: skip


@dataclass(frozen=True)
class Queue:
    """One queue as far as the deploy is concerned: its supervisor group, and how long a drain may take."""

    name: str
    group: str
    processes: int
    job_timeout: int
    """Seconds one job of its workers may take, whichever of the queues that they take jobs of it is from; a
    drain ends at the latest 10 s after that, when supervisor kills."""


@dataclass(frozen=True)
class Host:
    """One machine of the group ``app``."""

    name: str
    """Its name in the inventory, which is what messages call it."""
    address: str
    """What SSH is asked for: ``ansible_host``, or the name."""
    port: int | None
    user: str
    ssh_config: Path | None
    queues: tuple[Queue, ...]
    """The queues whose workers run here; none on a host that is not in the group ``consumers``."""
    web: bool = False
    """Whether it serves the application's pages: it is in the group ``web``."""
    web_request_timeout: int = WEB_REQUEST_TIMEOUT
    """Seconds that one request for a page may take, and a release that is replaced to finish it."""


@dataclass(frozen=True)
class Environment:
    """An inventory, checked: where an application goes."""

    name: str
    app: str
    namespace: str
    hosts: tuple[Host, ...]
    reported: str = ""
    """``kestrel_stack_environment``: the environment that workers report their errors with."""

    @property
    def root(self) -> str:
        """The application's folder on every host."""
        return f"/srv/{self.app}"


@dataclass(frozen=True)
class _Inventory:
    """The output of ``ansible-inventory --list``, made easy to ask."""

    name: str
    path: Path
    groups: Mapping[str, Any]
    hostvars: Mapping[str, Mapping[str, Any]]
    members: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def hosts_of(self, group: str) -> tuple[str, ...]:
        """Every host of a group and of its children, in the inventory's order, each once."""
        if group not in self.members:
            entry = self.groups.get(group, {})
            names = list(entry.get("hosts", []))
            for child in entry.get("children", []):
                names.extend(self.hosts_of(child))
            self.members[group] = tuple(dict.fromkeys(names))
        return self.members[group]


# --- the environment ---------------------------------------------------------------------------------


def load_environment(env: str, limit: str | None = None, *, root: Path = ROOT) -> Environment:
    """Read the inventory ``env`` (a name under ansible/inventories or a path) and check it.

    ``limit`` keeps only the named hosts: names, groups and patterns with ``*``, separated by commas.
    Raises Refused with one line that names the thing and the fix.
    """
    path = find_inventory(env, root)
    return parse_environment(env, path, list_inventory(path, root, _needed, (*_READ, *_READ_PER_HOST)), limit)


def find_inventory(env: str, root: Path = ROOT) -> Path:
    """Return the inventory's path. Raises Refused naming those there are."""
    inventories = root / "ansible" / "inventories"
    if not env:
        raise Refused("--env is empty: give an inventory's name or path")
    named = inventories / env
    if "/" not in env and env not in (".", "..") and named.exists():
        return named
    given = Path(env).expanduser()
    if ("/" in env or given.exists()) and given.exists():
        return given.resolve()
    known = (
        sorted(p.name for p in inventories.iterdir() if not p.name.startswith("."))
        if inventories.is_dir()
        else []
    )
    raise Refused(
        f"unknown environment {env!r}: no inventory of that name under ansible/inventories"
        f" ({_listed(known) or 'there is none yet'}), and no such path"
    )


def _needed(listing: dict[str, Any]) -> dict[str, Any]:
    """Leave of ``ansible-inventory --list`` what is read here."""
    hostvars = listing.get("_meta", {}).get("hostvars", {})
    keys = (*_READ, *_READ_PER_HOST)
    kept = {
        name: {key: variables[key] for key in keys if key in variables}
        for name, variables in hostvars.items()
    }
    groups = {
        name: {key: group[key] for key in ("hosts", "children") if key in group}
        for name, group in listing.items()
        if name != "_meta"
    }
    return {**groups, "_meta": {"hostvars": kept}}


def parse_environment(
    env: str, path: Path, listing: Mapping[str, Any], limit: str | None = None
) -> Environment:
    """Check the output of ``ansible-inventory --list`` and keep what the deploy needs. Pure."""
    hostvars = listing.get("_meta", {}).get("hostvars", {})
    inventory = _Inventory(env, path, {k: v for k, v in listing.items() if k != "_meta"}, hostvars)
    names = inventory.hosts_of("app")
    if not names:
        raise Refused(
            f"environment {env}: no hosts in group app (its children are consumers and web), so there"
            " is nothing to deploy to"
        )
    for name in names:
        _refuse_jinja(env, name, hostvars.get(name, {}))
    names = _limited(inventory, names, limit)
    app = _common(inventory, names, "kestrel_stack_app")
    if not isinstance(app, str) or not APP_NAME.match(app):
        raise Refused(
            f"environment {env}: kestrel_stack_app is {app!r}; it must be a lower-case letter and up to 30"
            " letters, digits or hyphens"
        )
    namespace = _common(inventory, names, "kestrel_stack_namespace")
    if not isinstance(namespace, str) or not NAMESPACE.match(namespace):
        raise Refused(
            f"environment {env}: kestrel_stack_namespace is {namespace!r}; allowed are letters,"
            " digits, _ and -"
        )
    consumers, web = set(inventory.hosts_of("consumers")), set(inventory.hosts_of("web"))
    hosts = tuple(
        _host(inventory, name, namespace, runs_workers=name in consumers, web=name in web) for name in names
    )
    reported = {str(hostvars.get(name, {}).get("kestrel_stack_environment") or "") for name in names}
    # Hosts that do not agree on it are one application all the same.
    return Environment(env, app, namespace, hosts, reported.pop() if len(reported) == 1 else "")


def _host(inventory: _Inventory, name: str, namespace: str, *, runs_workers: bool, web: bool) -> Host:
    variables = inventory.hostvars.get(name, {})
    where = f"environment {inventory.name}, host {name}"
    address = variables.get("ansible_host")
    if not address and not variables.get("kestrel_stack_address"):
        folder = inventory.path if inventory.path.is_dir() else inventory.path.parent
        if (folder / "containers.yml").exists():
            hint = "set them in the inventory"
        elif inventory.name == "lab":
            hint = "run bin/up, which makes the lab's hosts and writes their addresses"
        else:
            hint = f"set them, or make containers: python -m kestrel_stack.lab hosts up --inventory {folder}"
        raise Refused(f"{where}: has no address (ansible_host, kestrel_stack_address): {hint}")
    user = variables.get("deploy_user")
    if not isinstance(user, str) or not USER_NAME.match(user):
        raise Refused(f"{where}: deploy_user is {user!r}; it must name the user that owns the releases")
    port = variables.get("ansible_port")
    if port is not None and not (str(port).isdigit() and 0 < int(port) < 65536):
        raise Refused(f"{where}: ansible_port is {port!r}; it must be a port number")
    ssh_config = variables.get("deploy_ssh_config")
    config = Path(str(ssh_config)).expanduser() if ssh_config else None
    if config is not None and not config.is_file():
        raise Refused(
            f"{where}: deploy_ssh_config names {config}, which does not exist (in the lab, bin/up makes it)"
        )
    queues = _queues(where, variables.get("kestrel_stack_queues"), namespace) if runs_workers else ()
    timeout = variables.get("web_request_timeout", WEB_REQUEST_TIMEOUT)
    if web and (isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 1):
        raise Refused(
            f"{where}: web_request_timeout is {timeout!r}; it must be a whole number of at least 1 (seconds)"
        )
    return Host(
        name,
        str(address or name),
        int(port) if port is not None else None,
        user,
        config,
        queues,
        web,
        timeout if web else WEB_REQUEST_TIMEOUT,
    )


def _queues(where: str, value: Any, namespace: str) -> tuple[Queue, ...]:
    if not isinstance(value, list) or not value:
        raise Refused(
            f"{where}: kestrel_stack_queues is missing or empty; a consumer host needs at least one queue"
        )
    queues = []
    timeouts = {}
    for entry in value:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not QUEUE_NAME.match(name):
            raise Refused(
                f"{where}: kestrel_stack_queues has an entry without a legal name ({name!r}): letters,"
                " digits, _ and -"
            )
        processes = entry.get("processes", 1)
        timeout = entry.get("job_timeout", 60)
        for key, number in (("processes", processes), ("job_timeout", timeout)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise Refused(
                    f"{where}: queue {name}: {key} is {number!r}; it must be a whole number of at least 1"
                )
        language = entry.get("language", "python")
        if language not in LANGUAGES:
            raise Refused(
                f"{where}: queue {name}: language is {language!r}; it must be {' or '.join(LANGUAGES)}"
            )
        queues.append(Queue(name, f"{namespace}_{name}", processes, timeout))
        timeouts[name] = timeout
    for entry in value:
        also = entry.get("also", [])
        if not isinstance(also, list) or any(other not in timeouts for other in also):
            raise Refused(
                f"{where}: queue {entry['name']}: also is {also!r}; it must be a list of queues that are"
                " described here"
            )
    queues = [
        replace(queue, job_timeout=max(timeouts[name] for name in [queue.name, *entry.get("also", [])]))
        for queue, entry in zip(queues, value, strict=True)
    ]
    names = [queue.name for queue in queues]
    for name in names:
        if names.count(name) > 1:
            raise Refused(f"{where}: kestrel_stack_queues names {name} twice")
    return tuple(queues)


def _refuse_jinja(env: str, host: str, variables: Mapping[str, Any]) -> None:
    for key in (*_READ, *_READ_PER_HOST):
        if _has_jinja(variables.get(key)):
            raise Refused(
                f"environment {env}, host {host}: {key} contains"
                f" '{{{{': what the deploy reads is plain data, write the value itself"
            )


def _has_jinja(value: Any) -> bool:
    if isinstance(value, str):
        return "{{" in value
    if isinstance(value, Mapping):
        return any(_has_jinja(k) or _has_jinja(v) for k, v in value.items())
    return isinstance(value, Sequence) and any(_has_jinja(v) for v in value)


def _common(inventory: _Inventory, names: Sequence[str], key: str) -> Any:
    """One value for all hosts: a deploy of one application goes to hosts that agree on its name."""
    first = inventory.hostvars.get(names[0], {}).get(key)
    if first is None:
        raise Refused(
            f"environment {inventory.name}: {key} is not set for host {names[0]}: set it in"
            " group_vars/all.yml"
        )
    for name in names:
        other = inventory.hostvars.get(name, {}).get(key)
        if other != first:
            raise Refused(
                f"environment {inventory.name}: {key} differs between hosts ({names[0]}: {first!r},"
                f" {name}: {other!r})"
            )
    return first


def _limited(inventory: _Inventory, names: tuple[str, ...], limit: str | None) -> tuple[str, ...]:
    if limit is None:
        return names
    wanted: set[str] = set()
    for word in (w.strip() for w in limit.split(",")):
        if not word:
            continue
        found = set(fnmatch.filter(names, word))
        if word in inventory.groups:
            found |= set(inventory.hosts_of(word)) & set(names)
        if not found:
            raise Refused(f"--limit: {word!r} matches no host of group app; there are {_listed(names)}")
        wanted |= found
    if not wanted:
        raise Refused(f"--limit is empty; there are {_listed(names)}")
    return tuple(name for name in names if name in wanted)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
