"""Locks, other programs and the engine's process: with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kestrel_stack.lab import daemon, locks, programs
from kestrel_stack.lab.errors import LabError

HOLDER = """
import sys
from pathlib import Path
from kestrel_stack.lab import locks
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_by_name_while_the_first_holds_the_lock(tmp_path: Path) -> None:
    first = holder(tmp_path / "lock")
    try:
        with (
            pytest.raises(LabError, match="another bin/up"),
            locks.held(tmp_path / "lock", busy="another bin/up"),
        ):
            pytest.fail("both hold the lock")
    finally:
        first.communicate()
    with locks.held(tmp_path / "lock", busy="another bin/up"):
        pass


def test_a_killed_holder_leaves_no_lock_behind(tmp_path: Path) -> None:
    first = holder(tmp_path / "lock")
    first.kill()
    first.communicate()
    with locks.held(tmp_path / "lock", busy="another"):
        pass


def test_a_lock_whose_file_the_holder_removed_is_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    entered = threading.Event()

    def waiter() -> None:
        with locks.held(path):
            # The file that is locked is the one that a third process would find.
            if path.exists():
                entered.set()

    with locks.held(path):
        thread = threading.Thread(target=waiter)
        thread.start()
        path.unlink()
    thread.join(60)
    assert entered.is_set()


def test_a_programs_output_is_logged_and_told_line_by_line(tmp_path: Path) -> None:
    lines: list[str] = []
    code = programs.run_logged(["sh", "-c", "echo one; echo two >&2; exit 3"], tmp_path / "log", lines.append)
    assert code == 3
    assert lines == ["one", "two"]
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="/no/such/program cannot be run: No such file"):
        programs.run_logged(["/no/such/program"], tmp_path / "log")


def test_an_interrupt_ends_the_program_and_its_children_before_it_goes_on(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        if len(pids) == 2:
            raise KeyboardInterrupt

    script = "sleep 300 & echo $!; echo $$; wait"
    with pytest.raises(KeyboardInterrupt):
        programs.run_logged(["bash", "-c", f"trap 'exit 130' INT; {script}"], tmp_path / "log", interrupt)
    assert len(pids) == 2
    end = time.monotonic() + 60
    while any(daemon.process(pid) for pid in pids):
        assert time.monotonic() < end, "a child outlived its program"
        time.sleep(0.01)


def test_a_pid_file_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / "docker.pid").write_text(str(gone.pid))
    assert daemon.remove_stale_pid_files(tmp_path) == [tmp_path / "docker.pid"]


def test_a_pid_file_whose_number_another_program_has_by_now_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "docker" / "containerd" / "containerd.pid"
    path.parent.mkdir(parents=True)
    path.write_text(str(os.getpid()))
    daemon.remove_stale_pid_files(tmp_path)
    assert not path.exists()


def test_a_pid_file_of_the_program_it_names_stays(tmp_path: Path) -> None:
    program = tmp_path / "dockerd"
    program.symlink_to("/bin/sleep")
    running = subprocess.Popen([str(program), "300"])
    try:
        (tmp_path / "docker.pid").write_text(f"{running.pid}\n")
        assert daemon.remove_stale_pid_files(tmp_path) == []
        assert (tmp_path / "docker.pid").exists()
    finally:
        running.kill()
        running.wait()


def test_an_unreadable_pid_file_is_stale(tmp_path: Path) -> None:
    (tmp_path / "docker.pid").write_text("garbage")
    assert daemon.remove_stale_pid_files(tmp_path)


def test_an_engine_is_ours_only_while_the_same_process_runs(tmp_path: Path) -> None:
    running = subprocess.Popen(["sleep", "300"])
    try:
        daemon.remember(tmp_path, running.pid)
        ours = daemon.ours(tmp_path)
        assert ours is not None
        assert ours.pid == running.pid
        # The number now belongs to a process that started at another time.
        (tmp_path / "started").write_text(f"{running.pid} {ours.started - 1}\n")
        assert daemon.ours(tmp_path) is None
    finally:
        running.kill()
        running.wait()


def test_a_zombie_does_not_count_as_running() -> None:
    child = subprocess.Popen(["sleep", "300"])
    found = daemon.process(child.pid)
    assert found is not None
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not found.alive()
    child.wait()


def test_the_daemon_is_told_the_mtu_only_where_it_is_smaller_than_usual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(daemon, "DEBIAN_DAEMON", "/bin/true")
    assert daemon.command(1400) == ["/bin/true", "--mtu=1400"]
    assert daemon.command(1500) == ["/bin/true"]
