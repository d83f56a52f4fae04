"""Layer three: the commands themselves, and the only place where hosts are touched.

The way of a deploy: plan (one round trip per host), lock, build once, send what a host lacks, prepare beside
the running release, then host by host: drain, switch, start, verify. Until the first switch nothing has
changed for anybody; a host that fails goes back; the lock is given back whatever happens.
"""

from __future__ import annotations

import getpass
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from . import build, description, plan, report, scripts
from .description import Environment, Host
from .errors import CHANGED, DONE, FAILED, Cancelled, DeployError, Failed, HostError, Locked, Refused
from .plan import HostState
from .report import Report
from .ssh import Remote, Result, on_all

BEFORE = "as before"
AFTER = "switched, every worker verified"
BROKEN = "NOT as before: its workers do not all run"
UNKNOWN = "unknown: it does not answer"


@dataclass(frozen=True)
class Ask:
    """What a person asked `fab deploy` for."""

    env: str = "lab"
    ref: str = "HEAD"
    app: str = "examples/shop"
    limit: str | None = None
    dry_run: bool = False
    force: bool = False
    allow_dirty: bool = False


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
            raise _together([errors[host] for host in hosts if host in errors])
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
        return plan.parse_inspection(host.name, result.lines)

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
            "time": _now(),
            "action": action,
        }
        script = scripts.lock(self.root, content)
        changed = []

        def take(host: Host) -> None:
            # Noted before it is tried: a connection that breaks meanwhile may leave a lock behind.
            self.locked.append(host)
            for words in plan.events(self.run(host, script, "lock").lines):
                if words[:2] == ["lock", "held"]:
                    self.locked.remove(host)
                    holder = plan.describe_lock(plan.read_lock(words[2] if len(words) > 2 else ""))
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


# --- deploy ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Made:
    """What was built for one kind of host."""

    wheels: build.Wheels


def deploy(ask: Ask, out: Report) -> int:
    """Roll an application out. Returns the exit code; raises DeployError."""
    environment = description.load_environment(ask.env, ask.limit)
    source = build.find_source(ask.app, ask.ref, allow_dirty=ask.allow_dirty)
    where = source.spec.requirements or "requirements"
    lock = build.read_lock(source.requirements, where)
    with Session(environment, out) as session, _interruptible():
        out.step(
            f"Plan: {environment.app} from {source.ref} ({source.rev[:8]}) to"
            f" {_count(len(session.hosts), 'host')} of {environment.name}"
        )
        session.inspect(source.spec.shared_files)
        session.require_fit()
        _show_plan(session)
        if ask.dry_run:
            return _dry_run(session, source, lock, where, ask, out)
        rollout = Rollout(session, out, "deploy")
        with rollout:
            session.lock("deploy")
            archive, wheels = _build(session, source, lock, where, out)
            if not ask.force and _up_to_date(session, source, archive, wheels):
                out.good(
                    f"Nothing to do: every host runs {source.rev[:8]} with all its workers (--force"
                    " deploys again)"
                )
                return DONE
            _require_disk(session, archive, wheels)
            taken = [release.name for state in session.states.values() for release in state.releases]
            name = plan.release_name(datetime.now(UTC), source.rev, taken)
            rollout.about(name, source, wheels)
            _send(session, name, archive, wheels, out)
            _prepare(session, name, source, archive, wheels, out)
            rollout.roll(dict.fromkeys(session.hosts, name))
            rollout.succeeded(source.spec.keep)
        build.trim_cache()
    return DONE


def _build(
    session: Session, source: build.Source, lock: build.Lock, where: str, out: Report
) -> tuple[build.Archive, dict[str, build.Wheels]]:
    """Build once: the archive, the stack's own wheel, and per kind of host the wheels of the lock."""
    archive = build.build_archive(source)
    stack_wheel = build.build_stack_wheel(source)
    per_target: dict[plan.Target, build.Wheels] = {}
    wheels = {}
    for host in session.hosts:
        target = session.states[host.name].target
        if target not in per_target:
            per_target[target] = build.build_wheels(lock, target, stack_wheel, where)
            made = per_target[target]
            out.step(
                f"Build: {_count(len(made.files), 'wheel')} ({_size(made.size)}) for {target};"
                f" application {_size(archive.size)}"
            )
        wheels[host.name] = per_target[target]
    if session.cancel.is_set():
        raise Cancelled("stopped")
    return archive, wheels


def _lacks_venv(state: HostState, wheels: build.Wheels) -> bool:
    return wheels.key not in state.venvs


