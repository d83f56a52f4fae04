"""site.yml that was cut short, on fresh hosts and in the middle of an upgrade: the next run does the rest."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from support.deploy import ROOT
from support.upgrade_lab import (
    MILESTONES,
    NOW,
    QUEUE,
    WORKER,
    UpgradeLab,
    groups,
    has_commit,
    variables_of,
)

MOMENTS = (
    ("common : Fetch the package lists", 3.0),
    ("kestrel : Create the folders of data and configuration", 0.1),
    ("kestrel : Stage the configuration", 0.2),
    ("app_host : Create the application's folders", 0.2),
    ("supervisor : Start supervisor and at every boot", 0.7),
)
"""With which task, and how many seconds after it is first heard of, a run is cut short."""

# How dpkg notes what it was at when it was killed; nothing is installed until that is finished.
HALF_CONFIGURED = """
with open("/var/lib/dpkg/status") as known:
    [less] = [one for one in known.read().split("\\n\\n") if one.startswith("Package: less\\n")]
with open("/var/lib/dpkg/updates/0000", "w") as note:
    note.write(less.replace("install ok installed", "install ok half-configured") + "\\n\\n")
"""


def cut(task: str, seconds: float, how: Callable[[], str | None]) -> Callable[[int, str], str | None]:
    """Do something, once, when a task is heard of."""
    heard = False

    def at_task(number: int, name: str) -> str | None:
        nonlocal heard
        if heard or name != task:
            return None
        heard = True
        time.sleep(seconds)
        return how()

    return at_task


def test_a_first_run_that_is_killed_again_and_again_converges_in_the_end(lab: UpgradeLab) -> None:
    lab.write_inventory(groups(), {**variables_of(NOW), "sentry_backend": "none"})
    lab.up()
    for host in (QUEUE, WORKER):
        lab.inside(host, "python3 -", stdin=HALF_CONFIGURED)
    cuts = 0
    for task, seconds in MOMENTS:
        ended = lab.play(at_task=cut(task, seconds, lambda: "kill"))
        cuts += ended.code != 0
        if ended.code == 0:
            break
        assert ended.code == -9, ended.text[-3000:]
    assert cuts >= 3
    lab.play().assert_done()
    for host in (QUEUE, WORKER):
        assert "Status: install ok installed" in lab.inside(host, "dpkg -s less")
    lab.play().assert_unchanged()
    lab.fab(ROOT, "deploy")
    wanted = lab.enqueue("HelloWorld", 20, queue="hello_world")
    lab.wait_until(lambda: wanted <= set(lab.done()), "the jobs are done")


@pytest.mark.parametrize("host", [QUEUE, WORKER])
def test_a_host_that_loses_power_during_its_first_run_is_finished_by_the_next(
    lab: UpgradeLab, host: str
) -> None:
    lab.write_inventory(groups(), {**variables_of(NOW), "sentry_backend": "none"})
    lab.up()
    task = "kestrel : Create Kestrel's user" if host == QUEUE else "app_host : Create the worker user"
    ended = lab.play(at_task=cut(task, 0.3, lambda: lab.cut_power(host)))
    assert ended.code > 0, ended.text[-3000:]
    assert ended.recap[host]["unreachable"] + ended.recap[host]["failed"] > 0, ended.text[-3000:]
    # The lab's own command gives it power again.
    lab.up()
    lab.play().assert_done()
    lab.play().assert_unchanged()
    lab.fab(ROOT, "deploy")
    wanted = lab.enqueue("HelloWorld", 20, queue="hello_world")
    lab.wait_until(lambda: wanted <= set(lab.done()), "the jobs are done")


def test_an_upgrade_that_is_cut_short_loses_no_job(lab: UpgradeLab) -> None:
    milestone = next(one for one in MILESTONES if one.name == "jobs")
    if not has_commit(milestone.commit):
        pytest.skip(f"this clone has no commit {milestone.commit}: git fetch --unshallow brings it")
    lab.checkout(milestone.commit)
    lab.write_inventory(groups(), {**lab.old_variables(), "sentry_backend": "none"})
    lab.up()
    with lab.as_the_old_lab_says_it():
        lab.play(lab.old).assert_done()
        lab.fab(lab.old, "deploy")
    with lab.steady() as load:
        lab.wait_until(lambda: len(load()[0]) > 20, "jobs come in")
        for task, seconds in MOMENTS[1:4]:
            assert lab.play(at_task=cut(task, seconds, lambda: "kill")).code == -9
        assert lab.play(at_task=cut("kestrel : Stage the rest", 0.3, lambda: lab.cut_power(QUEUE))).code > 0
        lab.up()
        lab.play().assert_done()
        lab.fab(ROOT, "deploy")
        so_far = len(load()[0])
        lab.wait_until(lambda: len(load()[0]) > so_far + 20, "jobs come in again")
    lab.wait_until(lab.steady_ended, "the load has ended")
    acknowledged, refused = load()
    assert refused, "the queue's host was away"
    lab.wait_until(lambda: acknowledged <= set(lab.done()), f"all {len(acknowledged)} jobs are done", 180)
    doubled = sum(again for again in lab.done().values())
    lab.say(f"{len(acknowledged)} acknowledged, 0 lost, {doubled} doubled, {refused} tries refused")
    lab.play().assert_unchanged()
