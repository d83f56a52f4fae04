"""What goes wrong while deploying, in two hosts over real SSH: nothing is lost, and the exit code is true."""

import hashlib
import json
import re
import shutil
import signal
import zipfile
from pathlib import Path

import pytest
import yaml

from support.deploy import GitApp, make_wheel
from support.deploy_lab import app, interrupt, let_go  # noqa: F401 - app is a fixture

pytestmark = pytest.mark.docker

BROKEN_JOBS = "raise RuntimeError('this does not import')\n"
BROKEN_ON_WORKER2 = """
import socket

if socket.gethostname() == "worker2":
    raise RuntimeError("this does not import here")
"""


@pytest.fixture
def lab(made_lab):
    return made_lab


@pytest.fixture
def first(lab, app, tmp_path_factory):  # noqa: F811
    """The one good release on both hosts; the application to deploy next is another."""
    release = lab.settled()
    if release is None:
        lab.reset()
        release = lab.deployed(GitApp(tmp_path_factory.mktemp("first")))
    app.write("shop/more.py", "X = 1\n")
    app.commit()
    return release


def changed_inventory(lab, folder, change, host="worker2"):
    """A copy of the inventory with another ssh configuration or address for one host."""
    copy = folder / "inventory"
    shutil.copytree(lab.inventory, copy)
    made = yaml.safe_load((copy / "containers.yml").read_text())
    change(made["all"], made["all"]["hosts"][host])
    (copy / "containers.yml").write_text(yaml.safe_dump(made))
    return copy


# --- operators -------------------------------------------------------------------------------------------


def test_of_two_deploys_at_once_one_wins_and_the_other_names_the_holder(lab, app, first):  # noqa: F811
    runs = [lab.start("deploy", f"--app={app.path}") for _ in range(2)]
    codes = [run.end() for run in runs]
    assert sorted(codes) == [0, 3], "\n---\n".join(run.text for run in runs)
    winner, loser = (runs[codes.index(code)] for code in (0, 3))
    assert re.search(
        rf"fab: worker1 is locked by .*\(pid {winner.process.pid}\) since .*fab unlock", loser.text
    )
    lab.assert_runs(lab.current("worker1"))
    assert lab.current("worker1") > first
    lab.assert_clean()


def test_a_loser_gives_back_the_locks_it_got_and_leaves_the_winners(lab, app, first):  # noqa: F811
    held = json.dumps({"id": "x", "owner": "ann", "controller": "desk", "pid": 7})
    lab.on("worker2", f"echo '{held}' > /srv/shop/.deploy.lock")
    done = lab.deploy(app)
    assert done.code == 3
    assert "worker2 is locked by ann@desk (pid 7)" in done.text
    lab.assert_clean("worker1")
    assert json.loads(lab.on("worker2", "cat /srv/shop/.deploy.lock")) == json.loads(held)
    lab.assert_runs(first)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_deploy_stopped_while_it_prepares_leaves_everything_as_it_was(lab, app, first, number):  # noqa: F811
    held = lab.hold_venvs("worker2")
    run = lab.start("deploy", f"--app={app.path}")
    run.wait_for("worker1", "prepared")
    interrupt(run, number)
    assert run.end() == 2, run.text
    let_go(held)
    assert "stopped. Every host is as before" in run.text
    assert "Traceback" not in run.text
    lab.assert_clean()
    lab.assert_runs(first)
    assert lab.on("worker1", "ls -A /srv/shop/releases") == first


@pytest.mark.long
def test_a_deploy_stopped_while_it_sends_leaves_everything_as_it_was(lab, app, first):  # noqa: F811
    with (app.path / "large.bin").open("wb") as large, Path("/dev/urandom").open("rb") as noise:
        shutil.copyfileobj(Limited(noise, 120_000_000), large)
    app.commit()
    run = lab.start("deploy", f"--app={app.path}")
    lab.wait_until(lambda: lab.on("worker1", "ls -A /srv/shop/releases | grep upload.part || true"))
    interrupt(run)
    assert run.end() == 2, run.text
    assert "received" not in run.text, "the upload was too fast to be interrupted"
    lab.wait_until(lambda: lab.on("worker1", "pgrep -u deploy head || true") == "")
    lab.assert_clean()
    lab.assert_runs(first)


class Limited:
    """At most so many bytes of a file."""

    def __init__(self, source, left):
        self.source, self.left = source, left

    def read(self, size):
        data = self.source.read(min(size, self.left))
        self.left -= len(data)
        return data