def _up_to_date(
    session: Session, source: build.Source, archive: build.Archive, wheels: dict[str, build.Wheels]
) -> bool:
    return all(
        plan.is_up_to_date(state, source.rev, archive.sha256, wheels[name].key)
        for name, state in session.states.items()
    )


def _require_disk(session: Session, archive: build.Archive, wheels: dict[str, build.Wheels]) -> None:
    short = []
    for name, state in session.states.items():
        lacking = wheels[name].size if _lacks_venv(state, wheels[name]) else None
        need = plan.disk_needed_kb(archive.files_size, archive.size, lacking)
        free = int(state.facts.get("disk_kb", "0"))
        if free < need:
            short.append(
                f"{name}: {free // 1024} MB free under {session.root}, {need // 1024 + 1} MB needed:"
                " make room"
            )
    if short:
        raise Refused("; ".join(short))


def _dry_run(
    session: Session, source: build.Source, lock: build.Lock, where: str, ask: Ask, out: Report
) -> int:
    archive, wheels = _build(session, source, lock, where, out)
    _require_disk(session, archive, wheels)
    for name, state in session.states.items():
        if state.lock:
            out.bad(f"is locked by {plan.describe_lock(state.lock)}", name)
    if not ask.force and _up_to_date(session, source, archive, wheels):
        out.good(f"Nothing would be done: every host runs {source.rev[:8]} with all its workers")
        return DONE
    for host in session.hosts:
        state = session.states[host.name]
        venv = "and a new venv" if _lacks_venv(state, wheels[host.name]) else "its venv is there"
        groups = ", ".join(queue.group for queue in host.queues) or "none"
        out.step(
            f"would get a release of {source.rev[:8]} ({venv}) instead of {state.current or 'none'}",
            host.name,
        )
        out.step(f"would drain and start: {groups}", host.name)
    out.good("Dry run: nothing was changed")
    return DONE


def _send(
    session: Session, name: str, archive: build.Archive, wheels: dict[str, build.Wheels], out: Report
) -> None:
    bundles = {
        host.name: build.build_bundle(
            archive, wheels[host.name], with_wheels=_lacks_venv(session.states[host.name], wheels[host.name])
        )
        for host in session.hosts
    }

    def send(host: Host) -> None:
        bundle = bundles[host.name]
        # 50 KB a second is a line on which one would rather not deploy.
        seconds = 120 + bundle.size // 50_000
        script = scripts.receive(session.root, name, size=bundle.size, sha256=bundle.sha256, seconds=seconds)
        session.run(host, script, "send", timeout=seconds + 10, upload=bundle.path)
        out.step(f"received {_size(bundle.size)}", host.name)

    session.everywhere(session.hosts, send)


def _prepare(
    session: Session,
    name: str,
    source: build.Source,
    archive: build.Archive,
    wheels: dict[str, build.Wheels],
    out: Report,
) -> None:
    created_at = _now()

    def prepare(host: Host) -> None:
        about = {
            "release": name,
            "rev": source.rev,
            "ref": source.ref,
            "venv": wheels[host.name].key,
            "created_at": created_at,
            "by": _who(),
            "archive": archive.sha256,
        }
        script = scripts.prepare(
            session.root,
            name,
            venv=wheels[host.name].key,
            stack_wheel=wheels[host.name].stack_wheel,
            release_json=about,
            shared_files=source.spec.shared_files,
            shared_directories=source.spec.shared_directories,
        )
        result = session.run(host, script, "prepare", timeout=900)
        built = False
        for words in plan.events(result.lines):
            built = built or words == ["venv", "built"]
            if words[0] == "warning":
                out.bad(" ".join(words[1:]), host.name)
        out.step(f"prepared {name}" + (", new venv" if built else ""), host.name)

    session.everywhere(session.hosts, prepare)


# --- rollback ----------------------------------------------------------------------------------------


def rollback(env: str, to: str | None, limit: str | None, dry_run: bool, out: Report) -> int:
    """Go back to an earlier release, in the same careful way. Returns the exit code; raises DeployError."""
    environment = description.load_environment(env, limit)
    with Session(environment, out) as session, _interruptible():
        out.step(
            f"Plan: rollback of {environment.app} on {_count(len(session.hosts), 'host')} of"
            f" {environment.name}"
        )
        session.inspect()
        session.require_fit()
        target = plan.rollback_target(list(session.states.values()), to)
        _show_plan(session)
        out.step(f"Back to {target}")
        if dry_run:
            out.good("Dry run: nothing was changed")
            return DONE
        rollout = Rollout(session, out, "rollback")
        with rollout:
            session.lock("rollback")
            plan.rollback_target(list(session.states.values()), target)
            rollout.about(target)
            hosts = [host for host in session.hosts if not _runs(session.states[host.name], target)]
            if not hosts:
                out.good(f"Nothing to do: every host runs {target} with all its workers")
                return DONE
            rollout.roll(dict.fromkeys(hosts, target))
            rollout.succeeded(None)
    return DONE


