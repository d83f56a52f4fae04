"""What is made once on the controller: the application's archive and the wheels for each kind of host.

Same inputs, same bytes: the archive comes from the commit alone (git's own time stamps, none of this
machine's), wheels are pinned by hash, and the stack's own wheel is built from a commit as well. Everything is
cached under ``.build/``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from .appspec import RESERVED, AppSpec, parse_app_spec
from .description import ROOT
from .errors import DeployError, Failed, Refused
from .hoststate import Target

CACHE = ROOT / ".build"
STACK_SOURCES = ("src/kestrel_stack", "pyproject.toml", "README.md", "LICENSE")
"""What the stack's own wheel is made of."""
PHP_SOURCES = ("php/autoload.php", "php/composer.json", "php/bin", "php/src")
"""The stack's own PHP code, which every release has in its folder STACK_FOLDER."""
STACK_FOLDER = "kestrel-stack"
LONG_AGO = 315532800
"""1980 in seconds, where a file's time must be the same everywhere."""


# --- the application at a commit ---------------------------------------------------------------------


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


def find_source(app: str, ref: str, *, root: Path = ROOT, allow_dirty: bool = False) -> Source:
    """Find the application and the commit, and read its deploy.yml from there. Raises Refused."""
    folder = _app_folder(app, root)
    repository, prefix = _repository(folder)
    rev = _resolve(repository, ref)
    where = f"{prefix}/deploy.yml" if prefix else "deploy.yml"
    text = _show(repository, rev, where)
    if text is None:
        if prefix and _git(repository, "cat-file", "-e", f"{rev}:{prefix}", check=False).returncode != 0:
            raise Refused(
                f"--app {app}: {prefix} is not in commit {rev[:8]} ({ref}): commit it, or name another --ref"
            )
        if (folder / "deploy.yml").exists():
            raise Refused(f"--app {app}: deploy.yml is not in commit {rev[:8]} ({ref}): commit it")
        raise Refused(
            f"--app {app}: there is no deploy.yml in {folder}, so it is not an application to deploy"
        )
    spec = parse_app_spec(text, where)
    if not allow_dirty:
        _refuse_dirty(repository, prefix, root)
    requirements = ""
    if spec.requirements is not None:
        inside = f"{prefix}/{spec.requirements}" if prefix else spec.requirements
        found = _show(repository, rev, inside)
        if found is None:
            raise Refused(
                f"{where}: python.requirements names {spec.requirements}, which is not in commit {rev[:8]}"
            )
        requirements = found
    return Source(repository, prefix, ref, rev, spec, requirements)


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
    done = _git(folder, "rev-parse", "--show-toplevel", check=False)
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


def _resolve(repository: Path, ref: str) -> str:
    done = _git(
        repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}", check=False
    )
    if not ref or done.returncode != 0:
        raise Refused(
            f"unknown ref {ref!r} in {repository}: no branch, tag or commit of that name (git fetch?)"
        )
    return done.stdout.decode().strip()


def _show(repository: Path, rev: str, path: str) -> str | None:
    done = _git(repository, "cat-file", "blob", f"{rev}:{path}", check=False)
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
    done = _git(repository, "status", "--porcelain", "-z", "--untracked-files=all", "--", *paths)
    names = []
    entries = iter(done.stdout.decode(errors="replace").split("\0"))
    for entry in entries:
        if entry:
            names.append(entry[3:])
            if entry[0] in "RC":
                next(entries, None)
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise Refused(
            f"uncommitted changes: {shown}. Commit them, or give --allow-dirty to deploy the commit"
            " without them"
        )


def _git(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=False)
    except FileNotFoundError:
        raise Refused("git is not installed: apt install git") from None
    if check and done.returncode != 0:
        raise Failed(f"git {words[0]} failed: {done.stderr.decode(errors='replace').strip()[:500]}")
    return done


# --- the archive -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Archive:
    """The application's files at a commit."""

    path: Path
    sha256: str
    size: int
    files_size: int
    """Bytes of its files when unpacked."""


