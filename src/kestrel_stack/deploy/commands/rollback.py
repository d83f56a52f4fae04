"""`fab rollback`."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import description, plan
from ..appspec import Roll
from ..errors import DONE, Refused
from ..hoststate import HostState
from ..report import Report, count
from ..rollout import Rollout
from ..session import Session, interruptible
from .deploy import AskPace
from .look import show_plan


@dataclass(frozen=True)
class AskRollback:
    """What a person asked `fab rollback` for."""

    env: str = "lab"
    to: str | None = None
    """A release's name; None: the last good one before the current."""
    limit: str | None = None
    dry_run: bool = False
    yes: bool = False
    pace: AskPace = field(default_factory=AskPace)


def rollback(ask: AskRollback, out: Report) -> int:
    """Go back to an earlier release, in the same careful way. Returns the exit code; raises DeployError."""
    pace = ask.pace.over(Roll())
    environment = description.load_environment(ask.env, ask.limit)
    with Session(environment, out, channels=2) as session, interruptible():
        out.step(
            f"Plan: rollback of {environment.app} on {count(len(session.hosts), 'host')} of"
            f" {environment.name}"
        )
        session.inspect()
        session.require_fit()
        target = plan.rollback_target(list(session.states.values()), ask.to)
        show_plan(session)
        out.step(f"Back to {target}; what migrations did stays")
        if ask.dry_run:
            rollout = Rollout(session, out, "rollback")
            rollout.about(target)
            for host in session.hosts:
                current = session.states[host.name].current
                if current == target:
                    out.step(f"is on {target} already", host.name)
                    continue
                out.line(f"\n# ---- {host.name}: switch " + "-" * 40)
                out.line(rollout.switch_script(host, current, target, pace).rstrip("\n"))
            out.line()
            out.good("Dry run: nothing was changed")
            return DONE
        if not ask.yes and not out.confirm(f"Go back to {target} on {environment.name}?"):
            raise Refused("not confirmed: nothing was changed")
        rollout = Rollout(session, out, "rollback")
        with rollout:
            session.lock("rollback")
            plan.rollback_target(list(session.states.values()), target)
            rollout.about(target)
            hosts = [host for host in session.hosts if not _runs(session.states[host.name], target)]
            if not hosts:
                out.good(f"Nothing to do: every host runs {target} with all its workers")
                return DONE
            rollout.roll(dict.fromkeys(hosts, target), pace)
            rollout.succeeded()
    return DONE


def _runs(state: HostState, release: str) -> bool:
    return state.current == release and plan.judge(state.groups, release, 0).ok
