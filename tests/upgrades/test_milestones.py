"""Hosts as each earlier piece of work left them, brought to today's with jobs waiting: nothing is lost."""

from __future__ import annotations

import urllib.request

import pytest

from support.deploy import ROOT
from support.upgrade_lab import MILESTONES, MONITOR, WORKER, Milestone, UpgradeLab, groups, has_commit


@pytest.mark.parametrize("milestone", MILESTONES, ids=lambda m: m.name.replace(" ", "-"))
def test_hosts_of_an_earlier_commit_become_todays_and_no_job_is_lost(
    lab: UpgradeLab, milestone: Milestone
) -> None:
    if not has_commit(milestone.commit):
        pytest.skip(f"this clone has no commit {milestone.commit}: git fetch --unshallow brings it")
    lab.checkout(milestone.commit)
    hosts = groups(pages=milestone.pages, monitor=milestone.monitor, bugsink=milestone.bugsink)
    was = lab.old_variables()
    if not milestone.bugsink:
        was["sentry_backend"] = "none"
    lab.write_inventory(hosts, was)
    lab.up()

    # As it was: built, deployed and working, with jobs of each kind.
    with lab.as_the_old_lab_says_it():
        lab.play(lab.old).assert_done()
        lab.fab(lab.old, "deploy")
    old_release = lab.current()
    wanted = lab.enqueue("HelloWorld", 30, queue="hello_world")
    lab.wait_until(lambda: wanted <= set(lab.done()), "the old release has done its jobs")
    lab.enqueue("NobodyKnowsThis", 1, queue="hello_world")
    lab.wait_until(lambda: lab.items().get("shop_hello_world_errors") == 1, "one is parked")
    lab.inside(WORKER, "supervisorctl stop shop_mail:*")
    mails = {"to": "ada@example.org", "subject": "Your order", "text": "On its way."}
    waiting = lab.enqueue("SendMail", 40, queue="mail", data=mails)
    if milestone.delays:
        wanted |= lab.enqueue("HelloWorld", 10, queue="hello_world", delay=60)
    wanted |= waiting
    assert lab.items()["shop_mail"] == 40

    # What the old inventory lacks is asked for by name, and no host is touched.
    lab.write_inventory(hosts, {key: value for key, value in was.items() if key != "sentry_backend"})
    refused = lab.play()
    assert refused.code != 0
    assert "sentry_backend" in refused.text
    assert all(row["changed"] == 0 for row in refused.recap.values()), refused.text[-3000:]
    lab.write_inventory(hosts, was)

    with lab.steady() as load:
        lab.wait_until(lambda: len(load()[0]) > 20, "jobs come in")
        lab.play().assert_done()
        # Between playbook and deploy the old release goes on.
        before = set(lab.done())
        lab.wait_until(
            lambda: len(set(lab.done()) - before) > 20, "the old release works under today's roles"
        )
        assert lab.current() == old_release
        lab.fab(ROOT, "deploy")
        assert lab.current() != old_release
        so_far = len(load()[0])
        lab.wait_until(lambda: len(load()[0]) > so_far + 20, "jobs come in still")
    lab.wait_until(lab.steady_ended, "the load has ended")
    acknowledged, refused_tries = load()
    wanted |= acknowledged
    lab.wait_until(lambda: wanted <= set(lab.done()), f"all {len(wanted)} jobs are done", 180)
    doubled = sum(again for again in lab.done().values())
    lab.say(f"{len(wanted)} acknowledged, 0 lost, {doubled} doubled, {refused_tries} tries refused")

    # Everything runs, and from the new release.
    lab.wait_until(lambda: set(lab.programs().values()) == {"RUNNING"}, f"all run: {lab.programs()}", 60)
    running = lab.releases_running()
    assert set(running) >= {"shop_hello_world", "shop_mail"}, running
    assert all(releases == {lab.current()} for releases in running.values()), running
    # What was parked is there, and today's command reads it.
    assert lab.items()["shop_hello_world_errors"] == 1
    listed = lab.inside(WORKER, "kestrel-stack-jobs parked list hello_world")
    assert "NobodyKnowsThis" in listed, listed
    if milestone.pages:
        with urllib.request.urlopen(f"http://{lab.address(WORKER)}:8080/", timeout=10) as page:
            assert page.status == 200
    if milestone.monitor:
        with urllib.request.urlopen(f"http://{lab.address(MONITOR)}:8090/healthz", timeout=10) as page:
            assert page.status == 200
    lab.play().assert_unchanged()
