"""What changes no release: `fab status`, `releases`, `unlock`."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from .. import description, hoststate, report, scripts, survey
from ..description import Host
from ..errors import DONE, Cancelled, DeployError, Refused
from ..report import Report
from ..session import Session, interruptible
from ..ssh import on_all
from ..survey import Survey

T = TypeVar("T")

ALIVE = ("held", "switching")
"""States of a lock whose deploy is running, or was a moment ago."""


def ask_everywhere(
    session: Session, ask: Callable[[Host], T]
) -> tuple[dict[str, T], dict[str, BaseException]]:
    """Ask every host; return the answers, and the errors of hosts that gave none, by name."""
    found, errors = on_all(session.hosts, ask, session.cancel)
    if session.cancel.is_set():
        raise Cancelled("stopped")
    for error in errors.values():
        if not isinstance(error, DeployError):
            raise error
    return (
        {host.name: found[host] for host in session.hosts if host in found},
        {host.name: errors[host] for host in session.hosts if host in errors},
    )


def look_everywhere(session: Session) -> dict[str, BaseException]:
    """Fill the session's states; return the errors of hosts that do not answer, by name."""
    session.states, errors = ask_everywhere(session, session.look)
    return errors


def survey_of(session: Session, host: Host, shared_files: Sequence[str] = ()) -> Survey:
    """Ask one host how it stands and how the queues look from there, in one round trip."""
    script = scripts.look(
        session.root,
        [queue.group for queue in host.queues],
        shared_files,
        web=session.environment.app if host.web else "",
    )
    lines = session.run(host, script, "status", timeout=90).lines
    return survey.parse_survey(host.name, lines, time.time())


def end_with(errors: dict[str, BaseException]) -> int:
    """End a command: well, or with what kept hosts from answering."""
    if errors:
        raise Refused("; ".join(str(error) for error in errors.values()))
    return DONE


# --- status -------------------------------------------------------------------------------------------


def status(env: str, limit: str | None, as_json: bool, out: Report) -> int:
    """Show how every host stands, how the queues do, and what was deployed last."""
    environment = description.load_environment(env, limit)
    with Session(environment, out) as session, interruptible():
        surveys, errors = ask_everywhere(session, lambda host: survey_of(session, host))
        if as_json:
            out.json(_as_json(session, surveys, errors))
        else:
            _show(session, surveys, errors, out)
        return end_with(errors)


def _as_json(
    session: Session, surveys: dict[str, Survey], errors: dict[str, BaseException]
) -> dict[str, Any]:
    hosts: list[dict[str, Any]] = []
    for host in session.hosts:
        if host.name in errors:
            hosts.append({"host": host.name, "answers": False, "error": str(errors[host.name])})
            continue
        one = surveys[host.name]
        hosts.append(
            {
                **report.status_json(one.state),
                "queue_servers_away": [asdict(away) for away in one.away],
                "queue_trouble": one.trouble or None,
                "errors_to": one.errors_to or None,
            }
        )
    best = survey.best(list(surveys.values()))
    last = survey.last_deploy(list(surveys.values()))
    return {
        "environment": session.environment.name,
        "app": session.environment.app,
        "hosts": hosts,
        "queues": None if best is None else [asdict(queue) for queue in best.queues],
        "queues_seen_from": None if best is None else best.state.host,
        "last_deploy": None
        if last is None
        else {**last.record, "result": last.result, "results": dict(last.results)},
    }


def _show(
    session: Session, surveys: dict[str, Survey], errors: dict[str, BaseException], out: Report
) -> None:
    now = datetime.now(UTC)
    # A terminal has height to spare, and no width.
    between = "\n" if out.console.is_terminal else ", "
    rows = [
        report.status_row(surveys[host.name].state, now, between)
        if host.name in surveys
        else [host.name, "does not answer", "", "", "", "", ""]
        for host in session.hosts
    ]
    out.table(report.STATUS_COLUMNS, rows)
    best = survey.best(list(surveys.values()))
    if best is not None:
        out.line()
        out.table(report.QUEUE_COLUMNS, [report.queue_row(queue) for queue in best.queues])
    for name, one in surveys.items():
        for line in queue_problems(one):
            out.bad(line, name)
    last = survey.last_deploy(list(surveys.values()))
    reported = sorted(
        {one.errors_to or "the logs only" for one in surveys.values() if one.errors_to is not None}
    )
    if last is not None or reported:
        out.line()
    if reported:
        out.line(f"Errors go to {', '.join(reported)}")
    if last is not None:
        out.line(f"Last: {report.deploy_text(last, now)}")