def test_a_deploy_that_was_killed_is_followed_by_unlock_and_a_good_deploy(lab, app, first):  # noqa: F811
    held = lab.hold_venvs("worker2")
    run = lab.start("deploy", f"--app={app.path}")
    run.wait_for("worker1", "prepared")
    interrupt(run, signal.SIGKILL)
    run.end()
    # What it had started on the hosts ends by itself, without anybody's help.
    lab.wait_until(lambda: lab.on("worker2", "pgrep -u deploy -f kestrel-stack-deploy || true") == "")
    let_go(held)
    lab.assert_runs(first)
    refused = lab.deploy(app)
    assert refused.code == 3
    assert f"(pid {run.process.pid})" in refused.text
    unlocked = lab.fab("unlock")
    assert unlocked.code == 0
    assert unlocked.text.count(f"(pid {run.process.pid})") == 2
    assert lab.fab("unlock").text.count("is not locked") == 2
    lab.assert_runs(lab.deployed(app))
    lab.assert_clean()


def test_a_deploy_stopped_while_a_host_switches_puts_that_host_back(lab, app, first):  # noqa: F811
    run = lab.start("deploy", f"--app={app.path}")
    run.wait_for("worker1", "switched to")
    interrupt(run)
    assert run.end() == 2, run.text
    assert "Every host is as before" in run.text
    lab.assert_clean()
    lab.assert_runs(first)


@pytest.mark.long
def test_a_deploy_stopped_at_the_second_host_names_the_first(lab, app, first):  # noqa: F811
    run = lab.start("deploy", f"--app={app.path}")
    run.wait_for("worker2", "switched to")
    interrupt(run)
    assert run.end() == 4, run.text
    new = lab.current("worker1")
    assert new > first
    assert f"worker1 is on {new}; as before: worker2" in run.text
    lab.assert_clean()
    lab.assert_runs(new, "worker1")
    lab.assert_runs(first, "worker2")
    # And the way back from there is one command.
    assert lab.fab("rollback").code == 0
    lab.assert_runs(first)


# --- workers ---------------------------------------------------------------------------------------------


def test_an_application_that_does_not_import_goes_back_on_the_first_host(lab, app, first):  # noqa: F811
    app.write("shop/jobs.py", BROKEN_JOBS)
    app.commit()
    done = lab.deploy(app)
    assert done.code == 2, done.text
    assert re.search(r"fab: worker1: (switch|verify): .*shop_(hello_world|mail)_00", done.text)
    assert "Every host is as before" in done.text
    lab.assert_clean()
    lab.assert_runs(first)
    assert lab.on("worker1", "ls -A /srv/shop/releases") == first
    record = json.loads(lab.on("worker1", "tail -n 1 /srv/shop/deploys.jsonl"))
    assert (record["result"], record["previous"]) == ("failed", first)


def test_an_application_that_fails_on_the_second_host_names_the_first(lab, app, first):  # noqa: F811
    app.write("shop/jobs.py", BROKEN_ON_WORKER2 + (app.path / "shop/jobs.py").read_text())
    app.commit()
    done = lab.deploy(app)
    assert done.code == 4, done.text
    new = lab.current("worker1")
    assert f"worker1 is on {new}; as before: worker2" in done.text
    lab.assert_runs(new, "worker1")
    lab.assert_runs(first, "worker2")
    lab.assert_clean()


@pytest.mark.long
def test_a_first_deploy_that_fails_leaves_no_release(lab, app):  # noqa: F811
    lab.reset()
    app.write("shop/jobs.py", BROKEN_JOBS)
    app.commit()
    done = lab.deploy(app)
    assert done.code == 2, done.text
    lab.assert_runs(None)
    lab.assert_clean()


# --- hosts -----------------------------------------------------------------------------------------------


def test_a_wheel_that_the_hosts_pip_refuses_changes_nothing(lab, app, first, tmp_path):  # noqa: F811
    wheel = make_wheel(tmp_path / "index", "library")
    with zipfile.ZipFile(wheel) as good:
        files = {name: good.read(name) for name in good.namelist()}
    # Well-formed for pip download, which looks at the metadata only; pip install knows no place for it.
    files["library-1.0.data/nonsense/x"] = b""
    with zipfile.ZipFile(wheel, "w") as bad:
        for name, data in files.items():
            bad.writestr(name, data)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    app.write("requirements.txt", f"--find-links {wheel.parent}\nlibrary==1.0 --hash=sha256:{digest}\n")
    app.commit()
    done = lab.deploy(app)
    assert done.code == 2, done.text
    assert "prepare" in done.text
    assert "library" in done.text
    assert "Every host is as before" in done.text
    lab.assert_clean()
    lab.assert_runs(first)


def test_a_connection_lost_in_mid_switch_puts_the_host_back(lab, app, first):  # noqa: F811
    run = lab.start("deploy", f"--app={app.path}")
    run.wait_for("worker1", "switched to")
    lab.on("worker1", "pkill -KILL -f '^sshd: deploy'")
    assert run.end() == 2, run.text
    assert "the connection was lost" in run.text
    lab.assert_clean()
    lab.assert_runs(first)


