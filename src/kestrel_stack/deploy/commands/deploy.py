"""`fab deploy`.

The way of a deploy: plan (one round trip per host), confirm, lock, build once, send what a host lacks and
prepare it beside the running release, upload static files to a CDN, migrate, then switch the hosts (see
``rollout``), and tell who wants to know. Until the migration nothing has changed for anybody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from .. import after, assets, build, description, hoststate, plan, scripts
from ..appspec import Roll, parse_batch
from ..description import Host
from ..errors import DONE, Cancelled, DeployError, HostError, Refused
from ..hoststate import HostState
from ..plan import Pace
from ..report import Report, count, size
from ..rollout import Rollout
from ..session import Session, interruptible, timestamp, who
from .look import show_plan

T = TypeVar("T")

MOST_CANARIES = 1000
LONGEST_SOAK = 86400
"""Seconds; who watches for longer than a day has no canary but a second environment."""


@dataclass(frozen=True)
class AskPace:
    """How carefully a person wants the hosts to be switched; None: as deploy.yml says."""

    batch: str | None = None
    canary: str | None = None
    soak: str | None = None
    ping: bool = True

    def over(self, roll: Roll) -> Pace:
        """Return the pace, with deploy.yml's where no flag says otherwise. Raises Refused naming a flag."""
        return Pace(
            roll.batch if self.batch is None else parse_batch(self.batch, "--batch"),
            roll.canary if self.canary is None else _whole(self.canary, "--canary", MOST_CANARIES),
            roll.soak if self.soak is None else _whole(self.soak, "--soak", LONGEST_SOAK),
            self.ping,
            first_at_once=self.batch is None and self.canary is None,
        )


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
    yes: bool = False
    pace: AskPace = field(default_factory=AskPace)


@dataclass(frozen=True)
class _Found:
    """The application at a commit, read."""

    source: build.Source
    lock: build.Lock
    where: str
    """What the lock is called in messages."""


@dataclass(frozen=True)
class _Built:
    """What is sent: the files, and for every host the wheels of its kind."""

    archive: build.Archive
    wheels: dict[str, build.Wheels]


def deploy(ask: Ask, out: Report) -> int:
    """Roll an application out. Returns the exit code; raises DeployError."""
    started_at = datetime.now(UTC)
    ask.pace.over(Roll())
    # Reading the commit and building take about as long as reading the inventory and asking the hosts.
    finding = meanwhile(lambda: _find(ask))
    building = meanwhile(lambda: _files(finding.result().source))
    environment = description.load_environment(ask.env, ask.limit)
    found = finding.result()
    source = found.source
    pace = ask.pace.over(source.spec.roll)
    with Session(environment, out, channels=3) as session, interruptible():
        out.step(
            f"Plan: {environment.app} from {source.ref} ({source.rev[:8]}) to"
            f" {count(len(session.hosts), 'host')} of {environment.name}"
        )
        for line in source.warnings:
            out.bad(line)
        session.inspect(source.spec.shared_files)
        session.require_fit()
        show_plan(session)
        _warn_of_deleted(session, out)
        _show_pace(session, pace, source, out)
        if ask.dry_run:
            return _dry_run(session, found, building, pace, ask, out)
        if not ask.yes and not out.confirm(f"Deploy {source.rev[:8]} to {environment.name}?"):
            raise Refused("not confirmed: nothing was changed")
        rollout = Rollout(session, out, "deploy")
        try:
            with rollout:
                session.lock("deploy")
                built = _build(session, found, building, out)
                if not ask.force and _up_to_date(session, source, built):
                    out.good(
                        f"Nothing to do: every host runs {source.rev[:8]} with all its workers (--force"
                        " deploys again)"
                    )
                    return DONE
                _require_disk(session, built)
                name = _name(session, source)
                rollout.about(name, source, built.wheels)
                _prepare(session, name, source, built, out)
                assets.publish(built.archive.tree, source.spec.assets, out, session.cancel)
                if source.spec.migrate:
                    rollout.migrate(source.spec.migrate)
                rollout.roll(dict.fromkeys(session.hosts, name), pace)
                rollout.succeeded(source.spec.keep)
        except DeployError as error:
            if rollout.tried:
                afterwards(session, rollout, source, started_at, out, str(error))
            raise
        afterwards(session, rollout, source, started_at, out)
    return DONE


# --- what is asked for ----------------------------------------------------------------------------------


