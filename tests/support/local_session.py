"""A session whose hosts are folders of this machine: bash runs every script, with the helpers of Tree."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kestrel_stack.deploy import hoststate, scripts
from kestrel_stack.deploy.description import Host, Queue
from kestrel_stack.deploy.errors import Cancelled, HostError, Refused
from kestrel_stack.deploy.session import together
from kestrel_stack.deploy.ssh import Result, on_all
from support.deploy import NEW, OLD, Tree


class LocalSession:
    """What a rollout needs of a session. Connections can be cut, hosts made unreachable, locks lost."""

    root = "/srv/srv"

    def __init__(
        self, folder: Path, names: tuple[str, ...] = ("h1", "h2", "h3"), *, web: bool = False
    ) -> None:
        queues = tuple(Queue(name, f"shop_{name}", 1, 5) for name in ("a", "b"))
        self.hosts = tuple(Host(name, name, None, "deploy", None, queues, web=web) for name in names)
        self.trees = {name: Tree(folder / name) for name in names}
        self.environment = SimpleNamespace(app="srv", name="test")
        self.states: dict[str, hoststate.HostState] = {}
        self.cancel = threading.Event()
        self.lock_id = "deploy-1"
        self.locked = list(self.hosts)
        self.details: dict[str, dict[str, Any]] = {}
        self.ran: list[tuple[str, str]] = []
        self.away: set[str] = set()
        """Hosts whose connection breaks."""
        self.refusing: set[str] = set()
        """Hosts to which no connection comes up."""
        self.lost_locks: dict[str, Exception] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        """What ran last on each host."""
        self._cut: dict[str, threading.Event] = {name: threading.Event() for name in names}

    def make(self, **about: Any) -> None:
        """Put the two releases there, the old one running, and look."""
        for tree in self.trees.values():
            tree.release(OLD, **about)
            tree.release(NEW, verified=False, **about)
            tree.run_from(OLD)
        self.inspect()

    def inspect(self) -> None:
        self.states = {host.name: self.look(host) for host in self.hosts}

    def cut(self, name: str) -> None:
        """Lose the connection to the script that runs there."""
        self._cut[name].set()

    # --- what a rollout uses ---------------------------------------------------------------------------

    def everywhere(self, hosts, action):
        results, errors = on_all(hosts, action, self.cancel)
        if errors:
            raise together([errors[host] for host in hosts if host in errors])
        if self.cancel.is_set():
            raise Cancelled("stopped")
        return results

    def require_lock(self, host: Host) -> None:
        if host.name in self.lost_locks:
            raise self.lost_locks[host.name]

    def look(self, host: Host, *, settle: int = 0, cancellable: bool = True) -> hoststate.HostState:
        groups = [queue.group for queue in host.queues]
        script = scripts.inspect(self.root, groups, settle=settle, web="srv" if host.web else "")
        lines = self.run(host, script, "plan", cancellable=cancellable).lines
        return hoststate.parse_inspection(host.name, lines)

    def release(self, details) -> list[str]:
        self.details = {host.name: details(host) for host in self.locked}
        return []

    def run(
        self,
        host: Host,
        script: str,
        what: str,
        timeout: float = 60,
        *,
        on_line=None,
        cancellable: bool = True,
        stop_patience: float = 30,
    ) -> Result:
        if cancellable and self.cancel.is_set():
            raise Cancelled("stopped")
        self.ran.append((host.name, what))
        if host.name in self.refusing:
            raise Refused(f"{host.name} does not answer at 192.0.2.1 port 22")
        if host.name in self.away:
            raise HostError(host.name, f"{what}: the connection was lost (gone)", lost=True)
        tree = self.trees[host.name]
        for there, here in (
            (self.root, tree.srv),
            (scripts.HELPER, tree.helper),
            (scripts.WEB_HELPER, tree.web_helper),
            (scripts.LOGS, tree.logs.parent),
        ):
            script = script.replace(there, str(here))
        process = self.processes[host.name] = tree.start(script)
        lines: list[str] = []
        errors: list[str] = []

        def listen() -> None:
            for raw in process.stdout:
                lines.append(raw.decode().rstrip("\n"))
                if on_line is not None:
                    on_line(lines[-1])

        readers = [
            threading.Thread(target=listen),
            threading.Thread(target=lambda: errors.extend(process.stderr.read().decode().splitlines())),
        ]
        for reader in readers:
            reader.start()
        stopped = lost = False
        deadline = time.monotonic() + timeout
        while process.poll() is None:
            if self._cut[host.name].is_set() and not lost:
                self._cut[host.name].clear()
                lost = True
                process.stdin.close()
                break
            if cancellable and self.cancel.is_set() and not stopped:
                stopped = True
                process.stdin.close()
            assert time.monotonic() < deadline, f"{what} on {host.name} does not end"
            time.sleep(0.01)
        if lost:
            # Nobody listens any more; the script goes on by itself, as on a host that was cut off.
            raise HostError(host.name, f"{what}: the connection was lost (cut)", lost=True)
        for reader in readers:
            reader.join()
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        process.stderr.close()
        if stopped:
            raise Cancelled("stopped")
        result = Result(process.returncode, tuple(lines), tuple(errors))
        if result.code != 0:
            raise HostError(host.name, f"{what}: {result.complaint}")
        return result
