"""Starting and stopping an engine of our own, in namespaces apart from whatever engine this machine runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.docker
ROOT = Path(__file__).resolve().parents[2]
# Two daemons in one network namespace would share bridge and firewall chains.
INSIDE = """
set -eu
ip link set lo up 2>/dev/null || true
mount -t tmpfs none /run
mount -t tmpfs none /var/lib/docker
exec "$@"
"""


def unshare_works() -> bool:
    if os.geteuid() != 0 or not shutil.which("dockerd") or not shutil.which("unshare"):
        return False
    done = subprocess.run(
        ["unshare", "-m", "-n", "sh", "-c", "mount -t tmpfs none /run"], capture_output=True
    )
    return done.returncode == 0


def inside(state: Path, script: str) -> dict[str, Any]:
    """Run Python in namespaces without an engine; the script fills ``told``, which is returned."""
    program = f"""
import json, os, signal, subprocess, sys, time
from pathlib import Path
from kestrel_stack.lab import daemon, engine
from kestrel_stack.lab.errors import LabError
state = Path({str(state)!r})
told = {{}}
{script}
print(json.dumps(told))
"""
    done = subprocess.run(
        ["unshare", "-m", "-n", "bash", "-c", INSIDE, "-", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(autouse=True)
def needs_namespaces() -> None:
    if not unshare_works():
        pytest.skip("needs root, dockerd and namespaces (unshare -m -n)")


def test_an_engine_is_started_where_none_answers_and_stopped_again(tmp_path: Path) -> None:
    told = inside(
        tmp_path / "engine",
        """
told["before"] = engine.answers()
told["started"] = daemon.ensure(state)
told["answers"] = engine.answers()
told["again"] = daemon.ensure(state)
pid = daemon.ours(state).pid
told["stopped"] = daemon.stop(state)
told["gone"] = daemon.process(pid) is None
told["after"] = engine.answers()
""",
    )
    assert told == {
        "before": False,
        "started": True,
        "answers": True,
        "again": False,
        "stopped": "stopped the Docker engine that bin/up started",
        "gone": True,
        "after": False,
    }
    assert not (tmp_path / "engine").exists()


def test_an_engine_that_was_killed_is_started_again_over_what_it_left(tmp_path: Path) -> None:
    told = inside(
        tmp_path / "engine",
        """
daemon.ensure(state)
first = daemon.ours(state)
containerd = int(Path("/run/docker/containerd/containerd.pid").read_text())
for pid in (first.pid, containerd):
    os.kill(pid, signal.SIGKILL)
while first.alive() or daemon.process(containerd):
    time.sleep(0.02)
told["left"] = sorted(path for path in ("/run/docker.pid", "/run/docker.sock") if os.path.exists(path))
# The kernel has given the numbers to other programs by now.
Path("/run/docker.pid").write_text(str(os.getpid()))
Path("/run/docker/containerd/containerd.pid").write_text(str(os.getpid()))
told["started"] = daemon.ensure(state)
told["other"] = daemon.ours(state) != first
daemon.stop(state)
""",
    )
    assert told == {"left": ["/run/docker.pid", "/run/docker.sock"], "started": True, "other": True}


def test_an_engine_that_does_not_come_up_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    told = inside(
        tmp_path / "engine",
        """
Path("/var/lib/docker/image").write_text("not a folder")
try:
    daemon.ensure(state)
except LabError as error:
    told["error"] = str(error)
told["ours"] = daemon.ours(state) is not None
""",
    )
    assert "did not come up" in told["error"]
    assert "not a directory" in told["error"]
    assert told["ours"] is False


def test_an_engine_that_somebody_else_started_is_not_stopped(tmp_path: Path) -> None:
    told = inside(
        tmp_path / "engine",
        """
other = state.with_name("other")
daemon.ensure(other)
told["started"] = daemon.ensure(state)
told["stopped"] = daemon.stop(state)
told["answers"] = engine.answers()
daemon.stop(other)
""",
    )
    assert told == {"started": False, "stopped": None, "answers": True}