def build_archive(source: Source, cache: Path = CACHE, *, root: Path = ROOT) -> Archive:
    """Make app.tar.gz of the commit: the application's folder without its prefix, nothing of this machine.

    The stack's own PHP code goes with it, from the commit that its wheel is built from.
    """
    words = ["archive", "--format=tar", source.rev]
    if source.prefix:
        words += ["--", source.prefix]
    data = _git(source.repository, *words).stdout
    packed, files_size = repack(data, source.prefix, _stack_php(source, root))
    digest = hashlib.sha256(packed).hexdigest()
    path = cache / "archives" / f"{digest}.tar.gz"
    if not path.exists():
        write_whole(path, packed)
    return Archive(path, digest, len(packed), files_size)


def repack(data: bytes, prefix: str, stack: bytes | None = None) -> tuple[bytes, int]:
    """Strip ``prefix`` from a git archive; return the gzipped tar and the size of its files in bytes.

    ``stack`` is a tar of the stack's own files, which go into STACK_FOLDER. Times are the commit's (git's
    choice for the archive of a commit): a web server derives cache validators from them.
    """
    top = PurePosixPath(prefix)
    files_size = 0
    plain = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as given,
        tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as made,
    ):
        for member in given:
            path = PurePosixPath(member.name)
            if prefix and (path == top or top not in path.parents):
                continue
            inner = path.relative_to(top) if prefix else path
            if inner.parts[0] in RESERVED:
                raise Refused(
                    f"the application contains {inner}, a name that the deploy writes itself: rename it"
                )
            member.name = str(inner)
            if member.islnk():
                member.linkname = str(PurePosixPath(member.linkname).relative_to(top))
            files_size += _add_anonymous(made, member, given)
        if stack is not None:
            files_size += _add_stack(made, stack)
    return gzip.compress(plain.getvalue(), compresslevel=6, mtime=0), files_size


def _add_anonymous(made: tarfile.TarFile, member: tarfile.TarInfo, given: tarfile.TarFile) -> int:
    """Add a member without its owner and with one of two modes; return its size in bytes."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    member.pax_headers = {}
    made.addfile(member, given.extractfile(member) if member.isreg() else None)
    return member.size


def _add_stack(made: tarfile.TarFile, stack: bytes) -> int:
    """Add the stack's own files below STACK_FOLDER; return their size in bytes."""
    size = 0
    with tarfile.open(fileobj=io.BytesIO(stack)) as given:
        # By name: a commit and a folder list them in different orders.
        for member in sorted(given, key=lambda found: found.name):
            # Files that come from no commit have no time that two machines share.
            member.mtime = LONG_AGO
            member.name = f"{STACK_FOLDER}/{member.name}"
            size += _add_anonymous(made, member, given)
    return size


# --- the stack's own files and its wheel ---------------------------------------------------------------


def build_stack_wheel(source: Source, *, root: Path = ROOT, cache: Path = CACHE) -> Path:
    """Build the wheel of kestrel_stack and return its path.

    It comes from the commit that is deployed when the application lives in this checkout, so that one commit
    says everything; else from the checkout's HEAD; and from the files as they are when this is no git
    checkout.
    """
    data = _stack_sources(source, STACK_SOURCES, root)
    key = _content_key(data)
    folder = cache / "stack" / key
    if not folder.is_dir():
        _build_wheel(data, folder)
    return next(folder.glob("*.whl"))


def _stack_rev(source: Source, root: Path) -> str | None:
    """Return the commit that the stack's own files are taken from; None where this is no git checkout."""
    top = _git(root, "rev-parse", "--show-toplevel", check=False)
    if top.returncode != 0 or Path(top.stdout.decode().rstrip("\n")).resolve() != root.resolve():
        return None
    return source.rev if source.repository == root.resolve() else _resolve(root, "HEAD")


def _stack_php(source: Source, root: Path) -> bytes | None:
    """Return a tar of the stack's own PHP code; None for a commit that is older than that."""
    rev = _stack_rev(source, root)
    if rev and _git(root, "cat-file", "-e", f"{rev}:{PHP_SOURCES[0]}", check=False).returncode != 0:
        return None
    return _stack_sources(source, PHP_SOURCES, root)


