"""Which files of a folder this process has open."""

import os
from pathlib import Path


def open_in(folder: Path) -> dict[int, str]:
    """Return paths by descriptor, also of files that are gone from the folder (`` (deleted)``)."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:  # the listing's own
            continue
        if target.startswith(f"{folder}/"):
            found[int(link.name)] = target
    return found


def close_in(folder: Path) -> None:
    """Close them all, as the end of the process would."""
    for fd in open_in(folder):
        os.close(fd)
