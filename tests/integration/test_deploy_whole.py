"""`fab deploy` and `fab rollback` from the commit to the record, over SSH to hosts made of folders.

The hosts have no workers: how those are switched is in test_rollout.py, and real ones are in faults/deploy.
"""

import importlib
import json
import os
import shutil
import signal
import threading
from dataclasses import dataclass

import pytest

from kestrel_stack.deploy import commands, description, ssh
from kestrel_stack.deploy.commands import Ask, AskPace, AskRollback
from kestrel_stack.deploy.errors import DONE, FAILED, REFUSED, DeployError
from kestrel_stack.deploy.report import Report
from support.bugsink import Bugsink
from support.deploy import GitApp, wait_for
from support.receiver import Receiver
from support.slow_line import SlowLine
from support.ssh_server import ROOT, Machine

deploy = importlib.import_module("kestrel_stack.deploy.commands.deploy")  # the package's name is the function
NAMES = ("h1", "h2", "h3")
HOOKS = """
hooks:
  check: test ! -e ../../fail-check
  before_switch: test ! -e ../../fail-before_switch
  after_switch: if test -e ../../fail-after_switch; then echo the pages are empty; exit 7; fi
migrate: echo "$KESTREL_STACK_RELEASE" >>../../migrated
keep: 2
roll: {canary: 0}
"""


@dataclass(frozen=True)
class Environment(description.Environment):
    @property
    def root(self):
        return ROOT


class Lab:
    """The hosts, and the application that goes there."""

    def __init__(self, folder):
        self.machines = {}
        for name in NAMES:
            (folder / name).mkdir()
            self.machines[name] = Machine(folder / name)
        hosts = tuple(machine.host(name) for name, machine in self.machines.items())
        self.environment = Environment("lab", "srv", "shop", hosts, "production")
        self.app = GitApp(folder / "application")
        self.app.write(
            "deploy.yml", (self.app.path / "deploy.yml").read_text().replace("keep: 5", "") + HOOKS
        )
        self.app.commit()

    def deploy(self, **words):
        """Deploy; return the exit code and what was said as an error."""
        return self._run(lambda: commands.deploy(Ask(app=str(self.app.path), **words), Report()))

    def rollback(self, **words):
        return self._run(
            lambda: commands.rollback(AskRollback(**{"app": str(self.app.path), **words}), Report())
        )

    def _run(self, action):
        try:
            return action(), ""
        except DeployError as error:
            return error.code, str(error)

    def srv(self, name):
        return self.machines[name].folder / "srv"

    @property
    def current(self):
        links = {name: self.srv(name) / "current" for name in NAMES}
        return {name: link.readlink().name if link.is_symlink() else None for name, link in links.items()}

    def one(self):
        """The release that every host is on."""
        (release,) = set(self.current.values())
        return release

    def releases(self, name):
        return sorted(path.name for path in (self.srv(name) / "releases").iterdir())

    def records(self, name):
        return [json.loads(line) for line in (self.srv(name) / "deploys.jsonl").read_text().splitlines()]

    def change(self, text="X = 1\n"):
        self.app.write("shop/more.py", text)
        return self.app.commit()

    def assert_clean(self):
        for name in NAMES:
            assert not (self.srv(name) / ".deploy.lock").exists()
            assert not [one for one in self.releases(name) if one.startswith(".")]

    def close(self):
        for machine in self.machines.values():
            machine.close()


@pytest.fixture
def lab(tmp_path, monkeypatch):
    made = Lab(tmp_path)
    monkeypatch.setattr(description, "load_environment", lambda env, limit=None: made.environment)
    # These machines are threads of a test that may be one of many.
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT", 60)
    yield made
    made.close()


def test_from_the_first_deploy_to_a_rollback(lab, capsys):
    rev = lab.app.commit_id
    assert lab.deploy() == (DONE, "")
    first = lab.one()
    assert first.endswith(rev[:8])
    assert capsys.readouterr().out.count("new venv") == 3

    # The same again is nothing to do; it takes and gives back the lock.
    assert lab.deploy() == (DONE, "")
    assert "Nothing to do: every host runs" in capsys.readouterr().out
    assert lab.one() == first

    # One file more: that file goes, the rest is linked.
    rev = lab.change()
    assert lab.deploy(pace=AskPace(batch="100%")) == (DONE, "")
    second = lab.one()
    assert second > first
    for name in NAMES:
        release = lab.srv(name) / "releases" / second
        about = json.loads((release / "release.json").read_text())
        assert (about["rev"], about["ping"]) == (rev, 1)
        assert about["hooks"]["after_switch"].startswith("if test -e")
        assert (release / "shop/more.py").read_text() == "X = 1\n"
        assert (release / "shop/jobs.py").samefile(lab.srv(name) / "releases" / first / "shop/jobs.py")
        record = lab.records(name)[-1]
        assert (record["result"], record["release"], record["previous"]) == ("ok", second, first)

    # Once for all hosts.
    assert (lab.srv("h1") / "migrated").read_text().split() == [first, second]
    assert not (lab.srv("h2") / "migrated").exists()

    assert lab.rollback() == (DONE, "")
    assert lab.one() == first
    assert lab.records("h3")[-1]["action"] == "rollback"

    # Two are kept, and what was current before, whichever that was.
    lab.change("X = 2\n")
    assert lab.deploy() == (DONE, "")
    third = lab.one()
    assert [lab.releases(name) for name in NAMES] == [[first, second, third]] * 3
    lab.change("X = 3\n")
    assert lab.deploy() == (DONE, "")
    assert [lab.releases(name) for name in NAMES] == [[third, lab.one()]] * 3
    lab.assert_clean()


