"""`fab workers`: every process that works on jobs or serves pages, and restarting them in place."""

from __future__ import annotations

from dataclasses import replace

from rich.text import Text

from .. import description, report
from ..description import Environment
from ..errors import DONE, Refused
from ..hoststate import HostState
from ..report import Report, count
from ..rollout import Rollout
from ..session import Session, interruptible
from .look import end_with, look_everywhere

COLUMNS = ("host", "process", "state", "pid", "uptime", "release")


def workers(
    env: str,
    queue: str | None,
    limit: str | None,
    restart: bool,
    yes: bool,
    dry_run: bool,
    out: Report,
) -> int:
    """Show the processes; with ``restart`` restart them in place, host by host."""
    environment = only_queue(description.load_environment(env, limit), queue)
    if not restart:
        with Session(environment, out) as session, interruptible():
            errors = look_everywhere(session)
            out.table(COLUMNS, [row for state in session.states.values() for row in rows(state)])
            for state in session.states.values():
                for group in state.groups:
                    if group.error is not None:
                        out.bad(f"{group.name}: {group.error}", state.host)
            return end_with(errors)
    return _restart(environment, queue, yes, dry_run, out)


def only_queue(environment: Environment, queue: str | None) -> Environment:
    """Keep the workers of one queue and the hosts that have some. Raises Refused when there are none."""
    if queue is None:
        return environment
    known = sorted({one.name for host in environment.hosts for one in host.queues})
    if queue not in known:
        raise Refused(
            f"--queue: no host of {environment.name} has workers for {queue!r}; there are"
            f" {', '.join(known) or 'none'}"
        )
    hosts = [
        replace(host, queues=tuple(one for one in host.queues if one.name == queue), web=False)
        for host in environment.hosts
    ]
    return replace(environment, hosts=tuple(host for host in hosts if host.queues))


def rows(state: HostState) -> list[list[str | Text]]:
    """One row for each process of a host."""
    found: list[list[str | Text]] = []
    for process in (process for group in state.groups for process in group.processes):
        well = process.state == "RUNNING" and process.release == state.current
        found.append(
            [
                state.host,
                process.name,
                Text(process.state, style="green" if well else "red"),
                str(process.pid or ""),
                report.duration(process.uptime) if process.pid else "",
                process.release or "",
            ]
        )
    return found


def _restart(environment: Environment, queue: str | None, yes: bool, dry_run: bool, out: Report) -> int:
    whose = f"of queue {queue} " if queue else ""
    with Session(environment, out) as session, interruptible():
        out.step(
            f"Plan: restart the workers {whose}on {count(len(session.hosts), 'host')} of {environment.name}"
        )
        session.inspect()
        session.require_fit()
        without = [name for name, state in session.states.items() if not state.current]
        if without:
            raise Refused(f"{', '.join(without)}: there is no release to run: run fab deploy")
        for host in session.hosts:
            state = session.states[host.name]
            out.step(f"{state.current}; workers: {report.workers_text(state)}", host.name)
        if dry_run:
            out.good("Dry run: nothing was changed")
            return DONE
        if not yes and not out.confirm("Restart them, host by host?"):
            raise Refused("nothing was changed")
        rollout = Rollout(session, out, "restart")
        with rollout:
            session.lock("restart")
            rollout.roll({host: session.states[host.name].current for host in session.hosts})
            rollout.succeeded()
    return DONE
