"""The hosts of the application after site.yml and a deploy: users, rights, workers, jobs that get done."""

from __future__ import annotations

import json

import paramiko
import pytest

GROUPS = {
    "shop_hello_world": 2,
    "shop_mail": 1,
    "shop_partner_api": 1,
    "shop_hello_world_php": 1,
    "shop_post_upload": 1,
}
HELPER = "sudo -n /usr/local/sbin/kestrel-stack-workers"


@pytest.fixture(params=["worker1", "worker2"])
def worker(request, stack):
    assert request.param in stack.group("consumers")
    return request.param


@pytest.fixture
def deploy(stack, worker):
    return stack.host(worker, "deploy")


def status(host, group):
    done = host.run(f"{HELPER} status {group}")
    assert done.rc == 0, done.stderr
    return json.loads(done.stdout)


def pids(host):
    """Return each worker's pid, 0 while it is not running, by its name."""
    found = {}
    for group in GROUPS:
        for process in status(host, group)["processes"]:
            found[process["name"]] = process["pid"] if process["state"] == "RUNNING" else 0
    return found


def done_jobs(stack, tenant, job):
    """Return how many of a tenant's jobs all hosts have done, by their ledgers."""
    total = 0
    for name in stack.group("consumers"):
        told = stack.host(name, "deploy").run("cd /srv/shop/current && venv/bin/python report.py --json")
        assert told.rc == 0, told.stderr
        total += json.loads(told.stdout)["done"].get(tenant, {}).get(job, 0)
    return total


def enqueue(stack, host, tenant, job, count, more=""):
    command = (
        "cd /srv/shop/current && venv/bin/python enqueue.py"
        f" --tenant {tenant} --job {job} --count {count} {more}"
    )
    done = stack.host(host, "deploy").run(command)
    assert done.rc == 0, done.stderr
    assert json.loads(done.stdout)["enqueued"] == count


def test_every_worker_runs_from_the_one_release_that_was_deployed(stack):
    seen = set()
    for name in stack.group("consumers"):
        host = stack.host(name, "deploy")
        current = host.run("readlink /srv/shop/current").stdout.strip().removeprefix("releases/")
        for group, processes in GROUPS.items():
            report = status(host, group)
            assert report["group"] == group
            assert [one["name"] for one in report["processes"]] == [
                f"{group}_{number:02d}" for number in range(processes)
            ]
            assert {one["state"] for one in report["processes"]} == {"RUNNING"}
            assert {one["release"] for one in report["processes"]} == {current}
        seen.add(current)
    assert len(seen) == 1


@pytest.mark.parametrize("job", ["HelloWorld", "SendMail"])
def test_a_job_that_was_enqueued_on_one_host_is_done_and_the_ledgers_say_so(stack, eventually, job):
    before = done_jobs(stack, "molecule", job)
    enqueue(stack, "worker1", "molecule", job, 5)
    eventually(lambda: done_jobs(stack, "molecule", job) >= before + 5, "5 jobs are done")
    assert done_jobs(stack, "molecule", job) == before + 5


def test_a_job_that_python_enqueued_is_done_by_php_and_the_reverse(stack, eventually):
    before = done_jobs(stack, "both", "HelloWorld")
    enqueue(stack, "worker1", "both", "HelloWorld", 3, "--queue hello_world_php")
    host = stack.host("worker2", "deploy")
    sent = host.run("cd /srv/shop/current && php php/enqueue.php --tenant both --count 3")
    assert sent.rc == 0, sent.stderr
    code = (
        "require 'php/stack.php';"
        " KestrelStack\\Queue\\Producer::fromSettings('both')->enqueue('HelloWorld', ['name' => 'Python']);"
    )
    sent = host.run("cd /srv/shop/current && php -r %s", code)
    assert sent.rc == 0, sent.stderr
    eventually(lambda: done_jobs(stack, "both", "HelloWorld") >= before + 7, "7 jobs are done")


def test_a_delayed_job_is_brought_to_its_queue_by_the_mover_when_it_is_due(stack, eventually, run_as):
    before = done_jobs(stack, "later", "HelloWorld")
    sent = stack.host("worker1", "deploy").run(
        "kestrel-stack-jobs enqueue HelloWorld --tenant later --queue hello_world_php --delay 10"
    )
    assert sent.rc == 0, sent.stderr
    assert done_jobs(stack, "later", "HelloWorld") == before
    eventually(lambda: done_jobs(stack, "later", "HelloWorld") == before + 1, "the job is done")


def test_the_command_for_jobs_counts_what_is_on_the_queues(deploy):
    done = deploy.run("kestrel-stack-jobs count")
    assert done.rc == 0, done.stderr
    for queue in ("hello_world", "mail", "partner_api", "hello_world_php", "post_upload"):
        assert queue in done.stdout


