"""Processes on this machine that end with the one that started them, however that ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

SOURCE = Path(__file__).resolve().parents[1]
"""The folder that ``kestrel_stack`` is imported from."""
PHP = SOURCE.parent / "php"
"""The PHP half in this checkout."""


def start(
    command: Sequence[str], folder: Path, environ: Mapping[str, str], output: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, both its outputs going to `output`; `OSError` when it cannot.

    Only the main thread may: the kernel kills the process when the thread that started it ends.
    """
    return subprocess.Popen(
        # Killed by the kernel when this process dies: nothing outlives it.
        ["setpriv", "--pdeathsig", "KILL", "--", *command],
        cwd=folder,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        # Ctrl-C is for the one that started it, which then ends them in order.
        start_new_session=True,
    )


def end(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Ask processes to end and wait; what does not end in `seconds`, all together, is killed."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def read_port(file: Path) -> int | None:
    """Return the port that a process has written to its port file; None when it has not yet."""
    try:
        return int(json.loads(file.read_text())["port"])
    except FileNotFoundError:
        return None


def describe(code: int) -> str:
    """Return how a process ended, by its return code."""
    if code >= 0:
        return f"ended with {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def clean_environment() -> dict[str, str]:
    """Return the environment without what would point a process at somebody's real stack."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("KESTREL_STACK_", "SUPERVISOR_", "SENTRY_"))
    }


def no_php(php: Path, extensions: Sequence[str], packages: str) -> str | None:
    """Return why PHP workers cannot run here; None when they can. `php` is the folder of the PHP half."""
    if not (php / "bin" / "consumer").exists():
        return f"there is no {php / 'bin' / 'consumer'}"
    program = shutil.which("php")
    if program is None:
        return f"php is not installed (apt-get install {packages})"
    done = subprocess.run([program, "-m"], capture_output=True, check=False, text=True)
    listed = done.stdout.lower().split()
    missing = [name for name in extensions if name not in listed]
    return f"this php has no {', '.join(missing)} (apt-get install {packages})" if missing else None
