"""The folder ``.kestrel-dev`` in an application: what is queued, what was written for it, and a lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from kestrel_stack.dev.errors import DevError

NAME = ".kestrel-dev"
MARK = "KESTREL_STACK_DEV"
"""In the environment of everything that bin/dev starts: the folder that it runs for."""


class Folder:
    """The folder of one application, held by one bin/dev at a time; a context manager that holds it.

    Raises `DevError` when another has it, or when it cannot be written.
    """

    def __init__(self, app: Path):
        self.app = app
        self.path = app / NAME
        self.spool = self.path / "spool"
        self.web = self.path / "web"
        self._lock = self.path / "lock"
        self._descriptor: int | None = None

    def __enter__(self) -> Folder:
        try:
            self.path.mkdir(exist_ok=True)
            # Nothing in here belongs into a repository, this file included.
            (self.path / ".gitignore").write_text("*\n")
            self._descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise DevError(f"{self.path} cannot be written: {exc.strerror}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DevError(f"it already runs for {self.app}{self._other()}; end that one first") from None
        self.tell({"pid": os.getpid()})
        end_leftovers(self.app)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            # The file stays: who waits for a lock must not wait for one that has been removed.
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def tell(self, about: dict[str, Any]) -> None:
        """Write who holds the folder, for the one that is refused."""
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(about).encode(), 0)

    def _other(self) -> str:
        try:
            other = json.loads(self._lock.read_text())
            web = f", kestrel-web at {other['web']}" if "web" in other else ""
            return f" (pid {other['pid']}{web})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def empty(self) -> None:
        """Remove what is queued and what kestrel-web remembers."""
        for path in (self.spool, self.web):
            try:
                if path.is_symlink():
                    path.unlink()
                elif path.exists():
                    shutil.rmtree(path)
            except OSError as exc:
                raise DevError(f"{path} cannot be emptied: {exc.strerror}") from None

    def make(self) -> None:
        """Make the folders that are not there."""
        for path in (self.spool, self.web):
            path.mkdir(mode=0o700, exist_ok=True)


def end_leftovers(app: Path) -> int:
    """Kill what bin/dev has started for `app` and still runs, such as a program in a job's background.

    Returns how many there were. Only who holds the folder may: nobody else's are meant then.
    """
    mark = f"{MARK}={app}".encode()
    found = 0
    for entry in Path("/proc").glob("[0-9]*"):
        # Others' processes cannot be read, and some end meanwhile.
        with contextlib.suppress(OSError):
            if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
                found += 1
    return found
