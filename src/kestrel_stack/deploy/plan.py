"""Layer two: every decision of a deploy. Pure: what the hosts reported goes in, what to do comes out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from .errors import Refused
from .hoststate import RELEASE_NAME, HostState
from .onhost.judge import WEB, judge

PYTHON_SUPPORTED = ((3, 11), (3, 13))
"""Oldest and newest Python of a host: those of Debian 12 and 13."""
ARCHITECTURES = ("x86_64", "aarch64")

# --- may it go on? -----------------------------------------------------------------------------------


def problems(state: HostState, user: str, *, needs_workers: bool) -> list[str]:
    """Say what keeps a host from being deployed to, each with its fix. Empty when nothing does."""
    facts = state.facts
    site = "run ansible-playbook site.yml first"
    found = []
    if "root" not in facts:
        found.append(f"the application's folder under /srv is missing: {site}")
    elif "writable" not in facts:
        found.append(f"user {user} cannot write to the application's folder under /srv: {site}")
    python = facts.get("python", "none")
    oldest, newest = PYTHON_SUPPORTED
    if python == "none":
        found.append(f"there is no python3: {site}")
    elif not oldest <= tuple(int(x) for x in python.split(".")[:2]) <= newest:
        found.append(
            f"Python {python} is not supported; supported are {_dotted(oldest)} to {_dotted(newest)}"
            " (Debian 12 and 13)"
        )
    elif "venv" not in facts:
        found.append(f"python3-venv is missing: {site}")
    if facts.get("arch") not in ARCHITECTURES:
        found.append(
            f"architecture {facts.get('arch')} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )
    if needs_workers and "helper" not in facts:
        found.append(f"kestrel-stack-workers is missing: {site}")
    refused = set()
    for group in state.groups:
        if group.error is None:
            continue
        program = "kestrel-stack-web" if group.name == WEB else "kestrel-stack-workers"
        if "sudo" not in group.error[:40]:
            found.append(f"workers {group.name}: {group.error}: {site}")
        elif program not in refused:
            refused.add(program)
            found.append(f"user {user} may not run {program} by sudo: {site} ({group.error})")
    for path in state.missing_shared:
        found.append(f"the shared file {path} is missing: put it into the application's shared/ folder")
    return found


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(x) for x in version)


def disk_needed_kb(archive_files: int, archive_bytes: int, wheels: int | None) -> int:
    """KiB a host must have free: the upload, the unpacked files with byte code, and what a new venv takes.

    ``wheels`` is the size of the wheels in bytes when the host lacks the venv, else None.
    """
    need = archive_bytes + 3 * archive_files + 20 * 2**20
    if wheels is not None:
        # A venv takes about 35 MB where pip has to be put into it, and little where Debian has it as a wheel.
        # A wheel unpacks and compiles to about five times its size.
        need += 40 * 2**20 + 6 * wheels
    return need // 1024


# --- what to do --------------------------------------------------------------------------------------


def release_name(now: datetime, rev: str, taken: Iterable[str]) -> str:
    """Name a release by UTC time and revision, later than all that are there, so that names sort by age."""
    latest = max((name for name in taken if RELEASE_NAME.match(name)), default="")
    moment = now.astimezone(UTC)
    if latest:
        newest = datetime.strptime(latest.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        moment = max(moment, newest + timedelta(seconds=1))
    return f"{moment:%Y%m%dT%H%M%SZ}-{rev[:8]}"


def is_up_to_date(state: HostState, rev: str, manifest: str, venv: str) -> bool:
    """Whether this host already runs exactly this, with every worker."""
    current = state.current_release
    return (
        current is not None
        and current.verified
        and not current.failed
        and (current.rev, current.manifest, current.venv) == (rev, manifest, venv)
        and venv in state.venvs
        and judge(state.groups, current.name, 0).ok
    )


@dataclass(frozen=True)
class Pace:
    """How carefully the hosts are switched."""

    batch: str = "1"
    """Hosts switched at once: a whole number, or a share of all such as ``25%``."""
    canary: int = 0
    """Hosts that are switched before all others and watched."""
    soak: int = 0
    """Seconds that they are watched."""
    ping: bool = True
    """Whether every queue has to answer from the new release."""
    first_at_once: bool = False
    """Whether hosts none of which has a release are one batch: nothing runs there that could be spared."""


@dataclass(frozen=True)
class Batch:
    """Hosts that are switched at once."""

    hosts: tuple[Any, ...]
    canary: bool = False


def batch_size(batch: str, hosts: int) -> int:
    """Say how many of so many hosts a batch is: a share is rounded up, so that it is never none."""
    if batch.endswith("%"):
        return max(1, -(-hosts * int(batch[:-1]) // 100))
    return int(batch)


def batches(hosts: Sequence[Any], pace: Pace, new: Collection[Any] = ()) -> list[Batch]:
    """Split the hosts into what is switched together, the canary first, else in the inventory's order.

    A canary stands for the others, so one host alone is none, and one is always left for it to stand for. It
    is a host with workers if there is one: jobs are what shows whether a release is good. ``new`` are the
    hosts without a release, which can be compared with nothing: none of them is a canary if it can be helped.
    Where all are new there is nothing to compare, to drain or to keep going: they go together if
    ``pace`` says so.
    """
    if pace.first_at_once and hosts and all(host in new for host in hosts):
        return [Batch(tuple(hosts))]
    size = batch_size(pace.batch, len(hosts))
    telling = sorted(hosts, key=lambda host: (host in new, not host.queues))
    first = telling[: min(pace.canary, len(hosts) - 1)] if hosts else []
    rest = [host for host in hosts if host not in first]
    made = [Batch(tuple(first), canary=True)] if first else []
    return made + [Batch(tuple(rest[start : start + size])) for start in range(0, len(rest), size)]


def rollback_target(states: Sequence[HostState], to: str | None = None) -> str:
    """Choose the release to go back to: the same on every host, complete, and once verified.

    Without ``to`` it is the newest that is older than the newest current one. Raises Refused when there is
    none.
    """
    usable = [
        {r.name for r in s.releases if r.verified and not r.failed and r.venv in s.venvs} for s in states
    ]
    common = set.intersection(*usable) if usable else set()
    if to is not None:
        for state, names in zip(states, usable, strict=True):
            if to not in names:
                known = ", ".join(sorted(common)) or "none"
                release = state.release(to)
                what = "is not there"
                if release is not None:
                    what = "failed" if release.failed else "was never verified or has lost its venv"
                raise Refused(f"{state.host}: release {to} {what}; all hosts can go to: {known}")
        return to
    newest = max(state.current for state in states)
    if not newest:
        raise Refused("there is nothing to roll back: no host has a release yet, run fab deploy")
    older = sorted(name for name in common if name < newest)
    if not older:
        raise Refused(
            f"there is no release before {newest} that every host could go back to (see fab releases)"
        )
    return older[-1]


def to_remove(state: HostState, new: str, venv: str, previous: str, keep: int) -> tuple[list[str], list[str]]:
    """Choose the releases and venvs that may go after a good deploy of ``new``, which uses ``venv``.

    Kept are the newest ``keep`` that ran well, always the new one, the one before it, and the last good one.
    What failed or was never verified does not count and goes.
    """
    good = sorted({r.name for r in state.releases if r.verified and not r.failed} | {new}, reverse=True)
    kept = set(good[:keep]) | {new, previous}
    gone = [release.name for release in state.releases if release.name not in kept]
    used = {release.venv for release in state.releases if release.name in kept}
    if "" in used or (previous and state.release(previous) is None):
        # The release.json of one that stays is gone or cannot be read: any venv may be its own.
        return gone, []
    return gone, [name for name in state.venvs if name not in used | {venv}]


def failed_before(state: HostState, new: str) -> list[str]:
    """Choose the releases that may go when a deploy of ``new`` has failed: those that failed before it.

    The last that failed stays, to be looked at. A series of failures must not fill the disk.
    """
    return [
        release.name
        for release in state.releases
        if release.name not in (new, state.current) and (release.failed or not release.verified)
    ]