def _runs(state: HostState, release: str) -> bool:
    return state.current == release and plan.judge(state.groups, release, 0).ok


# --- the roll ----------------------------------------------------------------------------------------


class Rollout:
    """Switches hosts and knows how each stands. As a context manager it ends what it began, always."""

    def __init__(self, session: Session, out: Report, action: str) -> None:
        self.session = session
        self.out = out
        self.action = action
        self.name = ""
        self.stand = {host.name: BEFORE for host in session.hosts}
        self._tried: set[str] = set()
        self._source: build.Source | None = None
        self._wheels: dict[str, build.Wheels] = {}
        self._keep: int | None = None
        self._done = False

    def about(
        self, name: str, source: build.Source | None = None, wheels: dict[str, build.Wheels] | None = None
    ) -> None:
        """Name the release that is rolled out; ``source`` and ``wheels`` only when it is a new one."""
        self.name, self._source, self._wheels = name, source, wheels or {}

    def succeeded(self, keep: int | None) -> None:
        """Say that every host is on the release; with ``keep`` the older ones are pruned."""
        self._done, self._keep = True, keep

    def __enter__(self) -> Rollout:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        with _uninterrupted(self.out):
            left = self.session.release(self._details)
        for line in left:
            self.out.bad(line)
        if error is None:
            if self._done:
                self._summary()
                past = "Deployed" if self.action == "deploy" else "Rolled back to"
                self.out.good(f"{past} {self.name} on {_count(len(self.stand), 'host')}")
            if left:
                raise DeployError("; ".join(left), CHANGED)
            return False
        if isinstance(error, KeyboardInterrupt):
            error = Cancelled("stopped")
        if not isinstance(error, DeployError):
            return False
        if self._tried or isinstance(error, Cancelled):
            self._summary()
        raise self._verdict(error) from None

    def _verdict(self, error: DeployError) -> DeployError:
        """Add to an error how the hosts stand, which also decides the exit code."""
        changed = [name for name, stand in self.stand.items() if stand != BEFORE]
        if changed:
            words = "; ".join(f"{name} is {self._said(name)}" for name in changed)
            as_before = [name for name in self.stand if name not in changed]
            rest = f"; as before: {', '.join(as_before)}" if as_before else ""
            return DeployError(f"{error}. {words}{rest}", CHANGED)
        if error.code == FAILED:
            return DeployError(f"{error}. Every host is as before", FAILED)
        return error

    def _said(self, name: str) -> str:
        return f"on {self.name}" if self.stand[name] == AFTER else self.stand[name]

    def _summary(self) -> None:
        rows = []
        for host in self.session.hosts:
            current = self.session.states[host.name].current
            stand = self.stand[host.name]
            shown = self.name if stand == AFTER else current or "none"
            rows.append([host.name, shown if stand in (BEFORE, AFTER) else "?", stand])
        self.out.table(("host", "release", "stands"), rows)

    def _details(self, host: Host) -> dict[str, Any]:
        """Say what the end of a deploy leaves and removes on one host."""
        stand = self.stand[host.name]
        state = self.session.states[host.name]
        details: dict[str, Any] = {}
        if host.name in self._tried:
            details["record"] = {
                "at": _now(),
                "action": self.action,
                "release": self.name,
                "previous": state.current or None,
                "rev": self._source.rev if self._source else getattr(state.release(self.name), "rev", None),
                "ref": self._source.ref if self._source else getattr(state.release(self.name), "ref", None),
                "by": _who(),
                "id": self.session.lock_id,
                "result": "ok" if stand == AFTER else "failed",
            }
        if stand == AFTER:
            details["verified"] = self.name
            if self._done and self._keep is not None:
                venv = self._wheels[host.name].key
                releases, venvs = plan.to_remove(state, self.name, venv, state.current, self._keep)
                details["remove_releases"], details["remove_venvs"] = releases, venvs
        elif stand == BEFORE and self._source is not None and self.name:
            details["remove_releases"] = [self.name]
        return details

    # --- host by host ---------------------------------------------------------------------------------

    def roll(self, to: dict[Host, str]) -> None:
        """Switch host by host. Raises DeployError at the first that fails; that one goes back."""
        for batch in plan.batches(list(to)):
            self.session.everywhere(batch, lambda host: self._one(host, to[host]))

    def _one(self, host: Host, new: str) -> None:
        old = self.session.states[host.name].current
        self._tried.add(host.name)
        # Until the script has said how the host stands, nobody knows.
        self.stand[host.name] = UNKNOWN
        try:
            self._switch(host, old, new)
            if self.stand[host.name] != AFTER:
                raise HostError(host.name, "switch: it did not say how it ended")
            self.stand[host.name] = UNKNOWN
            self._verify(host, new)
        except (HostError, Cancelled) as error:
            if self.stand[host.name] == UNKNOWN:
                self._go_back(host, new, old, error)
            raise
        self.stand[host.name] = AFTER

    def _limits(self, host: Host) -> float:
        """Return the seconds within which a host drains and starts; the helper itself is bounded, too."""
        drain = max((queue.job_timeout + 10 for queue in host.queues), default=0)
        start = sum(10 * queue.processes for queue in host.queues)
        return 60 + drain + start

    def _switch(self, host: Host, old: str, new: str, *, going_back: bool = False) -> None:
        """Run the switch script and note where it left the host. Raises HostError or Cancelled."""
        groups = [queue.group for queue in host.queues]
        script = scripts.switch(
            self.session.root, groups, from_release=old, to_release=new, going_back=going_back
        )
        limit = self._limits(host)
        lines: list[str] = []

        def hear(line: str) -> None:
            lines.append(line)
            for words in plan.events([line]):
                text = _SWITCH_TEXTS.get(words[0])
                if text:
                    self.out.step(f"{text} {' '.join(words[1:])}", host.name)

        try:
            self.session.run(
                host,
                script,
                "switch",
                timeout=limit,
                on_line=hear,
                cancellable=not going_back,
                stop_patience=2 * limit,
            )
        finally:
            said = [words[1] for words in plan.events(lines) if words[0] == "stand"]
            if said:
                place = {"before": BEFORE, "after": AFTER, "broken": BROKEN}[said[-1]]
                if going_back and place == AFTER:
                    place = BEFORE
                self.stand[host.name] = place

    def _verify(self, host: Host, release: str) -> None:
        """Wait until every worker runs from the release and has outlived startsecs. Raises HostError."""
        groups = [queue.group for queue in host.queues]
        script = scripts.status(groups)
        began = time.monotonic()
        limit = 30 + 2 * sum(queue.processes for queue in host.queues)
        down_since: float | None = None
        while groups:
            found = plan.parse_groups(self.session.run(host, script, "verify", timeout=60).lines)
            verdict = plan.judge(found, release)
            if verdict.ok:
                break
            now = time.monotonic()
            # A worker that has done its share of jobs is EXITED for a moment before supervisor starts it
            # again.
            down_since = (down_since or now) if verdict.down else None
            if verdict.final or now - began > limit or (down_since and now - down_since > 5):
                log = f"/var/log/kestrel-stack/{self.session.environment.app}/"
                raise HostError(host.name, f"verify: {verdict.reason}; its log is under {log}")
            if self.session.cancel.wait(0.5):
                raise Cancelled("stopped")
        count = sum(queue.processes for queue in host.queues)
        self.out.good(f"verified: {_count(count, 'worker')} from {release}", host.name)

    def _go_back(self, host: Host, new: str, old: str, why: DeployError) -> None:
        """Put a host back on its old release, after a failed verification or a lost connection."""
        self.out.bad(
            f"goes back to {old or 'no release'}: {str(why).removeprefix(f'{host.name}: ')}", host.name
        )
        limit = int(self._limits(host)) * 2
        try:
            if getattr(why, "lost", False):
                state = self._look_again(host, limit)
                if state.current == old:
                    # The script noticed that we were gone, and went back by itself.
                    well = not old or plan.judge(state.groups, old, 0).ok
                    self.stand[host.name] = BEFORE if well else BROKEN
                    return
            self._switch(host, new, old, going_back=True)
        except DeployError as error:
            if self.stand[host.name] == UNKNOWN and not getattr(error, "lost", False):
                self.stand[host.name] = BROKEN
            self.out.bad(f"could not go back: {str(error).removeprefix(f'{host.name}: ')}", host.name)

    def _look_again(self, host: Host, settle: int) -> HostState:
        """Reconnect to a host that was lost, and wait until what ran there has ended."""
        deadline = time.monotonic() + 45
        while True:
            try:
                return self.session.look(host, settle=settle, cancellable=False)
            except DeployError as error:
                if time.monotonic() > deadline:
                    raise HostError(host.name, f"does not answer any more ({error})", lost=True) from None
                time.sleep(1)


