"""Uploads with rsync: to another machine over ssh, to an rsync daemon, or to a folder of this machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import Failed
from .publish import Limits, Upload
from .spec import Rsync

STILL_SECONDS = 30
"""A connection on which nothing moves for this long is given up."""
REMOTE_SHELL = "ssh -o BatchMode=yes -o ConnectTimeout=10"
"""In the environment: as an option it would mean a daemon behind a shell where a target is rsync://."""
POLL_SECONDS = 0.1


def send(uploads: Sequence[Upload], target: Rsync, limits: Limits) -> set[str]:
    """Upload what is missing there or has another size; return the names.

    rsync writes each file beside its place and renames it when it is whole. Raises Failed, Cancelled.
    """
    with tempfile.TemporaryDirectory(prefix="kestrel-stack-assets-") as name:
        staging = Path(name)
        _stage(uploads, staging)
        said = _run(_command(staging, target), target, limits)
    names = {upload.name for upload in uploads}
    return names & set(said.splitlines())


def _command(staging: Path, target: Rsync) -> list[str]:
    command = ["rsync", "--recursive", "--size-only", "--out-format=%n", f"--timeout={STILL_SECONDS}"]
    # No times, owners or modes, and nothing is deleted: the target's folders stay as their owner set them up.
    return [*command, "--", f"{staging}/", target.target]


def _stage(uploads: Sequence[Upload], staging: Path) -> None:
    for upload in uploads:
        path = staging / upload.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(upload.data)
    # New files get these modes there, whatever umask this machine has; the web server there must read them.
    for path in staging.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _run(command: Sequence[str], target: Rsync, limits: Limits) -> str:
    try:
        # A session of its own: Ctrl-C reaches us, and we end it.
        process = subprocess.Popen(
            command,
            env={"RSYNC_RSH": REMOTE_SHELL, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise Failed(f"assets.cdn: {target}: rsync is not installed on this machine") from None
    try:
        while True:
            limits.check(target)
            try:
                said, complaints = process.communicate(timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate()
    if process.returncode != 0:
        lines = [line.strip() for line in complaints.splitlines() if line.strip()]
        reason = lines[0][:300] if lines else f"rsync ended with {process.returncode} and said nothing"
        raise Failed(f"assets.cdn: {target}: {reason}")
    return said