def test_a_restart_of_supervisor_brings_every_worker_back_and_jobs_get_done(
    stack, root, eventually, worker, deploy
):
    old = pids(deploy)
    assert all(old.values())
    root(worker, "systemctl restart supervisor")
    new = eventually(
        lambda: (seen := pids_or_none(deploy)) and all(seen.values()) and seen, "all workers RUNNING again"
    )
    assert set(new) == set(old)
    assert not set(new.values()) & set(old.values())
    left = root(worker, "ps -o pid= -u worker | tr -d ' '").split()
    assert not set(map(str, old.values())) & set(left)
    before = done_jobs(stack, "restart", "HelloWorld")
    enqueue(stack, worker, "restart", "HelloWorld", 3)
    eventually(lambda: done_jobs(stack, "restart", "HelloWorld") >= before + 3, "3 jobs are done")


def pids_or_none(host):
    """Return what pids() does, or None while supervisor does not answer."""
    return None if host.run(f"{HELPER} status shop_mail").rc else pids(host)


def test_supervisor_comes_back_at_boot_and_leaves_workers_the_time_to_finish(root, worker):
    assert root(worker, "systemctl is-enabled supervisor").strip() == "enabled"
    shown = root(worker, "systemctl show supervisor --property KillMode,TimeoutStopUSec")
    settings = dict(line.split("=", 1) for line in shown.splitlines())
    # supervisord stops one program after the other: (60+10) * 4, since workers of post_upload take jobs of
    # hello_world_php as well, (30+10) for partner_api, 10 each for mover and alarm, and 30 more.
    assert settings == {"KillMode": "mixed", "TimeoutStopUSec": "6min 10s"}


def test_nothing_on_a_worker_host_listens_but_ssh(root, worker):
    found = {line.split()[3] for line in root(worker, "ss -H -l -t -n").splitlines()}
    assert {one for one in found if not one.startswith("127.0.0.11:")} == {"0.0.0.0:22", "[::]:22"}
    assert root(worker, "stat -c '%a %U' /run/supervisor.sock").split() == ["700", "root"]


def test_the_deploy_user_may_run_the_helper_for_each_group_and_nothing_else(deploy, worker):
    for group in GROUPS:
        assert deploy.run(f"{HELPER} status {group}").rc == 0
    for command in [
        "sudo -n id",
        "sudo -n -u worker id",
        "sudo -n /bin/sh -c id",
        "sudo -n /usr/bin/supervisorctl status",
        HELPER,
        f"{HELPER} status",
        f"{HELPER} status supervisor",
        f"{HELPER} status 'shop_*'",
        f"{HELPER} restart shop_mail",
        f"{HELPER} status shop_mail shop_mail",
        f"{HELPER} status shop_mail_errors",
    ]:
        refused = deploy.run(command)
        assert refused.rc == 1, command
        assert "password is required" in refused.stderr, command
    listed = deploy.run("sudo -n -l").stdout
    assert listed.count("NOPASSWD:") == 4 * len(GROUPS)
    assert "ALL)" not in listed


def test_the_deploy_user_may_not_replace_what_runs_as_root(deploy, worker):
    for path in ["/usr/local/sbin/kestrel-stack-workers", "/usr/local/lib/kestrel-stack/start-consumer"]:
        assert deploy.run("test -w %s || test -w $(dirname %s)", path, path).rc != 0


def test_a_worker_can_write_its_own_folder_and_no_release(run_as, worker):
    writable = run_as(
        worker,
        "worker",
        "find /srv/shop -path /srv/shop/shared/var -prune -o ! -type l -writable -print",
    )
    assert writable.stdout == ""
    assert (
        run_as(worker, "worker", "touch /srv/shop/shared/var/.probe && rm /srv/shop/shared/var/.probe").rc
        == 0
    )
    assert run_as(worker, "worker", "touch /srv/shop/current/probe").rc != 0


def test_the_worker_user_cannot_log_in(stack, root, worker):
    with pytest.raises(paramiko.AuthenticationException):
        stack.host(worker, "worker")
    assert root(worker, "getent passwd worker").strip().endswith(":/usr/sbin/nologin")
    assert root(worker, "getent shadow worker").split(":")[1][0] in "!*"


def test_the_settings_are_readable_by_the_application_and_by_nobody_else(stack, root, run_as, worker, deploy):
    path = "/etc/kestrel-stack/shop.json"
    assert root(worker, f"stat -c '%a %U %G' {path}").split() == ["640", "root", "shop"]
    settings = json.loads(deploy.run(f"cat {path}").stdout)
    queue = stack.vars(stack.group("kestrel")[0])["kestrel_stack_address"]
    assert settings["servers"] == [f"{queue}:22133"]
    assert settings["host"] == worker
    assert [f"shop_{one['name']}" for one in settings["queues"]] == list(GROUPS)
    assert run_as(worker, "worker", f"test -r {path}").rc == 0
    assert run_as(worker, "nobody", f"test -r {path}").rc != 0


def test_the_application_reads_its_settings_with_the_library_that_was_deployed(deploy, worker):
    code = "from kestrel_stack.queue import settings; print(settings.load().namespace)"
    done = deploy.run(f"cd /srv/shop/current && venv/bin/python -c '{code}'")
    assert done.stdout.strip() == "shop", done.stderr