_SWITCH_TEXTS = {"drained": "drained", "switched": "switched to", "started": "started", "back": "back on"}


# --- looking, and locks ------------------------------------------------------------------------------


def _look_everywhere(session: Session) -> dict[str, BaseException]:
    """Fill the session's states; return the errors of hosts that do not answer, by name."""
    found, errors = on_all(session.hosts, session.look, session.cancel)
    if session.cancel.is_set():
        raise Cancelled("stopped")
    for error in errors.values():
        if not isinstance(error, DeployError):
            raise error
    session.states = {host.name: found[host] for host in session.hosts if host in found}
    return {host.name: errors[host] for host in session.hosts if host in errors}


def _end_with(errors: dict[str, BaseException]) -> int:
    if errors:
        raise Refused("; ".join(str(error) for error in errors.values()))
    return DONE


def status(env: str, limit: str | None, as_json: bool, out: Report) -> int:
    """Show how every host stands."""
    environment = description.load_environment(env, limit)
    with Session(environment, out) as session, _interruptible():
        errors = _look_everywhere(session)
        now = datetime.now(UTC)
        if as_json:
            hosts = [
                report.status_json(session.states[host.name])
                if host.name in session.states
                else {"host": host.name, "answers": False, "error": str(errors[host.name])}
                for host in session.hosts
            ]
            out.json({"environment": environment.name, "app": environment.app, "hosts": hosts})
        else:
            rows = [
                report.status_row(session.states[host.name], now)
                if host.name in session.states
                else [host.name, "does not answer", "", "", "", ""]
                for host in session.hosts
            ]
            out.table(report.STATUS_COLUMNS, rows)
        return _end_with(errors)


