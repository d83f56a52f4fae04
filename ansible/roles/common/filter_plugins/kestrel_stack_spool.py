"""Filters for the folder of the journals: what role kestrel's probe of a host found, judged.

They run on the controller, touch nothing, and return lists of one-line sentences: an empty list is a pass.
Nothing of kestrel_stack is imported: Ansible runs them with its own Python, where it may not be installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_MOUNT_KEYS = ("src", "fstype", "opts")
_MEMORY = ("tmpfs", "ramfs")


def mount_problems(mount: Any) -> list[str]:
    """Say what is wrong with kestrel_spool_mount; empty is no mount."""
    if not mount:
        return []
    example = "write {src: /dev/disk/by-uuid/..., fstype: ext4}"
    if not isinstance(mount, Mapping):
        return [f"kestrel_spool_mount is no mapping: {example}"]
    problems = [
        f"kestrel_spool_mount: unknown option {key}: known are {', '.join(_MOUNT_KEYS)}"
        for key in mount
        if key not in _MOUNT_KEYS
    ]
    for key in _MOUNT_KEYS:
        value = str(mount.get(key) or "")
        if not value and key != "opts":
            problems.append(f"kestrel_spool_mount has no {key}: {example}")
        elif re.search(r"[\s\0]", value):
            problems.append(f"kestrel_spool_mount: {key} {value!r} has a space: {example}")
    source = str(mount.get("src") or "")
    if source and str(mount.get("fstype")) not in _MEMORY and not re.match(r"/.|[A-Z]+=.|[^/]+:/", source):
        problems.append(
            f"kestrel_spool_mount: src {source} is no device:"
            " give a path like /dev/disk/by-uuid/..., or UUID=..."
        )
    return problems


def _some(named: Sequence[str], count: int) -> str:
    more = count - len(named)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def size_text(size: float) -> str:
    """Write a number of bytes as a person would, rounded."""
    for unit, factor in (("GB", 1024**3), ("MB", 1024**2), ("KB", 1024)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}" if size < 1000 * factor else f"{size / factor:.0f} {unit}"
    return f"{size:.0f} bytes"


def floor_problems(spool: Mapping[str, Any], floor: int, path: str) -> list[str]:
    """Say why a server could never be UP above `floor` bytes of free space; 0 is no floor."""
    if not floor or floor + floor // 10 <= spool["total"]:
        return []
    return [
        f"kestrel_spool_floor is {size_text(floor)}, and the file system of {path} holds"
        f" {size_text(spool['total'])}: the server would never be UP;"
        " set kestrel_spool_floor lower (a tenth more must fit), or give it more room"
    ]


def spool_problems(
    spool: Mapping[str, Any], mount: Mapping[str, Any], floor: int, path: str, user: str
) -> list[str]:
    """Say why the journals cannot be kept in the folder `path`, of which `spool` is what the probe found."""
    if spool["exists"] and not spool["folder"]:
        return [f"{path} is no folder: move it away"]
    problems = _mount(spool, mount, path)
    if spool["owner"] not in (None, "root", user):
        problems.append(
            f"{path} belongs to {spool['owner']}: if its journals are to be served here, stop what uses it"
            f" and run chown -R root: {path} (this role passes them on to {user}), else move it away"
        )
    elif spool["others"]:
        named = [f"{name} ({owner})" for name, owner in spool["others"]]
        problems.append(
            f"{path} has files of other users: {_some(named, spool['others_count'])}: if they are journals to"
            f" be served here, run chown -R {user}: {path}, else move them away"
        )
    if spool["foreign"]:
        named = [f"{name} {why}" for name, why in spool["foreign"]]
        problems.append(
            f"{path} has files that are no journals, and each would become a queue or keep the server from"
            f" starting: {_some(named, spool['foreign_count'])}. Move them away"
        )
    # A file system that is not mounted yet is measured once it is.
    if spool["mounted"] or not mount:
        problems += floor_problems(spool, floor, path)
    return problems


def _mount(spool: Mapping[str, Any], mount: Mapping[str, Any], path: str) -> list[str]:
    if not mount:
        return []
    if spool["in_fstab"]:
        return [f"/etc/fstab mounts {path}, and so does kestrel_spool_mount: remove one of them"]
    if spool["mounted"]:
        if spool["is_source"] is False:
            return [
                f"kestrel_spool_mount says {mount.get('src')}, but {spool['mounted']['source']} is mounted on"
                f" {path}: set it to that, or move the journals (docs/kestrel.md says how)"
            ]
        return []
    if spool["entries"]:
        source = mount.get("src")
        return [
            f"{path} holds {_some(spool['first'], spool['entries'])}, which {source} would hide when it is"
            f" mounted there: stop Kestrel, mount {source} on /mnt, move everything from {path} to it,"
            " unmount it, and run this again"
        ]
    return []


def spool_warnings(spool: Mapping[str, Any], mount: Mapping[str, Any], floor: int, path: str) -> list[str]:
    """Say what will work and still surprise."""
    warnings = []
    kind = str(mount.get("fstype", "")) if mount else (spool["mounted"] or {}).get("fstype", "")
    if kind in _MEMORY:
        warnings.append(f"{path} is on a {kind}, in memory: a reboot loses every item")
    if (spool["mounted"] or not mount) and spool["free"] < floor <= spool["total"]:
        warnings.append(
            f"only {size_text(spool['free'])} are free in the file system of {path}, less than"
            f" kestrel_spool_floor ({size_text(floor)}): the server takes no items until there is more room"
        )
    return warnings


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Name each filter."""
        return {
            "kestrel_stack_mount_problems": mount_problems,
            "kestrel_stack_floor_problems": floor_problems,
            "kestrel_stack_spool_problems": spool_problems,
            "kestrel_stack_spool_warnings": spool_warnings,
        }
