"""The processes of a demo: each has a log file of its own, and ends with the demo, however that ends."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kestrel_stack import processes
from kestrel_stack.demo.errors import DemoError

START_SECONDS = 20.0
"""Seconds that a process gets to say on which port it listens."""
STOP_SECONDS = 5.0
"""Seconds that the processes get to end after SIGTERM, all together."""


class Stage:
    """Processes by name, with their logs in `folder`; a context manager that ends them."""

    def __init__(self, folder: Path, environ: Mapping[str, str]):
        self.folder = folder
        self._environ = dict(environ)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {}

    @property
    def names(self) -> list[str]:
        """The names of the processes, in the order in which they were started."""
        return list(self._processes)

    def start(self, name: str, command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        """Start a process; its output goes to ``NAME.log``."""
        self._commands[name] = command, environ or {}
        try:
            with self.log(name).open("ab") as log:
                self._processes[name] = processes.start(
                    command, self.folder, {**self._environ, **(environ or {})}, log
                )
        except OSError as exc:
            raise DemoError(f"{name} could not be started: {exc.strerror}: {exc.filename}") from None

    def port(self, name: str) -> int:
        """Wait until the process has written its port to ``NAME.port``, and return it."""
        file = self.folder / f"{name}.port"
        deadline = time.monotonic() + START_SECONDS
        while (port := processes.read_port(file)) is None:
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"{name} did not listen after {START_SECONDS:g} s; see {self.log(name)}")
            time.sleep(0.01)
        return port

    def check(self) -> None:
        """Raise `DemoError` when a process has ended that nobody told to."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                said = self.log(name).read_text(errors="replace").strip().splitlines()
                last = f": {said[-1]}" if said else ""
                raise DemoError(f"{name} ended with {process.returncode}{last}")

    def kill_and_restart(self, name: str) -> None:
        """SIGKILL a process and start it again, as supervisor would."""
        self._processes[name].kill()
        self._processes[name].wait()
        self.start(name, *self._commands[name])

    def log(self, name: str) -> Path:
        """Return the process's log file."""
        return self.folder / f"{name}.log"

    def terminate(self, names: Sequence[str]) -> None:
        """Ask processes to end and wait; what does not end in time is killed."""
        ending = [self._processes.pop(name) for name in names if name in self._processes]
        processes.end(ending, STOP_SECONDS)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate(list(reversed(self.names)))