def releases(env: str, limit: str | None, out: Report) -> int:
    """Show the releases of every host, newest first."""
    environment = description.load_environment(env, limit)
    with Session(environment, out) as session, _interruptible():
        errors = _look_everywhere(session)
        rows = []
        names = {release.name for state in session.states.values() for release in state.releases}
        now = datetime.now(UTC)
        for name in sorted(names, reverse=True):
            having = [state for state in session.states.values() if state.release(name)]
            one = having[0].release(name)
            current = [state.host for state in having if state.current == name]
            bad = [state.host for state in having if not state.release(name).verified]
            rows.append(
                [
                    name,
                    one.ref,
                    age_text if (age_text := report.age(one.created_at, now)) else "?",
                    one.by,
                    ", ".join(state.host for state in having),
                    ", ".join(current),
                    f"never verified on {', '.join(bad)}" if bad else "",
                ]
            )
        if rows:
            out.table(("release", "ref", "age", "by", "on", "current on", ""), rows)
        elif not errors:
            out.line(f"No releases of {environment.app} yet: run fab deploy --env {environment.name}")
        return _end_with(errors)


def unlock(env: str, limit: str | None, out: Report) -> int:
    """Show the locks and remove them."""
    environment = description.load_environment(env, limit)
    with Session(environment, out) as session, _interruptible():
        errors = _look_everywhere(session)
        for host in session.hosts:
            state = session.states.get(host.name)
            if state is None:
                continue
            if state.lock is None:
                out.step("is not locked", host.name)
                continue
            holder = plan.describe_lock(state.lock)
            # The lock that was shown is removed, not one that somebody takes meanwhile.
            mark = str(state.lock.get("id") or state.lock.get("content") or "")
            result = session.run(host, scripts.unlock(session.root, mark), "unlock")
            if any(words[0] == "kept" for words in plan.events(result.lines)):
                errors[host.name] = Refused(f"{host.name}: the lock was taken anew meanwhile and stays")
            else:
                out.good(f"unlocked; it was held by {holder}", host.name)
        return _end_with(errors)


# --- small things ------------------------------------------------------------------------------------


def _show_plan(session: Session) -> None:
    for host in session.hosts:
        state = session.states[host.name]
        session.out.step(
            f"{state.current or 'no release yet'}; workers: {report.workers_text(state)}; {state.target}",
            host.name,
        )


def _together(errors: Sequence[BaseException]) -> BaseException:
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
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a deploy the way Ctrl-C does: in order."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _uninterrupted(out: Report) -> Iterator[None]:
    """Answer Ctrl-C with patience: what follows puts the hosts in order, and is bounded."""

    def explain(*_: object) -> None:
        out.step("Putting the hosts in order, this ends by itself")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, explain) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _size(number: int) -> str:
    return f"{number / 1_000_000:.1f} MB" if number >= 100_000 else f"{max(1, number // 1000)} kB"
