"""`fab deploy` of a new commit while something else fails: hosts are as it says, and no job is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from support.deploy_lab import Fab
from support.fault_lab import LANES, OF_A_HOST, OUTSIDE, PRODUCERS, WORKERS, FaultLab, Run
from support.faults_deploys import all_on, last_words, stands, start_deploy
from support.faults_jobs import requeue_until_done
from support.faults_outside import API_PORT, Outside

pytestmark = [pytest.mark.docker, pytest.mark.long]

SECTION = "deploys"
RATE = 100
IN_HAND = "in hand when a connection broke"
QUEUES = {"hello_world": 8, "hello_world_php": 8, "mail": 2, "partner": 1, "partner_php": 1}


@contextlib.contextmanager
def deploying(lab: FaultLab, fault: str) -> Iterator[Run]:
    """A load that also calls the third party."""
    call = {"call": f"http://{lab.addresses[OUTSIDE]}:{API_PORT}/"}
    data = {"partner": call, "partner_php": call}
    with lab.under_load(SECTION, f"deploy, {fault}", RATE, QUEUES, data) as run:
        yield run


def say_end(run: Run, code: int, fab: Fab, which: str) -> None:
    run.said(f"exit {code}, {which}: {last_words(fab)}")


def test_while_a_server_is_killed(lab: FaultLab) -> None:
    server = lab.host("queue1")
    (old,) = all_on(lab)
    with deploying(lab, "a queue server killed (-9) while workers are switched") as run:
        run.allow_doubled(WORKERS + PRODUCERS, IN_HAND)
        fab = start_deploy(lab)
        fab.wait_for("worker1", "switched to")
        before = server.pid()
        with run.fault():
            server.run(f"kill -9 {before}")
        code = fab.end(400)
        assert server.pid() not in (0, before)
        assert code == 0, fab.text
        (new,) = all_on(lab)
        assert new > old
        say_end(run, code, fab, "all hosts new")


def test_while_a_server_is_cut_off(lab: FaultLab) -> None:
    server = lab.host("queue2")
    (old,) = all_on(lab)
    with deploying(lab, "one of two queue servers cut off all the while") as run:
        run.allow_doubled(WORKERS + PRODUCERS, IN_HAND)
        with run.fault(), lab.cut_off(server.name):
            fab = start_deploy(lab)
            code = fab.end(400)
        (release,) = all_on(lab)
        assert (code == 0) == (release > old), fab.text
        assert code in (0, 2), fab.text
        say_end(run, code, fab, "all hosts new" if release > old else "all hosts old")


def test_while_all_servers_are_cut_off(lab: FaultLab) -> None:
    (old,) = all_on(lab)
    with deploying(lab, "all queue servers cut off") as run:
        run.allow_doubled(WORKERS + PRODUCERS, IN_HAND)
        with run.fault(), lab.cut_off(*lab.queue_hosts):
            run.is_refused()
            fab = start_deploy(lab)
            code = fab.end(400)
        assert code in (1, 2), fab.text
        assert all_on(lab) == {old}, fab.text
        say_end(run, code, fab, "all hosts old")


def test_to_a_host_that_is_frozen(lab: FaultLab) -> None:
    host = lab.host("worker2")
    (old,) = all_on(lab)
    with deploying(lab, "a worker host frozen before it") as run:
        run.allow_doubled(OF_A_HOST + LANES, IN_HAND)
        with run.fault():
            host.docker("pause")
            fab = start_deploy(lab)
            code = fab.end(400)
            host.docker("unpause")
        assert code == 1, fab.text
        assert all_on(lab) == {old}
        say_end(run, code, fab, "all hosts old")


def test_to_a_host_that_is_cut_off_in_mid_switch(lab: FaultLab) -> None:
    host = lab.host("worker1")
    (old,) = all_on(lab)
    with deploying(lab, "a worker host cut off while it is switched") as run:
        run.allow_doubled(OF_A_HOST + LANES, IN_HAND)
        fab = start_deploy(lab)
        fab.wait_for(host.name, "switched to")
        with run.fault(), lab.cut_off(host.name):
            code = fab.end(400)
        assert code == 4, fab.text
        assert stands(lab, "worker2") == old
        # It goes back, or ends what it had begun, by itself: it is wholly on one of the two.
        lab.wait_for_quiet(host.name)
        lab.wait_until(lambda: lab.workers_running(host.name), 90)
        mid = stands(lab, host.name)
        again = start_deploy(lab)
        assert again.end(400) == 0, again.text
        (new,) = all_on(lab)
        assert new > mid
        which = "old" if mid == old else "new"
        say_end(run, code, fab, f"worker1 {which}, worker2 old; the next deploy: exit 0, all new")


@pytest.mark.parametrize("name", ["api", "sentry"])
def test_while_a_service_is_down(lab: FaultLab, name: str) -> None:
    (old,) = all_on(lab)
    words = {"api": "the third party of the jobs down", "sentry": "Sentry (a stand-in) down and jobs failing"}
    services = [Outside(one, lab.host(OUTSIDE).run) for one in dict.fromkeys(("api", name))]
    with deploying(lab, words[name]) as run:
        with run.fault(), contextlib.ExitStack() as stack:
            for service in services:
                stack.enter_context(service.down())
            fab = start_deploy(lab)
            code = fab.end(400)
        assert code == 0, fab.text
        (new,) = all_on(lab)
        assert new > old
        requeue_until_done(lab, run)
        say_end(run, code, fab, "all hosts new")
