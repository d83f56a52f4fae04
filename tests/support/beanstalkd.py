"""A real beanstalkd for tests: the one on PATH, or Debian's package unpacked, never installed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from support.broker import wait_until
from support.ports import reserve

UNPACKED = Path(__file__).parents[2] / ".build" / "beanstalkd"


def program() -> str:
    """Return the program's path; RuntimeError says what to do when there is none."""
    found = shutil.which("beanstalkd")
    if found:
        return found
    unpacked = UNPACKED / "usr/bin/beanstalkd"
    if not unpacked.exists():
        unpack(["beanstalkd"], UNPACKED)
    return str(unpacked)


def unpack(packages: list[str], folder: Path) -> None:
    """Unpack Debian packages into `folder`, without running their scripts: that starts no service."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for command in (
            ["apt-get", "download", *packages],
            ["sh", "-ec", 'for package in *.deb; do dpkg -x "$package" unpacked; done'],
        ):
            run = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=120)
            if run.returncode:
                raise RuntimeError(
                    f"there is no {packages[0]} on PATH, and {' '.join(command)} failed: "
                    f"{run.stderr.strip()}; install Debian's package {packages[0]}, or run apt-get update"
                )
        # A rename is all or nothing, when two test runs come here at once.
        try:
            (Path(scratch) / "unpacked").rename(folder)
        except OSError:
            if not folder.exists():
                raise


class BeanstalkdProcess:
    """A beanstalkd on a free port of loopback, its journal in a folder; a context manager.

    The journal is synced at most `sync_ms` after a write; 0 is before every reply.
    """

    host = "127.0.0.1"

    def __init__(self, folder: Path, largest: int = 65536, sync_ms: int = 0):
        self.folder = folder
        self.largest = largest
        self.sync_ms = sync_ms
        self.port = 0
        self.process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> BeanstalkdProcess:
        if not self.port:
            self.port = reserve()
        self.process = subprocess.Popen(
            [
                *(program(), "-l", self.host, "-p", str(self.port)),
                *("-b", str(self.folder), "-f", str(self.sync_ms), "-z", str(self.largest)),
            ]
        )
        wait_until(self._answers, "beanstalkd to answer")
        return self

    def kill(self) -> None:
        """SIGKILL: a crash of the process."""
        self.process.kill()
        self.process.wait(60)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "beanstalkd ended"
        try:
            socket.create_connection((self.host, self.port), 1).close()
        except OSError:
            return False
        return True

    def __enter__(self) -> BeanstalkdProcess:
        return self.start()

    def __exit__(self, *exc) -> None:
        if self.process and self.process.poll() is None:
            self.kill()
