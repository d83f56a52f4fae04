"""Hosts and lines that fail while they are deployed to."""

import hashlib
import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from support.deploy import make_wheel

pytestmark = pytest.mark.docker


# What the workers write goes where it went: only the releases are on the small disk.
SMALL_DISK = (
    "rm -rf /srv/aside && cp -a /srv/shop /srv/aside"
    " && mkdir /srv/shared && mount --bind /srv/shop/shared /srv/shared"
    " && mount -t tmpfs -o size={megabytes}m,mode=2755 tmpfs /srv/shop && chown deploy:shop /srv/shop"
    " && mkdir /srv/shop/shared && mount --bind /srv/shared /srv/shop/shared"
    " && cd /srv/aside && cp -a releases current /srv/shop/"
)
WITH_VENVS = " && cp -a venvs /srv/shop/"
WITHOUT_VENVS = " && mkdir /srv/shop/venvs && chown deploy:shop /srv/shop/venvs"
NORMAL_DISK = (
    "umount /srv/shop/shared && umount -l /srv/shop && umount /srv/shared && rmdir /srv/shared"
    " && rm -rf /srv/aside"
)


def changed_inventory(lab, folder, change, host="worker2"):
    """A copy of the inventory with another ssh configuration or address for one host."""
    copy = folder / "inventory"
    shutil.copytree(lab.inventory, copy)
    made = yaml.safe_load((copy / "containers.yml").read_text())
    change(made["all"], made["all"]["hosts"][host])
    (copy / "containers.yml").write_text(yaml.safe_dump(made))
    return copy


@pytest.mark.long
def test_a_wheel_that_the_hosts_pip_refuses_changes_nothing(lab, app, first, tmp_path):
    """A wheel that the hosts' pip refuses"""
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


def test_a_connection_lost_in_mid_switch_puts_the_host_back(lab, app, first):
    """Connection lost in mid-switch"""
    run = lab.start("deploy", f"--app={app.path}")
    run.wait_for("worker1", "switched to")
    lab.on("worker1", "pkill -KILL -f '^sshd: deploy'")
    assert run.end() == 2, run.text
    assert "the connection was lost" in run.text
    lab.assert_clean()
    lab.assert_runs(first)


def nobody_there(_, host):
    host["ansible_host"] = host["ansible_host"].rsplit(".", 1)[0] + ".250"


def test_a_host_that_is_down_is_refused_by_name_before_anything_changes(lab, app, first, tmp_path):
    """A host that is down"""
    env = changed_inventory(lab, tmp_path, nobody_there)
    done = lab.deploy(app, env=env)
    assert done.code == 1, done.text
    assert "fab: worker2 does not answer at" in done.text
    lab.assert_clean()
    lab.assert_runs(first)
    status = lab.fab("status", env=env)
    assert status.code == 1
    assert first in status.text


@pytest.mark.long
def test_the_hosts_beside_one_that_is_down(lab, app, first, tmp_path):
    """A host that is down, left out by --limit"""
    env = changed_inventory(lab, tmp_path, nobody_there)
    done = lab.deploy(app, "--limit=worker1", env=env)
    assert done.code == 0, done.text
    assert lab.current("worker1") > first
    lab.assert_runs(first, "worker2")


def ssh_config_with(lab, folder, known_hosts):
    path = folder / "ssh_config"
    text = re.sub(r"UserKnownHostsFile .*", f"UserKnownHostsFile {known_hosts}", lab.ssh_config.read_text())
    path.write_text(text)
    return lambda everywhere, _: everywhere["vars"].update(deploy_ssh_config=str(path))


def test_an_unknown_host_key_is_refused(lab, app, first, tmp_path):
    """Unknown host key"""
    (tmp_path / "known_hosts").touch()
    env = changed_inventory(lab, tmp_path, ssh_config_with(lab, tmp_path, tmp_path / "known_hosts"))
    done = lab.deploy(app, env=env)
    assert done.code == 1, done.text
    assert re.search(r"worker1: unknown host key for \S+ \(ssh-ed25519 SHA256:\S+\)", done.text)
    assert f"add it to {tmp_path / 'known_hosts'}" in done.text
    assert (tmp_path / "known_hosts").read_text() == ""
    lab.assert_runs(first)


def test_a_changed_host_key_is_refused(lab, app, first, tmp_path):
    """Changed host key"""
    known = Path(re.search(r"UserKnownHostsFile (.*)", lab.ssh_config.read_text()).group(1)).read_text()
    names = [re.search(rf"^({host},\S+) ", known, re.MULTILINE).group(1) for host in ("worker1", "worker2")]
    swapped = known.replace(names[0], "SWAP").replace(names[1], names[0]).replace("SWAP", names[1])
    (tmp_path / "known_hosts").write_text(swapped)
    env = changed_inventory(lab, tmp_path, ssh_config_with(lab, tmp_path, tmp_path / "known_hosts"))
    done = lab.deploy(app, env=env)
    assert done.code == 1, done.text
    assert "the host key has changed" in done.text
    lab.assert_runs(first)