@pytest.fixture
def first(lab):
    assert lab.deploy() == (DONE, "")
    release = lab.one()
    lab.change()
    return release


@pytest.mark.parametrize("step", ["before_switch", "after_switch"])
def test_a_host_that_fails_takes_the_others_back_and_the_release_is_marked(lab, first, step, capsys):
    (lab.srv("h2") / f"fail-{step}").touch()
    code, error = lab.deploy()
    assert code == FAILED
    assert error.startswith(f"h2: {step}: ")
    assert error.endswith("Every host is as before; the migration has run and stays")
    assert lab.current == dict.fromkeys(NAMES, first)
    assert "Reverting 1 host" in capsys.readouterr().out
    failed = {name: [one for one in lab.releases(name) if one != first] for name in NAMES}
    assert failed["h3"] == []
    assert failed["h1"] == failed["h2"] != []
    for name in ("h1", "h2"):
        marked = lab.srv(name) / "releases" / failed[name][0]
        assert (marked / ".failed").exists()
        assert not (marked / ".verified").exists()
        assert lab.records(name)[-1]["result"] == "failed"
    lab.assert_clean()

    # It is nothing to go back to, and goes with the next good deploy.
    code, error = lab.rollback(to=failed["h1"][0])
    assert code == REFUSED
    assert "failed" in error
    (lab.srv("h2") / f"fail-{step}").unlink()
    assert lab.deploy() == (DONE, "")
    assert lab.releases("h1") == [first, lab.one()]


def test_a_check_that_fails_on_one_host_leaves_all_as_they_were(lab, first):
    (lab.srv("h3") / "fail-check").touch()
    code, error = lab.deploy()
    assert (code, lab.current) == (FAILED, dict.fromkeys(NAMES, first))
    assert "h3: prepare: " in error
    assert "check" in error
    assert "Every host is as before" in error
    assert [lab.releases(name) for name in NAMES] == [[first]] * 3
    assert (lab.srv("h1") / "migrated").read_text().split() == [first]
    lab.assert_clean()


def test_a_dry_run_prints_every_script_and_changes_nothing(lab, first, capsys):
    def everything():
        return {
            str(path): path.lstat().st_mtime_ns for name in NAMES for path in sorted(lab.srv(name).rglob("*"))
        }

    before = everything()
    assert lab.deploy(dry_run=True) == (DONE, "")
    assert everything() == before
    printed = capsys.readouterr().out
    for name in NAMES:
        for what in ("plan and lock", "prepare", "switch"):
            assert f"# ---- {name}: {what} " in printed
    assert printed.count("#!/bin/bash") == 10  # and the migration, once
    assert "Dry run: nothing was changed" in printed
    assert lab.rollback(dry_run=True)[0] == REFUSED  # there is nothing before the first


def test_an_old_release_that_was_deleted_is_no_obstacle_and_is_said(lab, first, capsys):
    for name in NAMES:
        shutil.rmtree(lab.srv(name) / "releases" / first)
    assert lab.deploy() == (DONE, "")
    assert f"current is {first}, which was deleted: if this deploy fails there is no way back" in (
        capsys.readouterr().out
    )
    assert lab.one() > first


def test_ctrl_c_in_a_hook_puts_everything_back(lab, first):
    spec = (lab.app.path / "deploy.yml").read_text()
    lab.app.write(
        "deploy.yml",
        spec.replace(
            "test ! -e ../../fail-before_switch", "touch ../../waits; test -e ../../go || sleep 100"
        ),
    )
    lab.app.commit()
    (lab.srv("h1") / "go").touch()

    def stop():
        wait_for((lab.srv("h2") / "waits").exists, 60)
        os.kill(os.getpid(), signal.SIGINT)

    helper = threading.Thread(target=stop)
    helper.start()
    code, error = lab.deploy()
    helper.join()
    assert (code, lab.current) == (FAILED, dict.fromkeys(NAMES, first))
    assert error.startswith("stopped. Every host is as before")
    assert [lab.releases(name) for name in NAMES] == [[first]] * 3
    lab.assert_clean()


