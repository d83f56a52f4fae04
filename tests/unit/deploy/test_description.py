"""What people wrote into inventories, and what is refused."""

import copy
import shutil

import pytest
import yaml

from kestrel_stack.deploy import description
from kestrel_stack.deploy.description import parse_environment
from kestrel_stack.deploy.errors import REFUSED, Refused
from support.deploy import ROOT

VARIABLES = {
    "kestrel_stack_app": "shop",
    "kestrel_stack_namespace": "shop",
    "kestrel_stack_environment": "lab",
    "kestrel_stack_queues": [{"name": "hello_world", "processes": 2, "job_timeout": 30}, {"name": "mail"}],
    "deploy_user": "deploy",
}


def listing(**hosts):
    """The output of ansible-inventory for worker1 (consumer), web1 (web), queue1."""
    hostvars = {
        name: {**copy.deepcopy(VARIABLES), "ansible_host": f"10.0.0.{number}"}
        for number, name in enumerate(("worker1", "web1", "queue1"), 1)
    }
    for name, changes in hosts.items():
        hostvars[name].update(changes)
    return {
        "_meta": {"hostvars": hostvars},
        "all": {"children": ["ungrouped", "kestrel", "app"]},
        "kestrel": {"hosts": ["queue1"]},
        "app": {"children": ["consumers", "web"]},
        "consumers": {"hosts": ["worker1"]},
        "web": {"hosts": ["web1", "worker1"]},
    }


def parse(data, limit=None, env="lab", tmp=None):
    return parse_environment(env, tmp or ROOT, data, limit)


def refused(data, *words, **kwargs):
    with pytest.raises(Refused) as caught:
        parse(data, **kwargs)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.code == REFUSED


def test_the_hosts_of_group_app_are_taken_once_with_the_workers_of_consumers():
    environment = parse(listing())
    assert [host.name for host in environment.hosts] == ["worker1", "web1"]
    worker, web = environment.hosts
    assert (worker.address, worker.user, worker.port) == ("10.0.0.1", "deploy", None)
    assert [(q.group, q.processes, q.job_timeout) for q in worker.queues] == [
        ("shop_hello_world", 2, 30),
        ("shop_mail", 1, 60),
    ]
    assert web.queues == ()
    assert environment.root == "/srv/shop"


def test_a_host_serves_pages_when_it_is_in_the_group_web_or_in_a_group_of_it():
    data = listing()
    data["web"] = {"children": ["fronts"]}
    data["fronts"] = {"hosts": ["web1"]}
    assert [(host.name, host.web) for host in parse(data).hosts] == [("worker1", False), ("web1", True)]
    assert [host.web for host in parse(listing()).hosts] == [True, True]


def test_a_switch_waits_for_the_longest_request_that_a_host_serves():
    defaults = yaml.safe_load((ROOT / "ansible/roles/web/defaults/main.yml").read_text())
    worker, web = parse(listing(web1={"web_request_timeout": 900})).hosts
    assert (worker.web_request_timeout, web.web_request_timeout) == (defaults["web_request_timeout"], 900)
    for value in (0, True, "soon", "{{ x }}"):
        refused(listing(web1={"web_request_timeout": value}), "host web1", "web_request_timeout")


def test_queues_of_both_languages_are_taken_and_a_drain_waits_for_the_longest_job_a_worker_may_have():
    queues = [
        {"name": "hello_world", "also": ["bulk"]},
        {"name": "bulk", "job_timeout": 300},
        {"name": "post_upload", "language": "php", "job_timeout": 5},
    ]
    worker = parse(listing(worker1={"kestrel_stack_queues": queues})).hosts[0]
    assert [(q.group, q.job_timeout) for q in worker.queues] == [
        ("shop_hello_world", 300),
        ("shop_bulk", 300),
        ("shop_post_upload", 5),
    ]


@pytest.mark.parametrize("key", ["kestrel_stack_app", "deploy_user", "ansible_host", "deploy_ssh_config"])
def test_jinja_is_refused_in_whatever_the_deploy_reads(key):
    refused(listing(worker1={key: "{{ other }}"}), "host worker1", key, "'{{'")


