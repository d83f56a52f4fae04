"""The application at a commit: where it is, what its deploy.yml says, what git knows of it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ..appspec import AppSpec, parse_app_spec
from ..description import ROOT
from ..errors import Failed, Refused

STACK_SOURCES = ("src/kestrel_stack", "pyproject.toml", "README.md", "LICENSE")
"""What the stack's own wheel is made of."""
PHP_SOURCES = ("php/autoload.php", "php/composer.json", "php/bin", "php/src")
"""The stack's own PHP code, which every release has in its folder STACK_FOLDER."""


@dataclass(frozen=True)
class Source:
    """An application at a commit."""

    repository: Path
    prefix: str
    """The application's folder inside the repository, empty when it is the repository itself."""
    ref: str
    """What the person asked for."""
    rev: str
    """The commit's full id."""
    spec: AppSpec
    requirements: str
    """Text of the requirements lock; empty when there is none."""
    time: int = 0
    """When the commit was made, in seconds since 1970: the time of all its files."""
    warnings: tuple[str, ...] = ()
    """What a person should know before this is deployed, a line each."""


def find_source(app: str, ref: str, *, root: Path = ROOT, allow_dirty: bool = False) -> Source:
    """Find the application and the commit, and read its deploy.yml from there. Raises Refused."""
    folder = _app_folder(app, root)
    repository, prefix = _repository(folder)
    rev = resolve(repository, ref)
    source = _read(repository, prefix, ref, rev, app, folder)
    if not allow_dirty:
        _refuse_dirty(repository, prefix, root)
    return replace(source, warnings=(*_not_pushed(source), *_submodules(source)))


def at_commit(source: Source, rev: str) -> Source:
    """Return the same application at another commit. Raises Refused when git does not have that."""
    rev = resolve(source.repository, rev)
    return _read(source.repository, source.prefix, rev, rev, source.prefix, source.repository / source.prefix)


def _read(repository: Path, prefix: str, ref: str, rev: str, app: str, folder: Path) -> Source:
    """Read what a commit says of the application."""
    where = _inside(prefix, "deploy.yml")
    text = show(repository, rev, where)
    if text is None:
        if prefix and git(repository, "cat-file", "-e", f"{rev}:{prefix}", check=False).returncode != 0:
            raise Refused(
                f"--app {app}: {prefix} is not in commit {rev[:8]} ({ref}): commit it, or name another --ref"
            )
        if (folder / "deploy.yml").exists():
            raise Refused(f"--app {app}: deploy.yml is not in commit {rev[:8]} ({ref}): commit it")
        raise Refused(
            f"--app {app}: there is no deploy.yml in {folder}, so it is not an application to deploy"
        )
    own_composer = ["."] if _has(repository, rev, _inside(prefix, "composer.lock")) else []
    spec = parse_app_spec(text, where, composer=own_composer)
    for name in spec.composer:
        path = str(PurePosixPath(name, "composer.lock"))
        if not _has(repository, rev, _inside(prefix, path)):
            raise Refused(
                f"{where}: php.composer names {name}, and {path} is not in commit {rev[:8]}: run composer"
                " update there and commit the lock"
            )
    requirements = ""
    if spec.requirements is not None:
        found = show(repository, rev, _inside(prefix, spec.requirements))
        if found is None:
            raise Refused(
                f"{where}: python.requirements names {spec.requirements}, which is not in commit {rev[:8]}"
            )
        requirements = found
    time = int(git(repository, "show", "--no-patch", "--format=%ct", rev).stdout.split()[-1])
    return Source(repository, prefix, ref, rev, spec, requirements, time)


def _inside(prefix: str, path: str) -> str:
    return f"{prefix}/{path}" if prefix else path


def _has(repository: Path, rev: str, path: str) -> bool:
    return git(repository, "cat-file", "-e", f"{rev}:{path}", check=False).returncode == 0


def _not_pushed(source: Source) -> tuple[str, ...]:
    """Warn of a commit that only this machine has; refuse it when deploy.yml says so.

    Asked are the remote branches as git last saw them. A repository without a remote is warned of nothing.
    """
    words = ["for-each-ref", "--count=1", "--format=x", "--contains", source.rev, "refs/remotes"]
    if git(source.repository, *words).stdout.strip():
        return ()
    what = f"commit {source.rev[:8]} ({source.ref}) is on no remote branch"
    if source.spec.require_pushed:
        raise Refused(f"{what}, and deploy.yml says require_pushed: run git push (or git fetch) first")
    if not git(source.repository, "remote").stdout.strip():
        return ()
    return (f"{what}: only this machine has what is deployed, git push it",)


