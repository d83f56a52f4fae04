"""What a newcomer does, as a test: a fresh clone in an empty folder, ``bin/up`` twice, ``bin/down`` twice.

One host that is everything by default; with ``KESTREL_STACK_LONG=1`` the five that ``bin/up`` makes unasked.
The roles on five hosts are proved by the scenario ``default`` in every run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from kestrel_stack.lab import engine, hosts, programs
from kestrel_stack.lab.errors import LabError
from kestrel_stack.lab.inventory import CHECKOUT
from kestrel_stack.lab.progress import say

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where a newcomer's programs are; Pythons that somebody built for this machine are elsewhere."""
OURS = ("PYTHONPATH", "ANSIBLE_CONFIG", "ANSIBLE_HOME", "KESTREL_STACK_VENV", "VIRTUAL_ENV")


def run(checkout: Path = CHECKOUT) -> int:
    """Run it and return 0; raises LabError naming the step that did not do what it must.

    The clone has what is committed, and makes a virtual environment of its own from the distribution's
    Python: Debian 12's 3.11.2 lacks what later patch releases of 3.11 have.
    """
    env = "lab" if os.environ.get("KESTREL_STACK_LONG") == "1" else "single"
    more = [] if env == "lab" else ["--env", env]
    with tempfile.TemporaryDirectory(prefix="kestrel-stack-newcomer-") as folder:
        clone = Path(folder).resolve() / "kestrel-stack"
        git_clone(checkout, clone)
        try:
            first = _program(clone, "bin/up", "--yes", *more)
            _expect(first, 0, f"{env} is up in", "the first bin/up")
            second = _program(clone, "bin/up", "--yes", *more)
            _expect(second, 0, "nothing changed", "the second bin/up")
            _expect(second, 0, "changed=0", "the second bin/up")
        finally:
            removed = _program(clone, "bin/down")
        _expect(removed, 0, "removed", "bin/down")
        left = engine.docker(
            "ps", "--all", "--quiet", f"--filter=label={hosts.CHECKOUT_LABEL}={clone}"
        ).stdout.split()
        if left:
            raise LabError(f"bin/down left containers of the clone: {', '.join(left)}")
        _expect(_program(clone, "bin/down"), 0, "nothing is there", "the second bin/down")
        changed = subprocess.run(
            ["git", "-C", str(clone), "status", "--porcelain"], capture_output=True, text=True, check=True
        ).stdout
        if changed:
            raise LabError(f"bin/up left files that git sees: {' '.join(changed.split())}")
    return 0


def git_clone(checkout: Path, clone: Path) -> None:
    """Make a clone of what is committed; raises LabError."""
    # The checkout of a CI job often belongs to another user; it is read only.
    command = ["git", "-c", "safe.directory=*", "clone", "--quiet", "--no-local", str(checkout), str(clone)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"git clone failed: {engine.last_line(done.stderr)}")


def _program(clone: Path, *command: str) -> tuple[int, str]:
    say(f"$ {' '.join(command)}")
    environment = {key: value for key, value in os.environ.items() if key not in OURS}
    environment |= {"CI": "true"}
    if shutil.which("python3", path=SYSTEM_PATH):
        environment["PATH"] = SYSTEM_PATH
    lines: list[str] = []

    def show(line: str) -> None:
        lines.append(line)
        say(line.rstrip("\n"))

    code = programs.run_through(
        [str(clone / command[0]), *command[1:]], environment=environment, cwd=clone, on_line=show
    )
    return code, "".join(lines)


def _expect(done: tuple[int, str], code: int, text: str, what: str) -> None:
    if done[0] != code:
        raise LabError(f"{what} ended with exit code {done[0]}, not {code}")
    if text not in done[1]:
        raise LabError(f"{what} did not say {text!r}")


if __name__ == "__main__":
    programs.stage_program("newcomer", run)
