"""kestrel-stack-workers against a supervisor of our own: XML-RPC on a unix socket."""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
import threading
import time
import xmlrpc.client
import xmlrpc.server
from pathlib import Path

import pytest

from support.host_programs import load

HELPER = Path(__file__).resolve().parents[3] / "templates/usr/local/sbin/kestrel-stack-workers"
GROUP = "shop_hello_world"


class Supervisor:
    """The few calls that the helper makes, with supervisor's states and fault codes.

    `becomes` maps a process's name to the state it gets a few looks after it was started or stopped.
    """

    def __init__(self, names):
        self.states = dict.fromkeys(names, "STOPPED")
        self.calls = []
        self.becomes = {}
        self.pending = {}
        self.pids = {}

    def settle(self):
        """Let each pending change happen at the third look."""
        for name, (looks, state) in list(self.pending.items()):
            if looks:
                self.pending[name] = (looks - 1, state)
            else:
                self.states[name] = state
                del self.pending[name]

    def getAllProcessInfo(self):
        self.settle()
        now = int(time.time())
        return [
            {
                "group": GROUP,
                "name": name,
                "statename": state,
                "pid": self.pids.get(name, 4_000_000) if state in ("RUNNING", "STARTING", "STOPPING") else 0,
                "now": now,
                "start": now - 5,
                "spawnerr": "",
                "exitstatus": 78,
                "stdout_logfile": f"/var/log/kestrel-stack/shop/{name}.log",
            }
            for name, state in self.states.items()
        ] + [{"group": "other", "name": "other", "statename": "RUNNING", "pid": 1, "now": now, "start": now}]

    def getAllConfigInfo(self):
        return [{"group": GROUP, "name": name, "startsecs": 0, "stopwaitsecs": 0} for name in self.states]

    def startProcess(self, name, wait):
        self.calls.append(("start", name))
        bare = name.removeprefix(f"{GROUP}:")
        # One by one: nobody else may be on its way meanwhile.
        assert not self.pending
        if self.states[bare] == "RUNNING":
            raise xmlrpc.client.Fault(60, f"ALREADY_STARTED: {name}")
        self.states[bare] = "STARTING"
        self.pending[bare] = (2, self.becomes.get(bare, "RUNNING"))
        return True

    def stopProcess(self, name, wait):
        self.calls.append(("stop", name))
        bare = name.removeprefix(f"{GROUP}:")
        self.states[bare] = "STOPPING"
        self.pending[bare] = (2, self.becomes.get(bare, "STOPPED"))
        return True

    def stopProcessGroup(self, group, wait):
        self.calls.append(("stop group", group))
        for name, state in self.states.items():
            if state == "RUNNING":
                self.states[name] = "STOPPING"
                self.pending[name] = (2, self.becomes.get(name, "STOPPED"))
        return []


class Handler(xmlrpc.server.SimpleXMLRPCRequestHandler):
    rpc_paths = ("/RPC2",)
    disable_nagle_algorithm = False

    def address_string(self):
        return "unix"


class Server(socketserver.UnixStreamServer, xmlrpc.server.SimpleXMLRPCDispatcher):
    logRequests = False  # noqa: N815
    _send_traceback_header = False

    def __init__(self, path):
        xmlrpc.server.SimpleXMLRPCDispatcher.__init__(self, allow_none=True)
        socketserver.UnixStreamServer.__init__(self, str(path), Handler)


@pytest.fixture(scope="module")
def helper():
    module = load(HELPER)
    module.POLL = 0.001
    module.MARGIN = 2
    return module


