"""Layer one: what an application's deploy.yml says, read and checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml

from .after import AfterSpec
from .assets import AssetsSpec
from .errors import Refused

RESERVED = ("venv", "release.json", ".verified", "kestrel-stack", "_assets", ".manifest.json")
"""Names at the top of a release that the deploy writes itself."""


@dataclass(frozen=True)
class Hooks:
    """Commands of the application, run on every host in the new release's folder; empty: none."""

    check: str = ""
    """At the end of preparing; a failure ends the deploy with every host as before."""
    before_switch: str = ""
    """Before a host's workers are drained; a failure leaves that host as it was."""
    after_switch: str = ""
    """After a host is verified; a failure reverts it."""


@dataclass(frozen=True)
class Roll:
    """How hosts are switched when no flag says otherwise."""

    batch: str = "1"
    """Hosts switched at once: a whole number or a share such as ``25%``."""
    canary: int = 1
    """Hosts that are switched first and watched; 0: none."""
    soak: int = 30
    """Seconds that the canary is watched before the others follow."""


@dataclass(frozen=True)
class AppSpec:
    """What the application's deploy.yml says."""

    requirements: str | None = None
    """Path of the hashed lock inside the application; None: nothing but the stack's own package."""
    composer: tuple[str, ...] = ()
    """Folders with a composer.lock whose vendor/ is built; ``.`` is the application's own."""
    shared_files: tuple[str, ...] = ()
    shared_directories: tuple[str, ...] = ()
    hooks: Hooks = field(default_factory=Hooks)
    migrate: str = ""
    """A command run on one host, in the new release's folder, before the first switch; never undone."""
    assets: AssetsSpec | None = None
    roll: Roll = field(default_factory=Roll)
    after: AfterSpec = field(default_factory=AfterSpec)
    require_pushed: bool = False
    """Refuse a commit that no remote branch has."""
    keep: int = 5
    """How many releases stay on a host."""


_SPEC_KEYS = {
    "": ("python", "shared", "keep"),
    "python": ("requirements",),
    "shared": ("files", "directories"),
}


def parse_app_spec(text: str, where: str = "deploy.yml") -> AppSpec:
    """Read the text of a deploy.yml. Raises Refused naming the key and, when misspelt, the nearest known."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise Refused(f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise Refused(f"{where}: must be a mapping with the keys {_listed(_SPEC_KEYS[''])}")
    _refuse_unknown(data, "", where)
    for key in ("python", "shared"):
        if data.get(key) is None:
            data[key] = {}
        if not isinstance(data[key], dict):
            raise Refused(f"{where}: {key} must be a mapping with the keys {_listed(_SPEC_KEYS[key])}")
        _refuse_unknown(data[key], key, where)
    requirements = data["python"].get("requirements")
    if requirements is not None:
        requirements = _inner_path(requirements, "python.requirements", where)
    shared = {}
    for key in ("files", "directories"):
        value = data["shared"].get(key) or []
        if not isinstance(value, list):
            raise Refused(f"{where}: shared.{key} must be a list of paths")
        shared[key] = tuple(_inner_path(item, f"shared.{key}", where) for item in value)
    _refuse_overlap([*shared["files"], *shared["directories"]], where)
    keep = data.get("keep", 5)
    if isinstance(keep, bool) or not isinstance(keep, int) or not 2 <= keep <= 100:
        raise Refused(
            f"{where}: keep is {keep!r}; it must be a whole number from 2 (a rollback needs one) to 100"
        )
    return AppSpec(
        requirements, shared_files=shared["files"], shared_directories=shared["directories"], keep=keep
    )


def _refuse_unknown(data: Mapping[Any, Any], level: str, where: str) -> None:
    known = _SPEC_KEYS[level]
    for key in data:
        if key not in known:
            name = f"{level}.{key}" if level else str(key)
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {_listed(known)}"
            raise Refused(f"{where}: unknown key {name}: {hint}")


def _inner_path(value: Any, key: str, where: str) -> str:
    """Return a relative path that stays inside the application and is safe to link and to list."""
    path = PurePosixPath(value) if isinstance(value, str) else None
    if (
        path is None
        or not path.parts
        or path.is_absolute()
        or ".." in path.parts
        or path.parts[0] in RESERVED
        or any(ord(c) < 32 for c in value)
    ):
        raise Refused(
            f"{where}: {key}: {value!r} is not a path inside the application"
            f" (relative, without '..', and none of the names that the deploy writes: {_listed(RESERVED)})"
        )
    return str(path)


def _refuse_overlap(paths: list[str], where: str) -> None:
    """Refuse a shared path inside another one: it would be written through the link, for all releases."""
    for index, one in enumerate(paths):
        for other in paths[index + 1 :]:
            short, long = sorted((PurePosixPath(one), PurePosixPath(other)), key=lambda p: len(p.parts))
            if long.parts[: len(short.parts)] == short.parts:
                raise Refused(f"{where}: shared: {long} is inside {short}, which is shared already")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