def test_jinja_is_refused_inside_the_queues_and_allowed_in_what_the_deploy_does_not_read():
    queues = [{"name": "mail", "job_timeout": "{{ x }}"}]
    refused(listing(worker1={"kestrel_stack_queues": queues}), "kestrel_stack_queues", "'{{'")
    parse(listing(worker1={"kestrel_listen_address": "{{ kestrel_stack_address }}"}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kestrel_stack_app": "Shop/../etc"}, ["kestrel_stack_app", "'Shop/../etc'"]),
        ({"kestrel_stack_namespace": "a b"}, ["kestrel_stack_namespace", "'a b'"]),
        ({"kestrel_stack_app": None}, ["kestrel_stack_app is not set for host worker1"]),
        ({"deploy_user": None}, ["host worker1", "deploy_user"]),
        ({"deploy_user": "x; rm"}, ["host worker1", "deploy_user"]),
        ({"ansible_port": "22x"}, ["ansible_port", "'22x'"]),
        ({"deploy_ssh_config": "/nowhere/config"}, ["deploy_ssh_config", "/nowhere/config"]),
        ({"kestrel_stack_queues": []}, ["kestrel_stack_queues", "at least one queue"]),
        ({"kestrel_stack_queues": [{"name": "a b"}]}, ["'a b'"]),
        ({"kestrel_stack_queues": [{"name": "a"}, {"name": "a"}]}, ["names a twice"]),
        ({"kestrel_stack_queues": [{"name": "a", "processes": 0}]}, ["queue a", "processes is 0"]),
        ({"kestrel_stack_queues": [{"name": "a", "language": "perl"}]}, ["queue a", "python or php"]),
        ({"kestrel_stack_queues": [{"name": "a", "also": ["b"]}]}, ["queue a", "also is ['b']"]),
        ({"kestrel_stack_queues": [{"name": "a", "also": "a"}]}, ["queue a", "also is 'a'"]),
        ({"kestrel_stack_queues": [{"name": "a", "job_timeout": True}]}, ["queue a", "job_timeout is True"]),
    ],
)
def test_a_wrong_value_is_named(changes, words):
    both = {"web1": changes} if "kestrel_stack_app" in changes or "kestrel_stack_namespace" in changes else {}
    refused(listing(worker1=changes, **both), *words)


def test_hosts_must_agree_on_the_application():
    refused(
        listing(web1={"kestrel_stack_app": "other"}),
        "kestrel_stack_app differs",
        "worker1",
        "web1",
        "'other'",
    )


def test_a_lab_without_addresses_says_run_bin_up(tmp_path):
    data = listing(worker1={"ansible_host": None})
    refused(data, "host worker1", "has no address", "run bin/up", tmp=tmp_path)


def test_a_host_with_only_its_own_address_is_reached_by_its_name():
    data = listing(worker1={"ansible_host": None, "kestrel_stack_address": "10.0.0.1"})
    assert parse(data).hosts[0].address == "worker1"


def test_an_empty_group_app_is_refused():
    data = listing()
    data["app"] = {"children": ["kestrel_web"]}
    refused(data, "no hosts in group app")


@pytest.mark.parametrize(
    ("limit", "names"),
    [
        ("worker1", ["worker1"]),
        ("web1, worker1", ["worker1", "web1"]),
        ("w*", ["worker1", "web1"]),
        ("consumers", ["worker1"]),
    ],
)
def test_limit_takes_names_groups_and_patterns(limit, names):
    assert [host.name for host in parse(listing(), limit).hosts] == names


@pytest.mark.parametrize("limit", ["worker9", "worker1,nobody", "queue1", ""])
def test_a_limit_that_matches_nothing_is_named_with_the_hosts_there_are(limit):
    refused(listing(), "--limit", "worker1, web1", limit=limit)


def test_the_environment_of_errors_is_that_of_the_settings_and_not_the_inventorys_name():
    assert parse(listing(), env="../inventories/eu").reported == "lab"
    assert parse(listing(web1={"kestrel_stack_environment": "other"})).reported == ""
    unset = {name: {"kestrel_stack_environment": None} for name in ("worker1", "web1")}
    assert parse(listing(**unset)).reported == ""


def test_an_unknown_environment_is_named_with_those_there_are():
    with pytest.raises(Refused, match=r"unknown environment 'labb'.*example.*lab.*single"):
        description.find_inventory("labb")


def test_an_environment_may_be_a_path(tmp_path):
    assert description.find_inventory(str(tmp_path)) == tmp_path


def test_the_example_inventory_can_be_deployed_to_as_it_stands():
    environment = description.load_environment("example")
    assert all((host.queues or host.web) and host.user for host in environment.hosts)


@pytest.mark.parametrize(("name", "fix"), [("lab", "run bin/up"), ("single", "hosts up --inventory")])
def test_an_inventory_of_containers_that_were_not_made_names_the_command(tmp_path, name, fix):
    made = tmp_path / "ansible" / "inventories" / name
    shutil.copytree(ROOT / "ansible" / "inventories" / name, made)
    (made / "containers.yml").unlink(missing_ok=True)
    with pytest.raises(Refused, match=f"has no address .*{fix}"):
        description.load_environment(name, root=tmp_path)


def test_an_inventory_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "hosts.yml").write_text("all: [\n")
    with pytest.raises(Refused, match="cannot read"):
        description.load_environment(str(tmp_path))