def _whole(text: str, flag: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise Refused(f"{flag} is {text!r}; it must be a whole number from 0 to {most}")
    return int(text)


def _find(ask: Ask) -> _Found:
    source = build.find_source(ask.app, ask.ref, allow_dirty=ask.allow_dirty)
    assets.require_tools(source.spec.assets)
    where = source.spec.requirements or "requirements"
    return _Found(source, build.read_lock(source.requirements, where), where)


def meanwhile(action: Callable[[], T]) -> Future[T]:
    """Do something beside the main thread. A command that ends earlier does not wait for it."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _warn_of_deleted(session: Session, out: Report) -> None:
    for name, state in session.states.items():
        if state.current and state.current_release is None:
            out.bad(
                f"current is {state.current}, which was deleted: if this deploy fails there is no way back",
                name,
            )


def _show_pace(session: Session, pace: Pace, source: build.Source, out: Report) -> None:
    """Print in which order the hosts are switched."""
    new = [host for host in session.hosts if not session.states[host.name].current]
    batches = plan.batches(session.hosts, pace, new)
    words = []
    for batch in batches:
        names = " + ".join(host.name for host in batch.hosts)
        soaked = f" (canary, watched for {pace.soak} s)" if batch.canary and pace.soak else ""
        soaked = soaked or (" (canary)" if batch.canary else "")
        words.append(f"{names}{soaked}")
    first = f"migrate on {session.hosts[0].name}; " if source.spec.migrate else ""
    out.step(f"Order: {first}{', then '.join(words)}")


def _name(session: Session, source: build.Source) -> str:
    taken = [release.name for state in session.states.values() for release in state.releases]
    return plan.release_name(datetime.now(UTC), source.rev, taken)


# --- building -------------------------------------------------------------------------------------------


def _files(source: build.Source) -> tuple[build.Archive, Path]:
    return build.build_archive(source), build.build_stack_wheel(source)


def _build(
    session: Session, found: _Found, building: Future[tuple[build.Archive, Path]], out: Report
) -> _Built:
    """Build once: the files, the stack's own wheel, and per kind of host the wheels of the lock."""
    archive, stack_wheel = building.result()
    per_target: dict[hoststate.Target, build.Wheels] = {}
    wheels = {}
    for host in session.hosts:
        target = session.states[host.name].target
        if target not in per_target:
            per_target[target] = build.build_wheels(found.lock, target, stack_wheel, found.where)
            made = per_target[target]
            out.step(
                f"Build: {count(len(made.files), 'wheel')} ({size(made.size)}) for {target};"
                f" application {size(archive.files_size)}"
            )
        wheels[host.name] = per_target[target]
    if session.cancel.is_set():
        raise Cancelled("stopped")
    return _Built(archive, wheels)


def _lacks_venv(state: HostState, wheels: build.Wheels) -> bool:
    return wheels.key not in state.venvs


def _up_to_date(session: Session, source: build.Source, built: _Built) -> bool:
    return all(
        plan.is_up_to_date(state, source.rev, built.archive.manifest, built.wheels[name].key)
        for name, state in session.states.items()
    )


def _require_disk(session: Session, built: _Built) -> None:
    short = []
    for name, state in session.states.items():
        lacking = built.wheels[name].size if _lacks_venv(state, built.wheels[name]) else None
        need = plan.disk_needed_kb(built.archive.files_size, built.archive.files_size, lacking)
        free = int(state.facts.get("disk_kb", "0"))
        if free < need:
            short.append(
                f"{name}: {free // 1024} MB free under {session.root}, {need // 1024 + 1} MB needed:"
                " make room"
            )
    if short:
        raise Refused("; ".join(short))


# --- sending and preparing ------------------------------------------------------------------------------


class _Sending:
    """What every host is sent, and the script that takes it."""

    def __init__(self, session: Session, name: str, source: build.Source, built: _Built) -> None:
        self._session = session
        self._name = name
        self._source = source
        self._built = built
        self._created_at = timestamp()

    def bundle(self, host: Host, *, full: bool = False) -> build.Bundle:
        """Pack what the host lacks."""
        state = self._session.states[host.name]
        wheels = self._built.wheels[host.name]
        return build.bundle_for(self._built.archive, wheels, state, self._source, full=full)

    def script(self, host: Host, bundle: build.Bundle) -> str:
        """Return the script that takes the bundle and makes the release ready."""
        wheels = self._built.wheels[host.name]
        spec = self._source.spec
        hooks = {"before_switch": spec.hooks.before_switch, "after_switch": spec.hooks.after_switch}
        about = {
            "release": self._name,
            "rev": self._source.rev,
            "ref": self._source.ref,
            "venv": wheels.key,
            "created_at": self._created_at,
            "by": who(),
            "manifest": self._built.archive.manifest,
            "ping": 1,
            "hooks": {name: command for name, command in hooks.items() if command},
        }
        return scripts.prepare(
            self._session.root,
            self._name,
            bundle=bundle,
            venv=wheels.key,
            release_json=about,
            previous=self._session.states[host.name].current,
            check=spec.hooks.check,
            shared_files=spec.shared_files,
            shared_directories=spec.shared_directories,
        )


def _prepare(session: Session, name: str, source: build.Source, built: _Built, out: Report) -> None:
    """Send every host what it lacks and make the release ready, on all hosts at once."""
    sending = _Sending(session, name, source, built)
    bundles = {host.name: sending.bundle(host) for host in session.hosts}

    with out.progress("Sending", {host: bundle.size for host, bundle in bundles.items()}) as progress:

        def prepare(host: Host) -> None:
            bundle = bundles[host.name]
            said = _prepare_one(session, sending, host, bundle, out, progress.advance)
            if ["prepared"] not in said:
                why = [" ".join(words[2:]) for words in said if words[:2] == ["need", "full"]]
                out.step(f"gets everything: {'; '.join(why)}", host.name)
                bundle = sending.bundle(host, full=True)
                said = _prepare_one(session, sending, host, bundle, out, lambda *_: None)
            if ["prepared"] not in said:
                raise HostError(host.name, "prepare: it did not say that it is done")
            venv = ", new venv" if ["venv", "built"] in said else ""
            out.step(f"received {size(bundle.size)}, prepared {name}{venv}", host.name)

        session.everywhere(session.hosts, prepare)


def _prepare_one(
    session: Session,
    sending: _Sending,
    host: Host,
    bundle: build.Bundle,
    out: Report,
    advance: Callable[[str, int], None],
) -> list[list[str]]:
    """Run the script on one host, and return what it said."""
    seconds = bundle.seconds + scripts.HOOK_SECONDS + 900
    result = session.run(
        host,
        sending.script(host, bundle),
        "prepare",
        timeout=seconds,
        upload=bundle.path,
        on_sent=lambda number: advance(host.name, number),
    )
    said = list(hoststate.events(result.lines))
    for words in said:
        if words and words[0] == "warning":
            out.bad(" ".join(words[1:]), host.name)
    return said


# --- what would be done, and what was done --------------------------------------------------------------


def _dry_run(
    session: Session,
    found: _Found,
    building: Future[tuple[build.Archive, Path]],
    pace: Pace,
    ask: Ask,
    out: Report,
) -> int:
    """Print what every host would be sent and every script that would run; change nothing."""
    source = found.source
    built = _build(session, found, building, out)
    _require_disk(session, built)
    for name, state in session.states.items():
        if state.lock:
            out.bad(f"is locked by {hoststate.describe_lock(state.lock)}", name)
    if not ask.force and _up_to_date(session, source, built):
        out.good(f"Nothing would be done: every host runs {source.rev[:8]} with all its workers")
        return DONE
    name = _name(session, source)
    sending = _Sending(session, name, source, built)
    rollout = Rollout(session, out, "deploy")
    rollout.about(name, source, built.wheels)
    said: list[tuple[Host, str, str]] = []
    for host in session.hosts:
        state = session.states[host.name]
        bundle = sending.bundle(host)
        venv = "and a new venv" if _lacks_venv(state, built.wheels[host.name]) else "its venv is there"
        base = f" beside {bundle.base_release}" if bundle.base_release else ""
        groups = ", ".join([queue.group for queue in host.queues] + ["web"] * host.web) or "none"
        out.step(
            f"would get {size(bundle.size)}{base} for a release of {source.rev[:8]} ({venv}) instead of"
            f" {state.current or 'none'}",
            host.name,
        )
        out.step(f"would drain and start: {groups}", host.name)
        said.append((host, "plan and lock", session.hold_script(host, source.spec.shared_files)))
        said.append((host, "prepare", sending.script(host, bundle)))
        if source.spec.migrate and host == session.hosts[0]:
            said.append((host, "migrate", rollout.migrate_script(source.spec.migrate)))
        said.append((host, "switch", rollout.switch_script(host, state.current, name, pace)))
    for host, what, script in said:
        out.line(f"\n# ---- {host.name}: {what} " + "-" * 40)
        out.line(script.rstrip("\n"))
    out.line()
    out.good("Dry run: nothing was changed")
    return DONE


def afterwards(
    session: Session,
    rollout: Rollout,
    source: build.Source,
    started_at: datetime,
    out: Report,
    reason: str = "",
) -> None:
    """Tell everybody in deploy.yml's `after`, and trim the cache.

    Never changes how a deploy or a rollback has ended.
    """
    try:
        done = _deployed(session, rollout, source, started_at, reason)
        after.after_deploy(source.spec.after, done, warn=out.bad, say=out.step)
        build.trim_cache()
    except KeyboardInterrupt:
        # How the hosts stand was decided before.
        out.bad(f"stopped before everybody was told of the {rollout.action}")
    except Exception as error:
        # A defect of ours, after the hosts were switched: it must not look like a deploy that failed.
        out.bad(f"could not tell of the {rollout.action}: {type(error).__name__}: {error}")


def _deployed(
    session: Session, rollout: Rollout, source: build.Source, started_at: datetime, reason: str
) -> after.Deployed:
    states = [session.states[host.name] for host in session.hosts]
    before = next((state for state in states if state.current), states[0])
    earlier = before.current_release
    back = rollout.action == "rollback"
    known = next((state.release(rollout.name) for state in states if state.release(rollout.name)), None)
    return after.Deployed(
        session.environment.app,
        session.environment.name,
        rollout.name,
        (known.rev if known else "") if back else source.rev,
        tuple(host.name for host in session.hosts),
        rollout.seconds,
        action=rollout.action,
        result="failed" if reason else "ok",
        reason=reason,
        previous=before.current,
        previous_rev=earlier.rev if earlier else "",
        ref="" if back else source.ref,
        by=who(),
        # Who is told of a way back knows its commits.
        repository=None if back else source.repository,
        path=source.prefix,
        started_at=started_at,
        reported=session.environment.reported,
    )
