"""What Ansible says of an inventory is remembered, and never for longer than it is true."""

import json
import os
import shutil

import pytest

from kestrel_stack.deploy import description, listing
from support.deploy import ROOT


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with an inventory of plain files, and a person without habits of their own."""
    for name in [name for name in os.environ if name.startswith("ANSIBLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    folder = tmp_path / "inventory"
    (folder / "group_vars").mkdir(parents=True)
    (folder / "hosts.yml").write_text("app: {hosts: {one: {ansible_host: 10.0.0.1, password: secret}}}\n")
    (folder / "group_vars" / "all.yml").write_text("kestrel_stack_app: shop\n")
    shutil.copy(ROOT / "ansible.cfg", tmp_path / "ansible.cfg")
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """How often Ansible was asked."""
    calls = []
    real = listing.ask_ansible
    monkeypatch.setattr(listing, "ask_ansible", lambda *words: calls.append(1) or real(*words))
    return calls


def listed(checkout, inventory="inventory"):
    return listing.list_inventory(checkout / inventory, checkout, description._needed)


def test_an_inventory_of_plain_files_is_asked_for_once_and_what_is_remembered_is_the_same(checkout, asked):
    first = listed(checkout)
    assert first["_meta"]["hostvars"] == {"one": {"ansible_host": "10.0.0.1", "kestrel_stack_app": "shop"}}
    assert first["app"] == {"hosts": ["one"]}
    assert listed(checkout) == first
    assert len(asked) == 1


def test_what_the_deploy_does_not_read_is_not_written_down(checkout):
    listed(checkout)
    (kept,) = (checkout / ".build" / "inventories").iterdir()
    assert "secret" not in kept.read_text()


def test_what_another_version_of_fab_remembers_is_not_taken_for_what_this_one_needs(checkout, asked):
    inventory = checkout / "inventory"
    for keys in (("a",), ("a", "b"), ("a",)):
        listing.list_inventory(inventory, checkout, description._needed, keys)
    assert len(asked) == 2


def key(checkout, inventory="inventory"):
    return listing.fingerprint(checkout / inventory, checkout)


def change_a_value(checkout):
    (checkout / "inventory" / "group_vars" / "all.yml").write_text("kestrel_stack_app: other\n")


def add_a_file(checkout):
    (checkout / "inventory" / "containers.yml").write_text("app: {hosts: {two: {}}}\n")


def rename_a_file(checkout):
    (checkout / "inventory" / "hosts.yml").rename(checkout / "inventory" / "machines.yml")


def add_an_empty_folder(checkout):
    (checkout / "inventory" / "host_vars").mkdir()


def change_the_configuration(checkout):
    (checkout / "ansible.cfg").write_text("[defaults]\nforks = 3\n")


def add_a_configuration_at_home(checkout):
    (checkout / "home" / ".ansible.cfg").write_text("[defaults]\nforks = 3\n")


@pytest.mark.parametrize(
    "change",
    [
        change_a_value,
        add_a_file,
        rename_a_file,
        add_an_empty_folder,
        change_the_configuration,
        add_a_configuration_at_home,
    ],
)
def test_any_change_has_ansible_asked_again(checkout, change):
    before = key(checkout)
    assert before is not None
    assert key(checkout) == before
    change(checkout)
    assert key(checkout) not in (None, before)


def make_a_program(checkout):
    (checkout / "inventory" / "hosts.yml").chmod(0o755)


def use_a_plugin(checkout):
    (checkout / "inventory" / "cloud.yml").write_text("---\nplugin: amazon.aws.aws_ec2\n")


def use_a_plugin_in_json(checkout):
    (checkout / "inventory" / "cloud.json").write_text('{"a": 1, "plugin" : "constructed"}')


def encrypt_a_file(checkout):
    (checkout / "inventory" / "group_vars" / "all.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n00\n")


def link_to_elsewhere(checkout):
    (checkout / "elsewhere").mkdir()
    (checkout / "inventory" / "host_vars").symlink_to(checkout / "elsewhere")


def link_to_nowhere(checkout):
    (checkout / "inventory" / "host_vars").symlink_to("nowhere")


def configure_plugins(checkout):
    (checkout / "ansible.cfg").write_text("[defaults]\nvars_plugins_enabled = host_group_vars, mine\n")


def add_plugins_at_home(checkout):
    (checkout / "home" / ".ansible" / "plugins" / "vars").mkdir(parents=True)


def be_large(checkout):
    (checkout / "inventory" / "notes.yml").write_text("#" * 2_000_000)


@pytest.mark.parametrize(
    "change",
    [
        make_a_program,
        use_a_plugin,
        use_a_plugin_in_json,
        encrypt_a_file,
        link_to_elsewhere,
        link_to_nowhere,
        configure_plugins,
        add_plugins_at_home,
        be_large,
    ],
)
def test_where_something_else_has_a_say_ansible_is_asked_every_time(checkout, change):
    change(checkout)
    assert key(checkout) is None


def test_with_ansibles_own_variables_it_is_asked_every_time(checkout, monkeypatch):
    monkeypatch.setenv("ANSIBLE_VARS_ENABLED", "mine")
    assert key(checkout) is None


def test_a_single_file_is_read_with_the_folders_beside_it(checkout):
    single = checkout / "inventory" / "hosts.yml"
    before = listing.fingerprint(single, checkout)
    change_a_value(checkout)
    assert listing.fingerprint(single, checkout) not in (None, before)


def test_what_was_written_while_ansible_read_is_not_remembered(checkout, monkeypatch, asked):
    real = listing.ask_ansible

    def slow(*words):
        said = real(*words)
        change_a_value(checkout)
        return said

    monkeypatch.setattr(listing, "ask_ansible", slow)
    assert listed(checkout)["_meta"]["hostvars"]["one"]["kestrel_stack_app"] == "shop"
    monkeypatch.setattr(listing, "ask_ansible", real)
    assert listed(checkout)["_meta"]["hostvars"]["one"]["kestrel_stack_app"] == "other"


def test_what_cannot_be_read_back_or_written_is_asked_for(checkout, asked):
    listed(checkout)
    (kept,) = (checkout / ".build" / "inventories").iterdir()
    kept.write_text('{"half')
    assert listed(checkout)["app"] == {"hosts": ["one"]}
    shutil.rmtree(checkout / ".build")
    (checkout / ".build").write_text("in the way")
    assert listed(checkout)["app"] == {"hosts": ["one"]}
    assert len(asked) == 3


def test_only_so_many_are_kept(checkout, monkeypatch):
    folder = checkout / ".build" / "inventories"
    for number in range(listing.KEPT + 5):
        listing._remember(folder / f"{number}.json", {"number": number})
    assert len(list(folder.iterdir())) == listing.KEPT
    assert json.loads((folder / f"{listing.KEPT + 4}.json").read_text()) == {"number": listing.KEPT + 4}
