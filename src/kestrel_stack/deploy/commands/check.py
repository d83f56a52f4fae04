"""`fab check`: what would keep a deploy from going well, each with its fix, before there is one."""

from __future__ import annotations

from pathlib import Path

from .. import after, assets, description, plan
from ..appspec import AppSpec, parse_app_spec
from ..build import composer
from ..description import ROOT, Environment, Host
from ..errors import DONE, Refused
from ..hoststate import describe_lock
from ..report import Report, count
from ..session import SKEW_WARNED, Session, interruptible
from ..survey import Survey, unreported
from .look import ask_everywhere, survey_of

LITTLE_DISK = 500
"""Megabytes free below which a host is named: a release with a new venv takes about 100 of them."""

_SITE = "run ansible-playbook site.yml"


def check(env: str, app: str, limit: str | None, out: Report) -> int:
    """Look at everything that a deploy needs. Raises Refused when anything is missing."""
    environment = description.load_environment(env, limit)
    spec = _read_spec(app)
    with Session(environment, out) as session, interruptible():
        surveys, errors = ask_everywhere(session, lambda host: survey_of(session, host, spec.shared_files))
        ours = _problems_here(spec, environment)
        for problem in ours:
            out.bad(problem)
        found = len(ours)
        alone = unreported(list(surveys.values()))
        for host in session.hosts:
            if host.name in errors:
                problems = [str(errors[host.name]).removeprefix(f"{host.name}: ")]
            else:
                problems = problems_of(environment.app, host, surveys[host.name])
                if host.name in alone:
                    problems.append(
                        f"its errors are in its logs only, while others report theirs to"
                        f" {alone[host.name]}: {_SITE}"
                    )
            for problem in problems:
                out.bad(problem, host.name)
            if not problems:
                out.good(_well(surveys[host.name]), host.name)
            found += len(problems)
            if host.name in surveys and surveys[host.name].state.lock:
                out.step(f"is locked by {describe_lock(surveys[host.name].state.lock)}", host.name)
        if found:
            raise Refused(
                f"{count(found, 'problem')} on the way to a deploy of {environment.app} to {environment.name}"
            )
        out.good(f"{count(len(session.hosts), 'host')} of {environment.name} can be deployed to")
    return DONE


def _problems_here(spec: AppSpec, environment: Environment) -> list[str]:
    """Say what this machine lacks, each with its fix."""
    told = spec.after.tells(environment.reported or environment.name)
    found = after.problems(spec.after) if told else []
    for require in (lambda: assets.require_tools(spec.assets), lambda: composer.require_tools(spec.composer)):
        try:
            require()
        except Refused as refused:
            found.append(str(refused))
    return found


def _read_spec(app: str) -> AppSpec:
    """Read deploy.yml as it lies there: what is checked is often not committed yet."""
    folder = Path(app) if Path(app).is_dir() else ROOT / app
    path = folder / "deploy.yml"
    try:
        own_composer = ["."] if (folder / "composer.lock").is_file() else []
        return parse_app_spec(path.read_text(encoding="utf-8"), str(path), composer=own_composer)
    except FileNotFoundError:
        raise Refused(f"there is no {path}: --app names the application's folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path} cannot be read: {error}") from None


def problems_of(app: str, host: Host, survey: Survey) -> list[str]:
    """Say what is wrong with a host, each with its fix."""
    state = survey.state
    facts = state.facts
    found = [
        problem.replace(f"{_SITE} first", _SITE)
        for problem in plan.problems(state, host.user, needs_workers=bool(host.queues))
    ]
    if host.web and "web_helper" not in facts:
        found.append(f"kestrel-stack-web is missing: {_SITE}")
    free = int(facts.get("disk_kb", "0")) // 1024
    if "root" in facts and free < LITTLE_DISK:
        found.append(f"only {free} MB are free under /srv/{app}: make room, {LITTLE_DISK} MB are enough")
    skew = state.clock_skew or 0
    if abs(skew) > SKEW_WARNED:
        side = "ahead of" if skew > 0 else "behind"
        found.append(
            f"its clock is {abs(skew):.0f} s {side} this machine's: have both keep the time"
            " (timedatectl set-ntp true)"
        )
    if "settings" not in facts:
        found.append(f"user {host.user} cannot read /etc/kestrel-stack/{app}.json: {_SITE}")
    elif survey.trouble:
        found.append(f"the queues cannot be counted: {survey.trouble}: {_SITE}")
    found += [
        f"queue server {away.server} gives no answer to this host ({away.reason}): is Kestrel up there"
        " (systemctl status kestrel), and does its firewall let this host through (kestrel_firewall)?"
        for away in survey.away
    ]
    if host.queues and "logs" not in facts:
        found.append(f"user {host.user} cannot read /var/log/kestrel-stack/{app}: {_SITE}")
    if state.current and not any(group.error for group in state.groups):
        verdict = plan.judge(state.groups, state.current, 0)
        if state.groups and not verdict.ok:
            found.append(f"{verdict.reason}: see fab logs --limit {host.name}; fab workers --restart")
    return found


def _well(survey: Survey) -> str:
    state = survey.state
    free = int(state.facts.get("disk_kb", "0")) // 1024
    answer = "answers" if survey.servers == 1 else "answer"
    words = [f"{state.target}", f"{free} MB free", f"{count(survey.servers, 'queue server')} {answer}"]
    words.append(f"runs {state.current}" if state.current else "no release yet")
    if survey.errors_to is not None:
        words.append(f"errors go to {survey.errors_to or 'the logs only'}")
    return "ready: " + ", ".join(words)