def _submodules(source: Source) -> tuple[str, ...]:
    """Warn of submodules: their files are in other repositories, so the commit does not have them."""
    words = ["ls-tree", "-r", "-z", source.rev, *(["--", f"{source.prefix}/"] if source.prefix else [])]
    entries = git(source.repository, *words).stdout.decode(errors="replace").split("\0")
    names = [entry.partition("\t")[2] for entry in entries if entry.startswith("160000 ")]
    if not names:
        return ()
    return (
        f"submodules are not deployed: {_shown(names)}. Copy what is needed into the repository"
        " (git subtree), or install it as a package",
    )


def _shown(names: Sequence[str]) -> str:
    """Return the first few of many names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _app_folder(app: str, root: Path) -> Path:
    """Find a relative path in the checkout, wherever fab was started, and else in the working folder."""
    if not app:
        raise Refused("--app is empty: give the path of the application's folder")
    given = Path(app).expanduser()
    candidates = [given] if given.is_absolute() else [root / given, Path.cwd() / given]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate.resolve()
    raise Refused(f"--app {app}: there is no such folder")


def _repository(folder: Path) -> tuple[Path, str]:
    done = git(folder, "rev-parse", "--show-toplevel", check=False)
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        if reason and "dubious ownership" in reason[0]:
            raise Refused(
                f"{folder}: {reason[0].removeprefix('fatal: ')}: run fab as the owner of the checkout"
            )
        raise Refused(
            f"{folder} is not in a git repository; a deploy takes a commit: run git init and commit"
        )
    top = Path(done.stdout.decode().rstrip("\n")).resolve()
    prefix = folder.relative_to(top).as_posix()
    return top, "" if prefix == "." else prefix


def resolve(repository: Path, ref: str) -> str:
    """Return the full id of the commit that a ref means. Raises Refused when there is none."""
    done = git(
        repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}", check=False
    )
    if not ref or done.returncode != 0:
        raise Refused(
            f"unknown ref {ref!r} in {repository}: no branch, tag or commit of that name (git fetch?)"
        )
    return done.stdout.decode().strip()


def show(repository: Path, rev: str, path: str) -> str | None:
    """Return a file's text at a commit; None when the commit has no such file."""
    done = git(repository, "cat-file", "blob", f"{rev}:{path}", check=False)
    if done.returncode != 0:
        return None
    try:
        return done.stdout.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(f"{path} is not UTF-8 text") from None


def _refuse_dirty(repository: Path, prefix: str, root: Path) -> None:
    """Refuse uncommitted changes in what is deployed: people would look for them on the hosts in vain."""
    paths = [prefix or "."]
    if repository == root.resolve():
        paths += [*STACK_SOURCES, *PHP_SOURCES]
    done = git(repository, "status", "--porcelain", "-z", "--untracked-files=all", "--", *paths)
    names = []
    entries = iter(done.stdout.decode(errors="replace").split("\0"))
    for entry in entries:
        if entry:
            names.append(entry[3:])
            if entry[0] in "RC":
                next(entries, None)
    if names:
        raise Refused(
            f"uncommitted changes: {_shown(names)}. Commit them, or give --allow-dirty to deploy the commit"
            " without them"
        )


def git(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run git in a folder. With ``check`` it raises Failed when git does."""
    try:
        # A folder's name may look like a pattern.
        command = ["git", "--literal-pathspecs", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        raise Refused("git is not installed: apt install git") from None
    if check and done.returncode != 0:
        raise Failed(
            f"git {' '.join(words)[:100]} failed: {done.stderr.decode(errors='replace').strip()[:500]}"
        )
    return done


def pack_commit(repository: Path, rev: str, *paths: str) -> bytes:
    """Return a tar of a commit's files, or of those below ``paths``, whatever line ends are liked here."""
    plain = ("-c", "core.autocrlf=false", "-c", "core.eol=lf")
    return git(repository, *plain, "archive", "--format=tar", rev, "--", *paths).stdout