@pytest.fixture
def supervisor(tmp_path, helper, monkeypatch):
    server = Server(tmp_path / "s")
    fake = Supervisor([f"{GROUP}_{number:02d}" for number in range(3)])
    for name in ("getAllProcessInfo", "getAllConfigInfo", "startProcess", "stopProcess", "stopProcessGroup"):
        server.register_function(getattr(fake, name), f"supervisor.{name}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(helper, "SOCKET", str(tmp_path / "s"))
    monkeypatch.setattr(helper, "release_of", lambda pid: "20260101T000000Z-aaaaaaaa")
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run(helper, capsys):
    def call(*arguments):
        code = helper.main(list(arguments))
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return call


def test_status_says_state_pid_uptime_and_release_of_each_process(supervisor, run):
    supervisor.states[f"{GROUP}_01"] = "RUNNING"
    code, report, error = run("status", GROUP)
    assert (code, error) == (0, "")
    assert report["group"] == GROUP
    assert report["processes"][0] == {
        "name": f"{GROUP}_00",
        "state": "STOPPED",
        "pid": None,
        "uptime": 0,
        "release": None,
    }
    assert report["processes"][1] == {
        "name": f"{GROUP}_01",
        "state": "RUNNING",
        "pid": 4_000_000,
        "uptime": 5,
        "release": "20260101T000000Z-aaaaaaaa",
    }


def test_start_takes_one_process_after_the_other_and_leaves_running_ones_alone(supervisor, run):
    supervisor.states[f"{GROUP}_01"] = "RUNNING"
    code, report, error = run("start", GROUP)
    assert (code, error) == (0, "")
    assert {one["state"] for one in report["processes"]} == {"RUNNING"}
    assert supervisor.calls == [("start", f"{GROUP}:{GROUP}_00"), ("start", f"{GROUP}:{GROUP}_02")]


def test_start_stops_at_the_first_process_that_does_not_run_and_says_where_to_look(supervisor, run):
    supervisor.becomes[f"{GROUP}_01"] = "EXITED"
    code, report, error = run("start", GROUP)
    assert code == 1
    assert error == (
        f"kestrel-stack-workers: {GROUP}_01 is EXITED instead of RUNNING: exit code 78;"
        f" see /var/log/kestrel-stack/shop/{GROUP}_01.log\n"
    )
    assert [one["state"] for one in report["processes"]] == ["RUNNING", "EXITED", "STOPPED"]


def test_start_does_not_call_a_process_started_that_runs_from_no_release(
    supervisor, run, helper, monkeypatch
):
    monkeypatch.setattr(helper, "release_of", lambda pid: None)
    code, _, error = run("start", GROUP)
    assert code == 1
    assert error == f"kestrel-stack-workers: {GROUP}_00 runs from no release: run fab deploy\n"


def test_start_ends_when_a_process_never_comes_up(supervisor, run, helper, monkeypatch):
    monkeypatch.setattr(helper, "MARGIN", 0.05)
    supervisor.becomes[f"{GROUP}_00"] = "BACKOFF"
    code, _, error = run("start", GROUP)
    assert code == 1
    assert f"{GROUP}_00 is BACKOFF instead of RUNNING" in error


def test_drain_asks_the_group_at_once_and_waits_for_the_last(supervisor, run):
    supervisor.states = dict.fromkeys(supervisor.states, "RUNNING")
    code, report, error = run("drain", GROUP)
    assert (code, error) == (0, "")
    assert supervisor.calls == [("stop group", GROUP)]
    assert {one["state"] for one in report["processes"]} == {"STOPPED"}


def test_drain_of_what_is_down_already_is_done(supervisor, run):
    assert run("drain", GROUP)[0] == 0


def test_drain_names_who_has_not_left(supervisor, run, helper, monkeypatch):
    monkeypatch.setattr(helper, "MARGIN", 0.05)
    supervisor.states[f"{GROUP}_02"] = "RUNNING"
    supervisor.becomes[f"{GROUP}_02"] = "STOPPING"
    code, _, error = run("drain", GROUP)
    assert code == 1
    assert error == f"kestrel-stack-workers: not all workers have left: {GROUP}_02 is STOPPING\n"


def test_stop_takes_one_process_after_the_other(supervisor, run):
    supervisor.states = dict.fromkeys(supervisor.states, "RUNNING")
    supervisor.states[f"{GROUP}_01"] = "EXITED"
    code, report, _ = run("stop", GROUP)
    assert code == 0
    assert supervisor.calls == [("stop", f"{GROUP}:{GROUP}_00"), ("stop", f"{GROUP}:{GROUP}_02")]
    assert [one["state"] for one in report["processes"]] == ["STOPPED", "EXITED", "STOPPED"]


def test_an_unknown_group_is_wrong_usage_and_the_known_ones_are_named(supervisor, run):
    code, report, error = run("drain", "shop_mail")
    assert (code, report) == (2, None)
    assert error == (
        "kestrel-stack-workers: no group shop_mail under supervisor: known are other, shop_hello_world\n"
    )
    assert supervisor.calls == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("status",),
        ("restart", GROUP),
        ("status", GROUP, GROUP),
        ("status", f"{GROUP}:*"),
        ("status", "a b"),
        ("status", ""),
    ],
)
def test_wrong_usage_asks_supervisor_nothing(run, helper, monkeypatch, arguments):
    monkeypatch.setattr(helper, "SOCKET", "/nonexistent/socket")
    code, report, error = run(*arguments)
    assert (code, report) == (2, None)
    assert "usage: kestrel-stack-workers status|start|stop|drain GROUP" in error
    assert len(error.splitlines()) == 1


def test_a_supervisor_that_is_down_is_one_line(run, helper, monkeypatch, tmp_path):
    monkeypatch.setattr(helper, "SOCKET", str(tmp_path / "none"))
    code, report, error = run("status", GROUP)
    assert (code, report) == (1, None)
    assert error.startswith(f"kestrel-stack-workers: supervisor does not answer on {tmp_path}/none: ")
    assert len(error.splitlines()) == 1


def test_a_supervisor_that_hangs_is_one_line(run, helper, monkeypatch, tmp_path):
    monkeypatch.setattr(helper, "ANSWER", 0.1)
    with socketserver.UnixStreamServer(str(tmp_path / "silent"), socketserver.BaseRequestHandler):
        monkeypatch.setattr(helper, "SOCKET", str(tmp_path / "silent"))
        assert run("drain", GROUP) == (
            1,
            None,
            f"kestrel-stack-workers: supervisor does not answer on {tmp_path}/silent: timed out\n",
        )


def test_something_else_on_the_socket_is_one_line(run, helper, monkeypatch, tmp_path):
    class Deaf(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"220 mail\r\n")

    with socketserver.UnixStreamServer(str(tmp_path / "mail"), Deaf) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(helper, "SOCKET", str(tmp_path / "mail"))
        code, _, error = run("status", GROUP)
        server.shutdown()
        thread.join()
    assert code == 1
    assert error.startswith("kestrel-stack-workers: supervisor does not answer on ")
    assert len(error.splitlines()) == 1


def test_the_release_is_the_folder_a_process_works_in(tmp_path, helper):
    # /srv belongs to the machine; what counts is that a folder elsewhere is no release.
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=tmp_path, stdin=subprocess.PIPE) as process:
        try:
            assert helper.release_of(process.pid) is None
        finally:
            process.communicate(b"\n")
    assert helper.release_of(process.pid) is None


def test_the_helper_runs_with_the_systems_python_and_nothing_else():
    assert HELPER.read_text().startswith("#!/usr/bin/python3 -I\n")
    done = subprocess.run(
        [sys.executable, "-I", "-S", HELPER, "--check-syntax"], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    # It is a template to Ansible: nothing in it may look like one.
    assert not any(mark in HELPER.read_text() for mark in ("{{", "{%", "{#"))
