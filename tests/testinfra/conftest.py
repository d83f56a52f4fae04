"""Connections to the hosts of an inventory, over ssh with strict host keys, and their logs when a test fails.

molecule names the inventory by KESTREL_STACK_INVENTORY. By hand, against the lab that bin/up made:
`.venv/bin/python -m pytest tests/testinfra/default`.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from testinfra.host import Host

import testinfra

CHECKOUT = Path(__file__).resolve().parents[2]
INVENTORY = Path(os.environ.get("KESTREL_STACK_INVENTORY") or CHECKOUT / "ansible/inventories/lab")
# What each host's own log is, printed under a failed test.
LOGS = {
    "kestrel": "sudo journalctl --unit kestrel --lines 30 --no-pager --output cat",
    "kestrel_web": "sudo journalctl --unit 'kestrel-web*' --lines 30 --no-pager --output cat",
    "sentry": "sudo journalctl --unit 'bugsink*' --lines 30 --no-pager --output cat",
    "consumers": (
        "sudo supervisorctl status; sudo tail -n 20 /var/log/supervisor/supervisord.log;"
        " sudo sh -c 'tail -n 15 /var/log/kestrel-stack/*/*.log'"
    ),
}


class Stack:
    """The hosts of an inventory, and what the inventory says of them."""

    def __init__(self, inventory: Path) -> None:
        listed = subprocess.run(
            [Path(sys.executable).parent / "ansible-inventory", "-i", inventory, "--list"],
            capture_output=True,
            text=True,
            check=True,
        )
        self.data: dict[str, Any] = json.loads(listed.stdout)
        self._clients: list[paramiko.SSHClient] = []

    def group(self, name: str) -> list[str]:
        """Return the hosts of a group, children's hosts included."""
        group = self.data.get(name, {})
        hosts = list(group.get("hosts", []))
        for child in group.get("children", []):
            hosts += [host for host in self.group(child) if host not in hosts]
        return hosts

    def vars(self, host: str) -> dict[str, Any]:
        """Return a host's variables."""
        return self.data["_meta"]["hostvars"][host]

    def forget(self) -> None:
        """Close the connections, so that the next use of a host connects again."""
        self.close()
        Stack.host.cache_clear()

    @functools.cache  # noqa: B019
    def host(self, name: str, user: str = "admin") -> Host:
        """Return a testinfra host: one ssh connection as `user`, whose key must be known."""
        config = paramiko.SSHConfig.from_path(self.vars(name)["deploy_ssh_config"]).lookup(name)
        client = paramiko.SSHClient()
        client.load_host_keys(config["userknownhostsfile"])
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        client.connect(
            config["hostname"],
            username=user,
            key_filename=config["identityfile"],
            look_for_keys=False,
            allow_agent=False,
            timeout=10,
        )
        self._clients.append(client)
        host = testinfra.get_host(f"paramiko://{user}@{name}")
        # testinfra's own client neither loads known hosts nor lets the user be chosen beside a configuration.
        host.backend.__dict__["client"] = client
        return host

    def close(self) -> None:
        """Close every connection."""
        for client in self._clients:
            client.close()


def pytest_configure(config: pytest.Config) -> None:
    """Make the stack known to the reports."""
    config.stash[_STACK] = None


_STACK = pytest.StashKey[Stack | None]()


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> Iterator[Stack]:
    """The inventory's hosts."""
    made = Stack(INVENTORY)
    pytestconfig.stash[_STACK] = made
    yield made
    made.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the services' own logs under a test that failed."""
    outcome = yield
    report = outcome.get_result()
    stack = item.config.stash[_STACK]
    if report.failed and stack is not None:
        for group, command in LOGS.items():
            for name in stack.group(group):
                try:
                    text = stack.host(name).run(command).stdout
                except Exception as error:
                    text = f"not readable: {error}"
                report.sections.append((f"log of {group} on {name}", text))


@pytest.fixture(scope="session")
def admin(stack: Stack) -> Callable[[str], Host]:
    """Connect to a host as the user Ansible uses, who may sudo."""
    return stack.host


@pytest.fixture(scope="session")
def root(stack: Stack) -> Callable[[str, str], Any]:
    """Run a shell command as root on a host; a failure of the command fails the test."""

    def run(name: str, command: str) -> str:
        done = stack.host(name).run("sudo sh -c %s", command)
        assert done.rc == 0, f"{name}: {command}: exit code {done.rc}: {done.stderr}{done.stdout}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def run_as(stack: Stack) -> Callable[[str, str, str], Any]:
    """Run a shell command on a host as any user, by sudo."""

    def run(name: str, user: str, command: str) -> Any:
        return stack.host(name).run(f"sudo -u {shlex.quote(user)} sh -c {shlex.quote(command)}")

    return run


@pytest.fixture(scope="session")
def memcache(stack: Stack) -> Callable[..., str]:
    """Talk to the memcache port from a host: send a text, return what comes back until `ends`."""
    script = """
import socket, sys
address, port, text, ends = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode(), sys.argv[4].encode()
with socket.create_connection((address, port), timeout=5) as connection:
    connection.sendall(text)
    answer = b""
    while not answer.endswith(ends):
        part = connection.recv(65536)
        if not part:
            break
        answer += part
sys.stdout.write(answer.decode())
"""

    def talk(name: str, address: str, port: int, text: str, ends: str = "\r\n") -> str:
        command = shlex.join(["python3", "-c", script, address, str(port), text, ends])
        done = stack.host(name).run(command)
        assert done.rc == 0, f"{name} -> {address}:{port}: {done.stderr}"
        return done.stdout

    return talk


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """Call a function until its result is true, and return that; the last result is in the failure."""

    def wait(probe: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        deadline = time.monotonic() + seconds
        while not (result := probe()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s; at last {result!r}"
            time.sleep(0.2)
        return result

    return wait
