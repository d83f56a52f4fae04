"""What changes no release: `fab status`, `releases`, `unlock`."""

from __future__ import annotations

from datetime import UTC, datetime

from .. import description, hoststate, report, scripts
from ..errors import DONE, Cancelled, DeployError, Refused
from ..report import Report
from ..session import Session, interruptible
from ..ssh import on_all


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
    with Session(environment, out) as session, interruptible():
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
    with Session(environment, out) as session, interruptible():
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
    with Session(environment, out) as session, interruptible():
        errors = _look_everywhere(session)
        for host in session.hosts:
            state = session.states.get(host.name)
            if state is None:
                continue
            if state.lock is None:
                out.step("is not locked", host.name)
                continue
            holder = hoststate.describe_lock(state.lock)
            # The lock that was shown is removed, not one that somebody takes meanwhile.
            mark = str(state.lock.get("id") or state.lock.get("content") or "")
            result = session.run(host, scripts.unlock(session.root, mark), "unlock")
            if any(words[0] == "kept" for words in hoststate.events(result.lines)):
                errors[host.name] = Refused(f"{host.name}: the lock was taken anew meanwhile and stays")
            else:
                out.good(f"unlocked; it was held by {holder}", host.name)
        return _end_with(errors)


def show_plan(session: Session) -> None:
    """Print how every host stands before anything is done."""
    for host in session.hosts:
        state = session.states[host.name]
        session.out.step(
            f"{state.current or 'no release yet'}; workers: {report.workers_text(state)}; {state.target}",
            host.name,
        )
