"""`fab rollback`."""

from __future__ import annotations

from .. import description, plan
from ..errors import DONE
from ..hoststate import HostState
from ..report import Report, count
from ..rollout import Rollout
from ..session import Session, interruptible
from .look import show_plan


def rollback(env: str, to: str | None, limit: str | None, dry_run: bool, out: Report) -> int:
    """Go back to an earlier release, in the same careful way. Returns the exit code; raises DeployError."""
    environment = description.load_environment(env, limit)
    with Session(environment, out) as session, interruptible():
        out.step(
            f"Plan: rollback of {environment.app} on {count(len(session.hosts), 'host')} of"
            f" {environment.name}"
        )
        session.inspect()
        session.require_fit()
        target = plan.rollback_target(list(session.states.values()), to)
        show_plan(session)
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
