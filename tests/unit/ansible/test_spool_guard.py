"""kestrel-stack-spool-guard as a process, against a fake server that knows `status` and nothing else."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.machinery
import importlib.util
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support.ports import reserve

GUARD = Path(__file__).resolve().parents[3] / "templates/usr/local/sbin/kestrel-stack-spool-guard"
# No file system has more, and none has less than nothing: full and empty without filling anything.
FULL, ROOMY = 2**62, 0
KILL_WAIT = 30


class FakeServer(socketserver.ThreadingTCPServer):
    """Answers `status` and `status X` as Kestrel does.

    A command in `silent` gets no answer for as long as the connection lasts; `asked` is set when one came.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Conversation)
        self.status = "UP"
        self.commands: list[str] = []
        self.silent: set[str] = set()
        self.asked = threading.Event()

    def answer(self, command: str) -> bytes:
        self.commands.append(command)
        word, _, wanted = command.partition(" ")
        if word != "status" or wanted not in ("", "up", "readonly", "quiescent"):
            return b"CLIENT_ERROR\r\n"
        if not wanted:
            return f"{self.status}\r\n".encode()
        self.status = wanted.upper()
        return b"END\r\n"


class Conversation(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, FakeServer)
        for line in self.rfile:
            command = line.decode().strip()
            if command in self.server.silent:
                self.server.asked.set()
                self.rfile.read()
                return
            self.wfile.write(self.server.answer(command))


@pytest.fixture
def server():
    with FakeServer() as fake:
        thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        fake.shutdown()
        thread.join()


class Guard:
    """Run it over a folder of the test."""

    def __init__(self, folder: Path, port: int):
        self.state = folder / "guard.json"
        self.lock = folder / "lock"
        self.lock.touch()
        self.port = port
        self.spool = folder / "spool"
        self.spool.mkdir()

    def command(self, action: str, floor: int) -> list[str]:
        return [
            *(sys.executable, "-I", str(GUARD), action, "--spool", str(self.spool), "--floor", str(floor)),
            *("--connect", f"127.0.0.1:{self.port}", "--state", str(self.state), "--lock", str(self.lock)),
        ]

    def __call__(self, floor: int, action: str = "look") -> tuple[int, str]:
        done = subprocess.run(self.command(action, floor), capture_output=True, text=True, check=False)
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr


@pytest.fixture
def guard(tmp_path, server):
    return Guard(tmp_path, server.server_address[1])


def test_it_stops_a_server_that_is_up_and_says_so_once(guard, server):
    code, said = guard(FULL)
    assert (code, server.status) == (0, "READONLY")
    assert said.startswith("<5>READONLY: ")
    assert f"are free in {guard.spool} (floor " in said
    assert json.loads(guard.state.read_text())["status"] == "READONLY"
    assert guard(FULL) == (0, "")
    assert server.commands.count("status readonly") == 1


def test_it_lifts_what_it_set_and_says_so_once(guard, server):
    guard(FULL)
    code, said = guard(ROOMY)
    assert (code, server.status) == (0, "UP")
    assert said.startswith("<5>UP again: ")
    assert not guard.state.exists()
    assert guard(ROOMY) == (0, "")


def test_it_does_not_even_ask_the_server_while_there_is_room(guard, server):
    assert guard(ROOMY) == (0, "")
    assert server.commands == []


@pytest.mark.parametrize("status", ["READONLY", "QUIESCENT"])
def test_a_status_of_somebody_else_is_neither_changed_nor_lifted(guard, server, status):
    server.status = status
    for floor in (FULL, ROOMY):
        assert guard(floor) == (0, "")
        assert server.status == status
        assert not guard.state.exists()


def test_a_quiescent_that_somebody_set_over_its_readonly_is_left_and_forgotten(guard, server):
    guard(FULL)
    server.status = "QUIESCENT"
    assert guard(FULL) == (0, "")
    code, said = guard(ROOMY)
    assert (code, server.status) == (0, "QUIESCENT")
    assert "but the server is QUIESCENT, which somebody else has set: it is left so" in said
    assert not guard.state.exists()


def test_who_lifts_it_by_hand_while_the_disk_is_full_does_not_stay_up(guard, server):
    guard(FULL)
    server.status = "UP"
    assert guard(FULL)[0] == 0
    assert server.status == "READONLY"
    guard(ROOMY)
    assert server.status == "UP"


def kill_while_it_waits(guard, server, command, floor):
    """Kill the guard when it has sent `command` and has no answer yet."""
    server.silent = {command}
    with subprocess.Popen(guard.command("look", floor)) as process:
        assert server.asked.wait(KILL_WAIT)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    server.silent = set()


@pytest.mark.parametrize("arrived", [True, False], ids=["status arrived", "status did not arrive"])
def test_a_guard_killed_while_it_stops_the_server_still_lifts_it_later(guard, server, arrived):
    kill_while_it_waits(guard, server, "status readonly", FULL)
    if arrived:
        server.status = "READONLY"
    guard(ROOMY)
    assert server.status == "UP"
    assert not guard.state.exists()


