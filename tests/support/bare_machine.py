"""A machine that has what a test puts there: the real bin/*, and a PATH of stand-ins."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

from support.deploy import ROOT

# Debian's minimal install, as far as the scripts use it.
MINIMAL = (
    *(
        "bash",
        "env",
        "dirname",
        "basename",
        "sha256sum",
        "cut",
        "cat",
        "cp",
        "grep",
        "tail",
        "head",
        "sed",
        "mkdir",
    ),
    *(
        "rm",
        "mv",
        "ls",
        "mktemp",
        "flock",
        "sleep",
        "timeout",
        "tee",
        "uname",
        "date",
        "sort",
        "tr",
        "wc",
        "touch",
    ),
)


class Machine:
    """A checkout with the real scripts, and a PATH made of nothing but what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.path = folder / "path"
        self.calls = folder / "calls"
        self.path.mkdir(parents=True)
        for name in MINIMAL:
            found = shutil.which(name)
            if found:
                (self.path / name).symlink_to(found)
        shutil.copytree(ROOT / "bin", self.checkout / "bin")
        (self.checkout / "requirements").mkdir()
        (self.checkout / "requirements" / "controller.txt").write_text("# nothing\n")
        self.environment = {
            "PATH": str(self.path),
            "HOME": str(folder),
            "KESTREL_STACK_DOCKER": "stand-in-docker",
            "CALLS": str(self.calls),
            "LANG": "C.UTF-8",
        }

    def has(self, name: str, script: str = "exit 0") -> None:
        """Put a program on PATH that notes its call and runs a shell script."""
        program = self.path / name
        program.unlink(missing_ok=True)
        program.write_text(f'#!/bin/bash\necho "{name} $*" >>"$CALLS"\n{script}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)

    def lacks(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def called(self, start: str) -> list[str]:
        if not self.calls.exists():
            return []
        return [line for line in self.calls.read_text().splitlines() if line.startswith(start)]

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.checkout / command[0]), *command[1:]],
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def changed_nothing(self) -> bool:
        return not (self.checkout / ".lab").exists() and not (self.checkout / ".venv").exists()


# A Python that makes a folder for a venv, and whose pip and lab do nothing but note that they were called.
WORKING_PYTHON = """
case "$*" in
    *version_info*) echo 3.12 ;;
    *platform*) echo "3.12.1 /usr" ;;
    "-m venv "*) mkdir -p "$3/bin"; echo home=/usr >"$3/pyvenv.cfg"; cp "$0" "$3/bin/python" ;;
    "-m pip "*) eval "$PIP_DOES" ;;
    "-m kestrel_stack.lab "* | "-m kestrel_stack.dev "*) echo "took over: $*" ;;
    *) echo "not a call that these tests expect: $*" >&2; exit 99 ;;
esac
"""
ANSWERING = 'case "$1" in info | image | images) echo yes ;; esac'


def whole_machine(folder: Path) -> Machine:
    """Return a machine that has everything and is root."""
    made = Machine(folder)
    made.has("id", "echo 0")
    made.has("python3", WORKING_PYTHON)
    for name in ("git", "ssh", "ssh-keygen", "mmdebstrap", "apt-get"):
        made.has(name)
    made.has("stand-in-docker", ANSWERING)
    made.has("dockerd")
    return made
