"""Layer two: the text of every script that runs on a host. Pure: values in, text out.

The templates are ``templates/deploy/*.sh.j2``. Every value that a template prints is quoted for the shell by
the environment itself, so that no template can forget to; `tests` run them with hostile values.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from .description import ROOT
from .onhost import judge, outcomes, unpack
from .onhost import logs as logs_program

if TYPE_CHECKING:
    from .build import Bundle

HELPER = "/usr/local/sbin/kestrel-stack-workers"
"""What the deploy user may run as root on hosts with workers; the role ``supervisor`` installs it."""

WEB_HELPER = "/usr/local/sbin/kestrel-stack-web"
"""The other one, on hosts that serve pages; the role ``web`` installs it."""

LOGS = "/var/log/kestrel-stack"
"""Below it every application has a folder with its workers' logs, which the deploy user may read."""
LOG_LINES = 8
"""Last lines of a failed worker's log that are shown."""

LISTEN_AFTER = 5
"""A switch that took so many seconds asks at its end whether anybody is still there."""
LISTEN_SECONDS = 30
"""It waits so long for a sign of life; one comes every ten seconds, and at once when it asks."""
HOOK_SECONDS = 600
"""A hook may take so long."""

JOBS = "/usr/local/bin/kestrel-stack-jobs"
"""What counts the queues' items on every host; the role ``app_host`` installs it."""
SETTINGS = "/etc/kestrel-stack"
"""Below it every application has its settings file, APP.json."""
RECORDS = 20
"""How many of the last lines of deploys.jsonl are looked at."""

LEASE = 60
"""Seconds without a sign of life after which a deploy counts as dead."""
GRACE = 5
"""Seconds that a lock outlives the process that held it: time to come back after a lost connection."""
PATIENCE = 5
"""Seconds that one of two deploys which began at the same moment waits for the other to give way."""
SETTLE = 60
"""Seconds that a deploy waits for the switch of another that died, before it gives up."""

TEMPLATES = ROOT / "templates" / "deploy"


def _quoted(value: Any) -> str:
    if isinstance(value, Markup):
        return str(value)
    return shlex.quote(str(value))


