"""The Docker client: one place that starts it, and turns its failures into one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from kestrel_stack.lab.errors import LabError

DEBIAN_CLIENT = "/usr/bin/docker"


def client() -> str:
    """Return the Docker client's path: ``KESTREL_STACK_DOCKER``, else Debian's, else the first on PATH.

    Debian's comes first because it has the same version as Debian's engine; a newer client from elsewhere may
    insist on an API or a builder which that engine lacks.

    Raises LabError when there is none.
    """
    named = os.environ.get("KESTREL_STACK_DOCKER")
    if named:
        return named
    if Path(DEBIAN_CLIENT).exists():
        return DEBIAN_CLIENT
    found = shutil.which("docker")
    if found is None:
        raise LabError(
            "no docker client found: run bin/up, which installs one (or: apt-get install -y docker.io)"
        )
    return found


def environment() -> dict[str, str]:
    """Return the client's environment: the classic builder, which needs no plugin."""
    return {**os.environ, "DOCKER_BUILDKIT": "0", "DOCKER_CLI_HINTS": "false"}


def docker(
    *args: str, check: bool = True, stdin: IO[bytes] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``docker ARGS`` and return what it printed.

    Raises LabError with the last line of its error output when it fails and ``check`` is true.
    """
    done = subprocess.run(
        [client(), *args],
        stdin=stdin if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    if check and done.returncode != 0:
        raise LabError(f"docker {args[0]} failed: {last_line(done.stderr or done.stdout)}")
    return done


def last_line(text: str) -> str:
    """Return the last line of ``text`` that is not blank, or a note that there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "(it printed nothing)"


def answers() -> bool:
    """Tell whether an engine answers ``docker info``."""
    try:
        return docker("info", "--format", "{{.ServerVersion}}", check=False).returncode == 0
    except LabError:
        return False


def require() -> None:
    """Raise LabError, with the engine's own reason, unless an engine answers."""
    # Not by info: the reason that it gives is of its own template, with Debian 12's client.
    done = docker("ps", "--quiet", check=False)
    if done.returncode != 0:
        raise LabError(
            f"no Docker engine answers: {last_line(done.stderr or done.stdout)}. bin/up starts one"
        )


def inspect(kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return ``docker KIND inspect NAMES`` as data; an empty list for no names.

    ``kind`` is ``container``, ``network`` or ``image``. Raises LabError when one of them does not exist.
    """
    if not names:
        return []
    return json.loads(docker(kind, "inspect", *names).stdout)


def exec_in(container: str, *command: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command as root inside a container and return its result, whatever it is."""
    done = subprocess.run(
        [client(), "exec", *(["-i"] if stdin is not None else []), container, *command],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        env=environment(),
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )
