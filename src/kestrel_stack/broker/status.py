"""The server's status: UP, READONLY or QUIESCENT, and the file that keeps it over restarts.

The file is Kestrel's own: one line, ``Up``, ``ReadOnly`` or ``Quiescent``, so that either can be put in the
place of the other. Source: observed on Kestrel 2.4.1. Different from it: the file is replaced by one rename
(Kestrel's is empty for a moment, and stays so when the disk is full), a status that cannot be written is
still in force until the next restart, since that is when an operator needs READONLY most, and ``Down`` in the
file is taken for damage (Kestrel would refuse everything).
"""

from __future__ import annotations

import contextlib
import logging
import os
from enum import Enum
from pathlib import Path

log = logging.getLogger("kestrel.status")

MOST_READ = 256
"""Bytes of the file that are looked at; a status takes fewer."""


class Status(Enum):
    """What the server does; the value is how Kestrel writes it."""

    UP = "Up"
    READONLY = "ReadOnly"
    QUIESCENT = "Quiescent"

    @property
    def blocks_writes(self) -> bool:
        """Say whether set, delete and the flushes are refused."""
        return self is not Status.UP

    @property
    def blocks_reads(self) -> bool:
        """Say whether get, peek and monitor are refused."""
        return self is Status.QUIESCENT


class ServerStatus:
    """The status now; UP until something else is read or set."""

    def __init__(self, file: Path | None):
        """``file`` keeps it over restarts; None keeps it nowhere."""
        self.file = file
        self.was_set = False
        self._enter(Status.UP)

    def load(self) -> None:
        """Take over what the file says; a file that says nothing is logged, and the status stays UP."""
        if self.file is None:
            return
        with contextlib.suppress(OSError):  # what comes of it is seen below, or when a status is stored
            self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.file.open("rb") as stored:
                text = stored.read(MOST_READ)
        except FileNotFoundError:
            return
        except OSError as error:
            log.error("%s: cannot read the status: %s; it is UP", self.file, error.strerror)
            return
        line = text.split(b"\n", 1)[0].removesuffix(b"\r").decode("latin-1")
        try:
            self._enter(Status[line.upper()])
        except KeyError:
            log.error("%s: no status in it (%r); it is UP", self.file, line[:40])
            return
        self.was_set = True
        if self.current is not Status.UP:
            log.warning("the status is %s, as it was before the restart", self.current.name)

    def set(self, name: str) -> bool:
        """Enter the named status (any case) and store it; False if there is no such status."""
        try:
            status = Status[name.upper()]
        except KeyError:
            return False
        before = self.current
        self._enter(status)
        self.was_set = True
        log.info("switched to status %s (previously %s)", status.name, before.name)
        self._store()
        return True

    def _enter(self, status: Status) -> None:
        self.current = status
        self.blocks_reads = status.blocks_reads
        self.blocks_writes = status.blocks_writes

    def _store(self) -> None:
        if self.file is None:
            return
        temporary = self.file.with_name(self.file.name + ".new")
        try:
            with temporary.open("w", encoding="ascii") as new:
                new.write(self.current.value + "\n")
                new.flush()
                os.fsync(new.fileno())
            temporary.replace(self.file)
        except OSError as error:
            log.error(
                "%s: cannot store the status: %s; it is %s until the next restart only",
                self.file,
                error.strerror,
                self.current.name,
            )
