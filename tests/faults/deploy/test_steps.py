"""fab stopped by Ctrl-C, and killed, at each step of a deploy."""

import contextlib
import os
import signal

import pytest

from support.deploy_lab import HOSTS, holding, interrupt

pytestmark = pytest.mark.docker

HOOKS = """
hooks:
  check: "{check}"
  before_switch: "{before_switch}"
  after_switch: "{after_switch}"
migrate: "{migrate}"
"""


@pytest.fixture
def app(app):
    """An application whose hooks can be made to wait."""
    names = ("check", "before_switch", "after_switch", "migrate")
    text = HOOKS.format(**{name: holding(name) for name in names})
    app.write("deploy.yml", (app.path / "deploy.yml").read_text() + text)
    app.commit()
    return app


@contextlib.contextmanager
def at_line(lab, app, tmp_path, *words):
    """fab has printed a line with these words."""
    run = lab.start("deploy", f"--app={app.path}")
    run.wait_for(*words)
    yield run


@contextlib.contextmanager
def at_hook(lab, app, tmp_path, hook, host):
    """A hook runs on a host."""
    with lab.held(hook, host) as wait:
        run = lab.start("deploy", f"--app={app.path}")
        wait()
        yield run


@contextlib.contextmanager
def at_send(lab, app, tmp_path):
    """The upload to the second host is under way."""
    app.write("large.bin", "")
    (app.path / "large.bin").write_bytes(os.urandom(3_000_000))
    app.commit()
    with lab.behind_proxy("worker2", tmp_path) as (proxy, env):
        proxy.fall_silent_after(1_000_000)
        run = lab.start("deploy", f"--app={app.path}", env=env)
        proxy.wait_for_silence()
        yield run
        proxy.speak()
        run.process.wait(120)


@contextlib.contextmanager
def at_drain(lab, app, tmp_path):
    """A worker of the first host does not leave."""
    with lab.stopped_worker("worker1"):
        run = lab.start("deploy", f"--app={app.path}")
        lab.wait_until(lambda: "STOPPING" in lab.inside("worker1", "supervisorctl status || true"))
        yield run


STEPS = {
    "plan": (at_line, "Plan:"),
    "send": (at_send,),
    "prepare": (at_hook, "check", "worker2"),
    "migrate": (at_hook, "migrate", "worker1"),
    "before_switch": (at_hook, "before_switch", "worker1"),
    "drain": (at_drain,),
    "start": (at_line, "worker1", "switched to"),
    "verify": (at_line, "worker1", "started shop_mail"),
    "after_switch": (at_hook, "after_switch", "worker1"),
    "next host": (at_hook, "before_switch", "worker2"),
    "end": (at_line, "worker2", "verified"),
}
SHORT = {"interrupt": ("next host",), "kill": ("start",)}


def steps(kind):
    return [
        pytest.param(name, marks=[] if name in SHORT[kind] else pytest.mark.long, id=name.replace(" ", "-"))
        for name in STEPS
    ]


@pytest.mark.parametrize("step", steps("interrupt"))
def test_ctrl_c(lab, app, first, tmp_path, step):
    """Ctrl-C at each step"""
    how, *words = STEPS[step]
    with how(lab, app, tmp_path, *words) as run:
        interrupt(run)
    code = run.end(240)
    assert "Traceback" not in run.text
    lab.assert_clean()
    if step == "end" and code == 0:
        new = lab.current("worker1")
        assert new > first
        lab.assert_runs(new)
        return
    assert code == 2, run.text
    assert "Every host is as before" in run.text
    lab.assert_runs(first)
    # Where it was begun with, the new release stays, marked.
    for host in HOSTS:
        others = f"ls -A | grep -vxF {first} | while read -r name; do ls $name/.failed; done"
        lab.inside(host, f"cd /srv/shop/releases && {others}")


@pytest.mark.parametrize("step", steps("kill"))
def test_kill(lab, app, first, tmp_path, step):
    """kill -9 of fab at each step, then a deploy again"""
    how, *words = STEPS[step]
    with how(lab, app, tmp_path, *words) as run:
        interrupt(run, signal.SIGKILL)
        run.end()
    # What it had started ends by itself, and the next deploy waits for that: nobody has to help.
    again = lab.deploy(app)
    assert again.code == 0, again.text
    new = lab.current("worker1")
    assert new > first
    lab.assert_runs(new)
    lab.assert_clean()