def test_a_host_where_sudo_refuses_is_named_before_anything_changes(lab, app, first):
    """sudo refuses"""
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
def test_a_missing_helper_is_named(lab, app):
    """kestrel-stack-workers missing"""
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
def test_a_disk_that_is_too_small_is_named_before_anything_is_sent(lab, app, first):
    """A disk that is too small"""
    lab.inside("worker2", SMALL_DISK.format(megabytes=30) + WITHOUT_VENVS)
    try:
        done = lab.deploy(app)
        left = lab.inside("worker2", "ls -A /srv/shop/releases")
    finally:
        lab.inside("worker2", NORMAL_DISK)
    assert done.code == 1, done.text
    assert re.search(r"worker2: \d+ MB free under /srv/shop, \d+ MB needed", done.text)
    assert left == first
    lab.assert_runs(first)


def with_large_file(app):
    """Something to upload that takes a while."""
    (app.path / "large.bin").write_bytes(os.urandom(3_000_000))
    app.commit()


@pytest.mark.long
def test_a_disk_that_fills_while_the_release_is_sent(lab, app, first, tmp_path):
    """Full disk on one host, in mid-upload"""
    with_large_file(app)
    lab.inside("worker2", SMALL_DISK.format(megabytes=150) + WITH_VENVS)
    try:
        with lab.behind_proxy("worker2", tmp_path) as (proxy, env):
            proxy.fall_silent_after(1_000_000)
            run = lab.start("deploy", f"--app={app.path}", env=env)
            proxy.wait_for_silence()
            lab.inside("worker2", "head -c 200M /dev/zero >/srv/shop/filling || true")
            proxy.speak()
            code = run.end()
        lab.inside("worker2", "rm /srv/shop/filling")
        left = lab.inside("worker2", "ls -A /srv/shop/releases")
        lab.assert_clean()
    finally:
        lab.inside("worker2", NORMAL_DISK)
    assert code == 2, run.text
    assert re.search(r"fab: worker2: .*(disk is full|No space left)", run.text)
    assert "Every host is as before" in run.text
    assert left == first
    lab.assert_runs(first)


@pytest.mark.long
def test_a_host_that_stops_answering_in_mid_upload(lab, app, first, tmp_path):
    """A host that stops answering in mid-upload"""
    with_large_file(app)
    with lab.behind_proxy("worker2", tmp_path) as (proxy, env):
        proxy.fall_silent_after(1_000_000)
        run = lab.start("deploy", f"--app={app.path}", env=env)
        proxy.wait_for_silence()
        code = run.end()
        assert re.search(r"fab: worker2: .*(no answer|the connection was lost)", run.text), run.text
        assert code in (2, 4), run.text
        lab.assert_clean("worker1")
        lab.assert_runs(first)
        proxy.speak()
    lab.wait_for_quiet()
    again = lab.deploy(app)
    assert again.code == 0, again.text
    lab.assert_runs(lab.current("worker1"))
    lab.assert_clean()


@pytest.mark.long
def test_a_host_that_stops_answering_in_mid_switch(lab, app, first, tmp_path):
    """A host that stops answering in mid-switch, and stays silent"""
    with lab.behind_proxy("worker1", tmp_path) as (proxy, env):
        run = lab.start("deploy", f"--app={app.path}", env=env)
        run.wait_for("worker1", "switched to")
        proxy.fall_silent()
        code = run.end(300)
        assert code == 4, run.text
        assert re.search(r"fab: worker1: .*; as before: worker2", run.text), run.text
        lab.assert_runs(first, "worker2")
        # It ends what it had begun, or goes back by itself: it is wholly on one of the two.
        lab.wait_for_quiet()
        lab.assert_whole("worker1")
        proxy.speak()
    lab.assert_runs(lab.deployed(app))
    lab.assert_clean()


@pytest.mark.long
def test_a_line_that_comes_back_after_mid_switch(lab, app, first, tmp_path):
    """A line that breaks in mid-switch, and comes back"""
    with lab.behind_proxy("worker1", tmp_path) as (proxy, env):
        run = lab.start("deploy", f"--app={app.path}", env=env)
        run.wait_for("worker1", "switched to")
        proxy.cut()
        code = run.end(300)
    assert code == 2, run.text
    assert "Every host is as before" in run.text
    lab.assert_clean()
    lab.assert_runs(first)


@pytest.mark.long
def test_a_host_that_freezes_in_mid_switch(lab, app, first):
    """A host that freezes in mid-switch (docker pause), and thaws later"""
    run = lab.start("deploy", f"--app={app.path}")
    run.wait_for("worker1", "switched to")
    with lab.frozen("worker1"):
        code = run.end(300)
    assert code == 4, run.text
    assert re.search(r"fab: worker1: .*; as before: worker2", run.text), run.text
    lab.wait_for_quiet()
    lab.assert_whole("worker1")
    lab.assert_runs(first, "worker2")
    lab.assert_runs(lab.deployed(app))
    lab.assert_clean()


@pytest.mark.long
def test_a_host_without_sudo(lab, app, first):
    """sudo missing"""
    lab.inside("worker2", "mv /usr/bin/sudo /usr/bin/sudo.aside")
    try:
        done = lab.deploy(app)
    finally:
        lab.inside("worker2", "mv /usr/bin/sudo.aside /usr/bin/sudo")
    assert done.code == 1, done.text
    assert re.search(r"fab: worker2: .*sudo.*run ansible-playbook", done.text), done.text
    lab.assert_clean()
    lab.assert_runs(first)
