"""`fab deploy`.

The way of a deploy: plan (one round trip per host), lock, build once, send what a host lacks, prepare beside
the running release, then switch host by host (see ``rollout``). Until the first switch nothing has
changed for anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from .. import build, description, hoststate, plan, scripts
from ..description import Host
from ..errors import DONE, Cancelled, HostError, Refused
from ..hoststate import HostState
from ..report import Report, count, size
from ..rollout import Rollout
from ..session import Session, interruptible, timestamp, who
from .look import show_plan


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


def deploy(ask: Ask, out: Report) -> int:
    """Roll an application out. Returns the exit code; raises DeployError."""
    environment = description.load_environment(ask.env, ask.limit)
    source = build.find_source(ask.app, ask.ref, allow_dirty=ask.allow_dirty)
    where = source.spec.requirements or "requirements"
    lock = build.read_lock(source.requirements, where)
    with Session(environment, out) as session, interruptible():
        out.step(
            f"Plan: {environment.app} from {source.ref} ({source.rev[:8]}) to"
            f" {count(len(session.hosts), 'host')} of {environment.name}"
        )
        for line in source.warnings:
            out.bad(line)
        session.inspect(source.spec.shared_files)
        session.require_fit()
        show_plan(session)
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
    per_target: dict[hoststate.Target, build.Wheels] = {}
    wheels = {}
    for host in session.hosts:
        target = session.states[host.name].target
        if target not in per_target:
            per_target[target] = build.build_wheels(lock, target, stack_wheel, where)
            made = per_target[target]
            out.step(
                f"Build: {count(len(made.files), 'wheel')} ({size(made.size)}) for {target};"
                f" application {size(archive.files_size)}"
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
        plan.is_up_to_date(state, source.rev, archive.manifest, wheels[name].key)
        for name, state in session.states.items()
    )


def _require_disk(session: Session, archive: build.Archive, wheels: dict[str, build.Wheels]) -> None:
    short = []
    for name, state in session.states.items():
        lacking = wheels[name].size if _lacks_venv(state, wheels[name]) else None
        need = plan.disk_needed_kb(archive.files_size, archive.files_size, lacking)
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
            out.bad(f"is locked by {hoststate.describe_lock(state.lock)}", name)
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


def _prepare(
    session: Session,
    name: str,
    source: build.Source,
    archive: build.Archive,
    wheels: dict[str, build.Wheels],
    out: Report,
) -> None:
    created_at = timestamp()

    def prepare(host: Host) -> None:
        state = session.states[host.name]
        about = {
            "release": name,
            "rev": source.rev,
            "ref": source.ref,
            "venv": wheels[host.name].key,
            "created_at": created_at,
            "by": who(),
            "archive": archive.manifest,
            "manifest": archive.manifest,
        }
        for full in (False, True):
            bundle = build.bundle_for(archive, wheels[host.name], state, source, full=full)
            script = scripts.prepare(
                session.root,
                name,
                bundle=bundle,
                venv=wheels[host.name].key,
                stack_wheel=wheels[host.name].stack_wheel,
                release_json=about,
                previous=state.current,
                check=source.spec.hooks.check,
                shared_files=source.spec.shared_files,
                shared_directories=source.spec.shared_directories,
            )
            seconds = bundle.seconds + scripts.HOOK_SECONDS + 900
            result = session.run(host, script, "prepare", timeout=seconds, upload=bundle.path)
            said = list(hoststate.events(result.lines))
            for words in said:
                if words[0] == "warning":
                    out.bad(" ".join(words[1:]), host.name)
            if ["prepared"] in said:
                break
            reason = next((" ".join(words[2:]) for words in said if words[:2] == ["need", "full"]), "")
            if full:
                raise HostError(host.name, f"prepare: {reason or 'it did not say that it is done'}")
            out.step(f"gets everything: {reason}", host.name)
        built = ", new venv" if ["venv", "built"] in said else ""
        out.step(f"received {size(bundle.size)}, prepared {name}{built}", host.name)

    session.everywhere(session.hosts, prepare)