def _stack_sources(source: Source, paths: Sequence[str], root: Path) -> bytes:
    """Return a tar of the stack's own files, of the commit that `build_stack_wheel` says."""
    rev = _stack_rev(source, root)
    if rev is None:
        return _pack_files(root, paths)
    for path in paths:
        if _git(root, "cat-file", "-e", f"{rev}:{path}", check=False).returncode != 0:
            raise Refused(f"commit {rev[:8]} has no {path}, so the stack's own code cannot be taken from it")
    return _git(root, "archive", "--format=tar", rev, "--", *paths).stdout


def _pack_files(root: Path, paths: Sequence[str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as made:
        for name in paths:
            made.add(root / name, name, filter=lambda m: None if "__pycache__" in m.name else m)
    return packed.getvalue()


def _content_key(data: bytes) -> str:
    """Name a tar by what is in it, not by when it was packed."""
    digest = hashlib.sha256()
    with tarfile.open(fileobj=io.BytesIO(data)) as given:
        for member in sorted(given, key=lambda m: m.name):
            if member.isreg():
                content = given.extractfile(member).read()
                digest.update(f"{member.name}\0{member.mode & 0o100}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()[:20]


def _build_wheel(data: bytes, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kestrel-stack-wheel-") as name:
        tree, out = Path(name, "tree"), Path(name, "out")
        with tarfile.open(fileobj=io.BytesIO(data)) as given:
            # Our own tar. Debian 12's Python 3.11.2 has no filters yet; 3.12 on warn when none is named.
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            given.extractall(tree, **safely)  # noqa: S202
        # A fixed time: the wheel is named in the venv's key by its bytes. 1580601600 is what hatchling uses
        # itself.
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1580601600", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        wheels = list(out.glob("*.whl")) if out.is_dir() else []
        if done.returncode != 0 or len(wheels) != 1:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise Failed(
                f"the stack's own wheel cannot be built: {said[-1] if said else 'hatchling said nothing'}"
            )
        _keep_folder(out, folder)


# --- wheels for the application's lock ---------------------------------------------------------------


@dataclass(frozen=True)
class Locked:
    """One line of the lock that is meant for a host: a pinned package with its hashes."""

    requirement: Requirement
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        extras = f"[{','.join(sorted(self.requirement.extras))}]" if self.requirement.extras else ""
        pin = f"{canonicalize_name(self.requirement.name)}{extras}{self.requirement.specifier}"
        return " ".join([pin, *(f"--hash={value}" for value in sorted(self.hashes))])


@dataclass(frozen=True)
class Lock:
    """A requirements lock, read."""

    packages: tuple[Locked, ...] = ()
    index_options: tuple[str, ...] = ()
    """Options of pip that say where to look; may hold credentials, so they are never printed."""

    def for_target(self, target: Target) -> str:
        """Return the lines that apply to a host, without their markers, in a fixed order.

        Markers are decided here because `pip download` would decide them for the controller's Python.
        """
        environment = target_environment(target)
        lines = sorted(
            str(package)
            for package in self.packages
            if package.requirement.marker is None or package.requirement.marker.evaluate(environment)
        )
        return "".join(f"{line}\n" for line in lines)


def read_lock(text: str, where: str) -> Lock:
    """Read a requirements lock. Raises Refused for what is not pinned by hash, naming it and its line."""
    packages: list[Locked] = []
    options: list[str] = []
    for number, line in _logical_lines(text):
        if line.startswith("-"):
            words = line.replace("=", " ", 1).split()
            if (
                words[0] in ("-i", "--index-url", "--extra-index-url", "--find-links", "-f")
                and len(words) == 2
            ):
                options += [{"-i": "--index-url", "-f": "--find-links"}.get(words[0], words[0]), words[1]]
                continue
            if words[0] in ("--only-binary", "--require-hashes", "--prefer-binary"):
                continue
            raise Refused(
                f"{where} line {number}: {words[0]} is not supported in the lock: it holds pinned"
                " packages with hashes"
            )
        head, *rest = re.split(r"\s--hash[= ]", f"{line} ".replace(" --hash", " --hash"))
        hashes = tuple(value.strip() for value in rest)
        try:
            requirement = Requirement(head.strip())
        except InvalidRequirement:
            raise Refused(f"{where} line {number}: {head.strip()[:80]!r} is not a requirement") from None
        if requirement.url is not None:
            raise Refused(
                f"{where} line {number}: {requirement.name} is given by URL; a wheel of a release is needed"
            )
        pins = list(requirement.specifier)
        if len(pins) != 1 or pins[0].operator not in ("==", "===") or "*" in pins[0].version:
            raise Refused(
                f"{where} line {number}: {requirement.name} is not pinned with ==: make the lock with"
                " pip-compile"
                " or uv pip compile, with --generate-hashes"
            )
        if not hashes:
            raise Refused(
                f"{where} line {number}: {requirement.name} has no hash: make the lock with pip-compile"
                " or uv pip compile, with --generate-hashes"
            )
        for value in hashes:
            if not re.fullmatch(r"sha(256|384|512):[0-9a-f]+", value):
                raise Refused(
                    f"{where} line {number}: {requirement.name}: {value[:80]!r} is not a sha256, 384 or 512"
                )
        packages.append(Locked(requirement, hashes))
    return Lock(tuple(packages), tuple(options))


def _logical_lines(text: str) -> list[tuple[int, str]]:
    lines = []
    held, start = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        if not held:
            start = number
        line = re.sub(r"(^|\s)#.*$", "", raw)
        if line.endswith("\\"):
            held += line[:-1] + " "
            continue
        whole = (held + line).strip()
        held = ""
        if whole:
            lines.append((start, whole))
    if held.strip():
        lines.append((start, held.strip()))
    return lines


def target_environment(target: Target) -> dict[str, str]:
    """Return the values that environment markers have on a host."""
    return {
        **default_environment(),
        "extra": "",
        "implementation_name": "cpython",
        "implementation_version": f"{target.python}.0",
        "os_name": "posix",
        "platform_machine": target.arch,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{target.python}.0",
        "python_version": target.python,
        "sys_platform": "linux",
    }


def platform_tags(target: Target) -> list[str]:
    """Return every platform tag whose wheels run on the host, newest first; pip expands only the oldest."""
    major, minor = (int(part) for part in target.glibc.split(".")[:2])
    oldest = 5 if target.arch == "x86_64" else 17
    tags = [f"manylinux_{major}_{number}_{target.arch}" for number in range(minor, oldest - 1, -1)]
    legacy = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    tags += [f"{name}_{target.arch}" for number, name in legacy.items() if oldest <= number <= minor]
    return [*tags, f"linux_{target.arch}"]


@dataclass(frozen=True)
class Wheels:
    """All that one kind of host installs, and the name of the virtual environment that results."""

    requirements: str
    files: tuple[Path, ...]
    """The lock's wheels, sorted, and the stack's own wheel last."""
    stack_wheel: str
    key: str

    @property
    def size(self) -> int:
        """Bytes of all wheels."""
        return sum(path.stat().st_size for path in self.files)


def build_wheels(lock: Lock, target: Target, stack_wheel: Path, where: str, cache: Path = CACHE) -> Wheels:
    """Fetch the wheels that fit a host, from the cache when they are there.

    Raises Refused naming a package that has no wheel for this kind of host, or whose hash differs.
    """
    requirements = lock.for_target(target)
    files: list[Path] = []
    if requirements:
        key = hashlib.sha256(f"{target}\n{requirements}".encode()).hexdigest()[:20]
        folder = cache / "wheels" / key
        if not folder.is_dir():
            _download(lock, requirements, target, folder, where)
        files = sorted(folder.glob("*.whl"))
    files.append(stack_wheel)
    return Wheels(requirements, tuple(files), stack_wheel.name, venv_key(target, requirements, files))


def venv_key(target: Target, requirements: str, files: Sequence[Path]) -> str:
    """Name a virtual environment by what decides its content: lock, wheels, Python, machine."""
    digest = hashlib.sha256(f"{target.python}\n{target.arch}\n{requirements}\n".encode())
    for path in files:
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return f"py{target.python.replace('.', '')}-{target.arch}-{digest.hexdigest()[:12]}"


def _download(lock: Lock, requirements: str, target: Target, folder: Path, where: str) -> None:
    with tempfile.TemporaryDirectory(prefix="kestrel-stack-wheels-") as name:
        out, listed = Path(name, "out"), Path(name, "requirements.txt")
        out.mkdir()
        listed.write_text(requirements)
        short = target.python.replace(".", "")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
        ]
        command += ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--dest", str(out)]
        command += ["--python-version", target.python, "--implementation", "cp"]
        for abi in (f"cp{short}", "abi3", "none"):
            command += ["--abi", abi]
        for tag in platform_tags(target):
            command += ["--platform", tag]
        command += [*lock.index_options, "-r", str(listed)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise _explained(done.stderr, target, where)
        _check_complete(requirements, out, target, where)
        _keep_folder(out, folder)


def _explained(said: str, target: Target, where: str) -> DeployError:
    missing = re.search(r"No matching distribution found for (\S+)", said)
    if missing:
        return Refused(
            f"{where}: no wheel of {missing.group(1)} for {target}; hosts install wheels only and"
            " compile nothing:"
            " pin a version that has one, or check the name"
        )
    if "DO NOT MATCH THE HASHES" in said:
        differing = re.search(r"\n\s{4}(\S+==\S+)", said)
        name = differing.group(1) if differing else "a package"
        return Refused(f"{where}: {name}: the file offered does not match the hash in the lock")
    lines = [line for line in said.splitlines() if line.startswith("ERROR")] or said.strip().splitlines()
    last = re.sub(r"//[^/@\s]*@", "//", lines[-1]) if lines else "it said nothing"
    return Failed(f"{where}: pip download failed for {target}: {last[:400]}")


def _check_complete(requirements: str, folder: Path, target: Target, where: str) -> None:
    """Refuse a lock that lacks what a wheel requires; else the host's pip would find out, much later."""
    import zipfile
    from email.parser import HeaderParser

    environment = target_environment(target)
    names = {
        canonicalize_name(Requirement(line.split(" --hash=")[0]).name) for line in requirements.splitlines()
    }
    extras = {
        canonicalize_name(r.name): r.extras
        for r in (Requirement(line.split(" --hash=")[0]) for line in requirements.splitlines())
    }
    for path in sorted(folder.glob("*.whl")):
        owner = parse_wheel_filename(path.name)[0]
        with zipfile.ZipFile(path) as wheel:
            metadata = next(
                (n for n in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)), None
            )
            if metadata is None:
                raise Refused(f"{where}: {path.name} is not a wheel (no METADATA)")
            headers = HeaderParser().parsestr(wheel.read(metadata).decode("utf-8", "replace"))
        for text in headers.get_all("Requires-Dist") or []:
            needed = Requirement(text)
            wanted = needed.marker is None or any(
                needed.marker.evaluate({**environment, "extra": extra})
                for extra in {"", *extras.get(owner, ())}
            )
            if wanted and canonicalize_name(needed.name) not in names:
                raise Refused(
                    f"{where}: {owner} needs {needed.name}, which is not in the lock: make the lock anew"
                )


# --- the bundle a host receives ----------------------------------------------------------------------


@dataclass(frozen=True)
class Bundle:
    """The one file that goes to a host."""

    path: Path
    sha256: str
    size: int


def build_bundle(archive: Archive, wheels: Wheels, *, with_wheels: bool, cache: Path = CACHE) -> Bundle:
    """Pack what a host lacks into one tar: the archive, and the wheels unless it has their venv already."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as made:
        _add(made, "app.tar.gz", archive.path.read_bytes())
        if with_wheels:
            _add(made, "requirements.txt", wheels.requirements.encode())
            for path in wheels.files:
                _add(made, f"wheels/{path.name}", path.read_bytes())
    data = packed.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = cache / "bundles" / f"{digest}.tar"
    if not path.exists():
        write_whole(path, data)
    return Bundle(path, digest, len(data))


def _add(made: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    made.addfile(member, io.BytesIO(content))


# --- the cache ---------------------------------------------------------------------------------------


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, whoever else writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as part:
        part.write(data)
    Path(part.name).replace(path)


def _keep_folder(made: Path, folder: Path) -> None:
    """Move a finished folder into the cache; when another run was faster, its result is the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as name:
        part = Path(name, "part")
        shutil.copytree(made, part)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def trim_cache(cache: Path = CACHE, keep: int = 20) -> None:
    """Remove the oldest archives and bundles; they can be made again."""
    for kind in ("archives", "bundles"):
        folder = cache / kind
        if folder.is_dir():
            for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)[keep:]:
                path.unlink(missing_ok=True)
