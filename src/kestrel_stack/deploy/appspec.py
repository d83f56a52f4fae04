"""Layer one: what an application's deploy.yml says, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml

from .after import AfterSpec, parse_after
from .assets.spec import AssetsSpec, parse_assets
from .errors import Refused
from .keys import mapping

RESERVED = (
    "venv",
    "release.json",
    ".verified",
    ".failed",
    "kestrel-stack",
    "_assets",
    ".manifest.json",
    ".bytecode.json",
)
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


_KEYS = {
    "": (
        "python", "php", "shared", "hooks", "migrate", "assets", "roll", "after", "require_pushed", "keep",
    ),
    "python": ("requirements",),
    "php": ("composer",),
    "shared": ("files", "directories"),
    "hooks": ("check", "before_switch", "after_switch"),
    "roll": ("batch", "canary", "soak"),
}  # fmt: skip
_LONGEST_SOAK = 24 * 3600
"""Seconds; who watches for longer than a day has no canary but a second environment."""


def parse_app_spec(text: str, where: str = "deploy.yml", *, composer: Sequence[str] = ()) -> AppSpec:
    """Read the text of a deploy.yml.

    ``composer`` is what ``php.composer`` means when it is not given. Raises Refused naming the key and, when
    misspelt, the nearest known.
    """
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise Refused(f"{where}{line}: not valid YAML: {reason}") from None
    except RecursionError:
        raise Refused(f"{where}: not valid YAML: nested too deeply") from None
    top = _mapping(data, "", where)
    python, php, shared, hooks, roll = (
        _mapping(top.get(key), key, where) for key in ("python", "php", "shared", "hooks", "roll")
    )
    requirements = python.get("requirements")
    if requirements is not None:
        requirements = _inner_path(requirements, "python.requirements", where)
    files = _paths(shared.get("files"), "shared.files", where)
    directories = _paths(shared.get("directories"), "shared.directories", where)
    _refuse_overlap([*files, *directories], where)
    require_pushed = top.get("require_pushed")
    if require_pushed is not None and not isinstance(require_pushed, bool):
        raise Refused(f"{where}: require_pushed is {_shown(require_pushed)}; it must be true or false")
    return AppSpec(
        requirements=requirements,
        composer=tuple(composer) if php.get("composer") is None else _folders(php["composer"], where),
        shared_files=files,
        shared_directories=directories,
        hooks=Hooks(**{key: _command(hooks.get(key), f"hooks.{key}", where) for key in _KEYS["hooks"]}),
        migrate=_command(top.get("migrate"), "migrate", where),
        assets=parse_assets(top.get("assets"), where),
        roll=_roll(roll, where),
        after=parse_after(top.get("after"), where),
        require_pushed=bool(require_pushed),
        keep=_number(top.get("keep"), AppSpec.keep, "keep", 2, 100, " (a rollback needs one)", where),
    )


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key that is given twice: the first one would be forgotten."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is given twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _mapping(value: Any, level: str, where: str) -> Mapping[str, Any]:
    """Return a mapping that has known keys only; nothing counts as an empty one."""
    return {} if value is None else mapping(value, level, _KEYS[level], where)


def _roll(data: Mapping[str, Any], where: str) -> Roll:
    batch = data.get("batch")
    return Roll(
        batch=Roll.batch if batch is None else parse_batch(batch, f"{where}: roll.batch"),
        canary=_number(data.get("canary"), Roll.canary, "roll.canary", 0, 1000, " (0: none)", where),
        soak=_number(data.get("soak"), Roll.soak, "roll.soak", 0, _LONGEST_SOAK, " seconds", where),
    )


def parse_batch(value: Any, where: str) -> str:
    """Return how many hosts are switched at once: a whole number, or a share of them such as ``25%``.

    Raises Refused; ``where`` names the flag or key.
    """
    text = "" if isinstance(value, bool) else str(value).strip()
    number, share = text.removesuffix("%"), text.endswith("%")
    if not re.fullmatch(r"[0-9]{1,6}", number) or not 1 <= int(number) <= (100 if share else 999_999):
        raise Refused(
            f"{where} is {_shown(value)}; it must be a number of hosts, such as 1, or a share, such as 25%"
        )
    return f"{int(number)}%" if share else f"{int(number)}"


def _number(value: Any, default: int, key: str, least: int, most: int, hint: str, where: str) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Refused(
            f"{where}: {key} is {_shown(value)}; it must be a whole number from {least} to {most}{hint}"
        )
    return value


def _command(value: Any, key: str, where: str) -> str:
    """Return a command for the shell; nothing is no command."""
    if value is None:
        return ""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise Refused(
            f"{where}: {key} is {_shown(value)}; it must be one command for the shell, as text"
            " (join several with &&)"
        )
    return value.strip()


def _list(value: Any, key: str, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Refused(f"{where}: {key} must be a list of paths")
    return value


def _paths(value: Any, key: str, where: str) -> tuple[str, ...]:
    return tuple(_inner_path(item, key, where) for item in _list(value, key, where))


def _folders(value: Any, where: str) -> tuple[str, ...]:
    """Return the folders with a composer.lock; the application's own is ``.``."""
    key = "php.composer"
    found = tuple("." if item == "." else _inner_path(item, key, where) for item in _list(value, key, where))
    for path in found:
        if found.count(path) > 1:
            raise Refused(f"{where}: {key}: {path} is named twice")
    return found


def _shown(value: Any) -> str:
    """Return a wrong value for a message: in one line, and not all of a long one."""
    return repr(value)[:100]


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
            f"{where}: {key}: {_shown(value)} is not a path inside the application"
            f" (relative, without '..', and none of the names that the deploy writes: {', '.join(RESERVED)})"
        )
    return str(path)


def _refuse_overlap(paths: list[str], where: str) -> None:
    """Refuse a shared path inside another one: it would be written through the link, for all releases."""
    for index, one in enumerate(paths):
        for other in paths[index + 1 :]:
            short, long = sorted((PurePosixPath(one), PurePosixPath(other)), key=lambda p: len(p.parts))
            if long.parts[: len(short.parts)] == short.parts:
                raise Refused(f"{where}: shared: {long} is inside {short}, which is shared already")
