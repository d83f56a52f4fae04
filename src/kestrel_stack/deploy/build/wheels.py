"""The wheels of a lock for one kind of host, fetched once."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from ..errors import DeployError, Failed, Refused
from ..hoststate import Target
from .cache import CACHE, in_use, keep_folder
from .lock import Lock, target_environment


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
    """Every package with its hashes, for pip: the lock's and the stack's own."""
    files: tuple[Path, ...]
    """The lock's wheels, sorted, and the stack's own wheel last, where it is wanted."""
    key: str

    @property
    def size(self) -> int:
        """Bytes of all wheels."""
        return sum(path.stat().st_size for path in self.files)


def build_wheels(
    lock: Lock, target: Target, stack_wheel: Path | None, where: str, cache: Path = CACHE
) -> Wheels:
    """Fetch the wheels that fit a host, from the cache when they are there.

    What does not run the stack's own code has no ``stack_wheel``.

    Raises Refused naming a package that has no wheel for this kind of host, or whose hash differs.
    """
    requirements = lock.for_target(target)
    if stack_wheel is not None:
        own = parse_wheel_filename(stack_wheel.name)[0]
        if any(canonicalize_name(package.requirement.name) == own for package in lock.packages):
            raise Refused(f"{where}: {own} is added by the deploy: take it out of the lock")
    files: list[Path] = []
    if requirements:
        key = hashlib.sha256(f"{target}\n{requirements}".encode()).hexdigest()[:20]
        folder = cache / "wheels" / key
        if not in_use(folder):
            _download(lock, requirements, target, folder, where)
        files = sorted(folder.glob("*.whl"))
    if stack_wheel is not None:
        files.append(stack_wheel)
    key = venv_key(target, requirements, files)
    return Wheels(requirements + (pinned(stack_wheel) if stack_wheel else ""), tuple(files), key)


def pinned(wheel: Path) -> str:
    """Return a requirements line that only this wheel meets."""
    name, version = parse_wheel_filename(wheel.name)[:2]
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


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
        keep_folder(out, folder)


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