def test_a_deploy_costs_one_connection_three_channels_and_few_round_trips(lab, first, monkeypatch):
    sessions = []

    class Session(deploy.Session):
        def __exit__(self, *error):
            sessions.append(self)
            super().__exit__(*error)

    monkeypatch.setattr(deploy, "Session", Session)
    lines = {name: SlowLine(("127.0.0.1", machine.port), 0.05) for name, machine in lab.machines.items()}
    hosts = tuple(machine.host(name, port=lines[name].port) for name, machine in lab.machines.items())
    lab.environment = Environment("lab", "srv", "shop", hosts)
    assert lab.deploy(pace=AskPace(batch="100%")) == (DONE, "")
    assert lab.one() > first
    for name, line in lines.items():
        statistics = sessions[0].remotes[name].statistics
        # Hold, prepare with the upload, switch; the first host migrates as well.
        assert (statistics.connections, statistics.channels) == (1, 4 if name == "h1" else 3)
        assert len(line.connections) == 1
        # Twelve or so: greeting, keys, log-in with the channels; hold, lock, prepare, switch, finish; closing
        # words. What a script says piece by piece is acknowledged piece by piece, so the number varies.
        assert line.connections[0].round_trips <= 20
        line.close()


def test_a_refusal_to_confirm_changes_nothing(lab, monkeypatch):
    monkeypatch.setattr(Report, "confirm", lambda self, question: False)
    assert lab.deploy() == (REFUSED, "not confirmed: nothing was changed")
    assert lab.current == dict.fromkeys(NAMES)
    lab.assert_clean()
    assert lab.deploy(yes=True) == (DONE, "")


def _told_by(lab, text):
    """Have the application's deploy.yml end with this."""
    file = lab.app.path / "deploy.yml"
    lab.app.write("deploy.yml", file.read_text().partition("\nafter:")[0] + f"\nafter: {text}\n")
    return lab.app.commit()


def test_bugsink_learns_of_the_release_and_never_changes_how_a_deploy_ends(
    lab, tmp_path, monkeypatch, capsys
):
    with Bugsink(tmp_path / "bugsink") as bugsink:
        monkeypatch.setenv("BUGSINK_AUTH_TOKEN", bugsink.token)
        after = f"{{bugsink: {{url: '{bugsink.url}', projects: [shop]}}}}"
        _told_by(lab, after)
        assert lab.deploy() == (DONE, "")
        first = lab.one()
        assert f"Bugsink knows release {first} in shop" in capsys.readouterr().out
        found = bugsink.get("releases/", project=bugsink.project)["results"]
        assert [one["version"] for one in found] == [first]
    lab.change()
    assert lab.deploy() == (DONE, "")
    said = capsys.readouterr().out
    assert "Bugsink was not told of it: 127.0.0.1: Connection refused" in said
    assert bugsink.token not in said
    second = lab.one()
    assert second > first
    _told_by(lab, after.replace("http://", "http://me:hidden@"))
    code, error = lab.deploy()
    assert (code, "after.bugsink.url must be an address" in error, "hidden" in error) == (
        REFUSED,
        True,
        False,
    )
    assert lab.one() == second


def test_sentrys_marker_has_the_environment_that_errors_come_with(lab, monkeypatch):
    monkeypatch.setenv("SENTRY_AUTH_TOKEN", "sntrys_0123456789abcdef")
    with Receiver() as sentry:
        _told_by(lab, f"{{sentry: {{url: '{sentry.url}', organization: acme, projects: [shop]}}}}")
        assert lab.deploy() == (DONE, "")
        assert sentry.requests[1].path.endswith(f"/releases/{lab.one()}/deploys/")
        assert sentry.requests[1].json["environment"] == "production"


def test_who_is_told_of_a_deploy_is_told_of_the_way_back(lab, monkeypatch, capsys):
    monkeypatch.setenv("SENTRY_AUTH_TOKEN", "sntrys_0123456789abcdef")
    with Receiver() as sentry, Receiver() as chat:
        sentry_spec = f"{{url: '{sentry.url}', organization: acme, projects: [shop]}}"
        rev = _told_by(lab, f"{{sentry: {sentry_spec}, webhook: '{chat.url}/hook'}}")
        assert lab.deploy() == (DONE, "")
        first = lab.one()
        lab.change()
        assert lab.deploy() == (DONE, "")
        second = lab.one()
        del sentry.requests[:], chat.requests[:]
        assert lab.rollback() == (DONE, "")
        assert lab.one() == first
        about, marker = sentry.requests
        assert (about.json["version"], about.json["ref"]) == (first, rev)
        assert "commits" not in about.json
        assert marker.path.endswith(f"/releases/{first}/deploys/")
        assert marker.json["name"].startswith("rollback by ")
        [message] = chat.requests
        assert message.json["action"] == "rollback"
        assert (message.json["release"], message.json["previous"]) == (first, second)
        capsys.readouterr()
        assert lab.rollback(to=second, app="examples/nowhere") == (DONE, "")
        assert lab.one() == second
        assert "nobody was told of the rollback: --app examples/nowhere" in capsys.readouterr().out
        assert len(chat.requests) == 1
