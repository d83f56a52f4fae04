"""Two things that fail at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from support.fault_lab import (
    LANES,
    OF_A_HOST,
    OUTSIDE,
    PRODUCERS,
    WORKER_HOSTS,
    WORKERS,
    FaultLab,
    Host,
)
from support.faults_deploys import all_on, last_words, start_deploy
from support.faults_jobs import requeue_until_done
from support.faults_outside import API_PORT, Outside
from support.faults_workers import SEED, Killer, SmallDisk, pids, small_disk

pytestmark = [pytest.mark.docker, pytest.mark.long]

SECTION = "two at once"
IN_HAND = "in hand when a connection broke"
SPOOL = "/var/spool/kestrel"
NOTES = "/srv/shop/shared/var/done-"


def test_a_server_and_workers_are_killed(lab: FaultLab) -> None:
    server = lab.host("queue1")
    name = f"a queue server killed (-9) three times, and workers at 10 % of the jobs (seed {SEED})"
    with lab.under_load(SECTION, name, rate=50) as run:
        with run.fault():
            killers = [
                Killer(lab.container(host), NOTES + run.load.run, SEED + number, 0.1)
                for number, host in enumerate(WORKER_HOSTS)
            ]
            for _ in range(3):
                before = server.pid()
                server.run(f"kill -9 {before}")
                lab.wait_until(lambda before=before: server.serves() and server.pid() != before)
                run.goes_on(100)
            killed = sum(killer.end().all for killer in killers)
        assert killed >= 10
        run.allow_doubled(
            killed + 3 * (WORKERS + PRODUCERS),
            f"in hand of {killed} killed processes, or of a broken connection",
        )
        requeue_until_done(lab, run)
        run.said(server.journal())


@contextlib.contextmanager
def small_spool(host: Host) -> Iterator[SmallDisk]:
    """A small disk for a queue server's journals, without the guard, which would see that it is full."""
    guard = "kestrel-stack-spool-guard"
    # Not in the midst of a look, either.
    host.run(f"systemctl stop {guard}.timer {guard}.service")
    try:
        with small_disk(host.run, SPOOL, 96, "systemctl stop kestrel", "systemctl start kestrel") as disk:
            host.lab.wait_until(host.serves)
            yield disk
    finally:
        host.run(f"systemctl start {guard}.timer")


def test_a_server_is_cut_off_and_the_disk_of_the_other_is_full(lab: FaultLab) -> None:
    away, full = lab.host("queue1"), lab.host("queue2")
    name = "one queue server cut off, and the disk of the other's journals full"
    with small_spool(full) as disk, lab.under_load(SECTION, name, rate=100) as run:
        run.allow_doubled(WORKERS + PRODUCERS, IN_HAND)
        with run.fault(), disk.full(), lab.cut_off(away.name):
            # Nobody takes a job: what is acknowledged from here on would have nowhere to be.
            run.is_refused(20, 90)
        run.recovered(lambda: full.serves() and away.serves())
        run.said(full.journal())
        requeue_until_done(lab, run)


def test_a_worker_host_is_restarted_while_the_third_party_is_down(lab: FaultLab) -> None:
    host = lab.host("worker1")
    call = {"call": f"http://{lab.addresses[OUTSIDE]}:{API_PORT}/"}
    queues = {"hello_world": 8, "hello_world_php": 8, "mail": 2, "partner": 1, "partner_php": 1}
    data = {"partner": call, "partner_php": call}
    with lab.under_load(
        SECTION, "a worker host restarted while the third party is down", 100, queues, data
    ) as run:
        # A mover that is killed may have moved a job and not yet confirmed it; here those of partner, too.
        run.allow_doubled(OF_A_HOST + 2 * LANES, IN_HAND)
        with run.fault(), Outside("api", lab.host(OUTSIDE).run).down():
            run.goes_on(300)
            host.restart()
            lab.wait_until(lambda: lab.workers_running(host.name), 90)
        requeue_until_done(lab, run)
        run.said(host.run("supervisorctl status shop_partner:*"))


def test_a_deploy_while_a_server_and_a_worker_are_killed(lab: FaultLab) -> None:
    server, host = lab.host("queue1"), lab.host("worker2")
    (old,) = all_on(lab)
    with lab.under_load(SECTION, "deploy, a queue server and a worker killed (-9)", rate=100) as run:
        run.allow_doubled(WORKERS + PRODUCERS + 1, IN_HAND)
        fab = start_deploy(lab)
        fab.wait_for("worker1", "switched to")
        before, worker = server.pid(), pids(host.run, "hello_world")[0][0]
        with run.fault():
            server.run(f"kill -9 {before}")
            host.run(f"kill -9 {worker}")
        code = fab.end(400)
        assert server.pid() not in (0, before)
        assert worker not in pids(host.run)[0]
        assert code in (0, 2), fab.text
        (release,) = all_on(lab)
        assert (release > old) == (code == 0), fab.text
        requeue_until_done(lab, run)
        run.said(f"exit {code}, all hosts {'new' if release > old else 'old'}: {last_words(fab)}")
