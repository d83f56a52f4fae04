"""`fab rollback`."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime

from .. import build, description, plan
from ..appspec import Roll
from ..errors import DONE, DeployError, Refused
from ..hoststate import HostState
from ..report import Report, count
from ..rollout import Rollout
from ..session import Session, interruptible
from .deploy import AskPace, afterwards, meanwhile
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
    app: str = "examples/shop"
    """Whose deploy.yml, as of HEAD, says who is told."""


def rollback(ask: AskRollback, out: Report) -> int:
    """Go back to an earlier release, in the same careful way. Returns the exit code; raises DeployError."""
    started_at = datetime.now(UTC)
    pace = ask.pace.over(Roll())
    finding = meanwhile(lambda: build.find_source(ask.app, "HEAD", allow_dirty=True))
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
        try:
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
        except DeployError as error:
            if rollout.tried:
                _tell(session, rollout, finding, started_at, out, str(error))
            raise
        _tell(session, rollout, finding, started_at, out)
    return DONE


def _tell(
    session: Session,
    rollout: Rollout,
    finding: Future[build.Source],
    started_at: datetime,
    out: Report,
    reason: str = "",
) -> None:
    try:
        source = finding.result()
    except DeployError as error:
        # Whoever has to go back may sit before another checkout: that must not keep them from it.
        out.bad(f"nobody was told of the rollback: {error}")
        return
    afterwards(session, rollout, source, started_at, out, reason)


def _runs(state: HostState, release: str) -> bool:
    return state.current == release and plan.judge(state.groups, release, 0).ok
