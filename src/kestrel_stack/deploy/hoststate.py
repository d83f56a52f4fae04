"""Layer two: what a host reported, read. Pure: the lines of a script go in, facts come out."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RELEASE_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}\Z")
LOCK_STATES = ("held", "switching", "dying", "stale", "forever")
_VENV = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,80}\Z")


@dataclass(frozen=True)
class Target:
    """What decides which wheels fit a host."""

    python: str
    """Major and minor version, such as ``3.11``."""
    arch: str
    glibc: str

    def __str__(self) -> str:
        return f"Python {self.python}, {self.arch}, glibc {self.glibc}"


@dataclass(frozen=True)
class Process:
    """One worker process as the helper on the host reports it."""

    name: str
    state: str
    pid: int | None
    uptime: int
    """Seconds."""
    release: str | None


@dataclass(frozen=True)
class Group:
    """The worker processes of one queue on one host; ``error`` when the helper could not say."""

    name: str
    processes: tuple[Process, ...] = ()
    error: str | None = None

    @property
    def running(self) -> int:
        """How many processes run a release; without one only the start wrapper runs, for some seconds."""
        return sum(process.state == "RUNNING" and process.release is not None for process in self.processes)


@dataclass(frozen=True)
class Release:
    """A release on a host, as its release.json tells."""

    name: str
    verified: bool
    """All workers of the host once ran from it."""
    rev: str = ""
    ref: str = ""
    venv: str = ""
    created_at: str = ""
    by: str = ""
    manifest: str = ""
    """sha256 of the list of its files; empty for a release of an older version."""
    ping: bool = False
    """Its workers answer pings."""
    failed: bool = False
    """A deploy to it failed; it is never gone back to."""
    hooks: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Its own commands around a switch, by name."""


@dataclass(frozen=True)
class HostState:
    """What one host reported in one round trip."""

    host: str
    facts: Mapping[str, str] = field(default_factory=dict)
    releases: tuple[Release, ...] = ()
    venvs: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    lock: Mapping[str, Any] | None = None
    """Its content, with ``state`` (held, switching, dying, stale, forever) and ``left``, the seconds until a
    dying one ends."""
    missing_shared: tuple[str, ...] = ()
    clock_skew: float | None = None
    """Seconds by which its clock is ahead of this machine's; None when that is not known."""

    @property
    def current(self) -> str:
        """Name of the release that ``current`` points to; empty when there is none."""
        return self.facts.get("current", "")

    @property
    def current_release(self) -> Release | None:
        """The release that ``current`` points to, when it is there."""
        return self.release(self.current)

    @property
    def target(self) -> Target:
        """Which wheels fit."""
        python = ".".join(self.facts["python"].split(".")[:2])
        return Target(python, self.facts["arch"], self.facts["glibc"])

    @property
    def web(self) -> Group | None:
        """What serves the application's pages, on a host that does."""
        return next((group for group in self.groups if group.name == "web"), None)

    def release(self, name: str) -> Release | None:
        """Return the release of this name, or None."""
        return next((release for release in self.releases if release.name == name), None)


# --- reading what a host said ------------------------------------------------------------------------


def events(lines: Iterable[str]) -> Iterable[list[str]]:
    """Split the lines of a script that begin with ``@`` into words; a JSON object stays one word."""
    for line in lines:
        if line.startswith("@ "):
            head, brace, tail = line[2:].partition("{")
            yield [*head.split(), *([brace + tail.strip()] if brace else [])]


def parse_inspection(host: str, lines: Sequence[str], now: float | None = None) -> HostState:
    """Turn the output of the inspect script into a HostState. What is garbled counts as absent.

    ``now`` is this machine's time when the answer came, in seconds since 1970.
    """
    facts: dict[str, str] = {}
    releases: list[Release] = []
    venvs: list[str] = []
    missing: list[str] = []
    lock: Mapping[str, Any] | None = None
    for line, words in zip((x for x in lines if x.startswith("@ ")), events(lines), strict=True):
        match words:
            case ["fact", key, value]:
                facts[key] = value
            case ["venv", name] if _VENV.match(name):
                venvs.append(name)
            case ["release", name, flags, *rest] if RELEASE_NAME.match(name):
                releases.append(_release(name, flags, _json_object(rest[0] if rest else "")))
            case ["lock", *_]:
                lock = _lock_line(line.removeprefix("@ lock "))
            case ["missing", *_]:
                missing.append(line.removeprefix("@ missing "))
    return HostState(
        host,
        facts,
        tuple(sorted(releases, key=lambda release: release.name)),
        tuple(sorted(venvs)),
        parse_groups(lines),
        lock,
        tuple(missing),
        float(facts["clock"]) - now if now is not None and facts.get("clock", "").isdigit() else None,
    )


def _lock_line(text: str) -> Mapping[str, Any]:
    """Read ``STATE SECONDS CONTENT``."""
    state, seconds, content = (*text.split(" ", 2), "", "")[:3]
    if state not in LOCK_STATES or not seconds.isdigit():
        return read_lock(text)
    return {**read_lock(content), "state": state, "left": int(seconds)}


def _release(name: str, flags: str, about: Mapping[str, Any]) -> Release:
    texts = ("rev", "ref", "venv", "created_at", "by", "manifest")
    hooks = about.get("hooks")
    return Release(
        name,
        flags == "verified",
        **{key: str(about.get(key) or "") for key in texts},
        ping=about.get("ping") == 1,
        failed=flags == "failed",
        hooks={str(key): str(value) for key, value in hooks.items()} if isinstance(hooks, dict) else {},
    )


def parse_groups(lines: Sequence[str]) -> tuple[Group, ...]:
    """Read the lines ``@ workers GROUP CODE JSON-or-complaint``."""
    groups = []
    for line in lines:
        if not line.startswith("@ workers "):
            continue
        _, _, name, code, *rest = line.split(" ", 4)
        said = rest[0].strip() if rest else ""
        data = _json_object(said)
        if code == "0" and isinstance(data.get("processes"), list):
            groups.append(Group(name, tuple(_process(item) for item in data["processes"])))
        else:
            groups.append(Group(name, error=said or f"the helper ended with exit code {code}"))
    return tuple(groups)


def _process(item: Mapping[str, Any]) -> Process:
    return Process(
        str(item.get("name")),
        str(item.get("state")),
        item.get("pid"),
        int(item.get("uptime") or 0),
        item.get("release"),
    )


def read_lock(text: str) -> Mapping[str, Any]:
    """Read a lock's content; one that is unreadable is still a lock."""
    return _json_object(text) or {"owner": "somebody unknown", "content": text.strip()}


def describe_lock(lock: Mapping[str, Any]) -> str:
    """Say who holds a lock: owner, machine, process, since when; of a person's own, what it says.

    Whoever wrote the file must not draw on the screen of whoever reads this.
    """
    owner = lock.get("owner", "somebody unknown")
    words = f"{owner}@{lock['controller']}" if lock.get("controller") else str(owner)
    if lock.get("pid"):
        words += f" (pid {lock['pid']})"
    if lock.get("time"):
        words += f" since {lock['time']}"
    if lock.get("content"):
        words += f" ({textwrap.shorten(str(lock['content']), 100, placeholder=' …')})"
    return "".join(c if c.isprintable() else "?" for c in words)


def _json_object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
