"""Layer two: the text of every script that runs on a host. Pure: values in, text out.

The templates are ``templates/deploy/*.sh.j2``. Every value that a template prints is quoted for the shell by
the environment itself, so that no template can forget to; `tests` run them with hostile values.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from .description import ROOT
from .onhost import unpack

if TYPE_CHECKING:
    from .build import Bundle

HELPER = "/usr/local/sbin/kestrel-stack-workers"
"""What the deploy user may run as root on hosts with workers; the role ``supervisor`` installs it."""

WEB_HELPER = "/usr/local/sbin/kestrel-stack-web"
"""The other one, on hosts that serve pages; the role ``web`` installs it."""

HOOK_SECONDS = 600
"""A hook may take so long."""

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
    helper: str = HELPER,
) -> str:
    """Report what a plan needs; changes nothing.

    ``settle``: seconds to wait for a switch that is still under way.
    """
    return _render(
        "inspect",
        app_root=root,
        groups=list(groups),
        shared_files=list(shared_files),
        settle=settle,
        helper=helper,
    )


def status(
    groups: Sequence[str], *, web: str = "", helper: str = HELPER, web_helper: str = WEB_HELPER
) -> str:
    """Report how the workers stand; changes nothing. ``web``: the application, where its pages are served."""
    return _render("status", groups=list(groups), web_app=web, helper=helper, web_helper=web_helper)


def lock(root: str, content: Mapping[str, Any]) -> str:
    """Take the lock of a host, or report who holds it."""
    return _render("lock", root=root, content=json.dumps(content, sort_keys=True))


def unlock(root: str, lock_id: str) -> str:
    """Remove the lock with this id, and no other."""
    return _render("unlock", root=root, lock_id=lock_id)


def prepare(
    root: str,
    release: str,
    *,
    bundle: Bundle,
    venv: str,
    stack_wheel: str,
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
        stack_wheel=stack_wheel,
        release_json=json.dumps(release_json, sort_keys=True),
        rev=str(release_json.get("rev") or ""),
        app=app or _app(root),
        previous=previous,
        check=check,
        hook_seconds=hook_seconds,
        shared_files=[_link(path) for path in shared_files],
        shared_directories=[_link(path) for path in shared_directories],
    )


def switch(
    root: str,
    groups: Sequence[str],
    *,
    from_release: str,
    to_release: str,
    going_back: bool = False,
    helper: str = HELPER,
) -> str:
    """Take the workers from one release to another.

    An empty name means that there is no release. When it fails it puts the host back by itself, unless it is
    itself the way back (``going_back``).
    """
    return _render(
        "switch",
        root=root,
        groups=list(groups),
        from_release=from_release,
        to_release=to_release,
        going_back=going_back,
        helper=helper,
    )


def finish(
    root: str,
    lock_id: str,
    *,
    verified: str = "",
    record: Mapping[str, Any] | None = None,
    remove_releases: Sequence[str] = (),
    remove_venvs: Sequence[str] = (),
) -> str:
    """Mark a good release, note what happened, remove what is not kept, and give the lock back."""
    return _render(
        "finish",
        root=root,
        lock_id=lock_id,
        verified=verified,
        record=json.dumps(record, sort_keys=True) if record else "",
        remove_releases=list(remove_releases),
        remove_venvs=list(remove_venvs),
    )


def _link(path: str) -> dict[str, str]:
    """Where a shared path is linked from: relative, so that a release can be looked at from anywhere."""
    pure = PurePosixPath(path)
    up = "../" * (len(pure.parts) - 1 + 2)
    return {"path": path, "parent": str(pure.parent), "target": f"{up}shared/{path}"}


def host_program(module: ModuleType) -> str:
    """Return the text of a module that is a host's program, too."""
    return Path(module.__file__ or "").read_text(encoding="utf-8")


def _app(root: str) -> str:
    return PurePosixPath(root).name
