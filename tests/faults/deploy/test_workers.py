"""Workers that do not do what a deploy needs of them."""

import json
import re

import pytest

from support.deploy_lab import THREE

pytestmark = pytest.mark.docker

BROKEN_JOBS = "raise RuntimeError('this does not import')\n"
RAISES = "    raise RuntimeError('a defect')\n    import os\n"
BLOCKING_JOBS = "import time\n\ntime.sleep(3600)\n"
BROKEN_ON = """
import socket

if socket.gethostname() == "{host}":
    raise RuntimeError("this does not import here")
"""


@pytest.mark.long
def test_workers_that_start_and_die(lab, app, first):
    """Workers that start and die (the application does not import)"""
    app.write("shop/jobs.py", BROKEN_JOBS)
    app.commit()
    done = lab.deploy(app)
    assert done.code == 2, done.text
    assert re.search(r"fab: worker1: (switch|verify): .*shop_(hello_world|mail)_0", done.text)
    assert "this does not import" in done.text, "the worker's own words"
    assert "Every host is as before" in done.text
    lab.assert_clean()
    lab.assert_runs(first)
    record = json.loads(lab.inside("worker1", "tail -n 1 /srv/shop/deploys.jsonl"))
    assert (record["result"], record["previous"]) == ("failed", first)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.long
def test_failing_on_host_k_of_three(lab, app, first_of_three, k):
    """Failing on host k of n"""
    failing = THREE[k - 1]
    app.write("shop/jobs.py", BROKEN_ON.format(host=failing) + (app.path / "shop/jobs.py").read_text())
    app.commit()
    done = lab.deploy(app, "--canary=0", "--batch=1", env=lab.whole)
    assert done.code == 2, done.text
    assert re.search(rf"fab: {failing}: (switch|verify): ", done.text)
    assert "Every host is as before" in done.text
    lab.assert_clean(*THREE)
    lab.assert_runs(first_of_three, *THREE)


def test_failing_on_the_second_of_two_hosts(lab, app, first):
    """Failing on the last host: the one before goes back as well"""
    app.write("shop/jobs.py", BROKEN_ON.format(host="worker2") + (app.path / "shop/jobs.py").read_text())
    app.commit()
    done = lab.deploy(app)
    assert done.code == 2, done.text
    assert re.search(r"fab: worker2: (switch|verify): ", done.text)
    assert "this does not import here" in done.text, "the worker's own words"
    assert "Every host is as before" in done.text
    lab.assert_clean()
    lab.assert_runs(first)


@pytest.mark.long
def test_a_worker_that_will_not_stop(lab, app, first):
    """A worker that does not hear TERM"""
    with lab.stopped_worker("worker1"):
        done = lab.deploy(app)
        assert done.code == 0, done.text
    lab.assert_runs(lab.current("worker1"))
    assert lab.current("worker1") > first
    lab.assert_clean()


@pytest.mark.long
def test_a_supervisor_that_hangs(lab, app, first):
    """A supervisord that answers nobody"""
    pid = lab.inside("worker2", "systemctl show --property MainPID --value supervisor")
    lab.inside("worker2", f"kill -STOP {pid}")
    try:
        done = lab.deploy(app)
    finally:
        lab.inside("worker2", f"kill -CONT {pid}")
    assert done.code == 1, done.text
    assert re.search(r"fab: worker2: .*supervis", done.text), done.text
    lab.assert_clean()
    lab.assert_runs(first)


@pytest.mark.long
def test_a_ping_that_is_never_answered(lab, app, first):
    """A ping never answered (the application blocks)"""
    app.write("shop/jobs.py", BLOCKING_JOBS)
    app.commit()
    done = lab.deploy(app)
    assert done.code == 2, done.text
    assert re.search(r"fab: worker1: .*ping", done.text)
    assert "Every host is as before" in done.text
    lab.assert_clean()
    lab.assert_runs(first)


@pytest.mark.long
def test_a_canary_whose_jobs_fail(lab, app, first):
    """A canary whose jobs fail, seen while it is watched"""
    jobs = (app.path / "shop/jobs.py").read_text()
    app.write("shop/jobs.py", jobs.replace("    import os\n", RAISES, 1))
    app.commit()
    done = lab.deploy(app, "--soak=15")
    assert done.code == 2, done.text
    assert re.search(r"fab: worker1: soak", done.text), done.text
    assert "Every host is as before" in done.text
    lab.assert_clean()
    lab.assert_runs(first)


@pytest.mark.long
def test_a_first_deploy_that_fails_leaves_no_release(lab, app):
    """A first deploy that fails"""
    lab.reset()
    app.write("shop/jobs.py", BROKEN_JOBS)
    app.commit()
    done = lab.deploy(app)
    assert done.code == 2, done.text
    lab.assert_runs(None)
    lab.assert_clean()
