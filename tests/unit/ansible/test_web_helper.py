"""kestrel-stack-web against a systemd of our own: a program that keeps units' states in a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.host_programs import load

HELPER = Path(__file__).resolve().parents[3] / "templates/usr/local/sbin/kestrel-stack-web"
OLD, NEW = "20260101T000000Z-aaaaaaaa", "20260102T000000Z-bbbbbbbb"


def unit(release):
    return f"kestrel-stack-web-shop@{release}.service"


@pytest.fixture(scope="module")
def helper():
    module = load(HELPER)
    module.ANSWER = 0
    return module


class Systemd:
    """The few commands that the helper gives, and what it gave."""

    def __init__(self, helper):
        self.helper = helper
        self.states = {}
        self.calls = []
        self.broken = set()

    def __call__(self, action, *arguments, check=True):
        units = [one for one in arguments if one.endswith((".service", ".socket"))]
        if action in ("start", "stop", "restart"):
            self.calls.append((action, *units))
        if action == "list-units":
            return "".join(f"{one} loaded active running Pages\n" for one in sorted(self.states))
        if action == "show":
            return "\n\n".join(
                f"Id={one}\nActiveState={self.states[one]}\nSubState=running\nMainPID=0\n"
                "ActiveEnterTimestampMonotonic=0"
                for one in units
            )
        if action == "is-active":
            return self.states.get(units[0], "inactive") + "\n"
        if action == "start":
            for one in units:
                self.states[one] = "failed" if one in self.broken else "active"
            if self.broken.intersection(units) and check:
                raise self.helper.Failed("systemctl start failed")
        if action == "stop":
            for one in units:
                self.states.pop(one, None)
        return ""


@pytest.fixture
def systemd(helper, monkeypatch):
    fake = Systemd(helper)
    monkeypatch.setattr(helper, "systemctl", fake)
    monkeypatch.setattr(helper.Web, "last_words", lambda self, unit, since: "ImportError: no x")
    return fake


@pytest.fixture
def web(tmp_path, helper, systemd, monkeypatch):
    folder = tmp_path / "etc" / "shop_web"
    folder.mkdir(parents=True)
    said = {"address": "127.0.0.1", "port": 1, "tls": False, "health": "/health", "timeout": 1}
    (folder / "web.json").write_text(json.dumps(said))
    monkeypatch.setattr(helper, "CONFIGURATION", str(tmp_path / "etc"))
    monkeypatch.setattr(helper, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(helper.Web, "current", lambda self: NEW)
    monkeypatch.setattr(helper.Web, "ask", lambda self: 200)
    return systemd


@pytest.fixture
def run(helper, capsys):
    def call(*arguments):
        code = helper.main(list(arguments))
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return call


def test_the_new_release_is_started_before_the_old_one_is_stopped(web, run):
    web.states[unit(OLD)] = "active"
    code, report, error = run("reload", "shop")
    assert (code, error) == (0, "")
    assert [call for call in web.calls if call != ("stop", unit(NEW))] == [
        ("start", unit(NEW)),
        ("stop", unit(OLD)),
    ]
    assert [one["state"] for one in report["processes"]] == ["RUNNING"]


def test_a_release_that_serves_already_is_left_alone(web, run):
    web.states[unit(NEW)] = "active"
    assert run("reload", "shop")[0] == 0
    assert web.calls == []


def test_where_the_new_release_does_not_come_up_the_old_one_is_not_touched(web, run):
    web.states[unit(OLD)] = "active"
    web.broken.add(unit(NEW))
    code, _, error = run("reload", "shop")
    assert code == 1
    assert error == (
        f"kestrel-stack-web: release {NEW} does not come up: ImportError: no x; {OLD} goes on serving\n"
    )
    assert web.states == {unit(OLD): "active"}
    assert ("stop", unit(OLD)) not in web.calls


def test_an_only_release_that_does_not_come_up_is_tried_again_by_systemd(web, run):
    web.broken.add(unit(NEW))
    code, report, error = run("reload", "shop")
    assert code == 1
    assert error == f"kestrel-stack-web: release {NEW} does not come up: ImportError: no x\n"
    assert [one["state"] for one in report["processes"]] == ["FATAL"]


def test_without_a_release_everything_is_stopped(web, run, helper, monkeypatch):
    monkeypatch.setattr(helper.Web, "current", lambda self: None)
    web.states = {unit(OLD): "active", unit(NEW): "failed"}
    code, report, error = run("reload", "shop")
    assert (code, error) == (0, "")
    assert web.states == {}
    assert report == {
        "group": "web",
        "processes": [{"name": "web", "state": "STOPPED", "pid": None, "uptime": 0, "release": None}],
    }


def test_a_page_that_is_not_well_is_a_failure_that_names_it(web, run, helper, monkeypatch):
    monkeypatch.setattr(helper.Web, "ask", lambda self: 500)
    code, _, error = run("reload", "shop")
    assert code == 1
    assert error.startswith("kestrel-stack-web: /health answers 500; see journalctl ")


def test_nobody_at_the_port_is_a_failure_that_says_so(web, run, helper, monkeypatch):
    def refuse(self):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(helper.Web, "ask", refuse)
    code, _, error = run("reload", "shop")
    assert code == 1
    assert error.startswith("kestrel-stack-web: /health does not answer: [Errno 111] Connection refused; ")


def test_units_of_other_names_are_none_of_ours(web, run):
    web.states = {unit("..-x"): "active", unit(OLD): "active"}
    assert len(run("status", "shop")[1]["processes"]) == 1
    assert run("reload", "shop")[0] == 0
    assert unit("..-x") in web.states


@pytest.mark.parametrize("target", ["/tmp/evil.service", "releases/../../etc", "releases/x y", "releases/"])
def test_a_current_that_is_no_release_is_refused(web, helper, monkeypatch, target):
    monkeypatch.undo()
    monkeypatch.setattr(helper.os, "readlink", lambda path: target)
    made = helper.Web.__new__(helper.Web)
    made.app = "shop"
    with pytest.raises(helper.Failed, match="does not lead to a release"):
        made.current()


def test_an_unknown_application_is_wrong_usage_and_the_known_ones_are_named(web, run):
    code, report, error = run("status", "blog")
    assert (code, report) == (2, None)
    assert error == "kestrel-stack-web: no application blog is served here: known are shop\n"


@pytest.mark.parametrize(
    "arguments",
    [(), ("status",), ("stop", "shop"), ("status", "shop", "shop"), ("status", "../shop"), ("status", "a b")],
)
def test_wrong_usage_asks_systemd_nothing(web, run, arguments):
    code, report, error = run(*arguments)
    assert (code, report) == (2, None)
    assert "usage: kestrel-stack-web status|reload APP" in error
    assert len(error.splitlines()) == 1
    assert web.calls == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("ModuleNotFoundError: No module named 'x'", True),
        ("shop.errors.NoConfigError: set it", True),
        ("start-web: release x has no venv: run fab deploy", True),
        ("gunicorn.errors.HaltServer: <HaltServer 'Worker failed to boot.' 3>", False),
        ("[2026-01-01 00:00:00 +0000] [1] [INFO] Booting worker", False),
        ('File "/srv/shop/x.py", line 1, in <module>', False),
    ],
)
def test_of_a_log_the_lines_that_say_why_are_told(helper, line, why):
    assert bool(helper.REASON.match(line)) == why


def test_the_helper_runs_with_the_systems_python_and_nothing_else():
    assert HELPER.read_text().startswith("#!/usr/bin/python3 -I\n")
    done = subprocess.run(
        [sys.executable, "-I", "-S", HELPER, "--check-syntax"], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    # It is a template to Ansible: nothing in it may look like one.
    assert not any(mark in HELPER.read_text() for mark in ("{{", "{%", "{#"))
