"""The application's requirements lock, and what of it is meant for one kind of host."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ..errors import Refused
from ..hoststate import Target


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
