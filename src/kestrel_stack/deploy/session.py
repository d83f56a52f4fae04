"""One command's hold on the hosts of an environment: connections, scripts, what each reported, the lock."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any

from . import hoststate, plan, scripts
from .description import Environment, Host
from .errors import Cancelled, DeployError, Failed, HostError, Locked, Refused
from .hoststate import HostState
from .report import Report
from .ssh import Remote, Result, on_all


class Session:
    """Connections to the hosts of an environment, and what is known of them."""

    def __init__(self, environment: Environment, out: Report) -> None:
        self.environment = environment
        self.out = out
        self.cancel = threading.Event()
        self.remotes = {host.name: Remote(host, self.cancel) for host in environment.hosts}
        self.states: dict[str, HostState] = {}
        self.lock_id = uuid.uuid4().hex
        self.locked: list[Host] = []
        out.hosts(self.remotes)

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The hosts, in the inventory's order."""
        return self.environment.hosts

    @property
    def root(self) -> str:
        """The application's folder on every host."""
        return self.environment.root

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        for remote in self.remotes.values():
            remote.close()

    # --- scripts --------------------------------------------------------------------------------------

    def run(self, host: Host, script: str, what: str, timeout: float = 60, **kwargs: Any) -> Result:
        """Run a script on a host. Raises HostError with the script's own complaint when it fails."""
        result = self.remotes[host.name].run(script, what=what, timeout=timeout, **kwargs)
        if result.code != 0:
            raise HostError(host.name, f"{what}: {result.complaint}")
        return result

    def everywhere(self, hosts: Sequence[Host], action: Callable[[Host], Any]) -> dict[Host, Any]:
        """Do something on several hosts, capped. Raises one error that tells of every host that failed."""
        results, errors = on_all(hosts, action, self.cancel)
        if errors:
            raise together([errors[host] for host in hosts if host in errors])
        if self.cancel.is_set():
            raise Cancelled("stopped")
        return results

    # --- looking --------------------------------------------------------------------------------------

    def look(
        self, host: Host, shared_files: Sequence[str] = (), *, settle: int = 0, **kwargs: Any
    ) -> HostState:
        """Ask one host how it stands, in one round trip."""
        groups = [queue.group for queue in host.queues]
        script = scripts.inspect(self.root, groups, shared_files, settle=settle)
        result = self.run(host, script, "plan", timeout=60 + settle, **kwargs)
        return hoststate.parse_inspection(host.name, result.lines)

    def inspect(self, shared_files: Sequence[str] = ()) -> None:
        """Ask every host how it stands."""
        found = self.everywhere(self.hosts, lambda host: self.look(host, shared_files))
        self.states = {host.name: found[host] for host in self.hosts}

    def require_fit(self) -> None:
        """Raise Refused when a host cannot be deployed to, naming every problem of every host."""
        found = [
            f"{host.name}: {problem}"
            for host in self.hosts
            for problem in plan.problems(self.states[host.name], host.user, needs_workers=bool(host.queues))
        ]
        if found:
            raise Refused("; ".join(found))

    # --- the lock -------------------------------------------------------------------------------------

    def lock(self, action: str) -> None:
        """Take the lock of every host. Raises Locked naming the holder; what was taken by then is given back.

        The first host is locked before the others, so that of two deploys to the same hosts one wins.
        """
        content = {
            "id": self.lock_id,
            "owner": getpass.getuser(),
            "controller": socket.gethostname(),
            "pid": os.getpid(),
            "time": timestamp(),
            "action": action,
        }
        script = scripts.lock(self.root, content)
        changed = []

        def take(host: Host) -> None:
            # Noted before it is tried: a connection that breaks meanwhile may leave a lock behind.
            self.locked.append(host)
            for words in hoststate.events(self.run(host, script, "lock").lines):
                if words[:2] == ["lock", "held"]:
                    self.locked.remove(host)
                    holder = hoststate.describe_lock(hoststate.read_lock(words[2] if len(words) > 2 else ""))
                    raise Locked(
                        f"{host.name} is locked by {holder}; wait for it, or, when it is dead, run"
                        f" fab unlock --env {self.environment.name}"
                    )
                if words[:2] == ["fact", "current"] and words[2] != self.states[host.name].current:
                    changed.append(host)

        self.everywhere(self.hosts[:1], take)
        self.everywhere(self.hosts[1:], take)
        if changed:
            # Somebody deployed between our look and our lock.
            self.inspect()

    def release(self, details: Callable[[Host], dict[str, Any]] = lambda _: {}) -> list[str]:
        """End on every locked host: note, clean up, give the lock back. Returns what failed, one line each.

        A connection that was lost is tried once more; Ctrl-C does not shorten this.
        """

        def end(host: Host) -> None:
            script = scripts.finish(self.root, self.lock_id, **details(host))
            for last in (False, True):
                try:
                    self.run(host, script, "finish", timeout=120, cancellable=False)
                    return
                except DeployError as error:
                    if last or not getattr(error, "lost", True):
                        raise

        hosts, self.locked = self.locked, []
        _, errors = on_all(hosts, end, self.cancel)
        return [
            f"{errors[host]}: its lock stays; run fab unlock --env {self.environment.name} --limit"
            f" {host.name}"
            for host in hosts
            if host in errors
        ]


def together(errors: Sequence[BaseException]) -> BaseException:
    """One error for several hosts; the strongest decides its kind, so that the exit code is true."""
    for error in errors:
        if not isinstance(error, DeployError):
            return error
    stopped = [error for error in errors if isinstance(error, Cancelled)]
    real = [error for error in errors if not isinstance(error, Cancelled)] or stopped[:1]
    if len(real) == 1:
        return real[0]
    code = max(error.code for error in real)
    kind = next(type(error) for error in real if error.code == code)
    text = "; ".join(dict.fromkeys(str(error) for error in real))
    return kind(text) if kind in (Refused, Locked, Cancelled) else Failed(text, code)


@contextmanager
def hearing(handler: Callable[..., None]) -> Iterator[None]:
    """Have every signal by which a command is stopped handled; only the main thread may set that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # SIGINT too: a shell that starts a program in the background has it ignored.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def interruptible() -> AbstractContextManager[None]:
    """Let SIGTERM and SIGHUP end a deploy the way Ctrl-C does: in order."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    return hearing(interrupt)


def uninterrupted(out: Report) -> AbstractContextManager[None]:
    """Answer Ctrl-C with patience: what follows puts the hosts in order, and is bounded."""

    def explain(*_: object) -> None:
        out.step("Putting the hosts in order, this ends by itself")

    return hearing(explain)


def timestamp() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def who() -> str:
    """Return who runs this command: ``user@controller``."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
