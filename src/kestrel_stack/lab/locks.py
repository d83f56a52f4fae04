"""Locks between processes, by a file that the holder may remove when it is done."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from kestrel_stack.lab.errors import LabError


@contextlib.contextmanager
def held(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold the lock ``path`` for a block; the kernel releases it when the process ends, however it ends.

    Waits for another holder, or raises LabError(``busy``) at once when ``busy`` is given.
    """
    descriptor = _acquire(path, busy)
    while descriptor is None:
        descriptor = _acquire(path, busy)
    try:
        yield
    finally:
        os.close(descriptor)


def _acquire(path: Path, busy: str | None) -> int | None:
    """Return a locked descriptor, or None when the file was removed under us: then the caller tries again."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError) and busy:
            raise LabError(busy) from None
        raise
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    # The previous holder removed the file while we waited: this lock would guard nothing.
    os.close(descriptor)
    return None
