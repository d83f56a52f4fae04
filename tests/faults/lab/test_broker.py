"""Queue servers that fail, one or both, while jobs come in and are done."""

from __future__ import annotations

import json
import math

import pytest

from support.fault_lab import PRODUCERS, WORKERS, FaultLab, Host, Run

pytestmark = [pytest.mark.docker, pytest.mark.long]

IN_HAND = "a job in hand when its connection breaks is given to another worker"
UNANSWERED = "a producer that gets no answer enqueues again, elsewhere"
PATIENCE = 5 / 4
"""Seconds that a producer waits for one of two servers to answer."""


@pytest.fixture(params=["one", "both"])
def which(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def hosts(lab: FaultLab, which: str) -> list[Host]:
    return [lab.host(name) for name in lab.queue_hosts[: 1 if which == "one" else None]]


def named(which: str, what: str) -> str:
    return f"{which} of two servers {what}"


def breaks(run: Run, times: int = 1) -> None:
    """Allow what a server that breaks its connections may double, so many times."""
    run.allow_doubled(times * WORKERS, IN_HAND)
    run.allow_doubled(times * PRODUCERS, UNANSWERED)


def silence(run: Run, hosts: list[Host]) -> None:
    """Allow what servers that fell silent may double, now that the fault is over."""
    run.allow_doubled(len(hosts) * WORKERS, IN_HAND)
    tries = math.ceil((run.ended - run.began) / PATIENCE) + 1
    run.allow_doubled(len(hosts) * PRODUCERS * tries, UNANSWERED)


def goes_on_or_is_refused(run: Run, which: str) -> None:
    """Wait until the fault was felt: jobs go to the other server, or are refused where there is none."""
    if which == "one":
        run.goes_on(500)
    else:
        run.is_refused(PRODUCERS)


def test_nothing_happens(lab: FaultLab) -> None:
    with lab.under_load("broker", "none: the load alone, for comparison") as run:
        with run.fault():
            run.goes_on(500)
        run.said(f"`kestrel-stack-kestrel status`: {lab.host('queue1').says('status')}")


def test_servers_are_killed(lab: FaultLab, which: str, hosts: list[Host]) -> None:
    with lab.under_load("broker", named(which, "killed (`kill -9`)")) as run:
        before = {host.name: host.pid() for host in hosts}
        with run.fault():
            for host in hosts:
                host.run(f"kill -9 {before[host.name]}")
        for host in hosts:
            run.recovered(host.serves)
            assert host.pid() != before[host.name]
        breaks(run, len(hosts))
        run.said(hosts[0].run("journalctl -u kestrel -o cat -n 20 | grep status=9 | tail -n 1"))


def test_a_server_is_killed_again_and_again(lab: FaultLab) -> None:
    times = 6
    with lab.under_load("broker", f"each server killed in turn, {times} times in all") as run:
        pids = set()
        with run.fault():
            for number in range(times):
                host = lab.host(lab.queue_hosts[number % 2])
                pids.add((host.name, host.pid()))
                host.run(f"kill -9 {host.pid()}")
                lab.wait_until(host.serves)
                run.goes_on(100)
        assert len(pids) == times
        breaks(run, times)
        run.said(f"systemd: restart counter is at {host.run('systemctl show -P NRestarts kestrel')}")


def test_servers_freeze(lab: FaultLab, which: str, hosts: list[Host]) -> None:
    with lab.under_load("broker", named(which, "frozen (`SIGSTOP`), then thawed")) as run:
        for host in hosts:
            lab.finally_(lambda host=host: host.run("systemctl kill --signal=CONT kestrel"))
        with run.fault():
            for host in hosts:
                host.run("systemctl kill --signal=STOP kestrel")
            goes_on_or_is_refused(run, which)
            assert not any(host.serves() for host in hosts)
            for host in hosts:
                host.run("systemctl kill --signal=CONT kestrel")
        silence(run, hosts)
        run.said(run.load.refusal or worker_says(lab))


def test_hosts_freeze(lab: FaultLab, which: str, hosts: list[Host]) -> None:
    with lab.under_load("broker", named(which, "with their whole host frozen, then thawed")) as run:
        with run.fault():
            for host in hosts:
                host.docker("pause")
            goes_on_or_is_refused(run, which)
            assert not any(host.serves() for host in hosts)
            for host in hosts:
                host.docker("unpause")
        silence(run, hosts)
        run.said(run.load.refusal or worker_says(lab))


def test_servers_are_cut_off(lab: FaultLab, which: str, hosts: list[Host]) -> None:
    with lab.under_load("broker", named(which, "cut off (packets dropped both ways), then mended")) as run:
        with run.fault(), lab.cut_off(*(host.name for host in hosts)):
            goes_on_or_is_refused(run, which)
            assert not any(host.serves() for host in hosts)
        silence(run, hosts)
        run.said(run.load.refusal or worker_says(lab))


def test_hosts_restart(lab: FaultLab, which: str, hosts: list[Host]) -> None:
    with lab.under_load(
        "broker", named(which, "with their host restarted at once (`docker restart -t 0`)")
    ) as run:
        before = {host.name: host.run("cat /proc/1/stat | cut -d' ' -f22") for host in hosts}
        with run.fault():
            for host in hosts:
                host.restart()
        for host in hosts:
            run.recovered(host.serves)
            assert host.run("cat /proc/1/stat | cut -d' ' -f22") != before[host.name]
        silence(run, hosts)
        run.said(hosts[0].journal(lines=1))


def test_both_servers_are_stopped_for_a_while(lab: FaultLab) -> None:
    """Producers get an error in bounded time: the job is refused, and known to be so."""
    with lab.under_load("broker", "both servers stopped for a while") as run:
        both = [lab.host(name) for name in lab.queue_hosts]
        for host in both:
            lab.finally_(lambda host=host: host.run("systemctl start kestrel"))
        with run.fault():
            for host in both:
                host.run("systemctl stop kestrel")
            before = len(run.load.acknowledged)
            run.is_refused(100)
            # Whoever had been answered just before the stop may have counted just after it.
            assert len(run.load.acknowledged) <= before + PRODUCERS
            for host in both:
                host.run("systemctl start kestrel")
        breaks(run, 2)
        run.said(f"{run.load.refusal} (after {run.load.slowest:.1f} s at most)")


def worker_says(lab: FaultLab) -> str:
    """Return the last error that a worker wrote."""
    logs = "/var/log/kestrel-stack/shop/*.log"
    line = lab.host("worker1").run(f'grep -h \'"level":"error"\' {logs} | sort | tail -n 1')
    record = json.loads(line)
    return f"a worker's log: {record['event']}: {record['error']}"
