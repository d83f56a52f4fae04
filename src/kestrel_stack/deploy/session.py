"""One command's hold on the hosts of an environment: connections, scripts, what each reported, the lock.

A deploy has one script per host that stays for the whole of it, ``hold``: it reports how the host stands,
holds the lock and ends what was begun. Everything else it runs beside that one, over the same connection.
"""

from __future__ import annotations

import base64
import getpass
import json
import os
import signal
import socket
import threading
import time
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
from .ssh import Remote, Result, Talk, on_all

SKEW_WARNED, SKEW_REFUSED = 5, 300
"""Seconds that a host's clock may be away from this machine's: without a word, and at all."""
FINISH_TIMEOUT = 300
"""Seconds within which old releases are removed and the lock is given back."""


class Session:
    """Connections to the hosts of an environment, and what is known of them.

    ``channels``: how many scripts will run on each host, as far as that is known. Their channels are opened
    with the connection, so that none waits for its own.
    """

    def __init__(self, environment: Environment, out: Report, *, channels: int = 1) -> None:
        _have_a_name()
        self.environment = environment
        self.out = out
        self.cancel = threading.Event()
        self.remotes = {host.name: Remote(host, self.cancel, channels) for host in environment.hosts}
        self.states: dict[str, HostState] = {}
        self.lock_id = uuid.uuid4().hex
        self.locked: list[Host] = []
        """Hosts whose lock this session has or may have."""
        self._holds: dict[str, Talk] = {}
        self._renewed: dict[str, float] = {}
        self._lost: dict[str, str] = {}
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
        # How the command has ended is decided; Ctrl-C must not make something else of it now.
        with hearing(lambda *_: None):
            for talk in self._holds.values():
                talk.close()
            for remote in self.remotes.values():
                remote.close()

    # --- scripts --------------------------------------------------------------------------------------

    def run(self, host: Host, script: str, what: str, timeout: float = 60, **kwargs: Any) -> Result:
        """Run a script on a host. Raises HostError with the script's own complaint when it fails."""
        result = self.remotes[host.name].run(script, what=what, timeout=timeout, **kwargs)
        self._check(host, what, result)
        return result

    @staticmethod
    def _check(host: Host, what: str, result: Result) -> None:
        if result.code != 0:
            raise HostError(host.name, f"{what}: {result.complaint}")

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
        self, host: Host, shared_files: Sequence[str] = (), *, settle: int = 0, cancellable: bool = True
    ) -> HostState:
        """Ask one host how it stands, in one round trip. Takes no lock and needs none.

        ``settle``: seconds to wait for a switch that is still under way.
        """
        talk = self._holds.get(host.name)
        if settle == 0 and talk is not None and talk.alive:
            lines: Sequence[str] = talk.ask("inspect", 60, cancellable=cancellable)
        else:
            groups = [queue.group for queue in host.queues]
            script = scripts.inspect(self.root, groups, shared_files, settle=settle, web=self._web(host))
            lines = self.run(host, script, "plan", timeout=60 + settle, cancellable=cancellable).lines
        return hoststate.parse_inspection(host.name, lines, time.time())

    def inspect(self, shared_files: Sequence[str] = ()) -> None:
        """Ask every host how it stands. The script that answers stays, for the lock."""

        def ask(host: Host) -> HostState:
            talk = self._holds.get(host.name)
            if talk is not None and talk.alive:
                lines = talk.ask("inspect", 60)
            else:
                lines = self._open_hold(host, shared_files).first(60)
            return hoststate.parse_inspection(host.name, lines, time.time())

        found = self.everywhere(self.hosts, ask)
        self.states = {host.name: found[host] for host in self.hosts}

    def require_fit(self) -> None:
        """Raise Refused when a host cannot be deployed to, naming every problem of every host."""
        found = []
        for host in self.hosts:
            state = self.states[host.name]
            problems = plan.problems(state, host.user, needs_workers=bool(host.queues))
            skew = state.clock_skew or 0
            said = f"its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
            if abs(skew) > SKEW_REFUSED:
                problems.append(f"{said}: set the one that is wrong (timedatectl set-ntp true)")
            elif abs(skew) > SKEW_WARNED:
                self.out.step(f"{said}: times in logs will not fit together", host.name, "yellow")
            found += [f"{host.name}: {problem}" for problem in problems]
        if found:
            raise Refused("; ".join(found))

    def _web(self, host: Host) -> str:
        return self.environment.app if host.web else ""

    # --- the script that stays ------------------------------------------------------------------------

    def hold_script(self, host: Host, shared_files: Sequence[str] = ()) -> str:
        """Return the text of the script that `inspect` starts on a host."""
        return scripts.hold(
            self.root,
            [queue.group for queue in host.queues],
            shared_files,
            lock_id=self.lock_id,
            web=self._web(host),
            lease=scripts.LEASE,
            grace=scripts.GRACE,
            patience=scripts.PATIENCE,
            settle=scripts.SETTLE,
        )

    def _open_hold(self, host: Host, shared_files: Sequence[str] = (), *, cancellable: bool = True) -> Talk:
        talk = self.remotes[host.name].talk(
            self.hold_script(host, shared_files),
            what="hold",
            on_line=lambda line: self._hear(host, line),
            cancellable=cancellable,
        )
        self._holds[host.name] = talk
        return talk

    def _hear(self, host: Host, line: str) -> None:
        """Note what a host says of the lock, whenever it says it."""
        if not line.startswith("@ lock "):
            return
        _, _, event, *rest = line.split(" ", 3)
        content = rest[0] if rest else ""
        if event in ("taken", "kept"):
            self._renewed[host.name] = time.monotonic()
        elif event == "lost":
            self._lost[host.name] = content
        elif event == "from":
            self.out.step(f"takes over the lock of {_holder(content)}, which is dead", host.name, "yellow")
        elif event == "waits":
            state, _, content = content.partition(" ")
            why = " and is still putting this host in order" if state == "switching" else ""
            self.out.step(f"waits for the lock of {_holder(content)}, which is ending{why}", host.name)

    # --- the lock -------------------------------------------------------------------------------------

    def lock(self, action: str) -> None:
        """Take the lock of every host, all at once. Raises Locked naming the holder; then none is held.

        Of several that come at the same moment, in whatever order and with whatever hosts in common, one
        wins: see decision 020.
        """
        content = {
            "id": self.lock_id,
            "owner": getpass.getuser(),
            "controller": socket.gethostname(),
            "pid": os.getpid(),
            "time": timestamp(),
            "action": action,
            "lease": scripts.LEASE,
        }
        question = "lock " + json.dumps(content, sort_keys=True)
        guard = threading.Lock()
        taken: list[Host] = []
        beaten = threading.Event()
        changed = []

        def take(host: Host) -> None:
            talk = self._holds.get(host.name)
            if talk is None or not talk.alive:
                talk = self._open_hold(host)
                talk.first(60)
            # Noted before it is tried: a connection that breaks meanwhile may leave a lock behind.
            self.locked.append(host)
            lines = talk.ask(question, 30 + scripts.SETTLE)
            current = ""
            for line in lines:
                if line.startswith("@ lock refused "):
                    self.locked.remove(host)
                    with guard:
                        beaten.set()
                        mine, taken[:] = list(taken), []
                    # At once: somebody who came at the same moment may be waiting for them.
                    on_all(mine, self._give_back, self.cancel)
                    raise Locked(self._refusal(host, line))
                if line.startswith("@ fact current "):
                    current = line.split()[3]
            with guard:
                if not beaten.is_set():
                    taken.append(host)
                    if current != self.states[host.name].current:
                        changed.append(host)
                    return
            self._give_back(host)

        self.everywhere(self.hosts, take)
        if changed:
            # Somebody deployed between our look and our lock.
            self.inspect()

    def _give_back(self, host: Host) -> None:
        self._holds[host.name].ask("unlock", 30, cancellable=False)
        self.locked.remove(host)

    def _refusal(self, host: Host, line: str) -> str:
        state, left, content = (*line.removeprefix("@ lock refused ").split(" ", 2), "", "")[:3]
        unlock = f"fab unlock --env {self.environment.name}"
        advice = f"wait for it, or, when it is dead, run {unlock}"
        if state == "dying":
            advice = f"it is dead, and its lock ends in {left} s: try again then, or run {unlock}"
        elif state == "switching":
            advice = "it is dead, but is still putting this host in order: try again in a minute"
        elif state == "forever":
            advice = f"no running deploy renews it: when it is of no use any more, run {unlock}"
        return f"{host.name} is locked by {_holder(content)}; {advice}"

    def require_lock(self, host: Host) -> None:
        """Make sure that the lock of a host is still ours.

        Raises Locked when another deploy has it now, and HostError when nobody has. Asks only when no
        renewal was confirmed for half a lease, or when the connection was lost.
        """
        talk = self._holds.get(host.name)
        connected = talk is not None and talk.alive
        fresh = time.monotonic() - self._renewed.get(host.name, 0.0) < scripts.LEASE / 2
        if host.name not in self._lost and not (connected and fresh):
            if connected:
                talk.ask("renew", 30, cancellable=False)
            else:
                talk = self._open_hold(host, cancellable=False)
                talk.first(60, cancellable=False)
                talk.ask("again", 30, cancellable=False)
        if host.name in self._lost:
            content = self._lost[host.name]
            if content.strip():
                raise Locked(f"{host.name}: the lock was lost: {_holder(content)} has it now")
            raise HostError(host.name, "the lock was lost: somebody removed it")

    def release(self, details: Callable[[Host], dict[str, Any]] = lambda _: {}) -> list[str]:
        """End on every locked host: note, clean up, give the lock back. Returns what failed, one line each.

        A connection that was lost is tried once more; Ctrl-C does not shorten this.
        """

        def warn(host: Host, result: Result) -> None:
            for line in result.lines:
                if line.startswith("@ warning "):
                    self.out.bad(line.removeprefix("@ warning "), host.name)

        def end(host: Host) -> None:
            script = scripts.finish(self.root, self.lock_id, **details(host))
            talk = self._holds.get(host.name)
            if talk is not None and talk.alive:
                try:
                    result = talk.end("finish " + base64.b64encode(script.encode()).decode(), FINISH_TIMEOUT)
                except HostError as error:
                    if not error.lost:
                        raise
                else:
                    self._check(host, "finish", result)
                    warn(host, result)
                    return
            for last in (False, True):
                try:
                    warn(
                        host,
                        self.run(host, script, "finish", timeout=FINISH_TIMEOUT, cancellable=False),
                    )
                    return
                except DeployError as error:
                    if last or not getattr(error, "lost", True):
                        raise

        hosts, self.locked = self.locked, []
        _, errors = on_all(hosts, end, self.cancel)
        return [
            f"{errors[host]}: its lock stays until it ends by itself, in about a minute, or until fab unlock"
            f" --env {self.environment.name} --limit {host.name}"
            for host in hosts
            if host in errors
        ]


def _holder(content: str) -> str:
    return hoststate.describe_lock(hoststate.read_lock(content))


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
    numbers = [signal.SIGINT, signal.SIGTERM]
    # But who says nohup wants it to go on when the terminal is gone.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
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


def timestamp() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _have_a_name() -> None:
    """Name the user who runs this command, for paramiko too; in a container it may have a number alone."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def who() -> str:
    """Return who runs this command: ``user@controller``."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