def _environment(folder: Path) -> jinja2.Environment:
    return jinja2.Environment(  # noqa: S701 - shell, not HTML; `finalize` quotes
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        finalize=_quoted,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


_TEMPLATES = _environment(TEMPLATES)


def _render(name: str, **values: Any) -> str:
    return _TEMPLATES.get_template(f"{name}.sh.j2").render(**values)


def inspect(
    root: str,
    groups: Sequence[str],
    shared_files: Sequence[str] = (),
    *,
    settle: int = 0,
    web: str = "",
    helper: str = HELPER,
    web_helper: str = WEB_HELPER,
) -> str:
    """Report what a plan needs; changes nothing.

    ``settle``: seconds to wait for a switch that is still under way. ``web``: the application, where its
    pages are served.
    """
    return _render(
        "inspect",
        app_root=root,
        groups=list(groups),
        shared_files=list(shared_files),
        settle=settle,
        web_app=web,
        helper=helper,
        web_helper=web_helper,
    )


def hold(
    root: str,
    groups: Sequence[str],
    shared_files: Sequence[str] = (),
    *,
    lock_id: str,
    web: str = "",
    helper: str = HELPER,
    web_helper: str = WEB_HELPER,
    lease: int = LEASE,
    grace: int = GRACE,
    patience: int = PATIENCE,
    settle: int = SETTLE,
) -> str:
    """Report what a plan needs, then hold the lock of a host for as long as somebody speaks.

    ``lock_id``: hexadecimal digits, the deploy's own. The times are in seconds: ``lease`` is how long a
    silence may be, ``grace`` how long the lock outlives its holder, ``patience`` how long somebody who came
    at the same moment is waited for, ``settle`` how long the switch of a deploy that died is.
    """
    return _render(
        "hold",
        app_root=root,
        groups=list(groups),
        shared_files=list(shared_files),
        settle=0,
        lock_id=lock_id,
        web_app=web,
        helper=helper,
        web_helper=web_helper,
        lease=lease,
        grace=grace,
        patience=patience,
        patience_for_a_switch=settle,
    )


def status(
    groups: Sequence[str], *, web: str = "", helper: str = HELPER, web_helper: str = WEB_HELPER
) -> str:
    """Report how the workers stand; changes nothing. ``web``: the application, where its pages are served."""
    return _render("status", groups=list(groups), web_app=web, helper=helper, web_helper=web_helper)


def look(
    root: str,
    groups: Sequence[str],
    shared_files: Sequence[str] = (),
    *,
    web: str = "",
    helper: str = HELPER,
    web_helper: str = WEB_HELPER,
    jobs: str = JOBS,
    settings: str = SETTINGS,
    logs: str = LOGS,
) -> str:
    """Report what `inspect` does, the last deploys, and how the queues look from this host; changes nothing.

    ``web``: the application, where its pages are served.
    """
    return _render(
        "look",
        app_root=root,
        groups=list(groups),
        shared_files=list(shared_files),
        settle=0,
        web_app=web,
        records=RECORDS,
        helper=helper,
        web_helper=web_helper,
        jobs=jobs,
        settings=f"{settings}/{_app(root)}.json",
        logs=f"{logs}/{_app(root)}",
    )


def logs(
    root: str,
    groups: Sequence[str] = (),
    *,
    lines: int | None,
    follow: bool,
    at: Mapping[str, Sequence[int]] | None = None,
    folder: str = LOGS,
) -> str:
    """Send the last ``lines`` of each log (None: all), and with ``follow`` what comes.

    ``groups`` are those whose logs are meant; none: all. ``at`` is how far an earlier run had come, as it
    said itself.
    """
    options = {
        "folder": f"{folder}/{_app(root)}",
        "groups": list(groups),
        "lines": lines,
        "follow": follow,
        "at": {name: list(where) for name, where in (at or {}).items()},
    }
    return _render("logs", program=host_program(logs_program), options=json.dumps(options, sort_keys=True))


def unlock(root: str, lock_id: str) -> str:
    """Remove the lock with this id, and no other."""
    return _render("unlock", root=root, lock_id=lock_id)


def prepare(
    root: str,
    release: str,
    *,
    bundle: Bundle,
    venv: str,
    release_json: Mapping[str, Any],
    app: str = "",
    previous: str = "",
    check: str = "",
    hook_seconds: int = HOOK_SECONDS,
    shared_files: Sequence[str] = (),
    shared_directories: Sequence[str] = (),
) -> str:
    """Take a bundle from standard input, then make the release ready beside the one that runs.

    ``check`` is the application's command that has the last word; ``previous`` the release that is current.
    The script says ``prepared`` at its end, or ``need full REASON`` and does nothing, when the release that
    the bundle builds upon is not as it should be.
    """
    return _render(
        "prepare",
        root=root,
        release=release,
        size=bundle.size,
        sha256=bundle.sha256,
        seconds=bundle.seconds,
        base=f"releases/{bundle.base_release}" if bundle.base_release else "",
        unpack=host_program(unpack),
        venv=venv,
        release_json=json.dumps(release_json, sort_keys=True),
        rev=str(release_json.get("rev") or ""),
        app=app or _app(root),
        previous=previous,
        check=check,
        hook_seconds=hook_seconds,
        shared_files=[_link(path) for path in shared_files],
        shared_directories=[_link(path) for path in shared_directories],
    )


@dataclass(frozen=True)
class Side:
    """One end of a switch: a release, and what the script has to know of it."""

    release: str = ""
    """Its name; empty when there is none."""
    rev: str = ""
    hooks: Mapping[str, str] = field(default_factory=dict)
    """Its commands ``before_switch`` and ``after_switch``."""


@dataclass(frozen=True)
class Pings:
    """What is asked of the new workers."""

    queues: tuple[str, ...]
    seconds: int
    """How long an answer may take: a worker answers between two jobs."""
    deploy_id: str = ""


def switch(
    root: str,
    groups: Sequence[str],
    old: Side,
    new: Side,
    *,
    web: str = "",
    going_back: bool = False,
    verify_seconds: int = 60,
    pings: Pings | None = None,
    logs: str = LOGS,
    helper: str = HELPER,
    web_helper: str = WEB_HELPER,
) -> str:
    """Take a host from one release to another, and see that its workers run and answer.

    When it fails it puts the host back by itself, unless it is itself the way back (``going_back``), which
    runs to its end whatever happens. The same release twice is a restart in place. ``web``: the application,
    where its pages are served; ``verify_seconds``: how long the workers may take to come up.
    """
    restart = old.release == new.release
    return _render(
        "switch",
        root=root,
        app=_app(root),
        groups=list(groups),
        web_app=web,
        from_release=old.release,
        from_rev=old.rev,
        from_after="" if restart else old.hooks.get("after_switch", ""),
        to_release=new.release,
        to_rev=new.rev,
        to_after="" if restart else new.hooks.get("after_switch", ""),
        before_switch="" if restart else new.hooks.get("before_switch", ""),
        going_back=going_back,
        verify_seconds=verify_seconds,
        ping_queues=list(pings.queues) if pings else [],
        ping_seconds=pings.seconds if pings else 0,
        deploy_id=pings.deploy_id if pings else "",
        settings=f"{SETTINGS}/{_app(root)}.json",
        hook_seconds=HOOK_SECONDS,
        listen_after=LISTEN_AFTER,
        listen_seconds=LISTEN_SECONDS,
        judge=host_program(judge),
        wait_code=judge.WAIT,
        log_lines=LOG_LINES,
        logs=f"{logs}/{_app(root)}",
        helper=helper,
        web_helper=web_helper,
    )


def sample(
    root: str,
    groups: Sequence[str],
    release: str,
    *,
    since: str,
    web: str = "",
    logs: str = LOGS,
    helper: str = HELPER,
    web_helper: str = WEB_HELPER,
) -> str:
    """Report how queues, workers and their jobs stand; changes nothing.

    ``release`` is whose Python asks the queues; ``since`` how many seconds of logs are looked at, or
    ``current`` for those since the switch.
    """
    return _render(
        "sample",
        root=root,
        groups=list(groups),
        web_app=web,
        release=release,
        since=since,
        settings=f"{SETTINGS}/{_app(root)}.json",
        outcomes=host_program(outcomes),
        logs=f"{logs}/{_app(root)}",
        helper=helper,
        web_helper=web_helper,
    )


def migrate(root: str, command: str, new: Side, previous: str, *, seconds: int) -> str:
    """Run the application's migration in the new release's folder, for at most ``seconds``."""
    return _render(
        "migrate",
        root=root,
        app=_app(root),
        command=command,
        release=new.release,
        rev=new.rev,
        previous=previous,
        hook_seconds=seconds,
    )


def host_program(module: ModuleType) -> str:
    """Return the text of a module that is a host's program, too."""
    return Path(module.__file__ or "").read_text(encoding="utf-8")


def _app(root: str) -> str:
    return PurePosixPath(root).name


def finish(
    root: str,
    lock_id: str,
    *,
    verified: str = "",
    failed: str = "",
    failed_why: str = "",
    record: Mapping[str, Any] | None = None,
    remove_releases: Sequence[str] = (),
    remove_venvs: Sequence[str] = (),
) -> str:
    """Mark a release as good or failed, note what happened, remove what is not kept, give the lock back."""
    return _render(
        "finish",
        root=root,
        lock_id=lock_id,
        verified=verified,
        failed=failed,
        failed_why=failed_why,
        record=json.dumps(record, sort_keys=True) if record else "",
        remove_releases=list(remove_releases),
        remove_venvs=list(remove_venvs),
    )


def _link(path: str) -> dict[str, str]:
    """Where a shared path is linked from: relative, so that a release can be looked at from anywhere."""
    pure = PurePosixPath(path)
    up = "../" * (len(pure.parts) - 1 + 2)
    return {"path": path, "parent": str(pure.parent), "target": f"{up}shared/{path}"}
