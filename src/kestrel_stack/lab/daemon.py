"""Starts a Docker engine where none answers, remembers that it did, and stops only that one.

Where systemd runs it is asked to; elsewhere (a container, a minimal machine) ``dockerd`` is started directly,
with its default folders, since a second set of them in one network namespace shares bridge and firewall
chains with the first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kestrel_stack.lab import engine, hosts
from kestrel_stack.lab.errors import LabError

START_SECONDS = 60.0
STOP_SECONDS = 60.0
DEBIAN_DAEMON = "/usr/sbin/dockerd"
RUN = Path("/var/run")
SYSTEMD = Path("/run/systemd/system")
# Of daemons that were killed. dockerd and its containerd refuse to start when the process number in such a
# file exists, whatever program has it by now.
PID_FILES = {
    "docker.pid": "dockerd",
    "docker-ssd.pid": "dockerd",
    "docker/containerd/containerd.pid": "containerd",
    "containerd/containerd.pid": "containerd",
}


@dataclass(frozen=True)
class Process:
    """A process; the same one for as long as number and start time (clock ticks since boot) are the same."""

    pid: int
    started: int

    def alive(self) -> bool:
        """Tell whether this very process still runs (a zombie does not)."""
        return process(self.pid) == self


def _stat(pid: int) -> list[str]:
    # The second field is the program's name in parentheses and may contain spaces: state is the first field
    # after it.
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def process(pid: int) -> Process | None:
    """Return the process with this number, or None when there is none or it is a zombie."""
    try:
        fields = _stat(pid)
    except OSError:
        return None
    return None if fields[0] == "Z" else Process(pid, int(fields[19]))


def program_name(pid: int) -> str | None:
    """Return the name of a running process's program (at most 15 characters), or None."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def remove_stale_pid_files(run: Path = RUN) -> list[Path]:
    """Remove pid files whose process is gone, or is another program by now; return those removed."""
    removed = []
    for name, program in PID_FILES.items():
        path = run / name
        try:
            number = int(path.read_text(encoding="ascii").strip() or "0")
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            number = 0
        if number <= 0 or process(number) is None or program_name(number) != program:
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def command(mtu: int) -> list[str]:
    """Return the command that starts the daemon; ``mtu`` (bytes) is named where the way out is narrow."""
    daemon = DEBIAN_DAEMON if Path(DEBIAN_DAEMON).exists() else shutil.which("dockerd")
    if daemon is None:
        raise LabError("no Docker engine answers and dockerd is missing: apt-get install -y docker.io")
    return [daemon, *([f"--mtu={mtu}"] if mtu < 1500 else [])]


def ensure(state: Path) -> bool:
    """Return whether an engine had to be started; one that answers is used as it is.

    ``state`` is the folder for its log and for the note of what we started. Raises LabError with the log's
    end when it does not come up, and when starting one needs root.
    """
    if os.environ.get("KESTREL_STACK_ENGINE_STARTED") == "1" and engine.answers():
        # The package's own script started it a moment ago, on our behalf.
        with contextlib.suppress(OSError, ValueError):
            remember(state, int((RUN / "docker.pid").read_text(encoding="ascii")))
        return True
    if engine.answers():
        return False
    if SYSTEMD.is_dir():
        _start_with_systemd(state)
        return True
    if os.geteuid() != 0:
        raise LabError(
            "no Docker engine answers, and starting one needs root: run bin/up as root, or start Docker"
        )
    remove_stale_pid_files()
    _start(state, command(hosts.default_mtu(Path("/proc/net/route").read_text(encoding="ascii"))))
    return True


def _systemctl(*arguments: str) -> str:
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    done = subprocess.run([*sudo, "systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"systemctl {' '.join(arguments)} failed: {engine.last_line(done.stderr)}")
    return done.stdout.strip()


def _start_with_systemd(state: Path) -> None:
    _systemctl("start", "docker")
    if not wait_until_answers(None):
        raise LabError(
            "systemd started docker, but no engine answers `docker info`: see journalctl -u docker"
        )
    with contextlib.suppress(ValueError):
        remember(state, int(_systemctl("show", "--property=MainPID", "--value", "docker")))


def _start(state: Path, arguments: Sequence[str]) -> None:
    state.mkdir(parents=True, exist_ok=True)
    log = state / "dockerd.log"
    with log.open("wb") as output:
        # A session of its own: Ctrl-C in bin/up must not stop the engine that its containers run on.
        started = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
        )
    remember(state, started.pid)
    if not wait_until_answers(started):
        with contextlib.suppress(ProcessLookupError):
            started.terminate()
        started.wait(STOP_SECONDS)
        (state / "started").unlink(missing_ok=True)
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise LabError(f"the Docker engine did not come up; the end of {log}:\n{tail}")


def wait_until_answers(started: subprocess.Popen[bytes] | None, seconds: float = START_SECONDS) -> bool:
    """Wait until an engine answers; False when ``started`` ends first or ``seconds`` have passed."""
    end = time.monotonic() + seconds
    while not engine.answers():
        if time.monotonic() >= end or (started is not None and started.poll() is not None):
            return False
        time.sleep(0.1)
    return True


def remember(state: Path, pid: int) -> None:
    """Note that this engine is ours to stop."""
    found = process(pid)
    if found is not None:
        hosts.write(state / "started", f"{found.pid} {found.started}\n")


def ours(state: Path) -> Process | None:
    """Return the engine that we started, if it still runs."""
    try:
        pid, started = (state / "started").read_text(encoding="ascii").split()
        found = Process(int(pid), int(started))
    except (OSError, ValueError):
        return None
    return found if found.alive() else None


def stop(state: Path) -> str | None:
    """Stop the engine if we started it and nothing runs on it; return what to say about it, if anything."""
    running = ours(state)
    if running is None:
        shutil.rmtree(state, ignore_errors=True)
        return None
    if engine.answers():
        others = engine.docker("ps", "--quiet").stdout.split()
        if others:
            return f"kept the Docker engine that bin/up started: {len(others)} other container(s) run on it"
    if SYSTEMD.is_dir():
        # The socket too, or the next `docker` command starts the engine again.
        _systemctl("stop", "docker.socket", "docker.service")
    else:
        os.kill(running.pid, signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    while running.alive():
        if time.monotonic() >= end:
            raise LabError(f"the Docker engine (pid {running.pid}) does not end; see {state / 'dockerd.log'}")
        time.sleep(0.1)
    shutil.rmtree(state, ignore_errors=True)
    return "stopped the Docker engine that bin/up started"
