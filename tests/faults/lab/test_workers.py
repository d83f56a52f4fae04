"""Workers that die, hang, run out of memory or disk, or cannot reach their queue servers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from support.fault_lab import DELAY, LANES, OF_A_HOST, WORKER_HOSTS, FaultLab, Host, Run
from support.faults_jobs import LOGS, enqueue, log_lines, requeue_until_done, told
from support.faults_workers import SEED, Killer, Kills, SmallDisk, pids, small_disk, stopped

pytestmark = [pytest.mark.docker, pytest.mark.long]

SECTION = "workers"
VAR = "/srv/shop/shared/var"
IN_HAND = "in hand on that host"
FAULT = 8
"""Seconds that most of the faults last, so that connections break and retries come."""


def kill_workers(lab: FaultLab, run: Run, share: float, seed: int, seconds: float = 15) -> list[Kills]:
    """Let a killer be about on each host."""
    killers = [
        Killer(lab.container(host), f"{VAR}/done-{run.load.run}", seed + number, share, seconds=seconds)
        for number, host in enumerate(WORKER_HOSTS)
    ]
    return [killer.end() for killer in killers]


@pytest.mark.parametrize("percent", [10, 30])
def test_workers_are_killed(lab: FaultLab, percent: int) -> None:
    name = f"workers and their children killed (-9), at random, at {percent} % of the jobs (seed {SEED})"
    with lab.under_load(SECTION, name, rate=50) as run:
        with run.fault():
            kills = kill_workers(lab, run, percent / 100, SEED)
        jobs, killed = sum(k.jobs for k in kills), sum(k.all for k in kills)
        assert min(sum(k.parents for k in kills), sum(k.children for k in kills)) >= 5
        assert killed >= jobs * percent / 100 / 2
        run.allow_doubled(killed, f"in hand of the {killed} processes that were killed")
        # A job whose process dies twice is parked: it could be the one that kills.
        requeue_until_done(lab, run)
        run.said(told(log_lines(lab.host("worker1"), "crashed", group="shop_alarm")[-1]))


def test_jobs_leak_memory(lab: FaultLab) -> None:
    leak = {queue: {"leak": 2} for queue in ("hello_world", "hello_world_php")}
    began = time.time()
    with lab.under_load(
        SECTION, "jobs that leak 2 MB each; max_memory is 128 MB", rate=100, data=leak
    ) as run:
        with run.fault():
            run.goes_on(1000)
        for group in ("shop_hello_world_0", "shop_hello_world_php_0"):
            lines = log_lines(lab.host("worker1"), "max-memory", group=f"{group}*", since=began)
            assert lines, f"no child of {group} was replaced"
        run.said(told(lines[-1]))


@contextlib.contextmanager
def short_of_memory(host: Host, spare: int) -> Iterator[None]:
    """Let the workers of a host have so many MB more than they use, and no more."""
    used = int(host.run("systemctl show --property=MemoryCurrent --value supervisor"))
    limit = "systemctl set-property --runtime supervisor MemoryMax="
    host.run(f"{limit}{used + spare * 2**20}")
    try:
        yield
    finally:
        host.run(f"{limit}infinity")


def test_memory_runs_out(lab: FaultLab) -> None:
    host = lab.host("worker1")
    began = time.time()
    supervisord = host.pid("supervisor")
    # Where it is told of such a kill (cgroup v2), systemd would otherwise end all workers.
    assert host.run("systemctl show --property=OOMPolicy --value supervisor") == "continue"
    name = "memory of a host's workers runs out: the kernel kills what takes most"
    with lab.under_load(SECTION, name, rate=50) as run:
        with run.fault(), short_of_memory(host, 100):
            for queue in ("hello_world", "hello_world_php"):
                enqueue(lab, run, queue, 4, {"eat": 300, "seconds": 1})
            lab.wait_until(lambda: log_lines(host, "SIGKILL", since=began))
            run.goes_on(200)
        lines = log_lines(host, "SIGKILL", since=began)
        run.allow_doubled(2 * len(lines), "in hand of the processes that the kernel killed")
        assert host.pid("supervisor") == supervisord
        requeue_until_done(lab, run)
        run.said(told(lines[-1]))


def test_children_are_frozen(lab: FaultLab) -> None:
    host = lab.host("worker1")
    began = time.time()
    name = "children of workers stopped (SIGSTOP): the job's time limit ends them"
    with lab.under_load(SECTION, name, rate=100) as run:
        children = [pids(host.run, queue)[1][0] for queue in ("hello_world", "hello_world_php")]
        with run.fault(), stopped(host.run, children):
            lab.wait_until(lambda: len(log_lines(host, "took longer than", since=began)) >= len(children), 60)
        assert not set(children) & set(pids(host.run)[1])
        run.allow_doubled(len(children), "in hand of those")
        run.said(told(log_lines(host, "took longer than", since=began)[-1]))


def test_parents_are_frozen(lab: FaultLab) -> None:
    host = lab.host("worker1")
    with lab.under_load(SECTION, "all workers of one host stopped (SIGSTOP), and continued", rate=100) as run:
        parents = pids(host.run)[0]
        assert len(parents) == OF_A_HOST
        with run.fault(), stopped(host.run, parents):
            states = host.run(f"ps -o stat= -p {','.join(map(str, parents))}").split()
            assert all(state.startswith("T") for state in states)
            run.goes_on(100 * FAULT)
        run.allow_doubled(OF_A_HOST, IN_HAND)
        assert pids(host.run)[0] == parents
        run.said(host.run("supervisorctl status shop_hello_world:* | head -n 1"))


def test_a_worker_host_freezes(lab: FaultLab) -> None:
    host = lab.host("worker1")
    with lab.under_load(SECTION, "worker host frozen (docker pause), and thawed", rate=100) as run:
        run.allow_doubled(OF_A_HOST + LANES, IN_HAND)
        with run.fault():
            host.docker("pause")
            paused = time.time()
            run.goes_on(100 * FAULT)
            thawed = time.time()
            host.docker("unpause")
        assert not [n for n in lab.notes(run.load) if n.host == host.name and paused + 1 < n.done < thawed]
        run.said(lab.host("queue1").run("kestrel-stack-kestrel status"))


def test_a_worker_host_is_cut_off(lab: FaultLab) -> None:
    host = lab.host("worker1")
    began = time.time()
    with lab.under_load(
        SECTION, "worker host cut off (packets dropped both ways), and mended", rate=100
    ) as run:
        run.allow_doubled(OF_A_HOST + LANES, IN_HAND)
        with run.fault(), lab.cut_off(host.name):
            # Long enough for each worker to give up its connection and say so.
            lab.wait_until(lambda: len(log_lines(host, "server is away", since=began)) >= OF_A_HOST, 90)
        run.recovered(lambda: len(log_lines(host, "server is back", since=began)) >= OF_A_HOST)
        run.said(told(log_lines(host, "server is back", since=began)[-1]))


def test_a_worker_host_is_restarted(lab: FaultLab) -> None:
    host = lab.host("worker1")
    with lab.under_load(SECTION, "worker host restarted, every process killed at once", rate=100) as run:
        run.allow_doubled(OF_A_HOST + LANES, IN_HAND)
        began = "cut -d' ' -f22 /proc/1/stat"
        before = host.run(began)
        with run.fault():
            host.restart()
        run.recovered(lambda: lab.workers_running(host.name))
        assert host.run(began) != before
        run.said(host.run("supervisorctl status shop_hello_world:* | head -n 1"))


def test_a_worker_host_loses_its_power(lab: FaultLab) -> None:
    host, servers = lab.host("worker1"), [lab.host(name) for name in lab.queue_hosts]
    name = "worker host without power: no goodbye reaches the servers, and it does not come back"
    with lab.under_load(SECTION, name, rate=100) as run:
        run.allow_doubled(OF_A_HOST + LANES, IN_HAND)
        with run.fault():
            host.cut()
            host.docker("kill")
        # What it had in hand comes back when the servers have noticed by themselves.
        run.recovered(lambda: not run.unfinished(), 240)
        run.said(servers[0].run("kestrel-stack-kestrel status"))
        host.docker("start")
        lab.wait_until(lambda: lab.workers_running(host.name), 90)


@contextlib.contextmanager
def small_disk_of_workers(host: Host, folder: str) -> Iterator[SmallDisk]:
    """A small disk for a folder of a host's workers, who are started anew for it, and after it.

    They run in a sandbox with mounts of its own: what is mounted in a container later is not in there.
    """
    supervisor = ("systemctl stop supervisor", "systemctl start supervisor")

    def are_back() -> None:
        host.lab.wait_until(lambda: host.lab.workers_running(host.name), 90)

    with small_disk(host.run, folder, 48, *supervisor) as disk:
        are_back()
        yield disk
    are_back()


def test_the_disk_of_the_logs_is_full(lab: FaultLab) -> None:
    host = lab.host("worker1")
    moved = time.time()
    with small_disk_of_workers(host, LOGS) as disk:
        name = "disk full where a host's workers log"
        with lab.under_load(SECTION, name, rate=100) as run:
            # Else it is not their disk that gets full.
            lab.wait_until(lambda: log_lines(host, '"outcome"', since=moved))
            with run.fault(), disk.full():
                run.goes_on(100 * FAULT)
                seen = [note for note in lab.notes(run.load) if note.host == host.name]
                assert [note for note in seen if note.done > run.began + FAULT / 2], "its workers go on"
            again = time.time()
            run.recovered(lambda: log_lines(host, '"outcome"', since=again))
            run.said(host.journal("supervisor"))


def test_the_disk_of_the_jobs_is_full(lab: FaultLab) -> None:
    host = lab.host("worker1")
    began = time.time()
    with small_disk_of_workers(host, VAR) as disk:
        name = "disk full where the jobs of one host write"
        with lab.under_load(SECTION, name, rate=100) as run:
            with run.fault(), disk.full():
                lab.wait_until(lambda: len(log_lines(host, "No space left", since=began)) >= 10)
                run.goes_on(100 * FAULT)
            run.said(told(log_lines(host, "No space left", since=began)[-1]))
            requeue_until_done(lab, run)


def test_supervisord_is_killed(lab: FaultLab) -> None:
    host = lab.host("worker1")
    with lab.under_load(SECTION, "supervisord killed (-9)", rate=100) as run:
        run.allow_doubled(OF_A_HOST + LANES, IN_HAND)
        before, parents = host.pid("supervisor"), pids(host.run)[0]
        with run.fault():
            host.run(f"kill -9 {before}")
        run.recovered(lambda: host.pid("supervisor") not in (0, before) and lab.workers_running(host.name))
        # None of the old ones is left, which nobody would stop at the next deploy.
        assert not set(parents) & set(pids(host.run)[0])
        assert len(pids(host.run)[0]) == OF_A_HOST
        run.said(host.journal("supervisor", lines=200, since=run.began))


def mover(host: Host) -> int:
    """The process of a host's mover; 0 where there is none."""
    said = host.run("supervisorctl pid shop_mover:shop_mover_00 || true")
    return int(said) if said.isdigit() else 0


