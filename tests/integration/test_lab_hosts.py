"""The lab's containers, as molecule and bin/up make them: real engine, real systemd, real SSH."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kestrel_stack.lab import engine, hosts, inventory
from kestrel_stack.lab.inventory import Lab

pytestmark = pytest.mark.docker
ROOT = Path(__file__).resolve().parents[2]


def lab_command(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **more}
    return subprocess.run(
        [sys.executable, "-m", "kestrel_stack.lab", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


def describe(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": dict.fromkeys(names)}}))
    return folder


def ssh(lab: Lab, host: str, command: str, *, user: str = "admin") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", "-l", user, host, command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def container_ids(lab: Lab) -> dict[str, str]:
    return {host: item["Id"] for host, item in hosts.existing(lab).items()}


def clean(folder: Path) -> None:
    lab = inventory.load(folder)
    lab_command("hosts", "down", "--inventory", str(folder))
    hosts.lock_path(lab).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return an inventory folder whose two hosts are up."""
    made = describe(tmp_path_factory.mktemp("lab") / "inventory one", "queue1", "worker1")
    done = lab_command("hosts", "up", "--inventory", str(made))
    try:
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        clean(made)


@pytest.fixture
def lab(folder: Path) -> Lab:
    return inventory.load(folder)


def test_a_host_is_a_host_systemd_sshd_sudo_and_its_own_name(lab: Lab) -> None:
    done = ssh(lab, "worker1", "cat /proc/1/comm; systemctl is-system-running; sudo -n id -u; hostname")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["systemd", "running", "0", "worker1"]


def test_hosts_know_each_other_by_name(lab: Lab) -> None:
    addresses = yaml.safe_load(lab.containers_yml.read_text())["all"]["hosts"]
    done = ssh(lab, "worker1", "getent hosts queue1")
    assert done.stdout.split()[0] == addresses["queue1"]["kestrel_stack_address"]


def test_every_host_has_an_identity_of_its_own(lab: Lab) -> None:
    machine_ids = {ssh(lab, host, "cat /etc/machine-id").stdout for host in lab.hosts}
    keys = {ssh(lab, host, "cat /etc/ssh/ssh_host_ed25519_key.pub").stdout.split()[1] for host in lab.hosts}
    assert len(machine_ids) == len(keys) == len(lab.hosts)


def test_ansible_reaches_every_host_with_the_generated_inventory_alone(lab: Lab) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible"), "-i", str(lab.inventory), "all", "-b", "-m", "ping"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == len(lab.hosts)


def test_a_host_with_another_key_than_the_known_one_is_refused(lab: Lab) -> None:
    known = lab.ssh_config.with_name("known_hosts")
    before = known.read_text()
    # The two hosts' keys change places.
    first, second = yaml.safe_load(lab.containers_yml.read_text())["all"]["hosts"].values()
    one, two = first["ansible_host"], second["ansible_host"]
    known.write_text(
        before.replace(one, "ONE")
        .replace(two, one)
        .replace("ONE", two)
        .replace("queue1,", "")
        .replace("worker1,", "")
    )
    try:
        done = ssh(lab, "worker1", "true")
        assert done.returncode == 255
        assert "Host key verification failed" in done.stderr
    finally:
        known.write_text(before)
    assert ssh(lab, "worker1", "true").returncode == 0


