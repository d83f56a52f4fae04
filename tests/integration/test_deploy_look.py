"""fab status, check, workers and logs against hosts over real SSH, with a queue server on another host."""

import json
import re

import pytest

from support.deploy_lab import GROUPS, HOSTS, QUEUE_HOST, app, interrupt, lab  # noqa: F401 - fixtures

pytestmark = pytest.mark.docker

ENQUEUE = "kestrel-stack-jobs enqueue {job} --queue {queue} --tenant acme"


def enqueue(lab, job, queue="hello_world"):  # noqa: F811
    """Enqueue a job on a host, and return its id."""
    return lab.inside("worker1", ENQUEUE.format(job=job, queue=queue))


def pids(lab, host):  # noqa: F811
    """The processes of a host's workers, by name."""
    found = {}
    for group in GROUPS:
        data = json.loads(lab.inside(host, f"/usr/local/sbin/kestrel-stack-workers status {group}"))
        found |= {process["name"]: process["pid"] for process in data["processes"]}
    return found


def test_a_check_before_the_first_deploy_says_what_is_missing(lab, app):  # noqa: F811
    done = lab.fab("check", f"--app={app.path}")
    assert done.code == 0, done.text
    assert done.text.count("ready: Python 3.") == 2
    lab.inside(
        "worker1", "chmod 0600 /etc/kestrel-stack/shop.json; mv /etc/sudoers.d/kestrel-stack-shop /root/"
    )
    lab.inside(QUEUE_HOST, "systemctl stop kestrel")
    try:
        bad = lab.fab("check", f"--app={app.path}")
    finally:
        lab.inside(QUEUE_HOST, "systemctl start kestrel")
        lab.inside(
            "worker1", "chmod 0640 /etc/kestrel-stack/shop.json; mv /root/kestrel-stack-shop /etc/sudoers.d/"
        )
    assert bad.code == 1
    assert "user deploy may not run kestrel-stack-workers by sudo" in bad.text
    assert "user deploy cannot read /etc/kestrel-stack/shop.json: run ansible-playbook site.yml" in bad.text
    assert re.search(r"worker2 +queue server \S+:22133 gives no answer to this host", bad.text)
    lab.assert_clean()


def test_status_shows_the_queues_through_the_hosts_and_survives_a_dead_queue_server(lab, app):  # noqa: F811
    release = lab.deployed(app)
    # A job that nobody knows is tried again, later, or parked.
    enqueue(lab, "NobodyKnowsIt", "mail")
    lab.wait_until(lambda: failed_jobs(lab, "mail") == 1)
    shown = lab.fab("status").text
    assert re.search(r"^mail +0 +0 +(?:1 +0|0 +1)$", shown, re.MULTILINE)
    assert re.search(
        rf"^Last: deploy of {release} \(HEAD, {app.commit_id[:8]}\) by \S+, .* ago: ok$", shown, re.M
    )
    data = json.loads(lab.fab("status", "--json").text)
    assert {queue["name"] for queue in data["queues"]} == {"hello_world", "mail"}
    assert data["last_deploy"]["results"] == {"worker1": "ok", "worker2": "ok"}
    lab.inside(QUEUE_HOST, "systemctl stop kestrel")
    try:
        without = lab.fab("status")
    finally:
        lab.inside(QUEUE_HOST, "systemctl start kestrel")
    assert without.code == 0, without.text
    assert without.text.count(release) >= 2
    assert "backlog" not in without.text
    for host in HOSTS:
        assert re.search(rf"{host} +gets no answer from queue server", without.text)


def failed_jobs(lab, queue):  # noqa: F811
    data = json.loads(lab.fab("status", "--json").text)
    return next(one["errors"] + one["retries"] for one in data["queues"] if one["name"] == queue)


def test_logs_of_all_hosts_are_merged_and_followed_through_all_that_happens(lab, app):  # noqa: F811
    lab.deployed(app)
    first = enqueue(lab, "HelloWorld")
    lab.wait_until(lambda: first in lab.fab("logs", "--queue=hello_world").text)
    lines = [json.loads(line) for line in lab.fab("logs", "--json", "--lines=500").text.splitlines()]
    assert {line["host"] for line in lines} == set(HOSTS)
    begun = [line for line in lines if line.get("event") == "worker begins"]
    assert [line["time"] for line in begun] == sorted(line["time"] for line in begun)
    run = lab.start("logs", "--follow", "--queue=hello_world")
    # Shown when every host has sent what it had; from then on every line comes.
    run.wait_for(first)
    followed = []

    def is_followed(id):
        # Which host does a job is theirs to decide: the line comes from either.
        followed.append(id)
        run.wait_for("outcome=done", id)

    is_followed(enqueue(lab, "HelloWorld"))
    for host in HOSTS:
        lab.inside(host, "pkill -u deploy -f '^sshd: deploy'")
    for host in HOSTS:
        run.wait_for(host, "tried again until it answers")
    while_away = enqueue(lab, "HelloWorld")
    for host in HOSTS:
        run.wait_for(host, "is back")
    is_followed(while_away)
    is_followed(enqueue(lab, "HelloWorld"))
    interrupt(run)
    assert run.end(60) == 0, run.text
    assert all(run.text.count(id) == 1 for id in followed), run.text
    assert "Traceback" not in run.text
    lab.wait_for_quiet()


def test_workers_are_restarted_in_place_host_by_host(lab, app):  # noqa: F811
    release = lab.deployed(app)
    before = {host: pids(lab, host) for host in HOSTS}
    table = lab.fab("workers")
    assert table.code == 0, table.text
    for host in HOSTS:
        for name, pid in before[host].items():
            assert re.search(
                rf"^{host} +{name} +RUNNING +{pid} +\d+ \w+ +{release}", table.text, re.MULTILINE
            )
    dry = lab.fab("workers", "--restart", "--dry-run")
    assert dry.code == 0, dry.text
    assert {host: pids(lab, host) for host in HOSTS} == before
    done = lab.fab("workers", "--restart", "--queue=mail")
    assert done.code == 0, done.text
    assert "Restarted the workers of 2 hosts" in done.text
    after = {host: pids(lab, host) for host in HOSTS}
    for host in HOSTS:
        changed = {name for name in before[host] if after[host][name] != before[host][name]}
        assert changed == {"shop_mail_00"}
        record = json.loads(lab.inside(host, "tail -n 1 /srv/shop/deploys.jsonl"))
        assert (record["action"], record["release"], record["result"]) == ("restart", release, "ok")
    lab.assert_runs(release)
    lab.assert_clean()
    stuck = lab.fab("workers", "--restart", "--yes")
    assert stuck.code == 0, stuck.text
    for host in HOSTS:
        assert not set(pids(lab, host).values()) & set(after[host].values())
    lab.assert_runs(release)
    lab.assert_clean()