def test_movers_are_killed(lab: FaultLab) -> None:
    hosts = [lab.host(name) for name in WORKER_HOSTS]
    killed = 0
    with lab.under_load(SECTION, "the movers of all hosts killed (-9), again and again", rate=100) as run:
        with run.fault():
            for _ in range(4):
                enqueue(lab, run, "hello_world", 50, {}, DELAY)
                for host in hosts:
                    lab.wait_until(lambda host=host: mover(host))
                    host.run(f"kill -9 {mover(host)}")
                    killed += 1
                run.goes_on(100)
        run.allow_doubled(killed * LANES, f"held by the movers that were killed, {killed} times")
        # Not those that the load has delayed since: some of them are always to be waited for.
        before = {job for job, when in dict(run.load.acknowledged).items() if when <= run.ended}
        late = before & set(run.load.delayed)
        run.recovered(lambda: not late - {note.id for note in lab.notes(run.load)}, 60)
        run.said(told(log_lines(hosts[0], "shop_mover", group="shop_alarm")[-1]))


def test_movers_are_frozen(lab: FaultLab) -> None:
    hosts = [lab.host(name) for name in WORKER_HOSTS]
    with lab.under_load(SECTION, "the movers of all hosts stopped (SIGSTOP), and continued", rate=100) as run:
        movers = [mover(host) for host in hosts]
        with run.fault(), stopped(hosts[0].run, movers[:1]), stopped(hosts[1].run, movers[1:]):
            late = enqueue(lab, run, "hello_world", 100, {}, DELAY)
            run.goes_on(100 * FAULT)
            done = {note.id for note in lab.notes(run.load)}
            assert not done & set(late), "a delayed job came although no mover moved it"
        assert [mover(host) for host in hosts] == movers
        run.allow_doubled(LANES * len(hosts), "held by the movers")
        run.recovered(lambda: not set(late) - {note.id for note in lab.notes(run.load)}, 60)
        run.said(lab.inside("worker1", "kestrel-stack-jobs count"))
