"""`fab deploy` and its companions: an application's code on every host of the group app.

Everything is in src/kestrel_stack/deploy; this file only gives it a command line.
Exit codes: 0 done; 1 refused or wrong usage, nothing was changed; 2 failed, every host is as before;
3 locked by another deploy; 4 failed, and some host (named) is not as before.
"""

from __future__ import annotations

from collections.abc import Callable

from fabric import Connection, task
from invoke.exceptions import Exit

from kestrel_stack.deploy import commands
from kestrel_stack.deploy.errors import FAILED, DeployError
from kestrel_stack.deploy.report import Report

ENV = "an inventory's name under ansible/inventories, or a path (default: lab)"
LIMIT = "only these hosts: names, groups or patterns with *, separated by commas"
APP = "the application's folder, with its deploy.yml (default: examples/shop)"
QUEUE = "only this queue's workers"
BATCH = "hosts switched at once: a number, or a share such as 25% (default: deploy.yml's roll.batch, else 1)"
CANARY = (
    "hosts switched first and watched (default: deploy.yml's roll.canary, else 1; one host alone has none)"
)
SOAK = (
    "seconds that the canary is watched before the others follow (default: deploy.yml's roll.soak, else 30)"
)
# The deploy.yml of a commit says how that one rolls out; there may be none for what is gone back to.
BACK_BATCH = "hosts switched at once: a number, or a share such as 25% (default: 1)"
BACK_CANARY = "hosts switched first and watched (default: 1; one host alone has none)"
BACK_SOAK = "seconds that the canary is watched before the others follow (default: 30)"
YES = "do not ask; in a pipe nothing is ever asked"
NO_PING = "do not ask the new workers to answer over their queues: for the day when Kestrel is down"
DRY_RUN = "show what would be done, and change nothing"


def command(**help_texts: str) -> Callable:
    """Make a task whose expected errors are one line and an exit code, never a traceback."""
    return task(help=help_texts, auto_shortflags=False)


def end(action: Callable[[Report], int]) -> None:
    """Run a command to its exit code; expected errors are one line on standard error."""
    out = Report()
    try:
        code = action(out)
    except DeployError as error:
        out.error(str(error))
        code = error.code
    except KeyboardInterrupt:
        out.error("stopped. Every host is as before")
        code = FAILED
    if code:
        raise Exit(code=code)


def is_dry(context: Connection, dry_run: bool) -> bool:
    """Honour fab's own --dry (-R) too: connections made by hand would ignore it and deploy for real."""
    return dry_run or bool(context.config.run.dry)


@command(
    env=ENV,
    ref="the branch, tag or commit to deploy (default: HEAD)",
    app=APP,
    limit=LIMIT,
    batch=BATCH,
    canary=CANARY,
    soak=SOAK,
    yes=YES,
    no_ping=NO_PING,
    dry_run="show what would be done, with every script, and change nothing",
    force="deploy although every host runs this already",
    allow_dirty="deploy the commit although there are uncommitted changes; they are left out",
)
def deploy(
    context: Connection,
    env: str = "lab",
    ref: str = "HEAD",
    app: str = "examples/shop",
    limit: str | None = None,
    batch: str | None = None,
    canary: str | None = None,
    soak: str | None = None,
    yes: bool = False,
    no_ping: bool = False,
    dry_run: bool = False,
    force: bool = False,
    allow_dirty: bool = False,
) -> None:
    """Roll an application out: build once, send what is lacking, switch in batches, verify every worker.

    Takes a commit, never the files as they lie about. When a host fails, or the canary does worse than
    before, every host goes back to its old release; what could not go back is named.
    """
    pace = commands.AskPace(batch, canary, soak, not no_ping)
    ask = commands.Ask(env, ref, app, limit, is_dry(context, dry_run), force, allow_dirty, yes, pace)
    end(lambda out: commands.deploy(ask, out))


@command(
    env=ENV,
    app=APP,
    to="the release to go back to (default: the last good one before the current; see fab releases)",
    limit=LIMIT,
    batch=BACK_BATCH,
    canary=BACK_CANARY,
    soak=BACK_SOAK,
    yes=YES,
    no_ping=NO_PING,
    dry_run=DRY_RUN,
)
def rollback(
    context: Connection,
    env: str = "lab",
    to: str | None = None,
    limit: str | None = None,
    batch: str | None = None,
    canary: str | None = None,
    soak: str | None = None,
    yes: bool = False,
    no_ping: bool = False,
    dry_run: bool = False,
    app: str = "examples/shop",
) -> None:
    """Go back to an earlier release that is still on the hosts, as carefully as a deploy goes forward.

    Releases that failed are skipped. What a migration did stays.
    """
    pace = commands.AskPace(batch, canary, soak, not no_ping)
    ask = commands.AskRollback(env, to, limit, is_dry(context, dry_run), yes, pace, app)
    end(lambda out: commands.rollback(ask, out))


@command(env=ENV, limit=LIMIT, json="print data for programs")
def status(context: Connection, env: str = "lab", limit: str | None = None, json: bool = False) -> None:
    """Show how every host stands, how the queues do as the hosts see them, and who deployed last."""
    end(lambda out: commands.status(env, limit, json, out))


@command(env=ENV, app=APP, limit=LIMIT)
def releases(
    context: Connection, env: str = "lab", app: str = "examples/shop", limit: str | None = None
) -> None:
    """Show which releases are on the hosts, newest first, where each is current, and which failed."""
    end(lambda out: commands.releases(env, app, limit, out))


@command(env=ENV, app=APP, limit=LIMIT)
def check(
    context: Connection, env: str = "lab", app: str = "examples/shop", limit: str | None = None
) -> None:
    """Look for everything that a deploy would stumble over, on every host, and say how to mend it.

    Changes nothing. Exit code 1 when there is anything to mend.
    """
    end(lambda out: commands.check(env, app, limit, out))


@command(
    env=ENV,
    restart="restart them in place, host by host: drain, start, verify",
    queue=QUEUE,
    limit=LIMIT,
    no_ping=NO_PING,
    dry_run=DRY_RUN,
    yes=YES,
)
def workers(
    context: Connection,
    env: str = "lab",
    restart: bool = False,
    queue: str | None = None,
    limit: str | None = None,
    no_ping: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Show every process of the hosts with its state, uptime and release; or restart them in place."""
    dry_run = is_dry(context, dry_run)
    ask = commands.AskWorkers(env, queue, limit, restart, not no_ping, dry_run, yes)
    end(lambda out: commands.workers(ask, out))


@command(
    env=ENV,
    queue=QUEUE,
    limit=LIMIT,
    follow="go on with what is written from now on, until Ctrl-C",
    lines="how many of the last lines, all hosts together (default: 50)",
    json="print the lines as JSON objects",
)
def logs(
    context: Connection,
    env: str = "lab",
    queue: str | None = None,
    limit: str | None = None,
    follow: bool = False,
    lines: str | None = None,
    json: bool = False,
) -> None:
    """Show what the workers of all hosts wrote, merged by time."""
    end(lambda out: commands.logs(commands.AskLogs(env, queue, limit, follow, lines, json), out))


@command(env=ENV, limit=LIMIT, yes=YES)
def unlock(context: Connection, env: str = "lab", limit: str | None = None, yes: bool = False) -> None:
    """Remove the lock of a deploy that died, and show whose it was."""
    end(lambda out: commands.unlock(env, limit, yes, out))