def test_nobody_logs_in_as_root_or_with_another_key(lab: Lab, tmp_path: Path) -> None:
    assert ssh(lab, "worker1", "true", user="root").returncode == 255
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    text = lab.ssh_config.read_text().replace(f'"{lab.private_key}"', str(tmp_path / "key"))
    (tmp_path / "config").write_text(text.replace(str(lab.private_key), str(tmp_path / "key")))
    done = subprocess.run(
        ["ssh", "-F", str(tmp_path / "config"), "-o", "BatchMode=yes", "worker1", "true"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


def test_the_private_key_is_readable_by_its_owner_only(lab: Lab) -> None:
    assert lab.private_key.stat().st_mode & 0o077 == 0


def test_hosts_that_stand_are_left_alone(lab: Lab, folder: Path) -> None:
    before = container_ids(lab)
    written = lab.containers_yml.stat().st_mtime_ns
    done = lab_command("hosts", "up", "--inventory", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already up") == len(lab.hosts)
    assert container_ids(lab) == before
    assert lab.containers_yml.stat().st_mtime_ns == written


def test_a_stopped_host_is_started_again_with_its_address_its_key_and_its_files(
    lab: Lab, folder: Path
) -> None:
    before = (
        lab.containers_yml.read_text(),
        lab.ssh_config.with_name("known_hosts").read_text(),
        container_ids(lab),
    )
    assert ssh(lab, "worker1", "echo kept | sudo tee /root/kept").returncode == 0
    engine.docker("kill", lab.container("worker1"))
    done = lab_command("hosts", "up", "--inventory", str(folder))
    assert done.returncode == 0, done.stderr
    assert "worker1" in next(line for line in done.stdout.splitlines() if line.endswith(" started"))
    assert ssh(lab, "worker1", "sudo cat /root/kept").stdout == "kept\n"
    after = (
        lab.containers_yml.read_text(),
        lab.ssh_config.with_name("known_hosts").read_text(),
        container_ids(lab),
    )
    assert after == before


def test_a_removed_host_alone_is_made_again(lab: Lab, folder: Path) -> None:
    before = container_ids(lab)
    engine.docker("rm", "--force", lab.container("worker1"))
    done = lab_command("hosts", "up", "--inventory", str(folder))
    assert done.returncode == 0, done.stderr
    after = container_ids(lab)
    assert after["queue1"] == before["queue1"]
    assert after["worker1"] != before["worker1"]
    assert ssh(lab, "worker1", "true").returncode == 0


def test_lost_files_are_written_again(lab: Lab, folder: Path) -> None:
    before = lab.containers_yml.read_text()
    lab.containers_yml.unlink()
    lab.private_key.unlink()
    lab.private_key.with_suffix(".pub").unlink()
    assert lab_command("hosts", "up", "--inventory", str(folder)).returncode == 0
    assert ssh(lab, "queue1", "true").returncode == 0
    assert lab.containers_yml.read_text().splitlines()[:4] == before.splitlines()[:4]


def test_a_changed_list_of_hosts_is_refused_until_recreate(tmp_path: Path) -> None:
    inv = describe(tmp_path / "inv", "queue1")
    try:
        assert lab_command("hosts", "up", "--inventory", str(inv)).returncode == 0
        before = container_ids(inventory.load(inv))
        describe(inv, "queue1", "worker1")
        refused = lab_command("hosts", "up", "--inventory", str(inv))
        assert refused.returncode == 1
        assert "(hosts)" in refused.stderr
        assert "--recreate" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert container_ids(inventory.load(inv)) == before
        done = lab_command("hosts", "up", "--inventory", str(inv), "--recreate")
        assert done.returncode == 0, done.stderr
        after = container_ids(inventory.load(inv))
        assert set(after) == {"queue1", "worker1"}
        assert after["queue1"] != before["queue1"]
    finally:
        clean(inv)


def test_two_labs_side_by_side_have_networks_apart_and_one_goes_without_the_other(
    lab: Lab, tmp_path: Path
) -> None:
    inv = describe(tmp_path / "inv", "queue1")
    try:
        assert lab_command("hosts", "up", "--inventory", str(inv)).returncode == 0
        other = inventory.load(inv)
        addresses = [
            yaml.safe_load(one.containers_yml.read_text())["all"]["hosts"]["queue1"]["ansible_host"]
            for one in (lab, other)
        ]
        assert addresses[0].rpartition(".")[0] != addresses[1].rpartition(".")[0]
        before = container_ids(lab)
        removed = lab_command("hosts", "down", "--inventory", str(inv))
        assert removed.returncode == 0
        assert other.container("queue1") in removed.stdout
        assert not other.containers_yml.exists()
        assert not other.state.exists()
        assert container_ids(lab) == before
        assert ssh(lab, "queue1", "true").returncode == 0
        again = lab_command("hosts", "down", "--inventory", str(inv))
        assert (again.returncode, "nothing is there" in again.stdout) == (0, True)
    finally:
        clean(inv)


def test_down_without_an_engine_says_so_and_keeps_what_tells_about_the_containers(
    lab: Lab, folder: Path
) -> None:
    done = lab_command("hosts", "down", "--inventory", str(folder), DOCKER_HOST="unix:///no/such/socket")
    assert done.returncode == 1
    assert "no Docker engine answers" in done.stderr
    assert lab.containers_yml.exists()


def test_an_unsupported_debian_is_refused_before_any_container_is_made(tmp_path: Path) -> None:
    inv = describe(tmp_path / "inv", "queue1")
    try:
        done = lab_command("hosts", "up", "--inventory", str(inv), "--suite", "buster")
        assert done.returncode == 1
        assert "bookworm, trixie" in done.stderr
        assert container_ids(inventory.load(inv)) == {}
    finally:
        clean(inv)


def test_an_interrupted_up_is_finished_by_the_next(tmp_path: Path) -> None:
    inv = describe(tmp_path / "inv", "queue1", "worker1")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "kestrel_stack.lab", "hosts", "up", "--inventory", str(inv)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        one = inventory.load(inv)
        while not hosts.existing(one):
            assert process.poll() is None, "it ended before its first container"
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = lab_command("hosts", "up", "--inventory", str(inv))
        assert done.returncode == 0, done.stderr
        assert all(ssh(one, host, "true").returncode == 0 for host in one.hosts)
    finally:
        clean(inv)