@pytest.mark.parametrize("arrived", [True, False], ids=["status arrived", "status did not arrive"])
def test_a_guard_killed_while_it_lifts_ends_with_the_server_up_and_nothing_noted(guard, server, arrived):
    guard(FULL)
    kill_while_it_waits(guard, server, "status up", ROOMY)
    if arrived:
        server.status = "UP"
    guard(ROOMY)
    assert server.status == "UP"
    assert not guard.state.exists()


def test_a_server_that_is_down_is_no_failure_and_gets_its_status_when_it_is_back(guard, server):
    guard(FULL)
    there, guard.port = guard.port, reserve()
    assert guard(ROOMY) == (0, "")
    assert guard.state.exists()
    guard.port = there
    guard(ROOMY)
    assert server.status == "UP"


def test_while_somebody_restarts_the_server_it_keeps_out(guard, server):
    with guard.lock.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert guard(FULL) == (0, "")
        assert server.commands == []
        code, said = guard(0, "lift")
        assert code == 1
        assert said == "<3>the server is being restarted just now: try again\n"
    guard(FULL)
    assert server.status == "READONLY"


def test_lift_lifts_its_own_on_a_full_disk_and_nothing_else(guard, server):
    guard(FULL)
    code, said = guard(FULL, "lift")
    assert (code, server.status) == (0, "UP")
    assert said == "<5>UP again: the free space is no longer watched\n"
    server.status = "READONLY"
    assert guard(FULL, "lift") == (0, "")
    assert server.status == "READONLY"


def test_what_is_no_kestrel_is_one_line_and_a_failure(guard, server, monkeypatch):
    monkeypatch.setattr(server, "answer", lambda command: b"220 mail\r\n")
    code, said = guard(FULL)
    assert code == 1
    assert said == f"<3>127.0.0.1:{guard.port} answers '220 mail' to `status`: is that a Kestrel?\n"
    assert not guard.state.exists()


def test_a_missing_folder_a_missing_lock_and_wrong_usage_are_one_line(guard, server):
    guard.spool.rmdir()
    assert guard(FULL) == (1, f"<3>{guard.spool}: No such file or directory\n")
    guard.lock.unlink()
    assert guard(FULL) == (
        1,
        f"<3>{guard.lock}: No such file or directory: run systemd-tmpfiles --create\n",
    )
    code, said = guard(FULL, "watch")
    assert (code, len(said.splitlines())) == (2, 1)


@pytest.fixture(scope="module")
def module():
    loader = importlib.machinery.SourceFileLoader("kestrel_stack_spool_guard", str(GUARD))
    spec = importlib.util.spec_from_loader("kestrel_stack_spool_guard", loader)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    write, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(made)
    finally:
        sys.dont_write_bytecode = write
    return made


@pytest.mark.parametrize(
    ("room", "marked", "low"),
    [
        ((1000, 9999, 99999), False, False),
        ((999, 9999, 99999), False, True),
        # What was too little stays so until there is a tenth more.
        ((1099, 9999, 99999), True, True),
        ((1100, 9999, 99999), True, False),
        # Inodes: 1000, or a twentieth of a small file system.
        ((2000, 999, 99999), False, True),
        ((2000, 1000, 99999), False, False),
        ((2000, 1099, 99999), True, True),
        ((2000, 1100, 99999), True, False),
        ((2000, 99, 2000), False, True),
        ((2000, 100, 2000), False, False),
        # No fixed number of inodes (btrfs).
        ((2000, 0, 0), False, False),
    ],
)
def test_bytes_and_inodes_have_a_floor_and_a_tenth_above_it(module, monkeypatch, room, marked, low):
    monkeypatch.setattr(module, "room", lambda path: room)
    assert module.is_low("/x", 1000, marked)[0] is low


def test_what_is_noted_is_on_the_disk_before_the_server_is_told(module, monkeypatch, tmp_path):
    order = []
    real = os.fsync
    monkeypatch.setattr(module.os, "fsync", lambda fd: (order.append("synced"), real(fd)))
    monkeypatch.setattr(
        module,
        "ask",
        lambda address, command: order.append(command) or ("UP" if command == "status" else "END"),
    )
    monkeypatch.setattr(module, "room", lambda path: (0, 9999, 99999))
    (tmp_path / "lock").touch()
    arguments = ["--spool", "/", "--floor", "1", "--connect", "x:1"]
    arguments += ["--state", str(tmp_path / "s"), "--lock", str(tmp_path / "lock")]
    with contextlib.redirect_stderr(None):
        assert module.main(["look", *arguments]) == 0
    assert order == ["status", "synced", "status readonly"]


def test_it_runs_with_the_systems_python_and_nothing_else():
    assert GUARD.read_text().startswith("#!/usr/bin/python3 -I\n")
    # It is a template to Ansible: nothing in it may look like one.
    assert not any(mark in GUARD.read_text() for mark in ("{{", "{%", "{#"))
