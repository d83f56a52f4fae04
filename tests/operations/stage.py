"""A stack to practise operations on: ``python -m operations.stage up FOLDER``, later ``down FOLDER``.

Seven hosts in containers, of which the inventory `production` knows five: the others are what a person who
follows docs/operations.md adds. Its commands run here as they are written there, but for what `spoken` says.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from kestrel_stack.lab import inventory
from support.deploy import ROOT, GitApp
from support.deploy_lab import loaded_app

QUEUES = ("queue1", "queue2")
WORKERS = ("worker1", "worker2")
MONITOR = "monitor1"
SPARE = ("queue3", "worker3")
"""Hosts that are there and in no inventory."""
EVERY = (*QUEUES, *WORKERS, MONITOR, *SPARE)
NETWORK = {
    "queue1": "10.0.0.11",
    "queue2": "10.0.0.12",
    "queue3": "10.0.0.13",
    "worker1": "10.0.0.21",
    "worker2": "10.0.0.22",
    "worker3": "10.0.0.23",
    "monitor1": "10.0.0.41",
}
"""The addresses that the document has for them."""
DELAYS = [2, 5, 10, 20, 30]
"""Seconds; so many tries that no job of a load is parked while a release is about that cannot do it."""
PASSWORD = "a-password-of-the-lab"
BIN = Path(sys.executable).parent


class Stage:
    """The hosts, the inventory that a person would edit, and a shell to type in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.whole = self.folder / "whole"
        """What the containers are made from."""
        self.production = self.folder / "production"
        """The inventory that the document calls ansible/inventories/production."""
        self.app = self.folder / "shop"
        """The application that the document calls ../shop."""
        self.programs = self.folder / "bin"
        self.kept: dict[str, str] = {}
        """What came out before and is typed later: passwords' hashes, keys."""

    # --- making and removing ---------------------------------------------------------------------------

    def make(self) -> None:
        """Make the hosts, set up those of the inventory, and deploy the application."""
        self.make_hosts()
        self.checked("ansible-playbook -i ansible/inventories/production ansible/site.yml", seconds=1200)
        self.checked("fab deploy --env production --app ../shop", seconds=300)

    def make_hosts(self) -> None:
        """Make the hosts, and what lies beside them on the controller."""
        self.whole.mkdir(parents=True, exist_ok=True)
        everyone = {"all": {"hosts": dict.fromkeys(EVERY)}}
        (self.whole / "hosts.yml").write_text(yaml.safe_dump(everyone))
        self._lab("up")
        self._write_programs()
        if not self.production.exists():
            self._write_inventory()
        if not self.app.exists():
            write_app(self.app)

    def remove(self) -> None:
        """Remove the hosts and the folder."""
        self._lab("down")
        shutil.rmtree(self.folder)

    def _lab(self, action: str) -> None:
        command = [sys.executable, "-m", "kestrel_stack.lab", "hosts", action, "--inventory", str(self.whole)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    @property
    def made(self) -> dict:
        """What the lab wrote about the containers."""
        return yaml.safe_load((self.whole / "containers.yml").read_text())["all"]

    @property
    def addresses(self) -> dict[str, str]:
        """The address of each host."""
        return {name: host["ansible_host"] for name, host in self.made["hosts"].items()}

    @property
    def machine(self) -> str:
        """The address of the machine that the lab runs on: the load comes from there."""
        return str(ipaddress.ip_network(f"{self.addresses['queue1']}/24", strict=False)[1])

    def _write_programs(self) -> None:
        """ssh and scp that know the hosts by name, as a person's own settings would have it."""
        self.programs.mkdir(exist_ok=True)
        for name in ("ssh", "scp"):
            real = shutil.which(name)
            path = self.programs / name
            path.write_text(f'#!/bin/sh\nexec {real} -F "{self.made["vars"]["deploy_ssh_config"]}" "$@"\n')
            path.chmod(0o755)

    def _write_inventory(self) -> None:
        variables, addresses = self.made["vars"], self.addresses

        def hosts(*names: str) -> dict:
            return {
                "hosts": {
                    name: {"ansible_host": addresses[name], "kestrel_stack_address": addresses[name]}
                    for name in names
                }
            }

        groups = {
            "kestrel": hosts(*QUEUES),
            "consumers": hosts(*WORKERS),
            "kestrel_web": hosts(MONITOR),
            "sentry": {"hosts": {MONITOR: None}},
            "app": {"children": {"consumers": None}},
        }
        connection = {
            name: variables[name] for name in ("ansible_user", "ansible_ssh_common_args", "deploy_ssh_config")
        }
        made = subprocess.run(
            [sys.executable, "-m", "kestrel_stack.web", "hash-password"],
            input=f"{PASSWORD}\n{PASSWORD}\n", capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        each = {"job_timeout": 20, "retry_delays": DELAYS, "max_items": 100_000}
        stack = {
            "kestrel_stack_app": "shop",
            "kestrel_stack_namespace": "shop",
            "kestrel_stack_environment": "production",
            "kestrel_stack_queues": [
                {"name": "hello_world", "processes": 2, "alert": {"backlog": 1000, "age": "60s"}, **each},
                {"name": "mail", "processes": 1, "alert": {"backlog": 1000, "age": "5m"}, **each},
            ],
            "deploy_user": "deploy",
            "app_host_deploy_keys": variables["app_host_deploy_keys"],
            "consumers_python_app": "shop.jobs:registry",
            "kestrel_flavor": "embedded",
            "kestrel_listen_address": "{{ kestrel_stack_address }}",
            "kestrel_admin_address": "{{ kestrel_stack_address }}",
            "kestrel_firewall_port_from": [self.machine],
            "kestrel_spool_floor": "64MB",
            "kestrel_web_listen_address": "{{ kestrel_stack_address }}",
            "kestrel_web_users": [
                {"name": "anna", "role": "operator", "password_hash": made.stdout.strip().splitlines()[-1]}
            ],
            "sentry_backend": "bugsink",
            "sentry_listen_address": "{{ kestrel_stack_address }}",
            "sentry_admin_email": "anna@example.com",
            "sentry_admin_password": PASSWORD,
        }
        group_vars = self.production / "group_vars" / "all"
        group_vars.mkdir(parents=True)
        (group_vars / "stack.yml").write_text(yaml.safe_dump(stack, sort_keys=False))
        inventory_yml = {"all": {"vars": connection, "children": groups}}
        (self.production / "hosts.yml").write_text(yaml.safe_dump(inventory_yml, sort_keys=False))

    # --- typing ----------------------------------------------------------------------------------------

    def spoken(self, command: str) -> str:
        """Say a command of the document as it is said here."""
        for host, address in self.addresses.items():
            command = re.sub(rf"\b{re.escape(NETWORK[host])}\b", address, command)
        for word, value in self.kept.items():
            command = command.replace(word, value)
        return (
            command.replace("ansible/inventories/production", str(self.production))
            .replace("--env production", f"--env {self.production}")
            .replace("--env=production", f"--env={self.production}")
            .replace("../shop", str(self.app))
            .replace("../kestrel-stack-next", str(self.folder / "kestrel-stack-next"))
            .replace(
                "~/.ssh/known_hosts",
                str(Path(self.made["vars"]["deploy_ssh_config"]).with_name("known_hosts")),
            )
            .replace("~/.ssh/", f"{self.folder}/")
        )

    def type(self, command: str, seconds: float = 1800) -> subprocess.CompletedProcess[str]:
        """Run a command of the document in the checkout; standard output and errors are one text."""
        environment = {
            **os.environ,
            "PATH": f"{self.programs}:{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT / 'src'}",
            "ANSIBLE_FORCE_COLOR": "0",
        }
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; {self.spoken(command)}"],
            cwd=ROOT, env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=seconds, check=False,
        )  # fmt: skip

    def checked(self, command: str, seconds: float = 1800) -> str:
        """Run a command that must go well; return what it prints."""
        done = self.type(command, seconds)
        assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}"
        return done.stdout

    def inside(self, host: str, command: str, *, check: bool = True) -> str:
        """Run a command in a host's container as root; return what it prints."""
        container = inventory.load(self.whole).container(host)
        done = subprocess.run(
            ["docker", "exec", container, "sh", "-c", command],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{host}: {command}: {done.stdout}{done.stderr}"
        return done.stdout


def write_app(folder: Path) -> GitApp:
    """Make the application, which does the jobs of a load, too."""
    return loaded_app(folder)


def main() -> int:
    """Make or remove the hosts."""
    parser = argparse.ArgumentParser(prog="python -m operations.stage", description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    stage = Stage(options.folder)
    if options.action == "up":
        stage.make()
    else:
        stage.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
