"""The committed inventory (``hosts.yml``) names the hosts; the lab adds ``containers.yml``: addresses."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kestrel_stack.lab.errors import LabError

CHECKOUT = Path(__file__).resolve().parents[3]
HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
GENERATED = "containers.yml"
HEADER = "# Written by `python -m kestrel_stack.lab hosts up`: containers that exist only on this machine.\n"


@dataclass(frozen=True)
class Lab:
    """One lab: the hosts of one inventory of one checkout.

    ``name`` is short and readable; ``key`` is unique to (checkout, inventory) on this machine.
    """

    inventory: Path
    name: str
    key: str
    hosts: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    state: Path

    @property
    def prefix(self) -> str:
        """Return what the names of this lab's containers and network begin with."""
        return f"kestrel-stack-{self.name}-{self.key}"

    @property
    def containers_yml(self) -> Path:
        """Return the path of the generated inventory file."""
        return self.inventory / GENERATED

    @property
    def ssh_config(self) -> Path:
        """Return the path of the generated OpenSSH configuration."""
        return self.state / "ssh" / "config"

    @property
    def private_key(self) -> Path:
        """Return the path of the key made for this lab."""
        return self.state / "keys" / "id_ed25519"

    @property
    def login(self) -> Path:
        """Return the path of the login to kestrel-web that the playbook makes."""
        return self.state / "kestrel-web-login.json"

    @property
    def sentry_login(self) -> Path:
        """Return the path of the login to Bugsink or Sentry that the playbook makes."""
        return self.state / "sentry-login.json"

    def container(self, host: str) -> str:
        """Return the name of a host's container."""
        return f"{self.prefix}-{host}"


def lab_name(inventory: Path, checkout: Path = CHECKOUT) -> str:
    """Return a short name: ``lab`` for ansible/inventories/lab, ``molecule-x`` for molecule/x/inventory."""
    try:
        parts = list(inventory.relative_to(checkout).parts)
    except ValueError:
        parts = [inventory.name]
    if parts[:2] == ["ansible", "inventories"]:
        parts = parts[2:]
    if len(parts) > 1 and parts[-1] == "inventory":
        parts = parts[:-1]
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")[:40] or "lab"


def load(inventory: Path, checkout: Path = CHECKOUT) -> Lab:
    """Read an inventory folder's ``hosts.yml``.

    Raises LabError when the folder or the file is missing, is not a YAML inventory, or names no host or one
    that cannot be a container's.
    """
    inventory = inventory.resolve()
    checkout = checkout.resolve()
    path = inventory / "hosts.yml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LabError(f"{path}: no such file; --inventory must be a folder with a hosts.yml") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LabError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    groups = _groups(data, path)
    hosts = groups["all"]
    if not hosts:
        raise LabError(f"{path}: names no host; add at least one under all: children: GROUP: hosts:")
    for host in hosts:
        if not HOST_NAME.fullmatch(host):
            raise LabError(
                f"{path}: {host!r} cannot be a lab host's name: use a-z, 0-9 and '-', at most 32, one by one"
            )
    key = hashlib.sha256(f"{checkout}\0{inventory}".encode()).hexdigest()[:8]
    name = lab_name(inventory, checkout)
    inside = inventory.is_relative_to(checkout)
    state = checkout / ".lab" / (name if inside else f"{name}-{key}")
    return Lab(inventory, name, key, hosts, groups, state)


def _groups(data: Any, path: Path) -> dict[str, tuple[str, ...]]:
    """Return every group's hosts, children included, in the order of the file; ``all`` has every host."""
    if not isinstance(data, dict):
        raise LabError(f"{path}: must be a YAML inventory: a mapping of groups")
    found: dict[str, dict[str, None]] = {"all": {}}

    def visit(group: str, body: Any) -> list[str]:
        if body is None:
            body = {}
        if not isinstance(body, dict):
            raise LabError(f"{path}: group {group} must be a mapping with hosts, children or vars")
        hosts = body.get("hosts") or {}
        children = body.get("children") or {}
        if not isinstance(hosts, dict) or not isinstance(children, dict):
            raise LabError(
                f"{path}: hosts and children of group {group} must be mappings (end each name with ':')"
            )
        names = [str(host) for host in hosts]
        for child, child_body in children.items():
            names += visit(str(child), child_body)
        found.setdefault(group, {}).update(dict.fromkeys(names))
        found["all"].update(dict.fromkeys(names))
        return names

    for name, body in data.items():
        visit(str(name), body)
    # A group whose children are filled in elsewhere in the file (app: children: {consumers:, web:}) has their
    # hosts too.
    for _ in found:
        for name, children in _children(data):
            for child in children:
                found[name].update(found.get(child, {}))
    return {name: tuple(hosts) for name, hosts in found.items()}


def _children(data: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    pairs: list[tuple[str, list[str]]] = []
    for name, body in data.items():
        children = (body or {}).get("children") or {}
        pairs.append((str(name), [str(child) for child in children]))
        pairs += _children(children)
    return pairs


def containers_yml(lab: Lab, addresses: Mapping[str, str], public_key: str) -> str:
    """Return the text of the generated inventory file: plain data, the same for the same input."""
    data = {
        "all": {
            "hosts": {
                host: {"ansible_host": address, "kestrel_stack_address": address}
                for host, address in addresses.items()
            },
            "vars": {
                "ansible_user": "admin",
                "ansible_ssh_common_args": f"-F {shlex.quote(str(lab.ssh_config))}",
                "deploy_ssh_config": str(lab.ssh_config),
                "app_host_deploy_keys": [public_key],
                "kestrel_web_login_file": str(lab.login),
                "sentry_login_file": str(lab.sentry_login),
            },
        }
    }
    return HEADER + "---\n" + yaml.safe_dump(data, sort_keys=False, width=200)


def ssh_config(lab: Lab, addresses: Mapping[str, str]) -> str:
    """Return an OpenSSH client configuration that knows the lab's hosts by name and by address."""
    lines = ["# Written by `python -m kestrel_stack.lab hosts up`. By hand: ssh -F THIS_FILE HOST"]
    for host, address in addresses.items():
        lines += [f"Host {host} {address}", f"    HostName {address}"]
    lines += [
        "Host *",
        "    User admin",
        f"    IdentityFile {_quoted(lab.private_key)}",
        "    IdentitiesOnly yes",
        "    IdentityAgent none",
        f"    UserKnownHostsFile {_quoted(lab.state / 'ssh' / 'known_hosts')}",
        "    GlobalKnownHostsFile /dev/null",
        "    StrictHostKeyChecking yes",
        "    UpdateHostKeys no",
        "    PasswordAuthentication no",
        "    ConnectTimeout 10",
    ]
    return "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    text = str(path)
    return f'"{text}"' if " " in text else text
