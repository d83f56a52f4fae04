"""`fab workers`: every process that works on jobs or serves pages, and restarting them in place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.text import Text

from .. import description, plan, report
from ..description import Environment
from ..errors import DONE, Refused
from ..hoststate import HostState
from ..report import Report, count
from ..rollout import Rollout
from ..session import Session, interruptible
from .look import end_with, look_everywhere, show_plan

COLUMNS = ("host", "process", "state", "pid", "uptime", "release")


@dataclass(frozen=True)
class AskWorkers:
    """What a person asked `fab workers` for."""

    env: str = "lab"
    queue: str | None = None
    limit: str | None = None
    restart: bool = False
    ping: bool = True
    """Whether every queue has to answer after the restart."""
    dry_run: bool = False
    yes: bool = False


def workers(ask: AskWorkers, out: Report) -> int:
    """Show the processes, or restart them. Returns the exit code; raises DeployError."""
    environment = only_queue(description.load_environment(ask.env, ask.limit), ask.queue)
    if ask.restart:
        return _restart(environment, ask, out)
    with Session(environment, out) as session, interruptible():
        errors = look_everywhere(session)
        out.table(COLUMNS, [row for state in session.states.values() for row in rows(state)])
        for state in session.states.values():
            for group in state.groups:
                if group.error is not None:
                    out.bad(f"{group.name}: {group.error}", state.host)
        return end_with(errors)


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


def _restart(environment: Environment, ask: AskWorkers, out: Report) -> int:
    whose = f"of queue {ask.queue} " if ask.queue else ""
    with Session(environment, out) as session, interruptible():
        out.step(
            f"Plan: restart the workers {whose}on {count(len(session.hosts), 'host')} of {environment.name}"
        )
        session.inspect()
        session.require_fit()
        without = [name for name, state in session.states.items() if not state.current]
        if without:
            raise Refused(f"{', '.join(without)}: there is no release to run, run fab deploy")
        show_plan(session)
        if ask.dry_run:
            out.good("Dry run: nothing was changed")
            return DONE
        if not ask.yes and not out.confirm(f"Restart them on {environment.name}, host by host?"):
            raise Refused("not confirmed: nothing was changed")
        with Rollout(session, out, "restart") as rollout:
            session.lock("restart")
            to = {host: session.states[host.name].current for host in session.hosts}
            rollout.roll(to, plan.Pace(ping=ask.ping))
            rollout.succeeded()
    return DONE
