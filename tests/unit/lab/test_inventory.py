from __future__ import annotations

from pathlib import Path

import paramiko
import pytest
import yaml

from kestrel_stack.lab import inventory
from kestrel_stack.lab.errors import LabError

HOSTS = """
all:
  children:
    kestrel:
      hosts:
        queue1:
    consumers:
      hosts:
        worker1:
        worker2:
    web:
    app:
      children:
        consumers:
        web:
"""


def folder_with(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / "ansible" / "inventories" / "lab"
    folder.mkdir(parents=True)
    (folder / "hosts.yml").write_text(text)
    return folder


def test_hosts_come_from_every_group_once_and_in_the_files_order(tmp_path: Path) -> None:
    lab = inventory.load(folder_with(tmp_path, HOSTS), tmp_path)
    assert lab.hosts == ("queue1", "worker1", "worker2")
    assert lab.groups["consumers"] == ("worker1", "worker2")


def test_a_group_has_the_hosts_of_a_child_that_is_filled_in_elsewhere(tmp_path: Path) -> None:
    early = "app:\n  children:\n    consumers:\nconsumers:\n  hosts:\n    worker1:\n"
    lab = inventory.load(folder_with(tmp_path, early), tmp_path)
    assert lab.groups["app"] == ("worker1",)


@pytest.mark.parametrize(
    ("inside", "name"),
    [
        ("ansible/inventories/lab", "lab"),
        ("ansible/inventories/single", "single"),
        ("molecule/default/inventory", "molecule-default"),
        ("molecule/kestrel/inventory", "molecule-kestrel"),
    ],
)
def test_a_labs_name_is_short_and_readable(tmp_path: Path, inside: str, name: str) -> None:
    assert inventory.lab_name(tmp_path / inside, tmp_path) == name


def test_two_checkouts_with_the_same_inventory_have_different_containers(tmp_path: Path) -> None:
    labs = []
    for checkout in ("one", "two"):
        folder = folder_with(tmp_path / checkout, HOSTS)
        labs.append(inventory.load(folder, tmp_path / checkout))
    assert labs[0].container("queue1") != labs[1].container("queue1")
    assert labs[0].state == tmp_path / "one" / ".lab" / "lab"


def test_two_folders_of_one_name_outside_the_checkout_do_not_share_their_state(tmp_path: Path) -> None:
    states = set()
    for parent in ("one", "two"):
        folder = tmp_path / parent / "inv"
        folder.mkdir(parents=True)
        (folder / "hosts.yml").write_text(HOSTS)
        states.add(inventory.load(folder, tmp_path / "checkout").state)
    assert len(states) == 2


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "mapping"),
        ("- a list", "mapping"),
        ("all: {hosts: {", "cannot be read as YAML"),
        ("all: {children: {web: }}", "names no host"),
        ("all: {hosts: {'worker[1:3]': }}", "worker[1:3]"),
        ("all: {hosts: {queue1.example.com: }}", "queue1.example.com"),
        ("all: {hosts: [queue1]}", "group all"),
        ("all: text", "group all"),
    ],
)
def test_a_bad_hosts_file_is_refused_in_one_line_that_names_it(tmp_path: Path, text: str, named: str) -> None:
    folder = folder_with(tmp_path, text)
    with pytest.raises(LabError) as refused:
        inventory.load(folder, tmp_path)
    assert named in str(refused.value)
    assert str(folder / "hosts.yml") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_without_hosts_file_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"hosts\.yml: no such file"):
        inventory.load(tmp_path, tmp_path)


def test_the_generated_inventory_is_plain_data_that_ansible_and_the_deploy_read(tmp_path: Path) -> None:
    lab = inventory.load(folder_with(tmp_path, HOSTS), tmp_path)
    text = inventory.containers_yml(lab, {"queue1": "172.20.0.11"}, "ssh-ed25519 AAAA lab")
    data = yaml.safe_load(text)["all"]
    assert data["hosts"] == {
        "queue1": {"ansible_host": "172.20.0.11", "kestrel_stack_address": "172.20.0.11"}
    }
    assert data["vars"]["ansible_user"] == "admin"
    assert data["vars"]["deploy_ssh_config"] == str(lab.ssh_config)
    assert data["vars"]["app_host_deploy_keys"] == ["ssh-ed25519 AAAA lab"]
    assert "{{" not in text


def test_the_ssh_configuration_is_strict_for_names_and_addresses_even_in_a_folder_with_a_space(
    tmp_path: Path,
) -> None:
    checkout = tmp_path / "my checkout"
    lab = inventory.load(folder_with(checkout, HOSTS), checkout)
    text = inventory.ssh_config(lab, {"worker1": "172.20.0.12"})
    config = paramiko.SSHConfig.from_text(text)
    for name in ("worker1", "172.20.0.12"):
        found = config.lookup(name)
        assert found["hostname"] == "172.20.0.12"
        assert found["stricthostkeychecking"] == "yes"
        assert found["identityfile"] == [str(lab.private_key)]
        assert found["userknownhostsfile"] == str(lab.state / "ssh" / "known_hosts")
    assert " " in str(lab.ssh_config)
    arguments = yaml.safe_load(inventory.containers_yml(lab, {}, "key"))["all"]["vars"][
        "ansible_ssh_common_args"
    ]
    assert arguments == f"-F '{lab.ssh_config}'"