def queue_problems(one: Survey) -> list[str]:
    """Say which queue servers a host does not reach, and why it has no numbers."""
    if one.trouble:
        return [f"has no numbers of the queues: {one.trouble}"]
    return [f"gets no answer from queue server {away.server}: {away.reason}" for away in one.away]


# --- releases -----------------------------------------------------------------------------------------


def releases(env: str, app: str, limit: str | None, out: Report) -> int:
    """Show the releases of every host, newest first."""
    environment = description.load_environment(env, limit)
    with Session(environment, out) as session, interruptible():
        errors = look_everywhere(session)
        states = list(session.states.values())
        names = sorted({one.name for state in states for one in state.releases}, reverse=True)
        subjects = commit_subjects(app, (one.rev for state in states for one in state.releases))
        now = datetime.now(UTC)
        rows = []
        for name in names:
            having = [state for state in states if state.release(name)]
            one = having[0].release(name)
            current = [state.host for state in having if state.current == name]
            rows.append(
                [
                    name,
                    one.ref,
                    report.age(one.created_at, now) or "?",
                    one.by,
                    ", ".join(state.host for state in having),
                    ", ".join(current),
                    _marks(having, name),
                    subjects.get(one.rev, ""),
                ]
            )
        if rows:
            out.table(("release", "ref", "age", "by", "on", "current on", "", "commit"), rows)
        elif not errors:
            out.line(f"No releases of {environment.app} yet: run fab deploy --env {environment.name}")
        return end_with(errors)


def _marks(having: Sequence[hoststate.HostState], name: str) -> str:
    failed = [state.host for state in having if state.release(name).failed]
    unverified = [
        state.host for state in having if not state.release(name).verified and not state.release(name).failed
    ]
    marks = [f"failed on {', '.join(failed)}"] if failed else []
    marks += [f"never verified on {', '.join(unverified)}"] if unverified else []
    return "; ".join(marks)


def commit_subjects(app: str, revs: Iterable[str]) -> dict[str, str]:
    """Return the first lines of the commits that the application's git has; {} when it cannot be asked."""
    wanted = sorted({rev for rev in revs if rev and all(c in "0123456789abcdef" for c in rev)})
    folder = Path(app) if Path(app).is_dir() else description.ROOT / app
    if not wanted or not folder.is_dir():
        return {}
    command = ["git", "-C", str(folder), "log", "--no-walk", "--ignore-missing", "--format=%H %s", *wanted]
    try:
        done = subprocess.run(
            [*command, "--"], capture_output=True, stdin=subprocess.DEVNULL, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = done.stdout.decode("utf-8", "replace").splitlines() if done.returncode == 0 else []
    return {rev: subject for rev, _, subject in (line.partition(" ") for line in lines)}


# --- unlock -------------------------------------------------------------------------------------------


def unlock(env: str, limit: str | None, yes: bool, out: Report) -> int:
    """Show the locks and remove them; asks first when the deploy that has one is alive."""
    environment = description.load_environment(env, limit)
    with Session(environment, out) as session, interruptible():
        errors = look_everywhere(session)
        alive = [
            state for state in session.states.values() if state.lock and state.lock.get("state") in ALIVE
        ]
        for state in alive:
            out.step(f"is locked by {hoststate.describe_lock(state.lock)}, which is running", state.host)
        # Where nobody can be asked it takes the flag: two deploys at once are what a lock is against.
        if alive and not yes and not out.confirm("Take the lock of a running deploy away?", unattended=False):
            raise Refused("not confirmed (--yes): nothing was changed")
        for host in session.hosts:
            if host.name in session.states:
                try:
                    _unlock(session, host, out)
                except DeployError as error:
                    errors[host.name] = error
        return end_with(errors)


def _unlock(session: Session, host: Host, out: Report) -> None:
    lock = session.states[host.name].lock
    if lock is None:
        out.step("is not locked", host.name)
        return
    # The lock that was shown is removed, not one that somebody takes meanwhile.
    mark = str(lock.get("id") or lock.get("content") or "")
    result = session.run(host, scripts.unlock(session.root, mark), "unlock")
    if any(words[0] == "kept" for words in hoststate.events(result.lines)):
        raise Refused(f"{host.name}: the lock was taken anew meanwhile and stays")
    out.good(f"unlocked; it was held by {hoststate.describe_lock(lock)}", host.name)


def show_plan(session: Session) -> None:
    """Print how every host stands before anything is done."""
    for host in session.hosts:
        state = session.states[host.name]
        pages = report.web_text(state)
        session.out.step(
            f"{state.current or 'no release yet'}; workers: {report.workers_text(state)};"
            f"{f' web: {pages};' if pages else ''} {state.target}",
            host.name,
        )