def test_a_host_that_is_down_is_refused_by_name_before_anything_changes(lab, app, first, tmp_path):  # noqa: F811
    def nobody_there(_, host):
        host["ansible_host"] = host["ansible_host"].rsplit(".", 1)[0] + ".250"

    env = changed_inventory(lab, tmp_path, nobody_there)
    done = lab.deploy(app, env=env)
    assert done.code == 1, done.text
    assert "fab: worker2 does not answer at" in done.text
    lab.assert_clean()
    lab.assert_runs(first)
    status = lab.fab("status", env=env)
    assert status.code == 1
    assert first in status.text
    # Without it the rest can be deployed to.
    assert lab.deploy(app, "--limit=worker1", env=env).code == 0


def ssh_config_with(lab, folder, known_hosts):
    path = folder / "ssh_config"
    text = re.sub(r"UserKnownHostsFile .*", f"UserKnownHostsFile {known_hosts}", lab.ssh_config.read_text())
    path.write_text(text)
    return lambda everywhere, _: everywhere["vars"].update(deploy_ssh_config=str(path))


def test_an_unknown_host_key_is_refused(lab, app, first, tmp_path):  # noqa: F811
    (tmp_path / "known_hosts").touch()
    env = changed_inventory(lab, tmp_path, ssh_config_with(lab, tmp_path, tmp_path / "known_hosts"))
    done = lab.deploy(app, env=env)
    assert done.code == 1, done.text
    assert re.search(r"worker1: unknown host key for \S+ \(ssh-ed25519 SHA256:\S+\)", done.text)
    assert f"add it to {tmp_path / 'known_hosts'}" in done.text
    assert (tmp_path / "known_hosts").read_text() == ""
    lab.assert_runs(first)


@pytest.mark.long
def test_a_changed_host_key_is_refused(lab, app, first, tmp_path):  # noqa: F811
    known = Path(re.search(r"UserKnownHostsFile (.*)", lab.ssh_config.read_text()).group(1)).read_text()
    names = list(dict.fromkeys(re.findall(r"^(\S+) ", known, re.MULTILINE)))
    assert len(names) == 2
    swapped = known.replace(names[0], "SWAP").replace(names[1], names[0]).replace("SWAP", names[1])
    (tmp_path / "known_hosts").write_text(swapped)
    env = changed_inventory(lab, tmp_path, ssh_config_with(lab, tmp_path, tmp_path / "known_hosts"))
    done = lab.deploy(app, env=env)
    assert done.code == 1, done.text
    assert "the host key has changed" in done.text
    lab.assert_runs(first)


def test_a_host_where_sudo_refuses_is_named_before_anything_changes(lab, app, first):  # noqa: F811
    lab.on("worker2", "mkdir /root/aside && mv /etc/sudoers.d/*kestrel* /root/aside/")
    try:
        done = lab.deploy(app)
    finally:
        lab.on("worker2", "mv /root/aside/* /etc/sudoers.d/ && rmdir /root/aside")
    assert done.code == 1, done.text
    assert "worker2: user deploy may not run kestrel-stack-workers by sudo: run ansible-playbook" in done.text
    lab.assert_clean()
    lab.assert_runs(first)


@pytest.mark.long
def test_a_missing_helper_is_named(lab, app):  # noqa: F811
    lab.reset()
    path = "/usr/local/sbin/kestrel-stack-workers"
    lab.on("worker1", f"mv {path} {path}.aside")
    try:
        done = lab.deploy(app)
    finally:
        lab.on("worker1", f"mv {path}.aside {path}")
    assert done.code == 1, done.text
    assert "worker1: kestrel-stack-workers is missing: run ansible-playbook site.yml first" in done.text
    lab.assert_runs(None)


@pytest.mark.long
def test_a_disk_that_is_too_small_is_named_before_anything_is_sent(lab, app, first):  # noqa: F811
    # The running workers keep their old folders open meanwhile.
    lab.on(
        "worker2",
        "cp -a /srv/shop /srv/aside && mount -t tmpfs -o size=30m,mode=2755 tmpfs /srv/shop"
        " && chown deploy:shop /srv/shop && cd /srv/aside && cp -a releases shared current /srv/shop/"
        " && mkdir /srv/shop/venvs && chown deploy:shop /srv/shop/venvs",
    )
    try:
        done = lab.deploy(app)
        left = lab.on("worker2", "ls -A /srv/shop/releases")
    finally:
        lab.on("worker2", "umount -l /srv/shop && rm -rf /srv/aside")
    assert done.code == 1, done.text
    assert re.search(r"worker2: \d+ MB free under /srv/shop, \d+ MB needed", done.text)
    assert left == first
    lab.assert_runs(first)
