"""Several people at once, and hands where no hand should be."""

import json
import re
import signal

import pytest

from support.deploy_lab import HOSTS, interrupt, let_go

pytestmark = pytest.mark.docker


def test_two_deploys_at_once(lab, app, first):
    """Two deploys at once"""
    runs = [lab.start("deploy", f"--app={app.path}") for _ in range(2)]
    codes = [run.end() for run in runs]
    assert sorted(codes) == [0, 3], "\n---\n".join(run.text for run in runs)
    winner, loser = (runs[codes.index(code)] for code in (0, 3))
    assert re.search(rf"fab: worker[12] is locked by .*\(pid {winner.process.pid}\) since ", loser.text)
    lab.assert_runs(lab.current("worker1"))
    assert lab.current("worker1") > first
    lab.assert_clean()


@pytest.mark.long
def test_a_deploy_against_a_rollback(lab, app, first):
    """A deploy and a rollback at once"""
    second = lab.deployed(app)
    app.write("shop/more.py", "X = 3\n")
    app.commit()
    runs = {"deploy": lab.start("deploy", f"--app={app.path}"), "rollback": lab.start("rollback", "--yes")}
    codes = {name: run.end() for name, run in runs.items()}
    texts = "\n---\n".join(run.text for run in runs.values())
    assert sorted(codes.values()) == [0, 3], texts
    now = lab.current("worker1")
    assert now == first if codes["rollback"] == 0 else now > second, texts
    lab.assert_runs(now)
    lab.assert_clean()


def test_a_host_that_another_has_locked(lab, app, first):
    """Another's lock on the second host"""
    held = json.dumps({"id": "x", "owner": "ann", "controller": "desk", "pid": 7, "lease": 60})
    lab.inside("worker2", f"echo '{held}' > /srv/shop/.deploy.lock", user="deploy")
    try:
        done = lab.deploy(app)
        left = lab.inside("worker2", "cat /srv/shop/.deploy.lock")
    finally:
        lab.inside("worker2", "rm -f /srv/shop/.deploy.lock")
    assert done.code == 3
    assert "worker2 is locked by ann@desk (pid 7)" in done.text
    lab.assert_clean("worker1")
    assert json.loads(left) == json.loads(held)
    lab.assert_runs(first)


@pytest.mark.long
def test_the_lock_of_a_killed_deploy_is_taken_over(lab, app, first):
    """kill -9 of fab, and nobody who runs fab unlock"""
    held = lab.hold_venvs("worker2")
    run = lab.start("deploy", f"--app={app.path}", "--force")
    lab.wait_until(lambda: all(lab.inside(host, "cat /srv/shop/.deploy.lock || true") for host in HOSTS))
    interrupt(run, signal.SIGKILL)
    run.end()
    let_go(held)
    again = lab.deploy(app)
    assert again.code == 0, again.text
    assert re.search(rf"takes over the lock of .*\(pid {run.process.pid}\)", again.text), again.text
    lab.assert_runs(lab.current("worker1"))
    lab.assert_clean()


@pytest.mark.long
def test_the_old_release_is_deleted_by_hand_before_a_deploy(lab, app, first):
    """The old release deleted by hand, then a deploy"""
    lab.inside("worker2", f"rm -rf /srv/shop/releases/{first}")
    done = lab.deploy(app)
    assert done.code == 0, done.text
    lab.assert_runs(lab.current("worker1"))
    assert lab.current("worker1") > first
    lab.assert_clean()


BROKEN_ON_WORKER2 = """
import socket

if socket.gethostname() == "worker2":
    raise RuntimeError("this does not import here")
"""


@pytest.mark.long
def test_the_old_release_is_deleted_by_hand_while_a_deploy_fails(lab, app, first):
    """The old release deleted by hand on one host, in the middle of a deploy that then fails there"""
    app.write("shop/jobs.py", BROKEN_ON_WORKER2 + (app.path / "shop/jobs.py").read_text())
    app.commit()
    run = lab.start("deploy", f"--app={app.path}")
    run.wait_for("worker2", "switched to")
    lab.inside("worker2", f"rm -rf /srv/shop/releases/{first}")
    code = run.end()
    assert code == 4, run.text
    assert re.search(r"fab: .*worker2 is NOT as before", run.text)
    lab.assert_runs(first, "worker1")
    lab.assert_clean()
    # The way out is a deploy of something that works.
    app.write("shop/jobs.py", (app.path / "shop/jobs.py").read_text().removeprefix(BROKEN_ON_WORKER2))
    app.commit()
    lab.assert_runs(lab.deployed(app))


@pytest.mark.long
def test_behind_a_backlog(lab, app, first):
    """A deploy while thousands of jobs wait"""
    lab.current_load.burst(6000)
    done = lab.deploy(app)
    assert done.code == 0, done.text
    lab.assert_runs(lab.current("worker1"))
    lab.assert_clean()
