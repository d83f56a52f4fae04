"""A controller of Debian 13, as a test: a fresh clone in a container, and ``bin/test unit newcomer`` in it.

There Python and ansible-core are newer than on Debian 12. The container has the engine's socket, so what
``bin/up`` makes in it are containers beside it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from kestrel_stack.lab import engine, hosts, image, newcomer, programs
from kestrel_stack.lab.errors import LabError
from kestrel_stack.lab.inventory import CHECKOUT

SUITE = "trixie"
STAGES = ("unit", "newcomer")
SOCKET = Path("/var/run/docker.sock")
PIP_SETTINGS = ("/etc/pip.conf", ".config/pip/pip.conf", ".pip/pip.conf")
"""Where this machine may say which index pip asks: for all users, and in a home folder."""
KEPT = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT")
PROXIES = ("http_proxy", "https_proxy", "no_proxy")


def run(checkout: Path = CHECKOUT) -> int:
    """Run it and return the exit code of its ``bin/test``; raises LabError where that cannot be started."""
    engine.require()
    # It has what this machine needs to reach packages.
    made_from, _ = image.ensure(SUITE)
    digest = hashlib.sha256(str(checkout).encode()).hexdigest()[:8]
    box = f"kestrel-stack-controller-{digest}"
    # No folder of this machine has this name, so no lab of another checkout is meant; short, since sockets
    # lie below it.
    folder = f"/controller-{digest}"
    _remove(box, folder)
    try:
        socket = f"{SOCKET}:{SOCKET}"
        engine.docker(
            *("run", "--detach", "--init", "--name", box, "--network", "host", "--volume", socket),
            *(made_from, "sleep", "infinity"),
        )
        _inside(box, "mkdir", "-p", folder, "/root/.config/pip", "/root/.pip")
        for name in PIP_SETTINGS:
            path = Path.home() / name
            if path.is_file():
                engine.docker("cp", str(path), f"{box}:{Path('/root') / name}")
        with tempfile.TemporaryDirectory(prefix="kestrel-stack-controller-") as temporary:
            clone = Path(temporary) / "kestrel-stack"
            newcomer.git_clone(checkout, clone)
            engine.docker("cp", str(clone), f"{box}:{folder}")
        _inside(box, "chown", "-R", "root:root", folder)
        kept = [f"{name}={os.environ[name]}" for name in (*KEPT, *PROXIES) if name in os.environ]
        settings = ["CI=true", f"TMPDIR={folder}", *kept]
        command = [engine.client(), "exec", "--workdir", f"{folder}/kestrel-stack"]
        command += [word for setting in settings for word in ("--env", setting)]
        command += [box, "bin/test", *STAGES]
        return programs.run_through(command, environment=engine.environment(), cwd=checkout)
    finally:
        _remove(box, folder)


def _inside(box: str, *command: str) -> None:
    done = engine.exec_in(box, *command)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command[:2])} in the container failed: {engine.last_line(done.stderr)}")


def _remove(box: str, folder: str) -> None:
    """Remove the container, and what a run in it that was cut short has left beside it."""
    engine.docker("rm", "--force", "--volumes", box, check=False)
    shown = f'{{{{.ID}}}} {{{{.Label "{hosts.CHECKOUT_LABEL}"}}}}'
    for kind, all_of_them, removal in (
        ("container", ["--all"], ["rm", "--force", "--volumes"]),
        ("network", [], ["rm"]),
    ):
        listed = engine.docker(kind, "ls", *all_of_them, "--format", shown).stdout
        for line in listed.splitlines():
            identity, _, whose = line.partition(" ")
            if whose.startswith(f"{folder}/"):
                engine.docker(kind, *removal, identity, check=False)


if __name__ == "__main__":
    programs.stage_program("controller", run)
